"""Logical counts: each quantisation's layout of one small model counts what the dense model counts."""

import json
import struct
import warnings
from math import prod

import pytest

import model_tools as mt
from base_model.read.counting import INTEGERS
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


def counted(folder, warning=None, also="stored elements"):
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
    assert all(warning in text and also in text for text in told)
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
        ({"quant_method": "gptq", "bits": 4}, "does not explain"),
        (None, "no quantization_config"),
        ("gptq", "no quantization_config"),
        ([], "no quantization_config"),
    ],
)
def test_an_unknown_method_is_told_and_stored_elements_count(words, warning, tmp_path):
    tensors = PLAIN | {"model.layers.0.mlp.up_proj.weight": ("U8", (96, 32))}
    write(tmp_path, tensors, quantization_config=words)
    assert counted(tmp_path, warning) == {name: prod(shape) for name, (_, shape) in tensors.items()}


@pytest.mark.parametrize("pack", [gptq(2), gptq(3), gptq(4), gptq(8), awq])
@pytest.mark.parametrize("bits", [None, "4", 4.0, True, 0, -4, 16, 5, [4], {"q_proj": 4}])
def test_the_shapes_tell_where_bits_are_none_or_wrong(bits, pack, tmp_path):
    """A whole number that the shapes contradict is told."""
    write(tmp_path, quantised(pack), quantization_config={"quant_method": "gptq", "bits": bits})
    wrong = f"config.json says {bits} bits, the shapes" if type(bits) is int else None
    assert sum(counted(tmp_path, wrong, "from the shapes").values()) == DENSE


def test_gptq_without_an_order_and_with_several_bits(tmp_path):
    first, second = LINEAR
    pack = {f"{first}.{part}": tensor for part, tensor in gptq(4)(*LINEAR[first]).items()}
    pack |= {f"{second}.{part}": tensor for part, tensor in gptq(8)(*LINEAR[second]).items()}
    tensors = PLAIN | {name: tensor for name, tensor in pack.items() if not name.endswith("g_idx")}
    write(tmp_path, tensors, quantization_config={"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*": {"bits": 8}}})
    assert sum(counted(tmp_path).values()) == DENSE
    write(tmp_path, tensors, quantization_config={"quant_method": "gptq", "bits": 4})
    assert sum(counted(tmp_path, "say 4, 8", "from the shapes").values()) == DENSE


def mlx(bits, group=64, biases=True):
    def pack(out, into):
        scales = {"scales": ("BF16" if biases else "U8", (out, into // group))}
        return (
            {"weight": ("U32", (out, into * bits // 32))}
            | scales
            | ({"biases": ("BF16", (out, into // group))} if biases else {})
        )

    return pack


def halves(dtype, scale, kind, group):
    return lambda out, into: {"weight": (dtype, (out, into // 2)), scale: (kind, (out, -(-into // group)))}


def eight(dtype, scale, kind, *shape):
    return lambda out, into: {"weight": (dtype, (out, into)), scale: (kind, shape)}


# Layouts of folders whose config.json says nothing of them.
UNSAID = {name: pack for name, (pack, _) in LAYOUTS.items() if name not in ("none", "nvfp4") and "pack-" not in name} | {
    "NVFP4": lambda out, into: {"weight_packed": ("U8", (out, into // 2)), "weight_scale": ("F8_E4M3", (out, into // 16))}
    | NVFP4,
    "MXFP4 in I8 with E8M0 scales": halves("I8", "scale", "F8_E8M0", 32),
    "MXFP4 in U8": halves("U8", "weight_scale", "U8", 32),
    "MX, 8 bits": lambda out, into: {"weight": ("U8", (out, into)), "scale": ("F8_E8M0", (out, into // 32))},
    "NVFP4 of modelopt": lambda out, into: halves("U8", "weight_scale", "F8_E4M3", 16)(out, into)
    | {"weight_scale_2": ("F32", ()), "input_scale": ("F32", ())},
    "FP8, blocks": eight("F8_E4M3", "weight_scale_inv", "F32", 1, 1),
    "FP8, E8M0 blocks": eight("F8_E4M3", "scale", "F8_E8M0", 1, 1),
    "FP8, E5M2": eight("F8_E5M2", "weight_scale", "F32"),
    "int8": eight("I8", "weight_scale", "F32", 1),
    "F4": eight("F4", "weight_scale", "F8_E4M3", 1),
    "F6": eight("F6_E3M2", "weight_scale", "F8_E8M0", 8, 1),
    "NF4 in bfloat16": lambda out, into: bitsandbytes_4bit(out, into) | {"weight": ("BF16", (out * into // 4, 1))},
    "MLX MXFP4": mlx(4, 32, biases=False),
    "MLX NVFP4": mlx(4, 16, biases=False),
}  # fmt: skip


@pytest.mark.parametrize(("weight", "scales", "parameters"), [((), (), 1), ((4, 0), (4, 0), 0), ((4, 8), (4, 0), 32)])
def test_what_mlx_would_not_pack_is_counted_as_it_is(weight, scales, parameters, tmp_path):
    tensors = {"weight": ("U32", weight), "scales": ("BF16", scales), "biases": ("BF16", scales)}
    write(tmp_path, {f"model.layers.0.mlp.up_proj.{part}": one for part, one in tensors.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = mt.read_tensors(tmp_path).set_index("tensor")["parameters"]
    assert found["model.layers.0.mlp.up_proj.weight"] == parameters


@pytest.mark.parametrize("words", [None, {"quant_method": "new-one"}, {"quant_method": "fp8"}])
@pytest.mark.parametrize("layout", UNSAID)
def test_the_neighbours_tell_how_a_tensor_is_packed(layout, words, tmp_path):
    write(tmp_path, quantised(UNSAID[layout]), **({"quantization_config": words} if words else {}))
    counts = counted(tmp_path)
    assert sum(counts.values()) == DENSE
    for name, sizes in LINEAR.items():
        first, *beside = (f"{name}.{part}" for part in UNSAID[layout](*sizes))
        assert (counts[first], *(counts[part] for part in beside)) == (prod(sizes), *[0] * len(beside))


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 32), (4, 32), (4, 64), (6, 64), (8, 64), (8, 32)])
@pytest.mark.parametrize("name", ["quantization", "quantization_config"])
def test_mlx_is_told_by_its_groups(name, bits, group, tmp_path):
    write(tmp_path, quantised(mlx(bits, group)), **{name: {"group_size": group, "bits": bits}})
    assert sum(counted(tmp_path).values()) == DENSE


def test_mlx_without_a_word_is_counted_by_its_usual_groups_and_told(tmp_path):
    write(tmp_path, quantised(mlx(4)))
    assert sum(counted(tmp_path, "groups of 64", "share a scale").values()) == DENSE


@pytest.mark.parametrize("near", ["weight_scale", "scale", "scales"])
def test_shapes_that_fit_no_packing_are_told(near, tmp_path):
    tensors = PLAIN | {"model.layers.0.mlp.up_proj.weight": ("U8", (96, 33)),
                       f"model.layers.0.mlp.up_proj.{near}": ("F8_E8M0", (96, 5))}  # fmt: skip
    write(tmp_path, tensors)
    assert counted(tmp_path, "tensors are integers")["model.layers.0.mlp.up_proj.weight"] == 96 * 33


def test_scales_of_plain_weights_are_parameters(tmp_path):
    """A norm, or a layer, may well have a learnt scale."""
    tensors = PLAIN | {"model.layers.0.mlp.up_proj.weight": ("BF16", (8, 8)),
                       "model.layers.0.mlp.up_proj.scale": ("BF16", (8,))}  # fmt: skip
    write(tmp_path, tensors)
    assert counted(tmp_path)["model.layers.0.mlp.up_proj.scale"] == 8


def padded(bits, into, group=None, order=False):
    """compressed-tensors packs as many whole weights as go into 32 bits; the last element of a row is filled up."""
    each = 32 // bits
    tensors = {"q_proj.weight_packed": ("I32", (6, -(-into // each))), "q_proj.weight_shape": ("I64", (2,)),
               "q_proj.weight_scale": ("BF16", (6, into // group if group else 1))}  # fmt: skip
    return tensors | ({"q_proj.weight_g_idx": ("I32", (into,))} if order else {})


def grouped(bits, size):
    return groups(bits) | {"config_groups": {"a": {"weights": {"num_bits": bits, "group_size": size}}}}


@pytest.mark.parametrize(("bits", "into"), [(3, 64), (3, 128), (4, 72), (5, 64), (6, 64), (4, 64)])
def test_padding_is_not_counted_where_the_groups_tell(bits, into, tmp_path):
    write(tmp_path, padded(bits, into, 8) | PLAIN, quantization_config=grouped(bits, 8))
    assert counted(tmp_path)["q_proj.weight_packed"] == 6 * into
    write(tmp_path, padded(bits, into, order=True) | PLAIN, quantization_config=groups(bits))
    assert counted(tmp_path)["q_proj.weight_packed"] == 6 * into


@pytest.mark.parametrize(("bits", "into"), [(3, 64), (4, 63), (4, 65), (5, 64)])
def test_padding_that_nothing_tells_is_told(bits, into, tmp_path):
    write(tmp_path, padded(bits, into) | PLAIN, quantization_config=groups(bits))
    assert counted(tmp_path, "padding", "it is counted, too")["q_proj.weight_packed"] >= 6 * into


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_embedding_that_is_shared_counts_once(prefix, tmp_path):
    names = [f"{prefix}{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    write(tmp_path, dict.fromkeys([*names, "lm_head.weight"], ("F32", (10, 4))), tie_word_embeddings=True)
    assert list(counted(tmp_path).values()).count(40) == 1
    write(tmp_path, {names[0]: ("F32", (10, 4)), names[1]: ("F32", (12, 4))}, model_type="t5")
    assert sum(counted(tmp_path).values()) == 88


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("embedding", "head"), [(None, bitsandbytes_4bit), (mlx(4, 32), mlx(4, 32)), (None, gptq(4))])
def test_a_tied_head_that_is_packed_counts_once(embedding, head, tied, tmp_path):
    pack = embedding or (lambda out, into: {"weight": ("BF16", (out, into))})
    tensors = {f"model.embed_tokens.{part}": tensor for part, tensor in pack(64, 32).items()}
    tensors |= {f"lm_head.{part}": tensor for part, tensor in head(64, 32).items()}
    write(tmp_path, tensors, tie_word_embeddings=tied, quantization={"group_size": 32, "bits": 4})
    assert sum(counted(tmp_path).values()) == 64 * 32 * (1 if tied else 2)


@pytest.mark.parametrize(
    "words",
    [None, 5, "x", [], ["x"], {}, {"a": None}, {"a": 5}, {"a": {"weights": 4}}, {"a": {"weights": {"num_bits": [4]}}}],
)
def test_groups_without_bits_are_told(words, tmp_path):
    config = {"quant_method": "compressed-tensors", "config_groups": words}
    write(tmp_path, quantised(packed("I32", 8, **EXTRA)), quantization_config=config)
    assert sum(counted(tmp_path, "no single number of bits").values()) < DENSE


def test_groups_of_several_bits_are_told(tmp_path):
    write(tmp_path, quantised(packed("I32", 8, **EXTRA)), quantization_config=groups(4, 8))
    counted(tmp_path, "no single number of bits")


@pytest.mark.parametrize("dtype", ["U8", "I8", "I16", "I32", "I64", "F4", "U16", "U32", "U64"])
def test_integers_without_a_word_on_quantisation_are_told(dtype, tmp_path):
    write(tmp_path, PLAIN | {"model.layers.0.mlp.up_proj.weight": (dtype, (8, 8))})
    assert counted(tmp_path, "tensors are integers")["model.layers.0.mlp.up_proj.weight"] == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("up_proj.base_layer.weight", "an adapter that was not merged"),
        ("up_proj.weight_mask", "pruned by masks"),
        ("up_proj.parametrizations.weight.original0", "stored in parts"),
    ],
)
def test_a_model_in_the_middle_of_its_making_is_told(name, words, tmp_path):
    write(tmp_path, PLAIN | {f"model.layers.0.mlp.{name}": ("F32", (8, 8))})
    counted(tmp_path, words)


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
        ({"model_type": "t5"}, 0),
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


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 50, "hidden_size": 64, "head_dim": 8,
    "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(("into", "told"), [(64, False), (72, True)])
def test_the_dense_architecture_is_a_second_witness(into, told, tmp_path):
    """Four bits in eight columns: nothing in the headers tells 64 from 57, but config.json says what is built."""
    parts = {"self_attn.q_proj": (32, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
             "self_attn.o_proj": (64, 32), "mlp.gate_proj": (96, into), "mlp.up_proj": (96, 64),
             "mlp.down_proj": (64, 96)}  # fmt: skip
    tensors = {"model.embed_tokens.weight": ("BF16", (50, 64)), "model.norm.weight": ("BF16", (64,))}
    tensors |= {f"model.layers.0.{name}.weight": ("BF16", (64,))
                for name in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
    for name, sizes in parts.items():
        tensors |= {f"model.layers.0.{name}.{part}": tensor for part, tensor in gptq(4)(*sizes).items()}
    write(tmp_path, tensors, **LLAMA)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mt.read_tensors(tmp_path)
    assert [("the architecture has 30,016" in str(one.message)) for one in caught] == [True] * told


def test_integers_have_the_bits_of_their_names():
    assert all(bits == int(name[1:]) for name, bits in INTEGERS.items())
