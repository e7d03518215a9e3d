"""Where the tuning would run: a card by its name or its memory, or this machine; and whether a step fits there."""

from dataclasses import dataclass

import pandas as pd

from base_model import ModelError, format_bytes
from base_model.plan.machine import this_machine
from base_model.train.gpus import card, is_cpu, this_cpu

FITTING = ("fits", "tight")  # verdicts of what can be run
# Reserved over allocated memory, in 69 runs on a T4 with sdpa (fitcheck-llm): 1.04 to 1.25, mostly below 1.10.
RESERVED, RESERVED_AT_BEST = 1.10, 1.04
CONTEXT_BYTES = 600 << 20  # what the driver and the libraries' kernels hold beside torch's allocator
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
        """Whether 16 bits mean float16 here."""
        return self.on is not None and pd.isna(self.on["bf16_flops"])


def place_of(gpu: str | None, memory: str | int | None) -> Place:
    """A card by its name, one of some `memory` ("24GiB"), or this machine without either. Raises ModelError."""
    if memory is not None:
        usable = int(bytes_of(memory)) - CONTEXT_BYTES
        if usable <= 0:
            raise ModelError(f"A card needs more than {format_bytes(CONTEXT_BYTES)}: its driver alone takes that much.")
        on = card(gpu) if gpu is not None else None
        return Place(gpu or f"a card with {format_bytes(bytes_of(memory))}", usable, on)
    if gpu is None or is_cpu(gpu):
        machine = this_machine().iloc[-1] if gpu is None else this_machine().set_index("device", drop=False).loc["cpu"]
        cpu = machine["device"] == "cpu"
        return Place(
            f"this machine's {machine['device']}", int(machine["usable_bytes"]), this_cpu() if cpu else None, cpu
        )
    on = card(gpu)
    words = on["gpu"].split()
    sold = int(on["memory_bytes"])
    return Place(on["gpu"], sold - (sold // 16 if set(words) & set(CORRECTED) else 0) - CONTEXT_BYTES, on)


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
