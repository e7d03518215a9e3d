"""Charts of a data set. The same contract and style as in charts.py."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from base_model import format_share
from base_model.show.charts import INK, MUTED, NEUTRAL, PAPER, new_axes, redrawn, subtitle, title
from base_model.text.data_facts import lost_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
FAR = 2  # times the longest example: a max_length beyond is told, not drawn


@redrawn
def plot_lengths(lengths: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Columns: how many examples of `text_lengths` have which length, grey beyond `max_length`; lines at that length,
    the median and the longest. The title says what is lost.
    """
    ax = new_axes(ax, 4)
    tokens, limits = lengths["tokens"], lengths["max_length"].dropna()
    most = int(limits.iloc[0]) if len(limits) else None
    counts, edges = np.histogram(tokens, bins=_edges(tokens.max(), most))
    colours = [MUTED if most is not None and edge > most else NEUTRAL for edge in edges[:-1]]
    ax.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colours, edgecolor=PAPER, linewidth=0.5)
    marks = {"median": float(tokens.median()), "longest": float(tokens.max())}
    near = most is not None and most <= FAR * tokens.max()
    _mark(ax, marks | ({"max_length": float(most or 0)} if near else {}))
    beyond = ", grey beyond the cut" if most is not None and most < tokens.max() else ""
    title(ax, _finding(lengths, most))
    subtitle(ax, f"Number of examples of each length{beyond}")
    ax.set(xlabel="length of an example (tokens)", ylabel="examples")
    return ax


def _edges(longest: int, most: int | None) -> np.ndarray:
    """Whole tokens, at most 40 columns of one width; a column ends where `max_length` does."""
    width = max(1, -(-longest // BINS))
    begin = (most + 1) % width - width if most is not None and most < longest else 0
    return np.arange(begin, longest + width + 1, width)


def _mark(ax: "Axes", marks: dict[str, float]) -> None:
    """A line for each, with its name beside it; one below the other, as lines may be close together."""
    ax.set_ylim(0, ax.get_ylim()[1] * 1.3)
    ax.set_xlim(0, max(marks.values()) * 1.05)
    plate: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
    style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "bbox": plate}
    for turn, (name, place) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
        ax.axvline(place, color=INK, linestyle="--" if name == "max_length" else ":", linewidth=1)
        side, align = (-5, "right") if turn == len(marks) - 1 else (5, "left")
        style |= {"xytext": (side, 0), "ha": align, "va": "center"}
        ax.annotate(f"{name} {place:,.0f}", (place, 0.95 - 0.08 * turn), **style)


def _finding(lengths: pd.DataFrame, most: int | None) -> str:
    examples = f"{len(lengths):,} examples, {lengths['tokens'].sum():,} tokens"
    if most is None:
        return f"{examples}: nothing is cut off"
    lost = lost_tokens(lengths)
    if not lost:
        return f"{examples}: nothing is lost at {most:,}"
    share = format_share(lost / lengths["tokens"].sum())
    cut = int(lengths["truncated"].sum())
    verb = "loses" if cut == 1 else "lose"
    return f"At {most:,} tokens, {cut:,} of {len(lengths):,} examples {verb} {share} of all tokens"
