"""What a library does on a CUDA device, made to happen on tensors that are nowhere. Imports torch: import it late.

Fake tensors stand for those of a card, but say "cpu" when they are asked, since a torch without CUDA cannot hold
others. `BRANCHES` lists every place where a library asks for the device, or whether a tensor is fake, and the answer
that it gets; `_functions` does the same for torch's own functions, which ask in C++.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor

from base_model.plan.attention import Kernel
from base_model.plan.ledger import HOST, Ledger

SMALLEST_PAGED = 100_000  # elements: below, bitsandbytes keeps a paged optimizer's state on the card


@dataclass(frozen=True)
class Branch:
    """One name of a library that is answered: `asks` is what stands in its source, `answer` what takes its place."""

    module: str
    name: str
    asks: str
    answer: Callable[[Ledger], Any]


@torch.library.custom_op("base_model::fold", mutates_args=("tile",))
def _fold(tile: torch.Tensor) -> None:
    raise NotImplementedError("for tensors without values only")


@_fold.register_fake
def _(tile: torch.Tensor) -> None:
    return None


class _Silent:
    """A Triton kernel, launched as `kernel[grid](tile, ...)`: it works in tensors that are there."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda tile, *_, **__: torch.ops.base_model.fold(tile)


def _state_buffer(ledger: Ledger) -> Callable[..., torch.Tensor]:
    """bitsandbytes' buffer for a state: the paged ones lie in the machine's memory, and visit the card."""

    def get_state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        paged = self.is_paged and p.numel() >= SMALLEST_PAGED
        with ledger.making(HOST if paged else ledger.kind):
            return torch.zeros_like(p, dtype=dtype)

    return get_state_buffer


_CHUNKS, _HEAD = "trl.kernels.chunked_logprob", "trl.trainer.utils"


def _random_state(ledger: Ledger) -> Callable[[], torch.Tensor]:
    """The state of the CPU's generator, which each checkpoint keeps: a real tensor, so no operation shows it."""
    real = torch.get_rng_state

    def get_rng_state() -> torch.Tensor:
        state = real()
        ledger.count(state, ledger.kind)
        return state

    return get_rng_state


def _scores(ledger: Ledger) -> type:
    """TRL's loss in chunks, with what it makes counted as logits."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    class Scores(ChunkedLogProbFunction):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            with ledger.making("logits", "loss"):
                return ChunkedLogProbFunction.forward(ctx, *args)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            with ledger.making("logits", "backward"):
                return ChunkedLogProbFunction.backward(ctx, *gradients)

    return Scores


def _unpacked(module: Any) -> Any:
    """A layer's weight, unpacked if bitsandbytes packed it: that is told from the class of the parameter."""
    from base_model.plan.quantization import bitsandbytes

    weight, functional = module.weight, bitsandbytes().functional
    if getattr(weight, "quant_state", None) is not None:
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    if getattr(weight, "SCB", None) is not None:
        return functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return weight


class _Stream:
    """A stream of a card: what is started there is done at once."""

    def _done(self, *_: Any) -> None:
        """Nothing is waited for."""

    wait_stream = wait_event = record_event = synchronize = _done


_STREAMS = SimpleNamespace(
    Stream=_Stream, stream=lambda _: nullcontext(), current_stream=_Stream, empty_cache=lambda: None
)


def _offloading(_: Ledger) -> Callable[..., None]:
    """TRL's offloading of activations, told that the card is where the fake tensors are."""
    from trl.models.activation_offloading import OffloadActivations

    real = OffloadActivations.__init__

    @wraps(real)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        with (
            mock.patch.object(torch.accelerator, "current_accelerator", lambda: torch.device("cpu")),
            mock.patch.object(torch, "get_device_module", lambda _: _STREAMS),
        ):
            real(self, *args, **kwargs)

    return init


_FOREACH = [torch.Tensor, DTensor, FakeTensor]
# On every device: a fake tensor is treated like the real one that it stands for.
BRANCHES_ON_FAKE = (
    Branch("transformers.utils.import_utils", "is_fake_tensor", "FakeTensor", lambda _: lambda _: False),
    Branch("torch.utils._foreach_utils", "_foreach_supported_types", "torch.Tensor", lambda _: _FOREACH),
    Branch("torch.optim.optimizer", "_foreach_supported_types", "torch.Tensor", lambda _: _FOREACH),
    Branch(_HEAD, "_ChunkedLogProbFunction", "ChunkedLogProbFunction", _scores),
    *(
        Branch(f"peft.tuners.lora.{module}", "dequantize_module_weight", '"Params4bit"', lambda _: _unpacked)
        for module in ("dora", "layer", "variants")
    ),
)
# On the CPU only.
BRANCHES_ON_CPU = (Branch("torch", "get_rng_state", "default_generator", lambda ledger: _random_state(ledger)),)
# On a CUDA device only.
BRANCHES = (
    Branch(_CHUNKS, "_use_triton", "device.type", lambda _: lambda _: True),
    Branch(_HEAD, "_use_triton", "device.type", lambda _: lambda _: True),
    Branch(_CHUNKS, "_forward_kernel", "tl.store", lambda _: _Silent()),
    Branch(_CHUNKS, "_backward_kernel", "tl.store", lambda _: _Silent()),
    Branch(_CHUNKS, "triton", "triton.cdiv", lambda _: SimpleNamespace(cdiv=lambda a, b: -(-a // b))),
    # On CUDA the product is added in float32 without a copy of its factors.
    Branch(_CHUNKS, "_addmm_fp32", "device.type", lambda _: torch.ops.base_model.addmm_fp32),
    Branch("torch.optim.optimizer", "_get_foreach_kernels_supported_devices", '"cuda"', lambda _: lambda: ["cpu"]),
    Branch("bitsandbytes.autograd._functions", "matmul", "device.type", lambda _: _matmul_8bit),
    Branch("trl.models.activation_offloading", "OffloadActivations.__init__", "current_accelerator", _offloading),
    Branch("bitsandbytes.optim.optimizer", "Optimizer8bit.get_state_buffer", "device.type", _state_buffer),
)


@torch.library.custom_op("base_model::addmm_fp32", mutates_args=("acc",))
def add_product(acc: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`acc += a @ b` in float32, of shapes alone."""
    raise NotImplementedError("for tensors without values only")


@add_product.register_fake
def _(acc: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    return None


def _matmul_8bit(a: Any, b: Any, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None) -> Any:
    """bitsandbytes' product on 8-bit weights, as it is on CUDA."""
    from bitsandbytes.autograd._functions import MatMul8bitLt

    state.threshold = threshold or state.threshold
    return MatMul8bitLt.apply(a, b, out, bias, state)


# Functions that CUDA's autocast runs in float32, and the CPU's does not, as names of torch, its `nn.functional` and its
# tensors. https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
IN_FLOAT32 = (
    "__pow__", "__rpow__", "acos", "asin", "cosh", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist",
    "erfinv", "exp", "expm1", "group_norm", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2",
    "log_softmax", "logsumexp", "mse_loss", "nll_loss", "norm", "normalize", "pow", "prod", "reciprocal", "renorm",
    "rsqrt", "sinh", "smooth_l1_loss", "softmax", "softmin", "softplus", "sum", "tan",
)  # fmt: skip


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as CUDA's autocast runs it, unless it is told a dtype."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu") and kwargs.get("dtype") is None:
            args, kwargs = tuple(map(_float32, args)), {name: _float32(one) for name, one in kwargs.items()}
        return function(*args, **kwargs)

    return run


def _float32(value: Any) -> Any:
    low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """`dropout` by a GPU's kernel, which keeps one byte per element for backward."""
    if not training or not 0 < p < 1:
        return input
    return torch.native_dropout(input, p, True)[0]


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *_: Any, **__: Any
) -> torch.Tensor:
    """`scaled_dot_product_attention` by a GPU's kernel; a mask of truth values is turned into numbers, and kept."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (one.to(dtype) for one in (query, key, value))
    bias = None if attn_mask is None else attn_mask.to(query.dtype)
    return Kernel.apply(query, key, value, bias)


def _address(storage: torch.UntypedStorage) -> int:
    """Where a storage lies; of one that lies nowhere, a number of its own, far from any other's."""
    return storage._cdata << 32 if storage.device.type == "meta" else _real_address(storage)


_real_address = torch.UntypedStorage.data_ptr


def _functions() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """torch's own functions that allocate otherwise on CUDA, by their owner and name, and what takes their place."""
    functional: Any = torch.nn.functional
    yield functional, "scaled_dot_product_attention", attention
    yield functional, "dropout", _dropout
    yield torch.UntypedStorage, "data_ptr", _address
    yield torch.Tensor, "record_stream", _Stream._done
    for owner in (torch, functional, torch.Tensor):
        for name in IN_FLOAT32:
            if hasattr(owner, name):
                yield owner, name, _in_float32(getattr(owner, name))


@contextmanager
def planned_device(ledger: Ledger, cuda: bool) -> Iterator[None]:
    """Inside, libraries treat fake tensors as those of the planned device: a CUDA card, or the CPU."""
    with ExitStack() as stack:
        for branch in BRANCHES_ON_FAKE + (BRANCHES if cuda else BRANCHES_ON_CPU):
            owner: Any = import_module(branch.module)
            *path, name = branch.name.split(".")
            for part in path:
                owner = getattr(owner, part)
            # Without Triton the name is not there at all.
            stack.enter_context(mock.patch.object(owner, name, branch.answer(ledger), create=name == "triton"))
        for owner, name, function in _functions() if cuda else ():
            stack.enter_context(mock.patch.object(owner, name, function))
        yield
