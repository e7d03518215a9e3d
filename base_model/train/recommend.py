"""What can be done with a model on a card: each method by the trainer's own plan, and the largest batch that fits.

A search plans only what it must. At each moment of a step memory grows with the layers along a line, so two plans of
models of a few layers propose what the whole takes; once that fits, a plan of the whole model verifies it.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from base_model import ModelError, ModelWarning, format_bytes, require_whole, warn
from base_model.architecture.config import count_parameters, layers_of, skeleton_of
from base_model.plan.machine import this_machine
from base_model.read.tensors import places
from base_model.train.arguments import MOST_DEVICES
from base_model.train.gpus import card, is_cpu, this_cpu
from base_model.train.methods import METHODS, Method, adapter_of, packing_of
from base_model.train.progress import planning_bar
from base_model.train.time import time_on
from base_model.train.trainer import WORKSPACE_BYTES, measured
from base_model.train.workers import results

COLUMNS = (
    "method", "checkpointing", "batch", "tokens", "peak_bytes", "share", "verdict", "hours_low", "hours_high",
    "accuracy", "why", "longest", "tokens_per_s", "devices", "least_bytes",
)  # fmt: skip
FITTING = ("fits", "tight")  # verdicts of what can be run
WHOLE = ("batch", "peak_bytes", "longest", "least_bytes")
RULE = "Methods that fit come first; of these, the ones within 0.05 of the best published accuracy; then the faster."
# Reserved over allocated memory, in 69 runs on a T4 with sdpa (fitcheck-llm): 1.04 to 1.25, mostly below 1.10.
RESERVED, RESERVED_AT_BEST = 1.10, 1.04
CONTEXT_BYTES = 600 << 20  # what the driver and the libraries' kernels hold beside torch's allocator
# Cards whose error correction takes a sixteenth of the memory that is sold: those with GDDR6 in a data centre.
CORRECTED = ("T4", "A10", "A10G", "L4", "L40", "L40S")
FEW = 8  # texts: the other end of the first line that proposes a batch
MOST_BATCH = 128  # texts at a time: more train no faster, and few optimizer steps take as many
FEWEST_STEPS = 16  # in an epoch of the data: fewer learn little, however fast
MOST_PROPOSALS, MOST_TRIES = 8, 6
STEP = 64  # tokens: what the longest text is rounded down to
SURE = 1.01  # a proposal this far beyond needs no plan of the whole
ALIKE = 0.05  # accuracies that one model and one task do not tell apart


@dataclass(frozen=True)
class Place:
    """Where the tuning would run: `usable` bytes, and `on`, the row of `gpus`; None where only the memory is known."""

    name: str
    usable: int
    on: pd.Series | None
    cpu: bool = False

    @property
    def half(self) -> bool:
        """Whether 16 bits mean float16 here."""
        return self.on is not None and pd.isna(self.on["bf16_flops"])


@dataclass(frozen=True)
class Step:
    """One planned step."""

    peak: int
    costs: Counter[Any]
    half: bool


@dataclass(frozen=True)
class Found:
    """The largest `batch` that fits, or 1, and its `step`; `slope`, the bytes of one text more; `exact`, whether the
    whole model was planned; `least`, the peak with one text, as proposed.
    """

    batch: int
    step: Step
    slope: float
    exact: bool
    least: float


@dataclass(frozen=True)
class Search:
    """One method, to be tried at one length of text in one place."""

    config: Any
    place: Place
    method: Method
    checkpointing: bool
    tokens: int
    devices: int
    most: int = MOST_BATCH

    def arguments(self, batch: int) -> dict[str, Any]:
        """The trainer's arguments, as `write_script` sets them; float16 is planned as bfloat16, of the same bytes."""
        single = self.place.cpu or (self.place.half and self.method.adapter is None)
        return {
            "per_device_train_batch_size": batch, "gradient_checkpointing": self.checkpointing,
            "optim": self.method.optim, "use_cpu": self.place.cpu, "bf16": not self.place.cpu,
            "model_init_kwargs": {"dtype": "float32" if single else "bfloat16"},
        }  # fmt: skip

    def plan(self, batch: int) -> Step:
        """The step of the whole model. Raises ModelError."""
        from base_model.train.operations import Tape

        tape = Tape()
        return Step(max(self._peaks(self.config, batch, tape).values()), tape.costs, self.place.half)

    def _peaks(self, config: Any, batch: int, observe: Any = None) -> Counter[str]:
        """The peak at each moment of the step."""
        adapter, packing = adapter_of(config, self.method), packing_of(self.method)
        ledger, _, run = measured(
            config, self.arguments(batch), adapter, packing, self.tokens, self.devices, observe=observe
        )
        workspace = WORKSPACE_BYTES if run.cuda else 0
        return Counter({moment: peak + workspace for moment, peak in ledger.peaks.items()})

    @cached_property
    def depths(self) -> tuple[int, int]:
        """The layers of the two models that propose."""
        return depths_of(self.config)

    def proposed(self, batch: int) -> float:
        """The peak of the whole model: of each moment, the line through two models of a few layers goes there."""
        depth = layers_of(self.config)
        less, more = self.depths
        if depth <= more:
            return max(self._peaks(self.config, batch).values())
        few, some = (self._peaks(shallow(self.config, layers), batch) for layers in (less, more))
        times = (depth - less) / (more - less)
        return max(few[moment] + (some[moment] - few[moment]) * times for moment in few | some)


def place_of(gpu: str | None, memory: str | int | None) -> Place:
    """A card by its name, one of some `memory` ("24GiB"), or this machine without either. Raises ModelError."""
    if memory is not None:
        usable = int(bytes_of(memory)) - CONTEXT_BYTES
        if usable <= 0:
            raise ModelError(f"A card needs more than {format_bytes(CONTEXT_BYTES)}: its driver alone takes that much.")
        on = card(gpu) if gpu is not None else None
        return Place(gpu or f"a card with {format_bytes(bytes_of(memory))}", usable, on)
    if gpu is None or is_cpu(gpu):
        machine = this_machine().iloc[-1] if gpu is None else this_machine().set_index("device", drop=False).loc["cpu"]
        cpu = machine["device"] == "cpu"
        return Place(
            f"this machine's {machine['device']}", int(machine["usable_bytes"]), this_cpu() if cpu else None, cpu
        )
    on = card(gpu)
    words = on["gpu"].split()
    sold = int(on["memory_bytes"])
    return Place(on["gpu"], sold - (sold // 16 if set(words) & set(CORRECTED) else 0) - CONTEXT_BYTES, on)


def bytes_of(memory: str | int) -> int:
    """Bytes of "24GiB", "24 GB" or 24_000_000_000. Raises ModelError for anything else."""
    units = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    text = str(memory).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip() or "b"
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if isinstance(memory, bool) or not 2**20 <= size <= 2**50:
        raise ModelError(f'`memory` is a size such as "24GiB", not {memory!r}.')
    return size


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
    steps = MOST_BATCH if examples is None else examples // (FEWEST_STEPS * devices)
    most = min(MOST_BATCH, max(steps, 1))
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
    while tokens >= STEP:
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


def needed(peak: float, reserved: float = RESERVED) -> float:
    """What a card must have for this allocated peak."""
    return peak * reserved


def usable_in(row: Any) -> Any:
    """What the place of a row of `recommend` has, in bytes; of a table, a column."""
    return needed(row["peak_bytes"]) / row["share"]


def verdict_of(peak: float, usable: int) -> str:
    """Whether a card of so many usable bytes has what a step of this allocated peak needs."""
    if needed(peak, RESERVED_AT_BEST) > usable:
        return "does not fit"
    return "fits" if needed(peak) <= usable else "tight"


def outcome_of(search: Search) -> tuple[Found | ModelError, list[str]]:
    """What is found, or why nothing is, and what was warned of on the way: all that another process can tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found: Found | ModelError = largest(search)
        except ModelError as error:  # an architecture that this method cannot be planned for
            found = error
    return found, [str(one.message) for one in caught if issubclass(one.category, ModelWarning)]


def row_of(search: Search, found: Found | ModelError, epoch: Callable[[int], float] | None) -> list[Any]:
    """The cells of `COLUMNS` for one search."""
    if isinstance(found, ModelError):
        nothing = [pd.NA, search.tokens, pd.NA, float("nan"), "not planned", float("nan"), float("nan")]
        return _cells(search, nothing, str(found), pd.NA, float("nan"), pd.NA)
    batch, step, slope, exact, least = found.batch, found.step, found.slope, found.exact, found.least
    verdict = verdict_of(step.peak, search.place.usable)
    share = needed(step.peak) / search.place.usable
    speed, low, high = _pace(search, step, batch, epoch)
    cells = [batch, search.tokens, step.peak, share, verdict, low, high]
    why = _why(search, step, batch, verdict, exact)
    longest = pd.NA if verdict == "does not fit" else _longest(search, batch, step, slope)
    return _cells(search, cells, why, longest, speed, int(min(least, step.peak)))


def _cells(search: Search, cells: list[Any], why: str, longest: Any, speed: float, least: Any) -> list[Any]:
    accuracy = pd.NA if search.method.accuracy is None else search.method.accuracy
    return [search.method.name, search.checkpointing, *cells, accuracy, why, longest, speed, search.devices, least]


def largest(search: Search) -> Found:
    """The largest batch that fits; where none does, one text, proposed only, since it is no batch to run."""
    one, usable = search.proposed(1), search.place.usable
    if needed(one, RESERVED_AT_BEST) > usable * SURE:
        return Found(1, Step(int(one), Counter(), search.place.half), float("inf"), False, one)
    batch, slope = _proposal(search, one, usable / RESERVED)
    planned: dict[int, Step] = {}
    while batch not in planned and len(planned) < MOST_TRIES:
        planned[batch] = search.plan(batch)
        if len(planned) > 1:  # two plans of the whole know better than those of a few layers
            (less, few), (more, some) = sorted(planned.items())[:2]
            slope = max((some.peak - few.peak) / (more - less), 1.0)
        fitting = [size for size, step in planned.items() if step.peak <= usable / RESERVED]
        nearest = max(fitting, default=min(planned))
        batch = _within(nearest + int((usable / RESERVED - planned[nearest].peak) // slope), search.most)
    return Found(nearest, planned[nearest], slope, True, one)


def _proposal(search: Search, one: float, limit: float) -> tuple[int, float]:
    """The largest batch whose proposed peak is within the limit, and the bytes of one text more, there.

    Peaks are convex in the batch: a line between two of them crosses the limit early, a line beyond them late.
    """
    if search.most == 1:
        return 1, 1.0
    few = min(FEW, search.most)
    known = {1: one, few: search.proposed(few)}
    while True:
        below = max((batch for batch, peak in known.items() if peak <= limit), default=1)
        above = min((batch for batch, peak in known.items() if peak > limit and batch > below), default=None)
        ends = (below, above) if above else sorted(known)[-2:]
        slope = max((known[ends[1]] - known[ends[0]]) / (ends[1] - ends[0]), 1.0)
        batch = min(_within(below + int((limit - known[below]) // slope), search.most), FEW * max(known))
        if above and batch - below < below // 16:  # near enough for the plan of the whole to find the last few
            return batch, slope
        if above:
            batch = min(max(batch, below + 1), above - 1)
        if batch in known or len(known) > MOST_PROPOSALS:
            return below, slope
        known[batch] = search.proposed(batch)


def _within(batch: int, most: int) -> int:
    return min(max(batch, 1), most)


def _longest(search: Search, batch: int, step: Step, slope: float) -> Any:
    """The longest text at batch 1: attention's kernels hold no matrix, so that memory goes with all tokens together."""
    room = search.place.usable / RESERVED - step.peak
    tokens = int((batch + room / slope) * search.tokens) // STEP * STEP
    positions = getattr(search.config.get_text_config(), "max_position_embeddings", None) or tokens
    return min(tokens, positions) if tokens >= STEP else pd.NA


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


def depths_of(config: Any) -> tuple[int, int]:
    """The layers of two models that propose: with one period of the layers that repeat to the end, and with two."""
    depth = layers_of(config)
    kinds = _kinds(config, depth)
    pairs = (
        (begin + period, begin + 2 * period)
        for period in range(1, depth)
        for begin in range(depth - 2 * period)
        if kinds[begin : depth - period] == kinds[begin + period :]
    )
    return min(pairs, key=lambda pair: pair[1], default=(depth, depth))


def _kinds(config: Any, depth: int) -> list[Any]:
    """Of each layer, the shapes of its parameters and what config.json calls it."""
    weights = dict(skeleton_of(config).named_parameters())
    layers, _ = places(list(weights), [weight.numel() for weight in weights.values()])
    called = [value for value in vars(config.get_text_config()).values() if _is_per_layer(value, depth)]
    shapes: list[list[Any]] = [[] for _ in range(depth)]
    for layer, weight in zip(layers, weights.values(), strict=True):
        if layer is not None and layer < depth:
            shapes[layer].append(tuple(weight.shape))
    return list(zip(map(str, shapes), *called, strict=True))


def _is_per_layer(value: Any, depth: int) -> bool:
    return isinstance(value, list) and len(value) == depth


def _why_no_more(most: int) -> str:
    if most == MOST_BATCH:
        return f" No batch above {MOST_BATCH} was tried."
    return f" More than {most} at a time would leave fewer than {FEWEST_STEPS} steps in an epoch of your data."


def shallow(config: Any, layers: int) -> Any:
    """The same architecture with a few layers; a list that says what each layer is loses its end."""
    small = deepcopy(config)
    text = small.get_text_config()
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if _is_per_layer(value, depth):
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return small
