"""One training step on several cards: its memory and its operations are planned once, its time is given for each."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from base_model import ModelError, require_whole
from base_model.plan.adapters import RANK
from base_model.train.methods import method_of
from base_model.train.places import Place, place_of, verdict_of
from base_model.train.search import Search, Step
from base_model.train.time import time_on

COMMON = ("T4", "RTX 4090", "A100 SXM 80GB")  # free on Colab and Kaggle; on a desk; rented
MILLION = 1_000_000


def cards_table(config: Any, names: Any, tokens: int, batch: int) -> pd.DataFrame:
    """One row per card: whether a step of TRL's defaults, LoRA on all linear layers, fits, and how long it takes.

    A name of None is this machine; it has no row if its accelerator is not known.
    """
    require_whole("tokens", tokens, least=2)
    require_whole("batch", batch)
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Iterable) or not (names := list(names)):
        raise ModelError("`gpus` must be the names of cards, such as ['RTX 4090', 'T4']. `gpus()` lists all.")
    places = [place_of(name, None) for name in names]  # first: a name that is not known is told at once
    known: dict[str, tuple[Place, pd.Series]] = {}
    for place in places:
        if place.on is not None:
            known.setdefault(place.on["gpu"], (place, place.on))
    if not known:
        raise ModelError("The speed of this machine's accelerator is not known. Name a card that `gpus()` lists.")
    steps: dict[bool, Step] = {}  # of all cards, and of the CPU, which computes in float32
    rows = []
    for name, (place, on) in known.items():
        if place.cpu not in steps:
            search = Search(config, place, method_of(f"LoRA r{RANK}, all linear"), True, tokens, 1)
            steps[place.cpu] = search.plan(batch)
        step = steps[place.cpu]
        time = time_on(step.costs, batch * tokens, on, place.half).iloc[0]
        verdict = verdict_of(step.peak, place.usable)
        facts = {"memory_bytes": on["memory_bytes"], "peak_bytes": step.peak, "verdict": verdict}
        rows.append({"gpu": name, **facts, **time.drop("gpu")})
    table = pd.DataFrame(rows)
    return table.assign(hours_per_million=MILLION / table["tokens_per_s"].astype(float) / 3600)
