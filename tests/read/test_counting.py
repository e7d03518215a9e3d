"""Logical counts: each quantisation's layout of one small model counts what the dense model counts."""

import json
import struct
import warnings
from math import prod

import pytest

import model_tools as mt
from base_model.read.headers import BITS

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
LINEAR = {"model.layers.0.self_attn.q_proj": (32, 64), "model.layers.0.mlp.up_proj": (96, 64)}  # out, in
PLAIN = {
    "model.embed_tokens.weight": ("BF16", (50, 64)),
    "model.layers.0.self_attn.q_proj.bias": ("BF16", (32,)),
    "model.layers.0.input_layernorm.weight": ("BF16", (64,)),
}
DENSE = sum(map(prod, LINEAR.values())) + sum(prod(shape) for _, shape in PLAIN.values())


def write(folder, tensors, **config):
    """Two sparse shards of `{name: (dtype, shape)}`, their index, and config.json."""
    places = {name: SHARDS[number % 2] for number, name in enumerate(tensors)}
    for shard in SHARDS:
        header, end = {}, 0
        for name in (name for name, place in places.items() if place == shard):
            dtype, shape = tensors[name]
            begin, end = end, end + prod(shape) * BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (folder / shard).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**places}}))
    (folder / "config.json").write_text(json.dumps(config))


def counted(folder, warning=None):
    """`{tensor: parameters}`; both tables agree, the stored elements are those of the shapes, warnings are as said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tensors, files = mt.read_tensors(folder), mt.list_files(folder)
    assert list(tensors["elements"]) == list(map(prod, tensors["shape"]))
    assert files.dropna().set_index("file")["parameters"].to_dict() == (
        mt.group_parameters(tensors, "file")["parameters"].to_dict()
    )
    told = {str(entry.message) for entry in caught if issubclass(entry.category, mt.ModelWarning)}
    assert len(told) == (warning is not None)
    assert all(warning in text and "stored elements" in text for text in told)
    return dict(zip(tensors["tensor"], map(int, tensors["parameters"]), strict=True))


def bitsandbytes_4bit(out, into, kind="nf4"):
    blocks = out * into // 64
    return {
        "weight": ("U8", (out * into // 2, 1)), "weight.absmax": ("U8", (blocks,)), "weight.quant_map": ("F32", (16,)),
        "weight.nested_absmax": ("F32", (1,)), "weight.nested_quant_map": ("F32", (256,)),
        f"weight.quant_state.bitsandbytes__{kind}": ("U8", (90,)),
    }  # fmt: skip


def gptq(bits):
    def pack(out, into):
        return {
            "qweight": ("I32", (into * bits // 32, out)), "qzeros": ("I32", (2, out * bits // 32)),
            "scales": ("F16", (2, out)), "g_idx": ("I32", (into,)),
        }  # fmt: skip

    return pack


def awq(out, into):
    return {"qweight": ("I32", (into, out // 8)), "qzeros": ("I32", (2, out // 8)), "scales": ("F16", (2, out))}


def packed(dtype, per_element, **more):
    def pack(out, into):
        return {"weight_packed": (dtype, (out, into // per_element)), "weight_scale": ("BF16", (out, 2)), **more}

    return pack


def groups(*bits):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {f"group_{number}": {"weights": {"num_bits": n}} for number, n in enumerate(bits)},
    }


EXTRA = {"weight_shape": ("I64", (2,)), "weight_zero_point": ("I32", (4, 2)), "weight_g_idx": ("I32", (64,))}
NVFP4 = {"weight_global_scale": ("F32", (1,)), "input_global_scale": ("F32", (1,))}

# The method, what stands for each linear layer, and config.json's words on it.
LAYOUTS = {
    "none": (lambda out, into: {"weight": ("BF16", (out, into))}, None),
    "bitsandbytes nf4": (bitsandbytes_4bit, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes fp4": (
        lambda out, into: bitsandbytes_4bit(out, into, "fp4"), {"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "bitsandbytes 8-bit": (
        lambda out, into: {"weight": ("I8", (out, into)), "SCB": ("F32", (out,)), "weight_format": ("U8", ())},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
    ),
    **{f"gptq {bits} bits": (gptq(bits), {"quant_method": "gptq", "bits": bits}) for bits in (2, 3, 4, 8)},
    "awq": (awq, {"quant_method": "awq", "bits": 4}),
    "awq, old words": (awq, {"quant_method": "awq", "w_bit": 4}),
    "fp8": (
        lambda out, into: {"weight": ("F8_E4M3", (out, into)), "weight_scale_inv": ("F32", (1, 1))},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "fp8, static": (
        lambda out, into: {
            "weight": ("F8_E4M3", (out, into)), "weight_scale": ("F32", ()), "input_scale": ("F32", ()),
            "activation_scale": ("F32", ()),
        },
        {"quant_method": "fp8", "activation_scheme": "static"},
    ),
    "fbgemm fp8": (
        lambda out, into: {
            "weight": ("F8_E4M3", (out, into)), "weight_scale": ("F32", (out, 1)), "input_scale_ub": ("F32", ()),
        },
        {"quant_method": "fbgemm_fp8"},
    ),
    "mxfp4": (
        lambda out, into: {"proj_blocks": ("U8", (out, into // 32, 16)), "proj_scales": ("U8", (out, into // 32))},
        {"quant_method": "mxfp4"},
    ),
    "pack-quantized 4 bits": (packed("I32", 8, **EXTRA), groups(4)),
    "pack-quantized 8 bits": (packed("I32", 4, **EXTRA), groups(8)),
    "pack-quantized, two groups alike": (packed("I32", 8, **EXTRA), groups(4, 4)),
    "nvfp4": (packed("U8", 2, **NVFP4), groups(4)),
    "float-quantized": (
        lambda out, into: {
            "weight": ("F8_E4M3", (out, into)), "weight_scale": ("BF16", (out, 1)), "input_scale": ("BF16", (1,)),
            "input_zero_point": ("F8_E4M3", (1,)), "output_scale": ("BF16", (1,)), "k_scale": ("BF16", (1,)),
            "v_scale": ("BF16", (1,)),
        },
        groups(8),
    ),
    "int-quantized": (
        lambda out, into: {"weight": ("I8", (out, into)), "weight_scale": ("BF16", (out, 1))}, groups(8)
    ),
}  # fmt: skip


def quantised(pack):
    parts = {f"{name}.{part}": tensor for name, sizes in LINEAR.items() for part, tensor in pack(*sizes).items()}
    return PLAIN | parts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_packed_model_counts_what_the_dense_one_counts(layout, tmp_path):
    pack, words = LAYOUTS[layout]
    write(tmp_path, quantised(pack), **({"quantization_config": words} if words else {}))
    counts = counted(tmp_path)
    assert sum(counts.values()) == DENSE
    for name, sizes in LINEAR.items():
        first, *beside = (f"{name}.{part}" for part in pack(*sizes))
        assert counts[first] == prod(sizes)
        assert [counts[part] for part in beside] == [0] * len(beside)
    assert all(counts[name] == prod(shape) for name, (_, shape) in PLAIN.items())


def test_bits_per_parameter_tell_the_precision(tmp_path):
    write(tmp_path, quantised(gptq(4)), quantization_config={"quant_method": "gptq", "bits": 4})
    group = mt.group_parameters(mt.read_tensors(tmp_path), "component").loc["mlp"]
    assert 4 < group["bytes"] * 8 / group["parameters"] < 6


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        ({"quant_method": "new-one"}, "new-one"),
        ({"quant_method": "a\nb"}, "a\\nb"),
        ({"quant_method": None}, "None"),
        ({}, "None"),
        ({"quant_method": ["gptq"]}, "gptq"),
        (None, "no quantization_config"),
        ("gptq", "no quantization_config"),
        ([], "no quantization_config"),
    ],
)
def test_an_unknown_method_is_told_and_stored_elements_count(words, warning, tmp_path):
    tensors = quantised(gptq(4))
    write(tmp_path, tensors, quantization_config=words)
    assert counted(tmp_path, warning) == {name: prod(shape) for name, (_, shape) in tensors.items()}


@pytest.mark.parametrize("bits", [None, "4", 4.0, True, 0, -4, 16, [4], {"q_proj": 4}])
def test_bits_that_are_none_are_told(bits, tmp_path):
    write(tmp_path, quantised(gptq(4)), quantization_config={"quant_method": "gptq", "bits": bits})
    assert sum(counted(tmp_path, "no one number of bits").values()) < DENSE


@pytest.mark.parametrize(
    "words",
    [None, 5, "x", [], ["x"], {}, {"a": None}, {"a": 5}, {"a": {"weights": 4}}, {"a": {"weights": {"num_bits": [4]}}}],
)
def test_groups_without_bits_are_told(words, tmp_path):
    config = {"quant_method": "compressed-tensors", "config_groups": words}
    write(tmp_path, quantised(packed("I32", 8, **EXTRA)), quantization_config=config)
    assert sum(counted(tmp_path, "no one number of bits").values()) < DENSE


def test_groups_of_several_bits_are_told(tmp_path):
    write(tmp_path, quantised(packed("I32", 8, **EXTRA)), quantization_config=groups(4, 8))
    counted(tmp_path, "no one number of bits")


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16", "I32", "I64", "F4", "U16", "U32", "U64"])
def test_integers_without_a_word_on_quantisation_are_told(dtype, tmp_path):
    write(tmp_path, PLAIN | {"model.layers.0.mlp.up_proj.weight": (dtype, (8, 8))})
    assert counted(tmp_path, "integer tensors")["model.layers.0.mlp.up_proj.weight"] == 64


def test_masks_and_frequencies_of_old_checkpoints_count_nothing(tmp_path):
    buffers = {
        "h.0.attn.bias": ("F32", (1, 1, 16, 16)),
        "h.1.attn.bias": ("U8", (1, 1, 16, 16)),
        "h.0.attn.masked_bias": ("F32", ()),
        "h.0.attn.causal_mask": ("BOOL", (1, 1, 16, 16)),
        "gpt_neox.layers.0.attention.bias": ("BOOL", (1, 1, 16, 16)),
        "gpt_neox.layers.0.attention.masked_bias": ("F32", ()),
        "h.0.attn.attention.bias": ("U8", (1, 1, 16, 16)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (8,)),
        "embeddings.position_ids": ("I64", (1, 16)),
    }
    weights = {
        "h.2.attn.bias": ("F32", (48,)),
        "model.layers.0.attention.bias": ("F32", (48,)),
        "h.0.attn.c_attn.bias": ("F32", (48,)),
        "h.3.attn.bias": ("F32", (6, 8)),
        "position_ids_embed.weight": ("F32", (48,)),
    }
    write(tmp_path, buffers | weights, model_type="gpt2")
    counts = counted(tmp_path)
    assert {name for name, count in counts.items() if not count} == set(buffers)
    assert [counts[name] for name in weights] == [48] * len(weights)


HEAD = {"model.embed_tokens.weight": ("F32", (10, 4)), "lm_head.weight": ("F32", (10, 4))}


@pytest.mark.parametrize(
    ("config", "head"),
    [
        ({"tie_word_embeddings": True}, 0),
        ({"tie_word_embeddings": False}, 40),
        ({"tie_word_embeddings": False, "model_type": "gemma"}, 40),
        ({"tie_word_embeddings": True, "model_type": "llama"}, 0),
        ({"text_config": {"tie_word_embeddings": True}}, 0),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, 40),
        ({"text_config": "x", "tie_word_embeddings": True}, 0),
        ({"tie_word_embeddings": "false"}, 40),
        ({"text_config": "x"}, 40),
        ({"model_type": "gemma"}, 0),
        ({"model_type": "gpt2"}, 0),
        ({"model_type": "llama"}, 40),
        ({"model_type": "no-such-type"}, 40),
        ({}, 40),
    ],
)
def test_a_head_stored_again_counts_once(config, head, tmp_path):
    write(tmp_path, HEAD, **config)
    assert counted(tmp_path) == {"model.embed_tokens.weight": 40, "lm_head.weight": head}


@pytest.mark.parametrize(
    "model_type", [None, 5, [], ["gemma"], {}, "", "encoder-decoder", "nougat", "gemma4_assistant"]
)
def test_a_model_type_that_gives_no_answer_leaves_the_head_counted(model_type, tmp_path):
    write(tmp_path, HEAD, model_type=model_type)
    assert counted(tmp_path)["model.embed_tokens.weight"] == 40


def test_a_head_without_an_embedding_counts(tmp_path):
    write(tmp_path, {"lm_head.weight": ("F32", (10, 4)), "model.norm.weight": ("F32", (4,))}, tie_word_embeddings=True)
    assert counted(tmp_path)["lm_head.weight"] == 40
