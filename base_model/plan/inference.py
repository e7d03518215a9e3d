"""Will it fit? The KV cache and the weights in several precisions, measured on the skeleton, beside what is free."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from inspect import signature
from typing import Any
from unittest.mock import patch

import pandas as pd

from base_model import ModelError, brief, require_whole, warn
from base_model.architecture.config import skeleton_of
from base_model.plan.machine import this_machine
from base_model.plan.quantization import METHODS, quantize, stored_bytes

PRECISIONS = ("float32", "bfloat16", "int8", "nf4")  # float16 takes what bfloat16 takes
TIGHT = 0.8  # above this share of what is free, little is left for the prompt's own work and for other programs
PROBE = 40  # tokens of the forward that shows whether a cache grows as its `update` says
CONTEXTS = (2_048, 8_192, 32_768, 131_072)
LONGEST = 2**24  # tokens; no context is searched beyond it
COLUMNS = (
    "precision", "context", "weights_bytes", "kv_cache_bytes", "total_bytes", "device", "usable_bytes", "verdict",
    "largest_context",
)  # fmt: skip


def kv_cache_bytes(skeleton: Any, tokens: int, batch: int = 1, dtype: Any = None) -> int:
    """The bytes of the cache after `batch` sequences of `tokens` tokens each, as transformers' own classes keep it.

    A forward of one token on the meta device shows each layer's keys, values and states; the cache's own `update` then
    grows them, so that shared heads, windows, compressed (latent) and constant states come out as the architecture
    has them. Where a longer forward contradicts that, all `tokens` are run. `dtype` ("bfloat16", or a torch dtype) is
    the skeleton's unless given. Raises ModelError for an architecture that shows no cache.
    """
    if not hasattr(skeleton, "config"):
        raise ModelError(f"The cache is measured on a skeleton: make one with `skeleton({skeleton!r})`.")
    require_whole("tokens", tokens)
    require_whole("batch", batch)
    return _cache_meter(skeleton.config, batch)(tokens, dtype or skeleton.dtype)


def _cache_meter(config: Any, batch: int = 1) -> Callable[[int, Any], int]:
    """A function from tokens and dtype to bytes; the forwards that it needs are run once, here.

    In bfloat16, which all of torch's kernels know on the meta device; what is cached in it is counted in another dtype.
    """
    twin = skeleton_of(config, "bfloat16")
    first, probe = (_cache_after(twin, tokens, batch) for tokens in (1, PROBE))
    grows = _bytes_of(_grown(first, PROBE), "bfloat16") == _bytes_of(probe, "bfloat16")

    in_full = cache(lambda tokens: _cache_after(twin, tokens, batch))  # several precisions ask for the same

    def measure(tokens: int, dtype: Any) -> int:
        """The bytes of the cache after `tokens` tokens."""
        return _bytes_of(_grown(first, tokens) if grows else in_full(tokens), dtype)

    return measure


def _cache_after(skeleton: Any, tokens: int, batch: int) -> Any:
    """The cache that a forward of `tokens` tokens leaves, and the states that some architectures keep in modules."""
    import torch
    from transformers import DynamicCache

    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    before = _kept_in_modules(skeleton)
    output = _read_by(skeleton, ids, {})
    kept = output.get("past_key_values") or output.get("cache_params") or output.get("state")
    if kept is None and "past_key_values" in signature(skeleton.forward).parameters:  # filled, but not shown
        kept = DynamicCache(config=skeleton.config)
        _read_by(skeleton, ids, {"past_key_values": kept})
    states = [state for state in _kept_in_modules(skeleton) if not any(state is one for one in before)]
    if not states and not _tensors_of([kept]):
        raise ModelError(f"{type(skeleton).__name__} shows no cache: its size is not known here.")
    return [kept, *states]


def _kept_in_modules(skeleton: Any) -> list[Any]:
    """The tensors that modules hold beside their parameters and buffers, such as a recurrent state."""
    import torch

    return [one for module in skeleton.modules() for one in vars(module).values() if isinstance(one, torch.Tensor)]


def _read_by(skeleton: Any, ids: Any, more: dict[str, Any]) -> Any:
    """What a forward of these tokens gives."""
    import torch
    from torch.fx.experimental import _config

    from base_model.plan.answers import First
    from base_model.plan.ledger import Unpadded

    # Which expert reads which token has no say in the cache: each may read all.
    chosen = patch.object(_config, "meta_nonzero_assume_all_nonzero", True)
    try:
        with torch.no_grad(), Unpadded(), First(), chosen:
            return skeleton.eval()(input_ids=ids, use_cache=True, **more)
    except Exception as error:  # the model code of each architecture fails in its own way
        raise ModelError(f"{type(skeleton).__name__} cannot be measured without weights: {brief(error)}.") from error


def _grown(short: Any, tokens: int) -> Any:
    """A copy of a cache of one token, after `tokens`; what does not grow, such as a recurrent state, stays."""
    grown = deepcopy(short)
    for layer in getattr(grown[0], "layers", ()):
        if tokens > 1 and getattr(layer, "keys", None) is not None:
            layer.update(
                *(part.new_empty(*part.shape[:-2], tokens - 1, part.shape[-1]) for part in (layer.keys, layer.values))
            )
        if tokens > 1 and getattr(layer, "indexer_keys", None) is not None:  # sparse attention: its indexer's keys
            batch, _, size = layer.indexer_keys.shape
            layer.update_indexer(layer.indexer_keys.new_empty(batch, tokens - 1, size))
    return grown


def _fields(kept: Any) -> Any:
    """What is in one cache: its attributes, and those of its layers; a plain list or tensor as it is."""
    if hasattr(kept, "layers") or type(kept).__name__.endswith("Cache"):
        return [vars(kept), *(vars(layer) for layer in getattr(kept, "layers", ()))]
    return kept


def _tensors_of(kept: list[Any]) -> list[Any]:
    """The floating-point tensors of a cache, and those that stand beside it; one that is keys and values, once."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = {id(leaf): leaf for leaf in tree_leaves([_fields(one) for one in kept])}
    return [leaf for leaf in leaves.values() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _bytes_of(kept: Any, dtype: Any) -> int:
    """The floating-point tensors of every layer; those in bfloat16 are counted as `dtype`."""
    import torch

    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise ModelError(
            f'The dtype of a cache must be "float32", "bfloat16", "float16" or another torch float, not {dtype!r}.'
        )
    return sum(
        one.numel() * (wanted if one.dtype == torch.bfloat16 else one.dtype).itemsize for one in _tensors_of(kept)
    )


def weights_bytes(config: Any, precision: str) -> int:
    """What the weights take in memory in one of `PRECISIONS`; int8 and NF4 on a bfloat16 model, linear layers only."""
    if precision in METHODS:
        return stored_bytes(quantize(skeleton_of(config, "bfloat16"), precision))
    return stored_bytes(skeleton_of(config, precision))


def plan_inference(config: Any, contexts: Iterable[int] | int | None, device: str | None = None) -> pd.DataFrame:
    """What running takes, in `COLUMNS`, for every precision and context, against the device's free memory.

    Where the architecture shows no cache, its columns are <NA> and a ModelWarning says so.
    """
    machine = this_machine().set_index("device")["usable_bytes"]
    device = str(machine.index[-1]) if device is None else device
    if device not in machine:
        raise ModelError(f"This machine has no device {device!r}. It has: {', '.join(machine.index)}.")
    usable, measure = int(machine[device]), _meter_or_none(config)
    if contexts is None:
        contexts = _usual_contexts(config)
    contexts = [contexts] if isinstance(contexts, int | str) else list(contexts)
    for tokens in contexts:
        require_whole("A context", tokens)
    rows = []
    for precision in PRECISIONS:
        weights, dtype = weights_bytes(config, precision), "float32" if precision == "float32" else "bfloat16"
        largest = _largest_context(config, measure, dtype, usable - weights)
        for tokens in contexts:
            kept = None if measure is None else measure(tokens, dtype)
            total = None if kept is None else weights + kept
            verdict = _verdict(total, usable, tokens <= _made_for(config))
            rows.append((precision, tokens, weights, kept, total, device, usable, verdict, largest))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("kv_cache_bytes", "total_bytes", "largest_context"), "Int64"))


def _made_for(config: Any) -> int:
    """The longest context of the architecture, in tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else LONGEST


def _usual_contexts(config: Any) -> list[int]:
    """`CONTEXTS`, up to what the model was made for; that alone for a model with less."""
    return [tokens for tokens in CONTEXTS if tokens <= _made_for(config)] or [_made_for(config)]


def _meter_or_none(config: Any) -> Callable[[int, Any], int] | None:
    try:
        return _cache_meter(config)
    except ModelError as error:
        warn(f"The size of the cache is not known: {error}")
        return None


def _verdict(total: int | None, usable: int, made_for: bool) -> str:
    if total is None:
        return "unknown"
    if not made_for:
        return "beyond the model"
    return "does not fit" if total > usable else "tight" if total > TIGHT * usable else "fits"


def _largest_context(config: Any, measure: Callable[[int, Any], int] | None, dtype: str, room: int) -> int | None:
    """The most tokens whose cache fits into `room` bytes, up to what the model was made for; found by bisection."""
    if measure is None:
        return None
    low, high = 0, _made_for(config)
    if measure(high, dtype) <= room:  # most often; and one forward instead of twenty for a cache that is run in full
        return high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(middle, dtype) <= room else (low, middle - 1)
    return low
