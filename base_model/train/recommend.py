"""What can be done with a model on a card: each method by the trainer's own plan, best first."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from base_model import ModelError, ModelWarning, format_bytes, require_whole, warn
from base_model.architecture.config import count_parameters, skeleton_of
from base_model.train.arguments import MOST_DEVICES
from base_model.train.methods import METHODS, trainable_of
from base_model.train.places import FITTING, RESERVED, RESERVED_AT_BEST, Place, needed, verdict_of
from base_model.train.progress import planning_bar
from base_model.train.search import LENGTH, MOST_BATCH, Found, Search, Step, largest, longest_text
from base_model.train.time import time_on
from base_model.train.workers import results

COLUMNS = (
    "method", "checkpointing", "batch", "tokens", "peak_bytes", "share", "verdict", "hours_low", "hours_high",
    "accuracy", "why", "longest", "tokens_per_s", "devices", "least_bytes", "trainable",
)  # fmt: skip
WHOLE = ("batch", "peak_bytes", "longest", "least_bytes", "trainable")
RULE = (
    "Of the methods that fit, those within 0.05 of the best published accuracy come first, the fastest of them on top."
)
FEWEST_STEPS = 16  # in an epoch of the data: fewer learn little, however fast
ALIKE = 0.05  # accuracies that one model and one task do not tell apart


def recommend(
    config: Any,
    place: Place,
    tokens: int,
    devices: int = 1,
    epoch: Callable[[int], float] | None = None,
    examples: int | None = None,
) -> pd.DataFrame:
    """One row per method and checkpointing, best first, in `COLUMNS`.

    `tokens` is the longest text. Where there is data, `epoch` gives the tokens of one epoch, padding included, at a
    batch size, and `examples` their number, of which an epoch makes some steps. An interrupt keeps what was found.
    """
    require_whole("tokens", tokens, least=2)
    require_whole("devices", devices, most=MOST_DEVICES)
    # The last step of an epoch may be a smaller one.
    most = MOST_BATCH if examples is None else (examples - 1) // ((FEWEST_STEPS - 1) * devices)
    most = min(MOST_BATCH, max(most, 1))
    tried = [
        Search(config, place, method, checkpointing, tokens, devices, most)
        for method in METHODS
        for checkpointing in (True, False)
    ]
    rows: list[list[Any]] = []
    try:
        rows.extend(_rows(tried, epoch))
    except KeyboardInterrupt:
        if not rows:
            raise
        warn(f"Stopped: {len(rows)} of {len(tried)} plans are ready.")
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = ranked(table.astype(dict.fromkeys(WHOLE, "Int64") | {"accuracy": "Float64"}))
    if not table["verdict"].isin(FITTING).any() and (table["verdict"] == "does not fit").any():
        table.loc[0, "why"] = f"{table.loc[0, 'why']} {_nearest(config, place, table.loc[0])}"
    return table


def _rows(tried: list[Search], epoch: Callable[[int], float] | None) -> Iterator[list[Any]]:
    """The row of each search, as they come, with a bar that names the last; what several warn of is said once."""
    told: set[str] = set()
    with planning_bar(total=len(tried)) as bar:
        for search, (found, warned) in results(outcome_of, tried):
            for message in set(warned) - told:
                warn(message)
            told.update(warned)
            row = row_of(search, found, epoch)
            bar.set_postfix_str(f"{search.method.name}: {row[COLUMNS.index('verdict')]}", refresh=False)
            bar.update()
            yield row


def _nearest(config: Any, place: Place, row: pd.Series) -> str:
    """Where nothing fits: the nearest thing to the lightest method that would."""
    method = {one.name: one for one in METHODS}[row["method"]]
    tokens = int(row["tokens"]) // 2
    while tokens >= LENGTH:
        search = Search(config, place, method, bool(row["checkpointing"]), tokens, int(row["devices"]))
        if needed(search.proposed(1)) <= place.usable:
            return f"With texts of {tokens:,} tokens it would fit."
        tokens //= 2
    times = needed(float(row["peak_bytes"])) / place.usable
    cards = math.ceil(times) * int(row["devices"])
    smaller = count_parameters(skeleton_of(config)) / times
    return (
        f"Nothing fits at any length. Share the model among about {cards} such cards (devices={cards}), or take a "
        f"smaller model of the family, of about {smaller / 1e9:.1f} billion parameters."
    )


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by `RULE`."""
    order = {"fits": 0, "tight": 1, "does not fit": 2, "not planned": 3}
    best = table.loc[table["verdict"].isin(FITTING), "accuracy"].max()
    alike = (table["accuracy"] >= (0 if pd.isna(best) else best) - ALIKE).fillna(False)
    keys = pd.DataFrame({
        "verdict": table["verdict"].map(order), "alike": ~alike.astype(bool),
        "slow": -table["tokens_per_s"].astype("Float64").fillna(0), "peak": table["peak_bytes"].fillna(0),
    })  # fmt: skip
    misses = table["verdict"] == "does not fit"
    keys.loc[misses, ["alike", "slow"]] = [False, 0]  # of these, what misses least
    return table.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


def usable_in(row: Any) -> Any:
    """What the place of a row of `recommend` has, in bytes; of a table, a column."""
    return needed(row["peak_bytes"]) / row["share"]


def outcome_of(search: Search) -> tuple[Found | ModelError, list[str]]:
    """What is found, or why nothing is, and what was warned of on the way: all that another process can tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            best = replace(largest(search), trainable=trainable_of(search.config, search.method))
            found: Found | ModelError = with_longest(search, best)
        except ModelError as error:  # an architecture that this method cannot be planned for
            found = error
    return found, [str(one.message) for one in caught if issubclass(one.category, ModelWarning)]


def with_longest(search: Search, found: Found) -> Found:
    """What was found, and how long a text may be, if one fits at all."""
    if verdict_of(found.step.peak, search.place.usable) == "does not fit":
        return found
    return replace(found, longest=longest_text(search, found.batch, found.step.peak, found.slope))


def row_of(search: Search, found: Found | ModelError, epoch: Callable[[int], float] | None) -> list[Any]:
    """The cells of `COLUMNS` for one search."""
    if isinstance(found, ModelError):
        nothing = [pd.NA, search.tokens, pd.NA, float("nan"), "not planned", float("nan"), float("nan")]
        return _cells(search, nothing, str(found), pd.NA, float("nan"), pd.NA, pd.NA)
    batch, step, exact, least = found.batch, found.step, found.exact, found.least
    verdict = verdict_of(step.peak, search.place.usable)
    share = needed(step.peak) / search.place.usable
    speed, low, high = _pace(search, step, batch, epoch)
    cells = [batch, search.tokens, step.peak, share, verdict, low, high]
    why = _why(search, step, batch, verdict, exact)
    longest = pd.NA if found.longest is None else found.longest
    return _cells(search, cells, why, longest, speed, int(min(least, step.peak)), found.trainable)


def _cells(search: Search, cells: list[Any], why: str, longest: Any, speed: float, *last: Any) -> list[Any]:
    accuracy = pd.NA if search.method.accuracy is None else search.method.accuracy
    return [search.method.name, search.checkpointing, *cells, accuracy, why, longest, speed, search.devices, *last]


def _pace(search: Search, step: Step, batch: int, epoch: Callable[[int], float] | None) -> tuple[float, float, float]:
    """Tokens per second, and the hours of one epoch, low and high; nan where the place or the data is not known."""
    if search.place.on is None or not step.costs:
        return (float("nan"),) * 3
    time = time_on(step.costs, batch * search.tokens, search.place.on, step.half).iloc[0]
    speed = float(time["tokens_per_s"]) * search.devices
    if epoch is None:
        return speed, float("nan"), float("nan")
    hours = epoch(batch) / speed / 3600
    return speed, hours * time["low_s"] / time["step_s"], hours * time["high_s"] / time["step_s"]


def _why(search: Search, step: Step, batch: int, verdict: str, exact: bool) -> str:
    """What the verdict rests on, in a sentence."""
    need, usable = format_bytes(int(needed(step.peak))), format_bytes(search.place.usable)
    if verdict == "does not fit":
        missing = format_bytes(int(needed(step.peak, RESERVED_AT_BEST) - search.place.usable))
        return f"One text of {search.tokens:,} tokens needs {'' if exact else 'at least '}{missing} more than there is."
    more = _why_no_more(search.most) if batch == search.most else ""
    return (
        f"With the {RESERVED - 1:.0%} that the allocator reserves beyond the peak, it needs {need} of the {usable} "
        f"usable.{more}"
    )


def _why_no_more(most: int) -> str:
    if most == MOST_BATCH:
        return f" No batch above {MOST_BATCH} was tried."
    return f" More than {most} at a time would leave fewer than {FEWEST_STEPS} steps in an epoch of your data."
