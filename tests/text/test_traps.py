"""Tokenizers that would hang, fill the memory or fail in ways of their own are told, soon and in words."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

import model_tools as mt
from base_model.text import measure, tame
from tests.folders import toy_tokenizer


def replacing(letter, times, kind="normalizer"):
    """Rules of which each makes two of one letter."""
    rule = {"type": "Replace", "pattern": {"String": letter}, "content": letter * 2}
    return {kind: {"type": "Sequence", f"{kind}s": [rule] * times}}


def pattern(text):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": text}, "behavior": "Isolated", "invert": False}}


def padded(size):
    one = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    return {"padding": one | {"strategy": {"Fixed": size}}}


def vocabulary(count):
    return {"model": {"type": "BPE", "vocab": {f"w{number}": number for number in range(count)}, "merges": []}}


def added(count):
    one = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"added_tokens": [one | {"id": 300 + number, "content": f"<{number}>"} for number in range(count)]}


@pytest.fixture
def folder(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("base_model.text.tame.TOKENIZER_SECONDS", 1)
    return shutil.copytree(toy, tmp_path / "folder")


def change(folder, name="tokenizer.json", **fields):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BOMBS = {
    "a normaliser that doubles": (replacing("a", 45), "s or 4.00 GiB"),
    "a normaliser that doubles a little": (replacing("e", 10), "it turns"),
    "a decoder that doubles": (replacing("e", 40, "decoder"), "s or 4.00 GiB"),
    "a pattern that backtracks": (pattern("(a|a|aa)+$|(a|b|ab)*c"), ""),
    "padding without end": (padded(2 * 10**9), ""),
    "padding of a million": (padded(10**6), "into 1,000,000 tokens"),
    "a vocabulary of a million and one": (vocabulary(1_000_001), "1,000,001 words; the limit is 1,000,000"),
    "a hundred thousand added tokens": (added(100_000), "100,000 added tokens"),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_soon(bomb, folder):
    fields, words = BOMBS[bomb]
    change(folder, **fields)
    start = time.process_time()
    try:
        (mt.load_model if bomb == "padding of a million" else mt.describe_tokenizer)(folder)
    except mt.ModelError as error:
        assert words in str(error)
    else:
        assert not words
    assert time.process_time() - start < 5


def test_the_work_has_5_seconds_and_more_for_long_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(measure.signal, "setitimer", lambda *given: asked.append(given))
    for characters in (0, 100_000):
        measure._limit_time(characters)
    assert asked == [(measure.signal.ITIMER_PROF, 5.0), (measure.signal.ITIMER_PROF, 7.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS refuses such a limit")
def test_the_work_has_4_gib_beyond_what_its_process_has(monkeypatch):
    import resource

    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, *limits)))
    measure._limit_memory()
    taken = int(re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    ((kind, soft, hard),) = asked
    assert kind == resource.RLIMIT_AS
    assert soft == hard == pytest.approx(taken + 4 * 2**30, abs=2**26)


@pytest.mark.parametrize(
    "trap", ["{{ text * 30000000 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"]
)
def test_a_template_that_runs_away_on_one_prompt_only(trap, toy, tmp_path):
    """Each prompt is rendered first where it can do no harm, whatever is made of it afterwards."""
    shutil.copytree(toy, tmp_path / "toy")
    text = "{% set text = messages[0].content %}{% if text|length > 40 %}" + trap + "{% endif %}{{ text }}"
    (tmp_path / "toy" / "chat_template.jinja").write_text(text)
    model, tokenizer = mt.load_model(tmp_path / "toy")
    assert mt.generate_manually(model, tokenizer, "short", 1, runs=1).new_tokens == 1
    for method in (mt.generate_manually, mt.generate_with_pipeline):
        with pytest.raises(mt.ModelError, match="The chat template does not work"):
            method(model, tokenizer, "a prompt of more than forty characters, as most are", 1)


def test_a_long_prompt_is_shown_whole(toy):
    assert len(mt.show_prompt(toy, "x" * 200_000)) > 200_000


def test_a_bomb_in_ones_own_text_is_refused(folder):
    """The trap is set for a letter that no page of ours holds."""
    change(folder, **replacing("ß", 45))
    assert len(mt.show_tokens(folder, "plain")) == 5
    for function in (mt.show_tokens, mt.draw_tokens, mt.describe_tokenizer, mt.show_prompt):
        with pytest.raises(mt.ModelError, match="more than 1 s or"):
            function(folder, "Straße")


@pytest.mark.parametrize("name", ["added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"])
def test_tokens_without_end_in_the_settings(name, folder):
    tokens = [f"<{number}>" for number in range(60_000)]
    change(folder, "tokenizer_config.json", **{name: dict(enumerate(tokens)) if "decoder" in name else tokens})
    with pytest.raises(mt.ModelError, match="60,000"):
        mt.describe_tokenizer(folder)


@pytest.mark.parametrize(
    ("held", "most"),
    [
        (lambda items: {"model": {"vocab": items}}, 1_000_000),
        (lambda items: {"model": {"merges": items}}, 1_000_000),
        (lambda items: {"added_tokens": items}, 50_000),
        (lambda items: {"added_tokens_decoder": items}, 50_000),
        (lambda items: {"extra_special_tokens": items}, 50_000),
        (lambda items: {"additional_special_tokens": items}, 50_000),
    ],
)
def test_as_many_tokens_as_may_be(held, most):
    tame._require_few("tokenizer.json", held([0] * most))
    with pytest.raises(mt.ModelError, match=f"the limit is {most:,}"):
        tame._require_few("tokenizer.json", held([0] * (most + 1)))


def test_a_word_that_is_not_known_is_told(folder):
    """WordLevel without its unknown token fails at each word that it does not know."""
    change(folder, model={"type": "WordLevel", "vocab": {"to": 0, "be": 1}, "unk_token": "[UNK]"}, decoder=None,
           normalizer=None, pre_tokenizer={"type": "Whitespace"}, post_processor=None)  # fmt: skip
    assert list(mt.show_tokens(folder, "to be to")["token_id"]) == [0, 1, 0]
    for function in (mt.show_tokens, mt.draw_tokens, mt.describe_tokenizer):
        with pytest.raises(mt.ModelError, match=r"cannot split this text: .*Missing"):
            function(folder, "or not")


class PanicException(BaseException):
    """As pyo3 names it: no Exception."""


@pytest.mark.parametrize("place", ["__call__", "decode", "convert_ids_to_tokens"])
def test_a_panic_of_rust_is_told_and_an_interrupt_is_not_swallowed(place, folder, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    for fault, expected in ((PanicException("byte index 1"), mt.ModelError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_, fault=fault, **__):
            raise fault

        monkeypatch.setattr(PreTrainedTokenizerFast, place, fail)
        with pytest.raises(expected):
            mt.show_tokens(folder, "x")


def test_ids_with_gaps_need_more_rows_than_there_are_tokens(folder):
    facts = mt.describe_tokenizer(folder).set_index("fact")["value"]
    assert "ids up to" not in facts["vocabulary, added tokens included"]
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = {word: number if number < 200 else number + 100 for word, number in model["vocab"].items()}
    change(folder, model=model | {"vocab": vocabulary}, added_tokens=[])
    change(folder, "tokenizer_config.json", added_tokens_decoder={})
    with_gaps = mt.describe_tokenizer(folder).set_index("fact")["value"]
    ids = mt.load_model.__globals__["load_tokenizer"](folder).get_vocab().values()
    assert with_gaps["vocabulary, added tokens included"] == f"{len(ids)}, with ids up to {max(ids)}"
    without = sum(number >= 260 for number in ids)
    assert with_gaps["embedding rows"].startswith(f"260: MISMATCH, {without} tokens have no row")


@pytest.mark.parametrize("settings", [{}, {"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "GPT2Tokenizer"}])
def test_no_vocabulary_is_made_up(settings, folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(mt.ModelError, match=r"no vocabulary|cannot be loaded"):
        mt.describe_tokenizer(folder)


def test_a_tokenizer_that_needs_no_vocabulary(folder):
    """ByT5 reads bytes; nothing is missing in its folder."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert mt.describe_tokenizer(folder).set_index("fact").at["class", "value"] == "ByT5Tokenizer"


def test_a_vocabulary_of_other_files_is_tried_out_too(folder):
    tokenizer = toy_tokenizer(chat=False).backend_tokenizer
    (folder / "tokenizer.json").unlink()
    tokenizer.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert list(mt.show_tokens(folder, "ab")["text"]) == ["a", "b"]
