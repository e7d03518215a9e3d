"""The Hugging Face Hub: what a download would bring, the download, and access faults in plain words."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base_model import ModelError, format_bytes

# Copies that transformers does not read: the publisher's own layout, and other formats of the same weights.
LEFT_OUT = [
    "original/*", "consolidated*", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.pkl", "*.h5", "*.msgpack", "*.ot",
    "*.gguf", "*.onnx*", "onnx/*", "openvino*", "*coreml/*", "*.mlmodel", "*.mlpackage/*", "*.tflite", "*.nemo",
    "model.fp*.safetensors", ".*",
]  # fmt: skip

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
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{model} has no safetensors weights, the only format read here. Pick another model or revision."
        )


def _require_no_strangers(folder: Path, names: list[str]) -> None:
    """A download replaces files of the same name: stop if one of them did not come from the Hub."""
    records = folder / ".cache" / "huggingface" / "download"
    strangers = [name for name in names if (folder / name).exists() and not (records / f"{name}.metadata").exists()]
    if strangers:
        raise ModelError(
            f"{folder} already holds {', '.join(strangers)}, not downloaded by the Hub client; the download would "
            "replace them. Move them away, or give another folder: fetch_model(model, folder=...)."
        )


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
    from huggingface_hub.errors import DryRunError, HfHubHTTPError
    from huggingface_hub.utils import httpx

    try:
        yield
    except DryRunError as error:  # it hides the true reason, which is its cause
        raise ModelError(_words(model, error.__cause__ or error)) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ModelError(_words(model, error)) from error


def _words(model: str, error: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    without = "Or run `make demo`, which needs no account."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{model} is gated: request access at https://huggingface.co/{model}, create a token at "
            f"https://huggingface.co/settings/tokens, run `hf auth login`, then run this again. {without}"
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{model} is gated and your account has no access yet: request it at https://huggingface.co/{model} "
            f"(`hf auth whoami` shows the account), wait for the mail, then run this again. {without}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub knows no model {model}, or it is private: check the spelling at https://huggingface.co/models, "
            f"and `hf auth login` if it is yours. {without}"
        )
    if status == 401:
        return f"The Hub refused your token: it is wrong or has expired. Run `hf auth login` again. {without}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{model} is not on this disk, and HF_HUB_OFFLINE forbids asking the Hub. Unset it. {without}"
    if isinstance(error, OSError) and error.errno == 28:
        return f"The disk filled up while {model} came in. Free some space, then run this again."
    return f"The Hub could not be reached for {model} ({type(error).__name__}). Check the network, try again. {without}"
