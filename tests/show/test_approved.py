"""Every chart and every sentence, of fixed tables, as somebody has looked at them and found them good."""

import json
from contextvars import ContextVar
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

import model_tools as mt
from base_model.show import charts
from tests.approving import require_approved

HERE = Path(__file__).parent / "approved"
LENGTHS = {"tokens": [20, 60, 61, 61, 90, 140], "truncated": [False] * 5 + [True], "max_length": 128}


@pytest.fixture(scope="module")
def tables(llama_3b):
    """What the notebook found of Llama-3.2-3B for an RTX 3060, and what its files say."""
    found = {name: pd.DataFrame(rows) for name, rows in json.loads((HERE / "tables.json").read_text()).items()}
    lengths = pd.DataFrame(LENGTHS).assign(trained=9, empty=False, duplicate=False, doubled=False, ends=True)
    files, tensors = mt.list_files(llama_3b), mt.read_tensors(llama_3b)
    one = mt.compare_models([llama_3b])
    half = one.assign(parameters=one["parameters"] // 2).rename(index=lambda name: f"half of {name}")
    return found | {"files": files, "tensors": tensors, "lengths": lengths, "models": pd.concat([one, half])}


CHARTS = {
    "storage": (mt.plot_storage, "files"), "parameters": (mt.plot_parameters, "tensors"),
    "components": (mt.plot_components, "tensors"), "layers": (mt.plot_layers, "tensors"),
    "models": (mt.plot_models, "models"), "lengths": (mt.plot_lengths, "lengths"),
    "recommendation": (mt.plot_recommendation, "recommendation"), "memory": (mt.plot_memory, "inference"),
    "adapters": (mt.plot_adapters, "adapters"), "training": (mt.plot_training, "training"),
    "ladder": (mt.plot_ladder, "ladder"), "gpus": (mt.plot_gpus, "gpus"), "runs": (mt.plot_runs, "runs"),
    "limits": (mt.plot_limits, "limits"),
}  # fmt: skip


def drawn(figure):
    """A line for each thing in a figure: what it is, where (left, bottom, width and height in dots), how."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    yield "figure " + " x ".join(f"{side:g}" for side in figure.get_size_inches())
    for artist in figure.findobj(lambda one: isinstance(one, Text | Patch | Line2D | AxesImage | Collection)):
        words = repr(artist.get_text()) if isinstance(artist, Text) else ""
        if artist.get_visible() and words != "''":
            box = artist.get_window_extent(renderer)
            place = " ".join("-" if side != side or abs(side) > 9999 else f"{side:.0f}" for side in box.bounds)
            yield " ".join(filter(None, [type(artist).__name__, place, words, *look(artist)]))


def look(artist):
    """What a person sees of an artist besides its place."""
    yield f"over {artist.get_zorder():g}"
    if isinstance(artist, Text):
        yield f"{artist.get_fontsize():g} {artist.get_fontweight()} {to_hex(artist.get_color())}"
    elif isinstance(artist, Line2D):
        yield f"{to_hex(artist.get_color())} {artist.get_linestyle()} {artist.get_linewidth():g} {artist.get_marker()}"
    elif isinstance(artist, Patch):
        yield f"{to_hex(artist.get_facecolor(), True)} {to_hex(artist.get_edgecolor())} {artist.get_linestyle()}"


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_as_it_was_approved(name, tables, monkeypatch):
    plot, of = CHARTS[name]
    lines = []
    for width in (charts.WIDE, charts.NARROW):
        monkeypatch.setattr(charts, "WIDTH", ContextVar("WIDTH", default=width))
        lines += drawn(plot(tables[of]).figure)
    require_approved(HERE / f"{name}.txt", "\n".join(lines) + "\n")


def test_the_sentences_are_as_they_were_approved(tables):
    words = [f"{name}: {mt.in_words(table)}" for name, table in tables.items() if name not in ("limits", "models")]
    words += [f"limits: {mt.limits_in_words(tables['limits'])}"]
    plans = {name: tables[name] for name in ("recommendation", "inference", "adapters", "training", "ladder", "gpus")}
    words += [mt.takeaways(tables["files"], tables["tensors"], tables["runs"], limits=tables["limits"], **plans)]
    words += [mt.markdown_table(table) for table in tables.values() if len(table) < 50]
    words += [mt.markdown_table(mt.best_rows(tables["recommendation"]))]
    require_approved(HERE / "words.txt", "\n\n".join(words) + "\n")
