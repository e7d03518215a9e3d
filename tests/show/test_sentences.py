"""The sentences that end each section: computed from the table, in whole words."""

import itertools

import pandas as pd
import pytest

import model_tools as mt
from base_model.show import answer_charts, charts, sentences
from base_model.train.ladder import PREPARED, QLORA

G = 2**30


@pytest.fixture
def answer():
    """Three methods of a card with 16 GiB, the last of which does not fit."""
    rows = [
        ("LoRA r16, all linear", True, 1200, 7 * G, "fits", 1500.0, 0.3, 0.5, 0.494),
        ("LoRA r16, all linear", False, 4, 9 * G, "fits", 1400.0, 0.4, 0.6, 0.494),
        ("QLoRA r16, all linear", True, 9, 3 * G, "tight", 900.0, 0.5, 0.8, None),
        ("full fine-tuning", True, 1, 38 * G, "does not fit", float("nan"), float("nan"), float("nan"), 0.472),
    ]
    columns = ["method", "checkpointing", "batch", "least_bytes", "verdict", "tokens_per_s"]
    table = pd.DataFrame(rows, columns=[*columns, "hours_low", "hours_high", "accuracy"])
    peaks = [13 * G, 13 * G, 14 * G, 38 * G]
    table = table.assign(tokens=1024, peak_bytes=peaks, share=[peak * 1.1 / (15 * G) for peak in peaks])
    table["why"] = ["It needs 14.30 of 15.00 GiB."] * 3 + ["One text needs 24.52 GiB more."]
    table["longest"] = pd.array([8192, 2048, 9024, None], dtype="Int64")
    table["trainable"] = pd.array([24_313_856, 24_313_856, 24_313_856, 3_212_749_824], dtype="Int64")
    return table.astype({"accuracy": "Float64"})


def test_the_answer_is_read_aloud(answer):
    words = mt.in_words(answer)
    assert words.startswith(
        "Start with LoRA r16, all linear, with checkpointing: it trains 24,313,856 (~24.3 M) parameters, and a batch of "
        "1,200 texts of up to 1,024 tokens peaks at 13.00 GiB. It needs 14.30 of 15.00 GiB. At batch 1, a text may have up to 8,192 tokens. "
        "One epoch of your data takes 18 to 30 min. "
        "This does not fit, even if the allocator reserves only 4%: full fine-tuning (24.52 GiB too much). "
        "Of the methods that fit, those within"
    )
    assert "not fit" not in mt.in_words(answer.head(3))
    lighter = answer.tail(1).assign(method="full fine-tuning, 8-bit Adam", peak_bytes=30 * G, share=30 * 1.1 / 15)
    both = mt.in_words(pd.concat([answer, lighter], ignore_index=True))
    misses = "full fine-tuning (24.52 GiB too much); full fine-tuning, 8-bit Adam (16.20 GiB"
    assert f"These do not fit, even if the allocator reserves only 4%: {misses}" in both


def test_the_longest_text_is_told_as_recommended_and_with_checkpointing(answer):
    without_first = answer.iloc[[1, 0, 2, 3]]
    assert "may have up to 2,048 tokens, or 8,192 with checkpointing. " in mt.in_words(without_first)
    tight = without_first.assign(verdict=["fits", "does not fit", "fits", "does not fit"])
    assert "may have up to 2,048 tokens. " in mt.in_words(tight)


@pytest.mark.parametrize("longest", [None, 960])
def test_a_longest_text_that_adds_nothing_is_left_out(answer, longest):
    """Rounded down, it can be shorter than the texts that fit, or not there at all."""
    answer.loc[0, "longest"] = longest if longest else pd.NA
    assert "batch 1" not in mt.in_words(answer)


def test_where_nothing_fits_the_nearest_is_named(answer):
    words = mt.in_words(answer.assign(verdict="does not fit", why="One text needs 22.00 GiB more."))
    assert words.startswith("Nothing fits. LoRA r16, all linear comes closest. One text needs 22.00 GiB more.")


def test_the_table_of_the_answer_has_each_method_once(answer):
    table = mt.best_rows(answer, rows=5)
    kept = ", checkpointing"
    assert list(table["method"]) == [
        f"LoRA r16, all linear{kept}",
        f"QLoRA r16, all linear{kept}",
        f"full fine-tuning{kept}",
    ]
    assert list(table["speed"]) == ["1,500 tokens/s", "900 tokens/s", "n/a"]
    assert list(table["accuracy"]) == ["0.494", "n/a", "0.472"]
    assert list(table["trainable"]) == [24_313_856, 24_313_856, 3_212_749_824]
    assert len(mt.best_rows(answer, rows=2)) == 2


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0001, 0.0002, "0.36 to 0.72 s"),
        (0.3, 0.5, "18 to 30 min"),
        (2.0, 3.25, "2.0 to 3.2 h"),
        (210, 340, "210 to 340 h"),
    ],
)
def test_time_has_the_unit_that_suits_it(low, high, words):
    assert sentences.hours_in_words(low, high) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1e15, "1e+15"),
        (1234, "1,200"),
        (100, "100"),
        (99.4, "99"),
        (10, "10"),
        (9.95, "9.9"),
        (1, "1.0"),
        (0.456, "0.46"),
    ],
)
def test_figures_have_two_digits_that_mean_something(value, words):
    assert sentences._round(value) == words


@pytest.mark.parametrize(("second", "told"), [(98.0, "the fastest here"), (98.1, "vary too much")])
def test_a_winner_is_ahead_by_more_than_the_runs_vary(second, told):
    runs = pd.DataFrame(
        {"method": ["a", "b"], "device": "cpu", "tokens_per_s": [100.0, second], "spread": [0.01, 0.02]}
    )
    assert told in mt.in_words(runs)
    assert told in mt.in_words(runs.assign(spread=0.0))  # of a run or two, spread says little


def test_a_sentence_for_what_was_skipped_is_empty_and_other_tables_are_told(answer):
    assert mt.in_words(None) == "" == mt.in_words(answer.head(0))
    with pytest.raises(mt.ModelError, match="no sentence"):
        mt.in_words(pd.DataFrame({"x": [1]}))


def test_a_plan_without_figures_says_its_note():
    plan = pd.DataFrame({"method": ["LoRA"], "peak_bytes": pd.array([pd.NA], dtype="Int64"), "embedding_bytes": 1})
    assert mt.in_words(plan.assign(note="Too long.")) == "No step can be planned. Too long."


def test_one_thing_is_not_written_as_many(toy, base_toy):
    words = mt.in_words(mt.list_files(base_toy))
    assert words.startswith("1 of ") and " files holds the weights" in words
    assert "10 of 10 checks match." in mt.in_words(mt.check_model(toy))


def test_every_table_of_a_model_has_its_sentence(toy):
    for table in (mt.list_files(toy), mt.read_tensors(toy), mt.plan_inference(toy), mt.plan_adapters(toy)):
        assert mt.in_words(table).endswith(".")


def test_single_changes_are_told_by_the_lightest_and_the_heaviest():
    ladder = pd.DataFrame({
        "change": ["TRL's defaults", "half the length", "no checkpointing"], "batch": 4, "tokens": 1024,
        "peak_bytes": [2 * G, G, 3 * G], "difference_bytes": [0, -G, G],
    })  # fmt: skip
    start = "With TRL's defaults, a step of 4 x 1,024 tokens peaks at 2.00 GiB."
    lightest, heaviest = "half the length takes least (1.00 GiB)", "no checkpointing takes most (3.00 GiB)"
    assert mt.in_words(ladder) == f"{start} Of the single changes, {lightest} and {heaviest}."
    assert mt.in_words(ladder.head(2)) == f"{start} Of the single changes, {lightest}."
    assert mt.in_words(ladder.assign(difference_bytes=0)) == f"{start} No single change matters."
    assert mt.in_words(ladder.drop(columns="batch")).startswith("With TRL's defaults, a step peaks at 2.00 GiB.")


@pytest.mark.parametrize(("packed", "prepared", "told"), [(2, 3, "1.00 GiB more"), (3, 3, ""), (2, None, "")])
def test_what_the_preparation_for_4_bits_costs_is_told(packed, prepared, told):
    peaks = pd.array([4 * G, packed * G, None if prepared is None else prepared * G], dtype="Int64")
    ladder = pd.DataFrame(
        {"change": ["TRL's defaults", QLORA, PREPARED], "batch": 4, "tokens": 1024, "peak_bytes": peaks}
    )
    words = mt.in_words(ladder.assign(difference_bytes=ladder["peak_bytes"] - 4 * G))
    assert ("prepare_model_for_kbit_training" in words) == bool(told) and told in words


def test_cards_are_compared_with_the_slowest_of_them():
    cards = pd.DataFrame({
        "gpu": ["CPU", "A100", "T4", "4090"], "verdict": "fits", "tokens_per_s": [10.0, 900.0, 100.0, 620.0],
        "hours_per_million": 1.0, "step_s": 1.0, "low_s": 0.8, "high_s": 1.2, "compute_s": 0.8, "memory_s": 0.1,
        "launch_s": 0.1,
    })  # fmt: skip
    assert (
        " Compared with the T4, the 4090 is 6.2 times and the A100 9.0 times as fast. On the CPU, 80%"
        in mt.in_words(cards)
    )
    assert "times" not in mt.in_words(cards.head(2))


@pytest.mark.parametrize(
    ("longest", "words"),
    [
        ([8192, 8192, 8192], "8,192 tokens in every precision"),
        ([2048, 4096, 8192], "2,048 tokens in float32, 4,096 in int8 and 8,192 in nf4"),
        ([0, 8192, 8192], "8,192 tokens in int8 and 8,192 in nf4"),
        ([0, 0, 8192], "8,192 tokens in nf4"),
    ],
)
def test_the_longest_text_is_told_once_where_it_is_the_same_in_every_precision(longest, words):
    plan = pd.DataFrame({"precision": ["float32", "int8", "nf4"], "largest_context": longest})
    plan = plan.assign(usable_bytes=G, device="cpu").astype({"largest_context": "Int64"})
    assert mt.in_words(plan) == f"With 1.00 GiB free on this machine's cpu, a text may have up to {words}."
    assert "does not fit in any" in mt.in_words(plan.assign(largest_context=0))


# --- The picture of the answer


def places_in(ax):
    return sorted(tuple(offset) for one in ax.collections for offset in one.get_offsets())


def test_the_answer_is_a_point_per_row_and_a_label_per_method(answer):
    ax = mt.plot_recommendation(answer.fillna({"tokens_per_s": 500.0}))  # of a step that does not fit
    assert places_in(ax) == [(3, 900), (7, 1500), (9, 1400), (38, 0)]  # memory and speed
    words = [text.get_text() for text in ax.texts]
    names = ["LoRA r16, all linear (0.494)", "QLoRA r16, all linear", "full fine-tuning (0.472), does not fit"]
    assert all(name in words for name in names)
    assert [word for word in words if word.endswith(" GiB")] == [
        "8 GiB",
        "12 GiB",
        "16 GiB",
        "24 GiB",
        "fits up to 13.6 GiB",
    ]
    assert ax.get_title(loc="left") == "LoRA r16, all linear comes first of 2 methods that fit"
    roomy = mt.plot_recommendation(answer.assign(share=answer["share"] / 100))
    assert not [text for text in roomy.texts if text.get_text().startswith("fits up to")]  # far outside the picture


def test_without_a_speed_each_method_is_a_row(answer):
    ax = mt.plot_recommendation(answer.assign(tokens_per_s=float("nan")))
    assert places_in(ax) == [(3, 1), (7, 0), (9, 0), (38, 2)]  # memory, and the row of the method
    words = [text.get_text() for text in ax.texts]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(answer["method"].unique())
    assert words[:3] == ["fits, 0.494", "fits", "does not fit, 0.472"]


def test_a_method_has_one_colour_and_no_component_has_it():
    colours = [
        answer_charts.method_colour(name)
        for name in ("full fine-tuning, 8-bit Adam", "QLoRA r16", "LoRA", "DoRA", "IA-3")
    ]
    assert len(set(colours)) == 5
    assert not set(colours) & set(mt.plot_components.__globals__["COLOURS"].values())


def test_labels_are_kept_apart_and_within():
    places = charts.spread([0.0, 0.0, 0.5, 0.98, 0.99, 1.0], 0.1)
    assert all(after - before >= 0.1 - 1e-9 for before, after in itertools.pairwise(places))
    assert places[0] == 0 and places[-1] <= 1 and places[2] == 0.5


def test_cards_are_bars_with_their_range():
    table = pd.DataFrame(
        {"gpu": ["A", "B"], "verdict": ["fits", "does not fit"], "step_s": 2.0, "low_s": 1.5, "high_s": 2.5}
    )
    ax = mt.plot_gpus(table.assign(hours_per_million=[0.2, 2.0]))
    assert [text.get_text() for text in ax.texts[:2]] == ["9.0 to 15 min, fits", "1.5 to 2.5 h, does not fit"]
    assert ax.get_title(loc="left") == "A million tokens take 9.0 to 15 min on the A"
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2
    assert ax.get_xlabel() == "hours per million tokens"
    assert ax.patches[1].get_width() == pytest.approx(2.0)
    minutes = mt.plot_gpus(table.assign(hours_per_million=[0.2, 0.4]))
    assert minutes.get_xlabel() == "minutes per million tokens"
    assert [bar.get_width() for bar in minutes.patches] == pytest.approx([12, 24])


# --- A fault in a notebook


def test_in_a_notebook_a_model_error_is_its_sentence(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance().run_cell("import model_tools as mt\nmt.list_files('no-such-folder')")
    said = capsys.readouterr().out.strip()
    assert said.startswith("ModelError: There is no folder") and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "part, doing, change",
    [
        ("compute_s", "computing", "computes more per second"),
        ("memory_s", "moving bytes", "more bandwidth"),
        ("launch_s", "starting operations", "larger batch"),
    ],
)
def test_what_dominates_a_step_is_told_with_what_would_change_it(part, doing, change):
    shares = {"compute_s": 0.1, "memory_s": 0.1, "launch_s": 0.1, part: 0.8}
    plan = pd.DataFrame([{"gpu": "RTX 4090", "step_s": 1.0, "low_s": 0.75, "high_s": 1.25, **shares}])
    words = mt.in_words(plan)
    assert words.startswith("A step takes 0.75 to 1.2 s. On the RTX 4090, 80% of a step is ")
    assert doing in words and change in words
    cards = plan.assign(hours_per_million=2.0, verdict="fits", tokens_per_s=1.0)
    assert words.partition(". ")[2] in mt.in_words(cards)
