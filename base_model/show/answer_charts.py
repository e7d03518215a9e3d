"""The answer as pictures: every method by memory and pace, and common cards by the time they take."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError
from base_model.show.charts import (
    INK,
    METHOD_COLOURS,
    MUTED,
    NEUTRAL,
    PAPER,
    PLATE,
    THREAD,
    WIDE,
    WIDTH,
    bars,
    drawable,
    first_rows,
    is_narrow,
    label_bars,
    mark_cards,
    name_rows,
    new_axes,
    redrawn,
    rows_height,
    spread,
    subtitle,
    title,
)
from base_model.show.sentences import hours_in_words, million_range
from base_model.train.places import FITTING, RESERVED
from base_model.train.recommend import usable_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30


def method_colour(name: str) -> str:
    """The colour of a method's kind, the same in every chart; QLoRA before LoRA, whose name it holds."""
    return next((colour for kind, colour in METHOD_COLOURS.items() if kind.lower() in str(name).lower()), NEUTRAL)


@redrawn
def plot_recommendation(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """The methods of `recommend` by the memory that one text takes, the speed at the largest batch that fits and the
    published accuracy. What does not fit lies at 0 tokens/s; where no speed is known, each method has a row.
    """
    columns = ("method", "checkpointing", "verdict", "least_bytes", "tokens_per_s", "accuracy")
    table = drawable(table, "recommend", *columns).dropna(subset="least_bytes")
    if table.empty:
        raise ModelError("No method could be planned, so there is nothing to draw. The column `why` says why.")
    speeds = table["tokens_per_s"].where(table["verdict"].isin(FITTING))
    in_rows = WIDTH.get() < WIDE or speeds.isna().all()
    ax = new_axes(ax, 1.8 + rows_height(table["method"].nunique(), 0.45) if in_rows else 5)
    table = table.assign(memory=table["least_bytes"].astype(float) / GIB, speed=speeds.fillna(0).astype(float))
    _in_rows(ax, table) if in_rows else _by_speed(ax, table)
    title(ax, _finding(table))
    subtitle(ax, DRAWN)
    ax.set(xlabel="memory at the peak of a training step with one text (GiB)")
    return ax


DRAWN = "Each method with checkpointing (disc) and without (ring), and its published accuracy; dotted: common cards"
GAP = 0.075  # of the height: as close as two labels may come


def _in_rows(ax: "Axes", table: pd.DataFrame) -> None:
    """A row per method, where there is no room for a second axis, or no speed to draw."""
    groups = [pair for _, pair in table.groupby("method", sort=False)]
    for row, pair in enumerate(groups):
        _pair(ax, pair, pair["memory"], pd.Series(row, pair.index))
    name_rows(ax, [pair["method"].iloc[0] for pair in groups])
    ends = [pair["memory"].max() for pair in groups]
    ax.set_xlim(0, max(ends) * 1.05)
    label_bars(ax, [end + max(ends) / 60 for end in ends], map(_pair_in_words, groups))
    mark_cards(ax)
    _mark_room(ax, table)


def _by_speed(ax: "Axes", table: pd.DataFrame) -> None:
    """Memory and speed as axes; the names in a column at the right, each joined to its method's faster point."""
    for _, pair in table.groupby("method", sort=False):
        _pair(ax, pair, pair["memory"], pair["speed"])
    ax.set(ylabel="tokens/s at each method's batch", ylim=(0, table["speed"].max() * 1.12))
    ax.set_xlim(0, table["memory"].max() * 1.05)
    ax.yaxis.set_major_formatter("{x:,.10g}")
    mark_cards(ax)
    _mark_room(ax, table)
    # Of two without a speed, the lower name is that of the right one: threads do not run through points.
    named = table.sort_values(["speed", "memory"], ascending=[True, False], kind="stable")
    named = named.drop_duplicates("method", keep="last")
    heights = spread((named["speed"] / ax.get_ylim()[1]).tolist(), GAP)
    place: dict[str, Any] = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
    for row, height in zip(named.itertuples(), heights, strict=True):
        known = "" if pd.isna(row.accuracy) else f" ({row.accuracy:.3f})"
        words = f"{row.method}{known}" + ("" if row.verdict in FITTING else ", does not fit")
        ax.annotate(words, (row.memory, row.speed), xytext=(1.03, height), arrowprops=THREAD, **place)


def _mark_room(ax: "Axes", table: pd.DataFrame) -> None:
    """The highest peak that fits this place, where the table tells it."""
    if not {"peak_bytes", "share"}.issubset(table):
        return
    for usable in usable_in(table.dropna(subset=["peak_bytes", "share"]).head(1)):
        room = usable / RESERVED / GIB
        if room > 0.93 * ax.get_xlim()[1]:  # nearly everything fits
            return
        ax.axvline(room, color=INK, linewidth=1.2, zorder=1)
        beside: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "bbox": PLATE}
        # Beyond it nothing fits, so that the label meets no point; on a narrow figure it lies below them.
        beside |= {"rotation": 0, "fontsize": 8} if is_narrow(ax) else {"rotation": 90}
        height = 0.0 if is_narrow(ax) else 0.1
        ax.annotate(f"fits up to {room:.1f} GiB", (room, height), xytext=(4, 1), va="bottom", **beside)


def _pair(ax: "Axes", pair: pd.DataFrame, x: pd.Series, y: pd.Series) -> None:
    """One method: a disc with checkpointing, a ring without, and the line from one to the other."""
    colour = method_colour(str(pair["method"].iloc[0]))
    ax.plot(x, y, color=colour, linewidth=2, alpha=0.6, zorder=2)
    faces = [colour if checkpointing else PAPER for checkpointing in pair["checkpointing"]]
    sizes = [40 if checkpointing else 90 for checkpointing in pair["checkpointing"]]  # a ring shows behind a disc
    ax.scatter(x, y, s=sizes, c=faces, edgecolors=colour, linewidths=2, zorder=3, clip_on=False)


def _pair_in_words(pair: pd.DataFrame) -> str:
    """`5,900 tokens/s, 0.478` of a method, with or without checkpointing; whether it fits at all."""
    fits = pair[pair["verdict"].isin(FITTING)]
    speed, accuracy = fits["tokens_per_s"].max() if len(fits) else float("nan"), pair["accuracy"].iloc[0]
    words = "does not fit" if fits.empty else "fits" if pd.isna(speed) else f"{float(f'{speed:.2g}'):,.10g} tokens/s"
    return words if pd.isna(accuracy) else f"{words}, {accuracy:.3f}"


def _finding(table: pd.DataFrame) -> str:
    best = table.iloc[0]
    if best["verdict"] not in FITTING:
        return "No method fits"
    fit = table.loc[table["verdict"].isin(FITTING), "method"].nunique()
    name = f"{best['method'][:1].upper()}{best['method'][1:]}"
    return f"{name} comes first of {fit} methods that fit" if fit > 1 else f"{name} is the only method that fits"


@redrawn
def plot_gpus(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the time that a million tokens take on each card of `compare_gpus`, with the range; grey does not fit."""
    whole = drawable(table, "compare_gpus", "gpu", "verdict", "step_s", "low_s", "high_s", "hours_per_million")
    ax = new_axes(ax, 1.8 + rows_height(len(whole), 0.45))
    table = first_rows(whole, ax)
    hours = table["hours_per_million"].astype(float)
    low, high = million_range(table)
    unit, times = ("hours", 1) if high.max() >= 1 else ("minutes", 60)
    colours = [NEUTRAL if verdict in FITTING else MUTED for verdict in table["verdict"]]
    if len(table) and hours.min() > 0 and hours.max() > 50 * hours.min():  # a CPU beside a card: both are to be seen
        ax.set_xscale("log")
        ax.set_xlim(low.min() * times / 3, high.max() * times * 1.3)
        ax.minorticks_off()
    whiskers = [(hours - low) * times, (high - hours) * times]
    bars(ax, hours * times, color=colours, xerr=whiskers, ecolor=INK, capsize=3)
    name_rows(ax, table["gpu"])
    cells = zip(map(hours_in_words, low, high), table["verdict"], strict=True)
    label_bars(ax, high * times, [f"{time}, {verdict}" for time, verdict in cells])
    title(ax, _pace(whole))
    unfit = "" if whole["verdict"].isin(FITTING).all() else " (grey: the step does not fit)"
    subtitle(ax, f"Time for a million tokens on each card, with its range{unfit}")
    ax.set(xlabel=f"{unit} per million tokens{', log scale' * (ax.get_xscale() == 'log')}")
    return ax


def _pace(table: pd.DataFrame) -> str:
    """The first card that has the memory: the one that was asked for, if it has."""
    runs = table[table["verdict"].isin(FITTING)].head(1)
    if runs.empty:
        return "This step fits none of the cards" if len(table) else "No cards"
    time = hours_in_words(*(ends.iloc[0] for ends in million_range(runs)))
    return f"A million tokens take {time} on the {runs['gpu'].iloc[0]}"
