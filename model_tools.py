"""Look at a base language model before fine-tuning it: files, headers, tokenizer, charts, and a first run.

Everything a reader needs is here: `import model_tools as mt`. `model` is always a local folder or a Hub id
("org/name"); a folder that exists wins. Reading, drawing and running live in the rooms of `base_model/`;
this module joins them. Importing it loads neither torch nor transformers nor matplotlib.
"""

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from base_model import ModelError, ModelWarning, checkpoint, download, format_bytes, format_count, hub, remote, visible
from base_model.charts import plot_components, plot_layers, plot_models, plot_parameters, plot_storage, save_chart
from base_model.checks import run_checks
from base_model.comparison import model_table
from base_model.download import remove_leftovers
from base_model.files import describe_file, tree_lines
from base_model.generation import generate_manually, generate_with_pipeline, load_and_run
from base_model.limits import limits_in_words, memory_bandwidth, speed_limit
from base_model.loading import available_devices, load_model
from base_model.locate import NEXT_STEP, folder_of, hint_at_spelling, hub_id_of, is_complete, local_folder, nearest
from base_model.machine import this_machine
from base_model.plan_charts import plot_adapters, plot_insertion, plot_memory, plot_training
from base_model.planning import (
    compare_training,
    default_adapters,
    insertion_points,
    plan_adapters,
    plan_inference,
    plan_training,
    skeleton,
)  # fmt: skip
from base_model.plans import kv_cache_bytes
from base_model.published import check_plans
from base_model.report import compare_runs, markdown_table, readable, run_conditions, show, takeaways, to_markdown
from base_model.run_charts import plot_limits, plot_runs
from base_model.served import generate_served
from base_model.summary import read_report, save_report
from base_model.tensors import group_parameters, tensor_table, without_collector
from base_model.timing import Generation
from base_model.tokens import describe_tokenizer, draw_tokens, show_prompt, show_tokens
from base_model.trust import agreement, check_runs

__all__ = [
    "Generation", "ModelError", "ModelWarning", "agreement", "available_devices", "check_model", "check_plans",
    "check_runs", "compare_models", "compare_runs", "compare_training", "default_adapters", "describe_tokenizer",
    "directory_tree", "draw_tokens", "fetch_model", "format_bytes", "format_count", "generate_manually",
    "generate_served", "generate_with_pipeline", "group_parameters", "hub_facts", "insertion_points", "kv_cache_bytes",
    "limits_in_words", "list_files", "load_model", "markdown_table", "memory_bandwidth", "open_model", "plan_adapters",
    "plan_inference", "plan_training", "plot_adapters", "plot_components", "plot_insertion", "plot_layers",
    "plot_limits", "plot_memory", "plot_models", "plot_parameters", "plot_runs", "plot_storage", "plot_training",
    "read_report", "read_tensors", "readable", "remove_leftovers", "run_both", "run_conditions", "save_chart", "show",
    "show_prompt", "show_tokens", "skeleton", "speed_limit", "takeaways", "this_machine", "to_markdown",
    "write_report",
]  # fmt: skip


# --- The model: a folder, or a Hub id ------------------------------------------------------------------------


def fetch_model(model: str | Path, folder: str | Path | None = None, verify: bool = False) -> Path:
    """The complete local folder of a model: found on the disk, or downloaded from the Hub.

    `model` is a folder or a Hub id ("org/name", or "org/name@revision"); `folder` is where a download goes, by
    default the name after the slash, beside this module. Complete means config.json, a tokenizer, and every shard
    that the index names at the length its header implies. With a complete folder no request is made, except by
    `verify`, which compares every file's hash with the Hub's.

    Raises ModelError: which file is missing, short or changed; what to do about a gated or missing model or a full
    disk. Ctrl-C stops a download within two seconds and leaves the finished files.
    """
    target, hub_id = Path(folder) if folder is not None else local_folder(model), hub_id_of(model)
    if verify and hub_id is None:
        raise ModelError(f'`verify` asks the Hub: fetch_model("org/name", folder={str(target)!r}, verify=True).')
    missing = checkpoint.missing_parts(target) if checkpoint.is_folder(target) else [f"{target} does not exist"]
    if missing and hub_id is None:
        raise ModelError(f"{target} is not a complete model: {'; '.join(missing)}. {NEXT_STEP}{nearest(target)}")
    if missing and hub_id:
        with hint_at_spelling(target):
            download.download(hub_id, target)
        if missing := checkpoint.missing_parts(target):
            raise ModelError(
                f"{model} was downloaded, but {'; '.join(missing)}. Delete that file, then run this again."
            )
    if hub_id and verify:
        download.verify(hub_id, target)
    return target


def open_model(model: str | Path, download_it: bool = True) -> Path | str:
    """What the other functions should read: the complete local folder, downloaded if it must be and may be.

    Without a download, or the disk space for one, the Hub id itself, which is then read over the network; a sentence
    says so. Raises ModelError as `fetch_model` does.
    """
    hub_id = hub_id_of(model)
    reason = "no download was wished"
    if download_it or hub_id is None or is_complete(local_folder(model)):
        try:
            return fetch_model(model)
        except download.NoSpaceError as error:
            reason = str(error)
    print(f"{model} is read over the network, headers only ({reason}). What needs weights is skipped.")
    return str(model)


def hub_facts(model: str) -> pd.DataFrame:
    """What the Hub tells of a model to anyone, gated or not, in one request; columns `fact`, `value` (text).

    Its page, commit, access, licence, files, parameters. Raises ModelError when there is no such model, or no Hub.
    """
    hub_id = hub.parse_id(str(model))
    if hub_id is None:
        raise ModelError(f'{model} is no Hub id; those have the form "org/name".')
    return pd.DataFrame(hub.public_facts(hub_id).items(), columns=["fact", "value"])


# --- Its files -----------------------------------------------------------------------------------------------


def list_files(model: str | Path) -> pd.DataFrame:
    """Every file of a model, one row each, by name.

    Columns: `file` (relative, with /), `size` (bytes), `parameters` (Int64, <NA> where a file holds none),
    `description`. Hidden files are left out. Raises ModelError when there is no such folder.
    """
    try:
        folder = folder_of(model)
    except ModelError as error:
        if (hub_id := hub_id_of(model)) is None or isinstance(error, hub.UnknownModelError):
            raise
        files = remote.listing(hub_id)  # public for a gated model too
        warnings.warn(f"Files and sizes only. {error}", ModelWarning, stacklevel=2)
        return files
    sizes = checkpoint.file_sizes(folder)
    headers = checkpoint.readable_headers(folder, sizes)
    counts = tensor_table(headers, checkpoint.read_config(folder)).groupby("file")["parameters"].sum()
    files = pd.DataFrame({"file": list(sizes), "size": list(sizes.values())})
    files["parameters"] = files["file"].map(counts).astype("Int64")
    files["description"] = files["file"].map(describe_file)
    return files


def directory_tree(model: str | Path) -> str:
    """The folder as a tree, one line per file and folder, with sizes in 1024s, and the Hub commit it came from."""
    folder = folder_of(model)
    sizes = checkpoint.file_sizes(folder)
    origin = ", ".join(commit[:8] for commit in download.commits(folder))
    head = f"{visible(folder.resolve().name)}/  {format_bytes(sum(sizes.values()))}" + (
        f"  (commit {origin})" if origin else ""
    )
    return "\n".join([head, *tree_lines(sizes)])


# --- Its headers ---------------------------------------------------------------------------------------------


def read_tensors(model: str | Path) -> pd.DataFrame:
    """Every tensor of the model, from the safetensors headers alone: files in name order, rows in file order.

    Columns: `tensor`, `file`, `dtype` (as stored: F32, BF16, ...), `shape` (tuple), `elements` (stored),
    `parameters` (logical: a tied head that is stored again counts 0), `bytes`, `layer` (Int64, <NA> outside
    the layers), `component` (embedding, attention, mlp, norm, head, other).

    Raises ModelError for a header that is not valid or a file that is not whole.
    """
    folder = folder_of(model)
    with without_collector():
        return tensor_table(checkpoint.model_headers(folder), checkpoint.read_config(folder))


def check_model(model: str | Path) -> pd.DataFrame:
    """Every number that the folder states twice, compared; one row each.

    Columns: `check`, `expected` (what the index, a header or config.json says), `found` (what the headers or files
    hold), both as text, and `match` (bool).
    Raises ModelError when there is nothing to compare, or a header or JSON file cannot be read at all.
    """
    return pd.DataFrame(run_checks(folder_of(model)))


# --- A first run ---------------------------------------------------------------------------------------------


def run_both(model: str | Path, prompt: str, max_new_tokens: int = 50, device: str = "cpu") -> list[Generation]:
    """Load a local model once, run both methods on it, print their answers as they come, and free the model.

    `device` may also be "accelerator", or "auto": all accelerators and the CPU. An interrupt keeps what was said.

    An empty list, and a sentence that says why, for a model that is only on the Hub or a machine without accelerator.
    """
    folder = local_folder(model)
    if hub_id_of(model) and not is_complete(folder):
        print(f"Skipped: the weights of {model} are not on this disk, only its headers were read.")
        return []
    devices = available_devices()
    if device == "accelerator" and len(devices) == 1:
        print("Skipped: this machine has no accelerator (Apple MPS or CUDA).")
        return []
    return load_and_run(folder, devices[-1] if device == "accelerator" else device, prompt, max_new_tokens)


# --- The result: side by side, and as files ------------------------------------------------------------------


def compare_models(models: Iterable[str | Path]) -> pd.DataFrame:
    """Models side by side, from headers and config.json; one row each, indexed by name. Read it as `readable(...).T`.

    Columns: `parameters`, `bytes`, `dtype`, `bits_per_parameter`, `layers`, `hidden_size`, `intermediate_size`,
    `heads`, `kv_heads`, `vocabulary`, `context` (tokens), `tied`, and of each component its `..._share` of 0 to 1.
    """
    models = [models] if isinstance(models, str | Path) else list(models)
    return model_table([(model, folder_of(model), read_tensors(model)) for model in models])


def write_report(model: str | Path, folder: str | Path, more: Mapping[str, pd.DataFrame] | None = None) -> Path:
    """Save what was found in `folder`: report.json (with versions, commit and units), report.md and the charts.

    `more` adds tables by their names: `{"runs": comparison}`. Gives the path of report.md; `read_report` reads it back.
    """
    more, files, tensors = dict(more or {}), list_files(model), read_tensors(model)
    tables = {"model": model_table([(model, folder_of(model), tensors)]), "files": files}
    tables |= {f"by_{group}": group_parameters(tensors, group) for group in ("component", "dtype", "layer")}
    tables |= {"checks": check_model(model), "tokenizer": describe_tokenizer(model), **more}
    about = {"name": local_folder(model).name, "commits": download.commits(folder_of(model))}
    return save_report(Path(folder).expanduser(), about, tables, tensors)


def main() -> None:
    """`python model_tools.py MODEL`: bring the model here, with a progress bar, before the notebook is executed."""
    try:
        open_model(sys.argv[1], os.environ.get("DOWNLOAD", "yes") == "yes")
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
