"""Facts about a tokenizer, a prompt in its template, and texts as tokens, in a table and drawn."""

import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest

import model_tools as mt
from tests.folders import LLAMA_3B, write_tensors, write_toy

TEXT = "Hello, wörld 🙂 日本!"
HOSTILE = "<script>alert(1)</script> & $x^2$ \x1b[31m"


def facts(folder, **options):
    return dict(mt.describe_tokenizer(folder, **options).itertuples(index=False, name=None))


@pytest.fixture
def copy(toy, tmp_path):
    """A toy that a test may change: `copy(pad_token="<eos>")`, `copy(generation={...})`."""

    def changed(generation=None, **settings):
        folder = shutil.copytree(toy, tmp_path / "copy")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        (folder / "generation_config.json").write_text(json.dumps(generation or {}))
        return folder

    return changed


class Plain(HTMLParser):
    """What is left of a page without its tags, and which tags and attributes those were."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add((tag, *(name for name, _ in attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_demo_models_facts(demo):
    found = facts(demo)
    assert found["vocabulary, added tokens included"] == "49,152"
    assert found["embedding rows"] == "49,152: one for each token"
    assert found["eos token"] == "<|im_end|>  (id 2)"
    assert found["eos in generation_config.json"] == "2: match"
    assert found["padding"].startswith("the same as EOS")
    assert found["chat template"].startswith("yes")
    assert found["tokens per word"] == "1.07 (32 for 30 words of a fixed English sample)"


def test_a_base_model_has_no_template(base_toy):
    assert facts(base_toy)["chat template"].startswith("none")
    assert facts(base_toy)["longest input"] == "not stated"


@pytest.mark.parametrize(("limit", "words"), [(512, "512 tokens"), (1e30, "not stated")])
def test_the_longest_input_is_a_number_that_means_something(limit, words, toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    path = tmp_path / "toy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": limit}))
    assert facts(tmp_path / "toy")["longest input"] == words


@pytest.mark.parametrize("text", [None, b"x", ["a"], "\ud800"])
@pytest.mark.parametrize("function", [mt.show_tokens, mt.show_prompt, mt.draw_tokens, mt.describe_tokenizer])
def test_what_is_no_text_is_told(function, text, toy):
    with pytest.raises(mt.ModelError, match=r"must be a str|no character"):
        function(toy, text)


def test_templates_with_names_of_which_none_is_the_default(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    (tmp_path / "toy" / "chat_template.jinja").unlink()
    path = tmp_path / "toy" / "tokenizer_config.json"
    named = [{"name": "rag", "template": "{{ messages[0].content }}"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    with pytest.raises(mt.ModelError, match="have the names rag, and transformers takes `default`"):
        mt.show_prompt(tmp_path / "toy", "Hi")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/nonexistent/vocab.txt"),
        os.mkfifo,
        lambda path: path.with_name("vocab_notes.md").touch(),
        lambda path: path.write_text("[UNK]"),
    ],
)
def test_a_vocabulary_that_would_be_made_up_is_told(make, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    make(tmp_path / "vocab.txt")
    with pytest.raises(mt.ModelError, match="holds no vocabulary"):
        mt.describe_tokenizer(tmp_path)


def test_a_tokenizer_that_splits_at_random_is_told(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "toy")
    path = tmp_path / "toy" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["dropout"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.warns(mt.ModelWarning, match=r"splits at random \(dropout 0.5\)"):
        mt.show_tokens(tmp_path / "toy", "Hello")


def test_tokens_per_word_of_a_text_of_ones_own(toy):
    assert facts(toy, text="to be or not")["tokens per word"] == "3.00 (12 for 4 words of the given text)"
    assert facts(toy, text=" ")["tokens per word"] == "no words given"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (320, "320: 60 more than tokens, free"),
        (2_260, "2,260: 2,000 more than tokens, free"),
        (2_261, "2,261: MISMATCH?, 2,001 have no token: is this the model's own tokenizer?"),
        (250, "250: MISMATCH, 10 tokens"),
        (None, "not known"),
    ],
)
def test_the_embeddings_rows_are_held_against_the_vocabulary(rows, words, copy):
    folder = copy()
    for path in folder.glob("model*"):
        path.unlink()
    if rows:
        write_tensors(folder / "model.safetensors", {"model.embed_tokens.weight": ("BF16", (rows, 8))})
    assert facts(folder)["embedding rows"].startswith(words)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (257, "257: match"),
        (256, "256: MISMATCH, the tokenizer says 257"),
        ([12, 257], "12, 257: match, 257 among 2"),
        ("257", "not stated"),
        (None, "not stated"),
    ],
)
def test_ids_are_held_against_the_generation_settings(stated, words, copy):
    assert facts(copy(generation={"eos_token_id": stated}))["eos in generation_config.json"] == words


@pytest.mark.parametrize(
    ("pad", "ends", "words"),
    [
        (None, 257, "none: before tuning"),
        ("<eos>", 257, "the same as EOS"),
        ("<pad>", 257, "a token of its own"),
        ("<pad>", [257, 258, 259], "the same as EOS"),
    ],
)
def test_padding_is_told_for_tuning(pad, ends, words, copy):
    found = facts(copy(pad_token=pad, generation={"eos_token_id": ends}))
    assert found["padding"].startswith(words)


def test_a_prompt_is_shown_in_its_template(toy, base_toy):
    assert mt.show_prompt(toy, "Hi\x1b[31m") == "user: Hi\\x1b[31m\nassistant:"
    assert mt.show_prompt(base_toy, "Hi") == "Hi"


def test_a_prompt_is_what_transformers_makes_of_it(demo):
    from transformers import AutoTokenizer

    conversation = [{"role": "user", "content": TEXT}]
    expected = AutoTokenizer.from_pretrained(demo).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    assert mt.show_prompt(demo, TEXT) == expected


@pytest.mark.parametrize("template", ["{% for i in range(10**9) %}{% endfor %}", "{{ nothing.at.all }}"])
def test_a_prompt_of_a_wild_template_is_refused(template, copy):
    folder = copy()
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(mt.ModelError, match="chat template does not work"):
        mt.show_prompt(folder, "Hi")


@pytest.mark.parametrize("name", ["demo", "toy"])
def test_the_tokens_make_the_text(name, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(name)
    table = mt.show_tokens(folder, TEXT)
    assert list(table.columns) == ["token_id", "token", "text"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert list(table["token_id"]) == tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(table["token_id"]) == TEXT


@pytest.mark.parametrize("text", [TEXT, "é", "À", "👩‍👩‍👧 🇯🇵", "\ufffd is a character too"])
def test_parts_of_characters_are_their_bytes(text, toy, demo):
    for folder in (toy, demo):
        pieces = "".join(mt.show_tokens(folder, text)["text"])
        assert (
            re.sub(r"(⟨[0-9A-F ]+⟩)+", lambda parts: bytes.fromhex(re.sub("[⟨⟩]", " ", parts[0])).decode(), pieces)
            == text
        )
    assert list(mt.show_tokens(toy, "é")["text"]) == ["⟨C3⟩", "⟨A9⟩"]


def test_sentencepiece_bytes_are_bytes_and_its_spaces_are_kept(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "a": 1, "▁": 2, "▁a": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3B))
    assert list(mt.show_tokens(tmp_path, "a aé")["text"]) == ["a", " a", "⟨C3⟩", "⟨A9⟩"]


def test_an_empty_text_has_no_tokens(toy):
    assert mt.show_tokens(toy, "").empty
    assert repr(mt.draw_tokens(toy, "")) == "No tokens: an empty text."


def test_a_drawing_shows_every_token_with_its_id(demo):
    drawn, table = mt.draw_tokens(demo, TEXT), mt.show_tokens(demo, TEXT)
    text = Plain(drawn.html).text
    pieces = [f"{piece.replace(' ', '·')} ({number})" for number, _, piece in table.itertuples(index=False)]
    assert repr(drawn).splitlines()[0] == " | ".join(pieces)
    assert text.startswith(" | ".join(piece.replace(" (", "").rstrip(")") for piece in pieces))
    assert f"{len(table)} tokens for 4 words: {len(table) / 4:.2f} tokens per word" in text
    assert mt.draw_tokens(demo, TEXT).html == drawn.html


def test_a_drawing_is_escaped_and_needs_no_style_sheet(demo):
    page = mt.draw_tokens(demo, HOSTILE).html
    found = Plain(page)
    assert "<script" not in page
    assert "\x1b" not in page
    assert "·&amp;" in page
    assert found.tags <= {("div", "style"), ("span", "style"), ("code", "style"), ("sub", "style"), ("br",), ("p",)}
    assert "$" not in re.sub(r"<code.*?</code>", "", page)  # what stands in code is no TeX


def test_special_tokens_are_framed_and_lines_end(demo):
    page = mt.draw_tokens(demo, mt.show_prompt(demo, "Hi")).html
    assert page.count("dashed") == 5
    assert page.count("⏎</code>") == 5 == page.count("</span><br>")


def test_a_long_text_is_drawn_in_part(toy):
    page = mt.draw_tokens(toy, "a" * 2_500).html
    assert page.count("<sub") == 500
    assert "2,000 more are left out" in page


def test_a_broken_tokenizer_is_told(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "broken")
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(mt.ModelError, match=r"tokenizer in .* cannot be loaded"):
        mt.describe_tokenizer(folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "unheard-of"])
def test_a_tokenizer_without_a_class_has_that_of_its_models_type(kind, tmp_path):
    from transformers import AutoTokenizer

    folder = write_toy(tmp_path / "toy")
    for name, changes in (("config.json", {"model_type": kind}), ("tokenizer_config.json", {"tokenizer_class": None})):
        stated = json.loads((folder / name).read_text()) | changes
        stated = {key: value for key, value in stated.items() if value is not None and key != "architectures"}
        (folder / name).write_text(json.dumps(stated))
    ours = dict(mt.describe_tokenizer(folder).itertuples(index=False))["class"]
    assert ours == (
        "TokenizersBackend" if kind == "unheard-of" else type(AutoTokenizer.from_pretrained(folder)).__name__
    )
