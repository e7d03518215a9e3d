"""The step of a real trainer, SFTTrainer or Trainer, run whole on fake tensors: what it holds in memory, and when.

The trainer's own `train()` runs: autocast, checkpointing, the loss, accumulation, clipping and the optimizer are its
own code. Nothing is computed and nothing takes memory. `device` answers what libraries ask of the device; a `Ledger`
adds up every tensor as it comes and goes.
"""

import gc
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError, require_whole
from base_model.architecture.config import has_position_table, positions_of, skeleton_of
from base_model.plan.adapters import attach
from base_model.plan.quantization import stored_tensors
from base_model.train.arguments import MOST_DEVICES, Run, planned_run
from base_model.train.loop import COLUMNS, PARTS, embedding_bytes
from base_model.train.step import progress, train

if TYPE_CHECKING:
    from base_model.plan.ledger import Ledger

TRAINER_COLUMNS = (*COLUMNS, "host_bytes", "moment")
# Who remarks on a step that is not run for real; the last prints the traceback of what is told in words.
LOGGERS = ("transformers", "trl", "accelerate", "peft", "bitsandbytes", "torch._subclasses.fake_tensor")
# cuBLAS keeps a workspace per thread, forward and backward: 4,096 KiB twice, 16 KiB eight times.
# https://docs.pytorch.org/docs/stable/notes/cuda.html#cublas-workspaces
WORKSPACE_BYTES = 2 * (2 * 4096 + 8 * 16) * 1024


def plan_trainer(
    config: Any,
    args: Any = None,
    peft_config: Any = None,
    quantization_config: Any = None,
    tokens: int | None = None,
    devices: int = 1,
    model_init_kwargs: dict[str, Any] | None = None,
    prepared: bool = False,
    trainer: str = "trl",
) -> pd.DataFrame:
    """One row, in `TRAINER_COLUMNS`: each part at its largest, the peak, and the moment of the peak."""
    settings = (tokens, devices, model_init_kwargs, prepared, trainer)
    ledger, embedding, run = measured(config, args, peft_config, quantization_config, *settings, bar=True)
    return pd.DataFrame([row_of(ledger, embedding, run)], columns=list(TRAINER_COLUMNS))


def measured(
    config: Any,
    args: Any,
    peft_config: Any,
    quantization_config: Any,
    tokens: int | None,
    devices: int = 1,
    load: dict[str, Any] | None = None,
    prepared: bool = False,
    trainer: str = "trl",
    observe: Callable[..., None] | None = None,
    bar: bool = False,
) -> tuple["Ledger", int, Run]:
    """The ledger of a step of a run as a user gives it, the bytes of the embedding, and the run. Raises ModelError.

    `observe` sees each operation; a progress `bar` is for who has none yet.
    """
    from base_model.train.sharding import group_of

    require_whole("devices", devices, most=MOST_DEVICES)
    with tempfile.TemporaryDirectory() as folder, group_of(devices) if devices > 1 else nullcontext():
        run = planned_run(args, tokens, load, folder, devices, prepared, trainer)
        return *measure(config, run, peft_config, quantization_config, observe, bar), run


def row_of(ledger: "Ledger", embedding: int, run: Run) -> list[Any]:
    """The cells of `TRAINER_COLUMNS`."""
    workspace = WORKSPACE_BYTES if run.cuda else 0
    parts = {part: ledger.most[part] for part in PARTS}
    parts["temporary"] += workspace
    return [*parts.values(), embedding, ledger.peak + workspace, ledger.most["host"], ledger.peak_moment]


@contextmanager
def _leaving_no_trace() -> Iterator[None]:
    """The process is afterwards as it was.

    accelerate collects garbage before the first step: of this plan, not of all that was there before. And a forward
    that calls itself enters its autocast twice, which then stays on, and would round all that comes later.
    """
    import torch

    gc.freeze()
    enabled = torch.is_autocast_enabled("cpu")
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", enabled)
        gc.unfreeze()


@_leaving_no_trace()
def measure(
    config: Any,
    run: Run,
    peft_config: Any,
    quantization_config: Any,
    observe: Callable[..., None] | None = None,
    bar: bool = False,
) -> tuple["Ledger", int]:
    """The ledger of one step of the run, and the bytes of the embedding."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from base_model.plan.ledger import ALLOCATION, Ledger
    from base_model.plan.scans import kernel_scans
    from base_model.train import gptq
    from base_model.train.device import planned_device
    from base_model.train.loading import warn_of_experts

    _require_positions(config, run)
    quantization_config = quantization_config or run.load.get("quantization_config")
    if quantization_config is not None and peft_config is None:
        raise ModelError("Quantised weights cannot be trained themselves: give an adapter, such as LoraConfig().")
    with _quiet():
        model = _loaded(config, run, quantization_config)
        base = set(map(id, stored_tensors(model)))
        if peft_config is not None:
            packed = getattr(model, "quantization_method", None) == "gptq"
            model = attach(model, gptq.adapt(peft_config) if packed else peft_config)
        ledger = Ledger(model.config.get_text_config().vocab_size, ALLOCATION if run.cuda else 1, observe)
        scans = kernel_scans(model) if run.cuda else nullcontext()
        with FakeTensorMode(allow_non_fake_inputs=True), planned_device(ledger, run.cuda), scans:
            _give_fake_tensors(model, ledger, base)
            with progress(model, run) if bar else nullcontext():
                train(model, run, ledger)
            embedding = embedding_bytes(model)
    if quantization_config is not None:
        warn_of_experts(model)
    return ledger, embedding


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks on training for real, and sending nothing to anybody's server."""
    import os
    from unittest import mock

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings(), mock.patch.dict(os.environ, {"HF_HUB_DISABLE_TELEMETRY": "1"}):
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _require_positions(config: Any, run: Run) -> None:
    positions = positions_of(config)
    if positions and positions < run.tokens:
        table = has_position_table(skeleton_of(config), positions)
        ends = "This model has positions for" if table else "The model was made for"
        raise ModelError(f"{ends} {positions:,} tokens, but a text has {run.tokens:,}. Use at most {positions:,}.")


def _loaded(config: Any, run: Run, quantization_config: Any) -> Any:
    """The model on the meta device, as `from_pretrained` would give it."""
    from base_model.train.loading import quantized, with_attention

    model = with_attention(skeleton_of(config, _dtype(config, run)), run.load.get("attn_implementation"))
    if quantization_config is not None:
        model = quantized(model, quantization_config)
    if run.prepared:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the trainer turns it on
    return model


def _dtype(config: Any, run: Run) -> str | None:
    """Of the weights; None as the config says. float16 and bfloat16 change places as they do in autocast."""
    given = run.load.get("dtype", run.load.get("torch_dtype"))
    stored = config.dtype if given in (None, "auto") else given
    named = str(stored).removeprefix("torch.") if stored is not None else "float32"
    swapped = {"float16": "bfloat16", "bfloat16": "float16"}
    return swapped.get(named, named) if run.half else None if given in (None, "auto") else named


def _give_fake_tensors(model: Any, ledger: "Ledger", base: set[int]) -> None:
    """Every tensor of the model, from the meta device to the planned one; shared ones stay shared."""
    from base_model.train.loading import fake_twin

    twins: dict[int, Any] = {}
    with ledger:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        with ledger.making("weights" if id(tensor) in base else "adapter"):
                            tensors[name] = fake_twin(tensor, twins)
