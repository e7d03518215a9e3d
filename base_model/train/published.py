"""Figures that others published, and steps that we measured, to compare with the plans made here.

`python -m base_model.train.accuracy` plans every row again and writes docs/accuracy.md, in a few minutes.

PEFT's own comparison (https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA) gives counts, files,
and the most memory reserved on an NVIDIA L40S in 5,000 steps of up to 768 tokens. QLoRA's peak is what was allocated
on a Tesla T4, from the archive of 2026-09-21 of fitcheck-llm 0.3.1 (https://github.com/Anassbzdd/fitcheck). Runs of
trainers are in published_runs.csv, each with its source.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd

from base_model import format_bytes
from base_model.architecture.config import count_parameters, skeleton_of
from base_model.plan.adapters import plan_adapters
from base_model.plan.inference import kv_cache_bytes
from base_model.plan.quantization import bitsandbytes
from base_model.train import measured_runs
from base_model.train.loop import plan_training
from base_model.train.runs import LLAMA_3_2_3B, ON_PAGE, compare_runs, published_runs
from base_model.train.time import WIDTH, plan_time

WITHIN = 0.10  # of a measured peak, which may be reserved memory
TRAINER_WITHIN = 0.05  # of an allocated one


def check_plans() -> pd.DataFrame:
    """Plans against published figures, and against steps measured on a card; needs no model on the disk.

    Columns: `check`, `expected`, `found` (both as text), `difference` (0.01 is 1%), `match`: counts and files must be
    equal, peaks of a plain loop within 10%, those of a trainer within 5%, steps within 25%.
    docs/accuracy.md has all runs, misses too.
    """
    bitsandbytes()  # before peft, which imports it less quietly
    from transformers import LlamaConfig

    config = LlamaConfig(**LLAMA_3_2_3B)
    counts = [_row(check, published, found, "{:,}".format, 0.0) for check, published, found in _counts(config)]
    peaks = [_row(check, measured, found, format_bytes, WITHIN) for check, measured, found in _peaks(config)]
    runs = compare_runs(published_runs().iloc[ON_PAGE])
    trained = [
        _row(f"{run.run}, Trainer: peak", run.published_bytes, run.planned_bytes, format_bytes, TRAINER_WITHIN)
        for run in runs.itertuples()
    ]
    for step in measured_runs.compare_measured(measured_runs.on_page()).itertuples():
        name = f"{step.run}, {measured_runs.short(step.gpu)}: peak"
        trained.append(_row(name, step.measured_bytes, step.planned_bytes, format_bytes, TRAINER_WITHIN))
    steps = [
        _row(f"{name}: step", published, found, "{:.3g} s".format, WIDTH) for name, published, found in _steps(config)
    ]
    return pd.DataFrame(counts + peaks + trained + steps)


def _row(check: str, expected: Any, found: Any, words: Callable[[Any], str], within: float) -> dict[str, Any]:
    difference = found / expected - 1
    row = {"check": check, "expected": words(expected), "found": words(found), "difference": difference}
    return row | {"match": abs(difference) <= within}


def _counts(config: Any) -> list[tuple[str, int, int]]:
    """What is published, and what is found, to the parameter and to the byte."""
    from peft import IA3Config, LoraConfig

    adapters = plan_adapters(config, {
        "LoRA r32": LoraConfig(r=32, task_type="CAUSAL_LM"), "IA-3": IA3Config(task_type="CAUSAL_LM"),
    }).set_index("adapter")  # fmt: skip
    skeleton = skeleton_of(config)
    return [
        ("parameters", 3_212_749_824, count_parameters(skeleton)),
        ("KV cache per token (bytes)", 114_688, kv_cache_bytes(skeleton, 1)),
        ("LoRA r32: trainable", 9_175_040, int(adapters["trainable"]["LoRA r32"])),
        ("LoRA r32: file (bytes)", 36_715_216, int(adapters["file_bytes"]["LoRA r32"])),
        ("IA-3: trainable", 286_720, int(adapters["trainable"]["IA-3"])),
        ("IA-3: file (bytes)", 1_157_064, int(adapters["file_bytes"]["IA-3"])),
    ]


def _peaks(config: Any) -> list[tuple[str, int, int]]:
    """Measured peaks of training, in bytes, and the planned ones."""
    from peft import IA3Config, LoraConfig

    task: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    attention = LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], **task)
    runs = [
        ("full fine-tuning, 4 x 768", 38_868_615_168, None, 768, 4, False),
        ("LoRA r32, 4 x 768", 22_292_725_760, LoraConfig(r=32, **task), 768, 4, False),
        ("DoRA r32, 4 x 768", 24_532_484_096, LoraConfig(r=32, use_dora=True, **task), 768, 4, False),
        ("IA-3, 4 x 768", 23_234_347_008, IA3Config(**task), 768, 4, False),
        ("QLoRA r16, 1 x 1024, checkpointing", 5_761_961_984, attention, 1024, 1, True),
    ]
    return [
        (f"{name}: peak", measured, int(plan_training(config, adapter, n, b, q, q, None)["peak_bytes"][0]))
        for name, measured, adapter, n, b, q in runs
    ]


def _steps(config: Any) -> list[tuple[str, float, float]]:
    """Seconds of a step of PEFT's comparison, on an L40S, and the planned ones.

    Published are tokens per second: of 5,000 steps of 4 texts, with 4,198,051 tokens in all, 210 in each text.
    """
    from peft import IA3Config, LoraConfig

    task: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    runs = [
        ("LoRA r32", 7_174, LoraConfig(r=32, **task)), ("DoRA r32", 5_941, LoraConfig(r=32, use_dora=True, **task)),
        ("IA-3", 7_308, IA3Config(**task)), ("full fine-tuning", 2_316, None),
    ]  # fmt: skip
    how: dict[str, Any] = {"tokens": 210, "gpu": "L40S", "trainer": "plain"}
    how["args"] = {"per_device_train_batch_size": 4, "gradient_checkpointing": False}
    found = [plan_time(config, peft_config=adapter, **how)["step_s"][0] for _, _, adapter in runs]
    return [
        (f"{name}, 4 x 210, L40S", 840 / speed, seconds) for (name, speed, _), seconds in zip(runs, found, strict=True)
    ]
