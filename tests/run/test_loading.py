"""Loading says nothing where it is quick, and leaves transformers' settings as they were."""

import shutil

import pytest

import model_tools as mt
from base_model.run import loading


def test_a_quick_load_shows_no_bar(toy, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.utils.are_progress_bars_disabled", lambda: False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    mt.load_model(toy)
    assert "Loading weights" not in capfd.readouterr().err


def test_bars_wait_three_seconds_and_go_when_they_are_full():
    from transformers.utils import logging

    with loading._late_bars():
        options = logging._tqdm_hook(lambda *_, **options: options, (), {"desc": "Loading weights"})
    assert options["delay"] == 3 and options["leave"] is False and options["desc"] == "Loading weights"
    assert logging._tqdm_hook is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"eos_token_id": [25],', "generation_config.json is not valid JSON"),
        ('{"bos_token_id": "x"}', "'x' as bos_token_id"),
        ('{"pad_token_id": 18446744073709551616}', "as pad_token_id"),
        ('{"eos_token_id": [2, -1]}', "-1 as eos_token_id"),
    ],
)
def test_special_tokens_that_are_none_are_told(text, words, toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "toy" / "generation_config.json").write_text(text)
    with pytest.raises(mt.ModelError, match=words):
        mt.load_model(tmp_path / "toy")


def test_no_end_of_text_is_no_fault(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "toy" / "generation_config.json").write_text('{"eos_token_id": []}')
    assert mt.load_model(tmp_path / "toy")[0].generation_config.eos_token_id is None


@pytest.mark.parametrize(
    ("stated", "pad"), [({"eos_token_id": [2, 5]}, 2), ({"eos_token_id": 5, "pad_token_id": 7}, 7)]
)
def test_without_a_pad_token_the_first_end_of_text_pads(stated, pad):
    from transformers import GenerationConfig

    made = loading._greedy(GenerationConfig(**stated, temperature=0.3, do_sample=True))
    assert (made.pad_token_id, made.eos_token_id, made.do_sample) == (pad, stated["eos_token_id"], False)
