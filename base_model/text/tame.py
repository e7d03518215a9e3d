"""What a tokenizer's files may hold, and a trial of them in a process of its own: see child.py."""

import json
import os
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from base_model import ModelError, brief, format_bytes, is_fault, visible, warn
from base_model.architecture.config import described
from base_model.read.folder import read_json
from base_model.read.limits import CHILD_BYTES, MAX_ADDED_TOKENS, MAX_PROMPT_CHARACTERS, MAX_TOKENS, TOKENIZER_SECONDS

# Article 1 of the Universal Declaration of Human Rights: the same for every model, so that they can be compared.
SAMPLE = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood."
)
# What a trap may be set for: every letter of ASCII, other scripts, and long rows of one kind.
PAGE = "\n".join(
    [
        string.printable,
        "Ünïcödé, 日本語, العربية, हिन्दी, 🙂👩‍👩‍👧",
        *(letter * 2_000 for letter in "a A1.'-\t\n_"),
        "ab " * 500,
    ]
)
TOKENIZER_STEERING = ("fast_tokenizer_files", "init_inputs")  # other files; arguments that may be paths
_TAME: set[tuple[str, str]] = set()  # what passed its trial: a hash of the file, and the text


def require_plain_settings(folder: Path) -> dict[str, Any]:
    """What transformers would wait for, or build however large, as it reads these files, is refused first.

    Gives the settings of config.json without those that steer.
    """
    names = ("config.json", "tokenizer_config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json")
    settings = {name: read_json(folder / name) for name in names if os.path.lexists(folder / name)}
    for name, content in settings.items():
        _require_few(name, content)
    plain = described(settings.get("config.json", {}))
    stated = settings.get("tokenizer_config.json", {})
    if steering := next((name for name in TOKENIZER_STEERING if name in stated), None):
        raise ModelError(f"tokenizer_config.json sets {steering}, which may choose other files. Delete it there.")
    limit = stated.get("model_max_length", 1)
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):  # NaN is refused, too
        raise ModelError(f"tokenizer_config.json gives {visible(repr(limit))} as model_max_length: not a count.")
    return plain


def require_text(text: object) -> None:
    """Stop at a prompt that is no text, or none that can be written as UTF-8. Raises ModelError."""
    if not isinstance(text, str):
        raise ModelError(f"The text must be a str, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(
            f"The text holds {text[error.start : error.end]!r}, which is no character. Remove it."
        ) from error


def _require_few(name: str, content: dict[str, Any]) -> None:
    """Vocabularies within reason: transformers takes half a minute for three million words. Raises ModelError."""
    model = content.get("model")
    words = model if isinstance(model, dict) else {}
    if isinstance(words.get("dropout"), float) and words["dropout"] > 0:
        warn(f"{name} splits at random (dropout {words['dropout']:g}): the same text has other tokens each time.")
    counts = {
        "words": (words.get("vocab"), MAX_TOKENS),
        "rules to merge them": (words.get("merges"), MAX_TOKENS),
        "added tokens": (content if name == "added_tokens.json" else content.get("added_tokens"), MAX_ADDED_TOKENS),
        "tokens": (content.get("added_tokens_decoder"), MAX_ADDED_TOKENS),
        "special tokens": (content.get("extra_special_tokens"), MAX_ADDED_TOKENS),
        "more special tokens": (content.get("additional_special_tokens"), MAX_ADDED_TOKENS),
    }
    for what, (found, most) in counts.items():
        if isinstance(found, list | dict) and len(found) > most:
            raise ModelError(f"{name} holds {len(found):,} {what}; the limit is {most:,}. Use another tokenizer.")


def require_tame(folder: Path, source: dict[str, str], text: str) -> None:
    """Refuse a tokenizer that takes long, needs gigabytes or floods, as it is loaded or reads and writes a page.

    `source` is its file (`tokenizer`) or its text (`json`). What was tried out in this process is not tried again.
    """
    require_text(text)
    content = Path(source["tokenizer"]).read_bytes() if "tokenizer" in source else source["json"].encode()
    trial = sha256(content).hexdigest(), text[:MAX_PROMPT_CHARACTERS]
    if trial in _TAME:
        return
    done = in_child({**source, "texts": [SAMPLE, PAGE, trial[1]], "seconds": TOKENIZER_SECONDS})
    if done.returncode:
        limits = f"it takes more than {TOKENIZER_SECONDS} s or {format_bytes(CHILD_BYTES)}"
        fault = limits if done.returncode < 0 else done.stderr.strip().rpartition("\n")[2]
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded: {visible(fault)[:300]}. Download its files again."
        )
    _TAME.add(trial)


def in_child(task: dict[str, Any]) -> Any:
    """What the process of child.py answers: killed by a limit, it ends with a negative number."""
    import subprocess

    command = [sys.executable, "-P", str(Path(__file__).with_name("child.py"))]
    task = task | {"bytes": CHILD_BYTES, "characters": MAX_PROMPT_CHARACTERS}
    return subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=120)


@contextmanager
def faults_in_words(what: str, next_step: str) -> Iterator[None]:
    """A tokenizer fails by exceptions of many kinds, and by panics of Rust code, which are not Exceptions."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        raise ModelError(f"{what}: {brief(error)}. {next_step}.") from error
