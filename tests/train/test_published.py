"""Published runs of trainers: every one is planned or says why not, and a plan is found where it lies."""

import pandas as pd

from base_model.train import accuracy, runs
from base_model.train.runs import WITHIN


def test_every_published_run_has_an_architecture_or_a_reason():
    table = runs.published_runs()
    planned = table[~table["note"].str.startswith("not planned")]
    assert set(planned["model"]) == set(runs.MODELS)
    assert set(table["measure"]) == {"allocated", "as in README"}
    assert table["source"].str.contains("/").all()
    assert (table["peak_gib"] > 1).all()
    positions = {name: one["max_position_embeddings"] for name, one in runs.MODELS.items()}
    assert (planned["tokens"] <= planned["model"].map(positions)).all()
    assert table.iloc[runs.ON_PAGE]["method"].tolist() == ["full", "lora"]


def test_architectures_have_their_published_parameters():
    from transformers import AutoConfig

    from base_model.architecture.config import count_parameters, skeleton_of

    counts = {name: count_parameters(skeleton_of(AutoConfig.for_model(**one))) for name, one in runs.MODELS.items()}
    assert counts == {
        "mistralai/Mistral-7B-v0.1": 7_241_732_096,
        "NousResearch/Llama-2-70b-hf": 68_976_648_192,
        "Qwen/Qwen-7B-Chat": 7_721_324_544,
    }


def qlora_runs():
    table = runs.published_runs()
    return table[(table["method"] == "qlora") & (table["batch"] == 4) & table["model"].str.contains("Mistral")]


def test_qlora_with_the_libraries_of_its_day_is_met_exactly():
    """Baseline and accelerated: why they differ by 4 GiB is understood when both are planned to a thousandth."""
    table = runs.as_of_their_day(lambda: runs.compare_runs(qlora_runs()))
    assert table["difference"].abs().max() < 1e-3
    assert table["published_bytes"].max() - table["published_bytes"].min() > 3.9 * 2**30


def test_the_page_shows_misses_as_well_as_hits(monkeypatch):
    def compared(table):
        figures = ["a card", "allocated", 2**30, 2**30]
        rows = [
            [
                f"run {one}",
                *figures,
                one,
                one == 0,
                "a note",
                "a/source",
                1000.0,
                1000.0 + 800 * one,
                750.0,
                1250.0 * (1 + one),
            ]
            for one in (0.0, -0.5)
        ]
        names = ["run", "gpu", "measure", "published_bytes", "planned_bytes", "difference", "match", "note", "source"]
        return pd.DataFrame(rows, columns=[*names, "published_tokens_per_s", "planned_tokens_per_s", "slow", "fast"])

    checks = pd.DataFrame([["x", "1", "1", 0.0, True]], columns=["check", "expected", "found", "difference", "match"])
    first = accuracy.measured_runs().head(1)
    monkeypatch.setattr(accuracy, "measured_runs", lambda: first)
    monkeypatch.setattr(accuracy, "compare_runs", compared)
    monkeypatch.setattr(accuracy, "check_plans", lambda: checks)
    page = accuracy.accuracy()
    assert "\n| run -0.5 | a card | allocated | 1.00 GiB | 1.00 GiB | -50.0% | **no** |" in page
    assert "| run 0.0 | a card | 1,000 | 1,000 | 750 to 1,250 | none | yes |" in page
    assert "| run -0.5 | a card | 1,000 | 600 | 750 to 625 | -40.0% | **no** |" in page
    assert "| x | 1 | 1 | none | yes |" in page
    assert " GiB: the plugin has its own fused loss" in page


def test_the_pace_of_a_published_run_is_planned_with_its_memory():
    run = runs.published_runs().iloc[[0]]
    table = runs.compare_runs(run)
    assert table["difference"].abs()[0] < 0.001
    assert table["published_tokens_per_s"][0] == 3062.7
    assert table["slow"][0] < 3062.7 < table["fast"][0]
    assert table["slow"][0] < table["planned_tokens_per_s"][0] < table["fast"][0]


def test_the_page_states_what_differences_are_held_to():
    words = accuracy.OPENING.replace("\n", " ")
    assert "within 5% of an *allocated* peak" in words and WITHIN["allocated"] == (-0.05, 0.05)
    assert "at most 20% below and 5% above" in words and WITHIN["reserved"] == (-0.20, 0.05)
