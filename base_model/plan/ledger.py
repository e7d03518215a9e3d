"""Memory without memory: who is alive, of which kind, and how much at most. Imports torch: import it late.

The tensors are those of torch's meta device, or fake ones (`FakeTensorMode`), whose storages are on it.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_OPERATIONS = 500_000  # a step of a model of 100 layers takes 50,000 to 250,000, seconds to half a minute
HOST = "host"  # the kind that lies in the machine's own memory, beside the card's
PINNED = torch.device("meta")  # what tensors there say, whose copies come back to the card
ALLOCATION = 512  # bytes: what CUDA's caching allocator rounds up to

_aten = torch.ops.aten
# Half of all operations of a step. FakeTensorMode takes 120 us for each, most of it for the key of its cache; torch's
# meta kernels, which answer in C++, take 30.
QUICK = {
    _aten.detach.default, _aten.view.default, _aten._unsafe_view.default, _aten.t.default, _aten.transpose.int,
    _aten.slice.Tensor, _aten.mm.default, _aten._to_copy.default,
}  # fmt: skip


class Ledger(TorchDispatchMode):
    """While it is entered, every new storage without memory is added up, by kind, until it is freed.

    A storage is of `kind` when it is first seen; scores over the vocabulary are "logits" instead. `enter` moves it.
    `rounding` is what the allocator rounds sizes up to. `moment` is what the step is doing. `observe` is called with
    each operation of the step, its arguments, its result, and how many `times` the step has it.
    """

    def __init__(self, vocabulary: int, rounding: int = 1, observe: Callable[..., None] | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rounding = rounding
        self.kind = "activations"  # of what is made next
        self.moment = "forward"
        self.blind = False  # while what is made is made by the planning only
        self.operations = 0
        self.times = 1
        self._observe = observe
        self.started = False
        # By storage: its kind, its bytes, and the reference that tells its end.
        self.alive: dict[int, tuple[str, int, Any]] = {}
        self.now: Counter[str] = Counter()
        self._forget()

    def start(self) -> None:
        """The measured step begins: from here on, `most` of each kind, all kinds `at_peak`, `peaks` of each moment."""
        self._forget()
        self.started = True

    def _forget(self) -> None:
        self.most, self.at_peak = Counter(self.now), Counter(self.now)
        self.total = self.peak = self.start_total = sum(self.now.values()) - self.now[HOST]
        self.peak_moment = self.moment
        self.peaks = Counter({self.moment: self.total})

    @contextmanager
    def making(self, kind: str, moment: str | None = None) -> Iterator[None]:
        """Inside, what is made is of this kind; the `moment` changes with it if given, and stays changed."""
        before, self.kind = self.kind, kind
        self.moment = moment or self.moment
        try:
            yield
        finally:
            self.kind = before

    def __enter__(self) -> "Ledger":
        """Follow storages that are resized, too: FSDP frees by that, and it is no operation that a mode sees."""
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resized  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Leave resizing as it was."""
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    @property
    def _resized(self) -> Any:
        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            out = self._resize(storage, size)
            self._measure(storage)
            return out

        return resize_

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # half of all calls: answered at once
        if DTensor in types:
            return NotImplemented  # it comes back as an operation on this device's shard
        if self.blind:
            return on_meta(func, args, kwargs or {})
        if kwargs and kwargs.get("pin_memory"):
            return self._pinned(func, args, kwargs)
        self.operations += 1
        if self.operations > MOST_OPERATIONS:
            raise RuntimeError(f"more than {MOST_OPERATIONS:,} operations, such as when tokens are taken one by one")
        in_place = func is torch.ops.aten.add.Tensor and self._accumulates(*args, **kwargs or {})
        out = args[0] if in_place else on_meta(func, args, kwargs or {})
        if self.started and self._observe:
            self._observe(func, args, kwargs or {}, out, self.times)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in self.alive:
                scores = tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary
                self.enter(tensor, "logits" if scores and self.kind == "activations" else self.kind)
        return out

    def _pinned(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Memory of the machine that a card reads and writes directly."""
        out = on_meta(func, args, kwargs | {"pin_memory": False})
        self.enter(out, HOST)
        if isinstance(out, FakeTensor):
            out.fake_device = PINNED
        return out

    def _accumulates(self, left: Any, right: Any, **more: Any) -> bool:
        """Whether autograd adds up two gradients: it does so in place, but not for tensors of a class of their own."""
        if more or self.moment != "backward" or torch.is_grad_enabled() or not isinstance(right, torch.Tensor):
            return False
        return without_memory(left) and left.shape == right.shape and left.dtype == right.dtype

    def enter(self, tensor: torch.Tensor, kind: str) -> None:
        """Count a tensor's storage as `kind` from now on, whatever it was before. Nothing for one with memory."""
        tensor = local(tensor)
        if without_memory(tensor):
            self.count(tensor, kind)

    def count(self, tensor: torch.Tensor, kind: str) -> None:
        """The same for any tensor, with memory or without."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self.alive:
            self._leave(key)
        size = -(-storage.nbytes() // self.rounding) * self.rounding
        reference = weakref.ref(storage, lambda _: self._leave(key))
        self.alive[key] = kind, size, reference
        self._add(kind, size)

    def kind_of(self, tensor: torch.Tensor) -> str | None:
        """What a tensor's storage counts as; None for one that was never seen."""
        return self.alive.get(_key(local(tensor)), (None,))[0]

    def _add(self, kind: str, size: int) -> None:
        self.now[kind] += size
        self.most[kind] = max(self.most[kind], self.now[kind])
        if kind != HOST:
            self.total += size
        self.peaks[self.moment] = max(self.peaks[self.moment], self.total)
        if self.total > self.peak:
            self.peak, self.at_peak, self.peak_moment = self.total, Counter(self.now), self.moment

    def _measure(self, storage: torch.UntypedStorage) -> None:
        """Count a storage that was resized anew."""
        key = storage._cdata
        if key in self.alive:
            kind, _, reference = self.alive[key]
            self._leave(key)
            size = -(-storage.nbytes() // self.rounding) * self.rounding
            self.alive[key] = kind, size, reference
            self._add(kind, size)

    def _leave(self, key: int) -> None:
        if key in self.alive:
            kind, size, _ = self.alive.pop(key)
            self.now[kind] -= size
            if kind != HOST:
                self.total -= size


class Unpadded(TorchDispatchMode):
    """The meta device, with an answer to what model code asks of the input: see `on_meta`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return on_meta(func, args, kwargs or {})


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This device's part of a tensor: all of it, unless it is sharded."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def without_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor is on the meta device, or fake."""
    return tensor.untyped_storage().device.type == "meta"


def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation, where a tensor without values stops short of what a GPU does.

    Masks ask whether all tokens are real, and of one sequence: they are, and all of them are chosen. The product of a
    mixture of experts has a meta kernel for bfloat16 only, a GPU multiplies the other dtypes, too. bitsandbytes
    unpacks a 4-bit weight before it multiplies more than a few tokens.
    """
    first: Any = args[0] if args else None
    if func in QUICK and "device" not in kwargs and _all_fake(args):
        with in_kernel_invocation_manager(first.fake_mode):
            out = func(*args, **kwargs)
        return FakeTensor(first.fake_mode, out, first.fake_device)
    if not (isinstance(first, torch.Tensor) and without_memory(first)):
        return func(*args, **kwargs)
    if func is _aten.copy_.default and getattr(first, "fake_device", None) == PINNED:
        return first
    if func is _aten._local_scalar_dense.default:
        return _answer(first.dtype)
    if func is _aten.index.Tensor and _is_mask(args[1]):
        return first.reshape(-1, *first.shape[args[1][0].ndim :]).clone()
    if func is _aten._grouped_mm.default and first.dtype != torch.bfloat16:
        left, right, *rest = args
        return func(left.to(torch.bfloat16), right.to(torch.bfloat16), *rest, **kwargs).to(first.dtype)
    if func is torch.ops._c10d_functional.wait_tensor.default:
        return first  # its meta kernel makes another one
    if func.namespace == "bitsandbytes" and func._opname == "gemm_4bit":
        unpacked = torch.empty(tuple(args[2]), dtype=first.dtype, device=first.device)
        out = func(*args, **kwargs)
        del unpacked  # alive during the product
        return out
    return func(*args, **kwargs)


def _all_fake(args: Any) -> bool:
    return all(type(one) is FakeTensor for one in args if isinstance(one, torch.Tensor))


def _answer(dtype: torch.dtype) -> bool | int | float:
    """What is said of a value that is not there: yes, or one."""
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _is_mask(indices: Any) -> bool:
    return len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool


def _key(tensor: torch.Tensor) -> int:
    """The address of the storage itself: Python objects come and go for one and the same."""
    return tensor.untyped_storage()._cdata
