"""From headers to a table: what each tensor is called, where it lives in the model, and what it counts."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd

from base_model import COMPONENTS, ModelError, storable
from base_model.read.counting import Tied, logical_parameters
from base_model.read.headers import Header

COLUMNS = ("tensor", "file", "dtype", "shape", "elements", "parameters", "bytes", "layer", "component")

_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.([0-9]{1,9})\.")

# The first pattern found decides. A norm is known by the module that owns the tensor, the last one of its name, and a
# head only outside the layers: within one, "output" is a part of something else.
_NORM = re.compile(r"(?:norm|(?:^|\.)ln)[^.]*(?:\.[^.]*)?$", re.IGNORECASE)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|output_layer|score|classifier)\.")
_PATTERNS = tuple(
    (component, re.compile(pattern, re.IGNORECASE))
    for component, pattern in (
        ("head", r"(^|\.)shared_head\."),
        ("embedding", r"embed|(^|\.)(wte|wpe|shared)\."),
        ("attention", r"attn|attention"),
        ("mlp", r"mlp|ffn|feed_?forward|moe|expert|denserelu|(^|\.)(fc\d?|intermediate|output)\."),
    )
)


def tensor_table(headers: dict[str, Header], config: dict[str, Any], is_tied: Tied) -> pd.DataFrame:
    """One row per tensor of `{file name: header}`, in `COLUMNS`; `config` is config.json, which says how to count.

    `is_tied` is asked only where a head of the embedding's shape is stored.

    Warns where the rule for counting packed weights is not known, and then counts what is stored.
    """
    names, elements = _joined(headers, "names"), _joined(headers, "elements")
    layers, components = places(names, elements)
    table = pd.DataFrame(
        {
            "tensor": pd.Series(names, dtype="str"),
            "file": pd.Series([storable(file) for file, header in headers.items() for _ in header.names], dtype="str"),
            "dtype": pd.Series(_joined(headers, "dtypes"), dtype="str"),
            "shape": pd.Series(_joined(headers, "shapes"), dtype=object),
            "elements": pd.Series(elements, dtype="int64"),
            "bytes": pd.Series(_joined(headers, "sizes"), dtype="int64"),
            "layer": pd.array(layers, dtype="Int64"),
            "component": pd.Series(components, dtype="str"),
        }
    )
    table["parameters"] = logical_parameters(table, config, is_tied)
    return table[list(COLUMNS)]


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the search for reference cycles: 100,000 tensors make none, and it would take an eighth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def group_parameters(tensors: pd.DataFrame, by: str) -> pd.DataFrame:
    """Sums of `read_tensors` by `file`, `component`, `layer` or `dtype`.

    Index: the groups, largest first for components and dtypes, in order for files and layers.
    Columns: `parameters`, `bytes`, `share` (of all parameters, 0 to 1), `bits_per_parameter` (as stored, with all that
    a quantisation keeps beside the weights; NaN for a group without parameters).
    """
    if by not in ("file", "component", "layer", "dtype"):
        raise ModelError(f'Group parameters by "file", "component", "layer" or "dtype", not by {by!r}.')
    groups = tensors.groupby(by, dropna=False)[["parameters", "bytes"]].sum()
    groups["share"] = groups["parameters"] / max(groups["parameters"].sum(), 1)
    groups["bits_per_parameter"] = groups["bytes"] * 8 / groups["parameters"].where(groups["parameters"] > 0)
    return groups if by in ("file", "layer") else groups.sort_values("parameters", ascending=False)


def _joined(headers: dict[str, Header], column: str) -> list[Any]:
    return [value for header in headers.values() for value in getattr(header, column)]


def places(names: list[str], elements: list[int]) -> tuple[list[int | None], list[str]]:
    """Layers and components: `model.layers.7.mlp.up_proj.weight` is in layer 7, mlp; `lm_head.weight` in none, head.

    Of several stacks of layers, as in a model that sees and writes, the largest is numbered; the others are outside.
    """
    places: list[str] = []  # of each name, the part up to its layer: "model.layers.7.", "" outside the layers
    components = []
    sizes: dict[str, int] = {}
    # 91,991 tensors of a large model share some 2,000 names within a layer; outside, the same name is something else.
    within: dict[str, str] = {}
    outside: dict[str, str] = {}
    place = ""
    for name, count in zip(names, elements, strict=True):
        if not (place and name.startswith(place)):  # tensors come layer by layer: few names need the search
            match = _LAYER.search(name)
            place = name[: match.end()] if match else ""
        part = name[len(place) :]
        known = within if place else outside
        if part not in known:
            known[part] = _component(part, in_layer=bool(place))
        places.append(place)
        components.append(known[part])
        sizes[place] = sizes.get(place, 0) + count
    layers = _numbers(sizes)
    return [layers[place] for place in places], components


def _numbers(sizes: dict[str, int]) -> dict[str, int | None]:
    """The layer's number of each place `{place: elements}`, in the largest stack of layers; None elsewhere."""
    split = {place: place.rstrip(".").rpartition(".") for place in sizes}
    stacks: dict[str, int] = {}
    for place, (stack, _, _) in split.items():
        if place:
            stacks[stack] = stacks.get(stack, 0) + sizes[place]
    main = max(stacks, key=lambda stack: stacks[stack], default=None)
    return {place: int(number) if place and stack == main else None for place, (stack, _, number) in split.items()}


def _component(name: str, in_layer: bool) -> str:
    if _NORM.search(name):
        return "norm"
    if not in_layer and _HEAD.search(name):
        return "head"
    return next((component for component, pattern in _PATTERNS if pattern.search(name)), COMPONENTS[-1])
