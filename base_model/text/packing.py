"""What batches make of lengths: padding, and sequences that TRL packs."""

from typing import Any

import numpy as np
import pandas as pd

from base_model.text.data import quiet

SEED = 42  # of TrainingArguments; any other order gives much the same


def kept_tokens(lengths: pd.DataFrame) -> pd.Series:
    """The tokens of each example that trains: what `max_length` leaves, and without those that TRL drops.

    TRL drops an example where a `max_length` is set and no token that counts is left.
    """
    limits = lengths["max_length"]
    kept = lengths["tokens"].where(limits.isna() | (lengths["tokens"] <= limits), limits).astype("int64")
    return kept[limits.isna() | (lengths["trained"] > 0)]


def padded_tokens(kept: pd.Series, batch: int, grouped: bool = False) -> int:
    """The tokens of an epoch with padding: each batch as long as its longest, in random order or grouped by length.

    The orders are those of transformers' Trainer.
    """
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    values, generator = kept.tolist(), torch.Generator().manual_seed(SEED)
    order: Any = torch.utils.data.RandomSampler(values, generator=generator)
    if grouped:
        order = LengthGroupedSampler(batch, lengths=values, generator=generator)
    sizes = kept.to_numpy()[list(order)]
    starts = np.arange(0, len(sizes), batch)
    filled = np.diff(np.append(starts, len(sizes)))
    return int((np.maximum.reduceat(sizes, starts) * filled).sum())


def packed_sequences(tokens: pd.Series, max_length: int, strategy: str) -> int:
    """How many sequences TRL's packing makes of examples of these lengths: strategy "bfd", "bfd_split" or "wrapped".

    It packs a thousand at a time, in their order. The lists that it is given hold nothing and take no memory.
    """
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    with quiet():
        return len(pack_dataset(Dataset(_hollow(tokens.to_numpy())), max_length, strategy))


def _hollow(tokens: np.ndarray) -> Any:
    """A table of lists of these lengths."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(tokens)]).astype("int64")
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, pa.nulls(int(offsets[-1])))})
