"""Do the tests notice? One small change at a time in base_model/, and only the tests that run the changed line.

    python -m tests.mutants --seed 1 --count 100

Works on a copy of the tree in `--place`, and keeps there which test runs which line (a quarter of an hour, once).
The tests of a change are those of the same room first, then the quickest, for `SECONDS` in all; each change that they
do not notice is printed as ALIVE: explain it as equal in meaning, or write its test.
"""

import argparse
import ast
import copy
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("TEST_SECONDS", 60))  # of tests on one change, by their times without it
LIMIT = 180  # seconds, after which a change counts as noticed: it made something endless
SLOW = ["notebook", "makefile", "package", "places", "readme"]  # tests of the whole, which run everything once more
SWAPS = {
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In], ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.FloorDiv],
    ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult], ast.Mod: [ast.Mult], ast.And: [ast.Or], ast.Or: [ast.And],
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Change(NamedTuple):
    """One place in a file (bytes from `begin` to `end`), what stands there then, and the lines that run it."""

    file: str
    line: int
    begin: int
    end: int
    new: str
    lines: tuple[int, ...]  # none: it runs when the module is imported


def changes(file: str, source: bytes) -> Iterator[Change]:
    """Every change of one operator, condition, bound, constant or answer; none in annotations or f-strings."""
    starts = [0, *(i + 1 for i, byte in enumerate(source) if byte == ord("\n"))]

    def visit(node: ast.AST, inside: bool, lines: tuple[int, ...]) -> Iterator[Change]:
        if isinstance(node, ast.stmt):
            lines = (node.lineno,) if inside else ()
        for new in variants(node):
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            run = lines and tuple(range(node.lineno, node.end_lineno + 1))
            yield Change(file, node.lineno, begin, end, ast.unparse(new).replace("\n", " "), run)
        inside = inside or isinstance(node, ast.FunctionDef | ast.Lambda)
        for name, field in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list") and not isinstance(node, ast.JoinedStr):
                for child in field if isinstance(field, list) else [field]:
                    if isinstance(child, ast.AST):
                        yield from visit(child, inside and name != "args", lines)

    yield from visit(ast.parse(source), False, ())


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one thing changed."""
    match node:
        case ast.Compare(ops=[op]) | ast.BinOp(op=op) | ast.BoolOp(op=op) if not _of_text(node):
            for swap in SWAPS.get(type(op), []):
                yield _with(node, **({"ops": [swap()]} if isinstance(node, ast.Compare) else {"op": swap()}))
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield from (ast.Constant(node.value + 1), ast.Constant(node.value - 1))
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield _with(node, func=ast.Name(NAMES[name]))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield ast.Return(ast.Constant(None))


def _of_text(node: ast.AST) -> bool:
    """Whether an operator joins texts: a minus there fails at once, which says nothing of the tests."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else ()
    return any(isinstance(side, ast.JoinedStr | ast.List | ast.Tuple) for side in sides) or any(
        isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides
    )


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


# As a plugin of pytest (-p tests.mutants): each test is a context of its own, in child processes, too.
def pytest_runtest_protocol(item) -> None:
    from coverage import Coverage

    os.environ["COVERED_BY"] = item.nodeid
    if Coverage.current():
        Coverage.current().switch_context(item.nodeid)


def pytest_runtest_logreport(report) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and "DURATIONS" in os.environ:
        with Path(os.environ["DURATIONS"]).open("a") as file:
            file.write(json.dumps([report.nodeid, report.duration, report.failed]) + "\n")


def copy_tree(tree: Path) -> None:
    """What git tracks, and links to what it does not."""
    shutil.rmtree(tree, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for name in (".venv", "SmolLM2-135M-Instruct"):
        (tree / name).symlink_to((ROOT / name).resolve())


def cover(place: Path) -> None:
    """Run the tests once, and note which of them runs which line, and how long each takes."""
    settings = place / "coveragerc"
    settings.write_text(
        f"[run]\nsource = base_model\nparallel = true\ndata_file = {place}/lines\ncontext = ${{COVERED_BY-}}\n"
        "disable_warnings = no-data-collected\n"
    )
    more = {"COVERAGE_PROCESS_START": str(settings), "DURATIONS": str(place / "durations"), "OMP_NUM_THREADS": "1"}
    left_out = [f"--ignore=tests/test_{name}.py" for name in SLOW]
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutants", "-n", "2", "--dist=loadfile", *left_out]
    subprocess.run(command, cwd=place / "tree", env=os.environ | more)
    subprocess.run(
        [sys.executable, "-m", "coverage", "combine", f"--rcfile={settings}"], cwd=place / "tree", check=True
    )


def _times(place: Path) -> dict[str, float]:
    """The seconds of each test; one that fails anyway, and so notices nothing, is not among them."""
    times: dict[str, float] = {}
    fails = set()
    for line in (place / "durations").read_text().splitlines():
        name, seconds, failed = json.loads(line)
        times[name] = times.get(name, 0) + seconds
        fails |= {name} if failed else set()
    return {name: seconds for name, seconds in times.items() if name not in fails}


def tests_of(place: Path) -> dict[tuple[str, int], list[str]]:
    """Which tests run which line of which file, quickest first."""
    from coverage import CoverageData

    times = _times(place)
    data = CoverageData(str(place / "lines"))
    data.read()
    run: dict[tuple[str, int], list[str]] = {}
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            known = (name for name in contexts if name in times)
            run[Path(file).relative_to(place / "tree").as_posix(), line] = sorted(known, key=times.__getitem__)
    return run


def chosen(change: Change, run: dict[tuple[str, int], list[str]], times: dict[str, float]) -> list[str]:
    """The tests to try on a change: of its own room first, quickest first, for `SECONDS`.

    What runs when a module is imported is noted for no test: then all that run anything of it, and all whose file names
    it.
    """
    lines = change.lines or [line for file, line in run if file == change.file]
    names = {name for line in lines for name in run.get((change.file, line), ())}
    if not change.lines:
        importing = re.compile(
            rf"import .*\b{Path(change.file).stem}\b|{'.'.join(Path(change.file).with_suffix('').parts)}"
        )
        naming = {
            file for file in ROOT.glob("tests/**/test_*.py") if importing.search(file.read_text(encoding="utf-8"))
        }
        names |= {name for name in times if ROOT / name.partition("::")[0] in naming}
    room, taken, seconds = f"tests/{Path(change.file).parent.name}/", [], 0.0
    for name in sorted(names, key=lambda name: (not name.startswith(room), times[name])):
        seconds += times[name]
        if seconds > SECONDS and taken:
            break
        taken.append(name)
    return taken


def notices(tree: Path, change: Change, names: list[str]) -> bool:
    """Whether a test fails once the change is made; the file is as it was afterwards."""
    path = tree / change.file
    source = path.read_bytes()
    path.write_bytes(source[: change.begin] + change.new.encode() + source[change.end :])
    worker = multiprocessing.get_context("fork").Process(target=_try, args=(tree, names))
    try:
        worker.start()
        worker.join(LIMIT)
        return worker.exitcode != 0
    finally:
        if worker.is_alive():
            os.killpg(worker.pid, signal.SIGKILL)
            worker.join()
        path.write_bytes(source)


def _try(tree: Path, names: list[str]) -> None:
    """In a process of its own, which has the libraries already, and the project not yet."""
    import pytest

    os.setsid()
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    sys.modules.pop("tests", None)  # this file's own package, which would hide the copy's
    sys.dont_write_bytecode = True
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *names]))


def main() -> None:
    """Sample changes, try them, and print those that no test notices."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0, help="of the sample: it was tried before")
    parser.add_argument("--place", type=Path, default=Path(gettempdir(), "mutants"))
    given = parser.parse_args()
    place = given.place.resolve()
    if not (place / "lines").exists():
        copy_tree(place / "tree")
        cover(place)
    run = tests_of(place)
    times = _times(place)
    files = sorted({file for file, _ in run if file.endswith(".py")})
    every = [one for file in files for one in changes(file, (place / "tree" / file).read_bytes())]
    covered = [one for one in every if not one.lines or any((one.file, line) in run for line in one.lines)]
    import datasets, matplotlib.pyplot, peft, transformers, trl  # noqa: E401, F401, I001  (once, for all that follow)

    alive, sample = 0, random.Random(given.seed).sample(covered, given.count)
    names = chosen(sample[0], run, times)
    if notices(place / "tree", sample[0]._replace(end=sample[0].begin, new=""), names):
        raise SystemExit(f"These fail on the tree as it is, and so would notice anything: {' '.join(names)}")
    for number, change in enumerate(sample):
        if number < given.skip:
            continue
        names = chosen(change, run, times)
        noticed = bool(names) and notices(place / "tree", change, names)
        alive += not noticed
        old = (place / "tree" / change.file).read_bytes()[change.begin : change.end].decode()
        print(
            "noticed" if noticed else "ALIVE  ",
            f"{number} {change.file}:{change.line} {old!r} -> {change.new!r}, {len(names)} tests",
            flush=True,
        )
    print(f"{given.count - given.skip} changes, {alive} not noticed")


if __name__ == "__main__":
    main()
