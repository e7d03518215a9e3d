"""Where the tuning would run: a card by its name or its memory, or this machine; and whether a step fits there."""

from dataclasses import dataclass

import pandas as pd

from base_model import ModelError, format_bytes
from base_model.plan.machine import this_machine, usable_bytes
from base_model.train.gpus import card, is_cpu, this_card

FITTING = ("fits", "tight")  # verdicts of what can be run
# Reserved over allocated memory, in 69 runs on a T4 with sdpa (fitcheck-llm): 1.04 to 1.25, mostly below 1.10.
RESERVED, RESERVED_AT_BEST = 1.10, 1.04
CONTEXT_BYTES = 600 << 20  # what a process and the libraries' kernels hold beside torch's allocator
# What the driver keeps of a card's memory before anything runs: this, and one part in `OF_DRIVER`. The rest is what
# torch's messages call "total capacity": 11.66 of 12 GiB, 14.56 of 15 (T4), 23.52 of 24, 44.42 of 45 (L40S), 79.14 and
# 79.25 of 80 (A100); measured: 79.18 of 80 (H100), 139.8 of 141 (H200).
DRIVER_BYTES, OF_DRIVER = 300 << 20, 160
# Cards whose error correction takes a sixteenth of the memory that is sold: those with GDDR6 in a data centre.
CORRECTED = ("T4", "A10", "A10G", "L4", "L40", "L40S")


@dataclass(frozen=True)
class Place:
    """Where the tuning would run: `usable` bytes, and `on`, the row of `gpus`; None where only the memory is known."""

    name: str
    usable: int
    on: pd.Series | None
    cpu: bool = False

    @property
    def half(self) -> bool:
        """Whether 16 bits are computed as float16 here."""
        return self.on is not None and pd.isna(self.on["bf16_flops"])

    @property
    def apple(self) -> bool:
        """Whether this is an Apple chip: MPS takes bfloat16 even if the chip does not have it."""
        return self.on is not None and self.on["gpu"].startswith("Apple")


def place_of(gpu: str | None, memory: str | int | None) -> Place:
    """A card by its name, one of some `memory` ("24GiB"), or this machine without either. Raises ModelError."""
    if memory is not None:
        on = card(gpu) if gpu is not None else None
        usable = usable_of(bytes_of(memory), "" if on is None else on["gpu"])
        if usable <= 0:
            least = format_bytes(CONTEXT_BYTES + DRIVER_BYTES)
            raise ModelError(f"A card needs more than {least}: its driver and the kernels alone take that much.")
        return Place(gpu or f"a card with {format_bytes(bytes_of(memory))}", usable, on)
    if gpu is None or is_cpu(gpu):
        device = "cpu" if gpu else str(this_machine()["device"].iloc[-1])
        return Place(f"this machine's {device}", usable_bytes(device), this_card(device), is_cpu(device))
    on = card(gpu)
    return Place(on["gpu"], usable_of(int(on["memory_bytes"]), on["gpu"]), on)


def usable_of(sold: int, gpu: str) -> int:
    """What torch can allocate of a card's memory, in bytes; of an Apple chip's, what macOS recommends for the GPU."""
    if gpu.startswith("Apple"):
        return sold * 2 // 3 if sold <= 32 * 2**30 else sold * 3 // 4
    seen = sold - (sold // 16 if set(gpu.split()) & set(CORRECTED) else 0)
    return seen - seen // OF_DRIVER - DRIVER_BYTES - CONTEXT_BYTES


def bytes_of(memory: str | int) -> int:
    """Bytes of "24GiB", "24 GB" or 24_000_000_000. Raises ModelError for anything else."""
    units = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    text = str(memory).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip() or "b"
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if isinstance(memory, bool) or not 2**20 <= size <= 2**50:
        raise ModelError(f'`memory` is a size such as "24GiB", not {memory!r}.')
    return size


def needed(peak: float, reserved: float = RESERVED) -> float:
    """What a card must have for this allocated peak."""
    return peak * reserved


def verdict_of(peak: float, usable: int) -> str:
    """Whether a card of so many usable bytes has what a step of this allocated peak needs."""
    if needed(peak, RESERVED_AT_BEST) > usable:
        return "does not fit"
    return "fits" if needed(peak) <= usable else "tight"
