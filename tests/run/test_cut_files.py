"""A shard that is cut short after it was loaded is told; the operating system would end Python (SIGBUS)."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

USE = """
import os, sys
import model_tools as mt
model, tokenizer = mt.load_model(sys.argv[1])
if sys.argv[3] == "cut":
    os.truncate(f"{sys.argv[1]}/model.safetensors", 5_000)
elif sys.argv[3] == "delete":
    os.unlink(f"{sys.argv[1]}/model.safetensors")
try:
    print(getattr(mt, sys.argv[2])(model, tokenizer, "hello", max_new_tokens=2, runs=1).method)
except mt.ModelError as error:
    print("ModelError:", error)
"""


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        ("generate_manually", "cut", "ModelError: model.safetensors was cut short after it was loaded"),
        ("generate_with_pipeline", "cut", "ModelError: model.safetensors was cut short after it was loaded"),
        ("generate_manually", "delete", "manual"),
    ],
)
def test_a_file_that_is_cut_after_it_was_loaded(method, change, words, base_toy, tmp_path):
    folder = shutil.copytree(base_toy, tmp_path / "toy")
    command = [sys.executable, "-c", USE, str(folder), method, change]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"Python ended with {done.returncode}"
    assert words in done.stdout
