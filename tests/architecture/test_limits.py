"""A config.json of more than any model has is refused within seconds, whatever it multiplies."""

import json
import time

import pytest

import model_tools as mt
from base_model.architecture.config import described, read_architecture, require_fit, skeleton_of
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
    "a text model in a text model": ({"text_config": {"model_type": "llama"}}, "a text model within a llama"),
    "a nested config": ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 1_000}}, "num_hidden_layers as 1,000"),
    "objects in objects": ({"a": nested(60)}, "nested lists or objects"),
    "objects in objects, nearly too many for JSON": ({"a": nested(300)}, "nested lists or objects"),
}  # fmt: skip


# The most that each end of a name may give: a number, or the length of a list or a text.
MOST = {
    "num_hidden_layers": 320, "decoder_layer": 320, "num_blocks": 320, "layer_types": 320, "model_type": 320,
    "hybrid_override_pattern": 320, "mamba_expand": 10_000, "kv_lora_rank": 1_000_000, "num_attention_heads": 10_000,
    "n_routed_experts": 20_000, "num_labels": 100_000, "head_dim": 1_000_000, "hidden_size": 10_000_000,
    "max_position_embeddings": 20_000_000, "n_positions": 20_000_000, "n_ctx": 20_000_000,
}  # fmt: skip


def listed(length):
    return {"note": [0] * length}


def named(length):
    return {"note": dict.fromkeys(map(str, range(length)))}


def packed(length):
    return {"quantization_config": {"ignore": [0] * length}}


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


@pytest.mark.parametrize("name", MOST)
def test_a_setting_may_be_as_large_as_its_limit_and_no_larger(name):
    most = MOST[name]
    for value in (
        int,
        float,
        int.__neg__,
        *([lambda size: "x" * size, lambda size: [0] * size] if most == 320 else []),
    ):
        assert described({name: value(most)}) == {name: value(most)}
        with pytest.raises(mt.ModelError, match="which no model has"):
            described({name: value(most + 1)})


def test_every_limit_of_a_setting_is_tried_at_its_edge():
    assert {name.rpartition("_")[2] for name in MOST} == set(limits.SETTINGS)


@pytest.mark.parametrize(
    ("settings", "most", "words"),
    [
        (nested, 50, "nested"),
        (listed, 10_000, "10,001 items"),
        (named, 10**6, "1,000,001 i"),
        (packed, 10**6, "1,000,001 i"),
    ],
)
def test_as_much_as_is_allowed_is_taken(settings, most, words):
    assert described(settings(most)) == settings(most)
    with pytest.raises(mt.ModelError, match=words):
        described(settings(most + 1))


@pytest.mark.parametrize("name", ["modules_to_not_convert", "ignore"])
def test_a_quantisation_may_name_every_tensor(name, tmp_path):
    write(tmp_path, TINY | {"quantization_config": {"quant_method": "fp8", name: ["x"] * 50_000}})
    assert len(read_architecture(tmp_path).quantization_config[name]) == 50_000


def test_parts_that_no_name_tells_are_counted_as_they_are_built(tmp_path, monkeypatch):
    config = read_architecture(write(tmp_path, TINY))
    parts = sum(1 for _ in skeleton_of(config).modules()) - 1  # without the whole
    monkeypatch.setattr("base_model.architecture.config.MAX_MODULES", parts - 1)
    with pytest.raises(mt.ModelError, match="modules, which no model has"):
        skeleton_of(config)
    monkeypatch.setattr("base_model.architecture.config.MAX_MODULES", parts)
    assert sum(1 for _ in skeleton_of(config).modules()) - 1 == parts


def test_tables_beside_the_weights_are_bounded(toy, monkeypatch):
    config, tensors = read_architecture(toy), mt.read_tensors(toy)
    size = sum(buffer.nbytes for buffer in skeleton_of(config).buffers())
    monkeypatch.setattr("base_model.architecture.config.MAX_BUFFER_BYTES", size)
    require_fit(config, tensors, countable=True)
    monkeypatch.setattr("base_model.architecture.config.MAX_BUFFER_BYTES", size - 1)
    with pytest.raises(mt.ModelError, match=f"describes buffers of {size} B besides the weights"):
        require_fit(config, tensors, countable=True)


def test_the_deepest_models_of_today_are_taken(tmp_path):
    assert read_architecture(write(tmp_path, TINY | {"num_hidden_layers": 315})).num_hidden_layers == 315
    assert limits.SETTINGS["layers"] == 320
