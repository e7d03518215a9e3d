"""How long the examples of a data set are for a model: split in processes of their own, as SFTTrainer would."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from base_model import require_whole, warn
from base_model.hub.locate import folder_of
from base_model.read.folder import in_home, is_file
from base_model.text.data import name_of, read_data
from base_model.text.measure import RECORD, Task
from base_model.text.packing import kept_tokens, padded_tokens
from base_model.text.processes import in_processes


def text_lengths(
    model: str | Path,
    data: Any,
    max_length: int | None = None,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> pd.DataFrame:
    """How long each example is for this model: one row per example of `data`, in its order.

    Columns: `tokens` (of the whole example), `trained` (tokens that count in the loss, of those that `max_length`
    leaves), `truncated` (bool), `max_length` (Int64), `empty` (there is nothing to learn in it), `duplicate` (of an
    earlier one), `doubled` (it begins or ends with the same special token twice), `ends` (an end of text is trained).

    `data` is a .jsonl, .json, .csv or .parquet file, or a `datasets.Dataset`, in one of TRL's formats. It is prepared
    by the code of TRL's SFTTrainer; the settings have its names, and `max_length` None cuts nothing.
    Raises ModelError, which names the row or line that is wrong.
    """
    lengths, notes = measured(model, data, max_length, completion_only_loss, assistant_only_loss)
    for note in notes:
        warn(f"TRL: {note}")
    return lengths


def measured(
    model: str | Path, data: Any, max_length: int | None, completion_only: bool | None = None, answers: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """The table of `text_lengths` and what TRL warns of; not worked out again for a file that has not changed."""
    if max_length is not None:
        require_whole("max_length", max_length)
    folder = folder_of(model, with_tokenizer=True)
    task = Task(folder, name_of(data), None, (), max_length, completion_only, answers)
    if not isinstance(data, str | Path):
        return _measure(task, data)
    file = in_home(data)
    lengths, notes = _measure_file(task, file, _state([file, *sorted(folder.glob("*.json")), *folder.glob("*.jinja")]))
    return lengths.copy(), notes


def _state(files: list[Path]) -> tuple[Any, ...]:
    """What changes when a file does."""
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files if is_file(file))


@lru_cache(maxsize=8)
def _measure_file(task: Task, file: Path, state: tuple[Any, ...]) -> tuple[pd.DataFrame, list[str]]:
    return _measure(task, file)


def _measure(task: Task, data: Any) -> tuple[pd.DataFrame, list[str]]:
    dataset = read_data(data)
    parts, notes = in_processes(replace(task, dataset=dataset, numbers=range(len(dataset))))
    return _table(np.frombuffer(b"".join(parts), RECORD), task.max_length), notes


def _table(records: np.ndarray, max_length: int | None) -> pd.DataFrame:
    facts = pd.DataFrame({name: records[name] for name in RECORD.names or ()})
    most = facts["tokens"].max() if max_length is None else max_length
    facts["truncated"] = facts["tokens"] > most
    facts["max_length"] = pd.array([max_length] * len(facts), "Int64")
    facts["duplicate"] = facts.duplicated("content")
    return facts[["tokens", "trained", "truncated", "max_length", "empty", "duplicate", "doubled", "ends"]]


@dataclass(frozen=True)
class BatchTokens:
    """What a plan needs to know of a data set, at a batch size: the peak's length, and the time's."""

    longest: int  # tokens of the longest example, as it is after truncation: the peak of memory
    mean: float  # tokens per example of a mean batch, padding included: the time
    steps: int  # batches per epoch


def batch_tokens(lengths: pd.DataFrame, batch: int = 1) -> BatchTokens:
    """What a plan takes from the table of `text_lengths`: batches in random order, padded to their longest example."""
    require_whole("batch", batch)
    kept = kept_tokens(lengths)
    padded = padded_tokens(kept, batch)
    return BatchTokens(int(kept.max()), padded / len(kept), -(-len(kept) // batch))
