"""The notebook: its form, its committed outputs, and a run from top to bottom."""

import json
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import DEMO, ROOT
from tests.hub_stand_in import HubStandIn

NOTEBOOK = ROOT / "base_model_visualize.ipynb"
CHARTS = [
    "recommendation.png", "storage-footprint.png", "parameter-count.png", "components.png", "lengths.png", "memory.png",
    "adapters.png", "training.png", "ladder.png", "gpus.png", "speed-limit.png",
]  # fmt: skip
REPORT = [
    "report.json",
    "report.md",
    "speed.png",
    "train",
]  # with the charts that the page has no room for
PARAMETERS = ["MODEL", "GPU", "DATA", "TOKENS", "BATCH", "PROMPT", "MAX_NEW_TOKENS", "DOWNLOAD"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    """All text that a reader sees in the outputs, stderr included."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs)


QUICK = """import base_model.train.recommend as search

search.METHODS = search.METHODS[3:4]
mt.check_plans = lambda: None"""


def quick():
    """The notebook with one method to try and no published figures, which take minutes and are tested by themselves."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = next(number for number, cell in enumerate(notebook.cells) if "import model_tools" in cell.source)
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(QUICK))
    return notebook


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_cells_are_short_and_define_nothing(committed):
    assert len(committed.cells) <= 60
    for cell in code_cells(committed)[1:]:  # the first is one line per parameter
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 5, cell.source
        assert not re.search(r"^\s*(def|class|for|while|%|!)\b", cell.source, re.MULTILINE), cell.source


def test_the_parameters_read_the_environment(committed):
    first = code_cells(committed)[0]
    assert first.metadata.tags == ["parameters"]
    assert (
        re.findall(r'environ\.get\("(\w+)"', first.source)
        == PARAMETERS
        == [*re.findall(r"^([A-Z_]+) =", first.source, re.MULTILINE)]
    )
    assert '"meta-llama/Llama-3.2-3B-Instruct"' in first.source
    assert committed.metadata.kernelspec.name == "python3"


def test_the_committed_outputs_are_one_clean_run_on_the_demo_model(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs[0].text.startswith(f"This run: {DEMO.name}\n")
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(CHARTS)
    assert "134,515,008" in printed(committed)


def test_the_committed_file_is_portable(committed):
    text = NOTEBOOK.read_text()
    assert len(text) < 2_000_000
    assert "widget" not in text
    assert "widgets" not in committed.metadata
    texts = [
        cell.source + str([output.get("text", "") for output in cell.get("outputs", [])]) for cell in committed.cells
    ]
    assert not re.search(r"(?<![\w.])/(home|root|Users|tmp|work)/|\b[A-Z]:\\\\", json.dumps(texts))


def test_the_answer_comes_first_and_each_section_ends_with_a_sentence(committed):
    headings = [number for number, cell in enumerate(committed.cells) if cell.source.startswith("## ")]
    titles = [committed.cells[number].source.partition("\n")[0] for number in headings]
    assert titles[0] == "## The answer" and len(titles) <= 9
    assert [title[3] for title in titles[1:]] == [str(number) for number in range(1, len(titles))]
    for end in headings[2:]:
        last = committed.cells[end - 1]
        assert last.cell_type == "code" and "in_words" in last.source
        (output,) = last.outputs
        assert output.data["text/markdown"].strip().endswith(".")


def executed(notebook, model, tmp_path, monkeypatch, **settings):
    """The notebook, run from top to bottom on a model; no cell may fail."""
    settings = {"MODEL": str(model), "MAX_NEW_TOKENS": "4", "TOKENS": "64", "PYTHONPATH": str(ROOT)} | settings
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_a_run_from_top_to_bottom(base_toy, tmp_path, monkeypatch):
    notebook = executed(nbformat.read(NOTEBOOK, as_version=4), base_toy, tmp_path, monkeypatch)
    assert "35,232" in printed(notebook) and "MODEL, TOKENS, MAX_NEW_TOKENS" in printed(notebook)
    assert not [o for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]
    assert sorted(path.name for path in (tmp_path / "runs" / base_toy.name).iterdir()) == sorted(CHARTS + REPORT)


def test_a_config_alone_runs_to_the_end(base_toy, tmp_path, monkeypatch):
    folder = tmp_path / "described"
    folder.mkdir()
    (folder / "config.json").write_bytes((base_toy / "config.json").read_bytes())
    notebook = executed(quick(), folder, tmp_path, monkeypatch, GPU="RTX 4090")
    said = printed(notebook)
    assert "has a config.json but no weights" in said and "This model has no tokenizer to read the data" in said
    assert "35,232" in said and "Start with LoRA" in said
    skipped = [str(cell.outputs).count("Skipped: ") for cell in code_cells(notebook)]
    assert sum(skipped) >= 5 and max(skipped) <= 2  # a run on the CPU and one on an accelerator are one cell


def test_without_a_download_it_runs_on_headers_alone(toy, tmp_path, monkeypatch):
    with HubStandIn(toy) as stand_in:
        settings = {"DOWNLOAD": "no", "HF_ENDPOINT": stand_in.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        notebook = executed(quick(), "org/remote-toy", tmp_path, monkeypatch, **settings)
    assert "headers only (DOWNLOAD is no)" in printed(notebook)
    assert "Skipped: the weights of remote-toy are not on this disk" in printed(notebook)
    assert "26,912" in printed(notebook)
    assert not (ROOT / "remote-toy").exists()
    assert sum(stand_in.sent.values()) < sum(path.stat().st_size for path in toy.glob("*.safetensors"))


def test_a_missing_model_stops_the_run_with_the_next_step(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", "no-such-folder")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4), timeout=60, resources={"metadata": {"path": tmp_path}}
    )
    with pytest.raises(Exception, match=r"ModelError.*make demo"):
        client.execute()


def test_the_committed_outputs_name_no_path_of_a_machine():
    text = (ROOT / "base_model_visualize.ipynb").read_text("utf-8")
    assert not re.findall(r"/(?:home|root|Users|tmp|var)/\S*", text)
    assert f"{ROOT}/" not in text
