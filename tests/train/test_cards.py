"""One step on several cards: planned once, the same figures as one card at a time."""

import pytest

import model_tools as mt
from base_model.train import cards as room


@pytest.fixture(scope="module")
def cards(toy):
    return mt.compare_gpus(toy, ["T4", "RTX 4090", "rtx 4090"], tokens=64, batch=2)


def test_each_card_is_there_once(cards):
    assert list(cards["gpu"]) == ["NVIDIA Tesla T4", "NVIDIA GeForce RTX 4090"]
    assert cards["peak_bytes"].nunique() == 1 and set(cards["verdict"]) == {"fits"}


def test_memory_and_time_are_those_of_the_plans_of_one_card(toy, cards):
    from peft import LoraConfig

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    args = {"per_device_train_batch_size": 2, "model_init_kwargs": {"dtype": "bfloat16"}}
    time = mt.plan_time(toy, args, lora, tokens=64, gpu="RTX 4090").iloc[0]
    assert cards["step_s"][1] == pytest.approx(time["step_s"])
    assert cards["hours_per_million"][1] == pytest.approx(1e6 / time["tokens_per_s"] / 3600)
    assert cards["peak_bytes"][1] == mt.plan_trainer(toy, args, lora, tokens=64)["peak_bytes"][0]


def test_a_card_that_is_not_known_is_told_before_anything_is_planned(toy, monkeypatch):
    monkeypatch.setattr(room, "Search", None)
    with pytest.raises(mt.ModelError, match="not known"):
        mt.compare_gpus(toy, ["T4", "RTX 9999 Turbo"])


@pytest.mark.parametrize(
    ("names", "words"), [(None, "names of cards"), ([], "names of cards"), ([4090], "given by its name")]
)
def test_what_names_no_card(toy, names, words):
    with pytest.raises(mt.ModelError, match=words):
        mt.compare_gpus(toy, names)


def test_one_card_may_stand_alone(toy):
    assert list(mt.compare_gpus(toy, "T4", 32, 1)["gpu"]) == ["NVIDIA Tesla T4"]


def test_the_cpu_computes_in_float32(toy):
    from peft import LoraConfig

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    args = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    args["model_init_kwargs"] = {"dtype": "float32"}
    card, cpu = mt.compare_gpus(toy, ["T4", "cpu"], tokens=64, batch=2).to_dict("records")
    assert cpu["peak_bytes"] == mt.plan_trainer(toy, args, lora, tokens=64)["peak_bytes"][0]
    assert cpu["peak_bytes"] > card["peak_bytes"] - (20 << 20)  # without a GPU's workspaces
