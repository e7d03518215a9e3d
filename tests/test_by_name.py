"""What joins the rooms reads each thing once."""

import contextlib
import errno
import json
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
from tests.cards import with_card


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


# --- A folder with nothing but a config.json


@pytest.fixture
def described(toy, tmp_path):
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "config.json").write_bytes((toy / "config.json").read_bytes())
    return folder


def test_without_weights_the_tensors_are_those_of_the_architecture(toy, described, capsys):
    columns = ["tensor", "dtype", "shape", "parameters", "bytes", "component"]
    planned, read = (
        table.sort_values("tensor")[columns] for table in (mt.list_tensors(described), mt.read_tensors(toy))
    )
    assert planned.to_numpy().tolist() == read.to_numpy().tolist()
    assert "There are no weights to read" in capsys.readouterr().out
    assert mt.list_tensors(toy).equals(mt.read_tensors(toy))
    assert mt.compare_models([described])["parameters"].tolist() == [26_912]


@pytest.mark.parametrize("kind", ["xlm-roberta", "llama"])
def test_a_head_of_its_own_counts_where_the_architecture_ties_none(kind, described):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    (described / "config.json").write_text(
        json.dumps({"model_type": kind, "vocab_size": 512, "tie_word_embeddings": True} | sizes)
    )
    count = sum(parameter.numel() for parameter in mt.skeleton(described).parameters())
    assert mt.list_tensors(described)["parameters"].sum() == count


def test_layers_that_differ_are_compared_without_their_sizes(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "odd")
    config = json.loads((toy / "config.json").read_text()) | {"per_layer_config": {"0": {"num_key_value_heads": 4}}}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.warns(mt.ModelWarning, match="sizes are left out"):
        assert mt.compare_models([tmp_path / "odd"])["parameters"].tolist() == [26_912]


def test_it_is_opened_with_a_sentence_and_has_no_data(described, toy, capsys):
    assert mt.open_model(str(described)) == described
    assert mt.open_data(described) is None
    said = capsys.readouterr().out
    assert "no weights" in said and "no tokenizer" in said
    assert mt.open_data(toy) == mt.example_data()
    from tests.folders import write_toy

    plain = write_toy(described.parent / "plain", chat=False)
    assert mt.open_data(plain) == mt.example_data(chat=False)
    assert len(mt.text_lengths(plain, mt.open_data(plain))) == len(mt.text_lengths(toy, mt.open_data(toy)))
    with pytest.raises(mt.ModelError, match="no file"):
        mt.open_data(toy, "absent.jsonl")


def test_a_folder_that_should_have_weights_is_still_told(described):
    (described / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(mt.ModelError):
        mt.open_model(str(described))


def test_what_cannot_be_had_is_one_sentence_and_none(described, capsys):
    assert mt.attempt(mt.check_model, described) is None
    said = capsys.readouterr().out
    assert said.startswith("Skipped: ") and len(said.splitlines()) == 1
    assert mt.attempt(mt.plot_lengths, None) is None and not capsys.readouterr().out
    assert mt.attempt(len, [1, 2]) == 2


@pytest.mark.parametrize("answer", ["no", "False", "0", False])
def test_no_download_may_be_written_in_several_ways(answer, capsys):
    assert mt.open_model("org/not-on-this-disk", answer) == "org/not-on-this-disk"
    assert "DOWNLOAD is no" in capsys.readouterr().out


def test_another_answer_is_told():
    with pytest.raises(mt.ModelError, match='DOWNLOAD must be "yes" or "no"'):
        mt.open_model("org/not-on-this-disk", "perhaps")


def test_a_run_says_what_the_environment_chose(toy, monkeypatch):
    monkeypatch.setenv("TOKENS", "64")
    monkeypatch.delenv("GPU", raising=False)
    words = mt.this_run(toy, "RTX 4090")
    assert words.startswith(f"This run: {toy.name}\nPlanned for RTX 4090. ")
    assert "TOKENS" in words and "GPU" not in words


def test_a_run_is_for_the_last_device_which_is_the_accelerator(toy, monkeypatch):
    with_card(monkeypatch, "NVIDIA L4", 3 * 2**30, 4 * 2**30)
    assert "Planned for this machine's cuda:0 (NVIDIA L4, 4.00 GiB). " in mt.this_run(toy)
