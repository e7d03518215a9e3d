"""The tables of the plans to Axes, in the style of `charts`: memory against context, adapters, training, insertion."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import COMPONENTS, format_bytes, format_count
from base_model.charts import COLOURS, NEUTRAL, label_bars, name_rows, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GIB = 2**30
PRECISION_COLOURS = {"float32": "#D55E00", "bfloat16": "#0072B2", "int8": "#009E73", "nf4": "#CC79A7"}
# The parts of training memory, as they are stacked; the embedding keeps its colour of the other charts.
PARTS = {
    "embedding": COLOURS["embedding"], "other weights": "#999999", "adapter": "#000000", "gradients": "#F0E442",
    "optimizer": "#E69F00", "activations": "#56B4E9", "logits": "#D55E00",
}  # fmt: skip


def plot_memory(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Lines: the memory of `plan_inference` against the context, one per precision; the device's free memory across."""
    ax = new_axes(ax, 4.4)
    for precision, rows in plan.groupby("precision", sort=False):
        known = rows.dropna(subset="total_bytes")
        totals = known["total_bytes"].astype(float) / GIB
        style: dict[str, Any] = {"color": PRECISION_COLOURS.get(str(precision), NEUTRAL), "label": precision}
        ax.plot(known["context"], totals, marker="o", **style)
    usable = plan["usable_bytes"].iloc[0]
    ax.axhline(usable / GIB, color="#444444", linestyle="--")
    ax.annotate(
        f"{plan['device'].iloc[0]}: {format_bytes(usable)} free", (0.01, usable / GIB), xytext=(0, 4),
        xycoords=("axes fraction", "data"), textcoords="offset points",
    )  # fmt: skip
    contexts = sorted(plan["context"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(contexts, [f"{tokens:,}" for tokens in contexts])
    ax.minorticks_off()
    ax.set_ylim(bottom=0, top=1.12 * max(ax.get_ylim()[1], usable / GIB))
    ax.set_title("Memory to run: weights and KV cache", loc="left", pad=12)
    ax.set(xlabel="context (tokens, log scale)", ylabel="memory (GiB)")
    _legend(ax)
    return ax


def plot_adapters(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the trainable parameters of each adapter of `plan_adapters`, with their share and the file's size."""
    ax = new_axes(ax, 1.4 + 0.45 * len(plan))
    trainable = plan["trainable"].astype("Float64").fillna(0).astype(float) / 1e6
    ax.barh(range(len(plan)), trainable, color=NEUTRAL)
    name_rows(ax, plan["adapter"])
    label_bars(ax, trainable, [_adapter_label(row) for row in plan.itertuples()])
    ax.set_title("Trainable parameters of adapters", loc="left", pad=12)
    ax.set(xlabel="trainable parameters (millions)")
    return ax


def _adapter_label(row: Any) -> str:
    if pd.isna(row.trainable):
        return "n/a"
    file = "" if pd.isna(row.file_bytes) else f", file {format_bytes(row.file_bytes)}"
    return f"{format_count(row.trainable)}, {row.share:.4%}{file}"


def plot_training(plan: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Stacked bars: the parts of each row of `compare_training`, and a mark at the peak: not all are there at once."""
    ax = new_axes(ax, 2 + 0.5 * len(plan))
    parts = plan[["adapter_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes", "logits_bytes"]]
    parts = parts.rename(columns=lambda name: name.removesuffix("_bytes"))
    parts.insert(0, "other weights", plan["weights_bytes"] - plan["embedding_bytes"])
    parts.insert(0, "embedding", plan["embedding_bytes"])
    starts = parts.cumsum(axis=1) - parts
    for part in parts:
        ax.barh(range(len(plan)), parts[part] / GIB, left=starts[part] / GIB, color=PARTS[str(part)], label=part)
    for row, peak in enumerate(plan["peak_bytes"]):
        ax.plot(
            [peak / GIB] * 2, [row - 0.46, row + 0.46], color="black", linewidth=2.5, label="peak" if row == 0 else None
        )
    name_rows(ax, plan["method"])
    label_bars(ax, parts.sum(axis=1) / GIB, [f"peak {format_bytes(peak)}" for peak in plan["peak_bytes"]])
    ax.set_title("Memory of a training step", loc="left", pad=12)
    ax.set(xlabel="memory (GiB)")
    _legend(ax)
    return ax


def plot_insertion(tensors: pd.DataFrame, points: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Tiles, layer by component: the darker, the more of the model's parameters; a disc where the adapter trains some.

    `tensors` is from `read_tensors`, `points` from `insertion_points`. A disc's area is its number of parameters.
    """
    weights, trained = (_grid(table, column) for table, column in ((tensors, "parameters"), (points, "trainable")))
    components = [one for one in COMPONENTS if one in weights.index or one in trained.index]
    layers = sorted(set(weights.columns) | set(trained.columns))
    weights, trained = (grid.reindex(index=components, columns=layers, fill_value=0) for grid in (weights, trained))
    ax = new_axes(ax, 1.8 + 0.5 * len(components))
    ax.grid(visible=False)
    ax.imshow(weights / max(weights.to_numpy().max(), 1), cmap="Greys", vmin=0, vmax=1.6, aspect="auto")
    largest = max(trained.to_numpy().max(), 1)
    for row, component in enumerate(components):
        areas = trained.loc[component] / largest * 90
        ax.scatter(
            range(len(layers)), [row] * len(layers), s=areas, color=COLOURS[component], edgecolor="white", linewidth=0.4
        )
    name_rows(ax, [_shares(component, weights, trained) for component in components])
    step = max(1, len(layers) // 16)
    shown = [place for place, layer in enumerate(layers) if layer < 0 or layer % step == 0]
    ax.set_xticks(shown, ["outside" if layers[place] < 0 else str(layers[place]) for place in shown])
    ax.set_title("Where the weights sit (grey) and where the adapter trains (discs)", loc="left", pad=12)
    ax.set(xlabel="layer")
    return ax


def _grid(table: pd.DataFrame, values: str) -> pd.DataFrame:
    """Sums, components by layers; what is in no layer is in column -1."""
    table = table.assign(layer=table["layer"].fillna(-1).astype(int))
    return table.pivot_table(index="component", columns="layer", values=values, aggfunc="sum", fill_value=0)


def _shares(component: str, weights: pd.DataFrame, trained: pd.DataFrame) -> str:
    of_weights, of_trained = (grid.loc[component].sum() / max(grid.to_numpy().sum(), 1) for grid in (weights, trained))
    return f"{component}: {of_weights:.1%} of the weights, {of_trained:.1%} of the training"


def _legend(ax: "Axes") -> None:
    columns = len(ax.get_legend_handles_labels()[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, ncols=columns, frameon=False, fontsize=9)
