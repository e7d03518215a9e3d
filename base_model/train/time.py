"""How long a training step takes on a card: the step that plans the memory, each operation by its cost.

An operation takes as long as the larger of its FLOPs over what the card computes and its bytes over what it moves, plus
the start of a kernel. The CPU that launches the operations runs ahead of the card; where it cannot, it sets the pace.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError, warn
from base_model.train import loop
from base_model.train.arguments import Run, planned_run
from base_model.train.gpus import CPU, card
from base_model.train.trainer import measured

if TYPE_CHECKING:
    from base_model.train.operations import Cost

COLUMNS = ("gpu", "step_s", "low_s", "high_s", "tokens_per_s", "compute_s", "memory_s", "launch_s")
TRAINERS = ("trl", "hf", "plain")

# What a card sustains of its sheet in a training step, FLOPs and bandwidth, one pair per kind of card. Best single
# products, by https://github.com/mag-/gpu_benchmark and https://github.com/stas00/ml-engineering (compute/accelerator),
# reach 0.87 on an A100, 0.70 on an L40S, 0.40 on a T4, 0.85 on an A6000, 1.08 on a 4090, 0.82 on an H100. Steps of
# published runs sustain 0.75 to 0.9 of that: the pairs of A100 (fms-acceleration, Qwen), L40S (PEFT) and T4
# (fitcheck-llm) were set by such runs, those of the other cards are 0.85 of their best products. A CPU is measured
# first; the step sustains three quarters of that, in four runs of a model of 135 million parameters on two cores.
# H100 and H200: by the steps of measured_runs.csv. They are one chip, and the wider memory of the H200 hardly shows.
SUSTAINED: Mapping[str, tuple[float, float]] = {
    "T4": (0.30, 0.50), "V100": (0.65, 0.70), "P100": (0.65, 0.70), "A100": (0.78, 0.70), "A10": (0.80, 0.80),
    "A6000": (0.72, 0.80), "A5000": (0.72, 0.80), "A40": (0.72, 0.80), "RTX 30": (0.92, 0.85), "L40S": (0.62, 0.88),
    "L40": (0.75, 0.85), "L4": (0.62, 0.80), "RTX 6000 Ada": (0.65, 0.85), "RTX 40": (0.90, 0.85),
    "RTX 50": (1.00, 0.85), "H100": (0.70, 0.72), "H200": (0.70, 0.54), "B200": (0.65, 0.70), "MI300X": (0.45, 0.65),
    CPU: (0.75, 0.75),
}  # fmt: skip
OTHERS = (0.65, 0.75)
# Of the pace of products: what FlashAttention-2 reaches of it (https://arxiv.org/abs/2307.08691, figure 4).
ATTENTION = 0.6
KERNEL_S = 2e-6  # a kernel's own start and end on the card
# Python and autograd, per launch, on the CPU beside the card: 13 to 21 us beside an A100 (Qwen-7B, short batches), at
# most 31 beside an L40S (PEFT's comparison), 35 on Colab's T4, 26 to 43 beside an H200 and 26 to 49 beside an H100. The
# middle of 13 and 49, as one multiplies.
LAUNCH_S = 25e-6
HOSTS = 2  # a host may take half of that, or twice
WIDTH = 0.25  # how far steps lie from the planned ones where the card sets the pace


def plan_time(
    config: Any,
    args: Any = None,
    peft_config: Any = None,
    quantization_config: Any = None,
    tokens: int | None = None,
    gpu: str = "NVIDIA L40S",
    trainer: str = "trl",
    model_init_kwargs: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """One row, in `COLUMNS`."""
    costs, per_step, half = step_costs(
        config, args, peft_config, quantization_config, tokens, trainer, model_init_kwargs
    )
    return time_on(costs, per_step, card(gpu), half)


def step_costs(
    config: Any, args: Any, peft_config: Any, quantization_config: Any, tokens: int | None, trainer: str, load: Any
) -> tuple[Counter["Cost"], int, bool]:
    """The costs of one optimizer step, its tokens, and whether its 16-bit products are in float16."""
    from base_model.train.operations import Tape

    if trainer not in TRAINERS:
        raise ModelError(f'`trainer` must be "trl", "hf" (for `args` in a dict) or "plain", not {trainer!r}.')
    tape = Tape()
    if trainer == "plain":
        with tempfile.TemporaryDirectory() as folder:
            run, micro = planned_run(args, tokens, load, folder), 1
        _measure_plain(config, run, peft_config, quantization_config, tape)
    else:
        how: dict[str, Any] = {"load": load, "trainer": trainer, "observe": tape, "bar": True}
        run = measured(config, args, peft_config, quantization_config, tokens, **how)[-1]
        micro = run.accumulation
        _warn_of_copies(run)
    return tape.costs, run.batch * run.tokens * micro, run.half


def _warn_of_copies(run: Run) -> None:
    """What goes to the machine's memory and back takes its time on the way, which differs between machines."""
    if getattr(run.args, "activation_offloading", False) or "paged" in run.args.optim:
        warn(
            "The time does not include copies between the card and the machine's memory, which activation_offloading "
            "and paged optimizers make: on an H100 and an H200, steps took 1.4 to 2.6 times as long as planned."
        )


def _measure_plain(config: Any, run: Run, peft_config: Any, quantization_config: Any, tape: Any) -> None:
    """The plain loop with the batch and the checkpointing of the arguments."""
    dtype = run.load.get("dtype")
    named = None if dtype in (None, "auto") else str(dtype).removeprefix("torch.")
    checkpointing, packed = run.args.gradient_checkpointing, quantization_config is not None
    loop.measure(config, peft_config, run.tokens, run.batch, checkpointing, packed, named, tape)


def time_on(costs: Counter["Cost"], tokens: int, on: pd.Series, half: bool = False) -> pd.DataFrame:
    """The row of a step of these costs on a card (a row of `gpus`)."""
    flops, bandwidth = _sustained(on)
    compute = memory = 0.0
    for cost, count in costs.items():
        pace = flops * (ATTENTION if cost.attention else 1)
        computing = cost.flops / (_peak(on, cost.dtype, half) * pace)
        moving = cost.moved / (float(on["bandwidth"]) * bandwidth)
        if computing > moving:
            compute += count * computing
        else:
            memory += count * moving
    busy = compute + memory + sum(costs.values()) * KERNEL_S
    launching = 0.0 if on["gpu"] == CPU else LAUNCH_S * sum(cost.launches * count for cost, count in costs.items())
    step = max(busy, launching)
    low = max(busy * (1 - WIDTH), launching / HOSTS)
    high = max(busy * (1 + WIDTH), launching * HOSTS)
    row = [on["gpu"], step, low, high, tokens / step, compute, memory, step - compute - memory]
    return pd.DataFrame([row], columns=list(COLUMNS))


def _sustained(on: pd.Series) -> tuple[float, float]:
    """The shares of a card's sheet: those of its kind, the longest name that fits."""
    names = [name for name in SUSTAINED if name in on["gpu"]]
    return SUSTAINED[max(names, key=len)] if names else OTHERS


def _peak(on: pd.Series, dtype: str, half: bool) -> float:
    """FLOPs per second on the sheet for factors of this dtype; a card without bfloat16 computes it in float32."""
    if dtype == "int8":
        return 2 * float(on["fp16_flops"])
    kind = "fp16" if dtype == "float16" or (dtype == "bfloat16" and half) else "bf16" if dtype == "bfloat16" else "fp32"
    rate = on[f"{kind}_flops"]
    return float(on["fp32_flops"] if pd.isna(rate) else rate)
