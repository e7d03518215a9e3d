"""`make refresh`: renew what the repository shows, the notebook's outputs and the pictures in charts/.

The default model's pictures are drawn from a replica with its exact shapes and no weights, and say so.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import model_tools as mt
from tests.folders import write_llama_3b

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "charts"


def main(executed: Path) -> None:
    """Copy the executed notebook and its charts into the repository; draw the default model's charts."""
    shutil.copyfile(executed, ROOT / executed.name)
    for picture in executed.parent.glob("*.png"):
        (CHARTS / executed.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, CHARTS / executed.parent.name / picture.name)
    with tempfile.TemporaryDirectory() as scratch:
        draw_replica(write_llama_3b(Path(scratch) / "Llama-3.2-3B-Instruct"))


def draw_replica(folder: Path) -> None:
    """The charts that need no weights, labelled as what they are."""
    files, tensors = mt.list_files(folder), mt.read_tensors(folder)
    charts = {
        "storage-footprint.png": mt.plot_storage(files),
        "parameter-count.png": mt.plot_parameters(tensors),
        "components.png": mt.plot_components(tensors),
        "layers.png": mt.plot_layers(tensors),
    }
    for name, ax in charts.items():
        note = f"{folder.name} stored as float32: exact names, shapes and sizes, drawn from a replica without weights"
        ax.figure.supxlabel(note, fontsize=8, color="#555555")
        mt.save_chart(ax, CHARTS / folder.name / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
