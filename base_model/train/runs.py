"""Published runs of trainers (published_runs.csv) and their plans, side by side: memory and pace by one step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from base_model.train.gpus import card
from base_model.train.time import time_on
from base_model.train.trainer import WORKSPACE_BYTES, measured

GIB = 2**30
# Architectures, as the config.json of each model states them; Qwen 1, whose code is its own, in the shapes of Qwen2.
_LLAMA: dict[str, Any] = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16"}
LLAMA_3_2_3B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
    "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_id": 128001, "dtype": "bfloat16",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": _LLAMA | {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": None,
        "max_position_embeddings": 32768,
    },
    "NousResearch/Llama-2-70b-hf": _LLAMA | {
        "vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 4096,
    },
    "Qwen/Qwen-7B-Chat": _LLAMA | {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
}  # fmt: skip
# What a plan may differ by: of what was allocated, and of what was reserved or seen from outside.
CARDS = {"A100-80GB": "A100 SXM 80GB", "A100-SXM4-80GB": "A100 SXM 80GB"}
ON_PAGE = [0, 2]  # rows that `check_plans` plans, too: a full fine-tuning and a LoRA, some seconds each
WITHIN = {"allocated": (-0.05, 0.05), "reserved": (-0.20, 0.05)}


def published_runs() -> pd.DataFrame:
    """The published runs of trainers, one per row; a run whose `note` says so cannot be planned."""
    table = pd.read_csv(Path(__file__).with_name("published_runs.csv"), dtype={"rank": "Int64"})
    return table.fillna({"plugin": "", "targets": "", "autocast": "", "note": ""})


def compare_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run that can be planned, with its plan.

    Columns: `run`, `gpu`, `measure`, `published_bytes`, `planned_bytes`, `difference`, `match`, `note`, `source`; of
    time `published_tokens_per_s`, `planned_tokens_per_s`, `slow`, `fast` (tokens/s, the ends of the planned range).
    """
    rows = []
    for run in runs[~runs["note"].str.startswith("not planned")].itertuples():
        (planned, time), published = _planned(run), round(run.peak_gib * GIB)
        low, high = WITHIN["allocated" if run.measure == "allocated" else "reserved"]
        difference = planned / published - 1
        measures = run.measure, published, planned, difference, low <= difference <= high
        speed = time["tokens_per_s"]
        ends = [speed * time["step_s"] / time[end] for end in ("high_s", "low_s")]
        rows.append([describe(run), run.gpu, *measures, run.note, run.source, run.tokens_per_s, speed, *ends])
    columns = ["run", "gpu", "measure", "published_bytes", "planned_bytes", "difference", "match", "note", "source"]
    return pd.DataFrame(rows, columns=[*columns, "published_tokens_per_s", "planned_tokens_per_s", "slow", "fast"])


def describe(run: Any) -> str:
    """A run in a line: model, method, batch x tokens."""
    name = run.model.rpartition("/")[2]
    rank = "" if pd.isna(run.rank) else f" r{run.rank}"
    plugin = f" ({run.plugin})" if run.plugin else ""
    return f"{name}, {run.method}{rank}{plugin}, {run.batch} x {run.tokens:,}"


def _planned(run: Any) -> tuple[int, pd.Series]:
    """The planned peak and time: HF's Trainer, checkpointing, torch's AdamW and flash attention, as all of them ran."""
    import peft
    from transformers import AutoConfig, BitsAndBytesConfig

    arguments = {
        "per_device_train_batch_size": run.batch, "gradient_checkpointing": True,
        "gradient_accumulation_steps": run.accumulation,
        "gradient_checkpointing_kwargs": {"use_reentrant": True}, "optim": "adamw_torch",
        "bf16": run.autocast == "bf16",
    }  # fmt: skip
    adapter, packed = None, None
    if run.method != "full":
        targets = run.targets.split(",")
        adapter = peft.LoraConfig(r=run.rank, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM")
    if run.method == "qlora":
        settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
        packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, **settings)
    config = AutoConfig.for_model(**MODELS[run.model])
    load = {"attn_implementation": "flash_attention_2"}
    how = {"tokens": run.tokens, "load": load, "prepared": run.prepared, "trainer": "hf"}
    return planned_with_time(run.batch, card(CARDS[run.gpu]), (config, arguments, adapter, packed), how)


def planned_with_time(
    batch: int, on: pd.Series, setup: tuple[Any, Any, Any, Any], how: dict[str, Any]
) -> tuple[int, pd.Series]:
    """The peak of a step (bytes) and its time on a card, a row of `time_on`; `setup` and `how` are for `measured`."""
    from base_model.train.operations import Tape

    tape = Tape()
    ledger, _, run = measured(*setup, **how, observe=tape)
    tokens = batch * run.tokens * run.accumulation
    return ledger.peak + WORKSPACE_BYTES, time_on(tape.costs, tokens, on, run.half).iloc[0]


def as_of_their_day(plan: Callable[[], Any]) -> Any:
    """What `plan` gives with two habits of the libraries that the runs used.

    The loss of transformers 4.46 to 4.49 copied the shifted logits; TRL of that time cast a prepared base's embedding
    and head back to bfloat16.
    """
    import peft
    from transformers.loss import loss_utils

    before = mock.patch.object(
        peft, "prepare_model_for_kbit_training", _cast_back(peft.prepare_model_for_kbit_training)
    )
    with mock.patch.dict(loss_utils.LOSS_MAPPING, {"ForCausalLM": _copying_loss}), before:
        return plan()


def _copying_loss(logits: Any, labels: Any, vocab_size: int, **_: Any) -> Any:
    from torch.nn.functional import cross_entropy

    logits = logits.float()  # alive to the end, as the shifted copy and the half-precision ones are
    shifted = logits[..., :-1, :].contiguous()
    return cross_entropy(shifted.view(-1, vocab_size), labels[..., 1:].contiguous().view(-1))


def _cast_back(prepare: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def prepared(model: Any, **how: Any) -> Any:
        model = prepare(model, **how)
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight.data = end.weight.data.to(torch.bfloat16)
        return model

    return prepared
