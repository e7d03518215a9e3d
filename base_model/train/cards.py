"""One training step on several cards: its memory and its operations are planned once, its time is given for each."""

from typing import Any

import pandas as pd

from base_model import require_whole
from base_model.plan.adapters import RANK
from base_model.train.gpus import card
from base_model.train.methods import adapter_of, method_of
from base_model.train.recommend import place_of, verdict_of
from base_model.train.time import time_on
from base_model.train.trainer import WORKSPACE_BYTES, measured

COMMON = ("T4", "RTX 4090", "A100 SXM 80GB")  # free on Colab and Kaggle; on a desk; rented
MILLION = 1_000_000


def cards_table(config: Any, names: list[str], tokens: int, batch: int) -> pd.DataFrame:
    """One row per card: whether a step of TRL's defaults, LoRA on all linear layers, fits, and how long it takes."""
    from base_model.train.operations import Tape

    require_whole("tokens", tokens, least=2)
    require_whole("batch", batch)
    known = {on["gpu"]: on for on in map(card, names)}  # first: a name that is not known is told at once
    tape, lora = Tape(), adapter_of(config, method_of(f"LoRA r{RANK}, all linear"))
    ledger, *_ = measured(config, {"per_device_train_batch_size": batch}, lora, None, tokens, observe=tape)
    peak = ledger.peak + WORKSPACE_BYTES
    rows = []
    for on in known.values():
        half = bool(pd.isna(on["bf16_flops"]))
        time = time_on(tape.costs, batch * tokens, on, half).iloc[0]
        verdict = verdict_of(peak, place_of(on["gpu"], None).usable)
        facts = {"memory_bytes": on["memory_bytes"], "peak_bytes": peak, "verdict": verdict}
        rows.append({"gpu": on["gpu"], **facts, **time.drop("gpu")})
    table = pd.DataFrame(rows)
    return table.assign(hours_per_million=MILLION / table["tokens_per_s"].astype(float) / 3600)
