"""What can be done with a model on a card: each method by the trainer's own plan, and the largest batch that fits.

A search plans only what it must. Memory grows with the layers and with the batch along lines, so four plans of a model
of a few layers propose a batch, and a plan of the whole model verifies it.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pandas as pd

from base_model import ModelError, ModelWarning, format_bytes, require_whole
from base_model.architecture.config import count_parameters, skeleton_of
from base_model.plan.machine import this_machine
from base_model.train.gpus import card, this_cpu
from base_model.train.methods import METHODS, Method, adapter_of, packing_of
from base_model.train.time import time_on
from base_model.train.trainer import WORKSPACE_BYTES, measured

COLUMNS = (
    "method", "checkpointing", "batch", "tokens", "peak_bytes", "share", "verdict", "hours_low", "hours_high",
    "accuracy", "why", "longest", "tokens_per_s", "devices", "least_bytes",
)  # fmt: skip
WHOLE = ("batch", "peak_bytes", "longest", "least_bytes")
RULE = (
    "What fits stands first; of that, methods whose published accuracy is within 0.05 of the best before the others; "
    "then the faster."
)
# Reserved over allocated memory, in 69 runs on a T4 with sdpa (fitcheck-llm): 1.04 to 1.25, mostly below 1.10.
RESERVED, RESERVED_AT_BEST = 1.10, 1.04
CONTEXT_BYTES = 600 << 20  # what the driver and the libraries' kernels hold beside torch's allocator
# Cards whose error correction takes a sixteenth of the memory that is sold: those with GDDR6 in a data centre.
CORRECTED = ("T4", "A10", "A10G", "L4", "L40", "L40S")
SHALLOW = (2, 4)  # layers of the models that propose
FEW = 8  # texts: the other end of the line that proposes a batch
MOST_BATCH, MOST_TRIES = 1024, 4
STEP = 64  # tokens: what the longest text is rounded down to
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


def place_of(gpu: str | None, memory: str | int | None) -> Place:
    """A card by its name, one of some `memory` ("24GiB"), or this machine without either. Raises ModelError."""
    if memory is not None:
        usable = int(bytes_of(memory)) - CONTEXT_BYTES
        on = card(gpu) if gpu is not None else None
        return Place(gpu or f"a card with {format_bytes(bytes_of(memory))}", usable, on)
    if gpu is None or gpu.strip().lower() == "cpu":
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
    config: Any, place: Place, tokens: int, devices: int = 1, epoch: Callable[[int], float] | None = None
) -> pd.DataFrame:
    """One row per method and checkpointing, best first, in `COLUMNS`.

    `tokens` is the longest text; `epoch` gives the tokens of one epoch, padding included, at a batch size, where there
    is data. An interrupt keeps what was found.
    """
    from huggingface_hub.utils import are_progress_bars_disabled
    from tqdm.auto import tqdm

    require_whole("tokens", tokens, least=2)
    require_whole("devices", devices)
    tried = [(method, checkpointing) for method in METHODS for checkpointing in (True, False)]
    rows = []
    try:
        for method, checkpointing in tqdm(
            tried, desc="Planning", delay=3, leave=False, disable=are_progress_bars_disabled()
        ):
            search = Search(config, place, method, checkpointing, tokens, devices)
            rows.append(row_of(search, epoch))
    except KeyboardInterrupt:
        if not rows:
            raise
        warnings.warn(f"Stopped: {len(rows)} of {len(tried)} plans are there.", ModelWarning, stacklevel=3)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = ranked(table.astype(dict.fromkeys(WHOLE, "Int64") | {"accuracy": "Float64"}))
    if not table["verdict"].isin(["fits", "tight"]).any() and (table["verdict"] == "does not fit").any():
        table.loc[0, "why"] = f"{table.loc[0, 'why']} {_nearest(config, place, table.loc[0])}"
    return table


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
        f"Nothing fits at any length: about {cards} such cards could share it (devices={cards}), or a smaller model of "
        f"the family would, of some {smaller / 1e9:.1f} billion parameters."
    )


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by `RULE`."""
    order = {"fits": 0, "tight": 1, "does not fit": 2, "not planned": 3}
    best = table.loc[table["verdict"].isin(["fits", "tight"]), "accuracy"].max()
    alike = (table["accuracy"] >= (0 if pd.isna(best) else best) - ALIKE).fillna(False)
    keys = pd.DataFrame({
        "verdict": table["verdict"].map(order), "alike": ~alike.astype(bool),
        "slow": -table["tokens_per_s"].astype("Float64").fillna(0), "peak": table["peak_bytes"].fillna(0),
    })  # fmt: skip
    misses = table["verdict"] == "does not fit"
    keys.loc[misses, ["alike", "slow"]] = [False, 0]  # of these, what misses least
    return table.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


@dataclass(frozen=True)
class Search:
    """One method, to be tried at one length of text in one place."""

    config: Any
    place: Place
    method: Method
    checkpointing: bool
    tokens: int
    devices: int

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
        peak = self._peak(self.config, batch, tape)
        return Step(peak, tape.costs, self.place.half)

    def _peak(self, config: Any, batch: int, observe: Any = None) -> int:
        adapter, packing = adapter_of(config, self.method), packing_of(self.method)
        ledger, _, run = measured(
            config, self.arguments(batch), adapter, packing, self.tokens, self.devices, observe=observe
        )
        return ledger.peak + (WORKSPACE_BYTES if run.cuda else 0)

    def proposed(self, batch: int) -> float:
        """The peak of the whole model along the line through two models of a few layers: a lower bound."""
        depth = self.config.get_text_config().num_hidden_layers
        if depth <= SHALLOW[-1]:
            return self._peak(self.config, batch)
        few, more = (self._peak(shallow(self.config, layers), batch) for layers in SHALLOW)
        return few + (more - few) * (depth - SHALLOW[0]) / (SHALLOW[1] - SHALLOW[0])


def needed(peak: float, reserved: float = RESERVED) -> float:
    """What a card must have for this allocated peak."""
    return peak * reserved


def verdict_of(peak: float, usable: int) -> str:
    """Whether a card of so many usable bytes has what a step of this allocated peak needs."""
    if needed(peak, RESERVED_AT_BEST) > usable:
        return "does not fit"
    return "fits" if needed(peak) <= usable else "tight"


def row_of(search: Search, epoch: Callable[[int], float] | None) -> list[Any]:
    """The cells of `COLUMNS` for one search; an architecture that this method cannot be planned for says why."""
    try:
        found = largest(search)
    except ModelError as error:
        nothing = [pd.NA, search.tokens, pd.NA, float("nan"), "not planned", float("nan"), float("nan")]
        return _cells(search, nothing, str(error), pd.NA, float("nan"), pd.NA)
    batch, step, slope, exact, least = found
    verdict = verdict_of(step.peak, search.place.usable)
    share = needed(step.peak) / search.place.usable
    speed, low, high = _pace(search, step, batch, epoch)
    cells = [batch, search.tokens, step.peak, share, verdict, low, high]
    why = _why(search, step, verdict, exact)
    longest = pd.NA if verdict == "does not fit" else _longest(search, batch, step, slope)
    return _cells(search, cells, why, longest, speed, int(min(least, step.peak)))


def _cells(search: Search, cells: list[Any], why: str, longest: Any, speed: float, least: Any) -> list[Any]:
    accuracy = pd.NA if search.method.accuracy is None else search.method.accuracy
    return [search.method.name, search.checkpointing, *cells, accuracy, why, longest, speed, search.devices, least]


def largest(search: Search) -> tuple[int, Step, float, bool, float]:
    """The largest batch that fits, its step, the bytes of one text more, whether the whole model was planned, and the
    peak with one text, along the line.

    One where none fits: proposed only, since it is no batch to run.
    """
    one, usable = search.proposed(1), search.place.usable
    if needed(one, RESERVED_AT_BEST) > usable:  # a lower bound, and too much already
        return 1, Step(int(one), Counter(), search.place.half), float("inf"), False, one
    slope = max((search.proposed(FEW) - one) / (FEW - 1), 1.0)
    batch = _within(1 + int((usable / RESERVED - one) // slope))
    fitting: tuple[int, Step] | None = None
    for _ in range(MOST_TRIES):
        step = search.plan(batch)
        room = usable / RESERVED - step.peak
        if room >= 0:
            fitting = batch, step
        better = _within(batch + int(room // slope))
        if better == batch or (fitting and better <= fitting[0]):
            break
        batch = better
    batch, step = fitting or (batch, step)
    return batch, step, slope, True, one


def _within(batch: int) -> int:
    return min(max(batch, 1), MOST_BATCH)


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


def _why(search: Search, step: Step, verdict: str, exact: bool) -> str:
    """What the verdict rests on, in a sentence."""
    need, usable = format_bytes(int(needed(step.peak))), format_bytes(search.place.usable)
    if verdict == "does not fit":
        missing = format_bytes(int(needed(step.peak, RESERVED_AT_BEST) - search.place.usable))
        return f"One text of {search.tokens:,} tokens misses {missing}" + ("." if exact else ", at least.")
    return f"Needs {need} of {usable}, with {RESERVED - 1:.0%} that the allocator reserves beyond the peak."


def shallow(config: Any, layers: int) -> Any:
    """The same architecture with a few layers; a list that says what each layer is loses its end."""
    small = deepcopy(config)
    text = small.get_text_config()
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return small
