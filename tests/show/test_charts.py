"""Charts, by their artists: what is drawn, labelled and saved."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

import model_tools as mt
from base_model.show.charts import COLOURS


def texts(ax):
    return [text.get_text() for text in ax.texts]


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
    assert texts(mt.plot_runs(table)) == ["20.0 tokens/s, first token 0.25 s", "n/a, first token n/a"]


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
