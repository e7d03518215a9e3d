"""What `import model_tools` costs and gives."""

import subprocess
import sys

import model_tools as mt
from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "matplotlib", "peft", "trl", "datasets", "huggingface_hub", "safetensors", "typer")


def test_importing_loads_nothing_heavy():
    code = f"import sys, model_tools; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_explains_itself():
    for name in mt.__all__:
        assert getattr(mt, name).__doc__, name
