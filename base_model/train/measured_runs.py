"""Steps of real trainers, measured on cards with the libraries of requirements.txt (but torch 2.11), and their plans.

The steps are in measured_runs.csv; `python -m tests.benchmark_training FILE` measures them on the card that it finds.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from base_model.train.gpus import card
from base_model.train.methods import adapter_of, method_of, packing_of
from base_model.train.runs import LLAMA_3_2_3B, WITHIN, planned_with_time
from base_model.train.runs import MODELS as PUBLISHED
from base_model.train.settings import Choice, Precision, arguments

# Architectures, as the config.json of each model states them; the weights were random.
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "bfloat16"}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.2-3B": LLAMA_3_2_3B | {"model_type": "llama"},
    "Mistral-7B-v0.1": PUBLISHED["mistralai/Mistral-7B-v0.1"],
    "Qwen2.5-0.5B": _ENDS | {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "max_position_embeddings": 32768, "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": _ENDS | {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "Qwen3-1.7B": _ENDS | {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 40960, "tie_word_embeddings": True,
    },
    "gemma-2-2b": _ENDS | {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 8192, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    "OLMoE-1B-7B": _ENDS | {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "max_position_embeddings": 4096,
    },
    "gpt2-xl": _ENDS | {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25, "n_positions": 1024,
    },
    "Phi-3-mini": _ENDS | {
        "model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": 2047,
    },
    "SmolLM2-135M": _ENDS | {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
}  # fmt: skip


def measured_runs() -> pd.DataFrame:
    """The measured steps, one per row: what was run, on which `gpu`, and its `peak_bytes` and `step_s`."""
    return pd.read_csv(Path(__file__).with_name("measured_runs.csv"), keep_default_na=False)


def on_page() -> pd.DataFrame:
    """Those that `check_plans` plans, too: LoRA and QLoRA of Llama-3.2-3B by SFTTrainer, as it is by default."""
    runs = measured_runs()
    plain = (runs["arguments"] == "") & (runs["trainer"] == "trl") & (runs["dtype"] == "bfloat16") & ~runs["prepared"]
    both = runs["method"].isin(["LoRA r16, all linear", "QLoRA r16, all linear"]) & runs["checkpointing"] & plain
    kept = both & (runs["model"] == "Llama-3.2-3B") & (runs["batch"] == 4) & (runs["tokens"] == 1024)
    return runs[kept].drop_duplicates("method")


def short(gpu: str) -> str:
    """What people call a card: H100 for NVIDIA H100 80GB HBM3."""
    return gpu.removeprefix("NVIDIA ").split()[0]


@dataclass(frozen=True)
class Setup:
    """What a trainer is given for a run."""

    config: Any
    args: dict[str, Any]
    adapter: Any
    packing: Any
    dtype: str


def setup_of(run: Any) -> Setup:
    """The settings that are planned and written for this choice, with the further arguments of the run."""
    from transformers import AutoConfig

    config, method = AutoConfig.for_model(**MODELS[run.model]), method_of(run.method)
    choice = Choice(method, run.checkpointing, run.batch, run.tokens, 1)
    args = arguments(choice, Precision("cuda", True, False, run.dtype)) | json.loads(run.arguments or "{}")
    if run.trainer == "hf":
        args.pop("max_length")
    return Setup(config, args, adapter_of(config, method), packing_of(method), run.dtype)


def describe(run: Any) -> str:
    """A run in a line: model, method, batch x tokens, and what else was set."""
    more = json.loads(run.arguments or "{}")
    said = [f"{name}={value}" for name, value in more.items()]
    said += ["checkpointing"] * run.checkpointing + ["HF's Trainer"] * (run.trainer == "hf")
    said += [f"weights in {run.dtype}"] * (run.dtype != "bfloat16") + ["prepared"] * run.prepared
    return ", ".join([run.model, run.method, f"{run.batch} x {run.tokens:,}", *said])


def compare_measured(runs: pd.DataFrame) -> pd.DataFrame:
    """Each measured step with its plan.

    Columns: `run`, `gpu`, `measured_bytes`, `planned_bytes`, `difference`, `match` (within 5%), `measured_s`,
    `planned_s`, `low_s`, `high_s`, `within`.
    """
    rows = []
    for run in runs.itertuples():
        planned, time = _planned(run)
        low, high = WITHIN["allocated"]
        difference = planned / run.peak_bytes - 1
        memory = run.peak_bytes, planned, difference, low <= difference <= high
        seconds = run.step_s, time["step_s"], time["low_s"], time["high_s"]
        rows.append([describe(run), run.gpu, *memory, *seconds, time["low_s"] <= run.step_s <= time["high_s"]])
    columns = ["run", "gpu", "measured_bytes", "planned_bytes", "difference", "match"]
    return pd.DataFrame(rows, columns=[*columns, "measured_s", "planned_s", "low_s", "high_s", "within"])


def _planned(run: Any) -> tuple[int, pd.Series]:
    """The planned peak and time of a step."""
    made, load = setup_of(run), {"dtype": run.dtype}
    how = {"tokens": run.tokens, "load": load, "prepared": run.prepared, "trainer": run.trainer}
    return planned_with_time(run.batch, card(run.gpu), (made.config, made.args, made.adapter, made.packing), how)
