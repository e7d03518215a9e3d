"""A chart for the report: its words, and two SVG pictures of it, one for a wide page and one for a telephone."""

import io
import re
from typing import Any

from base_model.show.charts import FAINT, GRID, INK, MUTED, NARROW, PAPER, WIDTH, words_of

MIME = "application/vnd.base-model.drawings+json"  # which notebooks carry and no viewer shows
FONT = "system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
BRIGHT = 0.14  # the least luminance of a colour on a dark page
DARK = {INK: "#E6EDF3", "#000000": "#E6EDF3", FAINT: "#9DA7B1", MUTED: "#8C959F", GRID: "#30363D", PAPER: "#0D1117"}
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "base_model",
}  # text as text; the same ids each time


def load_ipython_extension(ipython: Any) -> None:
    """What `page.run_notebook` asks of its kernel: figures that are shown carry their drawings along."""
    formatter = ipython.display_formatter.mimebundle_formatter
    formatter.for_type_by_name("matplotlib.figure", "Figure", lambda figure, **_: {MIME: drawings(figure)})


def drawings(figure: Any) -> dict[str, str]:
    """`title`, `subtitle`, and the SVG texts `wide` and, of a chart of this project, `narrow`. No time, no path.

    The pictures hold no title: the page writes it as their caption, where it can be wrapped and searched.
    """
    heading, below = words_of(figure.axes[0]) if figure.axes else ("", "")
    pictures = {"title": heading, "subtitle": below, "wide": svg(figure)}
    if hasattr(figure, "again"):
        token = WIDTH.set(NARROW)
        try:
            pictures["narrow"] = svg(figure.again().get_figure(root=True))
        finally:
            WIDTH.reset(token)
    return pictures


def svg(figure: Any) -> str:
    """The figure without its title, on no ground, in colours that follow the reader's theme."""
    import matplotlib

    hidden = [text for ax in figure.axes for text in (ax._left_title, *ax.texts) if text.get_gid() == "subtitle"]
    hidden += [ax._left_title for ax in figure.axes]
    content = io.StringIO()
    try:
        for text in hidden:
            text.set_visible(False)
        with matplotlib.rc_context(SETTINGS):
            figure.savefig(content, format="svg", transparent=True)
    finally:
        for text in hidden:
            text.set_visible(True)
    return _themed(_compact(content.getvalue()))


def _compact(text: str) -> str:
    """Without what no page needs: the XML prologue, metadata, comments, ends of lines; any font of the reader's."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"(font: [^\";]*?[\d.]+px) [^\";]*", rf"\1 {FONT}", text)
    return re.sub(r">\s+<", "><", text).strip()


def _themed(text: str) -> str:
    """Each colour as a variable with a value for light and one for dark pages; print is always light."""
    colours = sorted({colour.upper() for colour in re.findall(r"#[0-9a-fA-F]{6}(?=[;\"])", text)} | {INK})
    light = "".join(f"--c{colour[1:]}:{colour};" for colour in colours)
    dark = "".join(f"--c{colour[1:]}:{DARK.get(colour) or _brighter(colour)};" for colour in colours)
    text = re.sub(r"#([0-9a-fA-F]{6})(?=[;\"])", lambda found: f"var(--c{found[1].upper()})", text)
    rules = f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return re.sub(r"(<svg[^>]*>)", rf"\1<style>{rules}text{{fill:var(--c{INK[1:]})}}</style>", text, count=1)


def _brighter(colour: str) -> str:
    """The colour, mixed with as much white as it needs to be seen on a dark page."""
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    while luminance(parts) < BRIGHT:
        parts = [part + max(1, (255 - part) // 12) for part in parts]
    return "#" + "".join(f"{min(part, 255):02X}" for part in parts)


def luminance(parts: list[int]) -> float:
    """The relative luminance of red, green and blue from 0 to 255, as WCAG 2 defines it."""
    linear = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
