"""The README is the specification: its Python runs, its outputs are real, and no public name is missing."""

import contextlib
import io
import re

import pytest

import model_tools as mt
from tests.conftest import ROOT
from tests.read.test_descriptions import LLAMA_3B_TABLE

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)


def test_its_python_runs_and_prints_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(BLOCKS) >= 3
    namespace: dict = {}
    for code, expected in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        assert not expected or printed.getvalue() == expected


@pytest.mark.parametrize("name", mt.__all__)
def test_every_public_name_is_there(name):
    assert re.search(rf"`{name}\b", README)


def test_the_table_is_the_one_that_is_printed():
    assert LLAMA_3B_TABLE in README


def test_every_file_it_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_it_names_is_there():
    makefile = (ROOT / "Makefile").read_text()
    assert {target for target in re.findall(r"`make (\w+)", README) if f"\n{target}:" not in makefile} == set()
