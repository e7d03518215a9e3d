"""config.json to transformers' own idea of the architecture, with nothing in it that could steer what is run."""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, brief, format_bytes, visible, warn
from base_model.read import limits
from base_model.read.counting import stated_tie
from base_model.read.folder import read_config
from base_model.read.limits import MAX_BUFFER_BYTES, MAX_DEPTH, MAX_ITEMS, MAX_MODULES, MAX_NAMED

FLOATS = ("float32", "bfloat16", "float16")
GENERATES = re.compile("CausalLM|LMHead|ConditionalGeneration")  # in the name of a class
# What may choose code, kernels or other weights than those that were checked, and so has no say here.
STEERING = {
    "auto_map", "use_kernels", "kernel_config", "trust_remote_code", "transformers_weights", "distributed_config",
    "fusion_config", "return_dict",
}  # fmt: skip
# Of transformers' own base class, what a config.json may set although it is no field.
SETTABLE = {"model_type", "num_labels", "name_or_path", "torch_dtype", "rope_scaling", "per_layer_config"}
QUANTIZATION = {"quantization_config", "compression_config"}


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
            f"config.json has the model_type {visible(repr(model_type))}, which this version of transformers does not "
            "know; code from the folder is never run. Choose a model of a known type, or install a newer transformers."
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(settings)
    except Exception as error:  # each config class checks its values in its own way
        raise ModelError(
            f"config.json does not describe a {model_type} model: {brief(error)}. Download it again."
        ) from error
    _require_plain(config)
    _require_text(config)
    return config


def described(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, at every depth, without those that steer; absurd sizes are refused. Raises ModelError."""
    kept: dict[str, Any] = _kept(settings, frozenset(_machinery()), depth=0)
    return kept


def _machinery() -> Iterator[str]:
    """The names that transformers' configs have of their own and that are not settings: `attribute_map`, methods."""
    from transformers import PreTrainedConfig

    fields = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    yield from (name for name in dir(PreTrainedConfig) if name not in fields and name not in SETTABLE)


def _kept(value: Any, machinery: frozenset[str], depth: int, in_quantization: bool = False) -> Any:
    """A value of config.json without what steers, at any depth."""
    if depth > MAX_DEPTH:
        raise ModelError(f"config.json holds more than {MAX_DEPTH} nested lists or objects. Download it again.")
    if isinstance(value, list | dict):
        _require_few(value, in_quantization)
    if isinstance(value, list):
        return [_kept(part, machinery, depth + 1, in_quantization) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:  # transformers' way to write what JSON has no number for
        return float(value["__float__"]) if value["__float__"] in ("Infinity", "-Infinity", "NaN") else value
    kept = {}
    for name, part in value.items():
        if not _steers(name, machinery):
            quantized = in_quantization or name in QUANTIZATION
            kept[name] = _kept(part, machinery, depth + 1, quantized)
            if not quantized:
                _require_within(name, part)
    return kept


def _steers(name: str, machinery: frozenset[str]) -> bool:
    """Whether a name in config.json reaches more than a description: code, kernels, files, the config's own methods."""
    private = name.startswith("_") and name != "_name_or_path"
    return private or name in STEERING or name in machinery or "_implementation" in name


def _require_few(value: list[Any] | dict[str, Any], in_quantization: bool) -> None:
    most = MAX_ITEMS if isinstance(value, list) and not in_quantization else MAX_NAMED
    if len(value) > most:
        raise ModelError(
            f"config.json holds {len(value):,} items in one list or object, more than any model has. Correct it."
        )


def _require_within(name: str, value: Any) -> None:
    """A number, or the length of a list or a text, within the limits for settings of this name. Raises ModelError."""
    limit = limits.SETTINGS.get(name.rpartition("_")[2])
    if limit is None:
        return
    if isinstance(value, list | str):
        if len(value) > limit:
            raise ModelError(
                f"config.json gives {len(value):,} items in {visible(name)}, which no model has. Correct it."
            )
        # lists of kinds of layers may say how often each comes: a number there builds that many
        for part in value if isinstance(value, list) else ():
            _require_within(name, part)
    elif isinstance(value, int | float) and not abs(value) <= limit:  # NaN is refused, too
        raise ModelError(f"config.json gives {visible(name)} as {value:,}, which no model has. Correct it.")


def _require_plain(config: Any) -> None:
    """Hold what transformers will see, its built config, to the same: names may have been mapped on the way."""
    for part in _parts(config):
        for name, value in vars(part).items():
            own = getattr(type(part), name, None)
            kernel = name.endswith("_implementation_internal") and value is not None
            if name == "attribute_map" or callable(own) or kernel:
                raise ModelError(f"config.json sets {visible(name)}, which is not a model setting. Delete it there.")
            if name != "_name_or_path" and name not in QUANTIZATION:
                _require_within(name, value)


def _require_text(config: Any) -> None:
    """Stop where a model's text part is no config that transformers knows, as in an architecture that has none."""
    from transformers import PreTrainedConfig

    if not isinstance(text_config_of(config) or config, PreTrainedConfig):
        raise ModelError(
            f"config.json describes a text model within a {config.model_type}, which has none. Correct it."
        )


def _parts(config: Any) -> Iterator[Any]:
    """A built config and all those in it, at any depth."""
    from transformers import PreTrainedConfig

    if isinstance(config, PreTrainedConfig):
        yield config
        config = vars(config)
    if isinstance(config, dict | list | tuple):
        for part in config.values() if isinstance(config, dict) else config:
            yield from _parts(part)


def class_names(config: Any) -> list[str]:
    """The classes that a checkpoint says it is of; none where config.json does not say so."""
    named = getattr(config, "architectures", None)
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def require_loadable(config: Any) -> None:
    """Stop where AutoModelForCausalLM, which loads what is run and tuned here, has no class for it. Raises ModelError.

    A model that reads images, too, may have another loader, and is planned all the same.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        name = visible(next(iter(class_names(config)), config.model_type))
        raise ModelError(
            f"AutoModelForCausalLM, which this project runs and tunes models with, cannot load a {name}. You can "
            "inspect and plan the model here; to run it, use the loader named on its Hub page."
        )


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
            f"config.json describes a {visible(named[0])}, which is not a causal language model: it generates no text."
        )
    if hasattr(config, "quantization_config"):
        config = deepcopy(config)
        del config.quantization_config
    try:
        with _few_modules():
            return _on_meta(config, dtype)
    except ModelError:
        raise
    except Exception as error:  # the model code of each architecture fails in its own way
        if (text := _text_within(config)) is None:
            raise ModelError(
                f"config.json does not describe a causal language model that can be built: {brief(error)}."
            ) from error
        reason = brief(error).partition(". ")[0].rstrip(".")
    warn(f"Only the text model of this {config.model_type} is planned, not what reads images or sound: {reason}.")
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


@contextmanager
def _few_modules() -> Iterator[None]:
    """Stop a model of too many parts while it is built: what multiplies them has another name in each architecture."""
    from torch.nn.modules.module import register_module_module_registration_hook

    numbers = itertools.count(1)

    def stop(*_: Any) -> None:
        if next(numbers) > MAX_MODULES:
            raise ModelError(
                f"config.json describes more than {MAX_MODULES:,} modules, which no model has. Correct it."
            )

    hook = register_module_module_registration_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def require_fit(config: Any, tensors: pd.DataFrame, countable: bool) -> None:
    """Stop before anything large is built when config.json describes more than `read_tensors` found.

    transformers would fill what is missing with random numbers, in memory, and only log it. `countable` says whether
    the parameters of the table are exact; otherwise only the layers are compared.
    """
    layers = layers_of(config)
    stored = tensors["layer"].nunique()
    if layers > stored:
        raise ModelError(f"config.json describes {layers:,} layers; the weights hold {stored:,}. Download both again.")
    skeleton = skeleton_of(config)
    buffers = sum(buffer.nbytes for buffer in skeleton.buffers())
    if buffers > MAX_BUFFER_BYTES:
        raise ModelError(
            f"config.json describes buffers of {format_bytes(buffers)} besides the weights, more than any model has. "
            "Download it again."
        )
    parameters, found = count_parameters(skeleton), int(tensors["parameters"].sum())
    if countable and parameters > found:
        raise ModelError(
            f"config.json describes {parameters:,} parameters; the weights hold {found:,}: they do not belong "
            "together. Download both again."
        )


def is_tied(settings: dict[str, Any]) -> bool:
    """Whether a config.json ties the head to the embedding; where it is silent, the default of its architecture."""
    stated, model_type = stated_tie(settings), settings.get("model_type")
    if stated is not None or not isinstance(model_type, str):
        return bool(stated)
    from transformers import CONFIG_MAPPING  # seconds, but only for a head stored without a word on it

    if model_type not in CONFIG_MAPPING:
        return False
    default = getattr(CONFIG_MAPPING[model_type], "tie_word_embeddings", None)
    return bool(_built_default(CONFIG_MAPPING[model_type]) if default is None else default)


def _built_default(config_class: Any) -> bool:
    """What T5 and its kin decide as they are built."""
    try:
        return bool(getattr(config_class(), "tie_word_embeddings", False))
    except Exception:  # a few architectures are made of others and have no defaults, so no answer either
        return False


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
