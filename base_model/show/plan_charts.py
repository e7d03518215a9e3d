"""The tables of the plans to Axes, in the style of `charts`: memory against context, adapters, training, insertion."""

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import COMPONENTS, ModelError, format_bytes, format_count, format_share, visible
from base_model.show.answer_charts import method_colour
from base_model.show.charts import (
    CARDS,
    COLOURS,
    INK,
    MOST_ROWS,
    NEUTRAL,
    PAPER,
    PLATE,
    THREAD,
    bars,
    drawable,
    first_rows,
    is_narrow,
    label_bars,
    legend,
    mark_cards,
    name_rows,
    new_axes,
    redrawn,
    rows_height,
    spread,
    stack_bars,
    subtitle,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30
MOST_LINES, MOST_TICKS = 12, 16  # as many as can be told apart, and as many as have room
OUTSIDE = -3  # the place of what is in no layer, clear of layer 0
SEEN = 0.003  # of the longest bar: a part that is nowhere larger cannot be seen, and has no name in the legend
# The parts of training memory, as they are stacked. The embedding keeps its colour of the other charts; the logits have
# that of the head, which makes them.
PARTS = {
    "embedding": COLOURS["embedding"], "other weights": COLOURS["other"], "adapter": "#AA4499", "gradients": "#6E9C1E",
    "optimizer": "#8C564B", "activations": "#1E95B5", "logits": COLOURS["head"], "temporary": "#5F6670",
}  # fmt: skip
STYLES = ("-", "--", "-.", ":")  # of the precisions, which are no part of a model and so have no colour


@redrawn
def plot_memory(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Lines: the memory of `plan_inference` against the context, one per precision; the device's free memory across."""
    columns = ("precision", "context", "weights_bytes", "total_bytes", "usable_bytes", "device")
    plan = drawable(plan, "plan_inference", *columns)
    if plan.empty:
        raise ModelError("This table has no rows to draw. Give the table of `plan_inference`.")
    ax = new_axes(ax, 4.6)
    for number, (precision, rows) in enumerate(list(plan.groupby("precision", sort=False))[:MOST_LINES]):
        known = rows.dropna(subset="total_bytes")
        totals = known["total_bytes"].astype(float) / GIB
        style: dict[str, Any] = {"color": NEUTRAL, "label": precision, "linestyle": STYLES[number % len(STYLES)]}
        ax.plot(known["context"], totals, marker="o", **style)
    usable = plan["usable_bytes"].iloc[0]
    limit = f"free on {plan['device'].iloc[0]}: {format_bytes(usable)}"
    ax.axhline(usable / GIB, color=INK, linewidth=1.2, label=limit)
    contexts = sorted(plan["context"].unique())
    _log_axes(ax, contexts[:: -(-len(contexts) // (4 if is_narrow(ax) else MOST_TICKS))])
    _name_lines(ax)
    title(ax, longest_in_words(plan))
    subtitle(ax, "Memory to run it (weights and KV cache) by text length; the line is what is free here")
    ax.set(xlabel="context (tokens, log scale)", ylabel="memory (log scale)")
    return ax


def longest_in_words(plan: pd.DataFrame) -> str:
    """The finding of `plan_inference`: how long a text may be, in which precision."""
    rows = plan.drop_duplicates("precision").dropna(subset="usable_bytes")
    rows = rows.dropna(subset="largest_context") if "largest_context" in rows else rows.head(0)
    fits = rows[rows["largest_context"].astype("Float64") > 0] if len(rows) else rows
    if fits.empty:
        return "The model does not fit here" if len(rows) else "Memory to run the model"
    best = fits.iloc[0]
    every = "every precision" if len(fits) == len(rows) > 1 else f"{best['precision']}"
    least = int(fits["largest_context"].min()) if len(fits) == len(rows) else int(best["largest_context"])
    return f"In {every}, texts of {least:,} tokens fit"


def _log_axes(ax: "Axes", contexts: list[Any]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(contexts, [f"{tokens:,}" for tokens in contexts])
    ax.set_yscale("log", base=2)
    low, high = ax.get_ylim()
    cards = [card for card in CARDS if low <= card <= high]
    ends = [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    ticks = cards + [end for end in ends if not CARDS[0] <= end <= CARDS[-1]]  # below and above the cards, powers of 2
    ax.set_yticks(ticks, [f"{tick:g} GiB" if tick >= 1 else f"{tick * 1024:g} MiB" for tick in ticks])
    ax.minorticks_off()


def _name_lines(ax: "Axes") -> None:
    """Each line's name beside its right end, kept apart; that of the limit, which runs across, above it."""
    low, high = (math.log(end) for end in ax.get_ylim())
    *lines, limit = ((str(line.get_label()), list(map(float, line.get_ydata()))) for line in ax.get_lines())  # type: ignore[arg-type]
    ends = sorted((heights[-1], name) for name, heights in lines if heights)
    places = spread([(math.log(end) - low) / (high - low) for end, _ in ends], 0.07)
    right = max(list(map(float, line.get_xdata()))[-1] for line in ax.get_lines()[:-1])  # type: ignore[arg-type]
    for (end, name), place in zip(ends, places, strict=True):
        where: dict[str, Any] = {"xytext": (1.04, place), "textcoords": "axes fraction", "va": "center"}
        ax.annotate(name, (right, end), arrowprops=THREAD, annotation_clip=False, **where)
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate(limit[0], (0.02, limit[1][0]), xytext=(0, 4), bbox=PLATE, **beside)


@redrawn
def plot_adapters(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the trainable parameters of each adapter of `plan_adapters`, with their share and the file's size."""
    whole = drawable(plan, "plan_adapters", "adapter", "trainable", "share", "file_bytes")
    ax = new_axes(ax, 1.4 + rows_height(len(whole), 0.45))
    plan = first_rows(whole.sort_values("trainable", ascending=False, kind="stable"), ax)
    trainable = plan["trainable"].astype("Float64").fillna(0).astype(float) / 1e6
    bars(ax, trainable, color=[method_colour(name) for name in plan["adapter"]])
    name_rows(ax, plan["adapter"])
    label_bars(ax, trainable, [_adapter_label(row) for row in plan.itertuples()])
    title(ax, _largest_adapter(whole))
    subtitle(ax, "Parameters that each adapter trains, their share of model plus adapter, and the file size")
    ax.set(xlabel="trainable parameters (millions)")
    return ax


def _largest_adapter(plan: pd.DataFrame) -> str:
    known = plan.dropna(subset="trainable").sort_values("trainable", kind="stable")
    if known.empty:
        return "Trainable parameters"
    most = known.iloc[-1]
    return f"The largest adapter trains {most['share']:.2%} of the parameters"


def _adapter_label(row: Any) -> str:
    if pd.isna(row.trainable):
        return "n/a"
    file = "" if pd.isna(row.file_bytes) else f", file {format_bytes(row.file_bytes)}"
    return f"{format_count(row.trainable)}, {row.share:.4%}{file}"


@redrawn
def plot_training(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Stacked bars: what is in memory at the peak of a training step, one bar per method of `compare_training`."""
    whole = drawable(plan, "compare_training", "weights_bytes", "embedding_bytes", "peak_bytes")
    ax = new_axes(ax, 2 + rows_height(len(whole), 0.5))
    plan = first_rows(whole.sort_values("peak_bytes", kind="stable"), ax)
    sizes = plan.filter(like="_bytes").astype("Float64").fillna(0).astype(float) / GIB
    parts = sizes.rename(columns=lambda name: name.removesuffix("_bytes"))
    parts["other weights"] = parts["weights"] - parts["embedding"]
    least = SEEN * sizes["peak_bytes"].max()
    parts = parts[[part for part in PARTS if part in parts and parts[part].max() > least]]
    stack_bars(ax, parts, PARTS)
    name_rows(ax, plan["method"] if "method" in plan else ["step"] * len(plan))
    labels = ["n/a" if pd.isna(peak) else format_bytes(peak) for peak in plan["peak_bytes"]]
    label_bars(ax, sizes["peak_bytes"], labels)
    mark_cards(ax)
    size = f", {plan['batch'].iloc[0]} x {plan['tokens'].iloc[0]:,} tokens" if "tokens" in plan and len(plan) else ""
    title(ax, _lightest(whole))
    subtitle(ax, f"What is in memory at the fullest moment of a training step{size}; dotted lines are common cards")
    ax.set(xlabel="memory (GiB)")
    legend(ax)
    return ax


def _lightest(plan: pd.DataFrame) -> str:
    known = plan.dropna(subset="peak_bytes").sort_values("peak_bytes", kind="stable")
    if len(known) < 2 or "method" not in known:
        return "Memory of a training step"
    return f"{visible(known['method'].iloc[0])} takes least: {format_bytes(known['peak_bytes'].iloc[0])}"


def plot_insertion(tensors: pd.DataFrame, points: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Tiles, layer by component: the darker, the more of the model's parameters; a disc where the adapter trains some.

    `tensors` is from `read_tensors`, `points` from `insertion_points`. A disc's area is its number of parameters.
    """
    tensors = drawable(tensors, "read_tensors", "layer", "component", "parameters")
    points = drawable(points, "insertion_points", "layer", "component", "trainable")
    weights, trained = (_grid(table, column) for table, column in ((tensors, "parameters"), (points, "trainable")))
    components = [one for one in COMPONENTS if one in weights.index or one in trained.index]
    weights, trained = (grid.reindex(index=components, fill_value=0) for grid in (weights, trained))
    shares = [_shares(component, weights, trained) for component in components]
    last = max([-1, *weights.columns, *trained.columns])  # of the layers; a name may claim to be the billionth
    layers = range(OUTSIDE, 1 + min(last, MOST_ROWS))
    weights, trained = (grid.reindex(columns=layers, fill_value=0) for grid in (weights, trained))
    ax = new_axes(ax, 1.6 + 0.55 * len(components))
    _tiles(ax, weights)
    _discs(ax, trained)
    name_rows(ax, components)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    for row, words in enumerate(shares):
        ax.annotate(words, (1, row), xytext=(8, 0), **place)
    step = max(1, len(layers) // 14)
    shown = [layer for layer in layers if layer == OUTSIDE or (layer >= 0 and layer % step == 0)]
    ax.set_xticks(shown, ["outside" if layer == OUTSIDE else str(layer) for layer in shown])
    title(ax, _most_trained(components, trained))
    subtitle(ax, "Where the weights are (grey tiles), and where the adapter trains (discs)")
    ax.set(xlabel="layer" if last <= MOST_ROWS else f"layer (up to {MOST_ROWS:,} of {last:,})")
    return ax


def _most_trained(components: list[str], trained: pd.DataFrame) -> str:
    totals = trained.sum(axis=1)
    if not totals.sum():
        return "The adapter trains nothing here"
    best = components[int(totals.to_numpy().argmax())]
    return f"The adapter trains {format_share(totals[best] / totals.sum())} of its parameters in the {best}"


def _tiles(ax: "Axes", weights: pd.DataFrame) -> None:
    """Shades of grey; the square root lets a layer be seen beside the embedding."""
    shades = (weights / max(weights.to_numpy().max(initial=0), 1)) ** 0.5
    rows, columns = weights.shape
    extent = (OUTSIDE - 0.5, OUTSIDE + columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(shades, cmap="Greys", vmin=0, vmax=1.6, aspect="auto", extent=extent)
    ax.grid(visible=False)


def _discs(ax: "Axes", trained: pd.DataFrame) -> None:
    areas = trained / max(trained.to_numpy().max(initial=0), 1) * 90  # square points
    for row, component in enumerate(trained.index):
        style: dict[str, Any] = {"color": COLOURS[component], "edgecolor": PAPER, "linewidth": 0.4}
        ax.scatter(trained.columns, [row] * trained.shape[1], s=areas.loc[component], **style)


def _grid(table: pd.DataFrame, values: str) -> pd.DataFrame:
    """Sums, components by layers; what is in no layer is in column `OUTSIDE`."""
    table = table.assign(layer=table["layer"].fillna(OUTSIDE).astype(int))
    return table.pivot_table(index="component", columns="layer", values=values, aggfunc="sum", fill_value=0)


def _shares(component: str, weights: pd.DataFrame, trained: pd.DataFrame) -> str:
    of_weights, of_trained = (grid.loc[component].sum() / max(grid.to_numpy().sum(), 1) for grid in (weights, trained))
    return f"{format_share(of_weights)} of the weights, {format_share(of_trained)} of the trained parameters"


@redrawn
def plot_ladder(ladder: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the peak of each row of `training_ladder`, with what its change brings against the first."""
    ladder = ladder.sort_values("difference_bytes", kind="stable", na_position="last")
    ax = new_axes(ax, 2 + rows_height(len(ladder), 0.45))
    peaks = ladder["peak_bytes"].astype("Float64").fillna(0).astype(float) / GIB
    bars(ax, peaks, color=[INK if start else NEUTRAL for start in ladder.index == 0])
    if len(peaks):
        ax.axvline(peaks.get(0, 0), color=INK, linestyle="--", linewidth=1, zorder=0)  # below the labels
    name_rows(ax, ladder["change"])
    label_bars(ax, peaks, [_change_label(row) for row in ladder.itertuples()])
    known = ladder["difference_bytes"].dropna()
    best = ladder.loc[known.idxmin(), "change"] if len(known) and known.min() < 0 else None
    mark_cards(ax)
    title(ax, f"{_capital(best)} saves most" if best else "No change saves memory")
    subtitle(
        ax,
        f"The peak of a step with one setting changed{_size_of(ladder)}; dashed: TRL's defaults, dotted: common cards",
    )
    ax.set(xlabel="memory at the peak of a training step (GiB)")
    return ax


def _size_of(ladder: pd.DataFrame) -> str:
    """The first row's batch and length, where the table has them."""
    start = ladder[ladder.index == 0]
    if start.empty or not {"batch", "tokens"}.issubset(ladder):
        return ""
    return f", from {start['batch'].iloc[0]} x {start['tokens'].iloc[0]:,} tokens"


def _capital(words: Any) -> str:
    """With a capital at the beginning, and the others as they are: `Half the length`, `4 bits (QLoRA)`."""
    return str(words)[:1].upper() + str(words)[1:]


def _change_label(row: Any) -> str:
    if pd.isna(row.peak_bytes):
        return "n/a"
    if pd.isna(row.difference_bytes):
        return format_bytes(row.peak_bytes)
    return format_bytes(row.peak_bytes) + (f" ({row.difference_bytes / GIB:+.2f})" if row.difference_bytes else "")
