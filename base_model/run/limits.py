"""How fast decoding could be: every new token reads all weights once, so memory bandwidth sets the limit.

The roofline of one-token passes: tokens/s <= bandwidth / bytes read per token. Both factors are measured: the
bandwidth by matrix-vector products, which is what decoding is made of, the bytes on the model itself.
"""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from base_model import ModelError
from base_model.plan.inference import kv_cache_bytes
from base_model.plan.speed import bandwidth_and_noise
from base_model.run.timing import Generation

SIZES = {"Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824}  # their parameters
NOISY = 0.15  # on a quiet machine the rounds are within 5% of the best one
LIMIT_COLUMNS = (
    "method", "device", "dtype", "read_bytes", "bandwidth_gib_s", "limit_tokens_per_s", "tokens_per_s", "share",
    "spread",
)  # fmt: skip


def bytes_per_token(model: Any, context: int) -> float:
    """What decoding one token must read, in bytes, with `context` tokens before it: weights and KV cache.

    Of an embedding only one row, unless it serves as the head too (tied), which reads all of it; of a mixture of
    experts the share of those that one token visits, NaN where the config does not tell how many. Counted on the
    model's own modules; the KV cache by a pass over `context` tokens of the same architecture on the meta device.
    """
    head = model.get_output_embeddings()
    embeddings = {id(m.weight): m for m in model.modules() if type(m).__name__.endswith("Embedding") and _weighs(m)}
    if head is not None:
        embeddings.pop(id(head.weight), None)
    size = 0.0
    for name, parameter in model.named_parameters():  # a tied weight comes once
        if id(parameter) in embeddings:
            size += parameter.nbytes / len(parameter)
        else:
            size += parameter.nbytes * (_visited_share(model.config) if ".experts." in name else 1)
    return size + kv_cache_read(model, context)


def _weighs(module: Any) -> bool:
    return getattr(module, "weight", None) is not None


def _visited_share(config: Any) -> float:
    """The experts that one token visits, over all of a layer."""
    experts = [getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")]
    count, visited = next(filter(None, experts), None), getattr(config, "num_experts_per_tok", None)
    return visited / count if count and visited else math.nan


def kv_cache_read(model: Any, context: int) -> float:
    """The bytes of the cache after `context` tokens; NaN for an architecture that shows none."""
    try:
        return kv_cache_bytes(model, context)
    except ModelError:  # a missing limit is no reason to lose a measured run
        return math.nan


def speed_limit(runs: Iterable[Generation]) -> pd.DataFrame:
    """The physical limit of each run; about a second of measuring per device and dtype.

    Columns: `method`, `device`, `dtype`, `read_bytes` (per token: weights and KV cache), `bandwidth_gib_s` (measured,
    GiB/s), `limit_tokens_per_s` (bandwidth over bytes), `tokens_per_s` (measured), `share` (of the limit, 0 to 1),
    `spread` (how much longer than the best round of measuring the median one took; 0.2: 20%).
    NaN for a run whose weights lie on several devices or on a server.
    """
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    rows = []
    for run in runs:
        place = run.device, run.dtype
        if place not in measured:
            known = not math.isnan(run.bytes_per_token) and "+" not in run.device
            measured[place] = bandwidth_and_noise(*place) if known else (math.nan, math.nan)
        bandwidth, noise = measured[place]
        limit = bandwidth / run.bytes_per_token
        share = run.tokens_per_s / limit
        rows.append([
            run.method, *place, run.bytes_per_token, bandwidth / 2**30, limit, run.tokens_per_s, share, noise,
        ])  # fmt: skip
    return pd.DataFrame(rows, columns=list(LIMIT_COLUMNS))


def limits_in_words(limits: pd.DataFrame) -> str:
    """One sentence per device and dtype of `speed_limit`: the share reached, and the limit of Llama-3.2-1B and 3B."""
    known = limits.dropna(subset=["bandwidth_gib_s"])
    if known.empty:
        return "No limit is known for these runs."
    return " ".join(_sentence(place, group) for place, group in known.groupby(["device", "dtype"], sort=False))


def _sentence(place: tuple[str, str], group: pd.DataFrame) -> str:
    import torch

    device, dtype = place
    if group["share"].max() > 1:
        return too_low(group.iloc[0])
    bandwidth, width = group["bandwidth_gib_s"].iloc[0], getattr(torch, dtype).itemsize
    speeds = [f"{bandwidth * 2**30 / (count * width):.2g}" for count in SIZES.values()]
    small, large = (f"{speed} tokens/s for {name}" for speed, name in zip(speeds, SIZES, strict=True))
    low, high = (f"{share:.0%}" for share in (group["share"].min(), group["share"].max()))
    reach = low if low == high else f"{low} to {high}"
    return (
        f"On {device} the runs reach {reach} of the limit that {bandwidth:.3g} GiB/s of memory bandwidth sets. "
        f"In {dtype} that limit is {small} and {large}.{noisy(group['spread'].iloc[0])}"
    )


def noisy(noise: float) -> str:
    """A sentence on how far to trust a measured bandwidth, by its `spread`; nothing where it is steady."""
    if noise < NOISY:
        return ""
    return f" The measurement was noisy: its median round took {noise:.0%} longer than the best."


def too_low(row: pd.Series) -> str:
    """What to say where a run was faster than its limit."""
    return (
        f"The memory bandwidth of {row['device']} was measured too low, {row['bandwidth_gib_s']:.3g} GiB/s: a run was "
        f"faster than that allows. Measure again when nothing else runs."
    )
