"""A full memory, told alike on every device: torch says it in a different way on each."""

from base_model import ModelError, brief

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
