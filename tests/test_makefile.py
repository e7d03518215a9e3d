"""`make` hands a user's values to Python as they stand: no shell reads them, and make itself expands nothing in them."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

# Stands for every program of the environment: notes what it was called with, and does nothing.
RECORDER = f"""#!{sys.executable}
import json, os, sys
given = {{name: os.environ.get(name) for name in ("MODEL", "PROMPT", "DOWNLOAD", "PYTHONPATH")}}
with open("calls", "a") as file:
    file.write(json.dumps([sys.argv[1:], given]) + "\\n")
"""
HOSTILE = [
    "$(shell touch canary)",
    "`touch canary`",
    '"; touch canary; "',
    "'; touch canary; '",
    "$$(touch canary)",
    "$(eval X:=$(shell touch canary))",
    "x\ntouch canary\n",
    "-rf x",
    "../../outside",
    "a folder/with $HOME, # and \\",
]


@pytest.fixture
def project(tmp_path):
    """The Makefile beside an environment that only records, in a folder whose own name is hostile."""
    folder = tmp_path / 'clone "$(touch canary)` of'
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.txt", "tests/requirements.txt", "base_model_visualize.ipynb", "model_tools.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    for name in ("python", "jupyter", "pip", "ruff", "mypy", "lint-imports"):
        (folder / ".venv" / "bin" / name).write_text(RECORDER)
        (folder / ".venv" / "bin" / name).chmod(0o755)
    for name in ("ready", "test-ready"):
        (folder / ".venv" / name).write_text("")
        os.utime(folder / ".venv" / name, (time.time() + 60,) * 2)
    return folder


def make(folder, *words, **variables):
    clean = {name: value for name, value in os.environ.items() if name not in ("MODEL", "PROMPT", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", *words], cwd=folder, env=clean | variables, capture_output=True, text=True, timeout=60
    )
    calls = folder / "calls"
    found = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    calls.unlink(missing_ok=True)
    assert not list(folder.parent.rglob("canary")), done.stdout
    return done, found


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("target", ["notebook", "report", "lab"])
def test_a_value_reaches_python_as_it_stands(project, target, value):
    for words, variables in [((f"MODEL={value}", f"PROMPT={value}"), {}), ((), {"MODEL": value, "PROMPT": value})]:
        done, calls = make(project, target, *words, **variables)
        assert done.returncode == 0, done.stderr
        assert [(given["MODEL"], given["PROMPT"]) for _, given in calls] == [(value, value)]
        assert not any(value in argument for argument in calls[0][0])
        make(project, "-n", target, *words, **variables)


@pytest.mark.parametrize("name", ["DEMO", "BIN", "NOTEBOOK", "READY", "SOURCES", "DATA", "GPU"])
def test_no_other_name_is_a_way_in(project, name):
    for value in ("$(shell touch canary)", "`touch canary`", "; touch canary"):
        make(project, "demo", f"{name}={value}")
        make(project, "-n", "demo", f"{name}={value}")
        make(project, "notebook", f"{name}={value}")


def test_the_interpreter_is_a_path_and_nothing_more(project):
    (project / ".venv" / "ready").unlink()
    recorder = project / "my python"
    shutil.copy(project / ".venv" / "bin" / "python", recorder)
    for value in ("sh -c 'touch canary'", "$(shell touch canary)", "`touch canary`"):
        assert make(project, "notebook", f"PYTHON={value}")[0].returncode != 0
    done, calls = make(project, "notebook", f"PYTHON={recorder}")
    assert done.returncode == 0, done.stderr
    assert ["-m", "venv", ".venv"] in [words for words, _ in calls]


def test_demo_is_of_the_demo_model_whatever_is_set(project):
    calls = make(project, "demo", "MODEL=another")[1]
    assert calls[-1][0] == ["model_tools.py", "notebook", "SmolLM2-135M-Instruct"]
