"""What one token uses of a mixture of experts; the figures that their makers published are the judges."""

import pandas as pd
import pytest

import model_tools as mt
from base_model.architecture import experts
from base_model.architecture.config import count_parameters, skeleton_of
from base_model.architecture.experts import active_parameters, experts_of
from tests.folders import toy_tokenizer, write_replica, write_tensors
from tests.plan.test_inference import EXPERTS, LATENT, LINEAR, SMALL, config_of

B = 10**9
MIXTRAL_8X7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
GPT_OSS_120B = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
DBRX = {
    "d_model": 6144,
    "n_heads": 48,
    "n_layers": 40,
    "vocab_size": 100352,
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
    "attn_config": {"kv_n_heads": 8, "rope_theta": 500_000, "clip_qkv": 8},
}
OLMOE = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
JAMBA_MINI = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_offset": 4,
    "attn_layer_period": 8,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
}
# Kind, settings, and as published: active and all parameters, in billions. Their makers round, or cut.
PUBLISHED = {
    "Mixtral-8x7B": ("mixtral", MIXTRAL_8X7B, 12.9, 46.7),
    "DeepSeek-V3": ("deepseek_v3", DEEPSEEK_V3, 37, 671),
    "Qwen3-30B-A3B": ("qwen3_moe", QWEN3_30B_A3B, 3.3, 30.5),
    "DBRX": ("dbrx", DBRX, 36, 132),
    "OLMoE-1B-7B": ("olmoe", OLMOE, 1.3, 6.9),
    "Jamba-mini": ("jamba", JAMBA_MINI, 12, 52),
}  # fmt: skip


def config(kind, settings):
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **{"dtype": "bfloat16"} | settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_active_parameters(name):
    kind, settings, active, total = PUBLISHED[name]
    model = config(kind, settings)
    assert active_parameters(model) / B == pytest.approx(active, rel=0.02)
    assert count_parameters(skeleton_of(model)) / B == pytest.approx(total, rel=0.01)


def test_gpt_oss_is_published_without_its_embedding():
    """5.13 B of 116.83 B, by its model card, where the embedding of 0.58 B does not count as active."""
    model = config("gpt_oss", GPT_OSS_120B)
    assert (active_parameters(model) - 201_088 * 2_880) / B == pytest.approx(5.13, abs=0.005)
    assert count_parameters(skeleton_of(model)) / B == pytest.approx(116.83, abs=0.005)


def test_shared_experts_dense_layers_and_routers_are_always_active():
    """By hand: one of two MoE layers of four experts, of which two read a token, each of 3 x 64 x 32."""
    model = config("deepseek_v3", SMALL | LATENT | {"num_hidden_layers": 3, "n_routed_experts": 6})
    total, idle = count_parameters(skeleton_of(model)), 2 * (6 - 2) * 3 * 64 * 32
    assert active_parameters(model) == total - idle


def test_the_gate_of_a_shared_expert_is_active():
    more = LINEAR | EXPERTS | {"head_dim": 16, "shared_expert_intermediate_size": 32}
    model = config("qwen3_next", SMALL | more)
    assert active_parameters(model) == count_parameters(skeleton_of(model)) - 4 * 2 * 3 * 64 * 32


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_all_of_a_dense_model_is_active(kind):
    model = config_of(kind)
    assert experts_of(model) is None
    assert active_parameters(model) == count_parameters(skeleton_of(model))


SETTINGS = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 4} | SMALL
IDLE = 4 * 2 * 3 * 64 * 128


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mixture"
    write_replica(folder, SETTINGS, "BF16", "1GB")
    toy_tokenizer(chat=False).save_pretrained(folder)
    return folder


def test_models_are_compared_by_what_is_active(mixture, toy):
    table = mt.compare_models([mixture, toy])
    assert list(table["active"]) == [table["parameters"].iloc[0] - IDLE, 26_912]
    assert f"{table['active'].iloc[0]:,}" in mt.markdown_table(table)


def test_what_is_active_is_checked_against_the_stored_experts(mixture, toy):
    table = mt.check_model(mixture).set_index("check")
    row = table.loc["architecture: active parameters per token"]
    assert row["match"]
    assert row["found"] == f"{mt.read_tensors(mixture)['parameters'].sum() - IDLE:,}"
    assert "architecture: active parameters per token" not in set(mt.check_model(toy)["check"])


def test_takeaways_tell_what_a_token_uses(mixture, toy):
    runs, tensors = mt.compare_runs([]), mt.read_tensors(mixture)
    text = mt.takeaways(mt.list_files(mixture), tensors, runs, models=mt.compare_models([mixture]))
    total = tensors["parameters"].sum()
    assert f"One token uses {total - IDLE:,} of {total:,} parameters" in text
    assert f"{total - IDLE - 260 * 64:,} without the embedding" in text
    dense = mt.takeaways(mt.list_files(toy), mt.read_tensors(toy), runs, models=mt.compare_models([toy]))
    assert "**Experts.**" not in dense


def test_the_report_tells_it_too(mixture, tmp_path):
    page = mt.write_report(mixture, tmp_path / "report").read_text()
    assert "**Experts.** One token uses" in page


def test_experts_without_a_word_on_how_many_read_a_token(tmp_path):
    latent = {name: value for name, value in LATENT.items() if name != "num_experts_per_tok"}
    settings = {"model_type": "deepseek_v2", "architectures": ["DeepseekV2ForCausalLM"]} | SMALL | latent
    write_replica(tmp_path, settings, "BF16", "1GB")
    with pytest.warns(mt.ModelWarning, match="how many of the 4 experts each token uses"):
        assert pd.isna(mt.compare_models([tmp_path])["active"].iloc[0])
    with pytest.warns(mt.ModelWarning, match="how many of the 4 experts each token uses"):
        assert mt.check_model(tmp_path)["match"].all()


@pytest.mark.filterwarnings("ignore::base_model.ModelWarning")  # there is no config.json
def test_the_dtype_of_most_bytes_is_named_first(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"a": ("F32", (4,)), "b": ("BF16", (100,)), "c": ("F16", (10,))})
    assert list(mt.compare_models([tmp_path])["dtype"]) == ["BF16, F16, F32"]


def test_experts_that_are_modules_of_their_own_are_idle_too():
    """As in models whose experts no tensor holds together: each that is left out counts whole, the router not at all."""
    import torch

    def layer(number):
        return torch.nn.ModuleDict({
            "router": torch.nn.Linear(3, number, bias=False),
            "experts": torch.nn.ModuleList([torch.nn.Linear(3, 5, bias=False) for _ in range(number)]),
        })  # fmt: skip

    assert experts._idle(layer(4), layer(2), 2) == 2 * 15
