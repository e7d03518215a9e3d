"""The notebook, executed on a model, and the page without code made from it. No shell: a name is only a name."""

import base64
import os
import tempfile
import uuid
from pathlib import Path

from base_model import ModelError, brief
from base_model.hub.locate import CHECKOUT, hub_id_of, is_complete, local_folder
from base_model.show.article import about_run, article, stamp
from base_model.show.drawing import __name__ as DRAWINGS

NOTEBOOK = CHECKOUT / "base_model_visualize.ipynb"
RUNS = Path("runs")


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


def last_run(model: str) -> Path:
    """The executed notebook of a model's last run. Raises ModelError where there is none."""
    folder = local_folder(model)
    at_home = hub_id_of(model) is None or is_complete(folder)
    notebook = RUNS / run_name(folder if at_home else model) / NOTEBOOK.name
    if not notebook.is_file():
        raise ModelError(f"There is no {notebook}. Run the notebook on this model first: make notebook MODEL=...")
    return notebook


def run_notebook(place: Path | str) -> Path:
    """Execute the notebook on a model, save it in runs/<model name>/ with a page without code; returns that folder.

    `place` is what `open_model` gave. Raises ModelError when a cell fails, or the notebook is not there.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    if not NOTEBOOK.is_file():
        raise ModelError(f"{NOTEBOOK.name} is not installed with the package. Run this in a clone of the project.")
    folder = RUNS / run_name(place)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    model = place if isinstance(place, str) else str(_in_full(place))
    # Nobody watches: no progress bars, no time stamps that differ from run to run, streamed text as one output.
    environment = os.environ | {"MODEL": model, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    client = NotebookClient(
        notebook, timeout=None, record_timing=False, coalesce_streams=True, config=Config(KernelManager=_connection()),
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        extra_arguments=[f"--IPKernelApp.extra_extensions={DRAWINGS}"],  # charts carry their SVG along
    )  # fmt: skip
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        words = f"{error.ename}: {brief(Exception(error.evalue))}"
        raise ModelError(f"A cell of the notebook failed, so nothing was saved. {words}") from error
    stamp(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / NOTEBOOK.name)
    write_page(folder / NOTEBOOK.name)
    return folder


def _connection() -> dict[str, str]:
    """How the kernel is reached: by files of its own, since by the network, the default, others could hear it."""
    if os.name == "nt":  # has no such files
        return {}
    return {"transport": "ipc", "ip": str(Path(tempfile.gettempdir(), f"{uuid.uuid4()}-kernel"))}


def write_page(notebook: Path) -> Path:
    """`report.html` beside an executed notebook: text, tables and charts in one file, no code, no network."""
    import nbformat
    from nbconvert import HTMLExporter

    executed = nbformat.read(notebook, as_version=4)
    about = about_run(executed, notebook)
    exporter = HTMLExporter(
        template_name="report_page", extra_template_basedirs=[str(Path(__file__).parent)],
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True,
        filters={"as_base64": _as_base64},
    )  # fmt: skip
    html, _ = exporter.from_notebook_node(article(executed, about["model"]), resources={"about": about})
    page = notebook.with_name("report.html")
    page.write_text(html, encoding="utf-8")
    return page


def _as_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
