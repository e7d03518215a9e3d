"""What was found, as files that can be sent and compared: report.json, report.md and the charts."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError
from base_model.show.charts import plot_components, plot_layers, plot_parameters, plot_storage, save_chart
from base_model.show.plan_charts import plot_adapters, plot_memory, plot_training
from base_model.show.run_charts import plot_limits, plot_runs
from base_model.show.words import compare_runs, escape, markdown_table, takeaways

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
    "inference": ("memory.png", plot_memory),
    "adapters": ("adapters.png", plot_adapters),
    "training": ("training.png", plot_training),
    "limits": ("speed-limit.png", plot_limits),
}
LONG = 20  # rows; a longer table is folded in report.md


def save_report(
    folder: Path, model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], tensors: pd.DataFrame
) -> Path:
    """Write report.json, report.md and the charts; gives the path of report.md.

    `model` has its `name` and `commits`; `tables` are written in their order, of which `files`, and `runs` if there are
    any, are drawn too. The same findings give the same bytes: no time of day, no path. Raises ModelError where the
    folder cannot be written, or holds a report.json of something else.
    """
    page, runs = folder / "report.md", tables.get("runs", compare_runs([]))
    plans = {name: tables[name] for name in OF_TABLES if name in tables}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_own(folder / "report.json")
        titles = _draw(folder, tables, tensors, runs)
        text = json.dumps(_content(model, tables), indent=1, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        points = takeaways(tables["files"], tensors, runs, **plans, models=tables.get("model"))
        page.write_text(_page(model, tables, titles, points), encoding="utf-8")
    except OSError as error:
        raise ModelError(f"The report cannot be written to {folder}: {error.strerror}. Give another folder.") from error
    return page


def _draw(
    folder: Path, tables: Mapping[str, pd.DataFrame], tensors: pd.DataFrame, runs: pd.DataFrame
) -> dict[str, str]:
    """Save the charts under the notebook's names; gives `{file: title}`, which is the text for who cannot see them."""
    import matplotlib.pyplot as plt

    charts = {
        "storage-footprint.png": plot_storage(tables["files"]),
        "parameter-count.png": plot_parameters(tensors),
        "components.png": plot_components(tensors),
        "layers.png": plot_layers(tensors),
        **({} if runs.empty else {"speed.png": plot_runs(runs)}),
        **{file: plot(tables[name]) for name, (file, plot) in OF_TABLES.items() if len(tables.get(name, ()))},
    }
    for name, ax in charts.items():
        save_chart(ax, folder / name)
        plt.close(ax.get_figure(root=True))  # a notebook would show it below the cell
    return {name: ax.get_title(loc="left") for name, ax in charts.items()}


def _require_own(path: Path) -> None:
    """A report is renewed, but nothing else is overwritten."""
    if path.exists():
        _read(path)


def _content(model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "model": dict(model),
        "versions": _versions(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "units": UNITS,
        "tables": {name: _rows(table) for name, table in tables.items()},
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as JSON rows: its index, if that has a name, as a column; null for <NA> and NaN."""
    flat = table.reset_index() if table.index.name else table
    rows = flat.rename(columns=RENAMED).to_json(orient="records", double_precision=15)
    return list(json.loads(rows))


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _page(model: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], titles: Mapping[str, str], summary: str) -> str:
    commits = f"Commit {', '.join(model['commits'])}." if model["commits"] else "Its commit on the Hub is not known."
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    pictures = [f"![{escape(title)}]({file})" for file, title in titles.items()]
    sections = [_section(name.replace("_", " ").capitalize(), table) for name, table in tables.items()]
    head = [f"# {escape(model['name'])}", f"{commits} Made with {versions}.", summary]
    return "\n\n".join([*head, *pictures, *sections]) + "\n"


def _section(title: str, table: pd.DataFrame) -> str:
    """A heading and a table; a long one is folded."""
    text = markdown_table(table)
    if len(table) > LONG:
        text = f"<details><summary>{len(table):,} rows</summary>\n\n{text}\n\n</details>"
    return f"## {escape(title)}\n\n{text}"


def read_report(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of a report that `write_report` saved, by name: two models or two runs, to be compared.

    What was an index is a column, and `size` is called `size_bytes`. Raises ModelError where there is no report.
    """
    path = Path(folder).expanduser() / "report.json"
    return {name: pd.DataFrame(rows) for name, rows in _read(path)["tables"].items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"There is no {path}. Let `write_report(model, folder)` write it first.") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON. Write the report to another folder.") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ModelError(f"{path} is no report of the form {SCHEMA}. Give another folder.")
    return content
