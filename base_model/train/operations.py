"""What each operation of a step costs, whatever the card: floating-point operations, and bytes to read and write.

FLOPs by the formulas of torch's own counter (`torch.utils.flop_counter`), with those of the stand-ins added; bytes from
the tensors. Imports torch: import it late.
"""

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from base_model.plan.attention import attention_of, gradients_of_attention
from base_model.plan.quantization import bitsandbytes
from base_model.train.device import add_product

bitsandbytes()
aten = torch.ops.aten
# They take memory, or say something of it, but no kernel runs.
NO_KERNEL = {
    aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.detach,
    aten._local_scalar_dense, aten.is_same_size, aten.lift_fresh, aten.set_, aten.resize_,
}  # fmt: skip
# They read of their first argument only what they give.
PICKS = {aten.embedding, aten.index, aten.index_select, aten.gather, aten.slice_backward, aten.select_backward}


@dataclass(frozen=True)
class Cost:
    """One operation: `flops` in the dtype of its factors, `moved`, bytes read and written, and its `launches`."""

    flops: int
    dtype: str
    moved: int
    attention: bool = False
    launches: int = 1


class Tape:
    """The costs of a step, each with how often it occurs; given to a ledger as `observe`."""

    def __init__(self) -> None:
        self.costs: Counter[Cost] = Counter()

    def __call__(self, func: Any, args: Any, kwargs: Any, out: Any, times: int = 1) -> None:
        """Add one operation that occurs so many times; views and allocations cost nothing."""
        packet = func._overloadpacket
        if packet in NO_KERNEL or func.namespace == "prim" or func.is_view or packet is aten._unsafe_view:
            return
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        outputs = [one for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        if (not inputs and not outputs) or _is_alias(func, inputs, outputs):
            return
        cost = _cost(func, packet, args, kwargs, inputs, outputs, out)
        for part in _one_after_the_other(cost, inputs, outputs) if packet is GEMM_4BIT else [cost]:
            self.costs[part] += times


def _cost(func: Any, packet: Any, args: Any, kwargs: Any, inputs: Any, outputs: Any, out: Any) -> Cost:
    formula = FORMULAS.get(packet) or flop_registry.get(packet)
    flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
    factors = inputs[1:] if packet is ADD_PRODUCT else inputs  # its accumulator is float32 whatever the factors are
    floats = [one.dtype for one in factors if one.is_floating_point()]
    dtype = str(floats[0] if floats and packet is not UPDATE_8BIT else torch.float32).removeprefix("torch.")
    moved = _moved(func, packet, args, kwargs, inputs, outputs)
    return Cost(flops, dtype, moved, packet in ATTENTION, LAUNCHES.get(packet, 1))


def _one_after_the_other(cost: Cost, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> list[Cost]:
    """bitsandbytes' product on 4 bits: the weight is unpacked and written, then read for a product like any other.

    For few rows, by kind of card, bitsandbytes has a kernel that does both at once and takes no longer than that.
    """
    factor, *packed = inputs
    columns = factor.shape[-1]
    weight = outputs[0].numel() // (factor.numel() // columns) * columns * factor.itemsize
    return [
        Cost(0, cost.dtype, sum(map(_bytes, packed)) + weight, launches=cost.launches - 1),
        Cost(cost.flops, cost.dtype, _bytes(factor) + weight + _bytes(outputs[0])),
    ]


def _moved(
    func: Any, packet: Any, args: Any, kwargs: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> int:
    """Bytes that the kernel reads and writes."""
    written = sum(map(_bytes, outputs))
    changed = _changed(func, args, kwargs) if not outputs else []
    if packet in PICKS:
        return 2 * written
    if packet is aten.embedding_dense_backward:
        return written + _bytes(inputs[0])
    return sum(map(_bytes, inputs)) + written + sum(map(_bytes, changed))


def _changed(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors that an operation without a result writes in place: those of a whole list for `_foreach_mul_`."""
    marked = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    given = [value for value, written in zip(args, marked, strict=False) if written]
    given += [
        kwargs[one.name]
        for one, written in zip(func._schema.arguments, marked, strict=True)
        if written and one.name in kwargs
    ]
    return [one for one in tree_leaves(given) if isinstance(one, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    """Of an expanded tensor, what is there to read."""
    return prod(size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step) * tensor.itemsize


def _is_alias(func: Any, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> bool:
    """An operation that gives what it got: `contiguous` or `to` with nothing to do."""
    if func._schema.is_mutable or len(outputs) != 1:
        return False
    return any(outputs[0] is one for one in inputs) and func is not aten.add.Tensor


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None) -> int:
    """Two products of every token with those before it: half of the matrix."""
    batch, heads, tokens, size = query.shape
    return batch * heads * tokens * key.shape[2] * (size + value.shape[-1])


def _attention_backward_flops(*args: Any, out_val: Any = None) -> int:
    """Five products where forward had two: the scores again, and the gradients of scores, query, key and value."""
    return _attention_flops(*args[:3]) * 5 // 2


def _on_packed(a: Any, packed: Any, shape: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """bitsandbytes' product with a 4-bit weight of `shape`."""
    return 2 * a.numel() * shape[0]


def _on_rows(a: Any, b: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    return 2 * a.numel() * b.shape[0]


def _update_8bit(name: str, gradient: Any, parameter: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """bitsandbytes' optimizers look each state up among 256 codes: an H100 took as long as for so many operations."""
    return 1300 * parameter.numel()


def _product(accumulator: Any, a: Any, b: Any, out_val: Any = None) -> int:
    return 2 * a.numel() * b.shape[-1]


def _grouped(a: Any, b: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Each row with one group's matrix; or, in backward, rows by rows."""
    return 2 * a.numel() * b.shape[-1]


# bitsandbytes does in Python what torch does in C++: to launch one of its operations took the hosts of an H100 and an
# H200 about as long as eight of torch's.
_BITSANDBYTES = (
    "gemm_4bit", "dequantize_4bit", "dequantize_blockwise", "optimizer_update_8bit_blockwise", "optimizer_update_32bit",
)  # fmt: skip
LAUNCHES = {getattr(torch.ops.bitsandbytes, name): 8 for name in _BITSANDBYTES}
GEMM_4BIT = torch.ops.bitsandbytes.gemm_4bit
ADD_PRODUCT = add_product._opoverload._overloadpacket
UPDATE_8BIT = torch.ops.bitsandbytes.optimizer_update_8bit_blockwise
ATTENTION = {one._opoverload._overloadpacket for one in (attention_of, gradients_of_attention)}
FORMULAS: dict[Any, Any] = {
    attention_of._opoverload._overloadpacket: _attention_flops,
    gradients_of_attention._opoverload._overloadpacket: _attention_backward_flops,
    ADD_PRODUCT: _product,
    UPDATE_8BIT: _update_8bit,
    GEMM_4BIT: _on_packed,
    torch.ops.bitsandbytes.int8_scaled_mm: _on_rows,
    aten._grouped_mm: _grouped,
}
