"""What `import model_tools` costs and gives."""

import inspect
import subprocess
import sys

import pytest

import model_tools as mt
from tests.conftest import ROOT
from tests.folders import write_tensors

HEAVY = ("torch", "transformers", "matplotlib", "peft", "trl", "datasets", "huggingface_hub", "safetensors", "typer")


def test_importing_loads_nothing_heavy():
    code = f"import sys, model_tools; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_explains_itself():
    for name in mt.__all__:
        assert getattr(mt, name).__doc__, name


def test_texts_have_1024_tokens_unless_it_is_said():
    """Of each function that plans by one length; the others ask the model or the trainer."""
    stated = {
        name: inspect.signature(getattr(mt, name)).parameters.get("tokens")
        for name in mt.__all__
        if inspect.isfunction(getattr(mt, name))
    }
    numbers = {name: tokens.default for name, tokens in stated.items() if tokens and type(tokens.default) is int}
    assert numbers == dict.fromkeys(["compare_gpus", "compare_training", "recommend", "training_ladder"], 1024)


@pytest.mark.parametrize("call", [mt.read_tensors, mt.list_files, mt.list_tensors])
def test_a_warning_names_the_line_of_the_caller(call, tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"a": ("I32", (4,))})
    with pytest.warns(mt.ModelWarning) as caught:
        call(tmp_path)
    assert {warning.filename for warning in caught} == {__file__}
