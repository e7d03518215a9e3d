"""Adapters on the meta device; PEFT on a toy with real weights, and what PEFT published, are the judges."""

import pandas as pd
import pytest

import model_tools as mt
from base_model.plan import adapters
from base_model.train.runs import LLAMA_3_2_3B
from tests.folders import write_toy

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]


def methods():
    """Adapters of many kinds, as `{name: PeftConfig}`."""
    import peft

    task = {"task_type": "CAUSAL_LM"}
    return {
        "LoRA q, v": peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], **task),
        "LoRA all linear": peft.LoraConfig(r=4, target_modules="all-linear", **task),
        "LoRA regex": peft.LoraConfig(r=4, target_modules=r".*\.1\..*q_proj", **task),
        "LoRA with bias": peft.LoraConfig(r=4, lora_bias=True, **task),
        "LoRA, one layer": peft.LoraConfig(r=4, layers_to_transform=[1], **task),
        "LoRA and the embedding": peft.LoraConfig(
            r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], **task
        ),
        "LoRA on the embedding": peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], **task),
        "DoRA": peft.LoraConfig(r=4, use_dora=True, **task),
        "IA-3": peft.IA3Config(**task),
        "IA-3 all": peft.IA3Config(target_modules=SEVEN, feedforward_modules=FEED_FORWARD, **task),
        "LN tuning": peft.LNTuningConfig(**task),
        "VeRA": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"], **task),
        "LoHa": peft.LoHaConfig(r=4, target_modules=["q_proj"], **task),
        "LoKr": peft.LoKrConfig(r=4, target_modules=["q_proj"], **task),
        "AdaLoRA": peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"], **task),
        "prefix": peft.PrefixTuningConfig(num_virtual_tokens=5, **task),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, **task),
        "prefix, projected": peft.PrefixTuningConfig(
            num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=16, **task
        ),
        "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **task),
        "VB-LoRA": peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=16, target_modules=["q_proj"], **task),
    }


NAMES = [
    "LoRA q, v", "LoRA all linear", "LoRA regex", "LoRA with bias", "LoRA, one layer", "LoRA and the embedding",
    "LoRA on the embedding", "DoRA", "IA-3", "IA-3 all", "LN tuning", "VeRA", "LoHa", "LoKr", "AdaLoRA", "prefix", "prompt",
    "prefix, projected", "p-tuning", "VB-LoRA",
]  # fmt: skip


@pytest.fixture(scope="module")
def planned(toy):
    return mt.plan_adapters(toy, methods()).set_index("adapter")


@pytest.mark.parametrize("name", NAMES)
def test_peft_on_real_weights_agrees(name, toy, tmp_path, planned):
    import peft
    from transformers import AutoModelForCausalLM

    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(toy), methods()[name])
    trainable, total = model.get_nb_trainable_parameters()
    row = planned.loc[name]
    assert (row["trainable"], row["total"], row["share"]) == (trainable, total, trainable / total)
    model.save_pretrained(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert row["file_bytes"] == size
    assert mt.insertion_points(toy, methods()[name])["trainable"].sum() == trainable


def test_a_file_of_two_dtypes_is_known_to_the_byte(tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    toy = write_toy(tmp_path / "toy", dtype="bfloat16")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(toy), config)
    model.save_pretrained(tmp_path / "adapter")
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert mt.plan_adapters(toy, {"mine": config})["file_bytes"][0] == size


@pytest.mark.parametrize(
    ("adapter", "trainable", "total", "file_bytes"),
    [
        ("LoRA r32 q, v", 9_175_040, 3_221_924_864, 36_715_216),
        ("LoRA r16, all linear", 24_313_856, 3_237_063_680, None),
        ("IA-3", 286_720, 3_213_036_544, 1_157_064),
        ("IA-3, all projections", 630_784, 3_213_380_608, 2_546_928),
        ("LN tuning", 175_104, 3_212_924_928, 358_288),
        ("DoRA r32", 9_289_728, 3_222_039_552, 37_181_760),
        ("LoRA r64", 18_350_080, 3_231_099_904, 73_415_408),
        ("VeRA", 129_024, 3_212_878_848, None),
    ],
)
def test_published_adapters_of_llama_3b(adapter, trainable, total, file_bytes):
    import peft

    config = llama_config()
    given = adapters.default_adapters(adapters.skeleton_of(config)) | {
        "LoRA r32 q, v": peft.LoraConfig(r=32, task_type="CAUSAL_LM"),
        "LoRA r64": peft.LoraConfig(r=64, task_type="CAUSAL_LM"),
        "DoRA r32": peft.LoraConfig(r=32, use_dora=True, task_type="CAUSAL_LM"),
        "VeRA": peft.VeraConfig(r=256, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    }
    row = adapters.plan_adapters(config, {adapter: given[adapter]}).iloc[0]
    assert (row["trainable"], row["total"]) == (trainable, total)
    assert file_bytes is None or row["file_bytes"] == file_bytes
    assert row["note"] == ""


def llama_config(**more):
    from transformers import LlamaConfig

    return LlamaConfig(**LLAMA_3_2_3B | more)


def test_published_counts_of_the_smaller_models():
    import peft

    small = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    smol = llama_config(**small, num_key_value_heads=3, head_dim=64, vocab_size=49152)
    one = llama_config(num_hidden_layers=16, hidden_size=2048, num_attention_heads=32, head_dim=64)
    given = {
        "all": peft.LoraConfig(r=16, target_modules="all-linear"),
        "q, v": peft.LoraConfig(r=8),
        "IA-3": peft.IA3Config(),
    }
    assert list(adapters.plan_adapters(smol, given)["trainable"]) == [4_884_480, 460_800, 57_600]
    assert adapters.plan_adapters(one, {"all": given["all"]})["trainable"][0] == 11_272_192


def test_the_defaults_tell_their_targets(toy):
    table = mt.plan_adapters(toy).set_index("adapter")
    assert list(table.index) == [
        "LoRA r16",
        "LoRA r16, attention",
        "LoRA r16, all linear",
        "DoRA r16",
        "DoRA r16, all linear",
        "IA-3",
        "IA-3, all projections",
        "LN tuning",
    ]
    assert table.loc["LoRA r16", "targets"] == "q_proj, v_proj"
    assert table.loc["LoRA r16, attention", "targets"] == "q_proj, k_proj, v_proj, o_proj"
    assert table.loc["IA-3", "targets"] == "k_proj, v_proj, down_proj"
    assert (table["layers"] == 2).all()
    assert (table["note"] == "").all()


@pytest.mark.parametrize("kind", ["gpt2", "smollm3", "olmo2", "mixtral"])
def test_defaults_exist_where_peft_has_none(kind):
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_hidden_layers=2)
    table = adapters.plan_adapters(config, None)
    assert table["trainable"].gt(0).all()
    assert table["layers"].eq(2).all()


def test_targets_that_match_nothing_are_an_error(toy):
    import peft

    with pytest.raises(mt.ModelError, match=r"LoraConfig.*nothing_here.*linear modules are q_proj, k_proj"):
        mt.plan_adapters(toy, {"mine": peft.LoraConfig(target_modules=["nothing_here"])})
    with pytest.raises(mt.ModelError, match="PeftConfig"):
        mt.plan_adapters(toy, {"mine": "lora"})


def test_targets_that_match_in_part_are_told(toy):
    import peft

    table = mt.plan_adapters(
        toy, {
            "typo": peft.LoraConfig(target_modules=["q_proj", "w_proj"]),
            "half": peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[1]),
        },
    )  # fmt: skip
    assert list(table["note"]) == ["no module is called w_proj", "acts in 1 of 2 layers"]


def test_notes_are_about_the_model_not_about_the_choice(toy):
    import peft

    given = {
        "excluded": peft.LoraConfig(target_modules="all-linear", exclude_modules=["q_proj"]),
        "saved": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["nope"]),
    }
    assert list(mt.plan_adapters(toy, given)["note"]) == ["", "no module is called nope"]


def test_adapters_are_given_by_name(toy):
    import peft

    with pytest.raises(mt.ModelError, match="Give adapters by name"):
        mt.plan_adapters(toy, peft.LoraConfig())
    assert mt.plan_adapters(toy, {}).empty


def test_a_file_that_is_not_what_is_trained_is_told(planned, toy):
    import peft

    assert "only the prompt, not the encoder" in planned.loc["p-tuning", "note"]
    assert "at its starting rank, 12: training prunes it to 8" in planned.loc["AdaLoRA", "note"]
    cpt = peft.CPTConfig(cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2], task_type="CAUSAL_LM")
    row = mt.plan_adapters(toy, {"CPT": cpt}).iloc[0]
    assert row["trainable"] == 2 * 32
    assert pd.isna(row["file_bytes"])
    assert "file size is not known" in row["note"]


def test_a_method_that_looks_at_the_weights_says_so(toy):
    import peft

    row = mt.plan_adapters(toy, {"BOFT": peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4)}).iloc[0]
    assert row["note"].startswith("PEFT cannot build it without weights")
    assert pd.isna(row["trainable"])
    assert mt.plot_adapters(pd.DataFrame([row])).texts[0].get_text() == "n/a"


def test_insertion_points_are_the_modules(toy):
    import peft

    table = mt.insertion_points(toy, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert list(table.columns) == ["module", "layer", "component", "shape", "trainable"]
    first = table.iloc[0]
    assert tuple(first) == ("model.layers.0.self_attn.q_proj", 0, "attention", (32, 32), 4 * (32 + 32))
    assert table.loc[table["component"] == "mlp", "shape"].tolist() == [(32, 64), (32, 64)]
    prompt = mt.insertion_points(toy, peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"))
    assert prompt["module"].tolist() == ["prompt_encoder"]
    assert prompt["layer"].isna().all()


def test_a_given_config_is_not_changed(toy):
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM")
    mt.plan_adapters(toy, {"mine": config})
    assert config.target_modules is None
