"""What an adapter adds, counted by PEFT itself: built on the skeleton, on the meta device, and measured there."""

import warnings
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pandas as pd

from base_model import ModelError, brief
from base_model.architecture.config import skeleton_of
from base_model.plan.quantization import bitsandbytes
from base_model.read.tensors import places

COLUMNS = ("adapter", "trainable", "total", "share", "file_bytes", "targets", "layers", "note")
POINTS = ("module", "layer", "component", "shape", "trainable")
RANK = 16  # of the LoRA adapters that are planned unless others are given


def default_adapters(skeleton: Any) -> dict[str, Any]:
    """The adapters that most people choose from, as `{name: PeftConfig}`.

    Where PEFT has default targets for the `model_type`, those; else LoRA takes the attention's linear modules, or, in
    a model without attention, those that replace it, and IA-3 and LN tuning all of them. LoRA on all of attention has a
    row of its own where PEFT takes a part of it.
    """
    bitsandbytes()
    from peft import IA3Config, LNTuningConfig, LoraConfig
    from peft.utils import constants

    linear, placed, kind = linear_modules(skeleton), _placed(skeleton), skeleton.config.model_type
    norms = dict.fromkeys(name.rpartition(".")[2] for name in placed.loc[placed["component"] == "norm", "module"])
    attention, mlp = ([name for name, part in linear.items() if part == one] for one in ("attention", "mlp"))
    usual = attention or [name for name, part in linear.items() if part != "mlp"] or list(linear)
    refused = refused_for_lora(skeleton, list(linear))
    own = [name for name in usual if name not in refused]
    lora: Any = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind, own)
    ia3 = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind, list(linear))
    inner = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, mlp)
    layer_norms = constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING.get(kind, list(norms))
    everything: dict[str, Any] = {"target_modules": "all-linear", "exclude_modules": refused or None}
    # Experts that one tensor holds are among "all-linear" for PEFT, but not for its DoRA.
    fused = any(one.ndim == 3 and "experts" in name for name, one in skeleton.named_parameters())
    adapters = {
        f"LoRA r{RANK}": LoraConfig(r=RANK, target_modules=lora),
        **({f"LoRA r{RANK}, attention": LoraConfig(r=RANK, target_modules=own)} if set(own) > set(lora) else {}),
        f"LoRA r{RANK}, all linear": LoraConfig(r=RANK, **everything),
        f"DoRA r{RANK}": LoraConfig(r=RANK, use_dora=True, target_modules=lora),
        **({} if fused else {f"DoRA r{RANK}, all linear": LoraConfig(r=RANK, use_dora=True, **everything)}),
        "IA-3": IA3Config(target_modules=ia3, feedforward_modules=inner),
        "IA-3, all projections": IA3Config(target_modules=list(linear), feedforward_modules=mlp),
        "LN tuning": LNTuningConfig(target_modules=layer_norms),
    }
    for adapter in adapters.values():
        adapter.task_type = "CAUSAL_LM"
    return adapters


def refused_for_lora(skeleton: Any, names: list[str]) -> list[str]:
    """The modules that PEFT refuses for LoRA: Mamba's kernel reads their weight and never calls them."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    refused = []
    for name in names:
        try:
            _check_lora_target_modules_mamba(LoraConfig(), skeleton, name)
        except ValueError:
            refused.append(name)
    return refused


def linear_modules(skeleton: Any) -> dict[str, str]:
    """The last names of the linear modules in the layers, each with its component."""
    import torch
    from transformers.pytorch_utils import Conv1D

    linear = {name for name, one in skeleton.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}
    table = _placed(skeleton).dropna(subset="layer")
    return {name.rpartition(".")[2]: part for name, _, part in table.itertuples(index=False) if name in linear}


def _placed(skeleton: Any) -> pd.DataFrame:
    """The modules that own a weight: `module`, `layer`, `component`."""
    weights = [name for name, _ in skeleton.named_parameters(remove_duplicate=False) if name.endswith(".weight")]
    layers, components = places(weights, [1] * len(weights))
    modules = [name.removesuffix(".weight") for name in weights]
    return pd.DataFrame({"module": modules, "layer": pd.array(layers, dtype="Int64"), "component": components})


def plan_adapters(config: Any, adapters: dict[str, Any] | None) -> pd.DataFrame:
    """One row per adapter, in `COLUMNS`; a method that PEFT cannot build without weights has <NA> and says so."""
    if not (adapters is None or isinstance(adapters, dict)):
        raise ModelError(
            f'Give adapters by name, such as {{"mine": LoraConfig(r=8)}}, not as {type(adapters).__name__}.'
        )
    plain = skeleton_of(config)
    # A default may not suit every architecture, which is no reason to lose the others; what a user gives must be right.
    excused: type[ModelError] = ModelError if adapters is None else CannotBuildError
    given = default_adapters(plain) if adapters is None else adapters
    rows = [{"adapter": name} | _plan(config, plain, adapter, excused) for name, adapter in given.items()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("trainable", "total", "file_bytes", "layers"), "Int64"))


def _plan(config: Any, plain: Any, adapter: Any, excused: type[ModelError]) -> dict[str, Any]:
    """The row of one adapter; an `excused` error is its only cell, the note."""
    try:
        model = attach(skeleton_of(config), adapter)
    except excused as error:
        return {"note": str(error)}
    points, size = _points(model, plain), _file_bytes(model)
    trainable, total = model.get_nb_trainable_parameters()
    return {
        "trainable": trainable,
        "total": total,
        "share": trainable / total,
        "file_bytes": size,
        "targets": ", ".join(dict.fromkeys(module.rpartition(".")[2] for module in points["module"])),
        "layers": points["layer"].nunique(),
        "note": "; ".join(_notes(points, plain, model.peft_config["default"], size)),
    }


class CannotBuildError(ModelError):
    """PEFT needs real weights to build this adapter."""


def attach(skeleton: Any, adapter: Any) -> Any:
    """The skeleton with an adapter, as `peft.get_peft_model` makes it, on the meta device.

    Raises ModelError for targets that match nothing and settings that PEFT refuses, CannotBuildError for a method that
    looks at the weights.
    """
    bitsandbytes()
    import peft
    import torch

    if not isinstance(adapter, peft.PeftConfig):
        name = type(adapter).__name__
        raise ModelError(f"An adapter must be a PeftConfig, such as peft.LoraConfig(r=16), not {name}.")
    names = ", ".join(linear_modules(skeleton))  # before PEFT changes it
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's remarks on training, of which there is none here
            return peft.get_peft_model(skeleton, deepcopy(adapter))
    except (NotImplementedError, RuntimeError) as error:  # how torch refuses to read a value that is not there
        raise CannotBuildError(f"PEFT cannot build it without weights: {brief(error)}") from error
    except Exception as error:  # each method checks its settings in its own way
        raise ModelError(
            f"PEFT refuses this {type(adapter).__name__}: {brief(error).rstrip('.')}."
            + (f" The linear modules are {names}." if names else "")
        ) from error


def insertion_points(config: Any, adapter: Any) -> pd.DataFrame:
    """One row per adapted module, in `POINTS`; the sum of `trainable` is PEFT's own count."""
    return _points(attach(skeleton_of(config), adapter), skeleton_of(config))


def _points(model: Any, plain: Any) -> pd.DataFrame:
    """The trainable parameters of a PEFT model, by the module of the plain model that they belong to."""
    modules = dict(plain.named_modules())
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[_owner(name.removeprefix("base_model.model."), modules)] += parameter.numel()
    layers, components = places([f"{name}.weight" for name in counts], list(counts.values()))
    shapes = [tuple(getattr(getattr(modules.get(name), "weight", None), "shape", ())) for name in counts]
    table = pd.DataFrame(zip(counts, layers, components, shapes, counts.values(), strict=True), columns=list(POINTS))
    return table.astype({"layer": "Int64"})


def _owner(name: str, modules: dict[str, Any]) -> str:
    """`layers.0.q_proj.lora_A.default.weight` belongs to `layers.0.q_proj`; what is in no module, to its first name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:end]) in modules:
            return ".".join(parts[:end])
    return parts[0]


def _file_bytes(model: Any) -> int | None:
    """The size of the saved file; None where PEFT looks at values to save it."""
    from base_model.plan.saved import file_bytes

    try:
        return file_bytes(model)
    except (NotImplementedError, RuntimeError):  # how torch refuses to read a value that is not there
        return None


def _notes(points: pd.DataFrame, plain: Any, adapter: Any, size: int | None) -> Iterator[str]:
    """What a reader would not expect: targets without a module, layers left out, a file that is not what is trained."""
    modules, fields = [name for name, _ in plain.named_modules()], ("target_modules", "modules_to_save")
    listed = [names for names in (getattr(adapter, field, None) for field in fields) if isinstance(names, list | set)]
    idle = sorted(name for names in listed for name in names if not any(_matches(module, name) for module in modules))
    layers = _placed(plain)["layer"].nunique()
    if idle:
        yield f"no module is called {', '.join(idle)}"
    if 0 < points["layer"].nunique() < layers:
        yield f"acts in {points['layer'].nunique()} of {layers} layers"
    if beside := _beside_the_text(points, plain):
        yield f"acts in {', '.join(beside)}, too"
    if adapter.is_prompt_learning:
        yield "the file holds only the prompt, not the encoder trained with it"
    elif str(adapter.peft_type.value) == "ADALORA":
        yield f"shown at its starting rank, {adapter.init_r}: training prunes it to {adapter.target_r} on average"
    if size is None:
        yield "PEFT needs the values to save it: its file size is not known without weights"


def _beside_the_text(points: pd.DataFrame, plain: Any) -> list[str]:
    """Of a model that reads images, too: the parts that this adapter changes beside the text model and its head."""
    if plain.config.get_text_config() is plain.config:
        return []
    text = plain.get_decoder()
    inside = next(name for name, module in plain.named_modules() if module is text)
    outer = inside.rpartition(".")[0]
    names = [name.removeprefix(f"{outer}.") for name in points["module"] if not f"{name}.".startswith(f"{inside}.")]
    return list(dict.fromkeys(name.partition(".")[0] for name in names if name.partition(".")[0] != "lm_head"))


def _matches(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")
