"""From a header to rows: what each tensor is called, where it lives in the model, and what it counts."""

import re
from functools import lru_cache
from typing import Any

import pandas as pd

from base_model.counting import logical_parameters
from base_model.headers import Header

COMPONENTS = ("embedding", "attention", "mlp", "norm", "head", "other")
COLUMNS = ("tensor", "file", "dtype", "shape", "elements", "parameters", "bytes", "layer", "component")

_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.(\d+)\.")

# The first pattern found in a tensor's name decides. Norms come first: `self_attn.q_norm` is a norm.
_COMPONENT = tuple(
    (component, re.compile(pattern))
    for component, pattern in (
        ("norm", r"norm|(^|\.)ln_?\w*\."),
        ("head", r"(^|\.)(lm_head|embed_out|output|score|classifier)\."),
        ("embedding", r"embed|(^|\.)w[tp]e\."),
        ("attention", r"attn|attention"),
        ("mlp", r"mlp|ffn|feed_forward|moe|experts|(^|\.)fc\d?\."),
    )
)


def tensor_table(headers: dict[str, Header], config: dict[str, Any]) -> pd.DataFrame:
    """One row per tensor of `{file name: header}`, in `COLUMNS`; `config` is config.json, which says how to count.

    Warns where the rule for counting packed weights is not known, and then counts what is stored.
    """
    names = _joined(headers, "names")
    layers, components = _places(names)
    table = pd.DataFrame(
        {
            "tensor": pd.Series(names, dtype="str"),
            "file": pd.Series([file for file, header in headers.items() for _ in header.names], dtype="str"),
            "dtype": pd.Series(_joined(headers, "dtypes"), dtype="str"),
            "shape": pd.Series(_joined(headers, "shapes"), dtype=object),
            "elements": pd.Series(_joined(headers, "elements"), dtype="int64"),
            "bytes": pd.Series(_joined(headers, "sizes"), dtype="int64"),
            "layer": pd.array(layers, dtype="Int64"),
            "component": pd.Series(components, dtype="str"),
        }
    )
    table["parameters"] = logical_parameters(table, config)
    return table[list(COLUMNS)]


def _places(names: list[str]) -> tuple[list[int | None], list[str]]:
    """Layers and components: `model.layers.7.mlp.up_proj.weight` is in layer 7, mlp; `lm_head.weight` in none, head."""
    layers: list[int | None] = []
    components = []
    for name in names:  # one pass that keeps no match objects: twice as fast on the largest models
        match = _LAYER.search(name)
        layers.append(int(match[1]) if match else None)
        components.append(_component(name[match.end() :] if match else name))
    return layers, components


def _joined(headers: dict[str, Header], column: str) -> list[Any]:
    return [value for header in headers.values() for value in getattr(header, column)]


@lru_cache(maxsize=16384)  # 91,991 tensors of a large model share some 2,000 names within a layer
def _component(name: str) -> str:
    for component, pattern in _COMPONENT:
        if pattern.search(name):
            return component
    return "other"
