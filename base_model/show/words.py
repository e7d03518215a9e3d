"""Numbers to words: tables for people, the README's table, and what a run has shown."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import format_bytes, format_count, format_share, visible
from base_model.plan.machine import this_machine
from base_model.run.limits import noisy, too_low
from base_model.run.timing import Generation
from base_model.show.sentences import in_words

RUN_COLUMNS = (
    "method", "device", "dtype", "prompt_tokens", "new_tokens", "runs", "first_token_s", "prefill_tokens_per_s",
    "tokens_per_s", "spread", "total_s",
)  # fmt: skip
CONDITIONS = ("device", "dtype", "attention", "threads", "kernel", "load_first_token_s", "peak_bytes")
CHOICES = ("MODEL", "GPU", "DATA", "TOKENS", "BATCH", "PROMPT", "MAX_NEW_TOKENS", "DOWNLOAD")  # of the notebook
SHOWN_ROWS = 40
PACKAGES = ("torch", "transformers")


def compare_runs(runs: Iterable[Generation]) -> pd.DataFrame:
    """One row per run, in the order given; figures are medians, NaN where there is none.

    Columns: `method`, `device`, `dtype`, `prompt_tokens`, `new_tokens`, `runs` (timed), `first_token_s`,
    `prefill_tokens_per_s` (prompt), `tokens_per_s` (decoding), `spread` (of that: fastest less slowest, as a share),
    `total_s`, `same_tokens` (as the first run on that device; <NA> where a server does not tell them).
    """
    runs = list(runs)
    table = pd.DataFrame([[getattr(run, name) for name in RUN_COLUMNS] for run in runs], columns=list(RUN_COLUMNS))
    first = {run.device: run.token_ids for run in reversed(runs)}
    same = [run.token_ids == first[run.device] if run.token_ids or not run.new_tokens else pd.NA for run in runs]
    table["same_tokens"] = pd.Series(same, dtype="boolean")
    return table


def this_run(model: str | Path, gpu: str | None = None) -> str:
    """Which model this run is about, for which card, and which settings came from the environment."""
    machine = this_machine().iloc[-1]
    memory = format_bytes(int(machine["total_bytes"]))
    place = gpu or f"this machine's {machine['device']} ({visible(str(machine['name']))}, {memory})"
    set_there = ", ".join(name for name in CHOICES if os.environ.get(name))
    origin = f"From the environment: {set_there}; the rest are defaults" if set_there else "All settings are defaults"
    return f"This run: {visible(Path(model).name)}\nPlanned for {place}. {origin}."


def run_conditions(runs: Iterable[Generation]) -> pd.DataFrame:
    """What the figures of `compare_runs` depend on, one row per device and dtype, with the choices that were made.

    Columns: `device`, `dtype`, `attention`, `threads`, `kernel` (of one-token passes on the CPU: "torch" or "oneDNN";
    this kind of machine's default, unless `load_model` was given another), `load_first_token_s` (loading and the first
    token: on the CPU the weights are read from the disk only when they are used), `peak_bytes` (on CUDA), and the
    versions of `torch` and `transformers`.
    """
    from importlib.metadata import version

    first = {(run.device, run.dtype): run for run in reversed([run for run in runs if run.threads])}
    rows = [[getattr(run, name) for name in CONDITIONS] for run in reversed(first.values())]
    table = pd.DataFrame(rows, columns=list(CONDITIONS))
    return table.assign(**{package: version(package) for package in PACKAGES})


class Whole(pd.DataFrame):
    """A table that `print` shows with every row and column, however narrow pandas takes the terminal to be."""

    def __repr__(self) -> str:
        """All of it."""
        return self.to_string()


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same table as text for people: `4.66 GiB`, `1,249,689,600`, `34.2%`, `0.21`, `n/a`; a `$` is not TeX."""
    return Whole(_words(table).apply(lambda column: column.str.replace("$", "\\$")))


def _words(table: pd.DataFrame) -> pd.DataFrame:
    words = table.apply(lambda column: column.map(lambda value: _in_words(str(column.name), value)).astype("str"))
    if {"adapter", "share"}.issubset(table):  # as PEFT prints it, which is also how small they are
        words["share"] = table["share"].map(lambda share: "n/a" if pd.isna(share) else f"{share:.4%}")
    return words


def _in_words(column: str, value: Any) -> str:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "–" if column in ("parameters", "layer") else "n/a"
    if column in ("size", "bytes") or column.endswith("_bytes"):
        return f"{'+' * (column == 'difference_bytes' and value > 0)}{format_bytes(int(value))}"
    if column == "accuracy" and isinstance(value, float):
        return f"{value:.3f}"
    if column in ("share", "spread") or column.endswith("_share"):
        return format_share(value)
    if column == "difference":
        return f"{value:+.1%}" if abs(value) >= 0.0005 else "none" if not value else "0.0%"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _figure(value)
    return f"{value:,}" if pd.api.types.is_integer(value) and column != "layer" else visible(str(value))


def in_units(checks: pd.DataFrame) -> pd.DataFrame:
    """The table of `try_training` for people: bytes as MiB or GiB, seconds as such."""
    words = checks.astype({"planned": object, "measured": object})
    for number, check in enumerate(checks["check"]):
        for column in ("planned", "measured"):
            value = checks[column][number]
            known = format_bytes(int(value)) if "(bytes)" in check and not pd.isna(value) else f"{value:.2f} s"
            words.loc[number, column] = "n/a" if pd.isna(value) else known
    words["check"] = words["check"].str.removesuffix(" (bytes)")
    return words


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its index as a column, if it has a name, and there is no such column."""
    return table.reset_index(drop=table.index.name in table) if table.index.name else table


def markdown_table(table: pd.DataFrame) -> str:
    """Any table as Markdown, in the words of `readable`, headings too, nothing cut off; numbers to the right.

    A table of three times as many columns as rows stands upright, one line per column. `show` is for notebooks.
    """
    table = flat(table)
    lines = [[_heading(str(name)) for name in table], *_words(table).to_numpy().tolist()]
    rules = ["---:" if _is_number(table[name]) else ":---" for name in table]
    if len(table) and len(rules) >= 3 * len(table):
        lines, rules = [list(line) for line in zip(*lines, strict=True)], [":---", *["---:"] * len(table)]
        if _is_number(table.iloc[:, 0]):  # no name to head a column
            lines.insert(0, ["fact", *["value"] * len(table)])
    lines = [[escape(cell) for cell in line] for line in lines]
    lines.insert(1, rules)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, repr=False)
class Shown:
    """Markdown that a notebook renders; as a string, the Markdown itself."""

    markdown: str

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown


def show(what: pd.DataFrame | str | None) -> Shown:
    """For the last line of a cell: a table for people, numbers to the right, no cell cut off; or Markdown as text.

    Of a long table, a checkpoint of hundreds of shards, the first 40 rows, and how many more there are. Nothing for
    None, which stands for what was skipped.
    """
    if what is None or isinstance(what, str):
        return Shown(what or "")
    more = len(what) - SHOWN_ROWS
    rest = f"\n\n... and {more:,} more rows." if more > 0 else ""
    return Shown(markdown_table(what.head(SHOWN_ROWS)) + rest)


def _heading(column: str) -> str:
    """A column's name for people: `first_token_s` is `first token (s)`; bytes have their unit in the cell."""
    if column.endswith("_gib_s"):
        return f"{column.removesuffix('_gib_s')} (GiB/s)"
    column = column.replace("load_first", "load_and_first")
    words = re.sub("^kv ", "KV ", column.replace("_per_s", "/s").removesuffix("_bytes").replace("_", " "))
    return f"{words.removesuffix(' s')} (s)" if words.endswith(" s") else words


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _figure(value: float) -> str:
    """A measured number with the digits that mean something: `0.079`, `24.6`, `1,234`; `n/a` for NaN."""
    if pd.isna(value):
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def to_markdown(files: pd.DataFrame) -> str:
    """The model summary table of `list_files` in Markdown; what would break it in a name is escaped."""
    lines = ["| file | size | parameters | description |", "|---|---|---|---|"]
    for file, size, parameters, description in files.itertuples(index=False):
        count = "–" if pd.isna(parameters) else format_count(parameters)
        lines.append(f"| {escape(file)} | {format_bytes(size)} | {count} | {description} |")
    return "\n".join(lines)


def escape(name: str) -> str:
    """A name as Markdown text: no HTML, no new column, no emphasis."""
    name = visible(name).replace("&", "&amp;").replace("<", "&lt;")
    name = "".join("\\" + character if character in "\\|`*[]$~" else character for character in name)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", name)  # an underscore within a word is only that


def takeaways(
    files: pd.DataFrame,
    tensors: pd.DataFrame,
    runs: pd.DataFrame,
    limits: pd.DataFrame | None = None,
    inference: pd.DataFrame | None = None,
    adapters: pd.DataFrame | None = None,
    training: pd.DataFrame | None = None,
    models: pd.DataFrame | None = None,
    recommendation: pd.DataFrame | None = None,
    ladder: pd.DataFrame | None = None,
    gpus: pd.DataFrame | None = None,
) -> str:
    """What this page has shown, as a Markdown list, from the tables of `list_files`, `read_tensors`, `compare_runs`.

    And, where they are given, of `speed_limit`, `plan_inference`, `plan_adapters`, `compare_training`,
    `compare_models`, whose first row is this model, `recommend`, `training_ladder` and `compare_gpus`.
    """
    points = [] if recommendation is None else [f"**The answer.** {escape(in_words(recommendation))}"]
    points += [_on_storage(files), _on_parameters(tensors)]
    points += [] if models is None else _on_experts(models, tensors)
    points += [_on_components(tensors), _on_layers(tensors)]
    points += [] if inference is None else [_on_memory(inference)]
    points += [] if adapters is None else [_on_adapters(adapters)]
    points += [] if training is None else [_on_training(training)]
    points += [] if ladder is None else [f"**Each setting.** {escape(in_words(ladder))}"]
    points += [] if gpus is None else [f"**How long?** {escape(in_words(gpus))}"]
    points += [_on_device(str(device), group) for device, group in runs.groupby("device", sort=False)]
    if runs["tokens_per_s"].notna().any():
        points.append(_on_fastest(runs))
    if limits is not None and limits["share"].notna().any():
        points.append(_on_limit(limits))
    return "\n".join(f"- {point}" for point in points)


def _on_memory(inference: pd.DataFrame) -> str:
    """The longest context of each precision, on the device that was planned for."""
    rows = inference.drop_duplicates("precision").dropna(subset="largest_context")
    fits = [f"{row.precision} up to {row.largest_context:,} tokens" for row in rows.itertuples() if row.largest_context]
    free = f"{format_bytes(inference['usable_bytes'].iloc[0])} free on {inference['device'].iloc[0]}"
    return f"**Does it run here?** With {free}: {', '.join(fits) or 'in none of the precisions'}."


def _on_adapters(adapters: pd.DataFrame) -> str:
    ends = _ends(adapters, "trainable")
    if not ends:
        return "**Adapters.** None of them can be planned for this architecture."
    few, most = ends
    return (
        f"**Adapters.** {few.adapter} trains {few.trainable:,} parameters ({few.share:.4%}); "
        f"{most.adapter}: {most.trainable:,} ({most.share:.4%})."
    )


def _on_training(training: pd.DataFrame) -> str:
    ends = _ends(training, "peak_bytes")
    if not ends:
        return "**Training.** No step can be measured for this architecture."
    least, most = ends
    return (
        f"**Training.** A step peaks at {format_bytes(least.peak_bytes)} with the lightest method ({least.method}) "
        f"and {format_bytes(most.peak_bytes)} with the heaviest ({most.method})."
    )


def _ends(table: pd.DataFrame, column: str) -> list[Any]:
    """The rows with the least and the most of a column; none where no row has a figure."""
    known = table.dropna(subset=column).sort_values(column)
    return list(known.iloc[[0, -1]].itertuples()) if len(known) else []


def _on_storage(files: pd.DataFrame) -> str:
    weights = files[files["parameters"].notna()]
    share = weights["size"].sum() / max(files["size"].sum(), 1)
    return (
        f"**Storage.** {len(weights)} of {len(files)} files hold weights: {format_bytes(weights['size'].sum())}, "
        f"{format_share(share)} of the folder."
    )


def _on_parameters(tensors: pd.DataFrame) -> str:
    parameters, size = tensors["parameters"].sum(), tensors["bytes"].sum()
    dtypes = " and ".join(tensors["dtype"].unique())
    return (
        f"**Parameters.** {format_count(parameters)} in {len(tensors):,} tensors, stored as {dtypes}: "
        f"{size / max(parameters, 1):.2f} bytes per parameter."
    )


def _on_experts(models: pd.DataFrame, tensors: pd.DataFrame) -> list[str]:
    """What one token uses of a mixture of experts; nothing for a dense model."""
    row = models.iloc[0]
    if pd.isna(row["active"]) or row["active"] >= row["parameters"]:
        return []
    active, embedding = int(row["active"]), tensors.loc[tensors["component"] == "embedding", "parameters"].sum()
    untied = (tensors["component"] == "head").any()
    rest = f"; {format_count(active - int(embedding))} without the embedding, of which it reads a row" if untied else ""
    used = f"{format_count(active)} of {format_count(int(row['parameters']))} parameters"
    return [f"**Experts.** One token uses {used}{rest}. All of them must be loaded."]


def _on_components(tensors: pd.DataFrame) -> str:
    shares = tensors.groupby("component")["parameters"].sum().sort_values(ascending=False) / tensors["parameters"].sum()
    head = "" if "head" in shares or "embedding" not in shares else " No separate output head is stored."
    return f"**Where they are.** {', '.join(f'{name} {format_share(share)}' for name, share in shares.items())}.{head}"


def _on_layers(tensors: pd.DataFrame) -> str:
    layers = tensors.groupby("layer")["parameters"].sum()
    if layers.empty:
        return "**Layers.** None are known by their names."
    if layers.nunique() == 1:
        return f"**Layers.** {len(layers)} layers of {format_count(layers.iloc[0])} parameters each."
    return f"**Layers.** {len(layers)} layers, not all alike: {layers.min():,} to {layers.max():,} parameters."


def _on_device(device: str, runs: pd.DataFrame) -> str:
    same = "the same tokens" if runs["same_tokens"].all() else "**different tokens**"
    speeds = ", ".join(
        f"{run.method} {_figure(run.tokens_per_s)} tokens/s after {_figure(run.first_token_s)} s"
        for run in runs.itertuples()
    )
    return f"**On {escape(device)}.** {speeds}; {same}."


def _on_fastest(runs: pd.DataFrame) -> str:
    """The winner, unless it won by less than the runs of one method differ among themselves."""
    ranked = runs.dropna(subset=["tokens_per_s"]).sort_values("tokens_per_s", ascending=False, kind="stable")
    best = ranked.iloc[0]
    noise = max(ranked["spread"].max(), 0.02)  # NaN from a single run counts as this little
    close = ranked.iloc[1:][ranked["tokens_per_s"].iloc[1:] > best["tokens_per_s"] * (1 - noise)]
    where = f"{best['method']} on {escape(best['device'])} in {best['dtype']}"
    others = ", ".join(f"{run.method} on {escape(run.device)}" for run in close.itertuples())
    place = f"{where}, {_figure(best['tokens_per_s'])} tokens/s"
    if others:
        return f"**Speed.** {place}; {others} came within the spread of the runs, so there is no winner."
    return f"**Fastest.** {place}."


def _on_limit(limits: pd.DataFrame) -> str:
    best = limits.loc[limits["share"].idxmax()]
    if best["share"] > 1:
        return f"**The limit.** {too_low(best)}"
    return (
        f"**The limit.** {escape(best['device'])} reads {_figure(best['bandwidth_gib_s'])} GiB/s, and each token "
        f"needs {format_bytes(int(best['read_bytes']))}: at most {_figure(best['limit_tokens_per_s'])} tokens/s, of "
        f"which {best['method']} reaches {best['share']:.0%}.{noisy(best['spread'])}"
    )
