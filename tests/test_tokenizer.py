"""Facts about a tokenizer, and texts as tokens."""

import json
import shutil

import pytest

import model_tools as mt

TEXT = "Hello, wörld 🙂 日本!"


def facts(folder):
    return dict(mt.describe_tokenizer(folder).itertuples(index=False, name=None))


def test_the_demo_models_facts(demo):
    found = facts(demo)
    assert found["vocabulary, added tokens included"] == "49,152"
    assert found["eos token"] == "<|im_end|>  (id 2)"
    assert found["chat template"].startswith("yes")


def test_a_base_model_has_no_template(base_toy):
    assert facts(base_toy)["chat template"].startswith("none")
    assert facts(base_toy)["longest input"] == "not stated"


@pytest.mark.parametrize("name", ["demo", "toy"])
def test_the_tokens_make_the_text(name, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(name)
    table = mt.show_tokens(folder, TEXT)
    assert list(table.columns) == ["token_id", "token", "text"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert list(table["token_id"]) == tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(table["token_id"]) == TEXT


def test_an_empty_text_has_no_tokens(toy):
    assert mt.show_tokens(toy, "").empty


def test_a_broken_tokenizer_is_told(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "broken")
    (folder / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(mt.ModelError, match=r"tokenizer in .* cannot be loaded"):
        mt.describe_tokenizer(folder)
