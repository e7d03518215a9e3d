"""`make refresh`: renew what the repository shows: the notebook's outputs, the pictures in charts/, README's cards.

The default model's pictures are drawn from a replica with its exact shapes and no weights, and say so. The table from
card to method takes a few minutes; `python -m tests.refresh --cards` prints it alone, to be pasted into README.md.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

import model_tools as mt
from base_model.train.places import FITTING
from tests.folders import LLAMA_1B, LLAMA_3B, write_llama_3b, write_replica

STEPS = {  # what the chart itself does not say
    "ladder.png": "; 4 texts of 1,024 tokens at first",
    "gpus.png": "; LoRA r16 on all linear layers, 4 texts of 1,024 tokens",
    "recommendation.png": "; on an RTX 4090, texts of 1,024 tokens",
}
CARDS = ("RTX 3060", "T4", "RTX 4090", "L40S", "A100 PCIe 80GB")
HEADINGS = "| card | start with | peak | tokens/s | full fine-tuning |\n|---|---|---:|---:|---|"
ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "charts"


def main(executed: Path) -> None:
    """Copy the executed notebook and its charts into the repository; draw the default model's charts."""
    (ROOT / executed.name).write_bytes(linked_from_root(executed.read_text("utf-8")))
    for picture in executed.parent.glob("*.png"):
        (CHARTS / executed.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, CHARTS / executed.parent.name / picture.name)
    with tempfile.TemporaryDirectory() as scratch:
        draw_comparison(Path(scratch) / "bfloat16")
        as_on_hub = Path(scratch) / "bfloat16" / "Llama-3.2-3B-Instruct"
        draw_replica(as_on_hub, "stored as bfloat16, as on the Hub")
        draw_replica(write_llama_3b(Path(scratch) / "float32" / as_on_hub.name), "stored as float32", "-float32")
        draw_plans(as_on_hub)


def linked_from_root(notebook: str) -> bytes:
    """The text of a notebook executed in runs/<model name>/, with links that lead from the root to docs/ again."""
    return notebook.replace("](../../docs/", "](docs/").encode()


def print_cards() -> None:
    """README's table from card to method, for the default model as the Hub stores it; from its config.json alone."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "Llama-3.2-3B-Instruct" / "config.json"
        config.parent.mkdir()
        config.write_text(json.dumps(LLAMA_3B | {"dtype": "bfloat16"}))
        print(HEADINGS)
        for gpu in CARDS:
            print(card_row(gpu, mt.recommend(config.parent, gpu=gpu)), flush=True)


def card_row(gpu: str, answer: pd.DataFrame) -> str:
    """What a card does best, and whether all parameters can be trained on it."""
    best, full = answer.iloc[0], answer[answer["method"].str.startswith("full")].iloc[0]
    name = next(one for one in mt.gpus()["gpu"] if gpu in one).removeprefix("NVIDIA ")
    optimizer = "8-bit Adam" if "8-bit" in full["method"] else "AdamW"
    tight = ", tight" if full["verdict"] == "tight" else ""
    whole = f"{optimizer}, {_size(full)}{tight}" if full["verdict"] in FITTING else "no"
    cells = [name, f"{best['method']}, {_size(best)}", mt.format_bytes(best["peak_bytes"])]
    speed = float(format(best["tokens_per_s"], ".2g"))
    return f"| {' | '.join(cells)} | {speed:,.0f} | {whole} |"


def _size(row: pd.Series) -> str:
    return f"batch {row['batch']}{', checkpointing' if row['checkpointing'] else ''}"


def draw_replica(folder: Path, stored: str, suffix: str = "") -> None:
    """The charts that need no weights, labelled as what they are."""
    files, tensors = mt.list_files(folder), mt.read_tensors(folder)
    charts = {"storage-footprint": mt.plot_storage(files), "parameter-count": mt.plot_parameters(tensors)}
    if not suffix:
        charts["components"] = mt.plot_components(tensors)
    for name, ax in charts.items():
        _save(ax, CHARTS / folder.name / f"{name}{suffix}.png", f"{folder.name} {stored}")


def draw_comparison(scratch: Path) -> None:
    """The default model beside the smaller one, both stored as on the Hub."""
    sizes = {"Llama-3.2-1B-Instruct": LLAMA_1B, "Llama-3.2-3B-Instruct": LLAMA_3B}
    for name, config in sizes.items():
        write_replica(scratch / name, config, "BF16", "5GB")
    ax = mt.plot_models(mt.compare_models([scratch / name for name in sizes]))
    _save(ax, CHARTS / "Llama-3.2-3B-Instruct" / "models.png", "Both stored as bfloat16")


def draw_plans(folder: Path) -> None:
    """What the default model will need, as the Hub stores it."""
    edited = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(edited))
    points = mt.insertion_points(folder, mt.default_adapters(folder)["LoRA r16, all linear"])
    charts = {
        "adapters.png": mt.plot_adapters(mt.plan_adapters(folder)),
        "insertion.png": mt.plot_insertion(mt.read_tensors(folder), points),
        "training.png": mt.plot_training(mt.compare_training(folder, 1024, 4)),
        "ladder.png": mt.plot_ladder(mt.training_ladder(folder)),
        "gpus.png": mt.plot_gpus(mt.compare_gpus(folder)),
        "recommendation.png": mt.plot_recommendation(mt.recommend(folder, gpu="RTX 4090")),
    }
    for name, ax in charts.items():
        step = STEPS.get(name, "")
        note = f"{folder.name} in bfloat16, measured on the meta device{step}"
        ax.figure.supxlabel(note, fontsize=8, color="#555555")
        mt.save_chart(ax, CHARTS / folder.name / name)


def _save(ax: Any, path: Path, what: str) -> None:
    note = f"{what}: exact names, shapes and sizes, drawn from a replica without weights"
    ax.figure.supxlabel(note, fontsize=8, color="#555555")
    mt.save_chart(ax, path)


if __name__ == "__main__":
    print_cards() if sys.argv[1:] == ["--cards"] else main(Path(sys.argv[1]).resolve())
