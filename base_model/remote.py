"""A model on the Hub, looked at without a download: its headers, in a sparse copy of its folder.

Every file is there by name and size, as a hole; config.json, the index and the headers of the weights are real. So
whatever reads a folder reads the Hub: a 405B model takes one small request per shard, and some kilobytes on the disk.
"""

import atexit
import functools
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from base_model import ModelError, visible
from base_model.checkpoint import INDEX_FILE, SINGLE_FILE, TOKENIZER_FILES, read_index
from base_model.download import RECORDS
from base_model.files import describe_file
from base_model.headers import MAX_HEADER_BYTES
from base_model.hub import HubId, faults_in_words, model_info

SETTINGS = ("config.json", INDEX_FILE, "quantize_config.json", "generation_config.json")
TOKENIZER = (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
CONNECTIONS = 8


@functools.cache  # one look per process: every table and chart of a run shows the same commit
def mirror(model: HubId, with_tokenizer: bool = False) -> Path:
    """A sparse copy of a model on the Hub, deleted when Python ends.

    Requests: one for the list, one for each of `SETTINGS`, one for each weight file; with the tokenizer's files, one
    each. Raises ModelError, for a gated model without access too.
    """
    info = model_info(model)
    folder = _scratch() / model.folder
    sizes = {file.rfilename: file.size or 0 for file in info.siblings if _is_inside(file.rfilename)}
    for name, size in sizes.items():
        _write(folder / name, b"", size)
    wanted = SETTINGS + (TOKENIZER + TEMPLATES if with_tokenizer else ())
    with faults_in_words(model.name), ThreadPoolExecutor(CONNECTIONS) as pool:
        whole = [name for name in wanted if name in sizes]
        for name, content in zip(whole, pool.map(lambda name: _get(model, info.sha, name), whole), strict=True):
            _write(folder / name, content, len(content))
        guesses = _header_guesses(folder, sizes)
        headers = pool.map(lambda name: _get_header(model, info.sha, name, guesses[name]), guesses)
        for name, content in zip(guesses, headers, strict=True):
            _write(folder / name, content, sizes[name])
    _note_commit(folder, info.sha)
    return folder


def listing(model: HubId) -> pd.DataFrame:
    """The columns of `list_files` from the public list alone; no parameters, for a model that may not be read."""
    files = pd.DataFrame(
        [(file.rfilename, file.size or 0) for file in model_info(model).siblings], columns=["file", "size"]
    )
    files = files[~files["file"].str.contains(r"(?:^|/)\.")].sort_values("file", ignore_index=True)
    files["parameters"] = pd.Series(pd.NA, index=files.index, dtype="Int64")
    files["description"] = files["file"].map(describe_file)
    return files


def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="model-headers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_inside(name: str) -> bool:
    """The Hub checks its names; this is our own disk."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\\" not in name


def _write(path: Path, content: bytes, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)  # what lies beyond the content is a hole


def _header_guesses(folder: Path, sizes: dict[str, int]) -> dict[str, int]:
    """`{weight file: bytes}` that should hold its header: from the names in the index, a little more than it needs."""
    index = read_index(folder)
    if SINGLE_FILE in sizes:
        return {SINGLE_FILE: 100_000}  # what the Hub client asks for; enough for 97 % of models
    if index is None:
        raise ModelError(f"There is neither {SINGLE_FILE} nor {INDEX_FILE} on the Hub: no headers to read there.")
    guesses = dict.fromkeys(index.shards, 200)
    for tensor, shard in index.weight_map.items():
        guesses[shard] += len(tensor) + 110  # quotes, keys, type, shape and offsets
    absent = [shard for shard in guesses if shard not in sizes]
    if absent:
        raise ModelError(f"{INDEX_FILE} names {visible(absent[0])}, which is not on the Hub. Tell the model's authors.")
    return guesses


def _get_header(model: HubId, commit: str, name: str, guess: int) -> bytes:
    """A weight file's first bytes: its length field and header."""
    start = _get(model, commit, name, f"bytes=0-{guess - 1}")
    length = 8 + int.from_bytes(start[:8], "little")
    if length > len(start) and length <= MAX_HEADER_BYTES:
        start += _get(model, commit, name, f"bytes={len(start)}-{length - 1}")
    return start[:length]


def _get(model: HubId, commit: str, name: str, part: str | None = None) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers: dict[str, Any] = build_hf_headers() | ({"Range": part} if part else {})
    response = get_session().get(hf_hub_url(model.name, name, revision=commit), headers=headers, timeout=30)
    hf_raise_for_status(response)
    return response.content


def _note_commit(folder: Path, commit: str) -> None:
    """The same note as the Hub client's, so that a folder tells its commit in one way."""
    _write(folder / RECORDS / "config.json.metadata", note := f"{commit}\n\n{time.time()}\n".encode(), len(note))
