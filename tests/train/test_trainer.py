"""The plan of a trainer's step; real runs on the CPU, and torch's own tracker of memory, are the judges."""

import re

import pytest

from base_model import ModelError, ModelWarning
from tests.folders import toy_tokenizer
from tests.train.real_run import added_by_a_step

MIB = 2**20


@pytest.fixture(scope="module")
def wide_toy(tmp_path_factory):
    """A toy whose layers outweigh its vocabulary, so that a peak may lie in any of a step's moments."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
    sizes = {"vocab_size": 260, "hidden_size": 128, "intermediate_size": 512, "max_position_embeddings": 512}
    folder = tmp_path_factory.mktemp("trained") / "wide"
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=256, eos_token_id=257)).save_pretrained(folder)
    toy_tokenizer(chat=True).save_pretrained(folder)
    return folder


def lora(**more):
    import peft

    return peft.LoraConfig(**{"r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | more)


def ia3():
    import peft

    return peft.IA3Config(task_type="CAUSAL_LM")


def nothing():
    return None


def planned_ledger(folder, arguments, adapter=None, tokens=64, trainer="trl", quantization=None):
    """What the planned step does on the CPU, as a ledger."""
    import tempfile

    from transformers import TrainingArguments

    from base_model.architecture.config import read_architecture
    from base_model.train.arguments import planned_run
    from base_model.train.trainer import measure

    args, load = {"use_cpu": True} | arguments, None
    with tempfile.TemporaryDirectory() as out:
        if trainer == "hf":
            load = args.pop("model_init_kwargs", None)
            args = TrainingArguments(output_dir=out, **args)
        run = planned_run(args, tokens, load, out)
        return measure(read_architecture(folder), run, adapter, quantization)[0]


def both(folder, arguments, adapter, tokens, trainer="trl"):
    """What a step adds at most to what was there when it began: planned, and of a real run."""
    ledger = planned_ledger(folder, arguments, adapter(), tokens, trainer)
    return ledger.peak - ledger.start_total, added_by_a_step(folder, arguments, adapter(), tokens, trainer)


FOUR = {"per_device_train_batch_size": 4}
EAGER = {"model_init_kwargs": {"attn_implementation": "eager"}}
REENTRANT = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
WHOLE = {"loss_type": "nll"}  # logits as they are; TRL's default works in chunks that outweigh a toy
RUNS = [
    *((one, {"gradient_checkpointing": kept} | WHOLE, "trl") for one in (lora, ia3, nothing) for kept in (True, False)),
    (lora, {}, "trl"),
    (nothing, {"gradient_accumulation_steps": 5} | WHOLE, "trl"),
    (nothing, {"optim": "adamw_torch"} | WHOLE, "trl"),
    (nothing, {"optim": "adafactor"} | WHOLE, "trl"),
    (nothing, {"optim": "sgd"}, "trl"),
    (lora, {"bf16": False} | WHOLE, "trl"),
    (lora, EAGER | WHOLE, "trl"),
    (nothing, REENTRANT | WHOLE, "trl"),
    (lora, {"gradient_checkpointing": False}, "hf"),
    (nothing, {"gradient_checkpointing": True, "bf16": True, "label_smoothing_factor": 0.1}, "hf"),
]


@pytest.mark.parametrize(("adapter", "arguments", "trainer"), RUNS, ids=lambda one: getattr(one, "__name__", str(one)))
def test_the_plan_is_what_a_real_run_takes(adapter, arguments, trainer, wide_toy):
    planned, real = both(wide_toy, FOUR | arguments, adapter, 64, trainer)
    assert planned == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"devices": 1025}, "to 1,024"),
        ({"args": {"gradient_accumulation_steps": 10_001}}, "to 10,000"),
        ({"args": {"fsdp": True}}, "FSDP on one device"),
    ],
)
def test_more_than_can_be_planned_is_refused_at_once(toy, more, words):
    import model_tools as mt

    with pytest.raises(ModelError, match=words):
        mt.plan_trainer(toy, tokens=8, **more)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_step_of_many_micro_batches_is_that_of_three(devices, monkeypatch):
    from base_model.train import arguments
    from base_model.train.operations import Tape
    from base_model.train.trainer import measured
    from tests.train.test_sharding import toy_config

    def planned():
        tape, given = Tape(), {"gradient_accumulation_steps": 6, "per_device_train_batch_size": 2}
        ledger, _, run = measured(toy_config(), given, lora(), None, 64, devices, observe=tape)
        return ledger.peak, ledger.most, run.accumulation, sum(cost.flops * n for cost, n in tape.costs.items())

    three = planned()
    monkeypatch.setattr(arguments, "MICRO_STEPS", 99)
    assert three == planned()


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_plan_is_what_the_demo_model_takes(checkpointing, demo, tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    for file in demo.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    full = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}}  # many CPUs take minutes in bfloat16
    arguments = {"per_device_train_batch_size": 1, "gradient_checkpointing": checkpointing} | full
    planned, real = both(folder, arguments, lora, 64)
    assert planned == pytest.approx(real, rel=1e-3)
    assert planned > 60 * MIB


def test_only_fake_tensors_take_the_quick_way():
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from base_model.plan.ledger import _all_fake

    real = torch.ones(2)
    fake = FakeTensorMode().from_tensor(real)
    assert _all_fake((fake, 1)) and not _all_fake((fake, real))


def test_the_workspace_is_what_cublas_states():
    """`:4096:2:16:8` unless CUBLAS_WORKSPACE_CONFIG says else: pairs of KiB and how many; for two threads' handles."""
    from base_model.train.trainer import WORKSPACE_BYTES

    stated = re.findall(r":(\d+):(\d+)", ":4096:2:16:8")
    assert sum(int(size) * int(count) for size, count in stated) * 1024 * 2 == WORKSPACE_BYTES


def test_gradients_of_one_tensor_are_added_in_place():
    """Three of them, for a tensor used three times: the first takes up the others, as the profiler sees on the CPU."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.profiler import profile

    from base_model.plan.ledger import Ledger

    def backward(sums):
        whole = torch.empty(1000, requires_grad=True)
        middle = whole * 2
        loss = (middle * 2 + middle * 3 + middle * 4).sum()
        with sums:
            loss.backward()
        return sums

    with FakeTensorMode():
        ledger = Ledger(vocabulary=0)
        ledger.moment = "backward"
        backward(ledger)
    events = backward(profile(profile_memory=True)).profiler.kineto_results.events()
    now = most = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert ledger.peak == pytest.approx(most, abs=64)  # numbers of one element


def tracked(folder, arguments, adapter=None):
    """The peak of the planned step by our ledger, and by torch's own tracker, which sees each operation first."""
    from unittest import mock

    import torch
    from torch.distributed._tools.mem_tracker import MemTracker

    from base_model.plan import ledger as room

    tracker = MemTracker()
    tracker._mod_tracker = mock.MagicMock(
        is_bw=False
    )  # by module is not asked, and its hooks want gradients everywhere

    class Both(room.Ledger):
        def start(self):
            super().start()
            now = tracker.get_tracker_snapshot()
            tracker._peak_mem = {device: kinds["Total"] for device, kinds in now.items()}

        def __enter__(self):
            super().__enter__()
            tracker.__enter__()
            return self

        def __exit__(self, *error):
            tracker.__exit__(*error)
            super().__exit__(*error)

    with mock.patch.object(room, "Ledger", Both):
        ledger = planned_ledger(folder, arguments, adapter)
    return ledger.peak, tracker._peak_mem[torch.device("cpu")]


@pytest.mark.parametrize("adapter", [lora, nothing], ids=["lora", "full"])
@pytest.mark.parametrize("arguments", [{}, {"optim": "adafactor"}, {"gradient_accumulation_steps": 2}], ids=str)
def test_torch_s_own_tracker_counts_the_same_bytes(adapter, arguments, toy):
    ours, torchs = tracked(toy, FOUR | {"gradient_checkpointing": False} | arguments, adapter())
    assert ours == torchs


def plan(folder_or_config, args=None, adapter=None, quantization=None, **more):
    """The plan's row, of texts of 64 tokens."""
    from base_model.architecture.config import read_architecture
    from base_model.train.trainer import plan_trainer

    config = folder_or_config if hasattr(folder_or_config, "model_type") else read_architecture(folder_or_config)
    return plan_trainer(config, args, adapter, quantization, 64, **more).iloc[0]


def nf4(**more):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **more)


def gptq(**more):
    from transformers import GPTQConfig

    return GPTQConfig(**{"bits": 4, "group_size": 32} | more)


FLASH = {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}}
HALF = {"model_init_kwargs": {"dtype": "float16"}}
REFUSED = [
    ({"bf16": True, "fp16": True}, nothing, None, "contradict each other"),
    ({"fp16": True} | HALF, nothing, None, "GradScaler refuses gradients in half precision"),
    ({"fp16": True}, lora, nf4, "TRL keeps the adapters of a quantised base in bfloat16"),
    ({}, nothing, nf4, "cannot be trained themselves"),
    ({"optim": "galore_adamw"}, nothing, None, "'galore_adamw' cannot be planned. These can be: adamw_torch, "),
    ({"optim": "adamx"}, nothing, None, "adamx is not a valid OptimizerNames"),
    ({"packing": True}, nothing, None, "needs flash attention"),
    ({"activation_offloading": True, "use_cpu": True, "bf16": False}, nothing, None, "use_cpu has none"),
    ({"use_liger_kernel": True}, nothing, None, "Liger"),
    ({"learning_rat": 1}, nothing, None, "Did you mean learning_rate"),
    ({"per_device_train_batch_size": 0}, nothing, None, "per_device_train_batch_size must be a whole number from 1"),
    ({"model_init_kwargs": {"attn_implementation": "flex_attention"}}, nothing, None, "use sdpa"),
    ({}, lambda: lora(use_dora=True, target_modules=["q_proj"]), gptq, "GPTQLoraLinear does not support DoRA"),
    ({}, ia3, gptq, "IA3Config is not planned on it"),
    ({}, lora, lambda: gptq(bits=3), "2, 4 or 8"),
    ({}, lambda: lora(target_modules=["nothing"]), None, "nothing"),
    ({}, lambda: lora(inference_mode=True), None, "Nothing is trained"),
]


@pytest.mark.parametrize(("args", "adapter", "quantization", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_planned_is_said(args, adapter, quantization, words, toy):
    with pytest.raises(ModelError, match=words):
        plan(toy, args, adapter(), quantization and quantization())


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("adapter", [lora, nothing])
def test_a_bar_shows_the_whole_step_and_changes_nothing(adapter, checkpointing, devices, toy, monkeypatch):
    from base_model.architecture.config import read_architecture
    from base_model.train.trainer import measured

    bars = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, count):
            self.n += count

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    settings = {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 2}
    how = (read_architecture(toy), settings, adapter(), None, 32, devices)
    (plain, *_), (watched, *_) = measured(*how), measured(*how, bar=True)
    assert (watched.peaks, watched.most) == (plain.peaks, plain.most)
    (bar,) = bars
    assert 0.95 * bar.total <= bar.n <= bar.total  # the embedding is outside checkpointing, and runs once


def test_a_text_longer_than_the_model_is_refused(toy):
    from base_model.architecture.config import read_architecture
    from base_model.train.trainer import plan_trainer

    with pytest.raises(ModelError, match="made for 512 tokens, but a text has 600"):
        plan_trainer(read_architecture(toy), tokens=600)


def test_optimizers_are_those_that_transformers_names():
    from transformers.training_args import OptimizerNames

    from base_model.train.arguments import OPTIMIZERS

    assert set(OPTIMIZERS) < {one.value for one in OptimizerNames}


def test_paged_states_lie_beside_the_card():
    """Those of at least 100,000 weights do: here the embedding's two, in float32."""
    from tests.plan.test_inference import config_of

    config = config_of("llama", vocab_size=4096, tie_word_embeddings=True)
    paged, plain = (plan(config, {"optim": f"{name}adamw_8bit"}) for name in ("paged_", ""))
    assert plain["host_bytes"] == 0
    assert paged["host_bytes"] == 2 * 4 * 4096 * 64
    assert paged["optimizer_bytes"] == plain["optimizer_bytes"] - paged["host_bytes"]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloaded_activations_lie_beside_the_card(checkpointing, wide_toy):
    """All that backward needs goes, but the last few and what the head takes"""
    settings = {"per_device_train_batch_size": 4, "gradient_checkpointing": checkpointing}
    kept = plan(wide_toy, settings, lora())
    moved = plan(wide_toy, settings | {"activation_offloading": True}, lora())
    assert kept["host_bytes"] == 0
    if checkpointing:
        assert moved["host_bytes"] >= wide_checkpoints(wide_toy, 4 * 64)
    else:
        assert moved["host_bytes"] > 0.7 * kept["activations_bytes"]
        assert moved["peak_bytes"] < kept["peak_bytes"] - 0.4 * kept["activations_bytes"]


def wide_checkpoints(folder, tokens):
    from base_model.architecture.config import read_architecture

    config = read_architecture(folder)
    return config.num_hidden_layers * tokens * config.hidden_size * 4


def test_gptq_refuses_experts_in_one_tensor_alone():
    """A shared expert is a matrix, and a convolution has three dimensions, too."""
    import torch

    from base_model.train.gptq import _refuse_experts

    class Block(torch.nn.Module):
        def __init__(self, **shapes):
            super().__init__()
            for name, shape in shapes.items():
                self.register_parameter(name, torch.nn.Parameter(torch.empty(shape)))

    _refuse_experts(Block(shared_expert=(4, 4), conv1d=(4, 1, 4)))
    with pytest.raises(ModelError, match="experts holds all experts"):
        _refuse_experts(Block(experts=(2, 4, 4)))


def test_gptq_is_counted_as_it_is_stored(toy):
    """Half a byte per weight; a zero of half a byte and a scale of two per 32 inputs; four bytes per input's group."""
    row = plan(toy, {"use_cpu": True}, lora(target_modules=["q_proj"]), gptq())
    sizes = 2 * [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    packed = sum(n * m // 2 + n // 32 * m * 5 // 2 + 4 * n for n, m in sizes)
    rest = 4 * (260 * 32 + 5 * 32 + 4 + 4)  # embedding, norms, two buffers of rotary frequencies
    assert row["weights_bytes"] == packed + rest


def test_a_prepared_base_trains_in_float32(toy_bf16):
    """bitsandbytes returns what it is given: after norms in float32, the residual stream is float32."""
    plain, prepared = (plan(toy_bf16, None, lora(), nf4(), prepared=one) for one in (False, True))
    assert prepared["embedding_bytes"] == 2 * plain["embedding_bytes"] == 4 * 260 * 32
    assert prepared["activations_bytes"] > 1.2 * plain["activations_bytes"]


@pytest.fixture(scope="module")
def toy_bf16(tmp_path_factory):
    from tests.folders import write_toy

    return write_toy(tmp_path_factory.mktemp("half") / "toy", dtype="bfloat16")


def test_dora_unpacks_a_quantised_weight(toy_bf16):
    """Its norm needs the weight itself, in float32 as its factors are."""
    plain, dora = (plan(toy_bf16, None, lora(use_dora=one), nf4()) for one in (False, True))
    assert dora["adapter_bytes"] > plain["adapter_bytes"]
    assert dora["activations_bytes"] > plain["activations_bytes"]


def test_float16_takes_what_bfloat16_takes(toy):
    half, brain = (
        plan(toy, {name: True, "model_init_kwargs": {"dtype": dtype}}, lora())
        for name, dtype in (("fp16", "float16"), ("bf16", "bfloat16"))
    )
    assert half["peak_bytes"] == brain["peak_bytes"]


def test_experts_that_stay_unpacked_are_told():
    from tests.plan.test_inference import config_of

    with pytest.warns(ModelWarning, match="768.00 KiB, stay unpacked"):
        plan(config_of("mixtral"), None, lora(target_modules=["q_proj"]), nf4())


@pytest.mark.parametrize(("given", "cuda"), [({}, True), ({"use_cpu": False}, True), ({"use_cpu": True}, False)])
def test_a_card_is_planned_unless_the_cpu_is_asked_for(given, cuda, tmp_path):
    from base_model.train.arguments import planned_run

    assert planned_run(given, 64, None, str(tmp_path)).cuda == cuda


def test_arguments_in_a_dict_may_be_those_of_hf_s_trainer(toy):
    """Whole logits, three copies of them in float32; and no card is asked for."""
    from base_model.train import planning

    args = {"bf16": True, "per_device_train_batch_size": 4}
    by_name = planning.plan_trainer(toy, args, tokens=64, trainer="hf")
    assert by_name["logits_bytes"][0] >= 3 * 4 * 64 * 260 * 4
    with pytest.raises(ModelError, match="TrainingArguments has no argument 'packing'"):
        plan(toy, {"packing": True}, trainer="hf")
    with pytest.raises(ModelError, match="not 'hff'"):
        plan(toy, trainer="hff")


def test_a_trainer_that_says_nothing_of_lengths_is_planned_at_those_of_trl():
    import dataclasses

    from trl import SFTConfig

    from base_model.train.arguments import DEFAULT_TOKENS

    usual = {field.name: field.default for field in dataclasses.fields(SFTConfig)}
    assert usual["max_length"] == DEFAULT_TOKENS
