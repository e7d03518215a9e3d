"""A training data set: a file, read by `datasets` into Arrow so that it may be larger than memory, or a `Dataset`."""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, visible
from base_model.read.folder import in_home, is_file, read_json

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# The columns that TRL's SFTTrainer looks for, in its order; one of these sets must be there.
FORMATS = (("input_ids",), ("prompt", "completion"), ("messages",), ("conversations",), ("text",))
OTHERS = ("tools", "chat_template_kwargs", "labels", "completion_mask", "assistant_masks")  # it takes these, too
IN_WORDS = "`text`, or `prompt` and `completion`, or `messages`"
LONGEST_LINE = 16 * 2**20  # bytes; some four million tokens, more than any model reads at once
LARGEST_ARRAY = 256 * 2**20  # bytes of a .json file that is one array, which `datasets` must read whole
BLOCK = 2**20
# How gzip, bzip2, xz, zip, zstandard and LZ4 begin: `datasets` would unpack them, whatever the name says.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")


def example_data(chat: bool = True) -> Path:
    """The project's own small data set: questions and answers about the terms of its page, as JSONL for TRL.

    Conversations, or plain text for a model without a chat template.
    """
    return Path(__file__).resolve().parents[1] / "data" / ("questions.jsonl" if chat else "questions_plain.jsonl")


def has_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template."""
    settings = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def read_data(data: Any) -> Any:
    """The `datasets.Dataset` of a .jsonl, .json, .csv or .parquet file, or the one given, with the columns TRL uses.

    A file is read once into the usual cache of `datasets`. No loading script is looked for and nothing is sent.
    Raises ModelError, which names the line of broken JSON and the columns that are missing.
    """
    dataset = _read_file(in_home(data)) if isinstance(data, str | Path) else _in_hand(data)
    _require_columns(name_of(data), dataset)
    return dataset.select_columns([name for name in dataset.column_names if name in _USED])


_USED = {column for columns in FORMATS for column in columns} | set(OTHERS)


def name_of(data: Any) -> str:
    """What to call the data in a sentence."""
    return visible(Path(data).name) if isinstance(data, str | Path) else "the data set"


def _in_hand(data: Any) -> Any:
    from datasets import Dataset

    if not isinstance(data, Dataset):
        raise ModelError(
            f"The data must be a file or a `datasets.Dataset`, not {type(data).__name__}. Of several splits, give one: "
            'data["train"].'
        )
    if data.format["type"] == "custom":
        raise ModelError("The data set runs a transform of its own, which SFTTrainer refuses. Apply it with map().")
    return data.with_format(None)


def _read_file(path: Path) -> Any:
    _require_file(path)
    if path.suffix != ".parquet":
        _require_short_lines(path)
    import datasets

    read = getattr(datasets.Dataset, f"from_{KINDS[path.suffix]}")
    try:
        with quiet():
            dataset = read(glob.escape(str(path)))
    except Exception as error:  # Arrow, pandas and datasets fail in ways of their own
        raise ModelError(f"{name_of(path)} cannot be read: {_fault(path, error)} Correct it.") from error
    return dataset


def _require_file(path: Path) -> None:
    if path.suffix not in KINDS:
        raise ModelError(
            f"{visible(str(path))} is not a {', '.join(KINDS)} file. Only these are read, never a script: save the "
            "data set as one, or load it and give the `datasets.Dataset`."
        )
    if not is_file(path):
        raise ModelError(f"There is no file {visible(str(path))}. Correct its name, or give another file.")
    if not path.stat().st_size:
        raise ModelError(f"{name_of(path)} is empty. Give a file with at least one example.")
    if os.path.expandvars(path) != str(path) or "::" in str(path):
        raise ModelError(f"{visible(str(path))} means another file to `datasets`, because of $ or ::. Rename it.")
    with path.open("rb") as file:
        if file.read(6).startswith(COMPRESSED):
            raise ModelError(f"{name_of(path)} is compressed, whatever its name says. Unpack it first.")


def _require_short_lines(path: Path) -> None:
    """A reader holds a whole line in memory, and of an array the whole file: stop before it does."""
    with path.open("rb") as file:
        is_array = path.suffix == ".json" and file.read(BLOCK).lstrip().startswith(b"[")
    if is_array and path.stat().st_size > LARGEST_ARRAY:
        raise ModelError(
            f"{name_of(path)} is one array of {path.stat().st_size:,} bytes, which must be read whole; the limit is "
            f"{LARGEST_ARRAY:,}. Write one example per line, as .jsonl."
        )
    number = None if is_array else _long_line(path)
    if number is not None:
        raise ModelError(
            f"Line {number:,} of {name_of(path)} is longer than {LONGEST_LINE:,} bytes, and no model reads an example "
            "of that length. Write one example per line, as .jsonl."
        )


def _long_line(path: Path) -> int | None:
    """The number of the first line above the limit, found without holding it."""
    number, length = 1, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            first = block.find(b"\n")
            if length + (len(block) if first < 0 else first) > LONGEST_LINE:
                return number
            number += block.count(b"\n")
            length = length + len(block) if first < 0 else len(block) - block.rfind(b"\n") - 1
    return None


# What `datasets` says of a file without rows: of a .csv or .json, and of a .parquet.
NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own messages, and with its progress bar only where somebody watches."""
    import datasets
    from datasets.utils import logging

    level, silent = logging.get_verbosity(), datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if not watched():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            datasets.enable_progress_bars()


def watched() -> bool:
    """Does anybody see a progress bar? Not in a pipe, a file or an executed notebook."""
    import sys

    from huggingface_hub.utils import are_progress_bars_disabled

    return sys.stderr.isatty() and not are_progress_bars_disabled()


def _fault(path: Path, error: Exception) -> str:
    """Where a file is broken: for JSON the line, else in the words of the library that gave up."""
    if any(words in f"{error} {error.__cause__}" for words in NO_ROWS):
        return "it holds no examples."
    where = _broken_line(path) if KINDS[path.suffix] == "json" else None
    return where or f"{brief(error.__cause__ or error)}."


def _broken_line(path: Path) -> str | None:
    """The first line that is not JSON, or not an object of names and values."""
    with path.open("rb") as file:
        if path.suffix == ".json" and file.read(BLOCK).lstrip().startswith(b"["):
            return _broken_array(path)
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
                return f"line {number:,} is not JSON: {brief(error)}."
            if not isinstance(row, dict):
                return f"line {number:,} is not an object of names and values."
    return None


def _broken_array(path: Path) -> str | None:
    try:
        rows = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        return f"line {error.lineno:,} is not JSON: {brief(error)}."
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {brief(error)}."
    number = next((number for number, row in enumerate(rows) if not isinstance(row, dict | str)), None)
    return None if number is None else f"row {number:,} (counted from 0) is not an object of names and values."


def _require_columns(name: str, dataset: Any) -> None:
    columns = set(dataset.column_names)
    if not len(dataset):
        raise ModelError(f"{name} holds no examples. Give a data set with at least one row.")
    if columns & {"image", "images"}:
        raise ModelError(f"{name} holds images, and only text is supported. Give a data set of text.")
    if any(columns >= set(wanted) for wanted in FORMATS):
        return
    found = ", ".join(f"`{visible(name)}`" for name in sorted(columns)[:10]) or "none"
    lacking = "".join(f" `{other}` is missing next to `{one}`." for one, other in _PAIRS if one in columns)
    columns_are = f"Its columns: {found}. Rename the ones that hold the text."
    raise ModelError(f"{name} is in none of TRL's formats: {IN_WORDS}.{lacking} {columns_are}")


_PAIRS = (("prompt", "completion"), ("completion", "prompt"))
