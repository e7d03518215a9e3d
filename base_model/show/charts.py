"""A table to an Axes. Data first, `ax=None` makes a new figure, the Axes is returned; only `save_chart` writes."""

import io
import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import pandas as pd

from base_model import COMPONENTS, ModelError, format_bytes, format_count, format_share, visible
from base_model.read.folder import in_home, is_folder
from base_model.show.saving import reason, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One meaning per colour, in every chart, with a contrast of 3 or more to a white page; `drawing` makes them dark.
COLOURS = dict(zip(COMPONENTS, ("#0072B2", "#B07A00", "#00946B", "#C26A9A", "#D55E00", "#858D96"), strict=True))
# One per kind of method, none of them that of a component; QLoRA's name holds LoRA's.
METHOD_COLOURS = {"full": "#882255", "QLoRA": "#5B4BC4", "DoRA": "#B8455B", "LoRA": "#2F6B1F", "IA-3": "#7A7A1F"}
CARDS = (8, 12, 16, 24, 48, 80)  # GiB of common cards
NEUTRAL, MUTED = "#4A7FA5", "#8C959F"  # where components play no part; what does not fit, or is only beside
INK, FAINT, GRID, PAPER = "#24292F", "#59636E", "#E5E5E5", "#FFFFFF"
PLATE: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "pad": 0.5}  # no line crosses a label
# From a point to its name.
THREAD = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5}
NUMBERS = {"size", "parameters", "bytes", "trainable", "share", "context", "layer"}  # columns that hold nothing else
MOST_ROWS = 200  # that are drawn, of any table; matplotlib takes a minute for some thousands
WIDE, NARROW = 9.0, 4.4  # inches of a new figure; the narrow one is for a telephone, where one point is one pixel
WIDTH: ContextVar[float] = ContextVar("WIDTH", default=WIDE)
Plot = ParamSpec("Plot")


def redrawn(plot: "Callable[Plot, Axes]") -> "Callable[Plot, Axes]":
    """A chart whose new figure knows how it was made, `figure.again`: it is drawn once more, for narrow screens."""

    @wraps(plot)
    def drawn(*args: Plot.args, **kwargs: Plot.kwargs) -> "Axes":
        ax = plot(*args, **kwargs)
        figure: Any = ax.get_figure(root=True)
        if getattr(figure, "of_this_house", False):
            figure.again = partial(plot, *args, **kwargs)
        return ax

    return drawn


def new_axes(ax: "Axes | None", height: float) -> "Axes":
    """`ax`, or the Axes of a new figure as wide as `WIDTH` says, in the house style."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    if ax is None:
        make: Any = plt.figure if WIDTH.get() == WIDE else Figure  # only a wide one is shown by a notebook
        figure = make(figsize=(WIDTH.get(), height), layout="constrained")
        figure.of_this_house = True
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # inches
        ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.grid(color=GRID)
    return ax


def is_narrow(ax: "Axes") -> bool:
    """Whether names stand above their bars, as beside them there is no room."""
    return ax.get_figure(root=True).get_figwidth() < (WIDE + NARROW) / 2  # type: ignore[union-attr]


def drawable(table: pd.DataFrame, source: str, *columns: str) -> pd.DataFrame:
    """The table, if it has the columns that a chart needs; `source` is the function that makes it. Or ModelError."""
    if not isinstance(table, pd.DataFrame):
        raise ModelError(f"This chart draws the table of `{source}`, not a {type(table).__name__}. Give that table.")
    if lacking := [name for name in columns if name not in table]:
        raise ModelError(f"This table has no column {', '.join(lacking)}. Give the table of `{source}`.")
    if odd := [name for name in columns if _is_odd(name, table[name])]:
        raise ModelError(f"Column {odd[0]} of this table holds no numbers. Give the table of `{source}`.")
    return table


def _is_odd(name: str, column: pd.Series) -> bool:
    """Whether a column of numbers holds anything else."""
    is_number = name in NUMBERS or name.endswith(("_bytes", "_share", "_s"))
    return is_number and pd.to_numeric(column, errors="coerce").isna().sum() > column.isna().sum()


def first_rows(table: pd.DataFrame, ax: "Axes") -> pd.DataFrame:
    """The rows that are drawn; where there are more, the right margin says so."""
    if len(table) > MOST_ROWS:
        words = f"the first {MOST_ROWS:,} of {len(table):,}"
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        ax.annotate(words, (1, 1), xytext=(0, 3), fontsize=8, **place)
    return table.head(MOST_ROWS)


def title(ax: "Axes", words: str) -> None:
    """What the chart says, which is its text for whoever cannot see it; in two lines where one is too short."""
    ax.set_title(_wrapped(ax, words, 0.1), loc="left", pad=12, fontweight="bold")


def subtitle(ax: "Axes", words: str) -> None:
    """What is drawn, in a line of its own below the title, which moves up for it."""
    words = _wrapped(ax, words, 0.068)
    pad = 28 + 13 * words.count("\n")
    ax.set_title(ax.get_title(loc="left"), loc="left", pad=pad, fontweight="bold")
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(words, (0, 1), xytext=(0, 15), fontsize=9, color=FAINT, gid="subtitle", **place)


def _wrapped(ax: "Axes", words: str, letter: float) -> str:
    """The words in lines that the figure has room for, by how many inches a letter takes."""
    width = ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    return "\n".join(textwrap.wrap(words, max(20, int((width - _names_width(ax) - 0.4) / letter)))) or words


def _names_width(ax: "Axes") -> float:
    """The inches that the names beside the bars take, by how wide a letter is."""
    return 0.08 * min(max((len(label.get_text()) for label in ax.get_yticklabels()), default=0), 60)


def words_of(ax: "Axes") -> tuple[str, str]:
    """The title and the subtitle of a chart, each in one line."""
    below = next((text.get_text() for text in ax.texts if text.get_gid() == "subtitle"), "")
    return " ".join(ax.get_title(loc="left").split()), " ".join(below.split())


def mark_cards(ax: "Axes") -> None:
    """Thin lines at the memory of common cards, as far as the axis of GiB reaches; names that have room, short ones on
    a narrow figure."""
    low, high = ax.get_xlim()
    style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
    unit = "" if is_narrow(ax) else " GiB"
    room = (high - low) * 0.05
    last = low - room
    for card in (card for card in CARDS if low < card <= high):
        ax.axvline(card, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
        if card - last >= room:
            ax.annotate(f"{card}{unit}", (card, 1), xytext=(0, 2), fontsize=8, color=FAINT, gid="card", **style)
            last = card


def _layers_in_words(layers: pd.Series) -> str:
    """`28 layers of 100,669,440 (~100.7 M) each`, or from the smallest to the largest."""
    if layers.empty:
        return "no layer is known by its name"
    each = f" to {format_count(layers.max())}" if layers.nunique() > 1 else ""
    return f"{len(layers)} layers of {format_count(layers.min())}{each} each"


def rows_height(rows: int, each: float) -> float:
    """The inches for some rows of bars: `each` for a few, and as little as a line of text takes for hundreds."""
    rows = min(rows, MOST_ROWS)
    if WIDTH.get() < WIDE:
        return rows * max(0.38, min(each + 0.15, 16 / max(rows, 1)))
    return rows * max(0.19, min(each, 8 / max(rows, 1)))


def bars(ax: "Axes", ends: Iterable[float], height: float = 0.8, **style: Any) -> None:
    """Horizontal bars, one per row; lower on a narrow figure, where each has its name above it."""
    ends = list(ends)
    ax.barh(range(len(ends)), ends, height=height / 2 if is_narrow(ax) else height, **style)


def name_rows(ax: "Axes", names: Iterable[str]) -> list[str]:
    """Name the rows of a horizontal bar chart, first at the top; on a narrow figure above the bars."""
    names = [visible(name) for name in names]
    beside = [] if is_narrow(ax) else names
    ax.set_yticks(range(len(names)), beside or [""] * len(names))
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a file may be called $x$
    if not beside:
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        for row, name in enumerate(names):
            ax.annotate(name, (0, row - 0.2), xytext=(3, 2.5), gid="name", parse_math=False, bbox=PLATE, **place)
    ax.set_ylim(len(names) - (0.4 if beside else 0.6), -0.6 if beside else -0.7)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    return names


def label_bars(ax: "Axes", ends: Iterable[float], labels: Iterable[str]) -> None:
    """Write each bar's figure at its end, and widen the axis so that the longest fits."""
    labels = list(labels)
    for row, (end, label) in enumerate(zip(ends, labels, strict=True)):
        ax.annotate(label, (end, row), xytext=(5, 0), textcoords="offset points", va="center", bbox=PLATE)
    width = ax.get_figure(root=True).get_figwidth() - 0.4 - _names_width(ax)  # type: ignore[union-attr]
    share = (0.15 + 0.072 * max(map(len, labels), default=0)) / width
    low, high = ax.get_xlim()
    if ax.get_xscale() == "log":
        ax.set_xlim(low, low * (high / low) ** (1 / max(0.25, 1 - share)))
    else:
        ax.set_xlim(0, (high or 1) / max(0.25, 1 - share))


@redrawn
def plot_storage(files: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the size of every file of `list_files`, largest first; x in GiB or MiB, labels with the exact unit."""
    files = drawable(files, "list_files", "file", "size", "parameters")
    files = files.sort_values("size", ascending=False, kind="stable")
    ax = new_axes(ax, 1.4 + rows_height(len(files), 0.34))
    unit, scale = ("GiB", 2**30) if files["size"].max() >= 2**30 else ("MiB", 2**20)
    drawn = first_rows(files, ax)
    sizes = drawn["size"] / scale
    bars(ax, sizes, color=NEUTRAL)
    name_rows(ax, drawn["file"])
    label_bars(ax, sizes, map(format_bytes, drawn["size"]))
    weights = files.loc[files["parameters"].notna(), "size"].sum() / max(files["size"].sum(), 1)
    title(ax, f"Weights take {format_share(weights)} of {format_bytes(files['size'].sum())}")
    subtitle(ax, f"The size of every file, largest first: {len(files):,} in all")
    ax.set(xlabel=f"size ({unit})")
    return ax


@redrawn
def plot_parameters(tensors: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the parameters in each shard of `read_tensors`, split by component; x in millions or billions."""
    table = _by_component(tensors, "file")
    ax = new_axes(ax, 2 + rows_height(len(table), 0.5))
    whole, rows, table = table.to_numpy().sum(), len(table), first_rows(table, ax)
    totals = table.sum(axis=1)
    unit, scale = _unit(totals.max())
    stack_bars(ax, table / scale, COLOURS)
    name_rows(ax, table.index)
    label_bars(ax, totals / scale, map(format_count, totals))
    title(ax, f"{format_count(whole)} parameters in {rows:,} file{'s' * (rows != 1)}")
    subtitle(ax, "Parameters of each weight file, by component")
    ax.set(xlabel=f"parameters ({unit})")
    legend(ax)
    return ax


@redrawn
def plot_components(tensors: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the parameters of each component of `read_tensors`, largest first, with their share."""
    totals = _known(tensors).groupby("component")["parameters"].sum().sort_values(ascending=False)
    ax = new_axes(ax, 1.4 + rows_height(len(totals), 0.45))
    unit, scale = _unit(totals.max())
    bars(ax, totals / scale, color=[COLOURS[component] for component in totals.index])
    name_rows(ax, totals.index)
    shares = totals / max(totals.sum(), 1)
    labels = [f"{format_count(n)}, {format_share(share)}" for n, share in zip(totals, shares, strict=True)]
    label_bars(ax, totals / scale, labels)
    title(
        ax,
        f"The {shares.index[0]} holds {format_share(shares.iloc[0])} of all parameters"
        if len(shares)
        else "No tensors",
    )
    subtitle(ax, "Parameters by component, largest first")
    ax.set(xlabel=f"parameters ({unit})")
    return ax


@redrawn
def plot_layers(tensors: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Columns: the parameters of each layer of `read_tensors`, split by component; first, what is in no layer."""
    tensors = drawable(tensors, "read_tensors", "layer")
    outside = -max(3, min(tensors["layer"].nunique(), MOST_ROWS) // 10)  # the place of what is in no layer, clear of 0
    layers = _by_component(tensors.assign(layer=tensors["layer"].fillna(outside)), "layer")
    ax = new_axes(ax, 4)
    table = first_rows(layers, ax)
    unit, scale = _unit(table.sum(axis=1).max())
    _stack_columns(ax, table / scale)
    step = max(1, len(table) // (6 if is_narrow(ax) else 16))  # numbers that have room below the columns
    ticks = [layer for layer in table.index if layer == outside or layer % step == 0]
    ax.set_xticks(ticks, ["outside" if layer == outside else str(layer) for layer in ticks])
    ax.grid(visible=False, axis="x")
    words = _layers_in_words(layers.drop(outside, errors="ignore").sum(axis=1))
    title(ax, words[:1].upper() + words[1:])
    subtitle(ax, "Parameters of each layer, and of what is in none, by component")
    ax.set(xlabel="layer", ylabel=f"parameters ({unit})")
    legend(ax)
    return ax


@redrawn
def plot_models(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the parameters of each model of `compare_models`, split by component; labels with what is stored."""
    shares = [f"{name}_share" for name in COMPONENTS]
    models = drawable(table, "compare_models", "parameters", "bytes", *shares)
    ax = new_axes(ax, 2 + rows_height(len(models), 0.5))
    table = first_rows(models, ax)
    parts = {name: table["parameters"] * table[f"{name}_share"] for name in COMPONENTS if table[f"{name}_share"].any()}
    unit, scale = _unit(table["parameters"].max())
    stack_bars(ax, pd.DataFrame(parts) / scale, COLOURS)
    name_rows(ax, table.index)
    sizes = zip(table["parameters"], table["bytes"], strict=True)
    label_bars(ax, table["parameters"] / scale, [f"{format_count(n)}, {format_bytes(size)}" for n, size in sizes])
    title(ax, _largest_model(models))
    subtitle(ax, "Parameters of each model, by component, and the size of its weights on disk")
    ax.set(xlabel=f"parameters ({unit})")
    legend(ax)
    return ax


def _largest_model(models: pd.DataFrame) -> str:
    counts = models["parameters"].sort_values(kind="stable")
    if len(counts) < 2 or not counts.iloc[0]:
        return f"{format_count(counts.max())} parameters" if len(counts) else "No models"
    times = f"{counts.iloc[-1] / counts.iloc[0]:.1f} times as many parameters as"
    return f"{visible(str(counts.index[-1]))} has {times} {visible(str(counts.index[0]))}"


def _by_component(tensors: pd.DataFrame, by: str) -> pd.DataFrame:
    """Parameters: one row per group, one column per component that occurs, in the fixed order."""
    table = _known(drawable(tensors, "read_tensors", by)).pivot_table(
        index=by, columns="component", values="parameters", aggfunc="sum", fill_value=0
    )
    return table[[component for component in COMPONENTS if component in table]]


def _known(tensors: pd.DataFrame) -> pd.DataFrame:
    """The table of `read_tensors`, whose components all have a colour. Raises ModelError."""
    tensors = drawable(tensors, "read_tensors", "component", "parameters")
    if strange := set(tensors["component"]) - set(COMPONENTS):
        shown = visible(repr(next(iter(strange))))
        raise ModelError(f"This table has an unknown component, {shown}. Give the table of `read_tensors`.")
    return tensors


def stack_bars(ax: "Axes", table: pd.DataFrame, colours: dict[str, str]) -> None:
    """The columns of `table` one after the other in each row's bar, with a thin gap between them."""
    starts = table.cumsum(axis=1) - table
    for part in table:
        bars(ax, table[part], left=starts[part], color=colours[str(part)], label=part, edgecolor=PAPER, linewidth=0.5)


def _stack_columns(ax: "Axes", table: pd.DataFrame) -> None:
    starts = table.cumsum(axis=1) - table
    for component in table:
        style: dict[str, Any] = {"color": COLOURS[component], "label": component, "bottom": starts[component]}
        ax.bar(table.index, table[component], **style)


def legend(ax: "Axes") -> None:
    """The names of the colours, in the order of the parts, below the axis and clear of its label at any height."""
    count = len(ax.get_legend_handles_labels()[1])
    if not count:
        return
    columns = min(count, 3 if is_narrow(ax) else 5)  # as many as fill the width
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 4}
    ax.legend(ncols=columns, frameon=False, columnspacing=1, handlelength=1, **place)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places from 0 to 1, moved as little as needed so that no two are closer than the gap."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, 0.0))
    for number in range(len(moved) - 1, -1, -1):  # what has left at the top is pushed back, and pushes others
        most = 1.0 if number == len(moved) - 1 else moved[number + 1] - gap
        moved[number] = min(moved[number], most)
    return moved


def _unit(largest: float) -> tuple[str, float]:
    """The unit of an axis of counts, by its largest value."""
    return ("billions", 1e9) if largest >= 5e8 else ("millions", 1e6) if largest >= 5e5 else ("count", 1)


def picture(ax: "Axes") -> bytes:
    """The chart's figure as a PNG; the same table gives the same bytes."""
    figure: Any = ax.get_figure(root=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})  # a version would change the bytes
    return content.getvalue()


def save_chart(ax: "Axes", path: str | Path) -> Path:
    """Save the chart's figure as a PNG, its folder made if need be; returns the path, which ends in .png.

    Raises ModelError if it cannot be written; what was there before stays.
    """
    place, content = _picture_path(path), picture(ax)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        target = place.resolve()  # of a link that the user named
        if target.exists() and not target.is_file():
            raise ModelError(f"{visible(str(place))} is a pipe or a device. Give the path of a picture, such as x.png.")
        write_whole({target: content})
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{visible(str(place))} cannot be written: {reason(error)}. Give another path.") from error
    return place


def _picture_path(path: str | Path) -> Path:
    """`~` is the home folder, and .png is added where it is missing. Raises ModelError for a folder."""
    place = in_home(path)
    if str(path).endswith(("/", os.sep)) or is_folder(place):
        raise ModelError(f"{visible(str(path))} is a folder. Give the path of a picture, such as chart.png in it.")
    return place if place.suffix.lower() == ".png" else place.with_name(f"{place.name}.png")
