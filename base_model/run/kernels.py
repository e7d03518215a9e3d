"""Which of torch's two CPU kernels makes single tokens: a matrix times one vector, over and over.

For 16-bit weights torch hands matrix products to oneDNN, which is right for a prompt of many tokens. For a single
token oneDNN may reach less than half of the memory's bandwidth, and torch's own matrix-vector kernel nearly all of it
(torch 2.13 on x86: 9 against 24 GB/s); without oneDNN, however, the prompt takes six times as long. So the choice is
made per forward pass, by its number of tokens. The two round differently, and greedy answers may part where two tokens
are alike: the default depends on the kind of machine alone, never on a timing.
"""

import platform
import time
from typing import Any

from base_model import ModelError
from base_model.plan.speed import use_onednn

SAMPLE_BYTES = 48 << 20  # of weights: more than most caches hold, read in a few milliseconds
LARGEST_BYTES = 8 << 20  # of one matrix, so that there are several
SECONDS = 0.2  # what measuring may cost at loading, three rounds at least


DEFAULTS = {"x86_64": "torch", "AMD64": "torch"}  # of a machine by its kind; oneDNN, torch's own choice, elsewhere
MEASURED = "measured"


def choose_kernel(model: Any, wanted: str | None = None) -> str:
    """Install the kernel for one-token passes; its name.

    `wanted` is "torch", "oneDNN", "measured" (the faster on this model's weights) or None, the default of this kind of
    machine. Only a 16-bit model on the CPU has the choice: "default" for others. Raises ModelError for other names.
    """
    import torch

    if wanted not in (None, "torch", "oneDNN", MEASURED):
        raise ModelError(f'`kernel` is "torch", "oneDNN" or "{MEASURED}", not {wanted!r}.')
    matrices = _sample(model)
    if not (matrices and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return "default"
    name = _faster(matrices) if wanted == MEASURED else wanted or DEFAULTS.get(platform.machine(), "oneDNN")
    if name == "torch":
        # Hooks and no new forward(): these take the module as an argument, so a deep copy of the model keeps working.
        model.register_forward_pre_hook(_before, with_kwargs=True)
        model.register_forward_hook(_after, always_call=True)
    return name


def _faster(matrices: list[Any]) -> str:
    """The kernel that takes less time for these matrices, each times a vector."""
    import torch

    with torch.inference_mode():
        _seconds(matrices, onednn=True)  # the first pass reads the weights from the disk
        pairs: list[tuple[float, float]] = []
        end = time.perf_counter() + SECONDS
        while len(pairs) < 3 or time.perf_counter() < end:
            pairs.append((_seconds(matrices, onednn=False), _seconds(matrices, onednn=True)))
    own, onednn = (min(times) for times in zip(*pairs, strict=True))  # by turns, the best: other programs run too
    return "torch" if own < onednn else "oneDNN"


def _sample(model: Any) -> list[Any]:
    """Some 16-bit weight matrices of a model that lies on the CPU."""
    import torch

    sample, size = [], 0
    for parameter in model.parameters():
        suits = parameter.ndim == 2 and parameter.dtype in (torch.bfloat16, torch.float16)
        if suits and parameter.device.type == "cpu" and size < SAMPLE_BYTES:
            sample.append(parameter[: LARGEST_BYTES // (2 * parameter.shape[1])])
            size += sample[-1].nbytes
    return sample


def _seconds(matrices: list[Any], onednn: bool) -> float:
    """The time for each matrix times one vector."""
    import torch

    vectors = [torch.ones(1, matrix.shape[1], dtype=matrix.dtype) for matrix in matrices]
    try:
        use_onednn(onednn)
        start = time.perf_counter()
        for matrix, vector in zip(matrices, vectors, strict=True):
            torch.nn.functional.linear(vector, matrix)
        return time.perf_counter() - start
    finally:
        use_onednn(True)


def _before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tokens = kwargs.get("input_ids", args[0] if args else None)
    use_onednn(tokens is None or tokens.numel() > 1)


def _after(model: Any, args: tuple[Any, ...], output: Any) -> None:
    use_onednn(True)
