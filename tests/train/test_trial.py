"""A trial on this machine: the run is real, and its plan beside it."""

import json
import os
import stat
import sys
import warnings

import pandas as pd
import pytest

import model_tools as mt
from base_model.train import trial
from base_model.train.settings import Precision
from tests.cards import with_card
from tests.train.test_script import LORA, PAIRS, write_data


def test_a_trial_takes_what_was_planned(toy):
    table = mt.try_training(toy, LORA)
    assert list(table.columns) == ["check", "planned", "measured", "difference"]
    peak, seconds = (row for _, row in table.iterrows())
    assert peak["check"] == "peak of 2 x 64 tokens (bytes)" and abs(peak["difference"]) < 0.001
    assert peak["difference"] == pytest.approx(peak["measured"] / peak["planned"] - 1)
    assert seconds["check"] == "seconds per step of 2 x 64 tokens" and 0 < seconds["measured"] < 60
    assert seconds["planned"] > 0


def test_a_trial_on_data_is_planned_at_the_lengths_that_came(toy, tmp_path):
    table = mt.try_training(toy, LORA, write_data(tmp_path / "data.jsonl", PAIRS))
    _, batch, _, tokens, *_ = table["check"][0].split()[1:]
    assert (batch, 30 < int(tokens) < 64) == ("2", True)
    assert abs(table["difference"][0]) < 0.10  # texts of different lengths are padded, and their mask is kept
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize(
    ("row", "steps", "words"),
    [
        (LORA, 2, "steps must be a whole number from 3"),
        (LORA | {"batch": 10**9}, 3, "The plan needs .* smaller batch"),
    ],
)
def test_what_cannot_be_tried_is_told_before_anything_runs(toy, monkeypatch, row, steps, words):
    monkeypatch.setattr(trial, "run_script", None)
    if row["batch"] > 2:
        monkeypatch.setattr(trial, "planned", lambda *_: 10**15)
    with pytest.raises(mt.ModelError, match=words):
        mt.try_training(toy, row, steps=steps)


@pytest.mark.parametrize("texts", [2, 60, 160, 3000])
def test_each_step_has_a_whole_batch_once_some_texts_are_held_out(toy, texts):
    import datasets

    from base_model.architecture.config import read_architecture
    from base_model.train.settings import choice_of

    data = datasets.Dataset.from_dict({"text": list(map(str, range(5000)))})
    made = trial._texts(read_architecture(toy), choice_of(LORA | {"batch": texts // 2, "tokens": 2}), 2)
    for rows in (trial._sample(data, texts), made):
        held_out = min(200, max(1, len(rows) // 10))  # as the script does
        assert texts <= len(rows) - held_out <= 1.2 * texts + trial.HELD_OUT
    assert len(trial._sample(data.select(range(texts)), texts)) == texts


def test_a_model_without_weights_is_told(toy, tmp_path):
    (tmp_path / "config.json").write_bytes((toy / "config.json").read_bytes())
    with pytest.raises(mt.ModelError, match="fetch_model"):
        mt.try_training(tmp_path, LORA)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('CUDA out of memory')", "CUDA out of memory.*smaller batch"),
        ("import os; os.kill(os.getpid(), 9)", "memory runs out"),
    ],
)
def test_a_run_that_fails_says_why(tmp_path, monkeypatch, code, words):
    command = tmp_path / "python"
    command.write_text(f"#!{sys.executable}\n{code}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(command))
    with pytest.raises(mt.ModelError, match=words):
        trial.run_script(tmp_path / "train.py", 3)


def test_an_interrupt_ends_the_run(tmp_path, monkeypatch):
    command = tmp_path / "python"
    command.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(command))

    def interrupt(*_):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "_recorded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trial.run_script(tmp_path / "train.py", 3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_an_unknown_card_has_no_planned_time(toy, monkeypatch):
    """On an accelerator every step has its peak: the largest is compared, at its own batch."""

    from base_model.architecture.config import read_architecture
    from base_model.train.settings import choice_of

    here = Precision("cuda", True, False, "bfloat16")
    monkeypatch.setattr(trial, "precision_here", lambda choice: here)
    with_card(monkeypatch, "NVIDIA Imaginary 1", 2**30, 2**30)
    lines = ['{"batch": 2, "tokens": 64, "seconds": 0.5, "peak_bytes": 99}'] * 2
    lines += ['{"batch": 2, "tokens": 40, "seconds": 0.3, "peak_bytes": 70}']
    with pytest.warns(mt.ModelWarning, match="Times are not planned"):
        table = trial.compared(read_architecture(toy), choice_of(LORA), list(map(json.loads, lines)))
    assert list(table["measured"]) == [99, 0.4]
    assert table["check"][0] == "peak of 2 x 64 tokens (bytes)" and pd.isna(table["planned"][1])


@pytest.mark.parametrize(("times", "told"), [(2.9, 0), (3.1, 1)])
def test_a_step_that_takes_far_longer_than_planned_is_told(toy, monkeypatch, times, told):
    from base_model.architecture.config import read_architecture
    from base_model.train.settings import choice_of

    monkeypatch.setattr(trial, "_seconds", lambda *_: 1.0)
    steps = [{"batch": 2, "tokens": 64, "seconds": times, "peak_bytes": None}] * 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trial.compared(read_architecture(toy), choice_of(LORA), steps)
    assert sum("longer than planned" in str(one.message) for one in caught) == told
