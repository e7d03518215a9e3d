"""The processes that prepare a data set: started, watched, and gone afterwards."""

import contextlib
import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import numpy as np

from base_model import ModelError, visible
from base_model.scratch import scratch_folder
from base_model.text.data import watched
from base_model.text.measure import RECORD, Task

ROWS_FOR_A_PROCESS = 5_000  # fewer are split sooner than another process has started
MOST_PROCESSES = 8
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
SETTINGS |= {"CUDA_VISIBLE_DEVICES": ""}  # texts are split without a GPU, whose memory is the user's
# A launcher's (torchrun's) place for its own process: a child that had it, too, would wait for others.
LAUNCHERS = {"RANK", "LOCAL_RANK", "WORLD_SIZE"}


def in_processes(task: Task) -> tuple[list[bytes], list[str]]:
    """What the processes that share a task wrote, and what TRL warned of in the first of them. Raises ModelError."""
    with scratch_folder() as place:
        folders = [place / str(number) for number in range(_processes(len(task.numbers)))]
        bounds = np.linspace(0, len(task.numbers), len(folders) + 1).astype(int)
        with _ended() as workers:
            for folder, begin, end in zip(folders, bounds, bounds[1:], strict=False):
                part = replace(task, dataset=task.dataset.select(range(begin, end)), numbers=task.numbers[begin:end])
                workers.append(_start(folder, part))
            _wait(workers, folders, len(task.numbers))
            for worker, folder in zip(workers, folders, strict=True):
                _require_done(worker, folder, task.name)
        return [(folder / "rows").read_bytes() for folder in folders], json.loads((folders[0] / "notes").read_text())


def _processes(rows: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_PROCESSES, rows // ROWS_FOR_A_PROCESS))


@contextmanager
def _ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are gone afterwards, also after an interrupt."""
    workers = list[subprocess.Popen[bytes]]()
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start(folder: Path, task: Task) -> subprocess.Popen[bytes]:
    """A process that works on a task, offline, on one core, without a GPU and outside any launcher's group."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS} | SETTINGS
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "base_model.text.measure", str(folder)]
    with (folder / "errors").open("wb") as errors:
        worker = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=errors, stderr=errors)
    with contextlib.suppress(BrokenPipeError), cast(IO[bytes], worker.stdin) as pipe:
        pickle.dump(task, pipe)
    return worker


def _wait(workers: list[subprocess.Popen[bytes]], folders: list[Path], rows: int) -> None:
    """Until all are done or one has failed, with a progress bar where somebody watches."""
    from huggingface_hub.utils import tqdm

    files = [folder / "rows" for folder in folders]
    with tqdm(total=rows, desc="examples split", unit="", delay=3, disable=not watched()) as bar:
        while any(worker.poll() is None for worker in workers) and not any(worker.poll() for worker in workers):
            time.sleep(0.05)
            bar.update(sum(file.stat().st_size for file in files if file.exists()) // RECORD.itemsize - bar.n)


def _require_done(worker: subprocess.Popen[bytes], folder: Path, name: str) -> None:
    if worker.poll() is None or worker.returncode == 0:
        return
    if (folder / "fault").exists():
        raise ModelError((folder / "fault").read_text(encoding="utf-8"))
    if worker.returncode < 0:
        place = (folder / "at").read_bytes() if (folder / "at").exists() else b""
        row = f"{struct.unpack('<q', place)[0]:,}" if place else "0"
        raise ModelError(
            f"{name}, row {row} (counted from 0) or just after: the chat template or the tokenizer ran too long, or "
            "took more than 4 GiB, and was stopped. Look at that row, or download the tokenizer's files again."
        )
    said = (folder / "errors").read_text(errors="replace").strip().rpartition("\n")[2]
    raise ModelError(f"{name} cannot be split into tokens: {visible(said)[:300]}. Correct what it names.")
