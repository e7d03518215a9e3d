"""What joins the rooms reads each thing once."""

import contextlib
import errno
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

import model_tools as mt
from base_model.hub import locate
from base_model.read import folder, headers
from base_model.read.folder import file_sizes


@pytest.fixture
def reads(monkeypatch):
    """How often each file's header is read, by whichever name the rooms know the function."""
    counted, real = Counter(), headers.read_valid_header

    def read_valid_header(path):
        counted[path.name] += 1
        return real(path)

    for place in ("read.headers", "read.folder", "architecture.checks"):
        monkeypatch.setattr(f"base_model.{place}.read_valid_header", read_valid_header)
    return counted


@pytest.mark.parametrize("question", [mt.read_tensors, mt.check_model])
@pytest.mark.parametrize("as_hub_id", [False, True])
def test_each_header_is_read_once(question, as_hub_id, toy, reads, monkeypatch):
    monkeypatch.setattr(locate, "HERE", toy.parent)
    question(f"org/{toy.name}" if as_hub_id else toy)
    shards = {path.name for path in toy.glob("*.safetensors")}
    assert reads.keys() == shards and set(reads.values()) == {1}


def test_a_folder_that_is_cut_short_is_not_taken_for_the_hubs(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(locate, "HERE", tmp_path)
    (tmp_path / "toy").mkdir()
    for path in toy.iterdir():
        (tmp_path / "toy" / path.name).write_bytes(
            path.read_bytes()[:-1] if "00003" in path.name else path.read_bytes()
        )
    assert folder.completeness(tmp_path / "toy").missing
    with pytest.raises(mt.ModelError, match="Hub"):
        mt.read_tensors("org/toy")


# --- Folders that are no model's


def test_what_may_not_be_looked_at_is_left_out(toy, tmp_path, monkeypatch):
    place, real = shutil.copytree(toy, tmp_path / "toy"), Path.stat

    def stat(path, **options):
        if path.name == "config.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert file_sizes(place).keys() == {path.name for path in toy.iterdir()} - {"config.json"}


@pytest.mark.parametrize("place", [os.sep, "/proc", "/dev"])
def test_the_whole_disk_is_a_table_or_a_sentence(place):
    start = time.monotonic()
    for question in (mt.list_files, mt.directory_tree):
        with contextlib.suppress(mt.ModelError):
            question(place)
    assert time.monotonic() - start < 30


def test_a_million_empty_folders_are_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MAX_FILES", 50)
    (tmp_path / "config.json").write_text("{}")
    for number in range(60):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(mt.ModelError, match="more than 50 files and folders"):
        mt.list_files(tmp_path)
