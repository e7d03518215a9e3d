"""Plans of two small models by many settings, to the byte, as they were when runs of real trainers agreed with them."""

from pathlib import Path

import peft
import pytest
from transformers import LlamaConfig

from base_model.architecture.config import read_architecture
from base_model.train import published
from base_model.train.gpus import card, gpus
from base_model.train.methods import METHODS, adapter_of, packing_of
from base_model.train.time import step_costs, time_on
from base_model.train.trainer import plan_trainer
from tests.approving import require_approved
from tests.folders import write_toy

APPROVED = Path(__file__).parent / "approved"
CARDS = ("T4", "RTX 4090", "L40S", "A100 PCIe 80GB", "H100 SXM")
BATCH = {"per_device_train_batch_size": 2}
BIG = LlamaConfig(  # so wide that cards compute, rather than wait for their hosts
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=32000, dtype="bfloat16",
)  # fmt: skip
RUNS = {
    "checkpointing": BATCH, "whole": BATCH | {"gradient_checkpointing": False},
    "cpu": BATCH | {"use_cpu": True, "bf16": False}, "fp16": BATCH | {"bf16": False, "fp16": True},
    "four micro-batches": BATCH | {"gradient_accumulation_steps": 4}, "no clipping": BATCH | {"max_grad_norm": 0.0},
    "8-bit": BATCH | {"optim": "adamw_8bit"}, "paged": BATCH | {"optim": "paged_adamw_8bit"},
    "adafactor": BATCH | {"optim": "adafactor"}, "sgd": BATCH | {"optim": "sgd"},
    "whole logits": BATCH | {"loss_type": "nll"},
    "offloading": BATCH | {"activation_offloading": True, "gradient_checkpointing": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return read_architecture(write_toy(tmp_path_factory.mktemp("models") / "toy"))


def cells(*plans):
    """A line for each table of one row."""
    for plan in plans:
        yield " ".join(f"{value:.5g}" if isinstance(value, float) else str(value) for value in plan.iloc[0])


def require(name, lines):
    require_approved(APPROVED / f"{name}.txt", "\n".join(lines) + "\n")


def lora():
    return peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_planned_as_it_was_approved(toy, name):
    require(name, cells(*(plan_trainer(toy, RUNS[name], adapter, tokens=48) for adapter in (None, lora()))))


@pytest.mark.parametrize("devices", [2, 3])
def test_a_shared_run_is_planned_as_it_was_approved(toy, devices):
    shared = (plan_trainer(toy, BATCH, adapter, None, 48, devices) for adapter in (None, lora()))
    require(f"{devices} devices", cells(*shared))


def test_a_run_of_hf_is_planned_as_it_was_approved(toy):
    require("HF's Trainer", cells(plan_trainer(toy, BATCH, lora(), None, 48, trainer="hf")))


@pytest.mark.filterwarnings("ignore::base_model.ModelWarning")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_planned_and_timed_as_it_was_approved(method):
    adapter, packing = adapter_of(BIG, method), packing_of(method)
    args = BATCH | {"optim": method.optim}
    costs, tokens, half = step_costs(BIG, args, adapter, packing, 1024, "trl", None)
    cards = list(gpus()["gpu"]) if method.name == METHODS[-1].name else CARDS
    times = (time_on(costs, tokens, card(gpu), half) for gpu in cards)
    require(method.name, cells(plan_trainer(BIG, args, adapter, packing, 1024), *times))


def test_the_published_figures_are_those_of_their_sources(monkeypatch):
    """PEFT's method comparison and fitcheck-llm; the runs that are planned beside them are those that were measured."""
    planned = []

    def plan(config, adapter, *settings):
        planned.append((adapter and (type(adapter).__name__, getattr(adapter, "r", None)), *settings))
        return {"peak_bytes": [0]}

    def step(config, peft_config, **how):
        planned.append((peft_config and (type(peft_config).__name__, getattr(peft_config, "r", None)), how))
        return {"step_s": [0.0]}

    monkeypatch.setattr(published, "plan_training", plan)
    monkeypatch.setattr(published, "plan_time", step)
    assert [(name, size) for name, size, _ in published._peaks(None)] == [
        ("full fine-tuning, 4 x 768: peak", 38_868_615_168), ("LoRA r32, 4 x 768: peak", 22_292_725_760),
        ("DoRA r32, 4 x 768: peak", 24_532_484_096), ("IA-3, 4 x 768: peak", 23_234_347_008),
        ("QLoRA r16, 1 x 1024, checkpointing: peak", 5_761_961_984),
    ]  # fmt: skip
    assert [seconds for _, seconds, _ in published._steps(None)] == [840 / 7174, 840 / 5941, 840 / 7308, 840 / 2316]
    loop, packed = (768, 4, False, False, None), (1024, 1, True, True, None)
    assert planned[:5] == [
        (None, *loop), (("LoraConfig", 32), *loop), (("LoraConfig", 32), *loop), (("IA3Config", None), *loop),
        (("LoraConfig", 16), *packed),
    ]  # fmt: skip
    how = {"tokens": 210, "gpu": "L40S", "trainer": "plain"}
    how["args"] = {"per_device_train_batch_size": 4, "gradient_checkpointing": False}
    assert planned[5:] == [(kind, how) for kind in (("LoraConfig", 32), ("LoraConfig", 32), ("IA3Config", None), None)]
