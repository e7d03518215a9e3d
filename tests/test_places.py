"""Where people run it and read it: JupyterLab in a browser, papermill, a page alone, a report in a browser."""

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from base_model.show.page import write_page
from tests.conftest import ROOT
from tests.lab import browser_page, jupyter_lab, run_all
from tests.test_notebook import CHARTS, NOTEBOOK, REPORT, code_cells, printed, quick


@pytest.fixture(scope="module")
def papermilled(toy, tmp_path_factory):
    """The notebook after papermill, which runs in the caller's folder, with parameters and no environment."""
    folder = tmp_path_factory.mktemp("caller")
    nbformat.write(quick(), folder / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "in.ipynb", "out.ipynb"]
    command += ["-p", "MODEL", str(toy), "-p", "MAX_NEW_TOKENS", "3", "-p", "PROMPT", "Hi <b>$you$</b>"]
    command += ["-p", "TOKENS", "64", "-p", "DOWNLOAD", "no"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MODEL", "PROMPT", "MPLBACKEND")}
    done = subprocess.run(
        command, cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "out.ipynb"


@pytest.fixture(scope="module")
def report(papermilled):
    """The page that `make report` makes, of that run."""
    return write_page(papermilled)


def test_a_page_that_came_alone_says_the_line_to_run(tmp_path):
    """As on Colab or Kaggle: no module beside it; then the zip, unpacked, is all it needs."""
    archive = ["git", "archive", "--format=zip", f"--output={tmp_path / 'base_model_visualize.zip'}", "HEAD"]
    subprocess.run(archive, cwd=ROOT, check=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = code_cells(notebook)[:2]
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    line = printed(notebook).strip().splitlines()[-1]
    assert line.startswith("!unzip -oq base_model_visualize.zip && pip install")
    shutil.unpack_archive(tmp_path / "base_model_visualize.zip", tmp_path)
    assert (tmp_path / "requirements.txt").is_file()
    done = subprocess.run([sys.executable, "-c", "import model_tools"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_papermill_runs_it_with_parameters(papermilled, toy):
    notebook = nbformat.read(papermilled, as_version=4)
    assert f"This run: {toy.name}\n" in printed(notebook)
    assert "26,912" in printed(notebook)
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sorted(path.name for path in (papermilled.parent / "runs" / toy.name).iterdir()) == sorted(CHARTS + REPORT)


def test_run_all_in_jupyterlab(toy, tmp_path):
    notebook = quick()
    for cell in code_cells(notebook):  # so that what is seen afterwards was made here
        cell.update(outputs=[], execution_count=None)
    nbformat.write(notebook, tmp_path / NOTEBOOK.name)
    with (
        jupyter_lab(tmp_path, {"MODEL": str(toy), "MAX_NEW_TOKENS": "3", "TOKENS": "64"}) as url,
        browser_page(viewport={"width": 1400, "height": 1000}) as page,
    ):
        run_all(page, url.format(NOTEBOOK.name))
        errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr'], [data-mime-type$='jupyter.error']")
        assert errors.all_inner_texts() == []
        pictures = page.locator(".jp-OutputArea-output img")
        assert pictures.count() == len(CHARTS)
        for picture in pictures.all():
            picture.scroll_into_view_if_needed()
            assert picture.is_visible()
            assert picture.evaluate("image => image.complete && image.naturalWidth") > 500
        assert page.locator(".jp-OutputArea-output mjx-container").count() == 0  # no text was taken for TeX
        assert "26,912" in page.locator(".jp-Notebook").inner_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 600)])
def test_the_report_is_one_page_that_needs_no_network(report, scheme, width):
    assert report.stat().st_size < 5_000_000
    requests = []
    with browser_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
        assert "input_area" not in page.content()  # no code cells
        assert page.locator("script").count() == 0
        assert page.locator("img").count() == len(CHARTS)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert all(page.locator("img").evaluate_all("all => all.map(image => image.naturalWidth > 500)"))
        ink, paper = page.evaluate("(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
        assert (_brightness(ink) > _brightness(paper)) == (scheme == "dark")


def _brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
