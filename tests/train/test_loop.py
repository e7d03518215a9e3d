"""The memory of a training step on the meta device; real steps on a toy, and measured peaks, are the judges."""

import pytest

import model_tools as mt
from base_model.architecture.config import skeleton_of
from base_model.train.ladder import compare_training
from base_model.train.loop import note_of, plan_training
from tests.plan.test_adapters import llama_config
from tests.plan.test_inference import ARCHITECTURES, config_of

MIB = 2**20
SMALLER = {
    "SmolLM2-135M": {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152},
    "Llama-3.2-1B": {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "head_dim": 64},
    "SmolLM2-1.7B": {"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64, "vocab_size": 49152},
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def test_published_figures_of_llama_3b():
    """Six counts to the digit; four *reserved* peaks, above what is allocated, and five that are allocated."""
    table = mt.check_plans()
    assert len(table) == 19
    assert table["match"].all(), table
    assert (table["difference"].head(6) == 0).all()
    assert table["difference"].iloc[6:10].between(-0.06, 0.02).all()
    assert abs(table["difference"].iloc[10]) < 0.01


@pytest.mark.parametrize(
    ("model", "quantized", "rank", "batch", "tokens", "measured"),
    [
        ("SmolLM2-135M", True, 32, 1, 4096, 3_577),
        ("SmolLM2-135M", False, 32, 1, 4096, 3_148),
        ("SmolLM2-135M", False, 32, 2, 512, 1_027),
        ("Llama-3.2-1B", True, 16, 1, 1024, 3_723),
        ("SmolLM2-1.7B", True, 32, 4, 1024, 5_281),
        ("SmolLM2-1.7B", False, 32, 4, 1024, 6_529),
    ],
)
def test_peaks_measured_on_a_t4(model, quantized, rank, batch, tokens, measured):
    """Peaks in MiB as fitcheck-llm allocated them, float16, checkpointing, memory-efficient attention."""
    import peft

    adapter = peft.LoraConfig(r=rank, target_modules=ATTENTION, task_type="CAUSAL_LM")
    config = llama_config(**SMALLER[model], dtype="float16")
    row = plan_training(config, adapter, tokens, batch, True, quantized, None).iloc[0]
    assert row["peak_bytes"] / MIB == pytest.approx(measured, rel=0.025)


def real_step(folder, adapter):
    """Bytes of gradients and of AdamW's state after one real step on the CPU."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model = peft.get_peft_model(model, adapter) if adapter else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, 250, (2, 30))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    return sum(one.grad.nbytes for one in trained), sum(state.nbytes for state in states)


@pytest.mark.parametrize("name", ["full", "LoRA", "IA-3", "LN tuning", "prompt", "VB-LoRA"])
def test_gradients_and_optimizer_are_those_of_a_real_step(name, toy):
    import peft

    task = {"task_type": "CAUSAL_LM"}
    adapter = {
        "full": None,
        "LoRA": peft.LoraConfig(**task),
        "IA-3": peft.IA3Config(**task),
        "LN tuning": peft.LNTuningConfig(**task),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, **task),
        "VB-LoRA": peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=16, target_modules=["q_proj"], **task),
    }[name]
    row = mt.plan_training(toy, adapter, tokens=30, batch=2).iloc[0]
    gradients, states = real_step(toy, adapter)
    assert row["gradients_bytes"] == gradients > 0
    assert row["optimizer_bytes"] == states
    assert row["weights_bytes"] == sum(one.nbytes for one in stored(toy))


def stored(folder):
    skeleton = mt.skeleton(folder)
    return [*skeleton.parameters(), *skeleton.buffers()]


def saved_for_backward(folder, tokens, batch):
    """Bytes that a real forward keeps for the backward pass, weights left out; eager attention, no logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    own, kept = {one.untyped_storage().data_ptr() for one in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() if 260 not in tensor.shape[-1:] else 0
        return tensor

    ids = torch.randint(0, 250, (batch, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss > 0
    return sum(kept.values())


def test_activations_are_those_that_a_real_forward_saves(toy):
    """The CPU's attention is efficient too; a step's own temporaries come on top."""
    row = mt.plan_training(toy, None, tokens=200, batch=4).iloc[0]
    expected = saved_for_backward(toy, 200, 4)
    assert expected <= row["activations_bytes"] < 1.25 * expected


def test_parts_at_the_peak_add_up_to_it(toy):
    table = mt.compare_training(toy, tokens=64)
    parts = [
        column for column in table if column.endswith("_bytes") and column not in ("peak_bytes", "embedding_bytes")
    ]
    assert (table[parts].sum(axis=1) == table["peak_bytes"]).all()
    args = {"per_device_train_batch_size": 1, "gradient_checkpointing": False}
    largest = mt.plan_trainer(toy, args, tokens=64).iloc[0]
    assert largest["peak_bytes"] == table.loc[0, "peak_bytes"]
    assert (table.loc[0, parts] <= largest[parts]).all()


def test_a_text_as_long_as_the_model_was_made_for_is_no_longer_one():
    config = config_of("llama", max_position_embeddings=32)
    assert note_of(config, 32) == ""
    assert note_of(config, 33) == "the model was made for 32 tokens"


def test_checkpointing_and_quantising_do_what_they_are_for():
    import peft

    adapter, config = peft.LoraConfig(task_type="CAUSAL_LM"), llama_config()
    plain, kept, packed = (
        plan_training(config, adapter, 1024, 1, checkpointing, quantized, None).iloc[0]
        for checkpointing, quantized in ((False, False), (True, False), (True, True))
    )
    assert kept["activations_bytes"] < plain["activations_bytes"] / 5
    assert packed["weights_bytes"] < plain["weights_bytes"] / 2
    # the embedding trap: cast to float32, it outweighs all packed weights
    assert packed["embedding_bytes"] == 2 * plain["embedding_bytes"] == 4 * 394_002_432
    assert packed["embedding_bytes"] > 1344 * MIB


def test_ia3_is_smaller_but_not_lighter():
    rows = compare_training(llama_config(num_hidden_layers=4), tokens=512, batch=1).set_index("method")
    assert rows.loc["IA-3", "adapter_bytes"] < rows.loc["LoRA r16", "adapter_bytes"] / 10
    assert rows.loc["IA-3", "peak_bytes"] > rows.loc["LoRA r16", "peak_bytes"]
    assert rows.loc["full fine-tuning", "peak_bytes"] == rows["peak_bytes"].max()
    assert rows.loc["QLoRA r16, checkpointing", "peak_bytes"] == rows["peak_bytes"].min()


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_step_can_be_measured_for_many_architectures(kind):
    row = plan_training(config_of(kind), None, 24, 2, False, False, None).iloc[0]
    weights = sum(one.nbytes for one in skeleton_of(config_of(kind)).parameters())
    assert row["gradients_bytes"] == weights
    assert row["optimizer_bytes"] == 2 * weights


def test_a_method_that_cannot_be_measured_says_why():
    from transformers import AutoConfig

    config = AutoConfig.for_model("ctrl", vocab_size=260, n_embd=32, dff=64, n_layer=2, n_head=4, n_positions=64)
    table = compare_training(config, tokens=8, batch=1)
    notes = table.set_index("method")["note"]
    assert (table["peak_bytes"].isna() == (table["note"] != "")).all()
    assert "does not support activation checkpointing" in notes["full fine-tuning, checkpointing"]
    assert notes["full fine-tuning"] == ""
    assert "n/a" in [text.get_text() for text in mt.plot_training(table).texts]


@pytest.mark.parametrize("kind", ["mixtral", "gpt2"])
def test_experts_and_padding_are_measured_in_every_way(kind):
    import peft

    config = config_of(kind, dtype="float32", pad_token_id=0)
    adapter = peft.LoraConfig(target_modules="all-linear" if kind == "gpt2" else ["q_proj"], task_type="CAUSAL_LM")
    for given, quantized in ((None, False), (adapter, False), (adapter, True)):
        assert plan_training(config, given, 16, 1, False, quantized, None)["peak_bytes"][0] > 0


def test_attention_that_has_no_efficient_kernel_keeps_its_matrices():
    small = {"vocab_size": 260, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    from transformers import AutoConfig

    config = AutoConfig.for_model("gpt_oss", **small, **heads, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    short, long = (
        plan_training(config, None, n, 1, False, False, "bfloat16")["activations_bytes"][0] for n in (256, 1024)
    )
    assert long > 8 * short  # linear would be 4


def test_the_adapters_copy_of_the_embedding_is_not_the_embedding(toy):
    import peft

    adapter = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    assert mt.plan_training(toy, adapter, tokens=8).loc[0, "embedding_bytes"] == 260 * 32 * 4


def test_an_architecture_that_takes_tokens_one_by_one_is_no_wait(monkeypatch):
    monkeypatch.setattr("base_model.plan.ledger.MOST_OPERATIONS", 500)
    with pytest.raises(mt.ModelError, match="tokens are taken one by one"):
        plan_training(config_of("llama"), None, 24, 1, False, False, None)


def test_what_makes_no_sense_is_refused(toy):
    import peft

    with pytest.raises(mt.ModelError, match="give an adapter"):
        mt.plan_training(toy, None, tokens=8, quantized=True)
    for tokens in (1, "5", 2.5):
        with pytest.raises(mt.ModelError, match="whole number from 2"):
            mt.plan_training(toy, None, tokens=tokens)
    with pytest.raises(mt.ModelError, match="whole number"):
        mt.compare_training(toy, batch=0)
    with pytest.raises(mt.ModelError, match="Nothing is trained"):
        mt.plan_training(toy, peft.LoraConfig(inference_mode=True), tokens=8)
