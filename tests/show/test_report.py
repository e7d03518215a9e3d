"""One result, three faces: tables in Markdown, models side by side, and a report that can be sent and compared."""

import errno
import json
import os
import shutil
import time

import pandas as pd
import pytest

import model_tools as mt
from base_model.read.folder import in_home
from base_model.show import report, saving
from base_model.show.charts import COLOURS
from tests.folders import write_llama_1b, write_tensors


@pytest.fixture(scope="module")
def llama_1b(tmp_path_factory):
    return write_llama_1b(tmp_path_factory.mktemp("replica") / "Llama-3.2-1B-Instruct")


@pytest.fixture(scope="module")
def both(llama_1b, llama_3b):
    return mt.compare_models([llama_1b, llama_3b])


@pytest.fixture(scope="module")
def runs():
    columns = ("method", "device", "dtype", "prompt_tokens", "new_tokens", "first_token_s", "total_s", "tokens_per_s")
    return pd.DataFrame(
        [("manual", "cpu", "float32", 5, 1, 0.25, 0.3, float("nan"), True)], columns=[*columns, "same_tokens"]
    )


# --- Tables in Markdown


def test_markdown_aligns_numbers_and_cuts_nothing():
    table = pd.DataFrame({"name": ["x" * 80, "b"], "bytes": [2**30, 5], "share": [0.5, 0.0001], "match": [True, False]})
    assert mt.markdown_table(table).splitlines() == [
        "| name | bytes | share | match |",
        "| :--- | ---: | ---: | :--- |",
        f"| {'x' * 80} | 1.00 GiB | 50.0% | yes |",
        "| b | 5 B | &lt;0.1% | no |",
    ]


def test_headings_are_words_with_units():
    names = ["first_token_s", "tokens_per_s", "peak_bytes", "bytes", "kv_heads", "bits_per_parameter", "tensors"]
    assert mt.markdown_table(pd.DataFrame([[1] * 7] * 3, columns=names)).splitlines()[0] == (
        "| first token (s) | tokens/s | peak | bytes | KV heads | bits per parameter | tensors |"
    )


def test_markdown_is_only_text():
    text = mt.markdown_table(pd.DataFrame({"token": ["<b>|$x$ *a* _b_ a_b __c__ [d](e) ~~f~~\n`g`"]}))
    assert text.splitlines()[2] == (r"| &lt;b>\|\$x\$ \*a\* \_b\_ a_b \_\_c\_\_ \[d\](e) \~\~f\~\~\\n\`g\` |")


def test_one_row_of_many_columns_stands_upright(both):
    lines = mt.markdown_table(both).splitlines()
    assert lines[0] == "| model | Llama-3.2-1B-Instruct | Llama-3.2-3B-Instruct |"
    assert lines[1:3] == ["| :--- | ---: | ---: |", "| parameters | 1,235,814,400 | 3,212,749,824 |"]


def test_readable_escapes_tex_and_keeps_an_empty_table():
    assert mt.readable(pd.DataFrame({"file": ["$x$"]})).loc[0, "file"] == r"\$x\$"
    assert list(mt.readable(mt.compare_runs([])).columns) == list(mt.compare_runs([]).columns)


def test_what_is_shown_has_no_object_in_its_text(both):
    shown = mt.show(both)
    assert shown._repr_markdown_() == repr(shown) == mt.markdown_table(both)
    assert repr(mt.show("**Storage.**")) == "**Storage.**"


# --- Models side by side


def test_models_side_by_side_have_their_published_sizes(both):
    assert list(both.index) == ["Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct"]
    expected = {
        "parameters": [1_235_814_400, 3_212_749_824],
        "bytes": [2_471_628_800, 12_850_999_296],
        "dtype": ["BF16", "F32"],
        "bits_per_parameter": [16, 32],
        "layers": [16, 28],
        "hidden_size": [2048, 3072],
        "heads": [32, 24],
        "kv_heads": [8, 8],
        "vocabulary": [128_256, 128_256],
        "context": [131_072, 131_072],
        "tied": [True, True],
    }
    assert {name: list(both[name]) for name in expected} == expected
    assert both.filter(like="_share").sum(axis=1).tolist() == pytest.approx([1, 1])
    assert both["embedding_share"].iloc[1] == pytest.approx(394_002_432 / 3_212_749_824)


def test_an_unknown_architecture_is_compared_by_its_headers(tmp_path, toy):
    write_tensors(tmp_path / "model.safetensors", {"embed.weight": ("F16", (10, 4))})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.warns(mt.ModelWarning, match="sizes are left out"):
        table = mt.compare_models([tmp_path, toy])
    assert table["parameters"].tolist() == [40, 26_912]
    assert pd.isna(table["layers"].iloc[0])
    assert "n/a" in mt.markdown_table(table)


def test_sizes_that_config_json_leaves_out_are_the_architectures_own(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"wte.weight": ("F16", (10, 4))})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 96}))
    row = mt.compare_models(tmp_path).iloc[0]
    assert (row["hidden_size"], row["layers"], row["context"]) == (96, 12, 1024)


def test_two_models_of_one_name_are_told_apart(toy, tmp_path):
    other = shutil.copytree(toy, tmp_path / toy.name)
    assert list(mt.compare_models([toy, other]).index) == [str(toy), str(other)]


def test_models_are_drawn_to_one_scale_by_component(both):
    ax = mt.plot_models(both)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(both.index)
    assert ax.texts[0].get_text() == "1,235,814,400 (~1.236 B), 2.30 GiB"
    assert sum(bar.get_width() for bar in ax.patches) * 1e9 == pytest.approx(both["parameters"].sum())
    assert ax.get_legend_handles_labels()[1] == ["embedding", "attention", "mlp", "norm"]
    assert ax.patches[0].get_facecolor()[:3] == pytest.approx(
        [int(COLOURS["embedding"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    )


# --- The report


def test_a_report_has_three_faces(toy, tmp_path, runs):
    import matplotlib.pyplot as plt

    page = mt.write_report(toy, tmp_path / "new" / "report", {"runs": runs})
    folder = page.parent
    charts = ["components.png", "parameter-count.png"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *charts,
        "report.json",
        "report.md",
        "speed.png",
        "storage-footprint.png",
    ]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# toy\n")
    assert all(f"]({name})" in text for name in [*charts, "speed.png", "storage-footprint.png"])
    assert "![Weights take " in text and "**Figure 1. Weights take " in text
    assert text.index("## Summary") < text.index("## Contents") < text.index("## Figures") < text.index("## Model")
    assert "- [By component](#by-component)" in text and time.strftime("%Y-") in text.splitlines()[2]
    assert "| parameters | 26,912 |" in text
    assert not plt.get_fignums()  # a notebook would show them below the cell


def test_report_json_states_schema_versions_and_units(toy, tmp_path):
    mt.write_report(toy, tmp_path)
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["schema"] == "base_model_visualize/report/1"
    assert content["model"] == {"name": "toy", "commits": []}
    assert set(content["versions"]) >= {"python", "torch", "transformers", "safetensors"}
    assert {"size_bytes", "parameters"} <= set(content["tables"]["files"][0])
    assert content["tables"]["by_layer"][-1]["layer"] is None
    assert str(tmp_path) not in (tmp_path / "report.md").read_text(encoding="utf-8") + json.dumps(content)


def test_a_report_is_read_back_and_two_can_be_compared(toy, base_toy, tmp_path, runs):
    mt.write_report(toy, tmp_path / "a", {"runs": runs})
    mt.write_report(base_toy, tmp_path / "b")
    a, b = mt.read_report(tmp_path / "a"), mt.read_report(tmp_path / "b")
    assert list(a) == ["model", "files", "by_component", "by_dtype", "by_layer", "checks", "tokenizer", "runs"]
    pd.testing.assert_frame_equal(a["checks"], mt.check_model(toy), check_dtype=False)
    assert pd.concat([a["model"], b["model"]])["parameters"].tolist() == [26_912, 35_232]
    assert a["runs"].loc[0, "first_token_s"] == 0.25


def test_the_same_findings_give_the_same_bytes(toy, tmp_path):
    for name in "ab":
        mt.write_report(toy, tmp_path / name)
        mt.write_report(toy, tmp_path / name)  # a report is renewed
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_the_hubs_commit_is_noted(toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "toy")
    record = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    record.parent.mkdir(parents=True)
    record.write_text("0123456789abcdef\n\n1\n")
    assert "Commit 0123456789abcdef." in mt.write_report(folder, tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ['{"mine": 1}', "[]", "not JSON", "[" * 100_000])
def test_a_file_of_someone_elses_is_not_overwritten(content, toy, tmp_path):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(mt.ModelError, match=r"report\.json .*another folder"):
        mt.write_report(toy, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


PICTURES = ["storage-footprint.png", "components.png", "parameter-count.png"]
FILES = ["report.md", *PICTURES]


@pytest.fixture
def save(toy, monkeypatch):
    """`save_report` of one table and pictures that are only bytes: quick, and another each time `note` differs."""
    files, tensors = mt.list_files(toy), mt.read_tensors(toy)

    def save(folder, note="toy"):
        monkeypatch.setattr(report, "_draw", lambda *_: ({}, {name: f"{name} {note}".encode() for name in PICTURES}))
        return report.save_report(folder, {"name": note, "commits": []}, {"files": files}, tensors)

    return save


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_no_report_wrote_stays(name, save, tmp_path):
    (tmp_path / name).write_bytes(b"my own")
    with pytest.raises(mt.ModelError, match=rf"{name} was not written by a report.*Move it away"):
        save(tmp_path)
    assert contents(tmp_path) == {name: b"my own"}


@pytest.mark.parametrize("name", [*FILES, "report.json"])
def test_a_file_that_was_changed_since_stays(name, save, tmp_path):
    save(tmp_path)
    path = tmp_path / name
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"toy"', b'"my toy"') if name.endswith("json") else text + b"a note")
    before = contents(tmp_path)
    with pytest.raises(mt.ModelError, match=rf"{name} was not written by a report"):
        save(tmp_path, "another")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("more", [{"runs": 5}, [1], {5: pd.DataFrame()}])
def test_what_is_no_table_is_told(more, toy, tmp_path):
    with pytest.raises(mt.ModelError, match="`more`"):
        mt.write_report(toy, tmp_path, more)


def test_an_index_that_is_a_column_too_is_written_once():
    table = pd.DataFrame({"a": [1]}, index=pd.Index([1], name="a"))
    assert mt.markdown_table(table).splitlines()[0] == "| a |"
    assert report._rows(table) == [{"a": 1}]


def test_a_report_gives_way_to_another_models(save, tmp_path):
    save(tmp_path / "a")
    save(tmp_path / "a", "another")
    assert contents(tmp_path / "a") == contents(save(tmp_path / "b", "another").parent)


def test_a_chart_of_an_earlier_report_is_still_known_as_its_own(save, tmp_path, monkeypatch):
    save(tmp_path)
    monkeypatch.setitem(globals(), "PICTURES", PICTURES[1:])
    save(tmp_path, "with fewer charts")
    monkeypatch.undo()
    save(tmp_path, "another")
    assert contents(tmp_path)["storage-footprint.png"] == b"storage-footprint.png another"


def test_the_notebooks_own_charts_are_taken_up(toy, tmp_path):
    saved = mt.save_chart(mt.plot_components(mt.read_tensors(toy)), tmp_path / "components.png").read_bytes()
    mt.write_report(toy, tmp_path)
    assert contents(tmp_path)["components.png"] == saved


@pytest.mark.parametrize("name", ["report.md", "components.png", "report.json"])
@pytest.mark.parametrize("target", ["mine", "nothing"])
def test_nothing_is_written_through_a_link(name, target, save, tmp_path):
    (tmp_path / "mine").write_bytes(b"my own")
    save(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).symlink_to(tmp_path / target)
    with pytest.raises(mt.ModelError, match=rf"{name} is a link"):
        save(tmp_path / "out")
    assert contents(tmp_path) == {"mine": b"my own"}


def test_a_full_disk_leaves_the_report_of_before(save, tmp_path, monkeypatch):
    save(tmp_path)
    before, real = contents(tmp_path), saving._write_beside

    def full(path, content):
        if path.name == "report.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(saving, "_write_beside", full)
    with pytest.raises(mt.ModelError, match=r"No space left on device\. Give another folder"):
        save(tmp_path, "another")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("where", ["a\0b", "~no-such-user/x", "x" * 300])
def test_a_folder_that_cannot_be_is_told(where, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mt.ModelError, match=r"Give (another folder|a full path)\."):
        save(in_home(where))


def test_a_folder_that_is_a_file_and_a_report_that_is_not_there_are_told(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(mt.ModelError, match="Give another folder"):
        mt.write_report(toy, tmp_path / "file")
    with pytest.raises(mt.ModelError, match="write_report"):
        mt.read_report(tmp_path)


def test_a_long_table_shows_its_beginning_and_says_so():
    table = pd.DataFrame({"file": [f"f{number}" for number in range(100)]})
    shown = repr(mt.show(table))
    assert "| f39 |" in shown
    assert "f40" not in shown
    assert shown.endswith("... and 60 more rows.")
    assert "more rows" not in repr(mt.show(table.head(40)))


# --- What lies where a report should be


def fifo(path):
    os.mkfifo(path)


def huge(path):
    with path.open("wb") as file:
        file.truncate(200 * 2**30)  # a hole


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.parametrize("make", [fifo, huge, device, folder])
@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_what_is_no_file_of_a_report_is_neither_read_nor_waited_for(make, name, save, tmp_path):
    start = time.monotonic()
    make(tmp_path / name)
    before = [path.lstat() for path in tmp_path.iterdir()]
    with pytest.raises(mt.ModelError, match=r"Give another folder|another folder\."):
        save(tmp_path)
    if name == "report.json":
        with pytest.raises(mt.ModelError, match=r"another folder\."):
            mt.read_report(tmp_path)
    assert time.monotonic() - start < 5 and [path.lstat() for path in tmp_path.iterdir()] == before


HEAD = '{"schema": "base_model_visualize/report/1"'
JUNK = [
    "", "null", "7", '"text"', "{}", "[" * 10**6, '{"a":' * 10**5, "9" * 5000, HEAD, f"{HEAD}, }}", "\x00" * 100,
    *(f'{HEAD}, "tables": {tables}}}' for tables in (
        "null", "5", '"text"', "[]", '[{"a": 1}]', '{"a": null}', '{"a": 5}', '{"a": "text"}', '{"a": {"b": 1}}',
        '{"a": [{"b": "\\ud800"}]}', '{"a": [1, 2]}', '{"a": [null]}', '{"a": [[1]]}', '{"a": [{"b": 1}, 2]}',
    )),
]  # fmt: skip
FINE = [
    '{"a": []}',
    '{"a": [{"b": 1e999}, {"c": [1, {"d": 2}]}]}',
    '{"a": [{"b": 1}, {"b": "x"}]}',
    '{"": [{"": null}]}',
]


@pytest.mark.parametrize("number", range(len(JUNK)))
def test_junk_in_report_json_is_told(number, tmp_path):
    (tmp_path / "report.json").write_text(JUNK[number])
    with pytest.raises(mt.ModelError, match=r"report\.json (cannot be read|is not a report|does not hold tables)"):
        mt.read_report(tmp_path)


@pytest.mark.parametrize("tables", [*FINE, f'{{"a": [{{"b": {10**40}}}]}}'])
def test_any_rows_of_objects_are_a_table(tables, tmp_path):
    (tmp_path / "report.json").write_text(f'{HEAD}, "tables": {tables}}}')
    ((_, table),) = mt.read_report(tmp_path).items()
    assert isinstance(table, pd.DataFrame)


def test_a_file_may_be_as_large_as_the_limit(save, tmp_path, monkeypatch):
    path = save(tmp_path / "out").with_name("report.json")
    monkeypatch.setattr(report, "MAX_BYTES", path.stat().st_size)
    assert mt.read_report(path.parent)
    monkeypatch.setattr(report, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(mt.ModelError, match="too large for a report"):
        mt.read_report(path.parent)


def test_four_rows_of_many_columns_stand_upright():
    cards = pd.DataFrame([["A", *[1] * 11]] * 4, columns=[f"c{number}" for number in range(12)])
    assert mt.markdown_table(cards).splitlines()[0] == "| c0 | A | A | A | A |"
    assert mt.markdown_table(cards.drop(columns="c11")).startswith("| c0 | c1 |")


def test_figures_without_a_name_stand_under_a_heading():
    lines = mt.markdown_table(pd.DataFrame({"loss": [5.13], "perplexity": [169], "device": ["cpu"]})).splitlines()
    assert lines[0] == "| fact | value |" and lines[2:] == [
        "| loss | 5.13 |",
        "| perplexity | 169 |",
        "| device | cpu |",
    ]
