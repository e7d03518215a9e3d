"""What a person means by "parameters": logical counts, where the stored elements say something else.

Tied embeddings count once. Packed weights count what they unpack to; the numbers that a quantisation keeps beside
them count nothing, and neither do masks and frequencies that old checkpoints store. The layouts are those that
transformers reads: https://huggingface.co/docs/transformers/quantization/overview
"""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from base_model import visible, warn
from base_model.read.packing import MLX_GROUP, SMALL, Packing, bits_of, packing

Tied = Callable[[dict[str, Any]], bool]  # whether a config.json ties the head to the embedding

# Stored by old checkpoints, though any model code computes them anew.
BUFFERS = ("rotary_emb.inv_freq", "position_ids", ".masked_bias", ".causal_mask", "final_logits_bias")
MASKS = (".attn.bias", ".attention.bias")  # where the shape is (1, 1, positions, positions)

# What each quantisation method keeps beside the weights, by the ends of the names.
BOOKKEEPING = {
    "bitsandbytes": (
        ".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", ".quant_state.bitsandbytes__nf4",
        ".quant_state.bitsandbytes__fp4", ".SCB", ".weight_format",
    ),
    "gptq": (".qzeros", ".scales", ".g_idx"),
    "awq": (".qzeros", ".scales"),
    "fp8": ("_scale_inv", ".weight_scale", ".input_scale", ".activation_scale"),
    "fbgemm_fp8": (".weight_scale", ".input_scale_ub"),
    "mxfp4": ("_scales",),
    "compressed-tensors": (
        ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape", ".weight_global_scale",
        ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".k_scale", ".v_scale",
    ),
}  # fmt: skip
# Which tensors hold several weights in one element, where the method packs at all.
PACKED = {"gptq": ".qweight", "awq": ".qweight", "mxfp4": "_blocks", "compressed-tensors": ".weight_packed"}
PARTS = {  # names in the middle of a tensor's, of what the model itself does not have
    ".base_layer.": "an adapter that was not merged", ".weight_mask": "weights that were pruned by masks",
    "parametrizations.": "weights that are stored in parts (torch's parametrizations)",
}  # fmt: skip
METHODS = {"compression_config": "compressed-tensors", "quantization": "mlx"}
SHARED, COPY = re.compile(r"(?:^|\.)shared\.weight$"), re.compile(r"(.*\b|)(?:en|de)coder\.embed_tokens\.weight")
INTEGERS = {
    "U8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
}  # bits; no plain weights


def logical_parameters(table: pd.DataFrame, config: dict[str, Any], is_tied: Tied) -> pd.Series:
    """The parameters of each row of a tensor table.

    Packed weights are counted by what their neighbours tell, else by config.json; warns where neither does, and counts
    stored elements.
    """
    quantization = quantization_of(config)
    method = "" if quantization is None else str(quantization.get("quant_method"))
    counts = table["elements"].mask(_ends(table["tensor"], BUFFERS + BOOKKEEPING.get(method, ())), 0)
    counts = counts.mask(_is_mask(table), 0)
    told = _told(table, quantization or {})
    counts = counts.mask(table["tensor"].isin(told.beside), 0)
    counts = table["tensor"].map(told.counts).astype("Int64").fillna(counts).astype("int64")
    if told.counts:
        _hold_against_config(table, counts, told, method, quantization or {})
    counts = _untold(table, counts, ~table["tensor"].isin(told.counts), method, quantization)
    _warn_of_parts(table["tensor"])
    return counts.mask(_repeats(table, counts, config, is_tied), 0)


def _warn_of_parts(names: pd.Series) -> None:
    """Warn of a model that was saved in the middle of its making: more is stored than the model has."""
    for part, what in PARTS.items():
        if found := next((name for name in names if part in name), None):
            _warn(f"{visible(found)} belongs to {what}")


def _told(table: pd.DataFrame, quantization: dict[str, Any]) -> Packing:
    """What the neighbours tell; nothing is asked in a model of plain floats."""
    names = table["tensor"]
    if not table["dtype"].isin(SMALL).any() and not _ends(names, ".absmax").any():
        return Packing({}, set(), set())
    stored = dict(zip(names, zip(table["dtype"], table["shape"], strict=True), strict=True))
    return packing(stored, quantization)


def _hold_against_config(
    table: pd.DataFrame, counts: pd.Series, told: Packing, method: str, quantization: dict[str, Any]
) -> None:
    """Warn where config.json and the shapes differ, or where the shapes leave something open."""
    stated = quantization.get("bits", quantization.get("w_bit"))
    packed = table["tensor"].isin(told.counts) & _ends(table["tensor"], ".qweight")
    found = sorted(set((table["bytes"][packed] * 8 / counts[packed]).round(1)))
    if type(stated) is int and found and found != [stated] and not quantization.get("dynamic"):
        bits = ", ".join(f"{number:g}" for number in found)
        words = f"config.json says {stated} bits, the shapes of its {method} weights say {bits}"
        warn(f"Parameters are counted from the shapes: {words}.")
    if told.unsure:
        words = f"{len(told.unsure):,} packed weights are counted as groups of {MLX_GROUP} that share a scale"
        warn(f"{words}, which config.json does not state.")


def _untold(
    table: pd.DataFrame, counts: pd.Series, rest: pd.Series, method: str, quantization: dict[str, Any] | None
) -> pd.Series:
    """The counts, completed by the rules of config.json's method; warns where there is none."""
    odd = list(INTEGERS) if quantization else [*INTEGERS, "I8"]
    open_rows = rest & counts.gt(0) & table["dtype"].isin(odd)
    if quantization is not None and method not in BOOKKEEPING:
        if open_rows.any() or rest.all():
            _warn(f"the quantisation method {visible(method)} is not known here")
        return counts
    packed = rest & _is_packed(table["tensor"], method)
    if (open_rows & ~packed).any():
        lacks = "'s quantization_config does not explain them" if quantization else " has no quantization_config"
        _warn(f"some tensors are integers, and config.json{lacks}")
    return _unpacked(table, counts, packed, method, quantization) if quantization and packed.any() else counts


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """The quantisation settings, wherever a config.json keeps them; None where there are none."""
    for settings in (config, config.get("text_config")):
        for name in ("quantization_config", "compression_config", "quantization"):  # the last one is MLX's
            if isinstance(settings, dict) and isinstance(settings.get(name), dict):
                return {"quant_method": METHODS.get(name)} | settings[name] if name in METHODS else settings[name]
    return None


def is_known(config: dict[str, Any]) -> bool:
    """Whether the weights are not quantised, or in a way whose counting rule is known here."""
    quantization = quantization_of(config)
    return quantization is None or str(quantization.get("quant_method")) in BOOKKEEPING


def _unpacked(
    table: pd.DataFrame, counts: pd.Series, packed: pd.Series, method: str, quantization: dict[str, Any]
) -> pd.Series:
    """The counts, with packed weights counted by the bits that each takes."""
    bits = _bits(method, quantization)
    if bits is None:
        _warn(f"config.json gives no single number of bits for its {method} weights")
        return counts
    if method != "compressed-tensors":
        return counts.mask(packed, table["bytes"] * 8 // bits)
    each = table["dtype"].map(INTEGERS).fillna(8) // bits  # as many whole weights as go into one element
    if (packed & table["dtype"].isin(["I32", "I64"])).any():
        words = "Rows of packed weights may end in padding that their headers do not show; it is counted, too"
        warn(f"{words}.")
    return counts.mask(packed, table["elements"] * each).astype("int64")


def _warn(reason: str) -> None:
    warn(f"Parameters are counted as stored elements: {reason}.")


def _is_mask(table: pd.DataFrame) -> pd.Series:
    masks = _ends(table["tensor"], MASKS)
    masks[masks] = table.loc[masks, "shape"].map(len) == 4
    return masks


def _ends(names: pd.Series, endings: str | tuple[str, ...]) -> pd.Series:
    return pd.Series([name.endswith(endings) for name in names.to_numpy()], index=names.index, dtype=bool)


def _repeats(table: pd.DataFrame, counts: pd.Series, config: dict[str, Any], is_tied: Tied) -> pd.Series:
    """Which rows hold the embedding once more.

    A head of its shape, or packed, of its size, in a model whose config.json ties them; and in a model that encodes and
    decodes, whatever stands beside an embedding that is named shared.
    """
    embeddings = table["component"] == "embedding"
    shapes, sizes = set(table.loc[embeddings, "shape"]), set(counts[embeddings])
    heads = (table["component"] == "head") & counts.gt(0)
    packed = counts.ne(table["elements"]) | bool((counts != table["elements"])[embeddings].any())
    heads &= table["shape"].isin(shapes) | (packed & counts.isin(sizes))
    return (heads & (heads.any() and is_tied(config))) | _repeats_the_shared(table)


def _repeats_the_shared(table: pd.DataFrame) -> pd.Series:
    shared = {name: shape for name, shape in zip(table["tensor"], table["shape"], strict=True) if SHARED.search(name)}
    repeats = (
        [
            (match := COPY.fullmatch(name)) is not None and shared.get(f"{match[1]}shared.weight") == shape
            for name, shape in zip(table["tensor"], table["shape"], strict=True)
        ]
        if shared
        else False
    )
    return pd.Series(repeats, index=table.index, dtype=bool)


def stated_tie(config: dict[str, Any]) -> bool | None:
    """What config.json says about tied embeddings; None where it is silent."""
    for settings in (config, config.get("text_config")):
        if isinstance(settings, dict) and isinstance(settings.get("tie_word_embeddings"), bool):
            return settings["tie_word_embeddings"]
    return None


def _is_packed(names: pd.Series, method: str) -> pd.Series:
    if method == "bitsandbytes":  # a 4-bit weight is known by the scales beside it, an 8-bit one is not packed
        return (names + ".absmax").isin(names)
    return _ends(names, PACKED.get(method, ()))


def _bits(method: str, quantization: dict[str, Any]) -> int | None:
    """How many bits a packed weight takes; None where config.json does not say, or says several."""
    if method in ("bitsandbytes", "mxfp4"):
        return 4
    if method == "compressed-tensors":
        return bits_of(quantization)
    # "dynamic" gives some modules of a GPTQ model other bits
    found = quantization.get("bits", quantization.get("w_bit"))
    return found if type(found) is int and 0 < found <= 8 and not quantization.get("dynamic") else None
