"""Data sets: a cache of their own, and work in this process unless a test wants the real ones."""

import pytest

from tests.text.data_folders import TOKENIZERS, in_this_process


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing is left in the cache of whoever runs the tests."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def quick(own_cache, monkeypatch):
    monkeypatch.setattr("base_model.text.measure._limit_time", lambda characters: None)
    monkeypatch.setattr("base_model.text.lengths.in_processes", in_this_process)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """`{name: folder}` with nothing but a tokenizer in it."""
    place = tmp_path_factory.mktemp("tokenizers")
    for name, make in TOKENIZERS.items():
        make().save_pretrained(place / name)
    return {name: place / name for name in TOKENIZERS}
