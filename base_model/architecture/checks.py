"""Every number that a model folder states twice, compared: the index, the headers, the files, config.json."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, warn
from base_model.architecture.config import (
    class_names,
    count_parameters,
    is_tied,
    layers_of,
    read_architecture,
    skeleton_of,
)
from base_model.architecture.experts import active_parameters, experts_of
from base_model.read.counting import quantization_of
from base_model.read.folder import Index, read_config, read_index, warn_of_oddities, weight_files
from base_model.read.headers import Header, read_valid_header
from base_model.read.tensors import tensor_table


@dataclass(frozen=True)
class Check:
    """One comparison, ready to be a row; numbers are written with separators."""

    check: str
    expected: str
    found: str
    match: bool


def run_checks(folder: Path, known: Mapping[str, Header] | None = None) -> list[Check]:
    """All checks that this folder allows: totals, then each file, then config.json.

    Headers that were read already may be given as `known`.
    """
    index, config = read_index(folder), read_config(folder)
    paths = weight_files(folder, index)
    headers: dict[str, Header] = dict(known or {})
    files = [_length(path, headers) for path in paths]
    warn_of_oddities(folder, headers, [path.name for path in paths])
    table = tensor_table(headers, config, is_tied)
    described = [*_head(config, table), *_architecture(folder, table)]
    if index is None or paths[0].name not in index.shards:  # one file, whatever an index beside it says
        return [*files, *described]
    totals = _totals(index, table, quantized=quantization_of(config) is not None)
    return [*totals, *files, *_placements(index, headers), *described]


def _compare(check: str, expected: int, found: int) -> Check:
    return Check(check, f"{expected:,}", f"{found:,}", expected == found)


def _totals(index: Index, table: pd.DataFrame, quantized: bool) -> Iterator[Check]:
    """The sums that the index states, against the same sums from the headers."""
    totals = {"total_size": "bytes", "total_parameters": "parameters"}
    if quantized:  # writers count packed weights and their scales in ways of their own
        del totals["total_parameters"]
    for total, column in totals.items():
        if total in index.totals:
            yield _compare(f"all shards: {column}", index.totals[total], int(table[column].sum()))


def _length(path: Path, headers: dict[str, Header]) -> Check:
    """The length that a header implies for its file, against the file; `headers` gains it where it is valid."""
    try:
        header = headers[path.name] = headers.get(path.name) or read_valid_header(path)
    except ModelError as error:
        return Check(f"{path.name}: header", "valid", str(error), False)
    return _compare(f"{path.name}: length", header.expected_bytes, header.file_bytes)


def _placements(index: Index, headers: dict[str, Header]) -> Iterator[Check]:
    """The tensors that the index places in each shard, against those that are in it."""
    by_shard: dict[str, set[str]] = {shard: set() for shard in index.shards}
    for tensor, shard in index.weight_map.items():
        by_shard[shard].add(tensor)
    for shard, header in headers.items():
        placed = by_shard[shard]
        differing = len(placed.symmetric_difference(header.names))
        found = f"{len(header.names):,}" + (f" ({differing:,} names differ)" if differing else "")
        yield Check(f"{shard}: tensors", f"{len(placed):,}", found, not differing)


def _head(config: dict[str, Any], table: pd.DataFrame) -> Iterator[Check]:
    """Whether config.json ties the head to the embedding, against whether a head is stored."""
    if isinstance(config.get("tie_word_embeddings"), bool):
        tied, stored = is_tied(config), bool((table["component"] == "head").any())
        expected = "tied, none stored" if tied else "one of its own"
        found = ("a copy is stored" if tied else "one of its own") if stored else "none stored"
        yield Check("output head", expected, expected if tied != stored else found, tied != stored)


def _architecture(folder: Path, table: pd.DataFrame) -> Iterator[Check]:
    """The parameters that transformers' own code builds from config.json, against those that the headers hold.

    Nothing where config.json describes no causal language model (a ModelWarning says so) or more than one. Left out
    are layers beyond the architecture's that its class skips on purpose: those that predict several tokens.
    """
    try:
        yield from _against_skeleton(folder, table)
    except ModelError as error:
        warn(f"Parameters are not compared with the architecture: {error}")


def _against_skeleton(folder: Path, table: pd.DataFrame) -> Iterator[Check]:
    config = read_architecture(folder)
    skeleton = skeleton_of(config)
    if (named := class_names(config)) and type(skeleton).__name__ not in named:
        return  # the text model of a larger one
    rules = skeleton._keys_to_ignore_on_load_unexpected or ()
    beyond = table["layer"].fillna(-1) >= layers_of(config)
    left_out = beyond & table["tensor"].map(lambda name: any(re.search(rule, name) for rule in rules))
    kept = table.loc[~left_out & ~table["tensor"].isin(_stored_buffers(skeleton))]
    yield _compare("architecture: parameters", count_parameters(skeleton), int(kept["parameters"].sum()))
    yield from _active(config, kept)


def _stored_buffers(skeleton: Any) -> set[str]:
    """What a model stores beside its parameters, such as the experts' corrections of DeepSeek-V3's router."""
    return dict(skeleton.named_buffers()).keys() & skeleton.state_dict().keys()


def _active(config: Any, table: pd.DataFrame) -> Iterator[Check]:
    """The parameters that one token uses: by the architecture, and by the names of the stored experts.

    Nothing for a dense model, and where the names do not tell the experts from the rest.
    """
    try:
        experts = experts_of(config)
    except ModelError as error:
        warn(f"Active parameters are not compared: {error}")
        return
    stored = int(table.loc[table["tensor"].str.contains(r"\.experts\."), "parameters"].sum())
    if experts is not None and stored:
        idle = stored * (experts[0] - experts[1]) // experts[0]
        found = int(table["parameters"].sum()) - idle
        yield _compare("architecture: active parameters per token", active_parameters(config), found)


def warn_of_packed(folder: Path, table: pd.DataFrame) -> None:
    """A ModelWarning where packed weights were unpacked to another number than the architecture has, dense."""
    unpacked = table["parameters"].gt(0) & table["parameters"].ne(table["elements"])
    if not unpacked.any() or not isinstance(read_config(folder).get("model_type"), str):
        return
    try:
        parameters = next(_against_skeleton(folder, table), None)
    except ModelError:  # an architecture that is not known here is no witness; `check_model` says so
        return
    if parameters is not None and not parameters.match:
        words = f"The packed weights unpack to {parameters.found} parameters, but the architecture has"
        warn(f"{words} {parameters.expected}.")
