"""Folders that many tests read and none changes."""

import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read at import: nothing in this process may ask the Hub
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["MPLBACKEND"] = "agg"

import matplotlib.pyplot as plt
import pytest

from tests.folders import write_llama_3b, write_toy

# Started in the background, or by a build server, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def llama_3b(tmp_path_factory) -> Path:
    return write_llama_3b(tmp_path_factory.mktemp("replica") / "Llama-3.2-3B-Instruct")


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Three shards, an instruct model."""
    return write_toy(tmp_path_factory.mktemp("models") / "toy", shard_size="40KB")


@pytest.fixture(scope="session")
def base_toy(tmp_path_factory) -> Path:
    """One file, no chat template, a head of its own."""
    return write_toy(tmp_path_factory.mktemp("models") / "base-toy", chat=False, tied=False)


@pytest.fixture(scope="session")
def demo() -> Path:
    """Real weights; `make test` makes the folder first."""
    return DEMO


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def _torch_is_left_as_it_was():
    """A default dtype or an autocast that stays behind changes the tests that follow, and nobody would look here."""
    yield
    if torch := sys.modules.get("torch"):
        left = torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
        torch.set_default_dtype(torch.float32)
        torch.set_autocast_enabled("cpu", False)
        assert left == (torch.float32, False)
