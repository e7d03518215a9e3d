"""Charts of runs: how fast, and how fast it could be. The same contract and style as in charts.py."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from base_model import ModelError, format_share
from base_model.show.charts import (
    INK,
    NEUTRAL,
    bars,
    drawable,
    first_rows,
    label_bars,
    name_rows,
    new_axes,
    redrawn,
    rows_height,
    subtitle,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@redrawn
def plot_runs(table: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: decoding speed of each run of `compare_runs`, labelled with the time to the first token."""
    table = drawable(table, "compare_runs", "method", "device", "dtype", "first_token_s", "tokens_per_s")
    if table.empty:
        raise ModelError("No run was timed, so there is no speed to draw.")
    ax = new_axes(ax, 1.6 + rows_height(len(table), 0.45))
    table = first_rows(table, ax)
    speeds = table["tokens_per_s"].fillna(0)
    half = speeds * (table["spread"].fillna(0) if "spread" in table else 0) / 2
    bars(ax, speeds, color=NEUTRAL, xerr=half, ecolor=INK, capsize=3)
    name_rows(ax, table["method"] + ", " + table["device"] + ", " + table["dtype"])
    label_bars(ax, speeds + half, [_run_label(run) for run in table.itertuples()])
    title(ax, _fastest(table))
    subtitle(ax, "Decoding speed of each run, with the wait for the first token; whiskers span the repeated runs")
    ax.set(xlabel="decoding speed (tokens/s)")
    return ax


def _fastest(table: pd.DataFrame) -> str:
    known = table.dropna(subset="tokens_per_s").sort_values("tokens_per_s", ascending=False, kind="stable")
    if known.empty:
        return "No speed was measured"
    return f"The fastest run makes {known['tokens_per_s'].iloc[0]:.3g} tokens/s"


def _run_label(run: Any) -> str:
    speed = "n/a" if pd.isna(run.tokens_per_s) else f"{run.tokens_per_s:.3g} tokens/s"
    wait = "n/a" if pd.isna(run.first_token_s) else f"{run.first_token_s:.2f} s"
    return f"{speed}, first token {wait}"


@redrawn
def plot_limits(limits: pd.DataFrame, ax: "Axes | None" = None) -> "Axes":
    """Bars: the decoding speed of each run of `speed_limit` inside the speed that memory bandwidth allows."""
    columns = ("method", "device", "dtype", "tokens_per_s", "limit_tokens_per_s", "share")
    limits = drawable(limits, "speed_limit", *columns)
    if limits.empty:
        raise ModelError("No run was timed, so there is no limit to draw.")
    ax = new_axes(ax, 2 + rows_height(len(limits), 0.45))
    limits = first_rows(limits, ax)
    speeds, most = limits["tokens_per_s"].fillna(0), limits["limit_tokens_per_s"].fillna(0)
    bars(ax, most, color="none", edgecolor=INK, linestyle="--")
    bars(ax, speeds, color=NEUTRAL)
    name_rows(ax, limits["method"] + ", " + limits["device"] + ", " + limits["dtype"])
    label_bars(ax, speeds.where(speeds > most, most), [_limit_label(run) for run in limits.itertuples()])
    shares = limits["share"].dropna()
    title(ax, _reach(shares.max()))
    subtitle(ax, "Tokens per second of each run, and the most that memory bandwidth allows (dashed frame)")
    ax.set(xlabel="decoding speed (tokens/s)")
    return ax


def _reach(share: float) -> str:
    if pd.isna(share):
        return "No limit is known"
    if share > 1:  # a run cannot be faster: other programs took their part while memory was measured
        return "The bandwidth was measured too low to be a limit"
    return f"Decoding reaches {share:.0%} of what memory allows"


def _limit_label(run: Any) -> str:
    if pd.isna(run.share):
        return "limit not known"
    return f"{run.tokens_per_s:.3g} of {run.limit_tokens_per_s:.3g} tokens/s, {format_share(run.share)}"
