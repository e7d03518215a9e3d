"""A model folder on disk: its files, its settings, its index, and whether it is complete."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_model import ModelError, visible, warn
from base_model.read.headers import AGAIN, Header, open_file, read_header, read_valid_header
from base_model.read.limits import MAX_FILES, MAX_JSON_BYTES

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)

_NUMBERED = re.compile(r"(.*?-)([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
OTHER_FORMATS = {
    ".bin": "PyTorch pickles",
    ".pt": "PyTorch pickles",
    ".pth": "PyTorch pickles",
    ".gguf": "GGUF weights",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".onnx": "ONNX weights",
}


@dataclass(frozen=True)
class Index:
    """`model.safetensors.index.json`: which shard holds which tensor, and the totals that its writer noted."""

    weight_map: dict[str, str]
    totals: dict[str, int]  # total_size (bytes), total_parameters; those that are there

    @property
    def shards(self) -> list[str]:
        """The files that the index names, by name."""
        return sorted(set(self.weight_map.values()))


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; a name that no disk can hold is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file, as far as may be seen."""
    try:
        return path.is_file()
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    """The visible names at the top of a folder. Raises ModelError if it may not be read."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}. Check its permissions.") from error


def file_sizes(folder: Path) -> dict[str, int]:
    """`{relative name: bytes}` of every visible file; hidden ones (`.gitignore`, `.cache/`, `._x`) are left out.

    Links count as what they point to; links to nothing, pipes, devices, and what may not be looked at are left out.
    """
    sizes = {}
    for number, path in enumerate(_walk(folder)):
        if number > MAX_FILES:
            raise ModelError(
                f"{folder} holds more than {MAX_FILES:,} files and folders: no model has so many. Give the model's own "
                "folder."
            )
        if (size := _size(path)) is not None:
            sizes[path.relative_to(folder).as_posix()] = size
    return dict(sorted(sizes.items()))


def _size(path: Path) -> int | None:
    """The bytes of a regular file; None for anything else, for what has just gone, or may not be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _walk(folder: Path) -> Iterator[Path]:
    """Folders too, so that millions of them, empty, are noticed as well."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield Path(place)
        yield from (Path(place, name) for name in files if not name.startswith("."))


def in_home(path: Any) -> Path:
    """A path of the user's, with `~` as the home folder. Raises ModelError for what is none, or an unknown user's."""
    try:
        return Path(path).expanduser()
    except TypeError as error:
        raise ModelError(f"A file or folder is given by its path, as text or a Path, not {path!r}.") from error
    except RuntimeError as error:
        raise ModelError(f"{visible(str(path))} names the home of an unknown user. Give a full path.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of the folder that must hold an object. Raises ModelError."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise ModelError(f"{visible(path.name)} is {size:,} bytes, too large for a settings file. {AGAIN}")
        text = file.read()
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        of_bytes = isinstance(error, UnicodeDecodeError) or "BOM" in str(error)
        raise ModelError(
            f"{visible(path.name)} is not valid JSON: {error}. {'Save it as plain UTF-8.' if of_bytes else AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{visible(path.name)} is not a JSON object. {AGAIN}")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, or an empty mapping where there is none."""
    path = folder / "config.json"
    return read_json(path) if os.path.lexists(path) else {}


def read_index(folder: Path) -> Index | None:
    """The shard index, or None where there is none. Raises ModelError when it cannot be followed.

    Beside model.safetensors, which is the model then, an index that cannot be followed is left out, with a warning.
    """
    if not os.path.lexists(folder / INDEX_FILE):
        return None
    try:
        return _parse_index(read_json(folder / INDEX_FILE))
    except ModelError as error:
        if not os.path.lexists(folder / SINGLE_FILE):
            raise
        warn(f"{SINGLE_FILE} is the model; the index next to it is ignored: {error}")
        return None


def _parse_index(content: dict[str, Any]) -> Index:
    weight_map, metadata = content.get("weight_map"), content.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{INDEX_FILE} has no weight_map, so no tensor can be found. {AGAIN}")
    for file in set(map(str, weight_map.values())):
        if not _is_shard_name(file):
            raise ModelError(f"{INDEX_FILE} names {visible(file)!r}, which is not a shard in this folder. {AGAIN}")
    if not isinstance(metadata, dict):
        warn(f"{INDEX_FILE} has metadata that is not a JSON object; it is ignored.")
        metadata = {}
    return Index(weight_map, dict(_totals(metadata)))


def _is_shard_name(name: str) -> bool:
    """A safetensors file of the folder itself: nothing above, below or beside it, and no name that no disk takes."""
    if not name.endswith(".safetensors") or re.search(r"[/\\\0\ud800-\udfff]", name):
        return False
    return len(name.encode()) <= 255


def _totals(metadata: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The totals that are counts; transformers reads none of them, so a fault is reported and the total ignored."""
    for name in ("total_size", "total_parameters"):
        if name not in metadata:
            continue
        total = metadata[name]
        # some writers store a whole number as a float
        if isinstance(total, bool) or not isinstance(total, int | float) or not total >= 0 or total % 1:
            words = f"gives {visible(repr(total))[:100]} as {name}, which is not a count and is ignored"
            warn(f"{INDEX_FILE} {words}.")
        else:
            yield name, int(total)


def weight_files(folder: Path, index: Index | None) -> list[Path]:
    """The safetensors files that make up the model, as transformers chooses: `model.safetensors`, else the shards."""
    if os.path.lexists(folder / SINGLE_FILE):
        paths = [folder / SINGLE_FILE]
    elif index:
        paths = [folder / shard for shard in index.shards]
    else:
        raise ModelError(f"{folder} holds no weights to read: {explain_absence(folder)}.")
    for path in filter(Path.is_symlink, paths):
        _require_inside(folder, path)
    return paths


def _require_inside(folder: Path, link: Path) -> None:
    """A link may lead within the folder, or from a Hub cache snapshot to its blobs; anything else is not this model."""
    home = folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    target = Path(os.path.realpath(link))  # which takes a link to itself, too
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise ModelError(f"{visible(link.name)} is a link that leads out of {folder}. Put the file itself there.")


def model_headers(folder: Path, known: Mapping[str, Header]) -> dict[str, Header]:
    """`{file name: header}` of the model's weights, every file whole, and in agreement with the index.

    `known` are the headers of whole files that were read already.
    Raises ModelError for tensors that are missing or stored twice; warns of files that are not part of the model.
    """
    index = read_index(folder)
    headers = {path.name: known.get(path.name) or read_header(path) for path in weight_files(folder, index)}
    if index and SINGLE_FILE not in headers:
        _require_places(index, headers)
    warn_of_oddities(folder, headers, headers)
    strays = [path.name for path in sorted(folder.glob("model*.safetensors")) if path.name not in headers]
    if strays:
        files = ", ".join(map(visible, strays))
        warn(f"{files}: in the folder but not part of the model, so not counted.")
    return headers


def warn_of_oddities(folder: Path, headers: Mapping[str, Header], files: Iterable[str]) -> None:
    """A warning for each thing that can be read, but is likely not what was meant; `files` are the model's weights."""
    names = names_in(folder)
    for name, header in headers.items():
        if not header.names:
            _warn_of(name, "holds no tensors")
    for name in names:
        if (whole := name.removesuffix(".aria2")) != name and whole in names:
            _warn_of(whole, f"is not fully downloaded: {visible(name)} is next to it. Let aria2 finish")
    if gaps := ", ".join(_gaps(files)):
        _warn_of(gaps, "is missing from the numbered shards, and the index names no tensor in it")


def _warn_of(name: str, words: str) -> None:
    warn(f"{visible(name)} {words}.")


def _gaps(files: Iterable[str]) -> Iterator[str]:
    """The shards that should be there by the numbers in the others' names."""
    parts = [match for name in files if (match := _NUMBERED.fullmatch(name))]
    for start, count in {(match[1], match[3]) for match in parts}:
        numbers = {int(match[2]) for match in parts if (match[1], match[3]) == (start, count)}
        first = 0 if 0 in numbers else 1
        for number in range(first, first + int(count) if int(count) <= MAX_FILES else 0):
            if number not in numbers:
                yield f"{start}{number:0{len(count)}d}-of-{count}.safetensors"


def readable_headers(folder: Path, names: Iterable[str]) -> dict[str, Header]:
    """The headers of a folder's safetensors files; a warning for each file without a valid one.

    Second copies, as in original/ or consolidated.safetensors, are left out: they would count twice.
    """
    headers = {}
    for name in names:
        if name.endswith(".safetensors") and "/" not in name and not name.startswith("consolidated"):
            try:
                headers[name] = read_header(folder / name)
            except ModelError as error:
                warn(f"No parameters are counted in one file. {error}")
    return headers


def _require_places(index: Index, headers: dict[str, Header]) -> None:
    """Every tensor must be in the one shard that the index says, and in no other."""
    found = {name: file for file, header in headers.items() for name in header.names}
    if found == index.weight_map and len(found) == sum(len(header.names) for header in headers.values()):
        return
    held = {file: set(header.names) for file, header in headers.items()}
    for name, file in index.weight_map.items():
        if name not in held[file]:
            raise _do_not_belong(file, f"does not hold {visible(name)}, though {INDEX_FILE} says so")
    for file, names in held.items():
        for name in names:
            if (place := index.weight_map.get(name)) != file:
                where = f"places in {visible(place)}" if place else "does not name"
                raise _do_not_belong(file, f"holds {visible(name)}, which {INDEX_FILE} {where}")


def _do_not_belong(file: str, fault: str) -> ModelError:
    return ModelError(f"{visible(file)} {fault}: the files do not belong together. Download both again.")


@dataclass(frozen=True)
class Completeness:
    """What keeps a folder from being a complete model, one sentence each, and the headers read to find out."""

    missing: list[str]
    headers: dict[str, Header]  # by file name; valid ones


def completeness(folder: Path) -> Completeness:
    """Whether `folder` is a complete model: config.json, a tokenizer, every weight file at its full length."""
    names = set(names_in(folder))
    missing = [] if is_file(folder / "config.json") else ["config.json is missing"]
    if not any(is_file(folder / name) for name in names.intersection(TOKENIZER_FILES)):
        missing.append(f"the tokenizer is missing ({', '.join(TOKENIZER_FILES[:3])}, ...)")
    if names.isdisjoint((SINGLE_FILE, INDEX_FILE)):
        return Completeness([*missing, f"the weights are missing: {explain_absence(folder)}"], {})
    paths = weight_files(folder, read_index(folder))
    headers = {path.name: read_valid_header(path) for path in paths if os.path.lexists(path)}
    missing += [f"{visible(path.name)} is missing" for path in paths if path.name not in headers]
    for name, header in headers.items():
        if header.file_bytes != header.expected_bytes:
            lengths = f"{header.file_bytes:,} bytes; its header implies {header.expected_bytes:,}"
            missing.append(f"{visible(name)} has {lengths}")
    return Completeness(missing, headers)


def explain_absence(folder: Path) -> str:
    """Why there are no weights to read in `folder`: what it holds instead, and the next step, without a full stop."""
    names = names_in(folder)
    if not names:
        return "the folder is empty"
    if shards := [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]:
        count = int(shards[0].split("-of-")[1].split(".")[0])
        return f"{len(shards)} of {count} shards are there, but not their index. Download {INDEX_FILE}"
    if models := _models_below(folder):
        return f"the model is in a subfolder. Give {', '.join(visible(str(model)) for model in models[:3])}"
    if "adapter_config.json" in names:
        base = visible(str(read_json(folder / "adapter_config.json").get("base_model_name_or_path")))
        return f"this is a PEFT adapter for the base model {base}. Give that model"
    for suffix, words in OTHER_FORMATS.items():
        if found := [name for name in names if name.endswith(suffix)]:
            return f"{visible(found[0])} holds {words}, which are not opened. Get the model's safetensors files"
    return f"there is no {SINGLE_FILE} and no {INDEX_FILE}. Give the folder of a model, or download one"


def _models_below(folder: Path) -> list[Path]:
    """The model folders one level down, or in a Hub cache, two or three."""
    cached = "models--*/snapshots/*/config.json"
    patterns = ("*/config.json", "snapshots/*/config.json", cached, f"hub/{cached}")
    return [path.parent for pattern in patterns for path in sorted(folder.glob(pattern))]
