"""The Hugging Face Hub: what a download would bring, the download, and access faults in plain words."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base_model import ModelError, format_bytes
from base_model.checkpoint import INDEX_FILE, SINGLE_FILE

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

# Copies that transformers does not read: the publisher's own layout, and other formats of the same weights.
LEFT_OUT = [
    "original/*", "consolidated*", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.ot",
    "*.gguf", "*.onnx*", "onnx/*", "openvino*", "*coreml/*", "*.mlmodel", "*.mlpackage/*", "*.tflite", "*.nemo",
    "model.fp*.safetensors", ".*",
]  # fmt: skip

WITHOUT = "Or run `make demo`, which needs no account."

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `org/name`."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(".")


def download(model: str, folder: Path) -> None:
    """Bring every file that transformers needs into `folder`, after saying how much will come.

    What is already there and came from the Hub is kept; nothing of another origin is overwritten.
    Raises ModelError for an access fault, a model without safetensors, a full disk, or files in the way.
    """
    with _faults_in_words(model):
        plan = _snapshot(model, folder, dry_run=True)
        _require_safetensors(model, [file.filename for file in plan])
        coming = [file for file in plan if file.will_download]
        _require_no_strangers(folder, [file.filename for file in coming])
        size = sum(file.file_size or 0 for file in coming)
        _require_space(folder, size)
        print(f"Downloading {len(coming)} files, {format_bytes(size)}, of {model} into {folder.name}/ ...")
        _snapshot(model, folder)


def _snapshot(model: str, folder: Path, **options: Any) -> Any:
    from huggingface_hub import snapshot_download

    return snapshot_download(model, local_dir=folder, ignore_patterns=LEFT_OUT, **options)


def _require_safetensors(model: str, names: list[str]) -> None:
    if SINGLE_FILE not in names and INDEX_FILE not in names:  # an adapter or a diffusion model has others
        raise ModelError(
            f"{model} has no safetensors weights ({SINGLE_FILE} or {INDEX_FILE}), the only ones read here. "
            "Pick another model or revision."
        )


def _require_no_strangers(folder: Path, names: list[str]) -> None:
    """A download replaces files of the same name: stop if one of them did not come from the Hub as it is now."""
    strangers = [name for name in sorted(names) if (folder / name).exists() and not _came_from_hub(folder, name)]
    if strangers:
        raise ModelError(
            f"{folder} already holds {', '.join(strangers)}, not downloaded by the Hub client or changed since; the "
            "download would replace them. Move them away, or give another folder: fetch_model(model, folder=...)."
        )


def _came_from_hub(folder: Path, name: str) -> bool:
    """Whether the client's own record (commit, hash, time, a line each) is there and no older than the file."""
    record = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    if not record.exists():
        return False
    return (folder / name).stat().st_mtime - 1 <= float(record.read_text().splitlines()[2])


def _require_space(folder: Path, size: int) -> None:
    """All of the download must fit on the disk, or its first byte is not asked for."""
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise ModelError(
            f"The download needs {format_bytes(size)}, the disk of {folder} has {format_bytes(free)} free. "
            "Free some space, or give a folder on another disk: fetch_model(model, folder=...)."
        )


@contextmanager
def _faults_in_words(model: str) -> Iterator[None]:
    """Turn what the Hub client raises into a ModelError that says what to do next."""
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        yield
    # The last three: an id or token that cannot be sent, a page that is not the Hub's, a plan the client cannot make.
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, KeyError, AssertionError) as error:
        hides_reason = isinstance(error, DryRunError | LocalEntryNotFoundError)
        raise ModelError(_words(model, (hides_reason and error.__cause__) or error)) from error


def _words(model: str, error: BaseException) -> str:
    """What happened, and the next step."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"{_refusal(model, error)} {WITHOUT}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk filled up while {model} came in. Free some space, then run this again."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written: {error.strerror}. Give another folder."
    return f"{_hindrance(model, error)} {WITHOUT}"


def _refusal(model: str, error: "HfHubHTTPError") -> str:
    """An answer of the Hub that is not the file, in words."""
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{model} is gated: request access at https://huggingface.co/{model}, create a token at "
            "https://huggingface.co/settings/tokens, run `hf auth login`, then run this again."
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{model} is gated and your account has no access yet: request it at https://huggingface.co/{model} "
            "(`hf auth whoami` shows the account), wait for the mail, then run this again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub knows no model {model}, or it is private: check the spelling at https://huggingface.co/models, "
            "and `hf auth login` if it is yours."
        )
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {model}. Its page may say why: https://huggingface.co/{model}."
    if status == 401:
        return "The Hub refused your token: it is wrong or has expired. Run `hf auth login` again."
    if status == 403:
        return (
            f'The Hub does not let your token read {model}: allow "read access to public gated repositories" for it at '
            "https://huggingface.co/settings/tokens, or run `hf auth login` with another."
        )
    if status == 429:
        return "The Hub has had too many requests from here: wait some minutes, then run this again."
    return f"The Hub could not be reached for {model} (it answered {status}). Wait a little and try again."


def _hindrance(model: str, error: BaseException) -> str:
    """Why the Hub was not asked, or not understood, in words."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return f"{model} is no Hub id: {error} Check the spelling at https://huggingface.co/models."
    if isinstance(error, UnicodeEncodeError):
        return "Your token holds a character that no token has. Run `hf auth login` again."
    if isinstance(error, OfflineModeIsEnabled):
        return f"{model} is not on this disk, and HF_HUB_OFFLINE forbids asking the Hub. Unset it."
    return f"The Hub could not be reached for {model} ({type(error).__name__}). Check the network, try again."
