"""Tensors from safetensors headers, and their sums."""

import json
import struct

import pandas as pd
import pytest
from safetensors import safe_open

import model_tools as mt
from tests.folders import LLAMA_3B, write_replica, write_tensors

LLAMA_1B = LLAMA_3B | {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = LLAMA_3B | {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_3B, 3_212_749_824), (LLAMA_1B, 1_235_814_400), (LLAMA_8B, 8_030_261_248)]
)
def test_published_parameter_counts(tmp_path, config, parameters):
    write_replica(tmp_path, config, "BF16", "5GB")
    tensors = mt.read_tensors(tmp_path)
    assert tensors["parameters"].sum() == parameters
    assert tensors["bytes"].sum() == 2 * parameters


def test_the_demo_models_counts(demo):
    sums = mt.group_parameters(mt.read_tensors(demo), "component")["parameters"]
    assert sums.sum() == 134_515_008
    assert sums["embedding"] == 28_311_552


def test_shards_end_where_save_pretrained_ends_them(llama_3b):
    tensors = mt.read_tensors(llama_3b)
    first, second, _ = (set(shard["tensor"]) for _, shard in tensors.groupby("file"))
    assert "model.layers.8.mlp.gate_proj.weight" in first
    assert "model.layers.8.mlp.up_proj.weight" in second
    assert "model.layers.20.mlp.up_proj.weight" in second


def test_every_row_is_what_safetensors_says(toy):
    tensors = mt.read_tensors(toy)
    assert list(tensors.columns) == [
        "tensor", "file", "dtype", "shape", "elements", "parameters", "bytes", "layer", "component",
    ]  # fmt: skip
    expected = []
    for path in sorted(toy.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.offset_keys():
                part = file.get_slice(name)
                expected.append(
                    (name, path.name, part.get_dtype(), tuple(part.get_shape()), file.get_tensor(name).nbytes)
                )
    assert list(tensors[["tensor", "file", "dtype", "shape", "bytes"]].itertuples(index=False, name=None)) == expected
    assert str(tensors["layer"].dtype) == "Int64"


def test_rows_follow_the_data_not_the_header(tmp_path):
    entries = {
        "second": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [3, 5]},
        "first": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"12345")
    assert list(mt.read_tensors(tmp_path)["tensor"]) == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "layer", "component"),
    [
        ("model.embed_tokens.weight", None, "embedding"),
        ("model.layers.7.mlp.up_proj.weight", 7, "mlp"),
        ("model.layers.0.self_attn.q_proj.weight", 0, "attention"),
        ("model.layers.3.self_attn.q_norm.weight", 3, "norm"),
        ("model.layers.12.post_attention_layernorm.weight", 12, "norm"),
        ("model.layers.5.block_sparse_moe.experts.3.w1.weight", 5, "mlp"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "head"),
        ("transformer.h.4.attn.c_attn.weight", 4, "attention"),
        ("transformer.h.4.ln_1.weight", 4, "norm"),
        ("transformer.wte.weight", None, "embedding"),
        ("wpe.weight", None, "embedding"),
        ("gpt_neox.layers.2.attention.dense.bias", 2, "attention"),
        ("embed_out.weight", None, "head"),
        ("model.layers.9.mlp.experts.255.down_proj.weight", 9, "mlp"),
        ("model.layers.1.mamba.A_log", 1, "other"),
        ("bert.encoder.layer.0.attention.output.dense.weight", 0, "attention"),
        ("bert.encoder.layer.0.output.dense.weight", 0, "mlp"),
        ("transformer.blocks.3.norm_attn_norm.attn.Wqkv.weight", 3, "attention"),
        ("transformer.blocks.3.norm_attn_norm.norm_1.weight", 3, "norm"),
        ("decoder.block.2.layer.0.SelfAttention.q.weight", 2, "attention"),
        ("decoder.block.2.layer.1.DenseReluDense.wo.weight", 2, "mlp"),
        ("shared.weight", None, "embedding"),
        ("model.layers.61.shared_head.head.weight", 61, "head"),
        ("transformer.output_layer.weight", None, "head"),
    ],
)
def test_layer_and_component_of_a_name(tmp_path, name, layer, component):
    write_tensors(tmp_path / "model.safetensors", {name: ("F32", (2,))})
    row = mt.read_tensors(tmp_path).iloc[0]
    assert (None if row["layer"] is pd.NA else row["layer"], row["component"]) == (layer, component)


def test_a_tied_head_that_is_stored_again_counts_once(tmp_path):
    shape = {"model.embed_tokens.weight": ("F32", (10, 4)), "lm_head.weight": ("F32", (10, 4))}
    write_tensors(tmp_path / "model.safetensors", shape)
    counted = {}
    for tied in (True, False):
        (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
        tensors = mt.read_tensors(tmp_path)
        assert tensors["elements"].sum() == 80
        counted[tied] = tensors["parameters"].sum()
        assert mt.list_files(tmp_path)["parameters"].sum() == counted[tied]
    assert counted == {True: 40, False: 80}


@pytest.mark.parametrize("by", ["file", "component", "layer", "dtype"])
def test_groups_add_up(llama_3b, by):
    groups = mt.group_parameters(mt.read_tensors(llama_3b), by)
    assert list(groups.columns) == ["parameters", "bytes", "share", "bits_per_parameter"]
    assert (groups["bits_per_parameter"] == 32).all()
    assert groups["parameters"].sum() == 3_212_749_824
    assert groups["share"].sum() == pytest.approx(1)


def test_a_group_of_one_parameter_has_its_bits():
    one = pd.DataFrame({"dtype": ["BF16", "I8"], "parameters": [1, 0], "bytes": [2, 1]})
    bits = mt.group_parameters(one, "dtype")["bits_per_parameter"]
    assert bits["BF16"] == 16 and pd.isna(bits["I8"])


def test_groups_by_file_and_unknown_groups(llama_3b):
    tensors = mt.read_tensors(llama_3b)
    assert list(mt.group_parameters(tensors, "file")["parameters"]) == [1_249_689_600, 1_233_199_104, 729_861_120]
    with pytest.raises(mt.ModelError, match="not by 'colour'"):
        mt.group_parameters(tensors, "colour")


def test_of_several_stacks_of_layers_the_largest_is_numbered(tmp_path):
    tensors = {f"language_model.model.layers.{layer}.mlp.up_proj.weight": ("F32", (8, 8)) for layer in range(3)}
    tensors |= {f"vision_model.transformer.layers.{layer}.mlp.fc1.weight": ("F32", (4, 4)) for layer in range(5)}
    write_tensors(tmp_path / "model.safetensors", tensors)
    layers = mt.group_parameters(mt.read_tensors(tmp_path), "layer")["parameters"]
    assert layers.to_dict() == {0: 64, 1: 64, 2: 64, pd.NA: 80}


def test_second_copies_are_not_counted_in_the_list_of_files(tmp_path):
    (tmp_path / "original").mkdir()
    for name in ("model.safetensors", "original/model.safetensors", "consolidated.safetensors"):
        write_tensors(tmp_path / name, {"wte.weight": ("F32", (8, 8))})
    assert mt.list_files(tmp_path)["parameters"].sum() == mt.read_tensors(tmp_path)["parameters"].sum() == 64


def test_the_same_name_within_a_layer_and_outside_is_not_the_same(tmp_path):
    names = ("output.weight", "model.layers.0.output.weight", "model.layers.0.attn.q.weight", "attn.weight")
    for order in (names, names[::-1]):
        write_tensors(tmp_path / "model.safetensors", dict.fromkeys(order, ("F32", (2,))))
        components = mt.read_tensors(tmp_path).set_index("tensor")["component"].to_dict()
        assert components == dict(zip(names, ("head", "mlp", "attention", "attention"), strict=True))
