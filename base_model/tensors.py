"""From a header to rows: what each tensor is called, where it lives in the model, and what it counts."""

import re
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Any

import pandas as pd

from base_model.checkpoint import Header

COMPONENTS = ("embedding", "attention", "mlp", "norm", "head", "other")
COLUMNS = ("tensor", "file", "dtype", "shape", "elements", "parameters", "bytes", "layer", "component")

HEAD = "lm_head.weight"

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")

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


def tensor_table(headers: dict[str, Header], tied: bool) -> pd.DataFrame:
    """One row per tensor of `{file name: header}`, in `COLUMNS`; `tied` is config.json's word on tied embeddings."""
    rows = [row for file, header in headers.items() for row in _header_rows(file, header)]
    table = pd.DataFrame(rows, columns=[column for column in COLUMNS if column != "parameters"])
    table["layer"] = table["layer"].astype("Int64")
    table["parameters"] = logical_parameters(table, tied)
    return table[list(COLUMNS)]


def logical_parameters(table: pd.DataFrame, tied: bool) -> pd.Series:
    """What a person counts: the stored elements, but a head that repeats a tied embedding counts nothing."""
    repeated = (table["tensor"] == HEAD) & (tied and (table["component"] == "embedding").any())
    return table["elements"].mask(repeated, 0)


def _header_rows(file: str, header: Header) -> Iterator[tuple[Any, ...]]:
    for name, facts in header.tensors.items():
        begin, end = facts["data_offsets"]
        shape = tuple(facts["shape"])
        yield name, file, facts["dtype"], shape, prod(shape), end - begin, *layer_and_component(name)


def layer_and_component(name: str) -> tuple[int | None, str]:
    """`model.layers.7.mlp.up_proj.weight` -> `(7, "mlp")`, `lm_head.weight` -> `(None, "head")`."""
    match = _LAYER.search(name)
    if match is None:
        return None, _component(name)
    return int(match[1]), _component(name[match.end() :])


@lru_cache(maxsize=4096)  # 91,991 tensors of a large model share some 2,000 names within a layer
def _component(name: str) -> str:
    for component, pattern in _COMPONENT:
        if pattern.search(name):
            return component
    return "other"
