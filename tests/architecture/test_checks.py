"""`check_model`: each check matches on a good folder, and fails when what it checks is broken."""

import json
import shutil
import warnings

import pytest

import model_tools as mt
from tests.folders import write_tensors

SHARD = "model-00002-of-00003.safetensors"


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def edit_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def cut(folder):
    with (folder / SHARD).open("r+b") as file:
        file.truncate((folder / SHARD).stat().st_size - 100)


BROKEN = {
    "all shards: bytes": lambda folder: edit_index(folder, lambda index: index["metadata"].update(total_size=1)),
    "all shards: parameters": lambda folder: edit_index(
        folder, lambda index: index["metadata"].update(total_parameters=1)
    ),
    f"{SHARD}: length": cut,
    f"{SHARD}: tensors": lambda folder: edit_index(folder, lambda index: index["weight_map"].update(ghost=SHARD)),
    "output head": lambda folder: edit_config(folder, tie_word_embeddings=False),
    "architecture: parameters": lambda folder: edit_config(folder, num_hidden_layers=1),
}


def failing(folder):
    checks = mt.check_model(folder)
    return list(checks.loc[~checks["match"], "check"])


@pytest.mark.parametrize("name", ["toy", "base_toy", "demo", "llama_3b"])
def test_a_good_folder_matches(name, request):
    checks = mt.check_model(request.getfixturevalue(name))
    assert list(checks.columns) == ["check", "expected", "found", "match"]
    assert len(checks) >= 2
    assert checks["match"].all()


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_folder_fails_that_check_alone(check, toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "broken")
    BROKEN[check](folder)
    # a head of its own is more parameters, too
    assert failing(folder) == [check] + ["architecture: parameters"] * (check == "output head")


def test_a_missing_shard_is_a_row(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "broken")
    (folder / SHARD).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the index names it: the row tells, no gap does
        assert f"{SHARD}: header" in failing(folder)


def test_a_swapped_tensor_name_is_found_though_the_counts_agree(tmp_path):
    write_tensors(tmp_path / "model-00001-of-00001.safetensors", {"a": ("F16", (2,))})
    index = {"metadata": {}, "weight_map": {"b": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.warns(mt.ModelWarning, match=r"not compared with the architecture.*no config\.json"):
        assert failing(tmp_path) == ["model-00001-of-00001.safetensors: tensors"]


@pytest.mark.parametrize("kind", ["deepseek_v3", "minimax"])
def test_buffers_that_are_stored_are_no_parameters_too_many(kind, tmp_path):
    """The corrections of DeepSeek-V3's router and MiniMax's decays lie in the files, and are not parameters."""
    from transformers import AutoModelForCausalLM

    from tests.plan.test_inference import config_of

    AutoModelForCausalLM.from_config(config_of(kind)).save_pretrained(tmp_path)
    table = mt.check_model(tmp_path).set_index("check")
    assert table.loc["architecture: parameters", "match"]
    assert table.loc["architecture: active parameters per token", "match"]
