"""The executed notebook as an article: which cells, in which order, and the numbers of its figures and tables."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from base_model import format_bytes, visible
from base_model.plan.machine import this_machine
from base_model.show.drawing import MIME

KEY = "base_model_visualize"  # in the notebook's metadata
LEFT_OUT = "notebook-only"  # tag of a cell that tells only how to use the notebook
SUMMARY = "summary"  # tag of the cell whose output moves up, below the answer
FIRST_LINE = "This run: "  # of what `this_run` says
WIDE, WIDER = 3, 8  # columns, with which a table may scroll on a telephone, or on any screen
ONE_PAGE = 30  # rows of a table that is not cut in print


def stamp(notebook: Any) -> None:
    """Note on which machine and day the notebook was executed."""
    machine = this_machine().iloc[-1]
    name = f"{machine['device']}, {visible(str(machine['name']))}, {format_bytes(int(machine['total_bytes']))}"
    notebook.metadata[KEY] = {"machine": name, "date": date.today().isoformat()}


def about_run(notebook: Any, path: Path) -> dict[str, Any]:
    """`model`, `planned` (for what), `machine`, `date`; what an older notebook does not say comes from its file."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = next((text for text in map(_printed, outputs) if text.startswith(FIRST_LINE)), "")
    lines = said.removeprefix(FIRST_LINE).splitlines()
    noted = notebook.metadata.get(KEY, {})
    model = lines[0] if lines else path.absolute().parent.name
    planned = lines[1].removeprefix("Planned for ").partition(". ")[0] if len(lines) > 1 else ""
    date = noted.get("date") or datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
    return {"model": model, "planned": planned, "machine": noted.get("machine", ""), "date": date}


def _printed(output: Any) -> str:
    return str(output.get("text", "")) if output.output_type == "stream" else ""


def article(notebook: Any, model: str) -> Any:
    """The notebook without instructions, the summary below the answer, each section, figure and table numbered."""
    cells = [cell for cell in notebook.cells if LEFT_OUT not in cell.metadata.get("tags", [])]
    cells = [cell for cell in cells if cell.cell_type == "markdown" or cell.get("outputs")]
    notebook.cells = _summary_first(cells)
    notebook.metadata.verdict = _take_verdict(notebook.cells)
    _leave_out_answer(notebook.cells)
    _number_sections(notebook)
    _number_outputs(notebook, model)
    return notebook


def _summary_first(cells: list[Any]) -> list[Any]:
    """The cells with the summary in a section of its own, after the first section."""
    from nbformat.v4 import new_markdown_cell

    summary = [cell for cell in cells if SUMMARY in cell.metadata.get("tags", [])]
    others = [cell for cell in cells if cell not in summary]
    begins = [number for number, cell in enumerate(others) if _heading(cell)]
    place = begins[1] if len(begins) > 1 else len(others)
    heading = [new_markdown_cell("## In short")] if summary else []
    return others[:place] + heading + summary + others[place:]


def _take_verdict(cells: list[Any]) -> str:
    """The first sentence that is an output, which moves to the top of the page: the answer read aloud."""
    begins = [number for number, cell in enumerate(cells) if _heading(cell)]
    first = cells[begins[0] : begins[1]] if len(begins) > 1 else []
    for cell in first:
        for output in cell.get("outputs", []):
            text = str(output.get("data", {}).get("text/markdown", ""))
            if text and not text.startswith("|"):
                cell.outputs.remove(output)
                return text
    return ""


def _leave_out_answer(cells: list[Any]) -> None:
    """The first point of the summary, which the top of the page has said already."""
    for output in (output for cell in cells if SUMMARY in cell.metadata.get("tags", []) for output in cell.outputs):
        text = str(output.get("data", {}).get("text/markdown", ""))
        if text.startswith("- **The answer.**"):
            output.data["text/markdown"] = text.partition("\n")[2]


def _heading(cell: Any) -> str:
    """The words of the section that begins with this cell; none where none does."""
    found = re.match(r"## (.+)", cell.source) if cell.cell_type == "markdown" else None
    return found[1].strip() if found else ""


def _number_sections(notebook: Any) -> None:
    """Anchors, and the table of contents in the notebook's metadata: `anchor`, `words`."""
    contents: list[dict[str, str]] = []
    for cell in notebook.cells:
        if words := _heading(cell):
            cell.metadata.anchor = f"section-{len(contents) + 1}"
            contents.append({"anchor": cell.metadata.anchor, "words": words})
    notebook.metadata.contents = contents


def _number_outputs(notebook: Any, model: str) -> None:
    """Each figure and table gets its number and the model that it is of: the run's, or the cell's own, `of`."""
    figures = tables = 0
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if not _printed(output).startswith(FIRST_LINE)]
        if cell.cell_type == "code":
            cell.outputs = outputs
        for output in outputs:
            output.setdefault("metadata", type(notebook.metadata)())
            data, of = output.get("data", {}), cell.metadata.get("of", model)
            output.metadata.of = of
            if "image/png" in data:
                figures += 1
                output.metadata.update(_figure(data, cell, figures))
            elif columns := _columns(data):
                tables += 1
                scrolls = "always" if columns > WIDER else "narrow" if columns > WIDE else ""
                short = data["text/markdown"].count("\n") <= ONE_PAGE
                about = {"table": tables, "caption": cell.metadata.get("caption", "")}
                output.metadata.update({**about, "scrolls": scrolls, "short": short})


def _figure(data: Any, cell: Any, number: int) -> dict[str, Any]:
    """The number of a figure, its drawings if it carries any, and its words: of the chart, else of the cell."""
    drawn = data.pop(MIME, {})
    title = drawn.get("title") or cell.metadata.get("alt", "A chart")
    return {"figure": number, "drawn": drawn, "title": title, "subtitle": drawn.get("subtitle", "")}


def _columns(data: Any) -> int:
    """How many columns the table in Markdown has; 0 where there is none."""
    text = str(data.get("text/markdown", ""))
    return text.partition("\n")[0].count(" | ") + 1 if text.startswith("| ") else 0
