"""What a person means by "parameters": logical counts, where the stored elements say something else.

Tied embeddings count once. Packed weights count what they unpack to; the numbers that a quantisation keeps beside
them count nothing, and neither do masks and frequencies that old checkpoints store. The layouts are those that
transformers reads: https://huggingface.co/docs/transformers/quantization/overview
"""

import warnings
from typing import Any

import pandas as pd

from base_model import ModelWarning, visible

HEAD = "lm_head.weight"

# Stored by old checkpoints, though any model code computes them anew.
BUFFERS = ("rotary_emb.inv_freq", "position_ids", ".masked_bias")
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
INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F4")  # odd dtypes for plain weights


def logical_parameters(table: pd.DataFrame, config: dict[str, Any]) -> pd.Series:
    """The parameters of each row of a tensor table; warns where the rule is not known and stored elements count."""
    quantization = config.get("quantization_config")
    method = str(quantization.get("quant_method")) if isinstance(quantization, dict) else ""
    counts = table["elements"].mask(_ends(table["tensor"], BUFFERS + BOOKKEEPING.get(method, ())), 0)
    counts = counts.mask(_is_mask(table), 0)
    if _repeats_the_embedding(table, config):
        counts = counts.mask(table["tensor"] == HEAD, 0)
    if not isinstance(quantization, dict):
        if counts[table["dtype"].isin(INTEGERS)].any():
            _warn("there are integer tensors, but no quantization_config in config.json")
        return counts
    if method not in BOOKKEEPING:
        _warn(f"the quantisation method {visible(method)} is not known here")
        return counts
    return _unpacked(table, counts, method, quantization)


def _unpacked(table: pd.DataFrame, counts: pd.Series, method: str, quantization: dict[str, Any]) -> pd.Series:
    """The counts, with packed weights counted by the bits that each takes."""
    packed = _is_packed(table["tensor"], method)
    if not packed.any():
        return counts
    bits = _bits(method, quantization)
    if bits is None:
        _warn(f"config.json gives no one number of bits for its {method} weights")
        return counts
    return counts.mask(packed, table["bytes"] * 8 // bits)


def _warn(reason: str) -> None:
    warnings.warn(f"Parameters are counted as stored elements: {reason}.", ModelWarning, stacklevel=5)


def _is_mask(table: pd.DataFrame) -> pd.Series:
    masks = _ends(table["tensor"], MASKS)
    masks[masks] = table.loc[masks, "shape"].map(len) == 4
    return masks


def _ends(names: pd.Series, endings: str | tuple[str, ...]) -> pd.Series:
    return pd.Series([name.endswith(endings) for name in names.to_numpy()], index=names.index, dtype=bool)


def _repeats_the_embedding(table: pd.DataFrame, config: dict[str, Any]) -> bool:
    """Whether a stored head is the embedding once more."""
    stored = (table["tensor"] == HEAD).any() and (table["component"] == "embedding").any()
    return bool(stored) and is_tied(config)


def is_tied(config: dict[str, Any]) -> bool:
    """What config.json says about tied embeddings; where it is silent, the default of its architecture."""
    for settings in (config, config.get("text_config")):
        if isinstance(settings, dict) and "tie_word_embeddings" in settings:
            return bool(settings["tie_word_embeddings"])
    if "model_type" not in config:
        return False
    from transformers import CONFIG_MAPPING  # seconds, but only for a head stored without a word on it

    known = config["model_type"] in CONFIG_MAPPING
    return known and bool(getattr(CONFIG_MAPPING[config["model_type"]](), "tie_word_embeddings", False))


def _is_packed(names: pd.Series, method: str) -> pd.Series:
    if method == "bitsandbytes":  # a 4-bit weight is known by the scales beside it, an 8-bit one is not packed
        return (names + ".absmax").isin(names)
    return _ends(names, PACKED.get(method, ()))


def _bits(method: str, quantization: dict[str, Any]) -> int | None:
    """How many bits a packed weight takes; None where config.json does not say, or says several."""
    if method in ("bitsandbytes", "mxfp4"):
        return 4
    found = {quantization.get("bits", quantization.get("w_bit"))}
    if method == "compressed-tensors":
        groups = quantization.get("config_groups")
        weights = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
        found = {scheme.get("num_bits") for scheme in weights if isinstance(scheme, dict)}
    bits = found.pop() if len(found) == 1 else None
    return bits if type(bits) is int and 0 < bits <= 8 else None
