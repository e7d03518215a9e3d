"""`fetch_model` on a folder that is there: complete, or what it lacks. Downloads are in test_hub.py."""

import shutil

import pytest

import model_tools as mt

SHARD = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize("name", ["toy", "base_toy", "demo"])
def test_a_complete_folder_is_returned(name, request):
    folder = request.getfixturevalue(name)
    assert mt.fetch_model(folder) == folder
    assert mt.fetch_model(str(folder)) == folder


def test_a_model_is_found_beside_the_module_by_name_and_by_hub_id(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mt.fetch_model(demo.name) == demo
    assert mt.fetch_model(f"HuggingFaceTB/{demo.name}") == demo
    assert mt.read_tensors(f"HuggingFaceTB/{demo.name}")["parameters"].sum() == 134_515_008


def test_a_folder_that_exists_wins_over_a_hub_id(toy, tmp_path, monkeypatch):
    shutil.copytree(toy, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert str(mt.fetch_model("org/name")) == "org/name"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer is missing"),
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
        (lambda folder: shutil.copy(folder / "config.json", folder / SHARD), f"{SHARD} is a JSON text"),
        (lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-1]), f"{SHARD} has 40,207 bytes"),
        (lambda folder: (folder / SHARD).open("ab").write(b"xx"), f"{SHARD} has 40,210 bytes"),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "3 of 3 shards are there, but not their index",
        ),
    ],
)
def test_an_incomplete_folder_says_what_is_missing(toy, tmp_path, damage, words):
    folder = shutil.copytree(toy, tmp_path / "broken")
    damage(folder)
    with pytest.raises(mt.ModelError, match=words):
        mt.fetch_model(folder)


def test_what_is_neither_a_folder_nor_a_hub_id_is_told():
    with pytest.raises(mt.ModelError, match=r"does not exist.*make demo"):
        mt.fetch_model("no/such/model/anywhere")
