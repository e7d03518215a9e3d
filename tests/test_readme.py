"""README and docs/ are the specification: their Python runs, their commands exist, no public name is missing.

Python in blocks marked `python` is run, and its output compared. That marked `py` needs the Hub or minutes: it must
parse, and the functions of ours that it calls must take these arguments. Of shell blocks every line must be shell, and
each command must be one that we know: a target of the Makefile, a verb with these options, a package with our pin.
"""

import ast
import contextlib
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess

import pytest
from typer.main import get_command

import model_tools as mt
from base_model.commands import app
from base_model.show.page import _linked
from base_model.train.methods import METHODS, adapter_of
from tests.conftest import ROOT
from tests.folders import LLAMA_3B
from tests.read.test_descriptions import LLAMA_3B_TABLE
from tests.refresh import linked_from_root

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
README = PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK = (ROOT / "base_model_visualize.ipynb").read_text(encoding="utf-8")
PAGES["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
API = PAGES["docs/api.md"]
RUN = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
PARSED = [(page, code) for page, text in PAGES.items() for code in re.findall(r"```py\n(.*?)```", text, re.DOTALL)]
SHELL = [(page, code) for page, text in PAGES.items() for code in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
LINES = [(page, line) for page, code in SHELL for line in code.splitlines()]
# Programs of others, which are not called here: they need the network, a server, a GPU or a browser.
OTHERS = {"jupyter", "vllm", "transformers", "hf", ".", "export"}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if RUN.search(text)])
def test_its_python_runs_and_prints_what_it_says(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    namespace: dict = {}
    for code, expected in RUN.findall(PAGES[page]):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        assert not expected or printed.getvalue() == expected


@pytest.mark.parametrize(("page", "code"), PARSED)
def test_python_that_is_not_run_calls_what_there_is(page, code):
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "mt":
            signature = inspect.signature(getattr(mt, call.func.attr))
            signature.bind(*call.args, **{word.arg: word.value for word in call.keywords})


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize(("page", "code"), SHELL)
def test_its_shell_is_shell(page, code):
    assert subprocess.run(["bash", "-n"], input=code, text=True, timeout=60).returncode == 0


@pytest.mark.parametrize(("page", "line"), LINES)
def test_every_command_it_names_is_there(page, line):
    for command in re.split(r" && ", line):
        words = shlex.split(command, comments=True)
        if words and not re.fullmatch(r"\w+=.*", words[0]):
            _require_known(words)


def _require_known(words):
    program = words[0].removeprefix(".venv/bin/")
    if program == "make":
        assert all(f"\n{word}:" in (ROOT / "Makefile").read_text() for word in words[1:] if "=" not in word)
    elif program == "pip":
        pins = (ROOT / "requirements.txt").read_text()
        for name, version in re.findall(r"([\w-]+)(?:\[\w+\])?==([\d.]+)", " ".join(words)):
            assert f"{name}=={version} " in pins
    elif words[1:2] == ["-c"]:
        ast.parse(words[2])
    elif words[1:2] == ["model_tools.py"]:
        verb = get_command(app).commands[words[2]] if words[2] != "VERB" else None
        options = [one for parameter in verb.params for one in parameter.opts] if verb else []
        assert [word for word in words if word.startswith("--") and word not in options] == []
    elif words[1:2] == ["-m"]:
        assert words[2] == "venv" or (ROOT / f"{words[2].replace('.', '/')}.py").is_file() or words[2] == "pytest"
    else:
        assert program in OTHERS or words[1] == "my-run/train.py"  # which tests/train/test_script.py runs


@pytest.mark.parametrize("name", mt.__all__)
def test_every_public_name_is_there(name):
    assert re.search(rf"`{name}\b", API)


@pytest.mark.parametrize(("name", "given"), re.findall(r"`(\w+)\(([^`]*)\)`", API))
def test_its_arguments_are_those_of_the_function(name, given):
    """In their order; `...` stands for more of them, and for a default that is long. `ax` is said once, for all."""
    takes = inspect.signature(getattr(mt, name)).parameters.values()
    shown = [
        re.match(r"\*?(\w+)(?:=(.*))?", one).groups() for one in re.split(r", (?![^(]*\))", given) if one.strip(".")
    ]
    names = [one.name for one in takes if one.name != "ax" or name == "save_chart"]
    assert [name for name, _ in shown] == names[: len(shown)]
    assert given.endswith(", ...") == (len(shown) < len(names))
    defaults = {one.name: one.default for one in takes}
    assert all(value in (None, "...") or ast.literal_eval(value) == defaults[name] for name, value in shown)


def test_the_table_is_the_one_that_is_printed():
    assert LLAMA_3B_TABLE in README


def test_a_row_from_card_to_method_is_planned_anew():
    """The smallest card's, by the trainer's own step: `python -m tests.refresh --cards` makes all of them."""
    row = next(line for line in README.splitlines() if line.startswith("| GeForce RTX 3060"))
    _, _, what, peak, *_ = (cell.strip() for cell in row.split("|"))
    name, batch, checkpointing = re.fullmatch(r"(.*), batch (\d+)(, checkpointing)?", what).groups()
    from transformers import LlamaConfig

    from base_model.train.trainer import plan_trainer

    config = LlamaConfig(**LLAMA_3B | {"dtype": "bfloat16"})
    method = next(one for one in METHODS if one.name == name)
    args = {
        "per_device_train_batch_size": int(batch), "gradient_checkpointing": bool(checkpointing),
        "model_init_kwargs": {"dtype": "bfloat16"}, "optim": method.optim,
    }  # fmt: skip
    plan = plan_trainer(config, args, adapter_of(config, method), None, 1024)
    assert mt.format_bytes(int(plan.loc[0, "peak_bytes"])) == peak


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    _require_links(ROOT / page, PAGES[page])


def test_every_link_of_the_notebook_leads_somewhere_and_does_so_after_a_refresh():
    """A run's copy lies deeper, with links to match; `make refresh` brings it back to the root."""
    for notebook in (NOTEBOOK, linked_from_root(_linked(NOTEBOOK, "../../").decode()).decode()):
        text = "\n".join("".join(cell["source"]) for cell in json.loads(notebook)["cells"])
        assert "](docs/glossary.md)" in text
        _require_links(ROOT / "base_model_visualize.ipynb", text)


def _require_links(page, text):
    """Each link of this text leads from where the page lies to a file, and to a heading there."""
    for link in re.findall(r"\]\(([^)\s]+)", text):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.resolve().is_relative_to(ROOT) and target.exists(), link
        assert not heading or heading in _anchors(target.read_text("utf-8")), link


def _anchors(text):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_says_what_it_shows(page):
    assert all(len(words) > 10 for words in re.findall(r"!\[([^]]*)\]", PAGES[page]))


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_it_names_is_there(page):
    makefile = (ROOT / "Makefile").read_text()
    assert {target for target in re.findall(r"`make (\w+)", PAGES[page]) if f"\n{target}:" not in makefile} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_a_page_begins_with_one_sentence_and_readme_leads_to_it(page):
    first = PAGES[page].split("\n\n")[1].replace("\n", " ")
    assert first.startswith("This page ") and re.fullmatch(r"[^.]+(\.\w[^.]*)*\.", first)
    assert f"]({page}" in README


def test_readme_is_short():
    assert README.count("\n") <= 140


def test_the_problems_are_those_of_the_code():
    """What stands in the table is said somewhere: each piece between dots occurs in the source."""
    source = " ".join(path.read_text("utf-8") for path in (ROOT / "base_model").rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", source)
    rows = re.findall(r"^\| (`.*?) \|", PAGES["docs/problems.md"], re.MULTILINE)
    assert len(rows) > 15
    pieces = [piece.strip() for row in rows for words in re.findall(r"`([^`]+)`", row) for piece in words.split("...")]
    assert [piece for piece in pieces if piece and piece not in said] == []


def test_the_glossary_is_in_order_and_says_each_term_once():
    terms = re.findall(r"^\| ([^|]+) \|", PAGES["docs/glossary.md"], re.MULTILINE)[1:]
    assert len(terms) >= 45 and [term.lower() for term in terms] == sorted({term.lower() for term in terms})
