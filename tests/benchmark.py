"""`python -m tests.benchmark`: how fast folders are read, as ratios within one run, on sparse sets of huge models.

Every figure is a median; the ratio's second half is measured next to the first, so a noisy machine disturbs both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.folders import write_tensors

ROOT = Path(__file__).resolve().parent.parent
DEEPSEEK = {"quantization_config": {"quant_method": "fp8"}, "tie_word_embeddings": False}


def deepseek_like() -> dict[str, tuple[str, tuple[int, ...]]]:
    """91,991 tensors: 61 layers, 58 of them with 257 experts, FP8 weights with a scale beside each."""
    weights = {"model.embed_tokens": (129280, 7168), "lm_head": (129280, 7168)}
    for layer in range(61):
        place = f"model.layers.{layer}"
        for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
            weights[f"{place}.self_attn.{name}"] = (1536, 7168)
        experts = [f"mlp.experts.{number}" for number in range(256)] + ["mlp.shared_experts"]
        for part in experts if layer >= 3 else ["mlp"]:
            for name in ("gate_proj", "up_proj", "down_proj"):
                weights[f"{place}.{part}.{name}"] = (2048, 7168)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in weights.items():
        tensors[f"{name}.weight"] = ("F8_E4M3", shape)
        tensors[f"{name}.weight_scale_inv"] = ("F32", (shape[0] // 128, shape[1] // 128))
    for number in range(91_991 - len(tensors)):
        tensors[f"model.layers.{number % 61}.norm_{number}.weight"] = ("BF16", (7168,))
    return tensors


def llama_405b_like() -> dict[str, tuple[str, tuple[int, ...]]]:
    """1,138 tensors: the shapes of Llama-3.1-405B in BF16."""
    shapes = {
        "self_attn.q_proj": (16384, 16384), "self_attn.k_proj": (1024, 16384), "self_attn.v_proj": (1024, 16384),
        "self_attn.o_proj": (16384, 16384), "mlp.gate_proj": (53248, 16384), "mlp.up_proj": (53248, 16384),
        "mlp.down_proj": (16384, 53248), "input_layernorm": (16384,), "post_attention_layernorm": (16384,),
    }  # fmt: skip
    tensors = {f"{name}.weight": ("BF16", (128256, 16384)) for name in ("model.embed_tokens", "lm_head")}
    for layer in range(126):
        tensors |= {f"model.layers.{layer}.{name}.weight": ("BF16", shape) for name, shape in shapes.items()}
    return tensors | {"model.norm.weight": ("BF16", (16384,))}


def write_set(folder: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], shards: int, config: dict) -> None:
    """`tensors`, spread evenly over sparse shards, with their index and config."""
    folder.mkdir()
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_tensors(folder / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


def header_texts(folder: Path) -> list[bytes]:
    texts = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            texts.append(file.read(int.from_bytes(file.read(8), "little")))
    return texts


def parse_all(texts: list[bytes]) -> list[dict]:
    """The yardstick: all headers as Python objects, kept, as any reader of them would."""
    return [json.loads(text) for text in texts]


def ratio(work: Callable[[], object], yardstick: Callable[[], object], runs: int = 7) -> tuple[float, float]:
    """The median of work/yardstick over pairs of runs, and the median seconds of `work`."""
    pairs = []
    for _ in range(runs):
        times = [time.perf_counter()]
        for step in (work, yardstick):
            step()
            times.append(time.perf_counter())
        pairs.append((times[1] - times[0], times[2] - times[1]))
    return statistics.median(mine / theirs for mine, theirs in pairs), statistics.median(mine for mine, _ in pairs)


def report_set(name: str, folder: Path) -> None:
    """The three lines of one set: against json.loads, against huggingface_hub, and memory."""
    from huggingface_hub import get_local_safetensors_metadata

    import model_tools as mt

    texts = header_texts(folder)
    found, seconds = ratio(partial(mt.read_tensors, folder), partial(parse_all, texts))
    print(f"{name}: read_tensors / json.loads of its headers: {found:.2f} ({seconds:.3f} s)")
    found, _ = ratio(partial(mt.read_tensors, folder), partial(get_local_safetensors_metadata, folder))
    print(f"{name}: read_tensors / get_local_safetensors_metadata: {found:.2f}")
    tracemalloc.start()
    tensors = mt.read_tensors(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{name}: {len(tensors):,} tensors; read_tensors needs {peak / 2**20:.0f} MiB at its peak")


def report_import() -> None:
    # as a user has it: compiled once
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def importing(name: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, env=environment, check=True)

    importing("model_tools")()
    found, seconds = ratio(importing("model_tools"), importing("pandas"), runs=9)
    print(f"import model_tools / import pandas: {found:.2f} ({seconds:.2f} s)")


def main() -> None:
    """Print the lines of all sets."""
    with tempfile.TemporaryDirectory() as scratch:
        write_set(Path(scratch) / "deepseek", deepseek_like(), 138, DEEPSEEK)
        report_set("DeepSeek-V3-like, 138 shards", Path(scratch) / "deepseek")
        write_set(Path(scratch) / "llama", llama_405b_like(), 191, {"tie_word_embeddings": False})
        report_set("Llama-3.1-405B, 191 shards", Path(scratch) / "llama")
    report_import()


if __name__ == "__main__":
    main()
