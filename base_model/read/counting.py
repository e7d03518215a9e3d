"""What a person means by "parameters": logical counts, where the stored elements say something else.

Tied embeddings count once. Packed weights count what they unpack to; the numbers that a quantisation keeps beside
them count nothing, and neither do masks and frequencies that old checkpoints store. The layouts are those that
transformers reads: https://huggingface.co/docs/transformers/quantization/overview
"""

import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd

from base_model import ModelWarning, visible

Tied = Callable[[dict[str, Any]], bool]  # whether a config.json ties the head to the embedding

# Stored by old checkpoints, though any model code computes them anew.
BUFFERS = ("rotary_emb.inv_freq", "position_ids", ".masked_bias", ".causal_mask")
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
    """The parameters of each row of a tensor table; warns where the rule is not known and stored elements count."""
    quantization = quantization_of(config)
    method = "" if quantization is None else str(quantization.get("quant_method"))
    counts = table["elements"].mask(_ends(table["tensor"], BUFFERS + BOOKKEEPING.get(method, ())), 0)
    counts = counts.mask(_is_mask(table), 0)
    counts = counts.mask(_repeats_the_embedding(table, config, is_tied), 0)
    if quantization is not None and method not in BOOKKEEPING:
        _warn(f"the quantisation method {visible(method)} is not known here")
        return counts
    packed = _is_packed(table["tensor"], method)
    odd = list(INTEGERS) if quantization else [*INTEGERS, "I8"]
    if (~packed & counts.gt(0) & table["dtype"].isin(odd)).any():
        found = "that its quantization_config does not explain" if quantization else "but no quantization_config"
        _warn(f"there are integer tensors, {found}, in config.json")
    return _unpacked(table, counts, packed, method, quantization) if quantization and packed.any() else counts


def quantization_of(config: dict[str, Any]) -> dict[str, Any] | None:
    """The quantisation settings, wherever a config.json keeps them; None where there are none."""
    for settings in (config, config.get("text_config")):
        for name in ("quantization_config", "compression_config"):
            if isinstance(settings, dict) and isinstance(settings.get(name), dict):
                return {"quant_method": "compressed-tensors"} | settings[name] if name[0] == "c" else settings[name]
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
        _warn(f"config.json gives no one number of bits for its {method} weights")
        return counts
    if method == "compressed-tensors":  # as many whole weights as go into one element; the rest is padding
        return counts.mask(packed, table["elements"] * (table["dtype"].map(INTEGERS).fillna(8) // bits))
    return counts.mask(packed, table["bytes"] * 8 // bits)


def _warn(reason: str) -> None:
    warnings.warn(f"Parameters are counted as stored elements: {reason}.", ModelWarning, stacklevel=5)


def _is_mask(table: pd.DataFrame) -> pd.Series:
    masks = _ends(table["tensor"], MASKS)
    masks[masks] = table.loc[masks, "shape"].map(len) == 4
    return masks


def _ends(names: pd.Series, endings: str | tuple[str, ...]) -> pd.Series:
    return pd.Series([name.endswith(endings) for name in names.to_numpy()], index=names.index, dtype=bool)


def _repeats_the_embedding(table: pd.DataFrame, config: dict[str, Any], is_tied: Tied) -> pd.Series:
    """Which rows are a head that is the embedding once more: of its shape, in a model whose config.json ties them."""
    embeddings = set(table.loc[table["component"] == "embedding", "shape"])
    heads = table["component"] == "head"
    heads[heads] = table.loc[heads, "shape"].isin(embeddings)
    return heads & (heads.any() and is_tied(config))


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
    found = [quantization.get("bits", quantization.get("w_bit"))]
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        schemes = groups.values() if isinstance(groups, dict) else []
        weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
        found = [scheme.get("num_bits") for scheme in weights if isinstance(scheme, dict)]
    # "dynamic" gives some modules of a GPTQ model other bits
    if not found or found.count(found[0]) < len(found) or quantization.get("dynamic"):
        return None
    return found[0] if type(found[0]) is int and 0 < found[0] <= 8 else None
