"""A download from the Hub: planned and announced before it begins, stopped at once when asked, checked at the end."""

import hashlib
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from base_model import ModelError, format_bytes, visible
from base_model.hub.access import HubId, faults_in_words, model_info
from base_model.hub.limits import ask, file_of, require_wanted, side_by_side
from base_model.read.folder import INDEX_FILE, SINGLE_FILE, TOKENIZER_FILES

# Copies that transformers does not read: the publisher's own layout, and other formats of the same weights.
LEFT_OUT = [
    "original/*", "consolidated*", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.ot",
    "*.gguf", "*.onnx*", "onnx/*", "openvino*", "*coreml/*", "*.mlmodel", "*.mlpackage/*", "*.tflite", "*.nemo",
    "model.fp*.safetensors", ".*",
]  # fmt: skip
RECORDS = Path(".cache", "huggingface", "download")  # where the Hub client notes what it brought into a folder
CONNECTIONS = 4
UNSAFE = r"^/|^\w:|[\\\0]|(^|/)(\.{0,2}/|\.{0,2}$)"  # leads elsewhere, on one system or another


class NoSpaceError(ModelError):
    """The one fault that leaves another way: the model can still be read over the network."""


@dataclass(frozen=True)
class Plan:
    """What a download would bring: `{file: bytes}` each."""

    commit: str
    gated: bool
    coming: dict[str, int]
    there: dict[str, int]
    left_out: dict[str, int]


def make_plan(model: HubId, folder: Path) -> Plan:
    """The files of a model on the Hub, sorted into those to come, those already there, and those not needed."""
    from huggingface_hub.utils import filter_repo_objects

    info = model_info(model)
    files = {file.rfilename: file for file in info.siblings}
    needed = set(filter_repo_objects(files, ignore_patterns=LEFT_OUT))
    if unsafe := [name for name in needed if re.search(UNSAFE, name)]:
        raise ModelError(
            f"{model.name} lists {visible(unsafe[0])!r}, a name that leads out of its folder: nothing was downloaded. "
            "Tell the model's authors, or pick another model."
        )
    there = {name for name in needed if _is_current(folder, files[name])}
    groups = [needed - there, there, files.keys() - needed]
    return Plan(
        info.sha, bool(info.gated), *({name: files[name].size or 0 for name in sorted(group)} for group in groups)
    )


def download(model: HubId, folder: Path) -> None:
    """Bring every file that transformers needs into `folder`, after saying how much that is.

    What is already there and came from the Hub is kept; nothing of another origin is overwritten. Ctrl-C stops it
    within two seconds and leaves the finished files. Raises ModelError for an access fault, a model that cannot be
    used, a full disk, or files in the way.
    """
    plan = make_plan(model, folder)
    _require_usable(model, {**plan.coming, **plan.there})
    _require_no_strangers(folder, list(plan.coming))
    free = _require_space(folder, sum(plan.coming.values()))
    if plan.gated:
        _require_access(model)
    print(_announcement(model, folder, plan, free))
    with faults_in_words(model.name):
        _bring(model, folder, plan)


def _announcement(model: HubId, folder: Path, plan: Plan, free: int) -> str:
    lines = [
        f"Downloading {_amount(plan.coming)} of {model.name} (commit {plan.commit[:8]}) into {folder.name}/; "
        f"{format_bytes(free)} are free."
    ]
    if plan.there:
        lines.append(f"Already there: {_amount(plan.there)}.")
    if plan.left_out:
        lines.append(
            f"Left out, since transformers does not read them (original/, other formats): {_amount(plan.left_out)}."
        )
    if words := on_leftovers(folder):
        lines.append(words)
    return "\n".join(lines)


def _amount(files: dict[str, int]) -> str:
    return f"{len(files)} {'file' if len(files) == 1 else 'files'}, {format_bytes(sum(files.values()))}"


def _is_current(folder: Path, file: Any) -> bool:
    """Whether the Hub's file is in `folder` already: its hash as the client noted it, or else as it is."""
    path, record = folder / file.rfilename, _record(folder, file.rfilename)
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    expected = file.lfs.sha256 if file.lfs else file.blob_id
    if record and _is_unchanged(path, record):
        return bool(record[1] == expected)
    return _hash(path, bool(file.lfs)) == expected


def _hash(path: Path, is_large: bool) -> str:
    """As the Hub has it: git's own for a small file, SHA-256 for a large one."""
    digest = hashlib.sha256() if is_large else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _record(folder: Path, name: str) -> list[str] | None:
    """The client's note of a file that it brought (commit, hash, time), or None where there is no sound one."""
    path = folder / RECORDS / f"{name}.metadata"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return lines if len(lines) == 3 and lines[2].replace(".", "", 1).isdecimal() else None


def _is_unchanged(path: Path, record: list[str]) -> bool:
    return path.stat().st_mtime - 1 <= float(record[2])


def commits(folder: Path) -> list[str]:
    """The Hub commits that the files of a folder were brought from; empty where the client has brought none."""
    records = [path.read_text(encoding="utf-8").splitlines() for path in sorted((folder / RECORDS).rglob("*.metadata"))]
    return sorted({lines[0] for lines in records if lines})


def _require_usable(model: HubId, files: dict[str, int]) -> None:
    lacks = [name for name in ("config.json",) if name not in files]
    if SINGLE_FILE not in files and INDEX_FILE not in files:  # an adapter or a diffusion model has others
        lacks.append(f"safetensors weights ({SINGLE_FILE} or {INDEX_FILE})")
    if not any(name in files for name in TOKENIZER_FILES):
        lacks.append("a tokenizer")
    if lacks:
        raise ModelError(f"{model.name} has no {' and no '.join(lacks)}, so it cannot be used. Pick another model.")


def _require_no_strangers(folder: Path, names: list[str]) -> None:
    """A download replaces files of the same name: stop if one of them did not come from the Hub as it is now."""
    strangers = []
    for name in names:
        record = _record(folder, name)
        if (folder / name).exists() and not (record and _is_unchanged(folder / name, record)):
            strangers.append(name)
    if strangers:
        files = ", ".join(map(visible, strangers))
        raise ModelError(
            f"{folder} already holds {files}, not downloaded by the Hub client or changed since. The download would "
            "replace them. Move them away, or give another folder: fetch_model(model, folder=...)."
        )


def _require_space(folder: Path, size: int) -> int:
    """The free bytes; all of the download must fit on the disk, or its first byte is not asked for."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise NoSpaceError(
            f"The download needs {format_bytes(size)}; the disk of {folder} has {format_bytes(free)} free. "
            "Free some space, or give a folder on another disk: fetch_model(model, folder=...)."
        )
    return free


def _require_access(model: HubId) -> None:
    from huggingface_hub import HfApi

    with faults_in_words(model.name):
        ask(lambda: HfApi().auth_check(model.name))


def _bring(model: HubId, folder: Path, plan: Plan) -> None:
    """Download the coming files over some connections at once, smallest first, so that faults show early."""
    from huggingface_hub.utils import tqdm

    earlier = set(leftovers(folder))
    # disable=None: quiet where nobody watches, in a pipe or a file
    total = tqdm(total=sum(plan.coming.values()), desc="all files", unit="B", unit_scale=True, disable=None)
    by_size = sorted(plan.coming.items(), key=lambda item: item[1])
    try:
        side_by_side([partial(_fetch, model, folder, plan.commit, *item, total) for item in by_size], CONNECTIONS)
    except BaseException as error:
        _drop(set(leftovers(folder)) - earlier)
        if isinstance(error, KeyboardInterrupt):
            _say_what_is_left(folder, plan)
        raise
    finally:
        total.close()


def _drop(unfinished: Iterable[Path]) -> None:
    """Delete what no later run would use; the threads that still write to it end at their next piece."""
    for path in unfinished:
        with suppress(OSError):  # Windows keeps a file that is open; its thread deletes it
            path.unlink(missing_ok=True)


def _fetch(model: HubId, folder: Path, commit: str, name: str, size: int, total: Any) -> None:
    """Bring one file, unless it is stopped."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """The client's progress bar of one file, which ends the transfer when it is stopped."""

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(
                *arguments, **{**options, "desc": visible(name)}
            )  # the client would show the end of a long address

        def update(self, n: float | None = 1) -> bool | None:
            """Called with each piece of the file."""
            require_wanted()
            total.update(n)
            return super().update(n)

    with file_of(size):
        hf_hub_download(model.name, name, revision=commit, local_dir=folder, tqdm_class=Bar)


def _say_what_is_left(folder: Path, plan: Plan) -> None:
    records = {name: _record(folder, name) for name in plan.coming}
    left = {name: plan.coming[name] for name, record in records.items() if not record or record[0] != plan.commit}
    finished = len(plan.coming) - len(left)
    print(f"\nStopped. {finished} of {len(plan.coming)} files are finished and kept.", end=" ")
    print(f"The next run fetches {_amount(left)}.")


def verify(model: HubId, folder: Path) -> None:
    """Compare every file's hash with the Hub's, at the commit it was brought from. Raises ModelError naming those that
    differ."""
    from huggingface_hub import HfApi

    brought = commits(folder)
    revision = brought[0] if len(brought) == 1 else model.revision  # the branch may have moved on since
    with faults_in_words(model.name):
        result = ask(lambda: HfApi().verify_repo_checksums(model.name, revision=revision, local_dir=folder))
    if result.mismatches:
        names = ", ".join(visible(mismatch["path"]) for mismatch in result.mismatches)
        raise ModelError(f"In {folder}, {names} differ from the Hub's hashes. Delete them, then run this again.")


def leftovers(folder: Path) -> list[Path]:
    """The unfinished files that killed downloads have left in a folder; no later run uses them."""
    return sorted((folder / RECORDS).rglob("*.incomplete"))


def on_leftovers(folder: Path) -> str:
    """What the unfinished files in a folder take, in a sentence; empty where there are none."""
    unfinished = leftovers(folder)
    size = sum(path.lstat().st_size for path in unfinished)
    words = f"Unfinished files of a killed download take {format_bytes(size)}: `remove_leftovers` frees them."
    return words if unfinished else ""


def remove_leftovers(folder: str | Path) -> int:
    """Delete the unfinished files that killed downloads have left in a folder; the bytes that this frees."""
    unfinished = leftovers(Path(folder))
    freed = sum(path.lstat().st_size for path in unfinished)
    for path in unfinished:
        path.unlink(missing_ok=True)
    return freed
