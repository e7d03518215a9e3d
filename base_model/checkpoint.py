"""A model folder on disk: its files, its safetensors headers, its index. Headers are read, weights never.

The format, in one breath: 8 bytes little-endian give the length of a JSON header; the header maps each
tensor's name to its dtype, shape and place in the data that follows. So a few kilobytes tell all about
many gigabytes. Specification: https://huggingface.co/docs/safetensors/index#format
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from base_model import ModelError, format_bytes, visible

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
AGAIN = "Delete it and download it again."
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)


@dataclass(frozen=True)
class Header:
    """What one safetensors file says of itself."""

    path: Path
    tensors: dict[str, dict[str, Any]]  # name -> dtype, shape, data_offsets; in the order of the data
    header_bytes: int  # the 8 bytes of length included
    data_bytes: int  # the end of the last tensor
    file_bytes: int  # what is on the disk

    @property
    def expected_bytes(self) -> int:
        """The length that the header implies for the whole file."""
        return self.header_bytes + self.data_bytes


@dataclass(frozen=True)
class Index:
    """`model.safetensors.index.json`: which shard holds which tensor, and the totals that its writer noted."""

    path: Path
    weight_map: dict[str, str]
    metadata: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        """The files that the index names, by name."""
        return sorted(set(self.weight_map.values()))


def file_sizes(folder: Path) -> dict[str, int]:
    """`{relative name: bytes}` of every visible file; hidden ones (`.gitignore`, `.cache/`, `._x`) are left out."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible_names = (name for name in names if not any(part.startswith(".") for part in name.parts))
    return {name.as_posix(): (folder / name).stat().st_size for name in sorted(visible_names)}


def read_header(path: Path) -> Header:
    """The header of one safetensors file, refused unless it is valid and the file is whole."""
    header = parse_header(path)
    if header.file_bytes < header.expected_bytes:
        missing = format_bytes(header.expected_bytes - header.file_bytes)
        raise ModelError(f"{visible(path.name)} is {missing} short: its download was cut off. {AGAIN}")
    _judge(path)
    return header


def parse_header(path: Path) -> Header:
    """The header of one safetensors file as it stands, even when the data behind it are cut short."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            file_bytes = path.stat().st_size
            if not 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _not_safetensors(path)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = dict(sorted(header.items(), key=lambda item: item[1]["data_offsets"]))
        data_bytes = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except OSError as error:
        raise ModelError(
            f"{visible(path.name)} cannot be read: {error.strerror}. Check the file and its permissions."
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _not_safetensors(path) from error
    return Header(path, tensors, 8 + length, data_bytes, file_bytes)


def _judge(path: Path) -> None:
    """Let the safetensors library itself, in Rust, check the whole header against the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{visible(path.name)} is not a valid safetensors file: {error}. {AGAIN}") from error


def _not_safetensors(path: Path) -> ModelError:
    return ModelError(f"{visible(path.name)} does not begin with a safetensors header. {AGAIN}")


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{visible(path.name)} cannot be read: {error.strerror}. Check the file and its permissions.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder that must hold an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{visible(path.name)} cannot be read: {error.strerror}. Check the file and its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{visible(path.name)} is not valid JSON: {error}. {AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{visible(path.name)} holds no JSON object. {AGAIN}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, or an empty mapping where there is none."""
    path = folder / "config.json"
    return read_json(path) if path.exists() else {}


def read_index(folder: Path) -> Index | None:
    """The shard index, or None where the weights are one file."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    content = read_json(path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX_FILE} has no weight_map, so no tensor can be found. {AGAIN}")
    for file in weight_map.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or PurePosixPath(file).name != file:
            raise ModelError(f"{INDEX_FILE} names {visible(repr(file))}, which is no shard of this folder. {AGAIN}")
    return Index(path, weight_map, content.get("metadata") or {})


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: the index's shards, or `model.safetensors`."""
    index = read_index(folder)
    if index:
        return [folder / shard for shard in index.shards]
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    raise ModelError(f"{folder} holds no {SINGLE_FILE} and no {INDEX_FILE}: there are no weights to read here.")


def missing_parts(folder: Path) -> list[str]:
    """What keeps `folder` from being a complete model, one sentence each; empty when it is complete."""
    missing = [] if (folder / "config.json").is_file() else ["config.json is missing"]
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append(f"the tokenizer is missing ({', '.join(TOKENIZER_FILES[:3])}, ...)")
    index = read_index(folder)
    for shard in index.shards if index else [SINGLE_FILE]:
        missing += _missing_from(folder / shard)
    return missing


def _missing_from(path: Path) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is missing"]
    header = parse_header(path)
    if header.file_bytes == header.expected_bytes:
        return []
    return [f"{path.name} has {header.file_bytes:,} bytes, its header asks for {header.expected_bytes:,}"]
