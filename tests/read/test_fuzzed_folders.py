"""Folders made at random around the structure of real ones: a table or a ModelError, soon, and nothing else.

FUZZED=10000 python -m pytest tests/read/test_fuzzed_folders.py     # as many of each, other ones each time
"""

import json
import os
import shutil
import struct
import warnings
from math import prod
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import model_tools as mt
from base_model.architecture.config import read_architecture
from base_model.read.headers import BITS
from tests.folders import write_toy

INDEX, ONE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
FUZZED = os.environ.get("FUZZED")


def fuzz(examples: int) -> settings:
    """So many examples, the same each time; by hand as many as `FUZZED` says, others each time."""
    return settings(
        max_examples=int(FUZZED or examples), derandomize=not FUZZED, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


odd = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([2**31, 2**63, 10**30, 1e308, float("nan"), -0.0]),
    st.sampled_from(["", "x", "0", "\ud800", "\0", "../x", "1e9", "NaN", "x" * 400, "\u202e"]),
    st.recursive(st.integers(0, 3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["a", "weight", "attribute_map", "__float__", "model_type"]), inner, max_size=2), max_leaves=6),
)  # fmt: skip
parts = st.sampled_from(
    ["weight", "bias", "qweight", "qzeros", "scales", "g_idx", "biases", "weight_scale", "weight_scale_inv", "scale",
     "weight_packed", "weight_shape", "weight.absmax", "weight_g_idx", "SCB", "weight_blocks", "weight_scales"]
)  # fmt: skip
modules = st.sampled_from(
    ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj", "model.embed_tokens", "lm_head", "shared",
     "encoder.embed_tokens", "model.layers.99999999999.x", "", "a.b", "model.norm"]
)  # fmt: skip
names = st.builds("{}.{}".format, modules, parts) | st.text(max_size=4)
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 33, 64]), max_size=3).map(tuple)
tensors = st.dictionaries(names, st.tuples(st.sampled_from(sorted(BITS)), shapes), max_size=8)
quantizations = st.fixed_dictionaries(
    {"quant_method": st.sampled_from(["gptq", "awq", "fp8", "mxfp4", "bitsandbytes", "compressed-tensors", "new"]) | odd},
    optional={"bits": odd, "w_bit": odd, "group_size": odd, "dynamic": odd, "config_groups": odd | st.dictionaries(
        st.just("a"), st.fixed_dictionaries({"weights": st.fixed_dictionaries({}, optional={
            "num_bits": st.integers(-1, 9) | odd, "group_size": st.integers(-1, 64) | odd}) | odd}), max_size=2)},
)  # fmt: skip
TOY = {
    "model_type": "llama", "vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "max_position_embeddings": 512,
    "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "torch_dtype": "bfloat16", "rope_scaling": None,
    "layer_types": ["full_attention", "full_attention"], "quantization_config": {}, "text_config": {}, "auto_map": {},
    "attribute_map": {}, "num_labels": 2, "id2label": {"0": "a"}, "per_layer_config": {}, "output_attentions": False,
}  # fmt: skip
TYPES = ["llama", "gpt2", "mamba2", "gemma3", "nemotron_h", "gpt_neo", "qwen2_moe", "t5", "jamba", "rwkv", "x"]
configs = st.builds(
    lambda kind, changes, more: TOY | {"model_type": kind} | changes | more,
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(sorted(TOY)), odd, max_size=4),
    st.fixed_dictionaries({}, optional={"quantization_config": quantizations, "quantization": quantizations | odd}),
)


def write_header(path, entries, surplus=0, metadata=None):
    header, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape) in entries.items():
        size = -(-prod(shape) * BITS[dtype] // 8)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(0, end + surplus)))


def clean(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def tame(function, folder):
    """A table, or words; whatever else comes out is the test's failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(folder)
        except mt.ModelError as error:
            assert str(error).strip()
            assert str(error).isprintable()
            return None


def write_weights(folder, draw):
    """Three shards, or one file, and an index that agrees more or less."""
    files = draw(st.lists(st.sampled_from([ONE, *SHARDS]), min_size=1, max_size=3, unique=True))
    places = {}
    for file in files:
        held = draw(tensors)
        places |= dict.fromkeys(held, file)
        surplus, notes = draw(st.sampled_from([0] * 8 + [1, -1])), draw(st.none() | st.just({"format": "pt"}) | odd)
        write_header(folder / file, held, surplus, notes)
    weight_map = places | draw(st.dictionaries(names, st.sampled_from(SHARDS) | odd, max_size=1))
    index = {"weight_map": weight_map, "metadata": draw(odd | st.dictionaries(st.just("total_size"), odd))}
    index |= draw(st.dictionaries(st.sampled_from(["weight_map", "metadata", "x"]), odd, max_size=1))
    if draw(st.booleans()):
        (folder / INDEX).write_text(json.dumps(index if draw(st.integers(0, 9)) else draw(odd)))


def make_folder(folder, draw):
    clean(folder)
    write_weights(folder, draw)
    (folder / CONFIG).write_text(json.dumps(draw(configs | odd)))
    return folder


@fuzz(20)
@given(st.data())
def test_a_fuzzed_folder_gives_a_table_or_words(tmp_path_factory, data):
    folder = make_folder(tmp_path_factory.getbasetemp() / "fuzzed", data.draw)
    table = tame(mt.read_tensors, folder)
    for function in (mt.list_files, mt.check_model, mt.directory_tree):
        tame(function, folder)
    if table is not None:
        assert (table["parameters"] >= 0).all()
        assert (table["parameters"] <= table["bytes"] * 8).all()  # no weight takes less than a bit


@fuzz(60)
@given(configs)
def test_a_fuzzed_config_is_built_plain_or_refused(tmp_path_factory, settings):
    folder = clean(tmp_path_factory.getbasetemp() / "fuzzed-config")
    (folder / CONFIG).write_text(json.dumps(settings))
    config = tame(read_architecture, folder)
    if config is not None:
        assert config._attn_implementation_internal is None
        assert config.attribute_map == type(config).attribute_map
        assert "attribute_map" not in vars(config)


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("fuzz") / "toy", chat=False)


@fuzz(10)
@given(st.data())
def test_a_fuzzed_tokenizer_gives_facts_or_words(toy_folder, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed-tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(toy_folder, folder)
    file = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json", CONFIG, "generation_config.json"]))
    content = json.loads((folder / file).read_text())
    content |= data.draw(
        st.dictionaries(st.sampled_from([*content, "added_tokens_decoder"]), odd, min_size=1, max_size=2)
    )
    (folder / file).write_text(json.dumps(content))
    tame(mt.describe_tokenizer, folder)
