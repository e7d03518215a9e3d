"""The loss before tuning, beside that of transformers on what a real SFTTrainer prepares."""

import numpy as np
import pytest

import model_tools as mt
from tests.text.data_folders import FORMATS, in_this_process, write_lines


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("base_model.text.measure._limit_time", lambda characters: None)
    monkeypatch.setattr("base_model.run.base_loss.in_processes", in_this_process)


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "data.jsonl", map(FORMATS["prompt and completion"], range(9)))


def test_it_equals_transformers_own_loss(toy, data, tmp_path):
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(toy)
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=60)
    rows = SFTTrainer(
        model, config, train_dataset=Dataset.from_json(str(data)), processing_class=AutoTokenizer.from_pretrained(toy)
    ).train_dataset
    model, losses, counts = AutoModelForCausalLM.from_pretrained(toy), [], []  # the trainer replaced its head
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        losses.append(model(input_ids=ids, labels=labels).loss.item())
        counts.append((labels[:, 1:] != -100).sum().item())
    (found,) = mt.base_loss(toy, data, max_length=60).itertuples(index=False)
    assert found.examples == len(rows) < 9  # the others have nothing left of their answer
    assert found.tokens == sum(counts)
    assert found.loss == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(found.loss))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(losses, [0.25, 0.75])), rel=1e-5)
    assert (found.device, found.dtype) == ("cpu", "float32")


def test_some_examples_are_taken_from_the_first_to_the_last(toy, data, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "base_model.run.base_loss.in_processes", lambda task: asked.append(task.numbers) or in_this_process(task)
    )
    assert mt.base_loss(toy, data, examples=3)["examples"].item() == 3
    assert asked == [[0, 4, 8]]


def test_it_is_in_pieces_what_it_is_at_once(toy, data, monkeypatch):
    whole = mt.base_loss(toy, data)["loss"].item()
    monkeypatch.setattr("base_model.run.base_loss.AT_ONCE", 5)
    assert mt.base_loss(toy, data)["loss"].item() == pytest.approx(whole, rel=1e-6)


def test_examples_without_a_token_that_counts(toy, tmp_path):
    data = write_lines(tmp_path / "data.jsonl", [{"prompt": "abcdef", "completion": "g"}])
    with pytest.raises(mt.ModelError, match=r"no token counts in any of 1 examples\. Raise"):
        mt.base_loss(toy, data, max_length=3)


def test_a_model_that_is_not_here(data, tmp_path):
    with pytest.raises(mt.ModelError, match="There is no folder"):
        mt.base_loss(tmp_path / "none", data)
