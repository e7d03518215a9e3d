"""Every number that a model folder states twice, compared: the index, the headers, the files, config.json."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from base_model.checkpoint import (
    Header,
    Index,
    parse_header,
    read_config,
    read_index,
    weight_files,
)
from base_model.tensors import layer_and_component


class Check(NamedTuple):
    """One comparison, ready to be a row; numbers are written with separators."""

    check: str
    expected: str
    found: str
    match: bool


def run_checks(folder: Path) -> list[Check]:
    """All checks that this folder allows, most telling first."""
    paths = weight_files(folder)
    headers = {path.name: parse_header(path) for path in paths if path.is_file()}
    index = read_index(folder)
    checks = [*_lengths(paths, headers)]
    if index is not None:
        checks = [*_totals(index, headers), *checks, *_placements(index, headers)]
    return [*checks, *_tied_weights(read_config(folder), headers)]


def _compare(check: str, expected: int, found: int) -> Check:
    return Check(check, f"{expected:,}", f"{found:,}", expected == found)


def _totals(index: Index, headers: dict[str, Header]) -> Iterator[Check]:
    """The sums that the index states, against the same sums from the headers."""
    tensors = [facts for header in headers.values() for facts in header.tensors.values()]
    if "total_size" in index.metadata:
        found = sum(facts["data_offsets"][1] - facts["data_offsets"][0] for facts in tensors)
        yield _compare("all shards: bytes", index.metadata["total_size"], found)
    if "total_parameters" in index.metadata:
        found = sum(prod(facts["shape"]) for facts in tensors)
        yield _compare("all shards: elements", index.metadata["total_parameters"], found)


def _lengths(paths: list[Path], headers: dict[str, Header]) -> Iterator[Check]:
    """The length that each header implies for its file, against the file on the disk."""
    for path in paths:
        header = headers.get(path.name)
        check = f"{path.name}: length"
        if header is None:
            yield Check(check, "a file", "none", False)
        else:
            yield _compare(check, header.expected_bytes, header.file_bytes)


def _placements(index: Index, headers: dict[str, Header]) -> Iterator[Check]:
    """The tensors that the index places in each shard, against those that are in it."""
    for shard, header in headers.items():
        placed = {tensor for tensor, file in index.weight_map.items() if file == shard}
        differing = len(placed ^ header.tensors.keys())
        found = f"{len(header.tensors):,}" + (f" ({differing:,} names differ)" if differing else "")
        yield Check(f"{shard}: tensors", f"{len(placed):,}", found, not differing)


def _tied_weights(config: dict, headers: dict[str, Header]) -> Iterator[Check]:
    """Whether config.json ties the head to the embedding, against whether a head is stored."""
    if "tie_word_embeddings" not in config:
        return
    stored = any(layer_and_component(name)[1] == "head" for header in headers.values() for name in header.tensors)
    tied = bool(config["tie_word_embeddings"])
    words = {True: "tied, no head stored", False: "a head of its own"}
    yield Check("output head", words[tied], words[not stored], tied != stored)
