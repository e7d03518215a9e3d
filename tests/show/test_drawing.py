"""The SVG pictures of a chart: no title, two widths, two themes, and the same bytes each time."""

import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

import model_tools as mt
from base_model.show import charts, drawing, plan_charts
from base_model.show.drawing import drawings, luminance

PALETTES = [
    charts.COLOURS,
    charts.METHOD_COLOURS,
    plan_charts.PARTS,
    {"neutral": charts.NEUTRAL, "muted": charts.MUTED},
]
SAME = {"embedding": "embedding", "other weights": "other", "logits": "head"}  # parts of memory, and what they are of
PAGES = {"light": "#FFFFFF", "dark": "#0D1117"}


@pytest.fixture
def files(toy):
    return mt.list_files(toy)


def contrast(one, other):
    light = sorted(luminance([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) + 0.05 for colour in (one, other))
    return light[1] / light[0]


def test_a_chart_has_two_pictures_without_its_title_and_its_words(files):
    ax = mt.plot_storage(files)
    drawn = drawings(ax.figure)
    assert drawn["title"].startswith("Weights take ") and drawn["subtitle"].startswith("The size of every file")
    widths = {}
    for name in ("wide", "narrow"):
        root = ET.fromstring(drawn[name])
        widths[name] = float(root.get("viewBox").split()[2])
        words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert set(files["file"]) <= set(words)
        assert drawn["title"] not in words and drawn["subtitle"] not in words
    assert widths["wide"] > 600 and widths["narrow"] < 340  # of the points, about one is a pixel at 390
    assert ax._left_title.get_visible()


def test_the_same_chart_gives_the_same_pictures_and_opens_no_figure(files):
    first = drawings(mt.plot_storage(files).figure)
    again = drawings(mt.plot_storage(files).figure)
    assert first == again and len(plt.get_fignums()) == 2  # the two wide ones
    assert not re.search(r"<metadata|\d{4}-\d\d-\d\d|<!--", first["wide"])


def test_colours_follow_the_theme(files):
    text = drawings(mt.plot_storage(files).figure)["wide"]
    style = re.search(r"<style>(.*?)</style>", text)[1]
    assert "@media screen and (prefers-color-scheme:dark)" in style
    assert not re.search(r"#[0-9a-fA-F]{6}", text.replace(style, ""))
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", style))


@pytest.mark.parametrize("page", PAGES)
def test_every_colour_can_be_seen(page):
    for palette in PALETTES:
        for name, colour in palette.items():
            shown = drawing._brighter(colour) if page == "dark" else colour
            assert contrast(shown, PAGES[page]) >= 3, (name, shown)
    for ink in (charts.INK, charts.FAINT):
        assert contrast(drawing.DARK[ink] if page == "dark" else ink, PAGES[page]) >= 4.5


def test_a_colour_has_one_meaning():
    parts = {name: colour for name, colour in plan_charts.PARTS.items() if name not in SAME}
    for name, component in SAME.items():
        assert plan_charts.PARTS[name] == charts.COLOURS[component]
    colours = [*charts.COLOURS.values(), *charts.METHOD_COLOURS.values(), *parts.values(), charts.NEUTRAL]
    assert len(colours) == len(set(colours))


def test_a_figure_of_someone_elses_has_one_picture():
    figure, ax = plt.subplots()
    ax.set_title("$x$")
    assert set(drawings(figure)) == {"title", "subtitle", "wide"}


def test_labels_of_fourteen_methods_do_not_meet():
    methods = ["full", "full, 8-bit Adam", "LoRA r16, attention", "LoRA r16, all linear", "DoRA", "QLoRA", "IA-3"]
    rows = [(method, twice, number) for number, method in enumerate(methods) for twice in (True, False)]
    table = pd.DataFrame(rows, columns=["method", "checkpointing", "number"])
    table = table.assign(
        verdict="fits", least_bytes=(1 + table["number"] % 2 * 9) * 2**30, tokens_per_s=5e3, accuracy=0.4
    )
    for width in (charts.WIDE, charts.NARROW):
        token = charts.WIDTH.set(width)
        figure = mt.plot_recommendation(table).figure
        charts.WIDTH.reset(token)
        figure.draw_without_rendering()
        words = [text for text in figure.axes[0].texts if text.get_gid() in (None, "name")]
        places = [Text.get_window_extent(text) for text in words]  # without the threads to their points
        assert len(places) >= 7
        assert not any(a.overlaps(b) for n, a in enumerate(places) for b in places[n + 1 :])
