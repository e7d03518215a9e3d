"""config.json to transformers' own idea of the architecture, with nothing in it that could steer what is run."""

import re
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, ModelWarning, brief, format_bytes, visible
from base_model.read.counting import stated_tie
from base_model.read.folder import read_config

# Far above any model of today, by the ends of a setting's name: a slip must not fill the memory or run for hours.
LIMITS = {
    "layers": 2_000, "layer": 2_000, "blocks": 2_000, "expand": 1_000, "rank": 10**6,
    "heads": 10_000, "experts": 10_000, "labels": 100_000,
    "dim": 10**6, "size": 10**7, "embeddings": 2 * 10**7, "positions": 2 * 10**7, "ctx": 2 * 10**7,
}  # fmt: skip
FLOATS = ("float32", "bfloat16", "float16")
GENERATES = re.compile("CausalLM|LMHead|ConditionalGeneration")  # in the name of a class
MAX_BUFFER_BYTES = 2**30  # masks and position tables; a model of today has some megabytes
# What may choose code, kernels or other weights than those that were checked, and so has no say here.
STEERING = {"auto_map", "use_kernels", "kernel_config", "trust_remote_code", "transformers_weights"}


def read_architecture(folder: Path) -> Any:
    """The transformers config of a local model.

    Remote code (`auto_map`) and every choice of kernels (`attn_implementation` and its like) are dropped: config.json
    describes a model, it does not choose what runs. Raises ModelError for sizes that no model has.
    """
    from transformers import CONFIG_MAPPING

    settings = described(read_config(folder))
    if not settings:
        raise ModelError(f"There is no config.json in {visible(folder.name)}, or it is empty. Download it again.")
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"config.json has the model_type {visible(repr(model_type))}, which this transformers does not know; code "
            "from the folder is never run. Take a model of a known type, or a newer transformers."
        )
    try:
        return CONFIG_MAPPING[model_type].from_dict(settings)
    except Exception as error:  # each config class checks its values in its own way
        raise ModelError(
            f"config.json does not describe a {model_type} model: {brief(error)}. Download it again."
        ) from error


def described(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, at every depth, without the steering ones; absurd sizes are refused."""
    kept = {}
    for name, value in settings.items():
        limit = LIMITS.get(name.rpartition("_")[2])
        if limit and isinstance(value, int | float) and not abs(value) <= limit:  # NaN is refused, too
            raise ModelError(f"config.json gives {visible(name)} as {value:,}, which no model has. Correct it.")
        if name not in STEERING and "_implementation" not in name:
            _require_short(name, value)
            kept[name] = described(value) if isinstance(value, dict) else value
    return kept


def _require_short(name: str, value: Any) -> None:
    """Lists of kinds of layers may say how often each comes: a number there builds that many."""
    if name.endswith("_types") and isinstance(value, list):
        for part in value:
            _require_short(name, part)
    elif name.endswith("_types") and isinstance(value, int | float) and not abs(value) <= LIMITS["layers"]:
        raise ModelError(f"config.json gives a number of {value:,} in {visible(name)}, which no model has. Correct it.")


def class_names(config: Any) -> list[str]:
    """The classes that a checkpoint says it is of; none where config.json does not say so."""
    named = getattr(config, "architectures", None)
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def skeleton_of(config: Any, dtype: str | None = None) -> Any:
    """The causal language model of a config on the meta device: every shape, no memory; ties are kept.

    Dense, whatever the checkpoint's quantisation; `dtype` is the config's unless given ("bfloat16", ...). A model that
    reads images, too, is built whole, as `AutoModelForImageTextToText` loads it; where that cannot be, its text model,
    and a ModelWarning says so. Raises ModelError.
    """
    if dtype not in (None, *FLOATS):
        raise ModelError(f"Weights are planned in {', '.join(FLOATS)}, not in {dtype!r}.")
    if (named := class_names(config)) and not any(GENERATES.search(name) for name in named):
        raise ModelError(
            f"config.json describes a {visible(named[0])}, which is no causal language model: no text is generated."
        )
    if hasattr(config, "quantization_config"):
        config = deepcopy(config)
        del config.quantization_config
    try:
        return _on_meta(config, dtype)
    except Exception as error:  # the model code of each architecture fails in its own way
        if (text := _text_within(config)) is None:
            raise ModelError(
                f"config.json describes no causal language model that can be built: {brief(error)}."
            ) from error
        reason = brief(error).partition(". ")[0].rstrip(".")
    warnings.warn(
        f"Only the text model of this {config.model_type} is planned, without what reads images or sound: {reason}.",
        ModelWarning,
        stacklevel=3,
    )
    return skeleton_of(text, dtype)


def _on_meta(config: Any, dtype: str | None) -> Any:
    """The model on the meta device, by the class of transformers that loads this checkpoint."""
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind, named, causal = type(config), class_names(config), MODEL_FOR_CAUSAL_LM_MAPPING
    # Some are known to both, and the first would build the text model alone: config.json says what was saved.
    text_only = kind in causal and getattr(causal[kind], "__name__", "") in named
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not text_only
    auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=False, **({"dtype": dtype} if dtype else {}))


def _text_within(config: Any) -> Any | None:
    """The config of the text model within a larger one, in the dtype of the whole; None where there is none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = text_config_of(config)
    if text is None or type(text) is type(config) or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    text = deepcopy(text)
    text.dtype, text.architectures = text.dtype or config.dtype, None
    return text


def text_config_of(config: Any) -> Any | None:
    """The config of the text model, the whole where there is but one; None where there are several."""
    try:
        return config.get_text_config()
    except ValueError:
        return None


def require_fit(config: Any, tensors: pd.DataFrame, countable: bool) -> None:
    """Stop before anything large is built when config.json describes more than `read_tensors` found.

    transformers would fill what is missing with random numbers, in memory, and only log it. `countable` says whether
    the parameters of the table are exact; otherwise only the layers are compared.
    """
    layers = layers_of(config)
    stored = tensors["layer"].nunique()
    if layers > stored:
        raise ModelError(f"config.json describes {layers:,} layers, the weights hold {stored:,}. Download both again.")
    skeleton = skeleton_of(config)
    buffers = sum(buffer.nbytes for buffer in skeleton.buffers())
    if buffers > MAX_BUFFER_BYTES:
        raise ModelError(
            f"config.json asks for tables of {format_bytes(buffers)} beside the weights. Download it again."
        )
    parameters, found = count_parameters(skeleton), int(tensors["parameters"].sum())
    if countable and parameters > found:
        raise ModelError(
            f"config.json describes {parameters:,} parameters, the weights hold {found:,}: they do not belong "
            "together. Download both again."
        )


def is_tied(settings: dict[str, Any]) -> bool:
    """Whether a config.json ties the head to the embedding; where it is silent, the default of its architecture."""
    stated, model_type = stated_tie(settings), settings.get("model_type")
    if stated is not None or not isinstance(model_type, str):
        return bool(stated)
    from transformers import CONFIG_MAPPING  # seconds, but only for a head stored without a word on it

    return model_type in CONFIG_MAPPING and bool(getattr(CONFIG_MAPPING[model_type], "tie_word_embeddings", False))


def layers_of(config: Any) -> int:
    """The layers of the text model; 0 where the architecture has several, or counts them in another way."""
    layers = getattr(text_config_of(config), "num_hidden_layers", 0)
    return layers if isinstance(layers, int) else 0


def positions_of(config: Any) -> int | None:
    """The longest context that the architecture was made for, in tokens; None where it states none."""
    positions = getattr(text_config_of(config), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def has_position_table(skeleton: Any, positions: int) -> bool:
    """Whether each position has a learned row, so that no longer text can be read at all; some tables begin at 2."""
    import torch

    words = skeleton.get_input_embeddings()
    tables = [one for one in skeleton.modules() if isinstance(one, torch.nn.Embedding) and one is not words]
    return any(positions <= table.num_embeddings <= positions + 2 for table in tables)


def count_parameters(model: Any) -> int:
    """The parameters of a transformers model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
