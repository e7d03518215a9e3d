"""One safetensors file's header, valid to the last byte or refused. Headers are read, weights never.

The format, in one breath: 8 bytes little-endian give the length of a JSON header; the header maps each tensor's
name to its dtype, shape and place in the data that follows. So a few kilobytes tell all about many gigabytes.
Specification: https://huggingface.co/docs/safetensors/index#format
"""

import json
import os
import stat
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from base_model import ModelError, format_bytes, visible, warn
from base_model.read.limits import MAX_HEADER_BYTES

AGAIN = "Delete it and download it again."
Columns = tuple[list[str], list[str], list[tuple[int, ...]]]  # names, dtypes, shapes
WRONG_LENGTH = "Error while deserializing header: incomplete metadata, file not fully covered"
FIELDS = {"dtype", "shape", "data_offsets"}
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

UNOPENED = "It is not opened; find the model's safetensors files"
# What is often found where a safetensors file should be, by its first bytes.
LOOK_ALIKES = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights it stands for. Run `git lfs pull` or download it"),
    (b"<", "an HTML or XML page, likely an error message saved under this name. Delete it and download it again"),
    (b"{", "a JSON text, likely an error message saved under this name. Delete it and download it again"),
    (b"PK\x03\x04", f"a zip archive, perhaps PyTorch weights. {UNOPENED}"),
    *((bytes([0x80, protocol]), f"a Python pickle, perhaps PyTorch weights. {UNOPENED}") for protocol in range(2, 6)),
    (b"\x1f\x8b", "a gzip archive. Unpack it if you trust its source"),
    (b"GGUF", f"a GGUF file. {UNOPENED}"),
    (b"\x89HDF", f"an HDF5 file. {UNOPENED}"),
)


@dataclass(frozen=True)
class Header:
    """What one safetensors file says of itself: its tensors as columns of equal length, in the order of the data."""

    path: Path
    names: list[str]
    dtypes: list[str]  # as stored: F32, BF16, ...
    shapes: list[tuple[int, ...]]
    elements: list[int]
    sizes: list[int]  # bytes
    header_bytes: int  # the 8 bytes of length included
    file_bytes: int  # what is on the disk

    @property
    def expected_bytes(self) -> int:
        """The length that the header implies for the whole file."""
        return self.header_bytes + sum(self.sizes)


def read_header(path: Path) -> Header:
    """The header of one safetensors file, valid, with the file whole. Raises ModelError."""
    header = read_valid_header(path)
    difference = header.file_bytes - header.expected_bytes
    if difference:
        words = f"{format_bytes(-difference)} short: its download was cut off" if difference < 0 else "too long"
        raise ModelError(
            f"{visible(path.name)} is {words} ({header.file_bytes:,} bytes; its header implies "
            f"{header.expected_bytes:,}). {AGAIN}"
        )
    return header


def read_valid_header(path: Path) -> Header:
    """The same, but the data behind the header may be cut short or too long: compare the header's lengths."""
    with open_file(path) as file:
        file_bytes = os.fstat(file.fileno()).st_size
        text = _header_text(path, file, file_bytes)
    names, dtypes, shapes = _columns(path, text)
    counts = {shape: prod(shape) for shape in set(shapes)}
    elements = [counts[shape] for shape in shapes]
    sizes = [count * BITS[dtype] // 8 for count, dtype in zip(elements, dtypes, strict=True)]
    return Header(path, names, dtypes, shapes, elements, sizes, 8 + len(text), file_bytes)


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading; a pipe or a device would keep us waiting. Raises ModelError."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise ModelError(f"{visible(path.name)} is {kind}, not a file. Move it away and download the file again.")
        return path.open("rb")
    except FileNotFoundError as error:
        link = " (it is a broken link)" if path.is_symlink() else ""
        raise ModelError(f"{visible(path.name)} is missing{link}. Download it again.") from error
    except OSError as error:
        raise ModelError(f"{visible(path.name)} cannot be read: {error.strerror}. Check its permissions.") from error


def _header_text(path: Path, file: BinaryIO, file_bytes: int) -> bytes:
    """The header's JSON text; a file of another kind is named for what it is."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if 2 <= length <= min(MAX_HEADER_BYTES, file_bytes - 8) and start[8:] == b"{":
        return b"{" + file.read(length - 1)
    if length > MAX_HEADER_BYTES and start[8:] == b"{":
        words = f"claims a header of {length:,} bytes; the format allows {MAX_HEADER_BYTES:,}"
        raise ModelError(f"{visible(path.name)} {words}. {AGAIN}")
    if length >= 2 and start[8:] in (b"{", b""):
        raise ModelError(f"{visible(path.name)} ends within its header: its download was cut off. {AGAIN}")
    raise ModelError(f"{visible(path.name)} is {_look_alike(start)}.")


def _look_alike(start: bytes) -> str:
    if not start.strip(b"\0"):
        return f"empty, or begins with zeros: not a safetensors file. {AGAIN[:-1]}"
    known = (words for magic, words in LOOK_ALIKES if magic.startswith(start) or start.startswith(magic[:9]))
    return next(known, f"not a safetensors file: it does not begin with a header. {AGAIN[:-1]}")


def _columns(path: Path, text: bytes) -> Columns:
    """Let the safetensors library, in Rust, check and read the header; then refuse what it lets pass."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.offset_keys()
            slices = [file.get_slice(name) for name in names]
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        # The library says this last, of a header that is valid: the caller compares the lengths and can say more.
        if str(error) != WRONG_LENGTH:
            raise ModelError(f"{visible(path.name)} is not a valid safetensors file: {error}. {AGAIN}") from error
        return _parse(path, text)
    # A model has few shapes: one tuple for each, not for each tensor, spares the garbage collector most of its work.
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    shapes = [known.setdefault(shape, shape) for shape in (tuple(part.get_shape()) for part in slices)]
    columns = names, [part.get_dtype() for part in slices], shapes
    return columns if _plainly(*columns, metadata) == text.rstrip(b" ") else _parse(path, text)


def _plainly(names: list[str], dtypes: list[str], shapes: list[tuple[int, ...]], metadata: Any) -> bytes:
    """The header as any writer would put it: one that is just this says nothing twice and nothing else.

    Empty for names that need escapes; such a header is parsed in full instead, at three times the cost.
    """
    joined = "".join(names)
    if '"' in joined or "\\" in joined:
        return b""
    kinds = list(zip(dtypes, shapes, strict=True))
    beginning = {kind: (_entry_beginning(*kind), _size(*kind)) for kind in set(kinds)}
    parts = [] if metadata is None else [f'"__metadata__":{json.dumps(metadata, separators=(",", ":"))}']
    end = 0
    for name, kind in zip(names, kinds, strict=True):
        fields, size = beginning[kind]
        parts.append(f'"{name}":{fields}[{end},{end + size}]}}')
        end += size
    return ("{" + ",".join(parts) + "}").encode("utf-8")


def _entry_beginning(dtype: str, shape: tuple[int, ...]) -> str:
    return f'{{"dtype":"{dtype}","shape":{json.dumps(shape, separators=(",", ":"))},"data_offsets":'


def _size(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * BITS[dtype] // 8


def _parse(path: Path, text: bytes) -> Columns:
    """A header that the library found valid, as it reads it; what is odd is told, and names that stand twice are
    refused: another reader may take the other one."""
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{visible(path.name)} has an ambiguous header: {error}. {AGAIN}") from error
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
            raise ModelError(f"{visible(path.name)} describes {visible(name)} in an unknown way. {AGAIN}")
    _warn_of_surplus(path, entries)
    names = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    return names, [entries[name]["dtype"] for name in names], [tuple(entries[name]["shape"]) for name in names]


def _warn_of_surplus(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    surplus = {field: name for name, entry in entries.items() for field in entry.keys() - FIELDS}
    for field, name in surplus.items():
        words = f"describes {visible(name)} with an unknown {visible(field)}, which is ignored"
        warn(f"{visible(path.name)} {words}.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs) and not all(isinstance(value, str) for value in mapping.values()):  # notes may repeat
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{visible(name)} appears in it twice")
    return mapping
