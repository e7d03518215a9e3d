"""Folders for a while, in the system's place for temporary files; what a killed process left goes at the next run."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "base-model-"
LOCK = ".in-use"  # held by the process whose folder it is; the system lets go of it when that ends, however it ends
GRACE = 60  # seconds that a process may take to lock the folder that it has just made


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new, empty folder, gone afterwards."""
    from filelock import FileLock

    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = FileLock(folder / LOCK)
    lock.acquire()
    try:
        place = folder / "here"
        place.mkdir()
        yield place
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Delete the folders that this module made for processes that are no more."""
    from filelock import FileLock, Timeout

    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(Timeout, OSError):  # in use; or of another user, or just gone
            if time.time() - lock.stat().st_mtime > GRACE and not lock.parent.is_symlink():
                with FileLock(lock, timeout=0):
                    shutil.rmtree(lock.parent, ignore_errors=True)
