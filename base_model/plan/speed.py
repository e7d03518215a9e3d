"""How fast this machine reads its memory and multiplies: what sets the pace of generating and of tuning alike.

Bandwidth by matrix-vector products, which is what decoding is made of; operations per second by the three matrix
products of a linear layer's training step.
"""

import statistics
import time
from typing import Any

from base_model import ModelError, brief

SIDE = 4096  # of the square matrices that are read: 32 MiB each in 16 bits
TOTAL_BYTES = 512 << 20  # of all of them together: no cache holds that
SMALL, LARGE = 256, 1024  # sides of the matrices that are multiplied
QUICK = 0.02  # seconds for a round of small products: a machine that needs longer gets no larger ones
ROUNDS = 3
LEAST_ROUNDS = 4  # of each kernel that reads memory, one of them a warm-up


def memory_bandwidth(device: str = "cpu", dtype: str = "bfloat16", seconds: float = 1.0) -> float:
    """The bytes per second that matrix-vector products read on `device`, the best round of about `seconds` of them.

    Weights as large as those of a small model, each used once per round: the caches cannot help. On the CPU the faster
    of torch's two kernels counts (see run/kernels.py). `dtype` is a 16- or 32-bit float of torch.
    Raises ModelError when the device cannot hold or multiply them.
    """
    return bandwidth_and_noise(device, dtype, seconds)[0]


def bandwidth_and_noise(device: str, dtype: str, seconds: float = 1.0) -> tuple[float, float]:
    """`memory_bandwidth`, and how much longer than its best round the median round took (0.2: 20%)."""
    import torch

    try:
        kind = getattr(torch, dtype)
        count = TOTAL_BYTES // (SIDE * SIDE * kind.itemsize)
        matrices = [torch.ones(SIDE, SIDE, dtype=kind, device=device) for _ in range(count)]
        vector = torch.ones(1, SIDE, dtype=kind, device=device)
        times = _rounds(matrices, vector, seconds)
    except (RuntimeError, AttributeError, MemoryError, TypeError) as error:
        raise ModelError(
            f"The bandwidth of {device} in {dtype} cannot be measured: {brief(error)}. Free some memory."
        ) from error
    best = min(times)
    return sum(matrix.nbytes for matrix in matrices) / best, statistics.median(times) / best - 1


def _rounds(matrices: list[Any], vector: Any, seconds: float) -> list[float]:
    """The time of each round over all matrices; the first, a warm-up, left out. On the CPU of the faster kernel.

    The two take turns, with and without oneDNN.
    """
    import torch

    before, kernels = torch.backends.mkldnn.enabled, (True, False) if vector.device.type == "cpu" else (True,)
    times: dict[bool, list[float]] = {kernel: [] for kernel in kernels}
    end = time.perf_counter() + seconds
    try:
        while len(times[True]) < LEAST_ROUNDS or time.perf_counter() < end:
            for kernel in kernels:
                use_onednn(kernel)
                times[kernel].append(_round(matrices, vector))
    finally:
        use_onednn(bool(before))
    return min((rounds[1:] for rounds in times.values()), key=min)


def _round(matrices: list[Any], vector: Any) -> float:
    import torch

    start = time.perf_counter()
    for matrix in matrices:
        torch.nn.functional.linear(vector, matrix)
    if vector.device.type != "cpu":
        torch.accelerator.synchronize(vector.device)
    return time.perf_counter() - start


def cpu_flops(dtype: str) -> float:
    """Floating-point operations per second of this CPU in a linear layer's training step; a second at most.

    The median over rounds of three products of square matrices: the output, the gradient of the input, that of the
    weight. A CPU without instructions for a 16-bit dtype runs these at very different speeds, so one would not do.
    """
    import torch

    kind = getattr(torch, dtype)
    _products(SMALL, kind)  # the first call of a product also chooses its kernel
    times, side = [_products(SMALL, kind) for _ in range(ROUNDS)], SMALL
    if dtype == "float32" or min(times) < QUICK:  # as it should be; the small ones spend their time on starting threads
        times, side = [_products(LARGE, kind) for _ in range(ROUNDS)], LARGE
    return 6 * side**3 / statistics.median(times)


def _products(side: int, kind: Any) -> float:
    """The seconds for one round of the three products: 2 x side^3 operations each."""
    import torch

    one, other = torch.ones(side, side, dtype=kind), torch.ones(side, side, dtype=kind)
    start = time.perf_counter()
    torch.nn.functional.linear(one, other)
    torch.mm(one, other)
    torch.mm(one.t(), other)
    return time.perf_counter() - start


def use_onednn(choice: bool) -> None:
    """Switch oneDNN for the passes to come; torch's own default is True."""
    import torch

    torch.backends.mkldnn.enabled = choice  # type: ignore[assignment]  # a property, set for the whole process
