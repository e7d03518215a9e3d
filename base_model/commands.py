"""The command `base-model`, or `python model_tools.py`: one verb per question, its answer on standard output.

Whatever else is said on the way (progress, warnings, what is downloaded) goes to standard error, so an answer can be
piped. A fault is one sentence and exit code 1; wrong usage is exit code 2.
"""

import json
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from itertools import count
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import pandas as pd
import typer

from base_model import ModelError, by_name, visible, visible_text
from base_model.hub.demo import DEMO, make_demo_model
from base_model.hub.fetch import open_model
from base_model.hub.locate import HERE, is_complete, local_folder
from base_model.plan.machine import this_machine
from base_model.read.folder import is_file, is_folder
from base_model.show.page import RUNS, last_run, run_name, run_notebook, working_copy, write_page
from base_model.show.sentences import best_rows, in_words
from base_model.show.words import in_units, readable
from base_model.train.places import FITTING
from base_model.train.planning import compare_training, plan_adapters, plan_inference, recommend, write_script

DEFAULT_METHOD = "LoRA r16, all linear"
HELP = "What is in a language model, does it fit this machine, and what will tuning it take?"
DEFAULT = "meta-llama/Llama-3.2-3B-Instruct"
app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A folder, or a Hub id (org/name); a folder wins.", show_default=False)
]
# From the environment where it is not given: so `make` hands it over without a shell that could read it as a command.
Named = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A folder, or a Hub id; by default the variable MODEL.", show_default=False),
]
Download = Annotated[bool, typer.Option(envvar="DOWNLOAD", help="Download everything, or read headers only.")]
Data = Annotated[
    Path | None, typer.Option(help="Your texts (.jsonl, .json, .csv, .parquet); by default the project's.")
]
Way = Annotated[str, typer.Option(help="One of the methods of `recommend`.")]
Batch = Annotated[int, typer.Option(help="Texts per step.")]
Cut = Annotated[int, typer.Option(help="Longer texts are cut to this many tokens.")]
Checkpointing = Annotated[bool, typer.Option(help="Recompute activations in the backward pass.")]
Devices = Annotated[int, typer.Option(help="Cards that share the model.")]
NewFolder = Annotated[
    Path | None, typer.Option(help="The folder to create; the next free runs/<model name>/train-N if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs: sizes in bytes, nothing rounded.")]


@app.command()
def get(
    model: Model,
    download: Download = True,
) -> None:
    """Find or download a model; print where it is."""
    with _aside():
        place = open_model(model, download)
    print(place)


@app.command()
def demo() -> None:
    """Make the small demo model; no account needed."""
    with _aside():
        place = make_demo_model()
    print(place)


@app.command()
def files(model: Model, as_json: AsJson = False) -> None:
    """List a model's files: size, parameters, purpose."""
    with _aside():
        tables = {"files": by_name.list_files(model)}
    _print(tables, as_json)


@app.command()
def check(model: Model, as_json: AsJson = False) -> None:
    """Compare the numbers that a model's files state twice.

    The exit code is 1 if any two numbers differ.
    """
    with _aside():
        checks = by_name.check_model(model)
    _print({"checks": checks}, as_json)
    raise typer.Exit(0 if checks["match"].all() else 1)


@app.command()
def plan(
    model: Model,
    tokens: Annotated[int, typer.Option(help="Tokens of each text in training.")] = 1024,
    batch: Batch = 1,
    gpu: Annotated[
        str | None, typer.Option(help="The card to tune on, such as 'RTX 4090'.", show_default=False)
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Or its memory, such as 24GiB.", show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your texts, for their lengths and the time of an epoch.", show_default=False)
    ] = None,
    devices: Devices = 1,
    as_json: AsJson = False,
) -> None:
    """Say what running and tuning a model will take.

    With --gpu, --memory or --data: the methods that fit, best first. A config.json is enough: no weights are needed.
    """
    if gpu or memory or data:
        with _aside():
            answer = recommend(model, gpu, memory, data, tokens, devices)
        _print({"answer": answer if as_json else best_rows(answer)}, as_json)
        if not as_json:
            print(fill(in_words(answer), 100) + _try_it(model, answer.iloc[0], data))
        return
    with _aside():
        tables = {
            "machine": this_machine(),
            "inference": plan_inference(model),
            "adapters": plan_adapters(model),
            "training": compare_training(model, tokens, batch),
        }
    _print(tables, as_json)


def _try_it(model: str, row: pd.Series, data: Path | None) -> str:
    """The commands that write the script of a row of the answer, and try it here on one device, to copy."""
    if row["verdict"] not in FITTING:
        return ""
    words = [model, "--method", row["method"], "--batch", row["batch"], "--tokens", row["tokens"]]
    words += ["--checkpointing"] if row["checkpointing"] else []
    words += ["--data", data] if data else []
    if row["devices"] > 1:
        return _to_copy("To write its script", "script", [*words, "--devices", row["devices"]])
    return _to_copy("To write its script", "script", words) + _to_copy("To try it on this machine", "train", words)


def _to_copy(what: str, verb: str, words: list[Any]) -> str:
    return f"\n\n{what}:\n  {shlex.join(map(str, [*_program(), verb, *words]))}"


def _program() -> list[str]:
    """How this command was called."""
    return ["python", sys.argv[0]] if Path(sys.argv[0]).suffix == ".py" else ["base-model"]


@app.command("script")
def write(
    model: Model,
    data: Data = None,
    method: Way = DEFAULT_METHOD,
    batch: Batch = 4,
    tokens: Cut = 256,
    checkpointing: Checkpointing = False,
    devices: Devices = 1,
    folder: NewFolder = None,
) -> None:
    """Write a training script, to run where the card is.

    Beside it: the requirements that it needs. Nothing is run here, and no weights are needed.
    """
    row = {"method": method, "checkpointing": checkpointing, "batch": batch, "tokens": tokens, "devices": devices}
    with _aside():
        path = write_script(model, row, folder or _next_free(model), data)
    print(path)


@app.command()
def train(
    model: Model,
    data: Data = None,
    method: Way = DEFAULT_METHOD,
    steps: Annotated[int, typer.Option(help="Training steps, at least 3.")] = 20,
    batch: Batch = 4,
    tokens: Cut = 256,
    checkpointing: Checkpointing = False,
    folder: NewFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write a training script and run it here for a few steps.

    Compares the plan with what was measured; shows the loss before and after, and answers of both models.
    """
    with _aside():
        row = {"method": method, "checkpointing": checkpointing, "batch": batch, "tokens": tokens}
        tables = by_name.train_model(model, row, folder or _next_free(model), data, steps)
    if as_json:
        _print(tables, as_json)
        return
    _print({"plan": in_units(tables["plan"]), "loss on held-out texts": tables["loss"]}, as_json)
    for row in tables["answers"].itertuples():
        print(f"{visible(row.prompt)}\n  base:  {visible(row.base)}\n  tuned: {visible(row.tuned)}\n")


def _next_free(model: str) -> Path:
    """The first of train-1, train-2, ... of the model's runs that is not there: a run overwrites none before it."""
    folder = RUNS / run_name(local_folder(model))
    return next(path for number in count(1) if not os.path.lexists(path := folder / f"train-{number}"))


@app.command()
def report(
    model: Model,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write it; runs/<model name>/ unless given.", show_default=False)
    ] = None,
) -> None:
    """Write report.md, report.json and the charts."""
    with _aside():
        path = by_name.write_report(model, folder or Path("runs") / local_folder(model).name)
    print(path)


@app.command()
def notebook(model: Named = None, download: Download = True) -> None:
    """Run the notebook on a model; print its folder."""
    with _aside():
        folder = run_notebook(open_model(os.environ.get("MODEL", DEFAULT) if model is None else model, download))
    print(folder)


@app.command()
def page(model: Named = None) -> None:
    """Rebuild the code-free page of the last run."""
    with _aside():
        usual = DEMO if is_complete(HERE / DEMO) else DEFAULT
        path = write_page(last_run(os.environ.get("MODEL", usual) if model is None else model))
    print(path)


@app.command()
def lab(model: Named = None) -> None:
    """Open a copy of the notebook in JupyterLab.

    It is runs/base_model_visualize.ipynb, so that the project's own stays as it is. Uses the demo model, if it is
    there and you name no other.
    """
    with _aside():
        copied = working_copy()
    chosen = model or os.environ.get("MODEL", DEMO if is_complete(HERE / DEMO) else DEFAULT)
    names = {
        "MODEL": _from_anywhere(chosen),
        "DATA": _from_anywhere(os.environ.get("DATA", "")),
        "PYTHONPATH": str(HERE),
    }
    root = ["--allow-root"] if getattr(os, "geteuid", lambda: -1)() == 0 else []  # as one is in a container
    words = [sys.executable, "-m", "jupyterlab", *root, f"--ServerApp.root_dir={HERE}", str(copied)]
    os.execve(words[0], words, os.environ | names)


def _from_anywhere(name: str) -> str:
    """What is found from here, a folder or a file, as it is found from anywhere; a Hub id or nothing as it stands."""
    return str(Path(name).absolute()) if name and (is_folder(Path(name)) or is_file(Path(name))) else name


def main() -> None:
    """Run the command that the arguments name; without any, print the help."""
    app(prog_name=None if Path(sys.argv[0]).suffix == ".py" else "base-model")


@contextmanager
def _aside() -> Iterator[None]:
    """Everything said on the way goes to standard error; a ModelError is its sentence, and the end."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            yield
        except ModelError as error:
            print(visible_text(str(error)))
            raise typer.Exit(1) from None


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"Warning: {visible_text(str(message))}", file=sys.stderr)


def _print(tables: Mapping[str, pd.DataFrame], as_json: bool) -> None:
    """One table, or several under their names."""
    if as_json:
        records = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print(
            json.dumps(records if len(records) > 1 else next(iter(records.values())), indent=1)
        )  # ASCII: safe to print
        return
    for name, table in tables.items():
        heading = f"{name}\n" if len(tables) > 1 else ""
        with pd.option_context("display.max_rows", None, "display.width", None, "display.max_columns", None):
            print(f"{heading}{readable(table).to_string(index=False)}\n")
