"""Lengths, truncation and packing equal those of a real SFTTrainer; what is wrong with data is found."""

import pandas as pd
import pytest

import model_tools as mt
from base_model.text.lengths import batch_tokens
from base_model.text.packing import kept_tokens, packed_sequences, padded_tokens
from tests.text.data_folders import FORMATS, TOKENIZERS, bos_tokenizer, known_tokenizer, turn, write_lines

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def toy_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))


def trained_on(model, file, tokenizer, folder, **settings):
    """What a real SFTTrainer would train on: its prepared data set."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, **settings)
    data = Dataset.from_json(str(file))
    return SFTTrainer(model, config, train_dataset=data, processing_class=TOKENIZERS[tokenizer]()).train_dataset


def counted(labels):
    return sum(label != -100 for label in labels)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("form", FORMATS)
def test_they_equal_a_real_trainers(form, tokenizer, tokenizers, toy_model, tmp_path):
    file = write_lines(tmp_path / "data.jsonl", map(FORMATS[form], range(40)))
    whole = trained_on(toy_model, file, tokenizer, tmp_path, max_length=None)
    lengths = mt.text_lengths(tokenizers[tokenizer], file)
    assert lengths["tokens"].tolist() == list(map(len, whole["input_ids"]))
    assert lengths["trained"].tolist() == list(map(counted, whole["labels"]))
    most = int(lengths["tokens"].median())
    cut = trained_on(toy_model, file, tokenizer, tmp_path, max_length=most)
    lengths = mt.text_lengths(tokenizers[tokenizer], file, max_length=most)
    assert 0 < lengths["truncated"].sum() < 40
    kept = kept_tokens(lengths)
    assert kept.tolist() == list(map(len, cut["input_ids"]))
    assert lengths["trained"][kept.index].tolist() == list(map(counted, cut["labels"]))


@pytest.mark.parametrize("form", ["messages", "conversational prompt"])
@pytest.mark.parametrize("make", [bos_tokenizer, known_tokenizer])
def test_answers_alone_equal_a_real_trainers(make, form, toy_model, tmp_path, monkeypatch):
    monkeypatch.setitem(TOKENIZERS, "one", make)
    make().save_pretrained(tmp_path / "one")
    file = write_lines(tmp_path / "data.jsonl", map(FORMATS[form], range(20)))
    data = trained_on(toy_model, file, "one", tmp_path, max_length=200, assistant_only_loss=True)
    lengths = mt.text_lengths(tmp_path / "one", file, max_length=200, assistant_only_loss=True)
    kept = kept_tokens(lengths)
    assert kept.tolist() == list(map(len, data["input_ids"]))
    assert lengths["trained"][kept.index].tolist() == list(map(counted, data["labels"]))
    assert lengths["trained"].sum() < lengths["tokens"].sum()


@pytest.mark.parametrize("column", ["labels", "completion_mask"])
def test_tokens_equal_a_real_trainers(column, tokenizers, toy_model, tmp_path):
    """A data set that was split before, with what counts in it."""
    marks = {"labels": [-100, 3, 4, -100], "completion_mask": [0, 0, 1, 1]}[column]
    rows = [{"input_ids": [1, 2, 3, 4][:number], column: marks[:number]} for number in (4, 3, 1)]
    file = write_lines(tmp_path / "data.jsonl", rows)
    data = trained_on(toy_model, file, "bytes", tmp_path, max_length=3, completion_only_loss=True)
    lengths = mt.text_lengths(tokenizers["bytes"], file, max_length=3, completion_only_loss=True)
    kept = kept_tokens(lengths)
    assert kept.tolist() == list(map(len, data["input_ids"])) == [3, 3]
    assert lengths["trained"][kept.index].tolist() == list(map(counted, data["labels"]))


def test_the_whole_text_counts_where_that_is_asked_for(tokenizers, toy_model, tmp_path):
    file = write_lines(tmp_path / "data.jsonl", map(FORMATS["prompt and completion"], range(9)))
    data = trained_on(toy_model, file, "bytes", tmp_path, max_length=None, completion_only_loss=False)
    lengths = mt.text_lengths(tokenizers["bytes"], file, completion_only_loss=False)
    assert lengths["trained"].tolist() == list(map(counted, data["labels"])) == lengths["tokens"].tolist()


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packing_equals_a_real_trainers(strategy, tokenizers, toy_model, tmp_path):
    """Above a thousand rows, since TRL packs a thousand at a time."""
    file = write_lines(tmp_path / "data.jsonl", ({"text": "ab" * (number % 23)} for number in range(1_100)))
    data = trained_on(toy_model, file, "bytes", tmp_path, max_length=40, packing=True, packing_strategy=strategy)
    lengths = mt.text_lengths(tokenizers["bytes"], file, max_length=40)
    assert packed_sequences(lengths["tokens"], 40, strategy) == len(data)


def test_the_same_from_every_kind_of_file(tokenizers, tmp_path):
    from datasets import Dataset

    data = Dataset.from_list([FORMATS["prompt and completion"](number) | {"other": number} for number in range(7)])
    data.to_json(tmp_path / "a.jsonl")
    data.to_json(tmp_path / "a.json", lines=False)
    data.to_csv(tmp_path / "a [1].csv")
    data.to_parquet(tmp_path / "a.parquet")
    tables = [mt.text_lengths(tokenizers["bos"], path) for path in sorted(tmp_path.iterdir())]
    expected = mt.text_lengths(tokenizers["bos"], data)
    assert len(tables) == 4
    for table in tables:
        pd.testing.assert_frame_equal(table, expected)


def test_a_file_that_has_changed_is_read_again(tokenizers, tmp_path):
    file = write_lines(tmp_path / "data.jsonl", [{"text": "one"}])
    assert len(mt.text_lengths(tokenizers["bytes"], file)) == 1
    write_lines(file, [{"text": "one"}, {"text": "two, three"}])
    assert mt.text_lengths(tokenizers["bytes"], file)["tokens"].tolist() == [4, 11]


def test_what_is_wrong_with_rows(tokenizers):
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["same", "other", "same", " ", "<bos>again", "a longer text"]})
    lengths = mt.text_lengths(tokenizers["bos"], data, max_length=8)
    assert lengths.index[lengths["duplicate"]].tolist() == [2]
    assert lengths.index[lengths["empty"]].tolist() == [3]
    assert lengths.index[lengths["doubled"]].tolist() == [4]
    assert lengths["ends"].tolist() == [True, True, True, True, True, False]  # cut off before its end


def test_a_conversation_is_empty_without_an_answer(tokenizers):
    from datasets import Dataset

    talks = [[turn("user", "Hi"), turn("assistant", answer)] for answer in ("Yes", " ")] + [[turn("user", "Hi")]]
    assert mt.text_lengths(tokenizers["bytes"], Dataset.from_dict({"messages": talks}))["empty"].tolist() == [0, 1, 1]


def facts(*arguments, **settings):
    return mt.describe_data(*arguments, **settings).set_index("fact")["value"]


def test_the_facts(tokenizers):
    from datasets import Dataset

    data = Dataset.from_dict({"prompt": ["ab", "abcdefgh", "ab", "a"], "completion": ["c", "c", "c", "cdefgh"]})
    found = facts(tokenizers["bytes"], data, max_length=6, batch=2)
    assert found["examples"] == "4"
    assert found["tokens"] == "26, 6.5 per example"  # 4, 10, 4, 8: with EOS
    assert found["longest"] == "10 tokens (row 1)"
    assert found["truncated at 6"] == "2 examples lose 6 of 26 (23.1%) tokens"
    assert found["dropped: no answer left after the cut"] == "1 (row 1)"
    assert found["tokens that count in the loss"] == "9 of 14 (64.3%)"
    assert found["duplicates of an earlier example"] == "1 (row 2)"
    assert found["examples that train the end of text"] == "2 of 4 (50.0%)"
    assert found["steps per epoch"] == "2 at batch 2"
    assert found["tokens per epoch"] == "14"
    assert found["packed to 6 tokens, best fit (bfd)"] == "4 sequences, 83.3% full"
    assert found["packed to 6 tokens, end to end (wrapped)"] == "5 sequences, 86.7% full"


def test_the_end_of_text_that_is_never_trained(tokenizers):
    """The toy's template writes none."""
    from datasets import Dataset

    found = facts(tokenizers["bytes"], Dataset.from_list([FORMATS["messages"](1)]))
    assert found["examples that train the end of text"].startswith("none")
    assert found["truncated"] == "none: no max_length is given"


def test_the_maximal_length_of_trl_is_the_one_it_packs_to():
    from trl import SFTConfig

    from base_model.text.data_facts import TRL_MAX_LENGTH

    assert SFTConfig.__dataclass_fields__["max_length"].default == TRL_MAX_LENGTH


def test_padding_is_that_of_trls_batches():
    from torch.utils.data import RandomSampler
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    kept = pd.Series([3, 9, 4, 1, 7, 7, 2])
    collate, padded = DataCollatorForLanguageModeling(pad_token_id=0), 0
    import torch

    order = list(RandomSampler(kept, generator=torch.Generator().manual_seed(42)))
    for begin in range(0, 7, 3):
        padded += collate([{"input_ids": [1] * kept[row]} for row in order[begin : begin + 3]])["input_ids"].numel()
    assert padded_tokens(kept, 3) == padded > kept.sum() == padded_tokens(kept, 1)
    assert padded_tokens(kept, 3, grouped=True) <= padded


def test_what_a_plan_takes(tokenizers):
    from datasets import Dataset

    data = Dataset.from_dict({"text": ["a" * 9, "a" * 4, "a" * 2]})
    found = batch_tokens(mt.text_lengths(tokenizers["bytes"], data, max_length=8), batch=3)
    assert (found.longest, found.mean, found.steps) == (8, 8.0, 1)


def test_the_projects_own_data(tokenizers):
    lengths = mt.text_lengths(tokenizers["bos"], mt.example_data())
    assert 100 <= len(lengths) <= 200
    assert not lengths[["empty", "duplicate", "doubled"]].any(axis=None)
    assert lengths["ends"].all()
    assert (lengths["trained"] < lengths["tokens"]).all()
