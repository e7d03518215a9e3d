"""What a process that was killed leaves on the disk is gone after the next run, and nothing else is."""

import os
import subprocess
import sys
import tempfile
import time

import pytest

from base_model import scratch
from base_model.show.saving import write_whole
from tests.conftest import ROOT

HOLD = """
import time
from base_model.scratch import scratch_folder
with scratch_folder() as place:
    (place / "rows").write_text("x")
    print(place, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The system's place for temporary files, for this test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_scratch_folder_is_empty_and_gone_afterwards(place):
    with pytest.raises(KeyError), scratch.scratch_folder() as folder:
        assert folder.is_dir() and not list(folder.iterdir())
        (folder / "file").write_text("x")
        raise KeyError
    assert not list(place.iterdir())


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(place):
    more = {"TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", HOLD], env=os.environ | more, stdout=subprocess.PIPE, text=True)
    try:
        (folder,) = place.glob(child.stdout.readline().strip().rpartition("/here")[0].rpartition("/")[2])
        age(folder / scratch.LOCK, 100)
        scratch.remove_abandoned()
        assert (folder / "here" / "rows").read_text() == "x"
    finally:
        child.kill()
        child.communicate()
    age(folder / scratch.LOCK, 10)
    scratch.remove_abandoned()
    assert folder.exists()  # too young: a process may be about to lock it
    age(folder / scratch.LOCK, 100)
    with scratch.scratch_folder():
        assert not folder.exists()


def test_what_is_not_its_own_stays(place):
    (place / "base-model-mine").mkdir()
    (place / "other").mkdir()
    (place / "other" / scratch.LOCK).touch()
    (place / "base-model-link").symlink_to(place / "other")
    age(place / "other" / scratch.LOCK, 100)
    scratch.remove_abandoned()
    assert {path.name for path in place.iterdir()} == {"base-model-mine", "other", "base-model-link"}
    assert (place / "other" / scratch.LOCK).exists()


def test_files_that_a_killed_process_did_not_finish_go_at_the_next_writing(tmp_path):
    old, young = (tmp_path / f".base-model-unfinished-{name}" for name in ("old", "young"))
    other = tmp_path / ".unfinished-mine"
    for path in (old, young, other):
        path.write_text("half")
    age(old, 4000)
    age(young, 3000)
    age(other, 4000)
    write_whole({tmp_path / "whole": b"x"})
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, "whole"}
