"""The wheel: what `pip install .` brings."""

import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest

from tests.conftest import ROOT

ENTRY = "base-model = base_model.commands:main"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network: the build's own needs are installed with the tests'."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: not name.startswith(("charts/", "tests/")), files.split("\0")[:-1]):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(place.glob("*.whl"))) as archive:
        yield archive


def test_it_holds_every_module_template_and_table(wheel):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "base_model").rglob("*.py")} | {"model_tools.py"}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "base_model/show/report_page").iterdir()}
    data = (
        "train/gpus.csv",
        "train/published_runs.csv",
        "train/measured_runs.csv",
        "data/questions.jsonl",
        "data/questions_plain.jsonl",
    )
    tables = {f"base_model/{name}" for name in data}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == modules | templates | tables


def test_its_dependencies_are_those_of_requirements_txt(wheel):
    metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    needed = Parser().parsestr(wheel.read(metadata).decode()).get_all("Requires-Dist")
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    stated = [line.partition("#")[0].strip() for line in lines]
    assert needed == [line for line in stated if line]
    assert "dependencies" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_it_brings_the_command(wheel):
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert ENTRY in wheel.read(entry).decode()


def test_it_works_from_any_folder(wheel, toy, tmp_path):
    wheel.extractall(tmp_path / "site")
    code = f"import model_tools as mt; print(mt.__file__, len(mt.list_files({str(toy)!r})), mt.show_prompt({str(toy)!r}, 'Hi'))"
    run = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'site' / 'model_tools.py'} ")
