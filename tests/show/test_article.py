"""The report page: what it holds, in which order, and how it looks to a browser and to axe-core."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import model_tools as mt
from base_model.show import article, drawing, page
from tests.lab import browser_page

NAME = "toy <model>"
GPUS = "| gpu |" + " a |" * 11 + "\n| :--- |" + " ---: |" * 11 + "\n| T4 |" + " 123.45 GiB |" * 11


def shown(text, **metadata):
    return new_code_cell("x", metadata=metadata, outputs=[new_output("execute_result", {"text/markdown": text})])


def printed(text, **metadata):
    return new_code_cell("x", metadata=metadata, outputs=[new_output("stream", name="stdout", text=text)])


def chart(figure):
    data = {"image/png": "iVBORw0KGgo=", drawing.MIME: drawing.drawings(figure)}
    return new_code_cell("x", outputs=[new_output("display_data", data)])


@pytest.fixture
def notebook(toy):
    """The shape of the project's: an intro, the answer, sections, the summary at the end."""
    files = mt.list_files(toy)
    return new_notebook(cells=[
        new_markdown_cell("# How to use this notebook", metadata={"tags": ["notebook-only"]}),
        printed(f"This run: {NAME}\nPlanned for an RTX 4090. From the environment: MODEL; the rest are defaults.\n"),
        new_markdown_cell("## The answer"),
        shown("| method | peak |\n| :--- | ---: |\n| LoRA | 5 GiB |", caption="What <fits>"),
        chart(mt.plot_storage(files).figure),
        shown("Start with LoRA."),
        new_markdown_cell("## 1. Its parameters\n\nWhere?"),
        chart(mt.plot_components(mt.read_tensors(toy)).figure),
        shown(GPUS, of="Llama-3.2-3B"),
        printed("Skipped: no accelerator.\n"),
        new_markdown_cell("## 2. Takeaways"),
        shown("- **Storage.** All of it.", tags=["summary"]),
        printed("Saved.", tags=["notebook-only"]),
    ])  # fmt: skip


@pytest.fixture
def report(notebook, tmp_path):
    article.stamp(notebook)
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    return page.write_page(tmp_path / "executed.ipynb")


def test_the_head_says_what_it_is_of(report):
    html = report.read_text(encoding="utf-8")
    assert "<title>toy &lt;model&gt;: before fine-tuning</title>" in html and html.count("<h1>") == 1
    assert "<dt>Planned for</dt><dd>an RTX 4090</dd>" in html and "<dt>Run on</dt>" in html and "<dt>Date</dt>" in html
    assert "This run:" not in html and "From the environment" not in html


def test_the_verdict_the_answer_and_the_summary_come_first(report):
    html = report.read_text(encoding="utf-8")
    order = [
        "Start with LoRA.",
        "Contents",
        'id="section-1"',
        "Table 1.",
        'id="figure-1"',
        "All of it.",
        'id="section-3"',
    ]
    places = [html.index(words) for words in order]
    assert places == sorted(places) and html.count("All of it.") == html.count("Start with LoRA.") == 1


def test_instructions_are_left_out_and_the_contents_link_every_section(report):
    html = report.read_text(encoding="utf-8")
    assert "How to use" not in html and "Saved." not in html and "Skipped: no accelerator." in html
    for number, words in enumerate(["The answer", "In short", "1. Its parameters", "2. Takeaways"], start=1):
        assert f'<a href="#section-{number}">{words}</a>' in html and f'id="section-{number}"' in html


def test_figures_and_tables_are_numbered_and_labelled_with_their_model(report):
    html = report.read_text(encoding="utf-8")
    assert html.count("<figcaption>") == html.count("<picture>") == 2
    assert "Figure 2. <strong>The " in html and html.count("Model: toy &lt;model&gt;") == 4
    assert "<strong>Table 1.</strong> What &lt;fits&gt;. Model: toy" in html
    assert '<strong>Table 2.</strong> Model: Llama-3.2-3B <span class="hint always">' in html
    assert 'alt="Weights take ' in html and "image/png" not in html


def test_a_picture_without_drawings_keeps_its_png_and_the_cells_words(notebook, tmp_path):
    cell = new_code_cell(
        "x", metadata={"alt": "Bars: <a>"}, outputs=[new_output("display_data", {"image/png": "AAAA"})]
    )
    notebook.cells.append(cell)
    nbformat.write(notebook, tmp_path / "old.ipynb")
    html = page.write_page(tmp_path / "old.ipynb").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,AAAA"' in html and 'alt="Bars: &lt;a&gt;"' in html
    assert "Run on" not in html and "<dt>Date</dt>" in html


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_fault_and_only_tables_scroll_sideways(report, width, theme):
    from axe_playwright_python.sync_playwright import Axe

    with browser_page(viewport={"width": width, "height": 844}, color_scheme=theme, offline=True) as tab:
        tab.goto(report.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        narrow = tab.evaluate("document.images[0].naturalWidth") < 500
        assert narrow == (width == 390)
        found = Axe().run(tab).response["violations"]
    assert not [(fault["id"], fault["nodes"][0]["html"]) for fault in found]


def test_in_print_nothing_is_cut(report):
    """A4 has a text of 180 mm; every table and picture must fit it."""
    with browser_page(viewport={"width": 680, "height": 1000}, color_scheme="dark") as tab:
        tab.goto(report.as_uri())
        tab.emulate_media(media="print")
        wide = (
            "[...document.querySelectorAll('table, img, pre')].filter(one => one.getBoundingClientRect().right > 680)"
        )
        assert tab.evaluate(f"{wide}.length") == 0
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_model_error_in_a_kernel_is_one_sentence_even_with_a_cause(tmp_path):
    from nbclient import NotebookClient

    cell = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\nimport model_tools as mt\nmt.{}"
    calls = ["list_files('no-such-folder')", "fetch_model('org/name')", "open_model('org/name')"]
    notebook = new_notebook(cells=[new_code_cell(cell.format(call)) for call in calls])
    NotebookClient(
        notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(page.CHECKOUT)}}
    ).execute()
    for one in notebook.cells:
        (fault,) = one.outputs
        assert fault.output_type == "error" and len(fault.traceback) == 1
        assert "Error: " in fault.traceback[0] and "Traceback" not in fault.traceback[0]
        assert len(fault.traceback[0].splitlines()) == 1


def test_run_notebook_gives_the_charts_their_drawings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setenv("PYTHONPATH", str(page.CHECKOUT))
    cell = "import pandas as pd, model_tools as mt\nfiles = pd.DataFrame({'file': ['a'], 'size': [9], 'parameters': [1]})\n"
    path = tmp_path / "base_model_visualize.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell + "mt.plot_storage(files);")]), path)
    monkeypatch.setattr(page, "NOTEBOOK", path)
    folder = page.run_notebook(tmp_path / "model")
    executed = nbformat.read(folder / path.name, as_version=4)
    (output,) = executed.cells[0].outputs
    assert set(output.data) >= {"image/png", drawing.MIME} and output.data[drawing.MIME]["narrow"].startswith("<svg")
    assert set(executed.metadata["base_model_visualize"]) == {"machine", "date"}
    assert "<picture>" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("text", "columns"), [("| a | b |\n| --- | --- |", 2), ("| a |", 1), ("a | b", 0), ("", 0)])
def test_the_columns_of_a_table_are_counted(text, columns):
    assert article._columns({"text/markdown": text}) == columns
