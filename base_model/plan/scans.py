"""Sequences without attention: what the CUDA kernels of their scans keep in memory. Imports torch: import it late.

transformers' own code for them goes token by token, or in chunks. People who train such models install the kernels,
which keep far less.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

CHUNK = 2_048  # tokens between two states that the kernel of mamba-ssm keeps
# In chunks, which can be measured; by the functions' names in transformers, the package with the kernel.
REFERENCES = {
    "mamba2_chunk_scan": "mamba-ssm",
    "torch_chunk_gated_delta_rule": "flash-linear-attention",
    "chunk_kimi_delta_attention": "flash-linear-attention",
}


class _SelectiveScan(torch.autograd.Function):
    """The memory of mamba-ssm's `selective_scan_fn`: its inputs, its output before the gate, a state per chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        *more: torch.Tensor | None,
    ) -> torch.Tensor:
        """Shapes: inputs and delta (batch, channels, tokens), A (channels, states); more are B, C, D, gate, bias."""
        batch, channels, tokens = inputs.shape
        shape = batch, channels, -(-tokens // CHUNK), 2 * A.shape[-1]
        output, states = torch.empty_like(inputs), inputs.new_empty(shape, dtype=torch.float32)
        ctx.save_for_backward(inputs, delta, A, *more, output, states)
        return torch.empty_like(inputs)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """One gradient for each input."""
        return tuple(None if tensor is None else torch.empty_like(tensor) for tensor in ctx.saved_tensors[:-2])


def _selective_scan(
    inputs: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    return _SelectiveScan.apply(inputs, dt, A, B, C, D, z, delta_bias)


class _Rwkv(torch.autograd.Function):
    """The memory of RWKV's CUDA kernel: its inputs and its output."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        """Inputs: decay and first (channels), key and value (batch, tokens, channels)."""
        output = torch.empty_like(inputs[2])
        ctx.save_for_backward(*inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One gradient for each input."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:-1])


def _rwkv(
    decay: torch.Tensor, first: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    return _Rwkv.apply(decay, first, key, value), None


STAND_INS: dict[str, Callable[..., Any]] = {"mamba_selective_scan": _selective_scan, "rwkv_linear_attention": _rwkv}


def _scans(model: Any) -> set[tuple[str, str]]:
    """The scans that the code of the model's own modules calls: `(Python module, function)`."""
    known = {*STAND_INS, *REFERENCES}
    return {
        (kind.__module__, name)
        for kind in {type(module) for module in model.modules()}
        for function in vars(kind).values()
        if inspect.isfunction(function)
        for name in known.intersection(inspect.unwrap(function).__code__.co_names)
    }


@contextmanager
def kernel_scans(model: Any) -> Iterator[None]:
    """While it is entered, scans that go token by token take the memory of their kernels, and compute nothing."""
    with ExitStack() as stack:
        for module, name in _scans(model):
            if name in STAND_INS:
                stack.enter_context(patch.object(sys.modules[module], name, STAND_INS[name]))
        yield


def scan_note(model: Any) -> str:
    """What a reader should know of a training plan of this model; empty where there is no scan."""
    names = {name for _, name in _scans(model)}
    notes = [
        f"{name} is planned with transformers' reference code, which keeps more than the kernel of {REFERENCES[name]}"
        for name in sorted(names.intersection(REFERENCES))
    ]
    notes += [
        f"{name} is planned with the memory of its CUDA kernel; transformers' own code goes token by token"
        for name in sorted(names.intersection(STAND_INS))
    ]
    return "; ".join(notes)
