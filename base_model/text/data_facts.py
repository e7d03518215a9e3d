"""A data set in facts: what SFTTrainer would make of it, and what is wrong with it."""

from pathlib import Path
from typing import Any

import pandas as pd

from base_model import format_share, require_whole, warn
from base_model.text.lengths import measured
from base_model.text.packing import kept_tokens, packed_sequences, padded_tokens

TRL_MAX_LENGTH = 1_024  # SFTConfig's own, which its packing needs
FEW = 5  # rows that are named
ORDERS = ("in random order", "grouped by length")
PACKINGS = {"bfd": "best fit (bfd)", "wrapped": "end to end (wrapped)"}  # TRL's names for them, in words


def describe_data(
    model: str | Path,
    data: Any,
    max_length: int | None = None,
    batch: int = 1,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> pd.DataFrame:
    """Facts about a data set as SFTTrainer would train on it; columns `fact`, `value` (text).

    Examples, tokens, median, 95th percentile, longest; what `max_length` cuts off and which examples are dropped;
    empty and duplicate examples, doubled special tokens, ends of text that are never trained; at this `batch`, padding
    and steps per epoch; sequences after TRL's packing (at 1,024 tokens, SFTConfig's own, without a `max_length`).
    Rows are counted from 0. `data` and the settings as in `text_lengths`, which raises the same ModelErrors.
    """
    require_whole("batch", batch)
    lengths, notes = measured(model, data, max_length, completion_only_loss, assistant_only_loss)
    for note in notes:
        warn(f"TRL: {note}")
    facts = _sizes(lengths) | _losses(lengths, max_length) | _faults(lengths) | _batches(lengths, max_length, batch)
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _sizes(lengths: pd.DataFrame) -> dict[str, str]:
    tokens, total = lengths["tokens"], lengths["tokens"].sum()
    return {
        "examples": f"{len(tokens):,}",
        "tokens": f"{total:,}, {total / len(tokens):,.1f} per example",
        "tokens that count in the loss": _part(lengths["trained"].sum(), kept_tokens(lengths).sum()),
        "median": f"{tokens.median():,.0f} tokens",
        "95th percentile": f"{tokens.quantile(0.95):,.0f} tokens",
        "longest": f"{tokens.max():,} tokens (row {tokens.idxmax():,})",
    }


def lost_tokens(lengths: pd.DataFrame) -> int:
    """The tokens that `max_length` cuts off, in all."""
    beyond = lengths["tokens"] - lengths["max_length"].fillna(lengths["tokens"])
    return int(beyond.clip(lower=0).sum())


def _losses(lengths: pd.DataFrame, max_length: int | None) -> dict[str, str]:
    """What a maximum length costs; TRL drops an example of which nothing that counts is left."""
    if max_length is None:
        return {"truncated": "none: no max_length is given"}
    lost, dropped = lost_tokens(lengths), lengths["trained"] == 0
    few = int(lengths["truncated"].sum())
    cut = f"{few:,} example{'s lose' if few > 1 else ' loses'} {_part(lost, lengths['tokens'].sum())} tokens"
    return {
        f"truncated at {max_length:,}": cut if lost else "none",
        "dropped: no answer left after the cut": _rows(dropped),
    }


def _faults(lengths: pd.DataFrame) -> dict[str, str]:
    ends = int(lengths["ends"].sum())
    never = "none: the tuned model may not learn to stop"
    return {
        "empty, with nothing to learn": _rows(lengths["empty"]),
        "duplicates of an earlier example": _rows(lengths["duplicate"]),
        "special token twice, at the beginning or the end": _rows(lengths["doubled"]),
        "examples that train the end of text": _part(ends, len(lengths)) if ends else never,
    }


def _batches(lengths: pd.DataFrame, max_length: int | None, batch: int) -> dict[str, str]:
    kept, most = kept_tokens(lengths), max_length or TRL_MAX_LENGTH
    if kept.empty:
        return {"steps per epoch": "none: TRL drops every example"}
    padding = {f"padding at batch {batch:,}, {order}": _padding(kept, batch, order) for order in ORDERS}
    packed = {f"packed to {most:,} tokens, {words}": _packed(lengths, most, name) for name, words in PACKINGS.items()}
    steps = f"{-(-len(kept) // batch):,} at batch {batch:,}"
    return padding | packed | {"steps per epoch": steps, "tokens per epoch": f"{kept.sum():,}"}


def _padding(kept: pd.Series, batch: int, order: str) -> str:
    padded = padded_tokens(kept, batch, grouped=order == ORDERS[1])
    return f"{format_share(1 - kept.sum() / max(padded, 1))} of {padded:,} tokens"


def _packed(lengths: pd.DataFrame, most: int, strategy: str) -> str:
    """TRL neither truncates nor drops before it packs; bfd cuts off what is longer than a sequence."""
    tokens = lengths["tokens"]
    sequences = packed_sequences(tokens, most, strategy)
    held = tokens.clip(upper=most).sum() if strategy == "bfd" else tokens.sum()
    return f"{sequences:,} sequences, {format_share(held / max(sequences * most, 1))} full"


def _part(some: int, all_of_them: int) -> str:
    return f"{some:,} of {all_of_them:,} ({format_share(some / max(all_of_them, 1))})"


def _rows(marked: pd.Series) -> str:
    """How many rows are marked, and which."""
    rows = marked.index[marked]
    named = ", ".join(f"{row:,}" for row in rows[:FEW]) + (", ..." if len(rows) > FEW else "")
    return f"{len(rows):,} ({'row' if len(rows) == 1 else 'rows'} {named})" if len(rows) else "none"
