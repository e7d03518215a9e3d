"""TRL's own run, method by method and setting by setting: what each saves or costs in memory."""

import warnings
from typing import Any

import pandas as pd

from base_model import ModelError, require_whole
from base_model.architecture.config import skeleton_of
from base_model.plan.adapters import RANK, default_adapters
from base_model.train.loop import COLUMNS, PARTS, note_of
from base_model.train.methods import METHODS, adapter_of, method_of, packing_of
from base_model.train.progress import planning_bar
from base_model.train.trainer import WORKSPACE_BYTES, measured

METHOD_COLUMNS = ("method", "batch", "tokens", *COLUMNS, "note")
LADDER_COLUMNS = ("change", "batch", "tokens", *COLUMNS, "difference_bytes", "note")
START = f"TRL's defaults, LoRA r{RANK} on all linear layers"
QLORA = "4 bits (QLoRA)"
PREPARED = "4 bits and PEFT's preparation (the trap)"


def compare_training(config: Any, tokens: int, batch: int) -> pd.DataFrame:
    """One row per method, in `METHOD_COLUMNS`, by TRL's defaults but for checkpointing.

    The parts are as they are at the peak, so that they add up to it. A method that cannot be measured for this
    architecture has <NA>, and its `note` says why; of one that can, how.
    """
    require_whole("tokens", tokens, least=2)
    require_whole("batch", batch)
    adapters = default_adapters(skeleton_of(config))
    lora, packing = adapters[f"LoRA r{RANK}"], packing_of(METHODS[-1])
    methods = [
        ("full fine-tuning", None, None),
        (f"LoRA r{RANK}", lora, None),
        ("IA-3", adapters["IA-3"], None),
        (f"QLoRA r{RANK}", lora, packing),
    ]
    tried = [(*method, checkpointing) for checkpointing in (False, True) for method in methods]
    rows = []
    for name, adapter, packed, checkpointing in planning_bar(tried):
        arguments = {"per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing}
        named = name + (", checkpointing" if checkpointing else "")
        rows.append([named, batch, tokens, *at_peak(config, arguments, adapter, packed, tokens)])
    return pd.DataFrame(rows, columns=list(METHOD_COLUMNS)).astype(dict.fromkeys(COLUMNS, "Int64"))


def at_peak(config: Any, args: Any, adapter: Any, packing: Any, tokens: int, prepared: bool = False) -> list[Any]:
    """The cells of `COLUMNS` at the peak, and the note."""
    try:
        ledger, embedding, _ = measured(config, args, adapter, packing, tokens, prepared=prepared)
    except ModelError as error:
        return [pd.NA] * len(COLUMNS) + [str(error)]
    parts = {part: ledger.at_peak[part] for part in PARTS}
    parts["temporary"] += WORKSPACE_BYTES
    return [*parts.values(), embedding, ledger.peak + WORKSPACE_BYTES, note_of(config, tokens)]


def ladder(config: Any, tokens: int, batch: int) -> pd.DataFrame:
    """One change per row, from TRL's defaults on, in `LADDER_COLUMNS`; `difference_bytes` is against the first row."""
    require_whole("tokens", tokens, least=4)  # it is halved
    require_whole("batch", batch)
    rows = [
        [change, size, length, *at_peak(config, args, adapter, packed, length, prepared=change == PREPARED)]
        for change, size, length, args, adapter, packed in planning_bar(_changes(config, tokens, batch))
    ]
    table = pd.DataFrame(rows, columns=[name for name in LADDER_COLUMNS if name != "difference_bytes"])
    table = table.astype(dict.fromkeys(COLUMNS, "Int64"))
    table["difference_bytes"] = table["peak_bytes"] - table["peak_bytes"].iloc[0]
    return table[list(LADDER_COLUMNS)]


def _changes(config: Any, tokens: int, batch: int) -> list[tuple[Any, ...]]:
    """The change, batch, tokens, arguments, adapter and packing of each row."""
    linear, packed = method_of(f"LoRA r{RANK}, all linear"), METHODS[-1]
    lora, ia3 = adapter_of(config, linear), adapter_of(config, method_of("IA-3"))
    own: dict[str, Any] = {"per_device_train_batch_size": batch}
    twice = {"per_device_train_batch_size": 2 * batch}
    return [
        (START, batch, tokens, own, lora, None),
        ("no checkpointing", batch, tokens, own | {"gradient_checkpointing": False}, lora, None),
        ("the loss over all logits at once (HF's Trainer)", batch, tokens, _hf(batch), lora, None),
        ("8-bit Adam", batch, tokens, own | {"optim": "adamw_8bit"}, lora, None),
        (QLORA, batch, tokens, own, lora, packing_of(packed)),
        (PREPARED, batch, tokens, own, lora, packing_of(packed)),
        ("half the length", batch, tokens // 2, own, lora, None),
        ("twice the batch", 2 * batch, tokens, twice, lora, None),
        ("IA-3 instead", batch, tokens, own, ia3, None),
        ("full fine-tuning", batch, tokens, own, None, None),
        ("full fine-tuning, 8-bit Adam", batch, tokens, own | {"optim": "adamw_8bit"}, None, None),
    ]


def _hf(batch: int) -> Any:
    """HF's own Trainer with the settings that TRL's has by default; for a card, though it is built without one."""
    from transformers import TrainingArguments

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a new name that older versions do not know
        args = TrainingArguments(
            output_dir="unused", use_cpu=True, bf16=True, gradient_checkpointing=True, optim="adamw_torch_fused",
            per_device_train_batch_size=batch, report_to=[],
        )  # fmt: skip
    args.use_cpu = False
    return args
