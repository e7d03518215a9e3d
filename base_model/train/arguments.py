"""The arguments of a trainer, as a user gives them, made ready to be planned on a machine without the card."""

import copy
import dataclasses
import difflib
import warnings
from dataclasses import dataclass
from typing import Any

from base_model import ModelError, brief, require_whole

# What a plan does not do: it neither logs, saves, evaluates nor reports, and it takes one step.
UNDONE: dict[str, Any] = {
    "report_to": [], "save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no", "push_to_hub": False,
    "load_best_model_at_end": False, "disable_tqdm": True, "max_steps": 1, "auto_find_batch_size": False,
    "do_eval": False, "eval_on_start": False, "resume_from_checkpoint": None, "tf32": None,
    "torch_empty_cache_steps": None,
}  # fmt: skip
MOST_DEVICES = 1024  # which share one model; planning its part takes longer with each
MOST_ACCUMULATED = 10_000  # micro-batches in a step: the inputs of all wait on the device
MICRO_STEPS = 3  # the first finds no gradients, the last shards them out; those between are all like the second
DEFAULT_TOKENS = 1024  # of a Trainer whose arguments say nothing of lengths; TRL's own default
UNPLANNED = {
    "torch_compile": "a compiled model", "deepspeed": "DeepSpeed", "use_liger_kernel": "Liger's kernels",
    "fsdp": "FSDP on one device (take `devices=`)",
}  # fmt: skip


# transformers names others, too, which need libraries or devices that are not planned.
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_bnb_8bit", "adamw_8bit",
    "paged_adamw_32bit", "paged_adamw_8bit", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit",
    "ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A training run to plan: the trainer's own arguments, and what they say of the device and the batch."""

    args: Any  # SFTConfig or TrainingArguments, for the CPU, where the fake tensors are
    trl: bool  # SFTTrainer's step, or that of HF's Trainer
    cuda: bool
    half: bool  # float16 autocast was asked for: planned as bfloat16, which takes the same bytes
    tokens: int
    devices: int  # more than one: FSDP2 shards over them
    accumulation: int  # micro-batches in a step, of which `args` has as many as are run: at most `MICRO_STEPS`
    load: dict[str, Any]  # what from_pretrained would be given
    prepared: bool  # whether the script calls PEFT's `prepare_model_for_kbit_training`

    @property
    def batch(self) -> int:
        """Texts in one micro-batch of one device."""
        return self.args.per_device_train_batch_size


def planned_run(
    args: Any,
    tokens: int | None,
    load: dict[str, Any] | None,
    folder: str,
    devices: int = 1,
    prepared: bool = False,
    trainer: str = "trl",
) -> Run:
    """A user's arguments as a `Run`; `folder` is where the trainer may make its output folder.

    Arguments in a dict are those of `trainer`: "trl" or "hf".

    Raises ModelError for arguments that contradict each other, that the libraries refuse or that are not planned.
    """
    kind, given = _given(args, trainer)
    _require_planned(given, devices)
    cuda, half = not given.get("use_cpu", False), bool(given.get("fp16"))
    ready = given | UNDONE | {"use_cpu": True, "output_dir": folder}
    if devices > 1:
        ready |= _sharded(given)
    if half:
        ready |= {"fp16": False, "bf16": True}
    if "assistant_only_loss" in ready:  # it looks for roles in the texts; all tokens are planned as trained
        ready["assistant_only_loss"] = False
    made = _make(kind, ready)
    require_whole("per_device_train_batch_size", made.per_device_train_batch_size)
    accumulation = made.gradient_accumulation_steps
    require_whole("gradient_accumulation_steps", accumulation, most=MOST_ACCUMULATED)
    made.gradient_accumulation_steps = min(accumulation, MICRO_STEPS)
    if made.optim not in OPTIMIZERS:
        raise ModelError(f"optim={str(made.optim.value)!r} cannot be planned. These can be: {', '.join(OPTIMIZERS)}.")
    trl = hasattr(made, "packing")
    length = tokens if tokens is not None else getattr(made, "max_length", None) or DEFAULT_TOKENS
    require_whole("tokens", length, least=2)  # the first is not predicted
    load = dict(getattr(made, "model_init_kwargs", None) or {}) | dict(load or {})
    _require_packable(made, trl, load)
    _require_fsdp2(made)
    return Run(made, trl, cuda, half, int(length), devices, accumulation, load, prepared)


def _require_planned(given: dict[str, Any], devices: int) -> None:
    """Stop at arguments that are not planned, or that contradict each other. Raises ModelError."""
    wanted = {name: what for name, what in UNPLANNED.items() if given.get(name)}
    if devices > 1:
        wanted.pop("fsdp", None)
    if wanted:
        raise ModelError(f"{' and '.join(wanted.values())} cannot be planned: leave out {', '.join(wanted)}.")
    if given.get("bf16") and given.get("fp16"):
        raise ModelError("bf16 and fp16 contradict each other: autocast has one dtype. Set one of them.")
    if given.get("activation_offloading") and given.get("use_cpu"):
        raise ModelError("activation_offloading moves activations off a card, and use_cpu has none. Leave one out.")


def _sharded(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments that have the trainer shard by FSDP, as the user set it or as it is by default."""
    if given.get("use_cpu"):
        raise ModelError("FSDP shards over cards: leave out use_cpu, or take devices=1.")
    return {"fsdp": given.get("fsdp") or True, "fsdp_config": copy.deepcopy(given.get("fsdp_config"))}


def _require_fsdp2(args: Any) -> None:
    plugin = getattr(args, "fsdp_plugin_args", None) or {}
    if plugin.get("fsdp_version", 2) != 2 or plugin.get("cpu_offload"):
        raise ModelError("Only FSDP2 without CPU offload is planned: leave version and cpu_offload out of fsdp_config.")


def _given(args: Any, trainer: str) -> tuple[type, dict[str, Any]]:
    """The class of the arguments, and those that were set, by name."""
    from transformers import TrainingArguments
    from trl import SFTConfig

    kinds: dict[str, Any] = {"trl": SFTConfig, "hf": TrainingArguments}
    if trainer not in kinds:
        raise ModelError(f'`trainer` must be "trl" (SFTTrainer) or "hf" (Trainer), not {trainer!r}.')
    if args is None or isinstance(args, dict):
        _require_names(kinds[trainer], args or {})
        return kinds[trainer], dict(args or {})
    if isinstance(args, TrainingArguments):
        fields = [field.name for field in dataclasses.fields(args) if field.init]
        return type(args), {name: getattr(args, name) for name in fields if hasattr(args, name)}
    raise ModelError(
        f"`args` must be an SFTConfig, TrainingArguments or a dict of their arguments, not {type(args).__name__}."
    )


def _require_names(kind: Any, arguments: dict[str, Any]) -> None:
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in arguments:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ModelError(f"{kind.__name__} has no argument {name!r}.{meant}")


def _make(kind: type, arguments: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations that the user will hear of from the trainer itself
        try:
            return kind(**arguments)
        except Exception as error:  # each argument is checked in its own way
            raise ModelError(f"{kind.__name__} refuses these arguments: {brief(error)}") from error


def _require_packable(args: Any, trl: bool, load: dict[str, Any]) -> None:
    """Packed texts stay apart only with flash attention; else they attend to one another, as TRL warns."""
    packed = trl and (args.padding_free or (args.packing and args.packing_strategy != "wrapped"))
    if packed and "flash" not in str(load.get("attn_implementation", "")):
        raise ModelError(
            "Packing without padding needs flash attention, or texts attend to their neighbours: add "
            'model_init_kwargs={"attn_implementation": "flash_attention_2"}, or packing_strategy="wrapped".'
        )
