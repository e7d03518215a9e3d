"""Files that this project writes: whole or not at all, and never through a link."""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from base_model import visible

UNFINISHED = ".base-model-unfinished-"  # what a file is called until it is whole, with something random behind it
STALE = 3600  # seconds; a file of this project is written in one


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files beside their places first, then move them all there: a full disk leaves what was there before."""
    waiting: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            waiting[path] = _write_beside(path, content)
        for path, beside in waiting.items():
            beside.replace(path)  # of a link, the link itself
    finally:
        for beside in waiting.values():
            with suppress(FileNotFoundError):  # moved already
                beside.unlink()


def _write_beside(path: Path, content: bytes) -> Path:
    _remove_abandoned(path.parent)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED)
    beside = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        beside.chmod(0o666 & ~_umask())  # mkstemp's own files are for one user alone
    except BaseException:
        beside.unlink()
        raise
    return beside


def _remove_abandoned(folder: Path) -> None:
    """Delete what a process that was killed has left, by its name and age."""
    for beside in folder.glob(f"{UNFINISHED}*"):
        with suppress(FileNotFoundError):
            if time.time() - beside.lstat().st_mtime > STALE:
                beside.unlink()


def _umask() -> int:
    """The user's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def reason(error: BaseException) -> str:
    """Why a path cannot be written: the system's words, or Python's for a name that no disk can hold."""
    return visible(getattr(error, "strerror", None) or str(error))
