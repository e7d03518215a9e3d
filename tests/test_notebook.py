"""The notebook: its form, its committed outputs, and a run from top to bottom."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import DEMO, ROOT
from tests.hub_stand_in import HubStandIn

NOTEBOOK = ROOT / "base_model_visualize.ipynb"
CHARTS = [
    "storage-footprint.png", "parameter-count.png", "components.png", "layers.png", "memory.png", "adapters.png",
    "insertion.png", "training.png", "speed.png", "speed-limit.png",
]  # fmt: skip
REPORT = ["report.json", "report.md"]


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    """All text that a reader sees in the outputs, stderr included."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_cells_are_short_and_define_nothing(committed):
    for cell in code_cells(committed):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 5, cell.source
        assert not re.search(r"^\s*(def|class|for|while|%|!)\b", cell.source, re.MULTILINE), cell.source


def test_the_parameters_read_the_environment(committed):
    first = code_cells(committed)[0]
    assert first.metadata.tags == ["parameters"]
    assert re.findall(r'environ\.get\("(\w+)"', first.source) == ["MODEL", "PROMPT", "MAX_NEW_TOKENS", "DOWNLOAD"]
    assert '"meta-llama/Llama-3.2-3B-Instruct"' in first.source
    assert committed.metadata.kernelspec.name == "python3"


def test_the_committed_outputs_are_one_clean_run_on_the_demo_model(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs[0].text == f"This run: {DEMO.name}\n"
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


@pytest.mark.parametrize(("name", "parameters"), [("base_toy", "35,232"), ("demo", "134,515,008")])
def test_a_run_from_top_to_bottom(name, parameters, request, tmp_path, monkeypatch):
    model: Path = request.getfixturevalue(name)
    monkeypatch.setenv("MODEL", str(model))
    monkeypatch.setenv("MAX_NEW_TOKENS", "4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert parameters in printed(notebook)
    assert not [o for cell in code_cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]
    assert sorted(path.name for path in (tmp_path / "runs" / model.name).iterdir()) == sorted(CHARTS + REPORT)


def test_without_a_download_it_runs_on_headers_alone(toy, tmp_path, monkeypatch):
    with HubStandIn(toy) as stand_in:
        settings = {"MODEL": "org/remote-toy", "DOWNLOAD": "no", "PYTHONPATH": str(ROOT), "HF_ENDPOINT": stand_in.url}
        for name, value in (settings | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}).items():
            monkeypatch.setenv(name, value)
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "headers only (no download was wished)" in printed(notebook)
    assert "Skipped: the weights of org/remote-toy are not on this disk" in printed(notebook)
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
