"""What connects the rooms: takes a model's name and calls those that read, check, compare, run and report."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, format_bytes, require_whole, storable, visible, warn
from base_model.architecture.checks import run_checks, warn_of_packed
from base_model.architecture.comparison import model_table
from base_model.architecture.config import is_tied, read_architecture
from base_model.architecture.dtypes import PLANNED, planned_header, read_planned
from base_model.hub import download, remote
from base_model.hub.access import UnknownModelError
from base_model.hub.locate import folder_of, hub_id_of, is_complete, local_folder, locate, not_here, only_described
from base_model.read.descriptions import describe_file, tree_lines
from base_model.read.folder import file_sizes, in_home, model_headers, read_config, readable_headers
from base_model.read.tensors import group_parameters, tensor_table, without_collector
from base_model.run.generation import load_and_run
from base_model.run.loading import available_devices
from base_model.run.timing import Generation
from base_model.run.tuned import answers
from base_model.show.page import run_name, runs_folder
from base_model.show.report import save_report
from base_model.text.data import example_data, has_template
from base_model.text.lengths import text_lengths
from base_model.text.tokens import describe_tokenizer
from base_model.train import script, trial
from base_model.train.planning import write_script
from base_model.train.settings import choice_of

QUESTIONS = 2  # of the held-out part, that are asked before and after


def list_files(model: str | Path) -> pd.DataFrame:
    """Every file of a model, one row each, by name.

    Columns: `file` (relative, with /), `size` (bytes), `parameters` (Int64, <NA> where a file holds none),
    `description`. Hidden files are left out. Raises ModelError when there is no such folder.
    """
    try:
        folder = folder_of(model)
    except ModelError as error:
        if (hub_id := hub_id_of(model)) is None or isinstance(error, UnknownModelError):
            raise
        files = remote.listing(hub_id)  # public for a gated model too
        warn(f"Files and sizes only. {error}")
        return files
    sizes = file_sizes(folder)
    headers = readable_headers(folder, sizes)
    counts = tensor_table(headers, read_config(folder), is_tied).groupby("file")["parameters"].sum()
    files = pd.DataFrame({"file": list(map(storable, sizes)), "size": list(sizes.values())})
    files["parameters"] = files["file"].map(counts).astype("Int64")
    files["description"] = files["file"].map(describe_file)
    return files


def directory_tree(model: str | Path) -> str:
    """The folder as a tree, one line per file and folder, with sizes in 1024s, and the Hub commit it came from."""
    folder = folder_of(model)
    sizes = file_sizes(folder)
    origin = ", ".join(commit[:8] for commit in download.commits(folder))
    head = f"{visible(folder.resolve().name)}/  {format_bytes(sum(sizes.values()))}" + (
        f"  (commit {origin})" if origin else ""
    )
    return "\n".join([head, *tree_lines(sizes)])


def read_tensors(model: str | Path) -> pd.DataFrame:
    """Every tensor of the model, from the safetensors headers alone: files in name order, rows in file order.

    Columns: `tensor`, `file`, `dtype` (as stored: F32, BF16, ...), `shape` (tuple), `elements` (stored),
    `parameters` (logical: a tied head that is stored again counts 0), `bytes`, `layer` (Int64, <NA> outside
    the layers), `component` (embedding, attention, mlp, norm, head, other).

    Raises ModelError for a header that is not valid or a file that is not whole.
    """
    found = locate(model)
    with without_collector():
        headers = model_headers(found.folder, found.headers)
        table = tensor_table(headers, read_config(found.folder), is_tied)
    warn_of_packed(found.folder, table)
    return table


def list_tensors(model: str | Path) -> pd.DataFrame:
    """Every tensor of the model, in the columns of `read_tensors`; without weights, as its config.json plans them.

    Then `file` is "planned", and a printed sentence says so. Raises ModelError.
    """
    folder = folder_of(model)
    if not only_described(folder):
        return read_tensors(model)
    print("There are no weights to read: names and shapes are those that transformers builds from config.json.")
    header = planned_header(read_planned(folder))  # a head that is tied is not listed
    return tensor_table({PLANNED: header}, read_config(folder), lambda _: False)


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result; if it fails with a ModelError, it prints why and returns None.

    For a page that goes on where a model lacks a tokenizer or weights. An argument that is None was skipped before,
    with its reason, so this is skipped silently.
    """
    if any(argument is None for argument in arguments):
        return None
    try:
        return function(*arguments)
    except ModelError as error:
        print(f"Skipped: {error}")
        return None


def run_folder(model: str | Path) -> Path:
    """Where a run on this model saves what it makes: runs/<model name>/ in the current folder."""
    return runs_folder() / run_name(Path(model) if hub_id_of(model) is None else str(model))


def open_data(model: str | Path, data: str | Path | None = None) -> Path | None:
    """The data file: yours, or else the project's own; None where the model has no tokenizer to read it.

    A printed sentence says so; plans then assume texts of one length. Raises ModelError if there is no such file.
    """
    if data and not in_home(data).is_file():
        raise ModelError(f"There is no file {visible(str(data))}. Set DATA to a .jsonl, .json, .csv or .parquet file.")
    if only_described(local_folder(model)):
        print("This model has no tokenizer to read the data, so every text is assumed to be TOKENS long.")
        return None
    return in_home(data) if data else example_data(has_template(folder_of(model, with_tokenizer=True)))


def check_model(model: str | Path) -> pd.DataFrame:
    """Every number that the folder states twice, compared; one row each.

    Columns: `check`, `expected` (what the index, a header or config.json says), `found` (what the headers or files
    hold), both as text, and `match` (bool).
    Raises ModelError when there is nothing to compare, or a header or JSON file cannot be read at all.
    """
    found = locate(model)
    return pd.DataFrame(run_checks(found.folder, found.headers))


def compare_models(models: Iterable[str | Path]) -> pd.DataFrame:
    """Models side by side, from headers and config.json; one row each, indexed by name. Read it as `readable(...).T`.

    Columns: `parameters`, `active` (used by one token: fewer than all in a mixture of experts), `bytes`, `dtype`,
    `bits_per_parameter`, `layers`, `hidden_size`, `intermediate_size`, `heads`, `kv_heads`, `vocabulary`, `context`
    (tokens), `tied`, and of each component its `..._share` of 0 to 1.
    """
    models = [models] if isinstance(models, str | Path) else list(models)
    return model_table([(model, folder_of(model), list_tensors(model)) for model in models])


def run_both(model: str | Path, prompt: str, max_new_tokens: int = 50, device: str = "cpu") -> list[Generation]:
    """Load a local model once, run both methods on it, print their answers as they come, and free the model.

    `device` may also be "accelerator", or "auto": all accelerators and the CPU. An interrupt keeps the text so far.

    An empty list, and a sentence that says why, for a model only on the Hub or a machine without an accelerator.
    """
    folder = local_folder(model)
    if (hub_id_of(model) and not is_complete(folder)) or only_described(folder):
        print(f"Skipped: the weights of {folder.name} are not on this disk.")
        return []
    devices = available_devices()
    if device == "accelerator" and len(devices) == 1:
        print("Skipped: this machine has no accelerator (Apple MPS or CUDA).")
        return []
    return load_and_run(folder, devices[-1] if device == "accelerator" else device, prompt, max_new_tokens)


def write_report(model: str | Path, folder: str | Path, more: Mapping[str, pd.DataFrame] | None = None) -> Path:
    """Write what was found to `folder`: report.json (with versions, commit and units), report.md and the charts.

    `more` adds tables by their names: `{"runs": comparison}`. Returns report.md's path; `read_report` reads it back.
    """
    more = {} if more is None else more
    if not isinstance(more, Mapping) or not all(isinstance(name, str) for name in more):
        raise ModelError('`more` must be tables by their names, such as {"runs": comparison}.')
    more = {name: table for name, table in more.items() if table is not None}  # None: it was skipped
    if odd := next((name for name, table in more.items() if not isinstance(table, pd.DataFrame)), None):
        raise ModelError(f"`more` holds {visible(odd)}, which is not a DataFrame. Leave it out.")
    files, tensors = list_files(model), read_tensors(model)
    tables = {"model": model_table([(model, folder_of(model), tensors)]), "files": files}
    tables |= {f"by_{group}": group_parameters(tensors, group) for group in ("component", "dtype", "layer")}
    tables |= {"checks": check_model(model), "tokenizer": describe_tokenizer(model), **more}
    about = {"name": local_folder(model).name, "commits": download.commits(folder_of(model))}
    return save_report(in_home(folder), about, tables, tensors)


def train_model(model: str | Path, row: Any, folder: Path, data: Any, steps: int) -> dict[str, pd.DataFrame]:
    """Write the script for a row, run it here for some steps, and return the resulting tables by name.

    `plan` (`check`, `planned`, `measured`, `difference`), `loss` on the held-out part (`step`, `loss`), and `answers`
    to two of its questions (`prompt`, `base`, `tuned`).
    """
    require_whole("steps", steps, trial.LEAST)
    if not is_complete(local_folder(model)):
        raise not_here(model)
    choice = choice_of(row)
    texts = example_data() if data is None else data
    text_lengths(model, texts, choice.tokens)  # first where a template can do no harm
    written = write_script(model, row, folder, data)
    print(f"Wrote {written}. It now runs for {steps:,} steps; its output goes to train.log next to it.")
    config = read_architecture(local_folder(model))
    measured = trial.compared(config, choice, trial.run_script(written, steps))
    prompts = script.questions(data, QUESTIONS)
    tuned = next(path for path in (written.with_name("adapter"), written.with_name("model")) if path.is_dir())
    table = answers(local_folder(model), tuned, prompts)
    return {"plan": measured, "loss": trial.losses(written), "answers": table}
