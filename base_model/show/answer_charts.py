"""The answer as pictures: every method by memory and pace, and common cards by the time they take."""

from typing import TYPE_CHECKING

import pandas as pd

from base_model import ModelError
from base_model.show.charts import (
    INK,
    METHOD_COLOURS,
    MUTED,
    NEUTRAL,
    PAPER,
    bars,
    drawable,
    first_rows,
    label_bars,
    mark_cards,
    name_rows,
    new_axes,
    redrawn,
    rows_height,
    subtitle,
    title,
)
from base_model.show.sentences import hours_in_words, million_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30
RUNS = ("fits", "tight")


def method_colour(name: str) -> str:
    """The colour of a method's kind, the same in every chart; QLoRA before LoRA, whose name it holds."""
    return next((colour for kind, colour in METHOD_COLOURS.items() if kind.lower() in str(name).lower()), NEUTRAL)


@redrawn
def plot_recommendation(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """A row per method of `recommend`, best first: the memory that one text takes, with checkpointing (disc) and
    without (ring), and the speed at the largest batch that fits and the published accuracy as its label.
    """
    columns = ("method", "checkpointing", "verdict", "least_bytes", "tokens_per_s", "accuracy")
    table = drawable(table, "recommend", *columns).dropna(subset="least_bytes")
    if table.empty:
        raise ModelError("No method could be planned, so there is nothing to draw. The column `why` says why.")
    methods = list(table["method"].unique())
    ax = new_axes(ax, 1.8 + rows_height(len(methods), 0.45))
    for row, (method, pair) in enumerate(table.groupby("method", sort=False)):
        colour, memory = method_colour(str(method)), pair["least_bytes"].astype(float) / GIB
        ax.plot(memory, [row] * len(pair), color=colour, linewidth=2, zorder=2)
        faces = [colour if checkpointing else PAPER for checkpointing in pair["checkpointing"]]
        ax.scatter(memory, [row] * len(pair), s=70, c=faces, edgecolors=colour, linewidths=2, zorder=3)
    name_rows(ax, methods)
    groups = [pair for _, pair in table.groupby("method", sort=False)]
    ends = [pair["least_bytes"].max() / GIB for pair in groups]
    ax.set_xlim(0, max(ends) * 1.05)
    label_bars(ax, [end + max(ends) / 60 for end in ends], map(_pair_in_words, groups))
    mark_cards(ax)
    title(ax, _finding(table))
    subtitle(ax, "Memory of one text, with checkpointing (disc) or without (ring); best speed, published accuracy")
    ax.set(xlabel="memory at the peak of a training step (GiB)")
    return ax


def _pair_in_words(pair: pd.DataFrame) -> str:
    """`5,900 tokens/s, 0.478` of a method, with or without checkpointing; whether it fits at all."""
    fits = pair[pair["verdict"].isin(RUNS)]
    speed, accuracy = fits["tokens_per_s"].max() if len(fits) else float("nan"), pair["accuracy"].iloc[0]
    words = "does not fit" if fits.empty else "fits" if pd.isna(speed) else f"{float(f'{speed:.2g}'):,.10g} tokens/s"
    return words if pd.isna(accuracy) else f"{words}, {accuracy:.3f}"


def _finding(table: pd.DataFrame) -> str:
    best = table.iloc[0]
    if best["verdict"] not in RUNS:
        return "No method fits"
    fit = table.loc[table["verdict"].isin(RUNS), "method"].nunique()
    name = f"{best['method'][:1].upper()}{best['method'][1:]}"
    return f"{name} comes first of {fit} methods that fit" if fit > 1 else f"{name} is the only method that fits"


@redrawn
def plot_gpus(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the hours that a million tokens take on each card of `compare_gpus`, with the range; grey does not fit."""
    whole = drawable(table, "compare_gpus", "gpu", "verdict", "step_s", "low_s", "high_s", "hours_per_million")
    ax = new_axes(ax, 1.8 + rows_height(len(whole), 0.45))
    table = first_rows(whole, ax)
    hours = table["hours_per_million"].astype(float)
    low, high = million_range(table)
    colours = [NEUTRAL if verdict in RUNS else MUTED for verdict in table["verdict"]]
    if len(table) and hours.min() > 0 and hours.max() > 50 * hours.min():  # a CPU beside a card: both are to be seen
        ax.set_xscale("log")
        ax.set_xlim(low.min() / 3, high.max() * 1.3)
        ax.minorticks_off()
    bars(ax, hours, color=colours, xerr=[hours - low, high - hours], ecolor=INK, capsize=3)
    name_rows(ax, table["gpu"])
    cells = zip(map(hours_in_words, low, high), table["verdict"], strict=True)
    label_bars(ax, high, [f"{time}, {verdict}" for time, verdict in cells])
    title(ax, _pace(whole))
    subtitle(ax, "Time for a million tokens on each card, with its range (grey: the step does not fit)")
    ax.set(xlabel=f"hours per million tokens{', log scale' * (ax.get_xscale() == 'log')}")
    return ax


def _pace(table: pd.DataFrame) -> str:
    """The fastest card that has the memory."""
    runs = table[table["verdict"].isin(RUNS)].sort_values("hours_per_million", kind="stable").head(1)
    if runs.empty:
        return "This step fits none of the cards" if len(table) else "No cards"
    time = hours_in_words(*(ends.iloc[0] for ends in million_range(runs)))
    return f"A million tokens take {time} on the {runs['gpu'].iloc[0]}"
