"""The notebook, executed on a model, and the page without code made from it. No shell: a name is only a name."""

import base64
import copy
import hashlib
import html
import json
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base_model import ModelError, brief
from base_model.hub.locate import CHECKOUT, HERE, hub_id_of, is_complete, local_folder
from base_model.read.folder import is_file, read_json
from base_model.show.article import about_run, article, stamp
from base_model.show.drawing import __name__ as DRAWINGS
from base_model.show.saving import reason, write_whole

NOTEBOOK = CHECKOUT / "base_model_visualize.ipynb"
RUNS = Path("runs")
PAGE = "report.html"
DOT = re.compile(r"(?<=[^\W\d])\.(?=\w)|(?<=\w)\.(?=[^\W\d])")  # of a name, not of a number
JOINT = re.compile(r"((?<=[A-Za-z_)])\.|[(=/])(?=[A-Za-z_'])")  # of a name or a call
SHORT = 16  # letters of a cell: "1,200 tokens/s", "(128256, 3072)"
WRITTEN = ".written.json"  # in the folder of a run: {file: SHA-256} of what this module wrote there


def run_name(place: Path | str) -> str:
    """What a run on `place` is called, a folder or a Hub id: the name in which the notebook saves its charts."""
    name = Path(place).name if isinstance(place, str) else _in_full(place).name
    if not name:
        raise ModelError(f"{place} is not a model folder: it has no name. Give the model's own folder, or a Hub id.")
    return name


def _in_full(place: Path) -> Path:
    """From the root, so that it has a name; a link keeps its own."""
    path = Path.cwd() / place
    return path.resolve() if ".." in path.parts else path


def runs_folder() -> Path:
    """`runs` in the current folder, or the project's own where we are inside it, as a notebook opened from there is."""
    return next((path for path in (Path.cwd(), *Path.cwd().parents) if path == HERE / RUNS), RUNS)


def working_copy() -> Path:
    """A copy of the notebook to work in, runs/base_model_visualize.ipynb; refreshed each time until you change it.

    Raises ModelError if there is no notebook, or no room.
    """
    copied, source = HERE / RUNS / NOTEBOOK.name, _source()
    if os.path.lexists(copied) and _digest(copied) != _written(copied.parent).get(copied.name):
        print(f"{copied} is as you left it. Move it away to start from the project's own again.")
        return copied
    copied.parent.mkdir(exist_ok=True)
    _save(copied.parent, {copied.name: _linked(source.read_text("utf-8"), "../")})
    return copied


def _source() -> Path:
    if not NOTEBOOK.is_file():
        raise ModelError(f"{NOTEBOOK.name} is not installed with the package. Run this in a clone of the project.")
    return NOTEBOOK


def _linked(notebook: str, up: str) -> bytes:
    """The text of a notebook that lies deeper than the project's own, with links that still lead to docs/."""
    return notebook.replace("](docs/", f"]({up}docs/").encode()


def last_run(model: str) -> Path:
    """The executed notebook of a model's last run. Raises ModelError if there is none."""
    folder = local_folder(model)
    at_home = hub_id_of(model) is None or is_complete(folder)
    notebook = RUNS / run_name(folder if at_home else model) / NOTEBOOK.name
    if not notebook.is_file():
        raise ModelError(f"There is no {notebook}. Run the notebook on this model first: make notebook MODEL=...")
    return notebook


def run_notebook(place: Path | str) -> Path:
    """Execute the notebook on a model, save it in runs/<model name>/ with a page without code; returns that folder.

    `place` is what `open_model` gave. Raises ModelError when a cell fails, the notebook is not there, or the folder
    holds a notebook or a page that no run has written, or that was changed since.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    folder = RUNS / run_name(place)
    _require_own(folder, [NOTEBOOK.name, PAGE])
    notebook = nbformat.read(_source(), as_version=4)
    model = place if isinstance(place, str) else str(_in_full(place))
    # Nobody watches: no progress bars, no time stamps that differ from run to run, streamed text as one output.
    # It runs here, where its data may be and its charts belong, and finds the code beside the notebook.
    code = os.pathsep.join(filter(None, [str(NOTEBOOK.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"MODEL": model, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": code}
    client = NotebookClient(
        notebook, timeout=None, record_timing=False, coalesce_streams=True, config=Config(KernelManager=_connection()),
        resources={"metadata": {"path": str(Path.cwd())}},
        extra_arguments=[f"--IPKernelApp.extra_extensions={DRAWINGS}"],  # charts carry their SVG along
    )  # fmt: skip
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        words = f"{error.ename}: {brief(Exception(error.evalue))}"
        raise ModelError(f"A cell of the notebook failed, so nothing was saved. {words}") from error
    stamp(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    # First what took the time: it is kept even if no page can be made of it.
    _save(folder, {NOTEBOOK.name: _linked(f"{nbformat.writes(notebook)}\n", "../../")})
    _save(folder, {PAGE: _page_of(notebook, folder / NOTEBOOK.name)})
    return folder


def _connection() -> dict[str, str]:
    """How the kernel is reached: by files of its own, since by the network, the default, others could hear it."""
    if os.name == "nt":  # has no such files
        return {}
    return {"transport": "ipc", "ip": str(Path(tempfile.gettempdir(), f"{uuid.uuid4()}-kernel"))}


def write_page(notebook: Path) -> Path:
    """`report.html` beside an executed notebook: text, tables and charts in one file, no code, no network.

    Raises ModelError if a file of that name is there that this has not written.
    """
    import nbformat

    page = _page_of(nbformat.read(notebook, as_version=4), notebook)
    _save(notebook.parent, {PAGE: page})
    return notebook.with_name(PAGE)


def _page_of(executed: Any, path: Path) -> bytes:
    from nbconvert import HTMLExporter

    about = about_run(executed, path)
    exporter = HTMLExporter(
        template_name="report_page", extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True,
        filters={"as_base64": _as_base64, "set_cells": set_cells, "set_code": set_code},
    )  # fmt: skip
    page, _ = exporter.from_notebook_node(article(copy.deepcopy(executed), about["model"]), resources={"about": about})
    return page.encode("utf-8", "backslashreplace")


def set_cells(table: str) -> str:
    """The cells of an HTML table: short ones stay on one line, long names break after a dot."""
    return re.sub(r"<td([^>]*)>([^<]*)</td>", _cell, table)


def _cell(found: re.Match[str]) -> str:
    """One cell, from its attributes and its text."""
    style, text = found.groups()
    if len(html.unescape(text)) <= SHORT:
        return f'<td class="short"{style}>{text}</td>'
    return f"<td{style}>{re.sub(DOT, '.<wbr>', text)}</td>"


def set_code(text: str) -> str:
    """Printed text as HTML, in which a line that is too long for a telephone breaks where a reader would."""
    return re.sub(JOINT, r"\1<wbr>", html.escape(text, quote=False))


def _as_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _require_own(folder: Path, names: list[str]) -> dict[str, str]:
    """Only what a run wrote is replaced. Gives `{file: SHA-256}` of what was written. Raises ModelError."""
    written = _written(folder)
    for path in (folder / name for name in names):
        if os.path.lexists(path) and _digest(path) != written.get(path.name, ""):
            raise ModelError(
                f"{path} was not written by a run, or has changed since. Move it away, then run this again."
            )
    return written


def _written(folder: Path) -> dict[str, str]:
    return read_json(folder / WRITTEN) if os.path.lexists(folder / WRITTEN) else {}


def _save(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files whole, and note that they are a run's own."""
    written = _require_own(folder, list(files))
    written |= {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    note = {WRITTEN: f"{json.dumps(written, indent=1)}\n".encode()}
    try:
        write_whole({folder / name: content for name, content in {**files, **note}.items()})
    except OSError as error:
        raise ModelError(f"The run cannot be written to {folder}: {reason(error)}. Free some space.") from error


def _digest(path: Path) -> str | None:
    """A file's SHA-256; None for a link, through which nothing is written, and for what is no file."""
    if path.is_symlink() or not is_file(path):
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
