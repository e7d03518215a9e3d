"""What was found, as files that can be sent and compared: report.json, report.md and the charts."""

import hashlib
import json
import os
import platform
import stat
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, format_bytes, visible
from base_model.read.folder import in_home
from base_model.show.answer_charts import plot_gpus, plot_recommendation
from base_model.show.charts import picture, plot_components, plot_parameters, plot_storage, words_of
from base_model.show.plan_charts import plot_adapters, plot_ladder, plot_memory, plot_training
from base_model.show.run_charts import plot_limits, plot_runs
from base_model.show.saving import reason, write_whole
from base_model.show.sentences import best_rows
from base_model.show.words import compare_runs, escape, flat, markdown_table, takeaways

SCHEMA = "base_model_visualize/report/1"  # the number grows when a name or a meaning changes
UNITS = {
    "*_bytes": "bytes",
    "*_s": "seconds",
    "*_per_s": "tokens per second",
    "bytes": "bytes",
    "*_share, share": "0 to 1, of the whole that the table is about",
    "parameters": "logical parameters, tied ones once",
    "bits_per_parameter": "bits, as stored",
}
RENAMED = {"size": "size_bytes"}  # the unit in the name, for readers who have only the file
PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "peft", "bitsandbytes", "pandas", "matplotlib")
OF_TABLES = {  # those that have a chart and a takeaway of their own
    "recommendation": ("recommendation.png", plot_recommendation),
    "inference": ("memory.png", plot_memory),
    "adapters": ("adapters.png", plot_adapters),
    "training": ("training.png", plot_training),
    "ladder": ("ladder.png", plot_ladder),
    "gpus": ("gpus.png", plot_gpus),
    "limits": ("speed-limit.png", plot_limits),
}
MAX_BYTES = 50_000_000  # of one file of a report; those of the largest models have some hundred kilobytes
Words = dict[str, tuple[str, str]]  # of each chart: title and subtitle
LONG = 20  # rows; a longer table is folded in report.md


def save_report(
    folder: Path, model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], tensors: pd.DataFrame
) -> Path:
    """Write report.json, report.md and the charts; gives the path of report.md.

    `model` has its `name` and `commits`; `tables` are written in their order, of which `files`, and `runs` if there are
    any, are drawn too. The same findings give the same bytes on one day: no time, no path. Raises ModelError if the
    folder cannot be written, or holds a file of one of these names that no report has written, or that was changed.
    """
    runs = tables.get("runs", compare_runs([]))
    plans = {name: tables[name] for name in OF_TABLES if name in tables}
    words, files = _draw(tables, tensors, runs)
    points = takeaways(tables["files"], tensors, runs, **plans, models=tables.get("model"))
    files["report.md"] = _page(model, tables, words, points).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _require_own(folder, files)
        files["report.json"] = _sealed(_content(model, tables), before, files)
        write_whole({folder / name: content for name, content in files.items()})
    except (OSError, ValueError) as error:
        fault = f"The report cannot be written to {visible(str(folder))}: {reason(error)}. Give another folder."
        raise ModelError(fault) from error
    return folder / "report.md"


def _draw(
    tables: Mapping[str, pd.DataFrame], tensors: pd.DataFrame, runs: pd.DataFrame
) -> tuple[Words, dict[str, bytes]]:
    """The charts under the notebook's names, the answer first: `{file: (title, subtitle)}` and `{file: PNG}`."""
    import matplotlib.pyplot as plt

    planned = {file: plot(tables[name]) for name, (file, plot) in OF_TABLES.items() if len(tables.get(name, ()))}
    charts = {
        **{file: ax for file, ax in planned.items() if file == "recommendation.png"},
        "storage-footprint.png": plot_storage(tables["files"]),
        "parameter-count.png": plot_parameters(tensors),
        "components.png": plot_components(tensors),
        **({} if runs.empty else {"speed.png": plot_runs(runs)}),
        **planned,
    }
    pictures = {name: picture(ax) for name, ax in charts.items()}
    for ax in charts.values():
        plt.close(ax.get_figure(root=True))  # a notebook would show it below the cell
    return {name: words_of(ax) for name, ax in charts.items()}, pictures


def _require_own(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """A report is renewed, but nothing else is overwritten: what is there must be as report.json says it was written.

    Or as it will be written, such as a chart that the notebook has just saved. Gives `{file: SHA-256}` of the report
    that is there, none where there is none.
    """
    page = folder / "report.json"
    for path in (page, *(folder / name for name in files)):
        if path.is_symlink():
            raise ModelError(f"{path} is a link; a report never writes through one. Remove it, or give another folder.")
    written = _written(page) if page.exists() else {}
    for name, content in files.items():
        path = folder / name
        if path.exists() and _digest(_bytes(path)) not in (written.get(name), _digest(content)):
            raise _not_own(path)
    return written


def _written(page: Path) -> dict[str, str]:
    """`{file: SHA-256}` as report.json states it, which must itself be as it was written. Raises ModelError."""
    content = _read(page)
    digests = content.pop("sha256", None)
    if not isinstance(digests, dict) or digests.get(page.name) != _digest(_json(content)):
        raise _not_own(page)
    return digests


def _not_own(path: Path) -> ModelError:
    return ModelError(
        f"{path} was not written by a report, or has changed since. Move it away, or give another folder."
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # half a surrogate, from an odd file name, becomes JSON's escape


def _sealed(content: dict[str, Any], before: Mapping[str, str], files: Mapping[str, bytes]) -> bytes:
    """report.json: what was found, and the SHA-256 of each file of this report, of this one without these lines.

    `before` are those of the report that was there: a chart of its own, of a run that is no more told of, stays.
    """
    digests = {
        **before,
        **{name: _digest(file) for name, file in files.items()},
        "report.json": _digest(_json(content)),
    }
    return _json(content | {"sha256": digests})


def _content(model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": dict(model),
        "versions": _versions(),
        "date": date.today().isoformat(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "units": UNITS,
        "tables": {name: _rows(table) for name, table in tables.items()},
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON rows: its index, if that has a name, as a column; null for <NA> and NaN."""
    rows = flat(table).rename(columns=RENAMED).to_json(orient="records", double_precision=15)
    return list(json.loads(rows))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _page(model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], words: Words, points: str) -> str:
    """report.md: what it is of, the verdict and the summary, contents, numbered figures, tables."""
    commits = f"Commit {', '.join(model['commits'])}." if model["commits"] else "Its commit on the Hub is not known."
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    made = f"{platform.system()} {platform.machine()}, {date.today().isoformat()}"
    name = escape(model["name"])
    head = [f"# {name}", f"{made}. {commits} Made with {versions}.", *_verdict(tables), "## Summary", points]
    figures = [_figure(number, name, *one) for number, one in enumerate(words.items(), start=1)]
    headings = {table: table.replace("_", " ").capitalize() for table in tables}
    contents = [f"- [{escape(title)}](#{_anchor(title)})" for title in ("Figures", *headings.values())]
    sections = [_section(headings[table], rows) for table, rows in tables.items()]
    return "\n\n".join([*head, "## Contents", "\n".join(contents), "## Figures", *figures, *sections]) + "\n"


def _verdict(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The best methods, where they were planned; the first figure shows them too."""
    answer = tables.get("recommendation")
    return [] if answer is None or answer.empty else [markdown_table(best_rows(answer))]


def _figure(number: int, model: str, file: str, words: tuple[str, str]) -> str:
    title, subtitle = map(escape, words)
    return f"![{title}. {subtitle}]({file})\n\n**Figure {number}. {title}.** {subtitle}. Model: {model}."


def _anchor(title: str) -> str:
    """As GitHub and most viewers make it of a heading."""
    return title.lower().replace(" ", "-")


def _section(title: str, table: pd.DataFrame) -> str:
    """A heading and a table; a long one is folded."""
    text = markdown_table(table)
    if len(table) > LONG:
        text = f"<details><summary>{len(table):,} rows</summary>\n\n{text}\n\n</details>"
    return f"## {escape(title)}\n\n{text}"


def read_report(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of a report that `write_report` saved, by name: two models or two runs, to be compared.

    What was an index is a column, and `size` is called `size_bytes`. Raises ModelError if there is no report.
    """
    path = in_home(folder) / "report.json"
    tables = _read(path).get("tables")
    try:
        return {name: _table(rows) for name, rows in tables.items()}  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path} does not hold tables. Write it again with `write_report`.") from error


def _table(rows: Any) -> pd.DataFrame:
    """Rows that are objects, as a table; TypeError for anything else."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TypeError("no rows")
    return pd.DataFrame(rows)


def _read(path: Path) -> dict[str, Any]:
    """The content of a report.json. Raises ModelError."""
    try:
        content = json.loads(_bytes(path))
    except FileNotFoundError as error:
        raise ModelError(f"There is no {path}. Write it first with `write_report(model, folder)`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON. Write the report to another folder.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ModelError(f"{path} is not a report in the format {SCHEMA}. Give another folder.")
    return content


def _bytes(path: Path) -> bytes:
    """A file that may be part of a report; what cannot be, a pipe, a device, gigabytes, is refused unread."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{path} is a pipe or a device, not a file of a report. Give another folder.")
        if status.st_size > MAX_BYTES:
            raise ModelError(f"{path} is {format_bytes(status.st_size)}, too large for a report. Give another folder.")
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for its other end
