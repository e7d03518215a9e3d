"""Architectures beside the common one: recurrent states, scans, images, no dtype, positions that end."""

import json
import warnings
from types import SimpleNamespace

import pytest

import model_tools as mt
from base_model.architecture.config import count_parameters, layers_of, positions_of, skeleton_of
from base_model.plan import adapters
from base_model.plan import inference as plans
from base_model.train.ladder import compare_training
from base_model.train.loop import plan_training
from base_model.train.trainer import plan_trainer
from tests.folders import write_tensors
from tests.plan.test_inference import EXPERTS, LATENT, LINEAR, SMALL, config_of

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
TEXT = SMALL | {"head_dim": 16}
OTHERS = {
    "qwen3": TEXT,
    "qwen3_moe": TEXT | EXPERTS,
    "gpt_oss": TEXT | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "phi3": SMALL,
    "granite": SMALL,
    "granitemoe": SMALL | {"num_local_experts": 4},
    "granitemoehybrid": SMALL | MAMBA | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 4},
    "olmo": SMALL,  # its norms have no weights
    "olmo2": SMALL,
    "olmoe": SMALL | EXPERTS,
    "nemotron": SMALL | {"head_dim": 16},
    "nemotron_h": SMALL | {"layers_block_type": ["mamba", "attention", "mlp", "mamba"], "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8},
    "falcon_h1": SMALL | MAMBA | {"mamba_d_ssm": 128},
    "falcon_mamba": {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2},
    "mamba2": {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8},
    "rwkv": {"vocab_size": 260, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 128},
    "recurrent_gemma": SMALL | {"num_hidden_layers": 3, "head_dim": 16, "lru_width": 64, "attention_window_size": 8},
    "xlstm": {"vocab_size": 260, "hidden_size": 64, "num_blocks": 2, "num_heads": 2, "qk_dim_factor": 1.0},
    "deepseek_v2": SMALL | LATENT | {"topk_method": "greedy"},
    "smollm3": SMALL,
    "qwen3_next": SMALL | LINEAR | EXPERTS | {"head_dim": 16, "shared_expert_intermediate_size": 32},
}  # fmt: skip
IMAGES = {
    "gemma3": {"text_config": TEXT | {"model_type": "gemma3_text"}, "vision_config": SIGHT | {"image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4},
    "llama4": {"text_config": TEXT | {"num_local_experts": 2, "intermediate_size_mlp": 64}, "vision_config": SIGHT | {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32, "image_size": 28, "patch_size": 14}},
    "qwen3_vl": {"text_config": TEXT | {"rope_parameters": ROPE}, "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "deepstack_visual_indexes": [0]}},
    "llava": {"text_config": SMALL | {"model_type": "llama"}, "vision_config": SIGHT | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}},
}  # fmt: skip


def other(kind, **more):
    from transformers import AutoConfig

    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "bfloat16"}
    return AutoConfig.for_model(kind, **special | (OTHERS | IMAGES)[kind] | more)


@pytest.mark.parametrize("kind", [*OTHERS, *IMAGES])
def test_each_is_planned(kind):
    """The cache, the usual adapters, and a step, with a number in each."""
    config = other(kind)
    assert plans.plan_inference(config, [64], "cpu")["total_bytes"].notna().all()
    table = adapters.plan_adapters(config, None).set_index("adapter")
    planned = table.drop(index="LN tuning") if kind == "olmo" else table
    assert planned["trainable"].notna().all(), planned["note"].to_dict()
    assert planned["file_bytes"].notna().all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mt.ModelWarning)
        assert plan_training(config, None, 24, 1, False, False, None)["peak_bytes"][0] > 0


def floats(*kept):
    """The bytes of all floating-point tensors in caches and lists."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves([[vars(layer) for layer in one.layers] if hasattr(one, "layers") else one for one in kept])
    return sum(one.nbytes for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point())


def real_state_bytes(kind, tokens, batch):
    """What a model with weights keeps, whether it shows it or not."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(other(kind)).eval()
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    with torch.no_grad():
        if kind == "rwkv":
            return floats(model(input_ids=ids, use_cache=True).state)
        if kind == "xlstm":
            return floats(model(input_ids=ids, use_cache=True).cache_params.rnn_state)
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, use_cache=True, past_key_values=cache)
    blocks = [layer.temporal_block for layer in model.model.layers]
    states = [[block.conv1d_state, block.rg_lru.recurrent_states] for block in blocks if hasattr(block, "rg_lru")]
    return floats(cache, states)


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma", "xlstm"])
def test_a_state_is_found_wherever_it_is_kept(kind):
    for tokens, batch in ((1, 1), (5, 2), (50, 1)):
        assert mt.kv_cache_bytes(skeleton_of(other(kind)), tokens, batch) == real_state_bytes(kind, tokens, batch) > 0


def test_a_cache_does_not_depend_on_which_experts_are_chosen():
    """Experts that are looked up by value; there is none on the meta device."""
    from transformers import AutoConfig

    attention, experts = (
        {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8},
        {"ffn_hidden_size": 32, "moe_num_experts": 4},
    )
    size = {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, "vocab_size": 260}
    config = AutoConfig.for_model("dbrx", **size, attn_config=attention, ffn_config=experts)
    assert mt.kv_cache_bytes(skeleton_of(config), 10, dtype="bfloat16") == 10 * 3 * 2 * 2 * 16 * 2


@pytest.mark.parametrize("kind", ["mamba", "jamba", "rwkv"])
def test_a_scan_that_goes_token_by_token_is_planned_as_its_kernel_runs(kind):
    """Jamba's reference needs some 500 operations per token and layer: no plan, or minutes."""
    config = other("rwkv") if kind == "rwkv" else config_of(kind)
    tokens = 128 if kind == "rwkv" else 1_024
    with pytest.warns(mt.ModelWarning, match="memory of its CUDA kernel"):
        long = plan_training(config, None, tokens, 1, False, False, None)["activations_bytes"][0]
    with pytest.warns(mt.ModelWarning, match="memory of its CUDA kernel"):
        short = plan_training(config, None, tokens // 2, 1, False, False, None)["activations_bytes"][0]
    assert long / short == pytest.approx(2, rel=0.1)


def test_the_scan_is_left_as_it_was():
    from transformers.models.mamba import modeling_mamba

    from base_model.plan.scans import kernel_scans

    own, model = modeling_mamba.mamba_selective_scan, skeleton_of(config_of("mamba"))
    with kernel_scans(model):
        assert modeling_mamba.mamba_selective_scan is not own
    assert modeling_mamba.mamba_selective_scan is own


def test_what_the_scan_keeps_is_what_the_kernel_keeps():
    """Per token and channel: its input, its step, its gate and its output, twice; and a state per 2,048 tokens."""
    import torch

    from base_model.plan.scans import STAND_INS

    kept = {}
    inputs = [torch.empty(2, 64, 4_096, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    step, gate, x = inputs
    A = torch.empty(64, 16, device="meta", requires_grad=True)
    B, C = (torch.empty(2, 16, 4_096, device="meta", dtype=torch.bfloat16) for _ in "BC")
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.setdefault(id(one), one), lambda one: one):
        output = STAND_INS["mamba_selective_scan"](x, step, A, B, C, z=gate, delta_softplus=True)
    assert (output.shape, output.dtype) == (x.shape, x.dtype)
    plain = 2 * 64 * 4_096 * 2  # bytes of one tensor of the input's size
    assert sum(one.nbytes for one in kept.values()) == 4 * plain + A.nbytes + 2 * B.nbytes + 2 * 64 * 2 * 32 * 4
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert A.grad.shape == A.shape


def test_a_reference_scan_carries_a_label(toy):
    note = compare_training(other("qwen3_next"), 16, 1)["note"]
    assert note.str.contains("reference code, which keeps more than the kernel of flash-linear-attention").all()
    with pytest.warns(mt.ModelWarning, match="mamba2_chunk_scan.*mamba-ssm"):
        plan_training(other("mamba2"), None, 16, 1, False, False, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mt.ModelWarning)
        mt.plan_training(toy, None, tokens=16)


def test_positions_end_where_their_table_does():
    config = config_of("gpt2", n_positions=64)
    assert set(plans.plan_inference(config, None, "cpu")["context"]) == {64}
    assert plan_training(config, None, 64, 1, False, False, None)["peak_bytes"][0] > 0
    with pytest.raises(mt.ModelError, match="positions for 64 tokens"):
        plan_training(config, None, 65, 1, False, False, None)
    assert compare_training(config, 65, 1)["note"].str.contains("positions for 64 tokens").all()


def test_computed_positions_go_on_with_a_warning(toy):
    with pytest.warns(mt.ModelWarning, match="was made for 512 tokens"):
        assert mt.plan_training(toy, None, tokens=513)["peak_bytes"][0] > 0
    assert mt.compare_training(toy, tokens=513)["note"].str.contains("made for 512").all()


@pytest.mark.parametrize("kind", IMAGES)
def test_a_model_that_reads_images_is_planned_whole(kind):
    """As the class builds it that loads such a checkpoint."""
    import torch
    from transformers import AutoModelForImageTextToText

    config = other(kind)
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    skeleton = skeleton_of(config)
    assert type(skeleton) is type(whole)
    assert count_parameters(skeleton) == count_parameters(whole)
    notes = adapters.plan_adapters(config, None).set_index("adapter")["note"]
    assert "acts in vi" in notes["LoRA r16, all linear"]
    with pytest.warns(mt.ModelWarning, match="images take more"):
        assert plan_training(config, None, 16, 1, False, False, None)["peak_bytes"][0] > 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ({}, (0, None)),
        ({"num_hidden_layers": [2, 3], "max_position_embeddings": 0}, (0, None)),
        ({"num_hidden_layers": 3, "max_position_embeddings": 1}, (3, 1)),
    ],
)
def test_what_is_counted_in_another_way_is_not_known(text, found):
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text))
    assert (layers_of(config), positions_of(config)) == found


def test_a_text_model_alone_is_planned_where_config_json_names_it():
    config = other("llama4", architectures=["Llama4ForCausalLM"])
    assert type(skeleton_of(config)).__name__ == "Llama4ForCausalLM"


def test_a_text_model_alone_is_marked():
    from transformers import AutoConfig

    config = AutoConfig.for_model("qwen2_audio", text_config=SMALL | {"model_type": "qwen2"}, dtype="bfloat16")
    with pytest.warns(mt.ModelWarning, match="Only the text model of this qwen2_audio is planned"):
        skeleton = skeleton_of(config)
    assert type(skeleton).__name__ == "Qwen2ForCausalLM"
    assert str(skeleton.dtype) == "torch.bfloat16"


def write_silent(folder, kind, **dtypes):
    """A folder whose config.json states no dtype, with a tensor of each of `dtypes`."""
    settings = other(kind).to_dict() | {"dtype": None}
    (folder / "config.json").write_text(json.dumps(settings))
    if dtypes:
        write_tensors(folder / "model.safetensors", {name: (dtype, (8, 8)) for name, dtype in dtypes.items()})
    return folder


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({"a": "F32"}, "float32"),
        ({"a": "BF16"}, "bfloat16"),
        ({"blocks": "U8", "norm": "BF16", "scales": "F8_E4M3"}, "bfloat16"),
        ({"a": "F16", "b": "F32", "c": "F16", "d": "F16"}, "float16"),
    ],
)
def test_a_dtype_that_is_not_stated_is_that_of_the_weights(tmp_path, dtypes, expected):
    folder = write_silent(tmp_path, "gpt_oss", **dtypes)
    assert str(mt.skeleton(folder).dtype) == f"torch.{expected}"


def test_a_dtype_that_nothing_tells_is_told(tmp_path):
    folder = write_silent(tmp_path, "gpt_oss")
    with pytest.warns(mt.ModelWarning, match=r"states no dtype.*bfloat16 is assumed"):
        assert str(mt.skeleton(folder).dtype) == "torch.bfloat16"


def test_the_text_model_may_state_the_dtype(tmp_path):
    settings = other("qwen3_vl").to_dict() | {"dtype": None}
    settings["text_config"]["dtype"] = "float16"
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert str(mt.skeleton(tmp_path).dtype) == "torch.float16"


def test_what_trl_cannot_train_is_planned_for_another_trainer():
    """TRL's loss needs the body without the head; Llama 4's classes offer none."""
    import torch
    from transformers import TrainingArguments

    with pytest.raises(mt.ModelError, match=r"TRL cannot train it\. Give TrainingArguments"):
        plan_trainer(other("llama4"), None, None, None, 24, 1)
    assert not torch.is_autocast_enabled("cpu")  # its forward is entered twice
    row = plan_trainer(other("llama4"), TrainingArguments(use_cpu=True), None, None, 24, 1)
    assert row["peak_bytes"][0] > row["weights_bytes"][0] > 0


SOME = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NOT_PLANNED = {
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 260, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}, "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4}},
    "longcat_flash": SOME | LATENT | {"num_layers": 2, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 16, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "head_dim": LATENT["qk_rope_head_dim"]},
    "jetmoe": SOME | {"intermediate_size": 64, "kv_channels": 8, "num_local_experts": 4},
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_PLANNED)
def test_a_step_that_cannot_be_planned_says_why(kind, capfd):
    """No traceback, of torch's own log either."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **NOT_PLANNED[kind], dtype="bfloat16")
    reason = "split_sizes" if kind == "jetmoe" else "depends on values, such as which expert"
    with pytest.raises(mt.ModelError, match=rf"This step cannot be run without weights: .*{reason}"):
        plan_trainer(config, {"gradient_checkpointing": False, "max_length": 24}, None, None, None, 1)
    assert "Traceback" not in capfd.readouterr().err
