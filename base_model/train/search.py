"""The largest batch of a method that fits, in as few plans as it takes.

At each moment of a step memory grows with the layers along a line, so two plans of models of a few layers propose what
the whole takes; once that fits, a plan of the whole model verifies it.
"""

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from base_model.architecture.config import layers_of, positions_of, skeleton_of
from base_model.read.tensors import places
from base_model.train.methods import Method, adapter_of, packing_of
from base_model.train.places import RESERVED, RESERVED_AT_BEST, Place, needed
from base_model.train.trainer import WORKSPACE_BYTES, measured

FEW = 8  # texts: the other end of the first line that proposes a batch
MOST_BATCH = 128  # texts at a time: more train no faster, and few optimizer steps take as many
MOST_PROPOSALS, MOST_TRIES = 8, 6
LENGTH = 64  # tokens: what the longest text is rounded down to
SURE = 1.01  # a proposal this far beyond needs no plan of the whole


@dataclass(frozen=True)
class Step:
    """One planned step."""

    peak: int
    costs: Counter[Any]
    half: bool


@dataclass(frozen=True)
class Found:
    """The largest `batch` that fits, or 1, and its `step`; `slope`, the bytes of one text more; `exact`, whether the
    whole model was planned; `least`, the peak with one text, as proposed; `longest`, the tokens that a text may have
    at batch 1, None where there is no room for `LENGTH` tokens; `trainable`, the parameters that the method trains.
    """

    batch: int
    step: Step
    slope: float
    exact: bool
    least: float
    longest: int | None = None
    trainable: int | None = None


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
        scaled = self.place.half and not self.place.apple  # gradients of float16, which weights in float32 survive
        single = self.place.cpu or (scaled and self.method.adapter is None)
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


def longest_text(search: Search, batch: int, peak: int, slope: float) -> int | None:
    """The tokens of the longest text at batch 1, from the peak of a batch and the bytes of one text more.

    Attention's kernels hold no matrix, so memory goes with all tokens together. The slope proposes a length, whose peak
    is proposed too; peaks are convex, so the line between the two promises no more than there is.
    """
    limit, here = search.place.usable / RESERVED, batch * search.tokens
    tokens = int(here + (limit - peak) / slope * search.tokens)
    positions = positions_of(search.config)
    if positions:
        tokens = min(tokens, positions)
    if tokens < LENGTH:
        return None
    far = replace(search, tokens=tokens).proposed(1)
    if far > limit and far > peak:
        tokens = int(here + (tokens - here) * (limit - peak) / (far - peak))
    return tokens if tokens == positions else tokens // LENGTH * LENGTH or None


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
