"""Charts, by their artists: what is drawn, labelled and saved."""

import errno
import os
import time
from contextvars import ContextVar
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import model_tools as mt
from base_model.show import charts
from base_model.show.charts import COLOURS


def texts(ax):
    """What is written in the chart, but for the subtitle and the names of the cards' lines."""
    return [text.get_text() for text in ax.texts if text.get_gid() is None]


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


@pytest.fixture(scope="module")
def files(llama_3b):
    return mt.list_files(llama_3b)


@pytest.fixture(scope="module")
def tensors(llama_3b):
    return mt.read_tensors(llama_3b)


def test_storage_shows_every_file_largest_first_with_its_size(files):
    ax = mt.plot_storage(files)
    assert rows(ax)[:2] == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"]
    assert texts(ax) == [mt.format_bytes(size) for size in sorted(files["size"], reverse=True)]
    assert ax.get_xlabel() == "size (GiB)"
    assert ax.patches[0].get_width() == pytest.approx(files["size"].max() / 2**30)


def test_parameters_are_stacked_by_component_and_labelled_in_both_forms(tensors):
    ax = mt.plot_parameters(tensors)
    assert texts(ax) == ["1,249,689,600 (~1.250 B)", "1,233,199,104 (~1.233 B)", "729,861,120 (~0.730 B)"]
    drawn = sum(bar.get_width() for bar in ax.patches) * 1e9
    assert drawn == pytest.approx(3_212_749_824)
    assert ax.get_xlabel() == "parameters (billions)"


def test_components_have_their_own_colours_and_shares(tensors):
    ax = mt.plot_components(tensors)
    assert rows(ax) == ["mlp", "attention", "embedding", "norm"]
    assert texts(ax)[0] == "2,113,929,216 (~2.114 B), 65.8%"
    assert texts(ax)[-1].endswith("<0.1%")
    assert [plt.matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [
        COLOURS[name] for name in rows(ax)
    ]


def test_layers_has_a_column_per_layer_and_one_for_the_rest(tensors):
    ax = mt.plot_layers(tensors)
    assert len({bar.get_x() for bar in ax.patches}) == 29
    assert ax.get_xticklabels()[0].get_text() == "outside"
    assert sum(bar.get_height() for bar in ax.patches) * 1e6 == pytest.approx(3_212_749_824)


def test_runs_without_a_speed_are_labelled_na():
    table = pd.DataFrame(
        {"method": ["pipeline", "manual"], "device": "cpu", "dtype": "float32"}
        | {"first_token_s": [0.25, float("nan")], "tokens_per_s": [20.0, float("nan")]}
    )
    assert texts(mt.plot_runs(table)) == ["20 tokens/s, first token 0.25 s", "n/a, first token n/a"]


def test_bars_have_the_room_that_short_names_leave(tensors):
    ax = mt.plot_components(tensors)
    assert ax.patches[0].get_width() > 0.6 * ax.get_xlim()[1]


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
@pytest.mark.parametrize("count", [1, 3, 30, 200, 201])
def test_few_rows_are_low_and_many_have_room_for_their_names(count, width, monkeypatch):
    monkeypatch.setattr(charts, "WIDTH", ContextVar("WIDTH", default=width))
    files = long_tables(count)[mt.plot_storage][0]
    ax = mt.plot_storage(files)
    if count <= 3:
        assert charts.rows_height(count, 0.34) == pytest.approx(count * (0.34 if width == charts.WIDE else 0.49))
    ax.figure.draw_without_rendering()
    names = [text.get_window_extent() for text in ax.texts if text.get_gid() == "name"]
    ends = sorted((box.y0, box.y1) for box in names or (one.get_window_extent() for one in ax.get_yticklabels()))
    assert len(ends) == min(count, 200)
    assert any(text.startswith("the first") for text in texts(ax)) == (count == 201)
    assert all(one[1] <= other[0] for one, other in pairwise(ends))


@pytest.mark.parametrize(("width", "most"), [(charts.WIDE, 5), (charts.NARROW, 3)])
def test_a_legend_is_clear_of_the_axis_and_fits_its_width(tensors, width, most, monkeypatch):
    monkeypatch.setattr(charts, "WIDTH", ContextVar("WIDTH", default=width))
    for ax in (mt.plot_layers(tensors), mt.plot_training(all_parts())):
        ax.figure.draw_without_rendering()
        legend = ax.get_legend()
        box = legend.get_window_extent()
        assert legend._ncols == min(most, len(legend.get_texts())) and not legend.get_frame_on()
        assert box.y1 < ax.xaxis.label.get_window_extent().y0
        assert ax.figure.bbox.x0 <= box.x0 and box.x1 <= ax.figure.bbox.x1


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_names_of_cards_do_not_meet(width, monkeypatch):
    monkeypatch.setattr(charts, "WIDTH", ContextVar("WIDTH", default=width))
    ax = mt.plot_training(all_parts().assign(weights_bytes=80 * G))
    ax.figure.draw_without_rendering()
    assert [line.get_xdata()[0] for line in ax.lines] == [card for card in charts.CARDS if card <= ax.get_xlim()[1]]
    names = [text for text in ax.texts if text.get_gid() == "card"]
    assert [name.get_text() for name in names[:3]] == (
        ["8 GiB", "16 GiB", "24 GiB"] if width == charts.WIDE else ["8", "16", "24"]
    )
    boxes = sorted((box.x0, box.x1) for box in (name.get_window_extent() for name in names))
    assert all(one[1] < other[0] for one, other in pairwise(boxes))


def all_parts():
    names = ("weights", "embedding", "adapter", "gradients", "optimizer", "activations", "logits", "temporary", "peak")
    return pd.DataFrame({f"{name}_bytes": [G * (1 + (name == "weights"))] for name in names}).assign(method="full")


def test_labels_stay_inside_the_chart(files, tensors, llama_3b):
    runs = pd.DataFrame(
        {"method": ["pipeline"], "device": "cuda", "dtype": "bfloat16"}
        | {"first_token_s": 10.25, "tokens_per_s": 1200.0}
    )
    charts = [mt.plot_storage(files), mt.plot_parameters(tensors), mt.plot_components(tensors), mt.plot_layers(tensors)]
    for ax in (*charts, mt.plot_models(mt.compare_models([llama_3b])), mt.plot_runs(runs)):
        ax.figure.canvas.draw()
        frame = ax.figure.bbox
        for text in [*ax.texts, *ax.get_yticklabels(), ax._left_title]:
            extent = text.get_window_extent()
            assert frame.x0 <= extent.x0, text
            assert extent.x1 <= frame.x1, text


def test_a_given_axes_is_used(files):
    _, ax = plt.subplots()
    assert mt.plot_storage(files, ax=ax) is ax


def test_a_files_name_is_never_tex(files):
    odd = files.assign(file=[f"${number}^$\n.json" for number in range(len(files))])
    ax = mt.plot_storage(odd)
    ax.figure.canvas.draw()
    assert all(not label.get_parse_math() and "\n" not in label.get_text() for label in ax.get_yticklabels())


def test_the_same_table_gives_the_same_bytes(tensors, tmp_path):
    first = mt.save_chart(mt.plot_parameters(tensors), tmp_path / "new" / "a.png")
    second = mt.save_chart(mt.plot_parameters(tensors), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.stat().st_size > 10_000


def test_drawing_leaves_the_users_settings_alone(files):
    before = dict(plt.rcParams)
    mt.plot_storage(files)
    assert dict(plt.rcParams) == before


# --- Tables of another kind, and very long ones

G = 2**30
SHARES = {f"{name}_share": 1 / len(COLOURS) for name in COLOURS}
MANY = 10_000


def long_tables(n):
    """Every chart, with tables of `n` rows."""
    index, names, layers = range(n), [f"name-{number}" for number in range(n)], pd.array(range(n), dtype="Int64")
    files = pd.DataFrame({"file": names, "size": index, "parameters": pd.array([pd.NA] * n, dtype="Int64")})
    tensors = pd.DataFrame({"file": names, "layer": layers, "component": "mlp", "parameters": index})
    models = pd.DataFrame({"parameters": index, "bytes": index} | SHARES, index=names)
    runs = pd.DataFrame(
        {"method": names, "device": "cpu", "dtype": "float32", "first_token_s": 0.1, "tokens_per_s": 5.0}
    )
    limits = runs.assign(limit_tokens_per_s=9.0, share=0.5)
    adapters = pd.DataFrame({"adapter": names, "trainable": index, "share": 0.1, "file_bytes": 9})
    training = pd.DataFrame({"method": names, "weights_bytes": index, "embedding_bytes": 0, "peak_bytes": index})
    plan = {"precision": names, "context": range(1, n + 1), "weights_bytes": G, "total_bytes": G, "usable_bytes": G}
    cards = pd.DataFrame({"gpu": names, "verdict": "fits", "step_s": 1.0, "low_s": 0.75, "high_s": 1.25})
    cards["hours_per_million"] = 1.0
    return {
        mt.plot_storage: [files],
        mt.plot_parameters: [tensors],
        mt.plot_components: [tensors],
        mt.plot_layers: [tensors],
        mt.plot_models: [models],
        mt.plot_runs: [runs],
        mt.plot_limits: [limits],
        mt.plot_adapters: [adapters],
        mt.plot_training: [training],
        mt.plot_memory: [pd.DataFrame(plan | {"device": "cpu"})],
        mt.plot_insertion: [tensors, tensors.assign(trainable=1)],
        mt.plot_gpus: [cards],
    }


@pytest.mark.parametrize("plot", long_tables(1))
def test_ten_thousand_rows_are_drawn_in_seconds(plot, tmp_path):
    start = time.monotonic()
    ax = plot(*long_tables(MANY)[plot])
    assert len(ax.patches) + len(ax.lines) <= 6 * (charts.MOST_ROWS + 1)
    assert max(ax.figure.get_size_inches()) < 60
    said = " ".join([*texts(ax), ax.get_xlabel(), ax.get_title(loc="left")])
    if plot not in (mt.plot_components, mt.plot_memory):
        assert f"of {MANY:,}" in said or f"of {MANY - 1:,}" in said
    ax.figure.canvas.draw()
    assert time.monotonic() - start < 30


def test_a_title_tells_of_all_rows_and_not_only_of_those_drawn():
    tables = long_tables(MANY)
    whole = sum(range(MANY))
    storage = mt.plot_storage(*tables[mt.plot_storage])
    assert storage.get_title(loc="left").endswith("of 47.68 MiB")
    assert "10,000 in all" in " ".join(text.get_text() for text in storage.texts)
    assert mt.format_count(whole) in mt.plot_parameters(*tables[mt.plot_parameters]).get_title(loc="left")
    assert "10000 layers of 0 to 9,999 each" in mt.plot_layers(*tables[mt.plot_layers]).get_title(loc="left")
    grown = tables[mt.plot_adapters][0].assign(
        trainable=range(1, MANY + 1), share=[n / 1e5 for n in range(1, MANY + 1)]
    )
    assert "the largest adapter trains 10.00%" in mt.plot_adapters(grown).get_title(loc="left").lower()


def test_a_layer_that_claims_to_be_the_billionth_takes_no_memory():
    tensors = long_tables(3)[mt.plot_layers][0].assign(layer=pd.array([0, 1, 10**9], dtype="Int64"))
    ax = mt.plot_insertion(tensors, tensors.assign(trainable=1))
    assert ax.images[0].get_array().shape == (1, charts.MOST_ROWS + 4)
    assert "1,000,000,000" in ax.get_xlabel()


@pytest.mark.parametrize("plot", long_tables(1))
def test_a_table_without_its_columns_is_told(plot):
    tables = long_tables(3)[plot]
    for column in tables[0]:
        without = tables[0].drop(columns=column)
        try:
            plot(without, *tables[1:])
        except mt.ModelError as error:
            assert f"no column {column}. Give the table of `" in str(error)
        else:  # a chart does not need every column, such as `file` for the one of layers
            assert (plot, column) in {
                (mt.plot_components, "file"), (mt.plot_components, "layer"), (mt.plot_parameters, "layer"),
                (mt.plot_layers, "file"), (mt.plot_insertion, "file"), (mt.plot_training, "method"),
                (mt.plot_limits, "first_token_s"),
            }  # fmt: skip


@pytest.mark.parametrize("plot", long_tables(1))
@pytest.mark.parametrize("odd", [None, [1, 2], "table", pd.DataFrame(), pd.Series([1])])
def test_what_is_no_such_table_is_told(plot, odd):
    rest = long_tables(1)[plot][1:]
    with pytest.raises(mt.ModelError, match=r"Give (that table|the table of `\w+`)\."):
        plot(odd, *rest)


@pytest.mark.parametrize("plot", long_tables(1))
def test_a_column_of_words_where_numbers_belong_is_told(plot):
    first, *rest = long_tables(3)[plot]
    column = next(
        name
        for name in ("size", "parameters", "tokens_per_s", "trainable", "peak_bytes", "total_bytes", "step_s")
        if name in first
    )
    with pytest.raises(mt.ModelError, match=f"Column {column} of this table holds no numbers"):
        plot(first.assign(**{column: "many"}), *rest)


@pytest.mark.parametrize("plot", long_tables(1))
def test_a_table_without_rows_is_drawn_or_told(plot):
    tables = [table.head(0) for table in long_tables(1)[plot]]
    if plot in (mt.plot_memory, mt.plot_limits, mt.plot_runs):
        with pytest.raises(mt.ModelError, match=r"no rows|No run was timed"):
            plot(*tables)
    else:
        plot(*tables).figure.canvas.draw()


def test_a_component_that_is_not_known_is_told():
    tensors = long_tables(3)[mt.plot_layers][0].assign(component="\x1b[31mstrange")
    for plot in (mt.plot_components, mt.plot_layers, mt.plot_parameters):
        with pytest.raises(mt.ModelError, match=r"unknown component, .*strange"):
            plot(tensors)


# --- Where a chart is saved


@pytest.fixture
def ax(tensors):
    return mt.plot_components(tensors)


def test_the_path_that_is_given_back_is_there(ax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = {"chart": "chart.png", "~/a.png": tmp_path / "home" / "a.png", "v1.2": "v1.2.png", "b.PNG": "b.PNG"}
    for given, place in expected.items():
        assert mt.save_chart(ax, given) == Path(place)
        assert Path(place).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path", ["", ".", "folder", "folder/", "new/", "a\0b", "x" * 300, "file/x.png", "~no-such-user/x", "pipe.png"]
)
def test_a_path_that_cannot_be_is_told(ax, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(mt.ModelError, match=r"Give (another|a full|the) path"):
        mt.save_chart(ax, path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_the_chart_of_before(ax, tmp_path, monkeypatch):
    (tmp_path / "chart.png").write_bytes(b"before")

    def full(path, mode="r", **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(mt.ModelError, match=r"chart\.png cannot be written: No space left on device"):
        mt.save_chart(ax, tmp_path / "chart.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("chart.png", b"before")]


def test_a_saved_chart_may_be_read_by_whom_the_user_lets(ax, tmp_path):
    mask = os.umask(0o022)
    try:
        assert mt.save_chart(ax, tmp_path / "chart.png").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_a_readable_table_prints_every_column(toy):
    table = mt.readable(mt.plan_adapters(toy))
    assert all(column in repr(table).splitlines()[0].split() for column in table.columns)
    assert len(repr(table).splitlines()) == len(table) + 1
