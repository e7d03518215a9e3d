"""A config.json of more than any model has is refused within seconds, whatever it multiplies."""

import json
import time

import pytest

import model_tools as mt
from base_model.architecture.config import read_architecture, skeleton_of
from base_model.read import limits

TINY = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2,
}  # fmt: skip
MANY = 10**6


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


BEYOND = {
    "1,000 layers": ({"num_hidden_layers": 1_000}, "num_hidden_layers as 1,000"),
    "2,000 layers": ({"num_hidden_layers": 2_000}, "num_hidden_layers as 2,000"),
    "a pattern of a million": ({"model_type": "nemotron_h", "hybrid_override_pattern": "M" * MANY}, "hybrid_override_pattern"),
    "kinds of a million layers": ({"model_type": "bamba", "layers_block_type": ["mamba"] * MANY}, "1,000,000 items"),
    "types of 1,000 layers": ({"layer_types": ["full_attention"] * 1_000}, "1,000 items in layer_types"),
    "a list of a million": ({"note": [0] * MANY}, "1,000,000 items"),
    "heads of each layer": ({"num_attention_heads": [2, 10**9]}, "num_attention_heads as 1,000,000,000"),
    "lists in lists": ({"attention_types": [[["global"], 10**6]], "model_type": "gpt_neo"}, "attention_types"),
    "a nested config": ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 1_000}}, "num_hidden_layers as 1,000"),
    "objects in objects": ({"a": nested(60)}, "nested lists or objects"),
    "objects in objects, nearly too many for JSON": ({"a": nested(300)}, "nested lists or objects"),
}  # fmt: skip


def write(folder, settings):
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", BEYOND)
def test_more_than_any_model_has_is_refused_soon(kind, tmp_path):
    settings, words = BEYOND[kind]
    write(tmp_path, TINY | settings)
    start = time.process_time()
    for plan in (mt.plan_inference, mt.plan_adapters, mt.compare_training):
        with pytest.raises(mt.ModelError) as refused:
            plan(tmp_path)
        assert words in str(refused.value)
        assert len(str(refused.value)) < 300
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["modules_to_not_convert", "ignore"])
def test_a_quantisation_may_name_every_tensor(name, tmp_path):
    write(tmp_path, TINY | {"quantization_config": {"quant_method": "fp8", name: ["x"] * 50_000}})
    assert len(read_architecture(tmp_path).quantization_config[name]) == 50_000


def test_parts_that_no_name_tells_are_counted_as_they_are_built(tmp_path, monkeypatch):
    config = read_architecture(write(tmp_path, TINY))
    modules = sum(1 for _ in skeleton_of(config).modules())
    monkeypatch.setattr("base_model.architecture.config.MAX_MODULES", modules // 2)
    with pytest.raises(mt.ModelError, match="modules, which no model has"):
        skeleton_of(config)
    monkeypatch.undo()
    assert sum(1 for _ in skeleton_of(config).modules()) == modules


def test_the_deepest_models_of_today_are_taken(tmp_path):
    assert read_architecture(write(tmp_path, TINY | {"num_hidden_layers": 315})).num_hidden_layers == 315
    assert limits.SETTINGS["layers"] == 320
