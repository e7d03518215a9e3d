"""The executed notebook and its page: names are only names, and a cell that fails is told."""

import os
from pathlib import Path

import nbformat
import pytest

import model_tools as mt
from base_model.show import page
from tests.conftest import ROOT


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A short notebook in place of the project's; runs land in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(*cells):
        path = tmp_path / "base_model_visualize.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
        monkeypatch.setattr(page, "NOTEBOOK", path)

    return write


@pytest.mark.parametrize("name", ["-rf x", "$(touch canary)", "`x`", "[a]*", "Grüße 'und' \"mehr\"", "--execute"])
def test_a_model_may_have_any_name(notebook, tmp_path, name):
    notebook("import os; print(os.environ['MODEL']); print('more')")
    folder = page.run_notebook(tmp_path / name)
    assert folder == Path("runs", name) and not list(tmp_path.rglob("canary"))
    made = [".written.json", "base_model_visualize.ipynb", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == made
    (output,) = nbformat.read(folder / "base_model_visualize.ipynb", as_version=4).cells[0].outputs
    assert output.text == f"{tmp_path / name}\nmore\n"


@pytest.mark.parametrize(("place", "name"), [("org/name", "name"), ("org/name@v1", "name@v1"), (Path("a/.."), "here")])
def test_a_run_is_called_after_its_model(tmp_path, monkeypatch, place, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert page.run_name(place) == name


def test_the_root_of_the_disk_has_no_name():
    with pytest.raises(mt.ModelError, match="no name"):
        page.run_name(Path(os.sep))


def test_a_cell_that_fails_is_one_sentence(notebook, tmp_path):
    notebook("raise ValueError('\\x1b[31mred\\nand more')")
    with pytest.raises(mt.ModelError, match=r"A cell of the notebook failed.*ValueError: .*red and more") as caught:
        page.run_notebook(tmp_path / "model")
    assert "\x1b" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_copy_to_work_in_is_made_anew_until_it_is_changed(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "HERE", tmp_path)
    notebook("# see [terms](docs/glossary.md)")
    copied = page.working_copy()
    assert copied == tmp_path / "runs" / "base_model_visualize.ipynb" and "](../docs/glossary.md)" in copied.read_text()
    notebook("2")
    assert "glossary" not in page.working_copy().read_text() and not capsys.readouterr().out
    copied.write_text("mine")
    notebook("3")
    assert page.working_copy().read_text() == "mine"
    assert f"{copied} is as you left it" in capsys.readouterr().out


def test_it_runs_where_we_are(notebook, tmp_path, monkeypatch):
    """So that its charts lie beside its page, and the data is found."""
    notebook("import os, neighbour; print(os.getcwd())")
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = page.run_notebook(tmp_path / "model").absolute()
    assert folder == tmp_path / "elsewhere" / "runs" / "model"
    assert str(tmp_path / "elsewhere") in (folder / "report.html").read_text().replace("<wbr/>", "")


def test_links_of_an_executed_notebook_lead_to_the_docs(notebook, tmp_path):
    notebook("# see [terms](docs/glossary.md)")
    folder = page.run_notebook(tmp_path / "model")
    assert "](../../docs/glossary.md)" in (folder / "base_model_visualize.ipynb").read_text()


def test_a_notebook_opened_in_runs_saves_where_the_others_do(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.setattr(page, "HERE", tmp_path)
    for here, runs in [(".", Path("runs")), ("runs", tmp_path / "runs"), ("runs/model", tmp_path / "runs")]:
        monkeypatch.chdir(tmp_path / here)
        assert mt.run_folder("org/model") == runs / "model"


def test_the_page_holds_no_code(notebook, tmp_path):
    notebook("secret = 1; print('seen')")
    html = (page.run_notebook(tmp_path / "model") / "report.html").read_text(encoding="utf-8")
    assert "seen" in html and "secret" not in html


def test_a_saved_notebook_does_not_differ_by_the_clock(notebook, tmp_path):
    notebook("1 + 1")
    ran = nbformat.read(page.run_notebook(tmp_path / "model") / "base_model_visualize.ipynb", as_version=4)
    assert "execution" not in ran.cells[0].metadata


def test_what_was_run_is_kept_if_no_page_can_be_made_of_it(notebook, tmp_path, monkeypatch):
    notebook("1 + 1")
    monkeypatch.setattr(page, "_page_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page.run_notebook(tmp_path / "model")
    assert (page.RUNS / "model" / "base_model_visualize.ipynb").is_file()


def test_the_last_run_is_found_by_its_model(notebook, toy, tmp_path):
    with pytest.raises(mt.ModelError, match=r"There is no runs.*toy.*make notebook"):
        page.last_run(str(toy))
    notebook("print(1)")
    folder = page.run_notebook(toy)
    assert page.last_run(str(toy)) == folder / "base_model_visualize.ipynb"


def test_a_run_replaces_what_a_run_wrote(notebook, toy):
    for said in ("once", "twice"):
        notebook(f"print('{said}')")
        folder = page.run_notebook(toy)
        assert said in (folder / "report.html").read_text(encoding="utf-8")
        assert said in (folder / "base_model_visualize.ipynb").read_text(encoding="utf-8")
        page.write_page(folder / "base_model_visualize.ipynb")


@pytest.mark.parametrize("name", ["base_model_visualize.ipynb", "report.html"])
@pytest.mark.parametrize("kind", ["own", "changed", "link", "folder"])
def test_a_run_overwrites_nothing_of_the_user(notebook, toy, tmp_path, name, kind):
    folder, other = Path("runs", toy.name), tmp_path / "other"
    folder.mkdir(parents=True)
    path = folder / name
    other.write_text("mine")
    if kind == "changed":
        page._save(folder, {name: b"a run's"})
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(other)
    else:
        path.write_text("mine")
    notebook("open('ran', 'w')")
    with pytest.raises(mt.ModelError, match=rf"{name} was not written by a run.*Move it away"):
        page.run_notebook(toy)
    assert not (tmp_path / "ran").exists()  # said before an hour of work
    assert kind == "folder" or path.read_text() == "mine" == other.read_text()


def test_cells_break_where_a_reader_would():
    table = '<tr><td>1,200 tokens/s</td><td style="text-align:right">layers.0.self_attn.weight</td><td>a b. c</td></tr>'
    name = '<td style="text-align:right">layers.<wbr>0.<wbr>self_attn.<wbr>weight</td>'
    assert page.set_cells(table) == f'<tr><td class="short">1,200 tokens/s</td>{name}<td class="short">a b. c</td></tr>'
    for whole in ("a sentence of words. Another one", "122 of 122 (100.0%) examples"):
        assert page.set_cells(f"<td>{whole}</td>") == f"<td>{whole}</td>"
    assert page.set_cells("<td>&lt;&lt;&lt;&lt;&lt;&lt;</td>").startswith('<td class="short">')


def test_code_breaks_between_names():
    assert page.set_code("a < torch.cuda.is_supported(x=y) / 1.5 GiB") == (
        "a &lt; torch.<wbr>cuda.<wbr>is_supported(<wbr>x=<wbr>y) / 1.5 GiB"
    )


def test_a_page_of_the_user_stays(notebook, tmp_path):
    notebook("print(1)")  # a notebook in this folder; it need not run
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(mt.ModelError, match=r"report\.html was not written by a run"):
        page.write_page(page.NOTEBOOK)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_full_disk_is_one_sentence(notebook, toy, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    notebook("print(1)")
    monkeypatch.setattr(page, "write_whole", full)
    with pytest.raises(mt.ModelError, match=r"cannot be written to runs.*No space left"):
        page.run_notebook(toy)


def test_without_the_notebook_it_says_where_to_get_it(notebook, toy, monkeypatch, tmp_path):
    monkeypatch.setattr(page, "NOTEBOOK", tmp_path / "absent.ipynb")
    with pytest.raises(mt.ModelError, match="clone"):
        page.run_notebook(toy)
    assert (ROOT / "base_model_visualize.ipynb").is_file()
