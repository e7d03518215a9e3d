"""The cards that are known, and how a name finds one."""

import re
import subprocess
import sys
import warnings

import pandas as pd
import pytest

import model_tools as mt
from base_model.train import gpus as module
from base_model.train.gpus import COLUMNS, FLOPS, card, this_cpu
from tests.conftest import ROOT

GB, TERA = 1e9, 1e12
ASKED_FOR = [
    "T4", "V100 SXM 16GB", "A10G", "L4", "L40S", "A6000", "A100 SXM 40GB", "A100 SXM 80GB", "H100 SXM", "H200", "B200",
    "RTX 3060 12GB", "RTX 3090", "RTX 4060 Ti", "RTX 4070 Ti", "RTX 4080", "RTX 4090", "RTX 5090", "MI300X",
    "M1", "M1 Pro", "M1 Max", "M2", "M2 Pro", "M2 Max", "M3", "M3 Pro", "M3 Max", "M4", "M4 Pro", "M4 Max",
]  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return mt.gpus()


@pytest.fixture
def measured(monkeypatch):
    """A CPU whose speed is known, and how often it was measured."""
    asked = []
    monkeypatch.setattr(module, "memory_bandwidth", lambda *place, **more: asked.append("bandwidth") or 20 * GB)
    monkeypatch.setattr(module, "cpu_flops", lambda dtype: asked.append(dtype) or {"float32": 9e10}.get(dtype, 1e9))
    this_cpu.cache_clear()
    yield asked
    this_cpu.cache_clear()


def test_the_columns_are_those_of_the_contract(table):
    assert tuple(table) == COLUMNS
    assert len(table) >= 25 and table["gpu"].is_unique
    assert table["memory_bytes"].dtype == "int64"
    assert not table.drop(columns="bf16_flops").isna().any(axis=None)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_what_people_tune_on_is_there(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card(name)["memory_bytes"] >= 8 << 30


@pytest.mark.parametrize(
    ("name", "gib", "bandwidth", "bf16", "fp32"),
    [
        ("L40S", 48, 864, 362.05, 91.6),
        ("A100 SXM 80GB", 80, 2039, 312, 19.5),
        ("A10G", 24, 600, 70, 35),  # not the A10's 125
        ("RTX A6000", 48, 768, 154.8, 38.7),
        ("RTX 3090", 24, 936, 71.2, 35.6),  # half of 142: float32 accumulates at half the rate on GeForce
        ("RTX 4080", 16, 716.8, 97.5, 48.7),
        ("RTX 4090", 24, 1008, 165.2, 82.6),
        ("H100 SXM", 80, 3350, 989.5, 67),  # half of 1,979, which is with sparsity
    ],
)
def test_figures_are_dense_and_accumulate_in_float32(name, gib, bandwidth, bf16, fp32):
    found = card(name)
    assert found["memory_bytes"] == gib * 2**30
    assert found["bandwidth"] == pytest.approx(bandwidth * GB, rel=1e-12)
    assert found["bf16_flops"] == found["fp16_flops"] == pytest.approx(bf16 * TERA, rel=1e-12)
    assert found["fp32_flops"] == pytest.approx(fp32 * TERA, rel=1e-12)


def test_a_card_without_bfloat16_says_so(table):
    without = table[table["bf16_flops"].isna()]
    assert {"NVIDIA Tesla T4", "NVIDIA Tesla V100 SXM 16GB", "NVIDIA Tesla P100 PCIe 16GB", "Apple M1"} <= set(
        without["gpu"]
    )
    assert without["source"].str.contains("no bfloat16").all()
    assert not table.dropna(subset=["bf16_flops"])["source"].str.contains("no bfloat16").any()


def test_every_figure_has_a_source(table):
    assert table["source"].str.contains("https://").all()


def test_what_was_computed_follows_from_its_source(table):
    rows = table[table["source"].str.startswith("computed")]
    assert len(rows) > 5
    for row in rows.itertuples():
        units, each, clock = re.search(r"(\d+) SMs x ([\d,]+) x ([\d.]+) GHz", row.source).groups()
        flops = int(units) * int(each.replace(",", "")) * float(clock) * 1e9
        assert row.bf16_flops == pytest.approx(flops, rel=2e-3)
        assert row.fp32_flops == pytest.approx(int(units) * 256 * float(clock) * 1e9, rel=5e-3)


def test_a_16_bit_product_is_never_slower_than_float32(table):
    assert (table["fp16_flops"] >= table["fp32_flops"]).all()
    assert (table["bf16_flops"].fillna(table["fp32_flops"]) >= table["fp32_flops"]).all()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("4070ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("4070", "NVIDIA GeForce RTX 4070"),
        ("l40s", "NVIDIA L40S"),
        ("A10", "NVIDIA A10"),
        ("m1", "Apple M1"),
        ("M4Max", "Apple M4 Max"),
        ("a6000", "NVIDIA RTX A6000"),
        ("a100 40 GB", "NVIDIA A100 PCIe 40GB"),  # PCIe and SXM have the same figures
        # as drivers call them
        ("Tesla V100-SXM2-32GB", "NVIDIA Tesla V100 SXM 32GB"),
        ("Tesla P100-PCIE-16GB", "NVIDIA Tesla P100 PCIe 16GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 PCIe 80GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM 80GB"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe 80GB"),
        ("NVIDIA RTX 6000 Ada Generation", "NVIDIA RTX 6000 Ada Generation"),
    ],
)
def test_a_loose_name_finds_its_card(name, found):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert card(name)["gpu"] == found


def test_each_card_finds_itself(table):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [card(name)["gpu"] for name in table["gpu"]] == list(table["gpu"])


def test_a_name_for_two_is_the_slower_and_says_so():
    with pytest.warns(mt.ModelWarning, match=r"could be NVIDIA A100 PCIe 80GB or NVIDIA A100 SXM 80GB.*the slowest"):
        assert card("a100 80gb")["bandwidth"] == 1935 * GB


def test_a_name_for_cards_of_unlike_memory_is_refused():
    with pytest.raises(mt.ModelError, match=r"NVIDIA A100 PCIe 40GB or .*, which differ in memory"):
        card("A100")


@pytest.mark.parametrize("name", ["RTX 7900", "RTX 4090 Laptop GPU", "RTX 4070 Super", "", "NVIDIA", "\x1b[2J"])
def test_an_unknown_card_is_refused(name):
    with pytest.raises(mt.ModelError, match=r"is not known\. .*`gpus\(\)` in Python lists all") as caught:
        card(name)
    assert str(caught.value).isprintable()


def test_the_refusal_names_the_nearest():
    with pytest.raises(mt.ModelError, match="The nearest are NVIDIA GeForce RTX 4070, "):
        card("RTX 4070 Super")


def test_this_cpu_is_measured_once(measured):
    rows = [mt.gpus(measure=True).iloc[-1], card("cpu"), card("CPU")]
    assert measured == ["bandwidth", *FLOPS.values()]
    for row in rows:
        assert row["gpu"] == "CPU" and row["source"].startswith("measured on this machine")
        assert (row["bandwidth"], row["bf16_flops"], row["fp32_flops"]) == (20 * GB, 1e9, 9e10)
        assert row["memory_bytes"] == mt.this_machine().set_index("device").loc["cpu", "total_bytes"]


def test_its_row_keeps_the_columns_types(measured, table):
    pd.testing.assert_series_equal(mt.gpus(measure=True).dtypes, table.dtypes)
    assert len(mt.gpus(measure=True)) == len(table) + 1


def test_the_table_needs_no_torch_and_measures_nothing():
    code = "import sys, model_tools as mt; mt.gpus(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
