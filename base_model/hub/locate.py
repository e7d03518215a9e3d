"""Where a model is: a folder on this disk, found complete, or a Hub id to be read over the network."""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from base_model import ModelError, visible
from base_model.hub import access, remote
from base_model.read.folder import completeness, explain_absence, in_home, is_file, is_folder, names_in
from base_model.read.headers import Header

WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|index\.json)$|\.safetensors\.")
CHECKOUT = Path(__file__).resolve().parents[2]
# Models lie beside model_tools.py; where that is installed among other packages, in the current folder.
HERE = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
NEXT_STEP = 'Give a model folder, or a Hub id such as "meta-llama/Llama-3.2-3B-Instruct", or run `make demo`.'


def _path(model: str | Path) -> Path:
    if not str(model).strip():
        raise ModelError(f"No model was given. {NEXT_STEP}")
    return in_home(model)


def hub_id_of(model: str | Path) -> access.HubId | None:
    """The Hub id that `model` is, unless it is a folder: a folder that exists wins."""
    return None if is_folder(_path(model)) else access.parse_id(str(model))


def local_folder(model: str | Path) -> Path:
    """Where a model is, or would be, on this disk: the folder itself, or one of its name next to model_tools.py."""
    path, hub_id = _path(model), hub_id_of(model)
    if hub_id:
        return HERE / hub_id.folder
    return HERE / path if path.name == str(model) and not is_folder(path) else path


def is_complete(folder: Path) -> bool:
    """Whether a folder can be loaded: config.json, a tokenizer, every shard at its full length."""
    return is_folder(folder) and not completeness(folder).missing


def only_described(folder: Path) -> bool:
    """Whether a folder has a config.json and no weights, not even an index that promises some."""
    return is_file(folder / "config.json") and not any(WEIGHTS.search(name) for name in names_in(folder))


def nearest(folder: Path) -> str:
    """A hint at a folder of almost this name."""
    names = [path.name for path in HERE.iterdir() if (path / "config.json").is_file()]
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def not_here(model: str | Path) -> ModelError:
    """What to say where weights on this disk are needed."""
    name = visible(str(model))
    return ModelError(
        f"{name} is not complete on this disk. `python model_tools.py get {name}` downloads it, or `fetch_model` in "
        f"Python.{nearest(local_folder(model))}"
    )


@contextmanager
def hint_at_spelling(folder: Path) -> Iterator[None]:
    """Where the Hub does not know a model, a folder of almost its name may be what was meant."""
    try:
        yield
    except access.UnknownModelError as error:
        raise access.UnknownModelError(f"{error}{nearest(folder)}") from error


@dataclass(frozen=True)
class Located:
    """The folder to read, and the headers that were read already to see that it is complete."""

    folder: Path
    headers: dict[str, Header] = field(default_factory=dict)


def locate(model: str | Path, with_tokenizer: bool = False) -> Located:
    """The local folder if it is complete or no Hub id, else a sparse copy of the Hub's. Raises ModelError."""
    folder, hub_id = local_folder(model), hub_id_of(model)
    if hub_id:
        found = completeness(folder) if is_folder(folder) else None
        if found and not found.missing:
            return Located(folder, found.headers)
        with hint_at_spelling(folder):
            return Located((remote.mirror_with_tokenizer if with_tokenizer else remote.mirror)(hub_id))
    if not is_folder(folder):
        raise ModelError(f"There is no folder {folder}. {NEXT_STEP}{nearest(folder)}")
    if not any(is_file(folder / name) for name in names_in(folder)):
        raise ModelError(f"{folder} holds no files: {explain_absence(folder)}. {NEXT_STEP}")
    return Located(folder)


def folder_of(model: str | Path, with_tokenizer: bool = False) -> Path:
    """The folder of `locate` alone, for those who read no headers."""
    return locate(model, with_tokenizer).folder
