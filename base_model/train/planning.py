"""What a model will need, by its name: its config.json, local or on the Hub, handed to the rooms that measure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, visible, warn
from base_model.architecture.config import read_architecture, skeleton_of
from base_model.architecture.dtypes import read_planned
from base_model.hub.locate import folder_of, hub_id_of, is_complete, local_folder, not_here
from base_model.plan import adapters as adapter_room
from base_model.plan import inference
from base_model.train import ladder as ladder_room
from base_model.train import loop, script, time, trial
from base_model.train import recommend as recommendation
from base_model.train import settings as choices
from base_model.train import trainer as trainers
from base_model.train.cards import COMMON, cards_table
from base_model.train.places import place_of


def _config(model: str | Path) -> Any:
    return read_planned(folder_of(model))


def skeleton(model: str | Path) -> Any:
    """The model on torch's meta device, from its config.json alone: every shape, no weights, no memory.

    Dense, whatever the quantisation of the checkpoint; tied weights stay tied. Raises ModelError for a model that needs
    code of its own or is not a causal language model.
    """
    return skeleton_of(_config(model))


def plan_inference(model: str | Path, contexts: Iterable[int] | None = None, device: str | None = None) -> pd.DataFrame:
    """What running the model takes, and whether this machine has it: one row per precision and context.

    Columns: `precision` (float32, bfloat16, int8, nf4), `context` (tokens), `weights_bytes`, `kv_cache_bytes`,
    `total_bytes`, `device` (of `this_machine`, the last unless given), `usable_bytes`, `verdict` ("fits", "tight" above
    80%, "does not fit"), `largest_context` (tokens). `contexts` are up to what the model was made for unless given.
    """
    return inference.plan_inference(read_architecture(folder_of(model)), contexts, device)


def plan_adapters(model: str | Path, adapters: dict[str, Any] | None = None) -> pd.DataFrame:
    """What adapters add to the model, counted by PEFT itself; `adapters` is `{name: PeftConfig}`.

    Columns: `adapter`, `trainable`, `total` (with the adapter), `share`, `file_bytes` (as saved), `targets`,
    `layers` (it acts in), `note` (targets that match nothing, layers left out, methods that need real weights).
    Raises ModelError for a config whose targets match nothing, or that PEFT refuses.
    """
    return adapter_room.plan_adapters(_config(model), adapters)


def default_adapters(model: str | Path) -> dict[str, Any]:
    """The adapters that `plan_adapters` plans by default, as `{name: PeftConfig}`."""
    return adapter_room.default_adapters(skeleton(model))


def insertion_points(model: str | Path, adapter: Any) -> pd.DataFrame:
    """Where a `PeftConfig` acts, one row per module.

    Columns: `module`, `layer` (Int64), `component`, `shape` (of the module's weight), `trainable` (parameters).
    """
    return adapter_room.insertion_points(_config(model), adapter)


def plan_training(
    model: str | Path,
    adapter: Any,
    tokens: int,
    batch: int = 1,
    checkpointing: bool = False,
    quantized: bool = False,
    dtype: str | None = None,
) -> pd.DataFrame:
    """The memory of a training step with AdamW, measured on the meta device; `adapter` None means full fine-tuning.

    One row: `weights_bytes`, `adapter_bytes`, `gradients_bytes`, `optimizer_bytes`, `activations_bytes`, `logits_bytes`
    (scores, and the copies that the loss makes), `temporary_bytes` (of the optimizer), each at its largest;
    `embedding_bytes` (of the weights); `peak_bytes`, the most at one time. `quantized` is QLoRA's NF4 without double
    quantisation. A GPU's allocator reserves some 5 to 25% more than is allocated.
    """
    config = _config(model)
    return loop.plan_training(config, adapter, tokens, batch, checkpointing, quantized, dtype)


def compare_training(model: str | Path, tokens: int = 1024, batch: int = 1) -> pd.DataFrame:
    """Full fine-tuning, LoRA, IA-3 and QLoRA by TRL's SFTTrainer, with and without checkpointing: a `method` per row.

    TRL's defaults otherwise: bfloat16 autocast, the loss in chunks, fused AdamW; weights as they are stored. The
    columns of `plan_training`, with each part as it is at the peak, so that they add up to `peak_bytes`; `note`.
    """
    return ladder_room.compare_training(_config(model), tokens, batch)


def training_ladder(model: str | Path, tokens: int = 1024, batch: int = 4) -> pd.DataFrame:
    """What each setting saves or costs, starting from TRL's defaults: one `change` per row, compared with the first.

    Columns: `change`, `batch`, `tokens`, the columns of `compare_training`, `difference_bytes` (negative: it saves).
    """
    return ladder_room.ladder(_config(model), tokens, batch)


def plan_trainer(
    model: str | Path,
    args: Any = None,
    peft_config: Any = None,
    quantization_config: Any = None,
    tokens: int | None = None,
    devices: int = 1,
    model_init_kwargs: dict[str, Any] | None = None,
    prepared: bool = False,
    trainer: str = "trl",
) -> pd.DataFrame:
    """The memory of the run that you would hand to `SFTTrainer(model, args, peft_config=...)`, from its own step.

    `args` is an `SFTConfig` (or None: TRL's defaults), `TrainingArguments` for HF's `Trainer`, or a dict of the
    arguments of either (`trainer` "trl" or "hf"), which works without the card that transformers would ask for. The
    plan is for a CUDA card, or for the CPU with `use_cpu`. `tokens` overrides `max_length`; every text is that long.
    `model_init_kwargs` is what you would give `from_pretrained` (`dtype`, `attn_implementation`); the weights are as
    they are stored unless it says more. TRL itself, given a name and no `dtype`, loads float32. `quantization_config`
    is a `BitsAndBytesConfig` or a `GPTQConfig`. `prepared` says that your script calls PEFT's
    `prepare_model_for_kbit_training` first, which TRL does not: norms, embedding and head become float32.

    With `devices` above one the figures are those of one of these cards under FSDP2, as `fsdp=True` shards by default;
    gathered weights are `temporary_bytes` then.

    One row: the columns of `plan_training`; `host_bytes`, in the machine's memory, not the card's (paged optimizers);
    `moment` of the peak (forward, loss, backward, optimizer). Raises ModelError for arguments that contradict
    one another or that the libraries refuse.
    """
    return trainers.plan_trainer(
        _config(model), args, peft_config, quantization_config, tokens, devices, model_init_kwargs, prepared, trainer
    )


def plan_time(
    model: str | Path,
    args: Any = None,
    peft_config: Any = None,
    quantization_config: Any = None,
    tokens: int | None = None,
    gpu: str = "NVIDIA L40S",
    trainer: str = "trl",
    model_init_kwargs: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """How long one step of that run takes on a card of `gpus`, before you rent it ("cpu" measures this machine's).

    The first arguments are those of `plan_trainer`; `trainer="plain"` is the loop of `plan_training`, with the batch
    and the checkpointing of `args`. One row: `gpu`; `step_s` (of the optimizer, all micro-batches); `low_s`, `high_s`:
    nine of ten measured steps lie between; `tokens_per_s`; and what the time is made of: `compute_s`, `memory_s`,
    `launch_s`. Raises ModelError, also for an unknown card.
    """
    return time.plan_time(
        _config(model), args, peft_config, quantization_config, tokens, gpu, trainer, model_init_kwargs
    )


def compare_gpus(
    model: str | Path, gpus: Iterable[str | None] = COMMON, tokens: int = 1024, batch: int = 4
) -> pd.DataFrame:
    """One step of TRL's defaults, LoRA on all linear layers, on several cards of `gpus`: planned once, timed on each.

    None among the cards is this machine, left out with a ModelWarning if its accelerator is not one of them.
    Columns: `gpu`, `memory_bytes` (as sold), `peak_bytes`, `verdict` (fits, tight, does not fit), those of `plan_time`,
    `hours_per_million` (tokens). Raises ModelError for an unknown card.
    """
    return cards_table(_config(model), gpus, tokens, batch)


def recommend(
    model: str | Path,
    gpu: str | None = None,
    memory: str | int | None = None,
    data: Any = None,
    tokens: int = 1024,
    devices: int = 1,
) -> pd.DataFrame:
    """Which methods can tune a model on a card, with your data, and how long each takes; best first.

    `gpu` is a card of `gpus`, this machine without one; `memory` ("24GiB") a card that is not listed. `data` is what
    `text_lengths` takes, cut at `tokens`; without it every text has `tokens`. `devices` share the model by FSDP2.

    One row per method, with and without checkpointing: `method`, `checkpointing`, `batch` (the largest that fits, at
    most 128, and with which an epoch of `data` has 16 steps),
    `tokens` (of the longest text), `peak_bytes`, `share` (of what the place has, with what an allocator reserves),
    `verdict` (fits, tight, does not fit, not planned), `hours_low`, `hours_high` (of one epoch of `data`), `accuracy`
    (published for Llama-3.2-3B on one task, else <NA>), `why`, `longest` (tokens at batch 1), `tokens_per_s`,
    `devices`, `least_bytes` (the peak at batch 1, along a line through models of a few layers), `trainable`
    (parameters).
    Of the methods that fit, those within 0.05 of the best published accuracy come first, the fastest of them on top.
    An interrupted search keeps what it has found. Raises ModelError.
    """
    from base_model.text.lengths import batch_tokens, text_lengths

    place, config = place_of(gpu, memory), _config(model)
    if data is None:
        return recommendation.recommend(config, place, tokens, devices)
    lengths = text_lengths(model, data, max_length=tokens)

    def epoch(batch: int) -> float:
        """Tokens of one epoch at this batch, padding included."""
        return batch_tokens(lengths, batch).mean * len(lengths)

    return recommendation.recommend(config, place, max(2, batch_tokens(lengths).longest), devices, epoch, len(lengths))


def settings(model: str | Path, row: Any) -> str:
    """A row of `recommend` as Python to copy: `adapter` (a `PeftConfig`), `quantization` (`BitsAndBytesConfig`) and
    `args` (`SFTConfig`), as far as the method has them.

    `row` is a Series, a dict or a table of one row. The Python checks whether the machine it runs on computes in
    bfloat16, float16 or float32, and sets `dtype` accordingly, for `from_pretrained`. Raises ModelError.
    """
    return choices.settings(_config(model), choices.choice_of(row))


def write_script(model: str | Path, row: Any, folder: str | Path, data: Any = None) -> Path:
    """Write `train.py`, a plain run of TRL's SFTTrainer by a row of `recommend`, into a folder; returns its path.

    Beside it: requirements.txt with pins; fsdp.yaml for `accelerate launch` where the row has several devices; and
    data.parquet where `data` is a `datasets.Dataset`. Else `data` is a file as in `text_lengths`; without one, the
    project's own. Run it by `python train.py [--steps N] [--merge]`: it holds out part of the data, resumes from its
    last checkpoint, and saves the adapter. Nothing is overwritten. Raises ModelError.
    """
    choice, source, place = choices.choice_of(row), _source(model), local_folder(model)
    if source[0] == str(place.absolute()) and not is_complete(place):
        warn(f"{visible(source[0])} has no weights yet, and the script needs them.")
    return script.write_script(_config(model), choice, *source, folder, data)


def try_training(model: str | Path, row: Any, data: Any = None, steps: int = 3) -> pd.DataFrame:
    """Run the script of a row of `recommend` for a few steps on this machine, one device, and compare it with its plan.

    Columns: `check` (the peak of a step in bytes, and its seconds, each with its batch), `planned`, `measured`,
    `difference` (0.01: measured is 1% more). `planned` is for this device; nan where its speed is not known. The peak
    is that of torch's allocator (of MPS, what the driver holds). Without `data`, texts of the planned length.
    Needs the weights on this disk. Raises ModelError, also if the plan is more than this machine has.
    """
    choice = choices.choice_of(row)
    if not is_complete(local_folder(model)):
        raise not_here(model)
    return trial.try_training(_config(model), choice, *_source(model), local_folder(model), data, steps)


def _source(model: str | Path) -> tuple[str, str | None]:
    """Where a script finds the model: its folder, or its Hub id and revision."""
    folder, hub_id = local_folder(model), hub_id_of(model)
    if hub_id and not is_complete(folder):
        return hub_id.name, hub_id.revision
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{visible(str(folder))} holds an adapter, which transformers would apply. Move adapter_config.json away."
        )
    return str(folder.absolute()), None
