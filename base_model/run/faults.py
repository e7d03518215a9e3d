"""What ends a run, in words: a full memory, which torch tells in a different way on each device, and cut files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, visible

WORDS = (
    "out of memory",  # CUDA, and MPS: "MPS backend out of memory"
    "can't allocate memory",  # CPU on Linux: "DefaultCPUAllocator: can't allocate memory"
    "not enough memory",  # CPU on Windows and macOS
    "cannot allocate memory",  # the operating system itself, when a file is mapped
    "invalid buffer size",  # MPS, for one tensor too large
)


def out_of_memory(error: BaseException) -> bool:
    """Does this error say that a memory is full? By its type, or by what each device's allocator writes."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in WORDS)


def memory_error(error: BaseException, doing: str, device: str) -> ModelError:
    """What to raise instead: where the memory ended, the allocator's own words, and the smaller things to try."""
    steps = ["a smaller model, or one stored in fewer bits", "closing other programs and notebooks"]
    if doing == "generate":
        steps.insert(0, "fewer new tokens or a shorter prompt")
    else:
        steps.insert(0, 'dtype="bfloat16", which takes half of float32')
    if not device.startswith("cpu"):
        steps.append('device="cpu", or device="auto", which spreads the model over all memories')
    return ModelError(f"The memory of {device} is too small to {doing}: {brief(error)}. Try {'; '.join(steps)}.")


def note_files(model: Any, paths: Iterable[Path]) -> None:
    """Remember how long the files of the weights are: on the CPU they are read as they are used, page by page."""
    model.weight_files = {path: path.stat().st_size for path in paths}


def require_whole_files(model: Any) -> None:
    """Stop before weights are used whose file was cut short since: the operating system would end Python (SIGBUS).

    A file that is cut in the middle of a run still does that. Raises ModelError.
    """
    if all(parameter.device.type != "cpu" for parameter in model.parameters()):
        return  # an accelerator holds a copy
    for path, size in getattr(model, "weight_files", {}).items():
        if path.exists() and path.stat().st_size < size:  # a file that was deleted stays readable
            words = f"{visible(path.name)} was cut short after it was loaded"
            raise ModelError(f"{words}. Download it again, then reload the model.")
