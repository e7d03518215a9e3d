"""The skeleton, the KV cache, memory in several precisions, and this machine; real caches and weights are the judges."""

import json
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest

import model_tools as mt
from base_model.architecture.config import skeleton_of
from base_model.plan import inference as plans
from base_model.plan import machine
from base_model.train.runs import LLAMA_3_2_3B
from tests.cards import with_card
from tests.folders import LLAMA_3B

GIB = 2**30
SMALL = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_key_value_heads": 4,
}  # fmt: skip
ARCHITECTURES = {
    "llama": SMALL,  # grouped queries
    "qwen2": SMALL,
    "mistral": SMALL | {"sliding_window": 8},
    "gemma2": SMALL | {"head_dim": 16, "sliding_window": 8},  # every second layer with a window
    "gemma3_text": SMALL | {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "mixtral": SMALL | {"num_local_experts": 4},
    "gpt2": {"vocab_size": 260, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_bigcode": {"vocab_size": 260, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "falcon": {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "deepseek_v3": SMALL | LATENT,
    "llama4_text": SMALL | {"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64},
    "qwen3_next": SMALL | LINEAR | EXPERTS | {"head_dim": 16, "shared_expert_intermediate_size": 32},
    "jamba": SMALL | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "mamba": {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


COMPRESSED = {
    "head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "o_groups": 2,
    "o_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "index_head_dim": 16, "index_n_heads": 2,
}  # fmt: skip
CACHES = ARCHITECTURES | {  # of classes of their own
    "minimax": SMALL | {"num_local_experts": 4, "layer_types": ["full_attention", "linear_attention"] * 2},
    "deepseek_v4": SMALL | COMPRESSED,  # its keys are its values
}


def config_of(kind, **more):
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **CACHES[kind] | more)


def llama_3b_config():
    from transformers import LlamaConfig

    return LlamaConfig(**LLAMA_3_2_3B)


def real_cache_bytes(kind, tokens, batch):
    """What a model with weights keeps after reading `tokens` tokens, in its own dtype."""
    import torch
    from torch.utils._pytree import tree_leaves
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind)).eval()
    with torch.no_grad():
        output = model(input_ids=torch.zeros(batch, tokens, dtype=torch.long), use_cache=True)
    cache = output.get("past_key_values") or output.get("cache_params")
    leaves = tree_leaves([vars(cache), [vars(layer) for layer in cache.layers]])
    stored = {one.data_ptr(): one.nbytes for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point()}
    return sum(stored.values())


@pytest.mark.parametrize("kind", CACHES)
def test_the_cache_is_as_large_as_a_real_one(kind):
    skeleton = skeleton_of(config_of(kind))
    for tokens, batch in ((1, 1), (5, 2), (50, 1), (90, 3)):
        expected = real_cache_bytes(kind, tokens, batch)
        assert expected > 0
        assert mt.kv_cache_bytes(skeleton, tokens, batch) == expected


def test_a_cache_that_grows_as_it_says_is_measured_short(monkeypatch):
    skeleton, run = skeleton_of(config_of("llama")), []
    measure = plans._cache_after
    monkeypatch.setattr(plans, "_cache_after", lambda *args: run.append(args[1]) or measure(*args))
    assert mt.kv_cache_bytes(skeleton, 10**6) == 10**6 * mt.kv_cache_bytes(skeleton, 1)
    assert max(run) <= plans.PROBE


def test_a_cache_that_does_not_grow_as_it_says_is_run_in_full(monkeypatch):
    skeleton = skeleton_of(config_of("llama"))
    expected = mt.kv_cache_bytes(skeleton, 300)
    monkeypatch.setattr(plans, "_grown", lambda cache, tokens: cache)
    assert mt.kv_cache_bytes(skeleton, 300) == expected


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_float32_takes_twice_as_much(kind):
    half, full = (skeleton_of(config_of(kind, dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert (
        mt.kv_cache_bytes(full, 20) == 2 * mt.kv_cache_bytes(half, 20) == mt.kv_cache_bytes(half, 20, dtype="float32")
    )


@pytest.mark.parametrize(
    ("config", "per_token"),
    [
        (LLAMA_3_2_3B, 114_688),
        (LLAMA_3_2_3B | {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64}, 32_768),
        (LLAMA_3_2_3B | {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}, 23_040),
    ],
    ids=["Llama-3.2-3B", "Llama-3.2-1B", "SmolLM2-135M"],
)  # fmt: skip
def test_published_caches(config, per_token):
    from transformers import LlamaConfig

    skeleton = skeleton_of(LlamaConfig(**config))
    assert mt.kv_cache_bytes(skeleton, 1) == per_token
    assert mt.kv_cache_bytes(skeleton, 131_072) == 131_072 * per_token
    assert mt.kv_cache_bytes(skeleton, 1, dtype="float32") == 2 * per_token


def test_llama_3_8b_takes_256_mib_at_2048_tokens():
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    assert mt.kv_cache_bytes(skeleton_of(config), 2048, dtype="float16") == 256 * 2**20


def test_a_cache_of_nothing_is_refused(toy):
    with pytest.raises(mt.ModelError, match="tokens must be a whole number from 1"):
        mt.kv_cache_bytes(mt.skeleton(toy), 0)


def test_a_model_without_a_cache_says_so():
    from transformers import AutoConfig

    config = AutoConfig.for_model("openai-gpt", vocab_size=260, n_embd=64, n_layer=2, n_head=4, dtype="bfloat16")
    with pytest.raises(mt.ModelError, match=r"OpenAIGPT.*cache"):
        mt.kv_cache_bytes(skeleton_of(config), 10)
    with pytest.warns(mt.ModelWarning, match="The size of the cache is not known"):
        table = plans.plan_inference(config, [10])
    assert table["total_bytes"].isna().all()
    assert set(table["verdict"]) == {"unknown"}


def test_the_skeleton_is_the_model_without_weights(toy, base_toy, demo, llama_3b):
    for folder, parameters in ((toy, 26_912), (base_toy, 35_232), (demo, 134_515_008), (llama_3b, 3_212_749_824)):
        skeleton = mt.skeleton(folder)
        assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
        assert sum(parameter.numel() for parameter in skeleton.parameters()) == parameters
        assert mt.read_tensors(folder)["parameters"].sum() == parameters
        table = mt.check_model(folder).set_index("check")
        assert table.loc["architecture: parameters", "expected"] == f"{parameters:,}"
        assert table["match"].all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "my_own", "auto_map": {"AutoModelForCausalLM": "modeling_my.My"}}, "my_own.*code.*never run"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM.*not a causal language model"),
        ({"model_type": "t5", "vocab_size": 260}, "not describe a causal language model"),
    ],
)
def test_what_is_no_causal_language_model_is_told(tmp_path, settings, words):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(mt.ModelError, match=words):
        mt.skeleton(folder)


def test_a_quantised_checkpoint_is_compared_with_the_dense_architecture(toy, tmp_path):
    """Real NF4 weights, as bitsandbytes writes them."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(toy, quantization_config=settings).save_pretrained(tmp_path / "nf4")
    table = mt.check_model(tmp_path / "nf4").set_index("check")
    assert tuple(table.loc["architecture: parameters"]) == ("26,912", "26,912", True)
    assert sum(parameter.numel() for parameter in mt.skeleton(tmp_path / "nf4").parameters()) == 26_912


@pytest.mark.parametrize(("method", "option"), [("nf4", {"load_in_4bit": True}), ("int8", {"load_in_8bit": True})])
def test_quantised_weights_are_as_large_as_real_ones(toy, method, option):
    """Loaded by transformers and bitsandbytes on the CPU; the sum of what the modules then hold."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from base_model.architecture.config import read_architecture
    from base_model.plan.quantization import stored_bytes

    settings = BitsAndBytesConfig(**option, **({"bnb_4bit_quant_type": "nf4"} if method == "nf4" else {}))
    real = AutoModelForCausalLM.from_pretrained(toy, quantization_config=settings, dtype="bfloat16")
    assert plans.weights_bytes(read_architecture(toy), method) == stored_bytes(real)
    linear = [module for name, module in real.named_modules() if name.endswith("_proj")]
    weights = sum(module.in_features * module.out_features for module in linear)
    rest = 2 * (26_912 - weights) + sum(one.nbytes for one in mt.skeleton(toy).buffers())
    if method == "nf4":  # half a byte each, a float32 scale per 64, a table of 16 values per layer
        assert stored_bytes(real) == rest + weights // 2 + 4 * weights // 64 + 64 * len(linear)
    else:  # a byte each, a float32 scale per row
        assert stored_bytes(real) == rest + weights + 4 * sum(module.out_features for module in linear)


def test_published_nf4_weights_of_llama_3b():
    """NF4 and scales of fitcheck's measurement, in MiB; the rest is the embedding and the norms, here in bfloat16."""
    found = plans.weights_bytes(llama_3b_config(), "nf4") / 2**20
    embedding_and_norms = (394_002_432 + 57 * 3072) * 2 / 2**20
    assert found - embedding_and_norms == pytest.approx(1344.0 + 168.01, abs=0.05)


@pytest.fixture
def roomy(monkeypatch):
    """A machine with 8 GiB free."""
    table = pd.DataFrame(
        [("cpu", "a CPU", 16 * GIB, 8 * GIB)], columns=["device", "name", "total_bytes", "usable_bytes"]
    )
    monkeypatch.setattr(plans, "this_machine", lambda: table)


def test_verdicts_and_the_largest_context(roomy, llama_3b):
    table = mt.plan_inference(llama_3b, contexts=(2_048, 8_192, 131_072)).set_index(["precision", "context"])
    weights = table["weights_bytes"]
    assert weights["bfloat16", 2_048] == pytest.approx(2 * 3_212_749_824, abs=1024)  # and the table of frequencies
    assert weights["float32", 2_048] == pytest.approx(4 * 3_212_749_824, abs=1024)
    assert table.loc[("bfloat16", 8_192), "kv_cache_bytes"] == 8_192 * 114_688
    assert table.loc[("float32", 8_192), "kv_cache_bytes"] == 2 * 8_192 * 114_688
    assert list(table.loc["bfloat16", "verdict"]) == ["fits", "tight", "does not fit"]
    assert set(table.loc["float32", "verdict"]) == {"does not fit"}
    assert table.loc[("nf4", 2_048), "verdict"] == "fits"
    largest = table.loc[("bfloat16", 2_048), "largest_context"]
    room = 8 * GIB - weights["bfloat16", 2_048]
    assert largest * 114_688 <= room < (largest + 1) * 114_688
    assert (table.loc["float32", "largest_context"] == 0).all()


def test_contexts_end_where_the_model_does(toy, llama_3b, roomy):
    assert set(mt.plan_inference(toy)["context"]) == {512}
    assert set(mt.plan_inference(llama_3b)["context"]) == {2_048, 8_192, 32_768, 131_072}
    assert mt.plan_inference(toy)["largest_context"].eq(512).all()


@pytest.mark.parametrize("context", [0, -5, 2.5, "5", None, 10**19, True])
def test_odd_contexts_are_refused(toy, context):
    with pytest.raises(mt.ModelError, match="whole number"):
        mt.plan_inference(toy, contexts=[context])
    with pytest.raises(mt.ModelError, match="whole number"):
        mt.kv_cache_bytes(mt.skeleton(toy), context)


@pytest.mark.parametrize("dtype", ["nn", "int8", 3])
def test_odd_dtypes_are_refused(toy, dtype):
    with pytest.raises(mt.ModelError, match="The dtype of a cache must be"):
        mt.kv_cache_bytes(mt.skeleton(toy), 4, dtype=dtype)


def test_a_context_beyond_the_model_is_told(toy, roomy):
    assert set(mt.plan_inference(toy, contexts=[100_000])["verdict"]) == {"beyond the model"}


def test_padding_is_no_reason_to_know_nothing():
    config = config_of("gpt2", pad_token_id=0)
    assert mt.kv_cache_bytes(skeleton_of(config), 10) == mt.kv_cache_bytes(skeleton_of(config_of("gpt2")), 10)


def test_numbers_without_end_are_refused_wherever_they_stand(tmp_path):
    for settings in (
        {"model_type": "xlstm", "num_blocks": 10**6},
        {"model_type": "gpt_neo", "attention_types": [[["global"], 10**8]]},
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(mt.ModelError, match="which no model has"):
            mt.skeleton(tmp_path)


def test_an_absent_device_is_named(toy):
    with pytest.raises(mt.ModelError, match=r"no device 'cuda:7'.*cpu"):
        mt.plan_inference(toy, device="cuda:7")


def test_this_machine_tells_its_memory():
    table = mt.this_machine().set_index("device")
    assert 0 < table.loc["cpu", "usable_bytes"] <= table.loc["cpu", "total_bytes"]


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert tuple(mt.this_machine().loc[0, ["total_bytes", "usable_bytes"]]) == (1_000_000, 600_000)
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\n")
    assert mt.this_machine().loc[0, "usable_bytes"] == 900_000  # files that were read are given back
    (tmp_path / "memory.max").write_text("max\n")
    assert mt.this_machine().loc[0, "total_bytes"] > 1_000_000


def test_mps_has_what_apple_recommends(monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 5 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: GIB)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: SimpleNamespace(stdout=b"Apple M1\n"))
    assert tuple(mt.this_machine().loc[1]) == ("mps", "Apple M1", 5 * GIB, 4 * GIB)
    assert machine.usable_bytes("mps") == 4 * GIB


def test_a_model_is_planned_for_the_accelerator_where_there_is_one(monkeypatch, toy):
    with_card(monkeypatch, "a GPU", GIB, 24 * GIB)
    plan = mt.plan_inference(toy, [64])
    assert set(plan["device"]) == {"cuda:0"} and (plan["usable_bytes"] == GIB).all()


def test_every_gpu_is_a_row(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((1 + number) * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert list(mt.this_machine()["device"]) == ["cpu", "cuda:0", "cuda:1"]
    assert machine.usable_bytes("cuda") == GIB
    assert machine.usable_bytes("cuda:1") == 2 * GIB


def test_loading_warns_before_the_weights_are_read(toy, monkeypatch):
    monkeypatch.setattr(machine, "usable_bytes", lambda device: 100_000)
    with pytest.warns(mt.ModelWarning, match=r"weights take 105\.12 KiB; cpu has 97\.66 KiB free"):
        mt.load_model(toy)
    assert not model_warnings(lambda: mt.load_model(toy, dtype="bfloat16"))


def model_warnings(call):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mt.ModelWarning)
        call()
    return [one for one in caught if one.category is mt.ModelWarning]


def test_the_settings_alone_are_enough(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3B | {"dtype": "bfloat16"}))
    assert mt.kv_cache_bytes(mt.skeleton(tmp_path), 1) == 114_688
