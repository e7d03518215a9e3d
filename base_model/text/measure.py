"""Prepare some rows of a data set in a process of its own, which a template that runs away takes down alone.

Started by `processes.py`, which sends a pickled `Task`. Written into the folder that is named: `rows`, a record or a
line of JSON for each row, whose growth is the progress; `at`, the number of the row at work; `fault`, why there are no
more; `notes`, what TRL warns of.
"""

import json
import logging
import os
import pickle
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np

from base_model import ModelError, brief
from base_model.text.preparation import Numbered, Recipe, Row, RowError, batches, prepare, recipe_for, trained_in
from base_model.text.tokenizer import embedding_rows, load_tokenizer, stated_ids

RECORD = np.dtype(
    [("tokens", "<i8"), ("trained", "<i8"), ("empty", "?"), ("doubled", "?"), ("ends", "?"), ("content", "<u8")]
)
MEMORY = 4 * 2**30  # bytes of address space for the work, on top of the libraries and the mapped file
SECONDS = 5.0  # of the processor's time for some hundred rows, and more where they are long:
CHARACTERS_PER_SECOND = 50_000  # a tokenizer splits ten times as many


@dataclass(frozen=True)
class Task:
    """Some rows of a data set, by their numbers in the whole, and how SFTTrainer is set."""

    model: Path
    name: str  # of the data, in a sentence
    dataset: Any = None
    numbers: Sequence[int] = ()
    max_length: int | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    with_tokens: bool = False  # the tokens themselves, not facts about them


@dataclass(frozen=True)
class Marks:
    """The ids that are looked for: what begins a text, what ends one."""

    begin: int | None
    ends: frozenset[int]


def main() -> None:
    """Do the task; being killed by a limit of time or memory is an answer, too."""
    folder = Path(sys.argv[1])
    task = pickle.load(sys.stdin.buffer)  # written by the process that started this one
    logging.getLogger("trl").addHandler(notes := _Notes())
    try:
        _work(folder, task)
    except ModelError as error:
        (folder / "fault").write_text(str(error), encoding="utf-8")
        sys.exit(1)
    (folder / "notes").write_text(json.dumps(notes.said), encoding="utf-8")


class _Notes(logging.Handler):
    """Keeps what TRL warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Add one warning, with its arguments in place."""
        self.said.append(record.getMessage())


def _work(folder: Path, task: Task) -> None:
    from trl import SFTTrainer  # noqa: F401  (the libraries' own start is not on the template's bill)

    tokenizer = load_tokenizer(task.model)
    _limit_memory()
    with (folder / "at").open("wb", buffering=0) as at, (folder / "rows").open("wb") as file:
        write_rows(task, tokenizer, file, partial(_note_number, at.fileno()))


def write_rows(task: Task, tokenizer: Any, file: IO[bytes], at: Callable[[int], Any] = int) -> None:
    """Prepare the rows and write what is asked of each; `at` is told where the work is. Raises ModelError."""
    marks = marks_of(task.model, tokenizer)
    _limit_time(0)
    try:
        first = next(_rows(task))
        ids = known_ids(task.model, tokenizer) if "input_ids" in first[1] else 0
        recipe = recipe_for(first, tokenizer, task.completion_only_loss, task.assistant_only_loss)
        for batch in batches(_rows(task)):
            for number, row in batch:
                _require_known(number, row, ids)
            _limit_time(len(str(batch)))
            prepared = prepare(recipe, batch, at)
            file.write(_tokens(recipe, prepared) if task.with_tokens else _facts(recipe, batch, prepared, task, marks))
            file.flush()
    except RowError as error:
        raise ModelError(f"{task.name}, {error}") from error


def _rows(task: Task) -> Iterator[Numbered]:
    rows = iter(task.dataset)
    for number in task.numbers:
        try:
            yield number, next(rows)
        except UnicodeDecodeError as error:  # Arrow keeps whatever bytes the file holds
            raise RowError(f"row {number:,} (counted from 0): {brief(error)}. Save the file as UTF-8.") from error


def marks_of(folder: Path, tokenizer: Any) -> Marks:
    """What begins and ends a text, by the tokenizer and by generation_config.json."""
    ends = {*stated_ids(folder).get("eos_token", []), tokenizer.eos_token_id} - {None}
    return Marks(tokenizer.bos_token_id, frozenset(ends))


def known_ids(folder: Path, tokenizer: Any) -> int:
    """How many ids the model knows: those of its tokenizer, or the rows of its embedding, which may be more."""
    return max(embedding_rows(folder) or 0, len(tokenizer))


def _require_known(number: int, row: Row, known: int) -> None:
    """Stop at tokens that come as ids the model does not have, or with more or fewer labels. Raises ModelError."""
    ids = row.get("input_ids")
    if ids is None:
        return
    for one in ids:
        if type(one) is not int or not 0 <= one < known:
            raise RowError(
                f"row {number:,} (counted from 0): `input_ids` holds {one!r}, and this model's ids go from 0 to "
                f"{known - 1:,}. Split the texts with this model's tokenizer."
            )
    for column in ("labels", "attention_mask", "completion_mask", "assistant_masks"):
        if row.get(column) is not None and len(row[column]) != len(ids):
            raise RowError(
                f"row {number:,} (counted from 0): `{column}` has {len(row[column]):,} numbers for {len(ids):,} "
                "tokens. Give one for each."
            )


def _limit_time(characters: int) -> None:
    """Of the processor's time for what comes next, which a busy machine does not take."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS + characters / CHARACTERS_PER_SECOND)


def _limit_memory() -> None:
    if sys.platform == "linux":  # macOS refuses this limit; there the time has to do
        import resource

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _note_number(file: int, number: int) -> None:
    os.pwrite(file, struct.pack("<q", number), 0)


def _tokens(recipe: Recipe, prepared: Iterable[Row]) -> bytes:
    rows = ({"input_ids": row["input_ids"], "trained": trained_in(recipe, row).tolist()} for row in prepared)
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _facts(recipe: Recipe, batch: list[Numbered], prepared: Iterable[Row], task: Task, marks: Marks) -> bytes:
    empty = [is_empty(row) for _, row in batch]  # first: TRL writes into the rows
    facts = [
        _record(row["input_ids"], trained_in(recipe, row), task.max_length, marks, nothing)
        for row, nothing in zip(prepared, empty, strict=True)
    ]
    return np.array(facts, RECORD).tobytes()


def _record(ids: list[int], trained: np.ndarray, most: int | None, marks: Marks, empty: bool) -> tuple[Any, ...]:
    kept = trained[:most]
    ends = not marks.ends.isdisjoint(np.compress(kept, ids[:most]).tolist())
    content = blake2b(np.array(ids, "<i8").tobytes() + trained.tobytes(), digest_size=8).digest()
    return len(ids), kept.sum(), empty, _is_doubled(ids, marks), ends, int.from_bytes(content, "little")


def _is_doubled(ids: list[int], marks: Marks) -> bool:
    """Does the text begin twice, or end twice?"""
    return (ids[:1] == ids[1:2] == [marks.begin]) or (ids[-1:] == ids[-2:-1] and ids[-1] in marks.ends)


def is_empty(row: Row) -> bool:
    """Is there nothing to learn: a text, a completion or, in a conversation, all that the assistant says?"""
    said = next((row[name] for name in ("completion", "messages", "conversations", "text") if name in row), "tokens")
    if isinstance(said, str):
        return not said.strip()
    answers = [one for one in said if one.get("role", one.get("from")) in ("assistant", "gpt", "model")]
    return not any(one.get("tool_calls") or _content(one) for one in answers)


def _content(message: Row) -> bool:
    said = message.get("content", message.get("value"))
    return bool(said.strip() if isinstance(said, str) else said)


if __name__ == "__main__":
    main()
