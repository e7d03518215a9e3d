"""What this machine can really use: free RAM, what Apple's MPS recommends, free memory of the GPUs."""

from pathlib import Path

import pandas as pd

from base_model import format_bytes, warn

CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limits


def this_machine() -> pd.DataFrame:
    """One row per device; columns `device` ("cpu", "mps", "cuda:0", ...), `name`, `total_bytes`, `usable_bytes`.

    Usable is what is free now: for the CPU the available RAM, or less in a container with a limit; for MPS what
    `torch.mps.recommended_max_memory()` leaves (beyond it macOS swaps); for CUDA the free memory of each GPU.
    """
    rows = [_cpu(), *_accelerators()]
    return pd.DataFrame(rows, columns=["device", "name", "total_bytes", "usable_bytes"])


def _cpu() -> tuple[str, str, int, int]:
    import platform

    import psutil

    memory = psutil.virtual_memory()
    total, usable = memory.total, memory.available
    if (limit := _cgroup("memory.max")) is not None and limit < total:
        used = (_cgroup("memory.current") or 0) - _file_cache()
        total, usable = limit, min(usable, limit - max(used, 0))
    return "cpu", platform.processor() or platform.machine(), total, max(usable, 0)


def _cgroup(name: str) -> int | None:
    """A number that the container's control group states; None where there is none."""
    path = CGROUP / name
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def _file_cache() -> int:
    """What the container's use counts, but gives back when asked: pages of files that were read."""
    path = CGROUP / "memory.stat"
    fields = dict(line.split() for line in path.read_text().splitlines()) if path.is_file() else {}
    return int(fields.get("inactive_file", 0))


def _accelerators() -> list[tuple[str, str, int, int]]:
    import torch

    if torch.backends.mps.is_available():
        limit = torch.mps.recommended_max_memory()
        return [("mps", _apple_chip(), limit, max(limit - torch.mps.driver_allocated_memory(), 0))]
    rows = []
    for number in range(torch.cuda.device_count()):
        usable, total = torch.cuda.mem_get_info(number)
        rows.append((f"cuda:{number}", torch.cuda.get_device_name(number), total, usable))
    return rows


def _apple_chip() -> str:
    """What macOS calls its chip, such as "Apple M1"; its CPU and GPU have one name."""
    import subprocess

    asked = subprocess.run(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, check=False)
    return asked.stdout.decode(errors="replace").strip() or "Apple GPU"


def row_of_machine(device: str) -> pd.Series:
    """The row of `this_machine` for a device, by which it is named; "cuda" is the first of them."""
    table = this_machine().set_index("device")
    return table.loc[device if device in table.index else f"{device}:0"]


def usable_bytes(device: str) -> int:
    """What is free on a device of `this_machine`; "cuda" is the first of them, "auto" all of them together."""
    return int(this_machine()["usable_bytes"].sum() if device == "auto" else row_of_machine(device)["usable_bytes"])


def warn_if_too_large(weights_bytes: int, device: str) -> None:
    """Say so before anything is loaded when the weights alone are more than the device has free."""
    free = usable_bytes(device)
    if weights_bytes > free:
        warn(
            f"The weights take {format_bytes(weights_bytes)}; {device} has {format_bytes(free)} free. The machine may "
            "swap or stop. Close other programs, or choose a smaller model, dtype or quantisation (`plan_inference`)."
        )
