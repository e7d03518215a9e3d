"""Where a model is: a folder on this disk, found complete, or a Hub id to be read over the network."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base_model import ModelError, checkpoint, hub, remote

HERE = Path(__file__).resolve().parent.parent  # models lie beside model_tools.py
NEXT_STEP = 'Give a model folder, or a Hub id such as "meta-llama/Llama-3.2-3B-Instruct", or run `make demo`.'


def _path(model: str | Path) -> Path:
    if not str(model).strip():
        raise ModelError(f"No model was named. {NEXT_STEP}")
    return Path(model).expanduser()


def hub_id_of(model: str | Path) -> hub.HubId | None:
    """The Hub id that `model` is, unless it is a folder: a folder that exists wins."""
    return None if checkpoint.is_folder(_path(model)) else hub.parse_id(str(model))


def local_folder(model: str | Path) -> Path:
    """Where a model is, or would be, on this disk: the folder itself, or one of its name beside this module."""
    path, hub_id = _path(model), hub_id_of(model)
    if hub_id:
        return HERE / hub_id.folder
    return HERE / path if path.name == str(model) and not checkpoint.is_folder(path) else path


def is_complete(folder: Path) -> bool:
    """Whether a folder can be loaded: config.json, a tokenizer, every shard at its full length."""
    return checkpoint.is_folder(folder) and not checkpoint.missing_parts(folder)


def nearest(folder: Path) -> str:
    """A hint at a folder of almost this name."""
    names = [path.name for path in HERE.iterdir() if (path / "config.json").is_file()]
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f" Did you mean {close[0]}?" if close else ""


@contextmanager
def hint_at_spelling(folder: Path) -> Iterator[None]:
    """Where the Hub does not know a model, a folder of almost its name may be what was meant."""
    try:
        yield
    except hub.UnknownModelError as error:
        raise hub.UnknownModelError(f"{error}{nearest(folder)}") from error


def folder_of(model: str | Path, with_tokenizer: bool = False) -> Path:
    """The folder to read: the local one if it is complete or no Hub id, else a sparse copy of the Hub's."""
    folder, hub_id = local_folder(model), hub_id_of(model)
    if hub_id and not is_complete(folder):
        with hint_at_spelling(folder):
            return (remote.mirror_with_tokenizer if with_tokenizer else remote.mirror)(hub_id)
    if not checkpoint.is_folder(folder):
        raise ModelError(f"There is no folder {folder}. {NEXT_STEP}{nearest(folder)}")
    if not any(checkpoint.is_file(folder / name) for name in checkpoint.names_in(folder)):
        raise ModelError(f"{folder} holds no file: {checkpoint.explain_absence(folder)}. {NEXT_STEP}")
    return folder
