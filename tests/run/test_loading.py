"""Loading says nothing where it is quick, and leaves transformers' settings as they were."""

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
