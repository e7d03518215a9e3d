"""A model on the Hub, looked at without a download: its headers, in a sparse copy of its folder.

Every file is there by name and size, as a hole; config.json, the index and the headers of the weights are real. So
whatever reads a folder reads the Hub: a 405B model takes one small request per shard, and some kilobytes on the disk.
"""

import atexit
import functools
import re
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, storable, visible
from base_model.hub.access import HubId, faults_in_words, model_info
from base_model.hub.download import RECORDS, commits
from base_model.hub.limits import side_by_side
from base_model.read.descriptions import describe_file
from base_model.read.folder import (
    INDEX_FILE,
    SINGLE_FILE,
    TOKENIZER_FILES,
    read_config,
    read_index,
)
from base_model.read.headers import AGAIN
from base_model.read.limits import MAX_HEADER_BYTES, MAX_JSON_BYTES
from base_model.scratch import scratch_folder

SETTINGS = ("config.json", INDEX_FILE, "quantize_config.json", "generation_config.json")
TOKENIZER = (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json")
CONNECTIONS = 8


@functools.cache  # one look per process: every table and chart of a run shows the same commit
def mirror(model: HubId) -> Path:
    """A sparse copy of a model on the Hub, deleted when Python ends.

    Requests: one for the list, one for each of `SETTINGS`, one for each weight file. Raises ModelError, for a gated
    model without access too.
    """
    info = model_info(model)
    folder = _scratch() / model.folder
    sizes = {file.rfilename: file.size or 0 for file in info.siblings if _is_shown(file.rfilename)}
    for name, size in sizes.items():
        _write(folder / name, b"", size)
    _note_commit(folder, info.sha)
    _fill(model, folder, [name for name in SETTINGS if name in sizes])
    guesses = _header_guesses(folder, sizes)
    calls = [partial(_get_header, model, info.sha, name, guess, sizes[name]) for name, guess in guesses.items()]
    with faults_in_words(model.name):
        headers = side_by_side(calls, CONNECTIONS)
    for name, content in zip(guesses, headers, strict=True):
        _write(folder / name, content, sizes[name])
    return folder


@functools.cache
def mirror_with_tokenizer(model: HubId) -> Path:
    """The same copy, after one request more for each of the tokenizer's files."""
    folder = mirror(model)
    templates = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*.jinja")]
    _fill(model, folder, [name for name in (*TOKENIZER, *TEMPLATES, *templates) if (folder / name).is_file()])
    return folder


def _fill(model: HubId, folder: Path, names: list[str]) -> None:
    """Put the content of some small files in the place of their holes."""
    commit = commits(folder)[0]
    with faults_in_words(model.name):
        contents = side_by_side([partial(_get, model, commit, name) for name in names], CONNECTIONS)
    for name, content in zip(names, contents, strict=True):
        _write(folder / name, content, len(content))


def listing(model: HubId) -> pd.DataFrame:
    """The columns of `list_files` from the public list alone; no parameters, for a model that may not be read."""
    files = pd.DataFrame(
        [(storable(file.rfilename), file.size or 0) for file in model_info(model).siblings], columns=["file", "size"]
    )
    files = files[~files["file"].str.contains(r"(?:^|/)\.")].sort_values("file", ignore_index=True)
    files["parameters"] = pd.Series(pd.NA, index=files.index, dtype="Int64")
    files["description"] = files["file"].map(describe_file)
    return files


def _scratch() -> Path:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(scratch_folder())


def _is_shown(name: str) -> bool:
    """Hidden files are left out, as in a folder, and names that lead elsewhere: this is our own disk."""
    return not re.search(r"^/|[\\\0:]|(^|/)(\.|/|$)", name)


def _write(path: Path, content: bytes, size: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.truncate(size)  # what lies beyond the content is a hole
    except (OSError, OverflowError) as error:  # too long a name, too large a size, or a file where a folder must be
        words = f"{visible(path.name)}, {size:,} bytes, cannot be created in {tempfile.gettempdir()}"
        raise ModelError(f"{words}: {error}. Set TMPDIR to another disk, or pick another model.") from error


def _header_guesses(folder: Path, sizes: dict[str, int]) -> dict[str, int]:
    """`{weight file: bytes}` that should hold its header: from the names in the index, a little more than it needs."""
    try:
        index, _ = read_index(folder), read_config(folder)
    except ModelError as error:
        raise ModelError(f"On the Hub, {str(error).removesuffix(AGAIN)}Tell the model's authors.") from error
    if index is None and SINGLE_FILE not in sizes:
        raise ModelError(f"There is neither {SINGLE_FILE} nor {INDEX_FILE} on the Hub: there are no headers to read.")
    # 100 kB are what the Hub client asks for, enough for 97 % of models; adapters and other strays are listed too
    flat = (name for name in sizes if "/" not in name and not name.startswith("consolidated"))
    guesses = {name: 100_000 for name in flat if name.endswith(".safetensors")}
    if index is None or SINGLE_FILE in sizes:
        return guesses
    if absent := [shard for shard in index.shards if shard not in sizes]:
        raise ModelError(f"{INDEX_FILE} names {visible(absent[0])}, which is not on the Hub. Tell the model's authors.")
    guesses |= dict.fromkeys(index.shards, 200)
    for tensor, shard in index.weight_map.items():
        guesses[shard] += len(tensor) + 110  # quotes, keys, type, shape and offsets
    return guesses


def _get_header(model: HubId, commit: str, name: str, guess: int, size: int) -> bytes:
    """A weight file's first bytes: its length field and header, as far as the file goes."""
    start = _get(model, commit, name, range(min(guess, size))) if size else b""
    end = min(8 + int.from_bytes(start[:8], "little"), size)
    if len(start) < end <= 8 + MAX_HEADER_BYTES:
        start += _get(model, commit, name, range(len(start), end))
    return start[:end]


def _get(model: HubId, commit: str, name: str, part: range | None = None) -> bytes:
    """A small file, or a part of any; what a server sends beyond that is not waited for."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers: dict[str, Any] = build_hf_headers()
    if part:  # compressed, a part would be one of other bytes
        headers |= {"Range": f"bytes={part.start}-{part.stop - 1}", "Accept-Encoding": "identity"}
    url, content = hf_hub_url(model.name, name, revision=commit), bytearray()
    with http_stream_backoff("GET", url, headers=headers, timeout=30, max_retries=2) as response:
        hf_raise_for_status(response)
        skip = part.start if part and response.status_code == 200 else 0  # 200: the whole file, whatever was asked for
        end = skip + len(part) if part else MAX_JSON_BYTES + 1  # one more, so that what is too long is seen to be
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= end:
                break
    return bytes(content[skip:end])


def _note_commit(folder: Path, commit: str) -> None:
    """The same note as the Hub client's, so that a folder tells its commit in one way."""
    _write(folder / RECORDS / "config.json.metadata", note := f"{commit}\n\n{time.time()}\n".encode(), len(note))
