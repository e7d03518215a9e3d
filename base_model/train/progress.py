"""The progress bar of a plan: shown after three seconds, gone when it ends, and off where bars are switched off."""

from collections.abc import Iterable
from typing import Any


def planning_bar(items: Iterable[Any] | None = None, total: int | None = None) -> Any:
    """tqdm's bar over `items`, or one of `total` steps to be updated."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from tqdm.auto import tqdm

    off = are_progress_bars_disabled()
    return tqdm(iterable=items, total=total, desc="Planning", delay=3, leave=False, disable=off)
