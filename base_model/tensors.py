"""From headers to a table: what each tensor is called, where it lives in the model, and what it counts."""

import re
from typing import Any

import pandas as pd

from base_model import COMPONENTS
from base_model.counting import logical_parameters
from base_model.headers import Header

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


def tensor_table(headers: dict[str, Header], config: dict[str, Any]) -> pd.DataFrame:
    """One row per tensor of `{file name: header}`, in `COLUMNS`; `config` is config.json, which says how to count.

    Warns where the rule for counting packed weights is not known, and then counts what is stored.
    """
    names, elements = _joined(headers, "names"), _joined(headers, "elements")
    layers, components = _places(names, elements)
    table = pd.DataFrame(
        {
            "tensor": pd.Series(names, dtype="str"),
            "file": pd.Series([file for file, header in headers.items() for _ in header.names], dtype="str"),
            "dtype": pd.Series(_joined(headers, "dtypes"), dtype="str"),
            "shape": pd.Series(_joined(headers, "shapes"), dtype=object),
            "elements": pd.Series(elements, dtype="int64"),
            "bytes": pd.Series(_joined(headers, "sizes"), dtype="int64"),
            "layer": pd.array(layers, dtype="Int64"),
            "component": pd.Series(components, dtype="str"),
        }
    )
    table["parameters"] = logical_parameters(table, config)
    return table[list(COLUMNS)]


def _joined(headers: dict[str, Header], column: str) -> list[Any]:
    return [value for header in headers.values() for value in getattr(header, column)]


def _places(names: list[str], elements: list[int]) -> tuple[list[int | None], list[str]]:
    """Layers and components: `model.layers.7.mlp.up_proj.weight` is in layer 7, mlp; `lm_head.weight` in none, head.

    Of several stacks of layers, as in a model that sees and writes, the largest is numbered; the others are outside.
    """
    layers: list[int | None] = []
    components, stacks = [], []
    sizes: dict[str | None, int] = {}
    known: dict[str, str] = {}  # 91,991 tensors of a large model share some 2,000 names within a layer
    for name, count in zip(names, elements, strict=True):  # one pass that keeps no match objects: twice as fast
        match = _LAYER.search(name)
        stack = name[: match.start(1)] if match else None
        part = name[match.end() :] if match else name
        if match and part not in known:
            known[part] = _component(part, in_layer=True)
        layers.append(int(match[1]) if match else None)
        components.append(known[part] if match else _component(part, in_layer=False))
        stacks.append(stack)
        sizes[stack] = sizes.get(stack, 0) + count
    sizes.pop(None, None)
    if len(sizes) > 1:
        main = max(sizes, key=lambda stack: sizes[stack])
        layers = [layer if stack == main else None for layer, stack in zip(layers, stacks, strict=True)]
    return layers, components


def _component(name: str, in_layer: bool) -> str:
    if _NORM.search(name):
        return "norm"
    if not in_layer and _HEAD.search(name):
        return "head"
    return next((component for component, pattern in _PATTERNS if pattern.search(name)), COMPONENTS[-1])
