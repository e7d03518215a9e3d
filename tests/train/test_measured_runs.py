"""Steps that were measured on a card: each has its architecture, and a sample is planned to some megabytes."""

import pytest

from base_model.train import measured_runs as measured
from base_model.train.gpus import card

# On an H100 and an H200 cuBLAS takes two workspaces of 32 MiB; plans assume 8 MiB and eighths of a MiB, as elsewhere.
HOPPER = 2 * (32 - 8.125) * 2**20
MIB = 2**20


def row(model: str, method: str, tokens: int, **more):
    table = measured.measured_runs()
    kept = (table["model"] == model) & table["method"].str.startswith(method) & (table["tokens"] == tokens)
    for name, value in more.items():
        kept &= table[name] == value
    return table[kept].iloc[:1]


def test_every_run_has_an_architecture_a_card_and_what_was_measured():
    table = measured.measured_runs()
    assert set(table["model"]) == set(measured.MODELS)
    assert all(card(gpu)["gpu"] for gpu in set(table["gpu"]))
    assert {"H100", "H200"} <= set(table["gpu"].map(measured.short))
    assert list(measured.on_page()["method"]) == ["LoRA r16, all linear", "QLoRA r16, all linear"]
    assert (table["peak_bytes"] > 2**30).all() and (table["step_s"] > 0).all()
    assert not table.duplicated(list(table.columns[:-2])).any()


def test_architectures_have_their_published_parameters():
    from transformers import AutoConfig

    from base_model.architecture.config import count_parameters, skeleton_of

    counts = {name: count_parameters(skeleton_of(AutoConfig.for_model(**one))) for name, one in measured.MODELS.items()}
    assert counts == {
        "Llama-3.2-3B": 3_212_749_824, "Mistral-7B-v0.1": 7_241_732_096, "Qwen2.5-0.5B": 494_032_768,
        "Qwen2.5-7B": 7_615_616_512, "Qwen3-1.7B": 1_720_574_976, "gemma-2-2b": 2_614_341_888,
        "OLMoE-1B-7B": 6_919_161_856, "gpt2-xl": 1_557_611_200, "Phi-3-mini": 3_821_079_552,
        "SmolLM2-135M": 134_515_008,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("run", "within"),
    [
        (row("Llama-3.2-3B", "LoRA r16, all linear", 1024, checkpointing=False, arguments=""), 1),
        (row("Llama-3.2-3B", "QLoRA", 1024, checkpointing=True, prepared=False), 2),
        (row("Llama-3.2-3B", "LoRA", 1024, trainer="hf"), 1),
        (row("Qwen3-1.7B", "LoRA", 1024, arguments='{"activation_offloading": true}'), 2),
        (row("OLMoE-1B-7B", "LoRA", 1024), 2),
        (row("Llama-3.2-3B", "IA-3", 1024), 135),  # blocks that torch's allocator leaves unsplit
        (row("Phi-3-mini", "QLoRA", 2048), 25),  # a window shorter than the text: each layer is given a mask
    ],
    ids=lambda value: measured.describe(next(value.itertuples())) if hasattr(value, "itertuples") else str(value),
)
def test_peaks_are_met_but_for_the_workspace(run, within):
    step = measured.compare_measured(run).iloc[0]
    assert step["match"]
    assert step["measured_bytes"] - step["planned_bytes"] == pytest.approx(HOPPER, abs=within * MIB)


def test_a_run_is_described_with_what_else_was_set():
    run = next(row("Llama-3.2-3B", "QLoRA", 1024, prepared=True).itertuples())
    assert measured.describe(run) == ("Llama-3.2-3B, QLoRA r16, all linear, 4 x 1,024, checkpointing, prepared")
    run = next(row("Llama-3.2-3B", "LoRA", 1024, dtype="float32", arguments="").itertuples())
    assert measured.describe(run).endswith("checkpointing, weights in float32")
    run = next(row("Qwen2.5-0.5B", "full", 1024, trainer="hf").itertuples())
    assert measured.describe(run).endswith("8 x 1,024, HF's Trainer")


def test_steps_lie_within_the_range_that_is_planned():
    steps = measured.compare_measured(row("Qwen2.5-7B", "IA-3", 2048)).iloc[0]
    assert steps["within"] and steps["low_s"] < steps["planned_s"] < steps["high_s"]
    assert steps["planned_s"] == pytest.approx(steps["measured_s"], rel=0.1)
