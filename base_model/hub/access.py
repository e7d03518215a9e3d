"""The Hugging Face Hub: ids, the public facts of a model, and access faults in plain words."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from base_model import ModelError, brief, format_bytes, format_count, visible
from base_model.hub.limits import OverLimitError, ask
from base_model.read.folder import MAX_FILES

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

WITHOUT = "Or run `make demo`, which needs no account."
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")

_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


class UnknownModelError(ModelError):
    """No such model, or a private one; the caller may know a name on this disk that is close."""


@dataclass(frozen=True)
class HubId:
    """`org/name`, or `org/name@revision` with a branch, tag or commit."""

    name: str
    revision: str | None = None

    @property
    def folder(self) -> str:
        """What its local folder is called; a pinned revision has one of its own."""
        name = self.name.rpartition("/")[2]
        return name if self.revision is None else f"{name}@{self.revision.replace('/', '-')}"


def parse_id(text: str) -> HubId | None:
    """The Hub id that `text` is, or None: `org/name` -> `HubId("org/name")`."""
    match = _HUB_ID.fullmatch(text)
    return HubId(match["name"], match["revision"]) if match and not text.startswith(".") else None


def model_info(model: HubId) -> Any:
    """What the Hub says about a model in one request: files with sizes and hashes, commit, gate, licence, parameters.

    Public even for a gated model. Raises ModelError, also for an answer that is not what the Hub would say.
    """
    from huggingface_hub import HfApi

    with faults_in_words(model.name):
        info = ask(lambda: HfApi().model_info(model.name, revision=model.revision, files_metadata=True))
        if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40,64}", info.sha):
            raise ValueError("it names no commit")
        if not isinstance(info.siblings, list) or len(info.siblings) > MAX_FILES:
            raise ValueError(f"it lists no files, or more than {MAX_FILES:,}")
        for file in info.siblings:
            _require_sound(file)
    return info


def _require_sound(file: Any) -> None:
    """Stop where an entry of the list of files has not the types of one. Raises ValueError."""
    sizes = [file.size, file.lfs.size] if file.lfs else [file.size]
    if any(size is not None and (type(size) is not int or size < 0) for size in sizes):
        raise ValueError("it states a size that is not a number")
    names = [file.rfilename, file.blob_id or "", file.lfs.sha256 if file.lfs else ""]
    if not all(isinstance(name, str) for name in names) or not file.rfilename:
        raise ValueError("it lists a file whose name or hash is not text")


def public_facts(model: HubId) -> dict[str, str]:
    """The facts that need no access, in words, safe to print."""
    info = model_info(model)
    size = sum(file.size or 0 for file in info.siblings)
    parameters, dtypes = _stated_weights(info.safetensors)
    facts = {
        "model": f"https://huggingface.co/{model.name}",
        "commit": info.sha,
        "access": f"gated ({info.gated}): request it at the model's page" if info.gated else "open",
        "licence": _stated_licence(info.card_data),
        "files": f"{len(info.siblings)}, {format_bytes(size)} in all",
        "parameters": parameters,
        "stored as": dtypes,
    }
    return {fact: brief(Exception(value)) for fact, value in facts.items()}


def _stated_licence(card: Any) -> str:
    facts = card.to_dict() if hasattr(card, "to_dict") else {}
    return str(facts.get("license_name") or facts.get("license") or "not stated")


def _stated_weights(weights: Any) -> tuple[str, str]:
    """The parameters and dtypes that the Hub has counted, in words; "not stated" for what is not a count."""
    total, by_dtype = getattr(weights, "total", None), getattr(weights, "parameters", None)
    parameters = format_count(total) if type(total) is int and total >= 0 else "not stated"
    return parameters, ", ".join(map(str, by_dtype)) if isinstance(by_dtype, dict) and by_dtype else "not stated"


@contextmanager
def faults_in_words(model: str) -> Iterator[None]:
    """Turn what the Hub client raises into a ModelError that says what to do next."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        yield
    # From ValueError on: an id or token that cannot be sent, a page that is not the Hub's, JSON of another form.
    except (
        HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL, OverLimitError, OSError, ValueError, KeyError, TypeError,
        AttributeError, RecursionError,
    ) as error:  # fmt: skip
        hides_reason = isinstance(error, LocalEntryNotFoundError)
        reason = (hides_reason and error.__cause__) or error
        unknown = isinstance(reason, RepositoryNotFoundError) and not isinstance(reason, GatedRepoError)
        raise (UnknownModelError if unknown else ModelError)(_words(model, reason)) from error


def _words(model: str, error: BaseException) -> str:
    """What happened, and the next step."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return f"{_refusal(model, error)} {WITHOUT}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"The disk filled up while {model} was downloading. Free some space, then run this again."
    if isinstance(error, OSError) and error.filename:
        return f"{visible(str(error.filename))} cannot be written: {error.strerror}. Give another folder."
    return f"{_hindrance(model, error)} {WITHOUT}"


def _refusal(model: str, error: "HfHubHTTPError") -> str:
    """An answer of the Hub that is not the file, in words."""
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError) and status == 401:
        return (
            f"{model} is gated: request access at https://huggingface.co/{model}, create a token at "
            "https://huggingface.co/settings/tokens, run `hf auth login`, then run this again."
        )
    if isinstance(error, GatedRepoError):
        return (
            f"{model} is gated and {_account()} has no access yet: request it at https://huggingface.co/{model}, "
            "wait for the email, then run this again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub has no model {model}, or it is private: check the spelling at https://huggingface.co/models, "
            "and run `hf auth login` if it is yours."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{model} has no such revision. Its branches and commits: https://huggingface.co/{model}/commits/main."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {model}. Its page may say why: https://huggingface.co/{model}."
    return _refusal_by_status(model, status)


def _refusal_by_status(model: str, status: int) -> str:
    if status == 401:
        return "The Hub refused your token: it is wrong or has expired. Run `hf auth login` again."
    if status == 403:
        return (
            f'The Hub does not let your token read {model}: allow "read access to public gated repositories" for it at '
            "https://huggingface.co/settings/tokens, or run `hf auth login` with another."
        )
    if status == 429:
        return "The Hub has had too many requests from here: wait a few minutes, then run this again."
    return f"The Hub could not be reached for {model} (it answered {status}). Wait a little and try again."


def _account() -> str:
    """Whose token is used, as the Hub tells; a detail of a message that must not fail for it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    try:
        return f"your account {brief(Exception(ask(HfApi().whoami)['name']))}"
    except (HfHubHTTPError, httpx.HTTPError, OverLimitError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return "your account (`hf auth whoami` shows it)"


def _hindrance(model: str, error: BaseException) -> str:
    """Why the Hub was not asked, or not understood, in words."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    if isinstance(error, HFValidationError):
        return f"{model} is not a Hub id: {brief(error)} Check the spelling at https://huggingface.co/models."
    if isinstance(error, UnicodeEncodeError):
        return "Your token contains a character that no token has. Run `hf auth login` again."
    if isinstance(error, OfflineModeIsEnabled):
        looked_for = f"no complete folder {model.rpartition('/')[2]}/ was found"
        return f"{model} is not on this disk ({looked_for}), and HF_HUB_OFFLINE forbids asking the Hub. Unset it."
    if isinstance(error, OverLimitError):
        return f"Gave up on the Hub for {model}: it {error}. Check the network and try again."
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError | RecursionError):
        return (
            f"What answered for {model} is not the Hub, or its answer is broken ({_odd(error)}). A login page or a "
            f"proxy may be in between: open https://huggingface.co/{model} in a browser, then run this again."
        )
    return f"The Hub could not be reached for {model} ({type(error).__name__}). Check the network and try again."


def _odd(error: BaseException) -> str:
    """What is wrong with an answer that is not as the Hub's are."""
    return f"it has no {error}" if isinstance(error, KeyError) else brief(error)
