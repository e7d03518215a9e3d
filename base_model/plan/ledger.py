"""Memory on the meta device: who is alive, of which kind, and how much at most. Imports torch: import it late."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_OPERATIONS = 500_000  # a step of a model of 100 layers takes 50,000, some seconds
ATTENTION = "base_model_efficient"  # the name under which transformers finds `efficient_attention`


class Ledger(TorchDispatchMode):
    """While it is entered, every new storage on the meta device is added up, by kind, until it is freed.

    A storage is of `kind` when it is first seen; scores over the vocabulary are "logits" instead. `enter` moves it.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.kind = "activations"  # of what is made next
        self.operations = 0
        # By storage: its kind, its bytes, and the reference that tells its end.
        self.alive: dict[int, tuple[str, int, Any]] = {}
        self.now: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Forget what was most so far: from here on, `most` of each kind, and all kinds `at_peak`."""
        self.most, self.at_peak = Counter(self.now), Counter(self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise RuntimeError(f"more than {MOST_OPERATIONS:,} operations, as where tokens are taken one by one")
        out = on_meta(func, args, kwargs or {})
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in self.alive:
                scores = tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
                self.enter(tensor, "logits" if scores and self.kind == "activations" else self.kind)
        return out

    def enter(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage as `kind` from now on, whatever it was before. Nothing for one on the CPU."""
        if tensor.device.type != "meta":
            return
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self.alive:
            self._leave(key)
        reference = weakref.ref(storage, lambda _: self._leave(key))
        self.alive[key] = kind, storage.nbytes(), reference
        self.now[kind] += storage.nbytes()
        self.most[kind] = max(self.most[kind], self.now[kind])
        if self.now.total() > self.at_peak.total():
            self.at_peak = Counter(self.now)

    def _leave(self, key: int) -> None:
        if key in self.alive:
            kind, size, _ = self.alive.pop(key)
            self.now[kind] -= size


class Unpadded(TorchDispatchMode):
    """The meta device, with an answer to what model code asks of the input: see `on_meta`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_meta(func, args, kwargs or {})


def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation, where torch's meta device stops short of what a GPU does.

    Masks ask whether all tokens are real, and of one sequence: they are. The product of a mixture of experts has a meta
    kernel for bfloat16 only, a GPU multiplies the other dtypes, too.
    """
    first: Any = args[0] if args else None
    aten = torch.ops.aten
    meta = isinstance(first, torch.Tensor) and first.device.type == "meta"
    if meta and func is aten._local_scalar_dense.default and first.dtype == torch.bool:
        return True
    if meta and func is aten._grouped_mm.default and first.dtype != torch.bfloat16:
        left, right, *rest = args
        return func(left.to(torch.bfloat16), right.to(torch.bfloat16), *rest, **kwargs).to(first.dtype)
    return func(*args, **kwargs)


def _key(tensor: torch.Tensor) -> int:
    """The address of the storage itself: Python objects come and go for one and the same."""
    return tensor.untyped_storage()._cdata


class _Kernel(torch.autograd.Function):
    """The memory of FlashAttention and its like: query, key, value, output and one log-sum-exp per row are kept."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Shapes (batch, heads, tokens, size of a head); the output's last size is the value's."""
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One gradient for each input."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def efficient_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """An attention function for transformers that allocates what a GPU's kernel does, and computes nothing.

    Shared keys and values are repeated for each query head first, as transformers does for padded batches.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return _Kernel.apply(query, key, value).transpose(1, 2).contiguous(), None


def use_efficient_attention(model: Any) -> None:
    """Make a transformers model call `efficient_attention`; an architecture that cannot be told so keeps its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if not model._supports_sdpa:  # attention sinks and the like: transformers runs the quadratic one
        return
    AttentionInterface.register(ATTENTION, efficient_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
