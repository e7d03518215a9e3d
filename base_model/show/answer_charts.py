"""The answer as pictures: every method by memory and pace, and common cards by the time they take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError
from base_model.show.charts import (
    METHOD_COLOURS,
    NEUTRAL,
    drawable,
    first_rows,
    label_bars,
    mark_cards,
    name_rows,
    new_axes,
    rows_height,
    subtitle,
    title,
)
from base_model.show.sentences import hours_in_words, million_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30
GAP = 0.075  # of the height: as close as two labels may come
FAINT, DARK = "#999999", "#444444"
RUNS = ("fits", "tight")


def method_colour(name: str) -> str:
    """The colour of a method's kind, the same in every chart; QLoRA before LoRA, whose name it holds."""
    return next((colour for kind, colour in METHOD_COLOURS.items() if kind.lower() in str(name).lower()), NEUTRAL)


def plot_recommendation(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Points: each method of `recommend` by the memory that one text takes and by its pace at the largest batch.

    Discs are with checkpointing, rings without; the label has the published accuracy. What does not fit lies at 0.
    """
    columns = ("method", "checkpointing", "verdict", "least_bytes", "tokens_per_s", "accuracy")
    table = drawable(table, "recommend", *columns).dropna(subset="least_bytes")
    if table.empty:
        raise ModelError("No method could be planned, so there is nothing to draw. The column `why` says why.")
    ax = new_axes(ax, 5)
    runs = table["verdict"].isin(RUNS)
    points = table.assign(x=table["least_bytes"].astype(float) / GIB, y=table["tokens_per_s"].where(runs).fillna(0.0))
    for method, rows in points.groupby("method", sort=False):
        colour = method_colour(str(method))
        ax.plot(rows["x"], rows["y"], color=colour, linewidth=1, alpha=0.5, zorder=2)
        faces = [colour if filled else "white" for filled in rows["checkpointing"]]
        ax.scatter(rows["x"], rows["y"], s=60, c=faces, edgecolors=colour, linewidths=1.5, zorder=3)
    ax.yaxis.set_major_formatter("{x:,.10g}")
    ax.set_ylim(0, (points["y"].max() or 1) * 1.12)
    ax.set_xlim(0, points["x"].max() * 1.02)
    mark_cards(ax)
    _name_points(ax, points.drop_duplicates("method"))
    title(ax, _finding(table))
    subtitle(ax, "Each method, with checkpointing (disc) and without (ring); in brackets the published accuracy")
    ax.set(xlabel="memory at the peak with one text (GiB)", ylabel="tokens/s at the largest batch that fits")
    return ax


def _finding(table: pd.DataFrame) -> str:
    best = table.iloc[0]
    if best["verdict"] not in RUNS:
        return "No method fits"
    fit = table.loc[table["verdict"].isin(RUNS), "method"].nunique()
    name = f"{best['method'][:1].upper()}{best['method'][1:]}"
    return f"{name} comes first of {fit} methods that fit" if fit > 1 else f"{name} is the only method that fits"


def _name_points(ax: "Axes", points: pd.DataFrame) -> None:
    """A column of labels at the right, in the order of the points' heights, each joined to its point."""
    points = points.sort_values("y", kind="stable")
    heights = spread((points["y"] / ax.get_ylim()[1]).tolist(), GAP)
    for row, height in zip(points.itertuples(), heights, strict=True):
        known = "" if pd.isna(row.accuracy) else f" ({row.accuracy:.3f})"
        place: dict[str, Any] = {"xycoords": "data", "textcoords": "axes fraction", "va": "center"}
        thread = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5}
        words = f"{row.method}{known}" + ("" if row.verdict in RUNS else ", does not fit")
        ax.annotate(words, (row.x, row.y), xytext=(1.03, height), arrowprops=thread, annotation_clip=False, **place)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 1, moved as little as needed so that no two are closer than the gap."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, 0.0))
    over = max(moved[-1] - 1, 0.0) if moved else 0.0
    for number in range(len(moved) - 1, -1, -1):  # what has left at the top is pushed back, and pushes others
        most = 1.0 if number == len(moved) - 1 else moved[number + 1] - gap
        moved[number] = min(moved[number], most) if over else moved[number]
    return moved


def plot_gpus(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the hours that a million tokens take on each card of `compare_gpus`, with the range; grey does not fit."""
    whole = drawable(table, "compare_gpus", "gpu", "verdict", "step_s", "low_s", "high_s", "hours_per_million")
    ax = new_axes(ax, 1.8 + rows_height(len(whole), 0.45))
    table = first_rows(whole, ax)
    hours = table["hours_per_million"].astype(float)
    low, high = million_range(table)
    colours = [NEUTRAL if verdict in RUNS else "#CCCCCC" for verdict in table["verdict"]]
    ax.barh(range(len(table)), hours, color=colours, xerr=[hours - low, high - hours], ecolor=DARK, capsize=3)
    name_rows(ax, table["gpu"])
    cells = zip(map(hours_in_words, low, high), table["verdict"], strict=True)
    label_bars(ax, high, [f"{time}, {verdict}" for time, verdict in cells])
    title(ax, _pace(whole))
    subtitle(ax, "Time for a million tokens on each card, and whether the step fits")
    ax.set(xlabel="hours per million tokens")
    return ax


def _pace(table: pd.DataFrame) -> str:
    """The fastest card that has the memory."""
    runs = table[table["verdict"].isin(RUNS)].sort_values("hours_per_million", kind="stable").head(1)
    if runs.empty:
        return "This step fits none of the cards" if len(table) else "No cards"
    time = hours_in_words(*(ends.iloc[0] for ends in million_range(runs)))
    return f"A million tokens take {time} on the {runs['gpu'].iloc[0]}"
