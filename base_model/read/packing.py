"""What packed weights unpack to, told by the names, dtypes and shapes of the tensors beside them.

Every layout keeps scales beside its weights. The shapes of both give the packing even where config.json is silent or
wrong. Layouts: https://huggingface.co/docs/transformers/quantization/overview, https://github.com/ml-explore/mlx.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from base_model.read.headers import BITS

Tensor = tuple[str, tuple[int, ...]]  # dtype, shape
Near = Callable[[str], Tensor | None]  # a neighbour by the last part of its name

SCALES = ("weight_scale", "weight_scale_inv", "scale", "scale_inv", "scales")
# All that a layout keeps beside a weight; none of it is a parameter.
BESIDE = (
    *SCALES, "biases", "weight_scale_2", "weight_global_scale", "weight_zero_point", "weight_g_idx", "weight_shape",
    "input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "activation_scale", "output_scale",
    "k_scale", "v_scale", "qzeros", "g_idx", "SCB", "weight_format",
    *(f"weight.{part}" for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")),
    *(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")),
)  # fmt: skip
FUSED = (
    "_scale",
    "_scale_inv",
    "_scales",
    "_bias_scale",
)  # beside a parameter of many experts, whose name they prolong
FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
FLOATS = ("F4", "F6_E2M3", "F6_E3M2", *FLOAT8)  # one weight in one element
SMALL = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", *FLOATS)  # dtypes of packed or small weights
MLX_BITS = (2, 3, 4, 5, 6, 8)
MLX_GROUP = 64  # weights that share a scale, unless config.json says otherwise


@dataclass(frozen=True)
class Packing:
    """What the neighbours tell: `{weight: parameters}`, the names that are not parameters, and unsure weights."""

    counts: dict[str, int]
    beside: set[str]
    unsure: set[str]


def packing(stored: dict[str, Tensor], quantization: dict[str, Any]) -> Packing:
    """The packing of every tensor of `{name: (dtype, shape)}` that its neighbours tell."""
    counts: dict[str, int] = {}
    beside: set[str] = set()
    unsure: set[str] = set()
    for name in _candidates(stored):
        part = name.rpartition(".")[2]
        prefix = name.removesuffix(part)
        count = _count(part, stored[name], _near(stored, prefix), quantization)
        if count is None and (scales := _fused_scales(stored, name)):
            count = _by_scale(stored[name], scales)
        if count is None:
            continue
        counts[name] = count
        beside.update(_names_beside(stored, name, prefix))
        if f"{prefix}biases" in stored and not quantization.get("group_size"):
            unsure.add(name)  # MLX's scales leave open how many weights share one
    return Packing(counts, beside, unsure)


def _candidates(stored: dict[str, Tensor]) -> Iterator[str]:
    """The tensors that may be packed weights: of a small dtype, or with bitsandbytes' scales beside them."""
    ends = tuple(f".{part}" for part in BESIDE)
    for name, (dtype, _) in stored.items():
        if (dtype in SMALL and not name.endswith(ends)) or f"{name}.absmax" in stored:
            yield name


def _near(stored: dict[str, Tensor], prefix: str) -> Near:
    return lambda part: stored.get(prefix + part)


def _fused_scales(stored: dict[str, Tensor], name: str) -> Tensor | None:
    stem = name.removesuffix("_blocks")
    return next((stored[stem + end] for end in FUSED if stem + end in stored), None)


def _names_beside(stored: dict[str, Tensor], name: str, prefix: str) -> Iterable[str]:
    fused = (name.removesuffix("_blocks") + end for end in FUSED)
    return [other for other in (*(prefix + part for part in BESIDE), *fused) if other in stored]


def _count(part: str, tensor: Tensor, near: Near, quantization: dict[str, Any]) -> int | None:
    """The parameters that a tensor stands for; None where its neighbours do not tell."""
    if part == "qweight":
        return _gptq_or_awq(tensor, near)
    if part == "weight_packed":
        return _compressed(tensor, near, quantization)
    if part != "weight":
        return None
    if near("weight.absmax"):  # bitsandbytes, 4 bits, in elements of any dtype
        return _bytes(tensor) * 2
    if near("SCB"):
        return prod(tensor[1])
    if tensor[0] == "U32" and (scales := near("scales")):
        return _mlx(tensor, scales, near("biases"), quantization)
    scale = next((found for name in SCALES if (found := near(name))), None)
    return _by_scale(tensor, scale) if scale else None


def _bytes(tensor: Tensor) -> int:
    return prod(tensor[1]) * BITS[tensor[0]] // 8


def _gptq_or_awq(tensor: Tensor, near: Near) -> int | None:
    """GPTQ packs along the input, AWQ along the output, which the scales tell: they have a column for each output."""
    scales, order, zeros = near("scales"), near("g_idx"), near("qzeros")
    if len(tensor[1]) != 2 or not scales or not scales[1]:
        return None
    (rows, columns), out = tensor[1], scales[1][-1]
    if columns < out:
        return rows * out
    if order and len(order[1]) == 1:
        return order[1][0] * out
    if zeros and len(zeros[1]) == 2 and zeros[1][1]:  # as many bits for a zero point as for a weight
        return rows * BITS[tensor[0]] * out // (BITS[zeros[0]] * zeros[1][1]) * out
    return None


def _by_scale(tensor: Tensor, scale: Tensor) -> int | None:
    """8-bit weights, or 4-bit ones two to a byte: there are as many scales as the format's groups."""
    (dtype, shape), (kind, groups) = tensor, scale
    if dtype in FLOATS or (dtype == "I8" and kind in ("F32", "F16", "BF16")):
        return prod(shape)
    size = {"F8_E8M0": 32, "U8": 32, "F8_E4M3": 16}.get(kind)  # weights in a group: MXFP4, NVFP4
    if dtype not in ("U8", "I8") or size is None or not groups:
        return None
    if shape[-1:] == (size // 2,) and shape[:-1] == groups:  # gpt-oss gives each group a row of its own
        return prod(shape) * 2
    if len(shape) != len(groups) or shape[:-1] != groups[:-1]:
        return None
    packed = {each for each in (1, 2) if -(-shape[-1] * each // size) == groups[-1]}
    return prod(shape) * packed.pop() if len(packed) == 1 else None


def _mlx(tensor: Tensor, scales: Tensor, biases: Tensor | None, quantization: dict[str, Any]) -> int | None:
    """MLX packs each row as one string of bits: the scales, and how many weights share one, give its length."""
    shape, groups = tensor[1], scales[1]
    if len(shape) != len(groups) or shape[:-1] != groups[:-1] or not (shape and shape[-1] and groups[-1]):
        return None
    if biases is None:  # MXFP4 and NVFP4, of 4 bits
        return prod(shape) * 8 if shape[-1] * 8 in (groups[-1] * 32, groups[-1] * 16) else None
    size = quantization.get("group_size", MLX_GROUP)
    weights = groups[-1] * size if type(size) is int and size > 0 else 0
    fits = weights and shape[-1] * 32 % weights == 0 and shape[-1] * 32 // weights in MLX_BITS
    return prod(shape[:-1]) * weights if fits else None


def _compressed(tensor: Tensor, near: Near, quantization: dict[str, Any]) -> int | None:
    """Rows of whole elements, the last one padded: their order or the groups of their scales give their length."""
    scale, order, dtype = near("weight_scale"), near("weight_g_idx"), tensor[0]
    if not scale or len(tensor[1]) < 2 or len(scale[1]) != len(tensor[1]):
        return None
    if dtype in ("U8", "I8"):
        return _by_scale(tensor, scale)
    rows, most = prod(tensor[1][:-1]), tensor[1][-1]
    size, bits = group_sizes(quantization), bits_of(quantization)
    lengths = [order[1][0]] if order and len(order[1]) == 1 else [scale[1][-1] * one for one in size]
    each = BITS[dtype] // bits if bits else 0
    fitting = {length for length in lengths if each and -(-length // each) == most}
    return rows * fitting.pop() if len(fitting) == 1 else None


def _weight_schemes(quantization: dict[str, Any]) -> list[dict[str, Any]]:
    groups = quantization.get("config_groups")
    schemes = groups.values() if isinstance(groups, dict) else []
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, dict)]
    return [scheme for scheme in weights if isinstance(scheme, dict)]


def group_sizes(quantization: dict[str, Any]) -> list[int]:
    """How many weights share a scale, as compressed-tensors' groups state it."""
    found = [scheme.get("group_size") for scheme in _weight_schemes(quantization)]
    return [size for size in found if type(size) is int and size > 0]


def bits_of(quantization: dict[str, Any]) -> int | None:
    """The one number of bits of compressed-tensors' groups; None where they give none, or several."""
    found = [scheme.get("num_bits") for scheme in _weight_schemes(quantization)]
    if not found or found.count(found[0]) < len(found):
        return None
    return found[0] if type(found[0]) is int and 0 < found[0] <= 8 else None
