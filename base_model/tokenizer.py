"""The tokenizer: facts about it, and how it splits a text."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, brief, format_count, visible
from base_model.architecture import described
from base_model.checkpoint import read_json

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE_BYTES = 4 * 2**30  # address space, of which the libraries take their share
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, by transformers; no code of the folder is run, nothing is downloaded."""
    from transformers import AutoTokenizer

    _require_plain_settings(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare exceptions of many kinds, and the panics of Rust code, which are no Exception
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded: {brief(error)}. Download its files again."
        ) from error
    template = _default_template(tokenizer.chat_template)
    if not isinstance(template, str | None):
        raise ModelError(f"The chat template in {folder} is no text. Download the tokenizer's files again.")
    return tokenizer


def _require_plain_settings(folder: Path) -> None:
    """What transformers would wait for, or build however large, as it reads these files, is refused first."""
    names = ("config.json", "tokenizer_config.json", "tokenizer.json")
    settings = {name: read_json(folder / name) for name in names if os.path.lexists(folder / name)}
    described(settings.get("config.json", {}))
    limit = settings.get("tokenizer_config.json", {}).get("model_max_length", 1)
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):  # NaN is refused, too
        raise ModelError(f"tokenizer_config.json gives {visible(repr(limit))} as model_max_length, which is no count.")


def require_tame_template(tokenizer: Any, seconds: float = 0.5) -> None:
    """Refuse a chat template that fails, runs longer than `seconds` or wants gigabytes; see render.py."""
    import subprocess

    template = _default_template(tokenizer.chat_template)
    if not template:
        return
    task = {"template": template, "seconds": seconds, "bytes": TEMPLATE_BYTES}
    task["tokens"] = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    command = [sys.executable, "-m", "base_model.render"]
    done = subprocess.run(command, input=json.dumps(task), cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        fault = "ran too long" if done.returncode < 0 else done.stderr.strip().rpartition("\n")[2]
        raise ModelError(f"The chat template does not work: {visible(fault)}. Download the tokenizer's files again.")


def _default_template(template: Any) -> Any:
    """A tokenizer may carry several templates by name; `default` is the one that is used."""
    return template.get("default", next(iter(template.values()), None)) if isinstance(template, dict) else template


def tokenizer_facts(folder: Path) -> pd.DataFrame:
    """One row per fact; columns `fact`, `value` (text)."""
    tokenizer = load_tokenizer(folder)
    template = _default_template(tokenizer.chat_template)
    facts = {
        "class": type(tokenizer).__name__,
        "vocabulary, added tokens included": format_count(len(tokenizer)),
        "added tokens": f"{len(tokenizer.get_added_vocab()):,}",
        **{role.replace("_", " "): _special(tokenizer, role) for role in ROLES},
        "longest input": _longest(tokenizer.model_max_length),
        "chat template": f"yes, {len(template):,} characters" if template else "none: a base model, or an old one",
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _special(tokenizer: Any, role: str) -> str:
    token, token_id = getattr(tokenizer, role), getattr(tokenizer, f"{role}_id")
    return "none" if token is None else f"{token}  (id {token_id:,})"


def _longest(limit: Any) -> str:
    """transformers writes "no limit" as the float 1e30, and takes whatever a file says."""
    stated = isinstance(limit, int | float) and 0 < limit < 1e12
    return f"{int(limit):,} tokens" if stated else "not stated"


def token_table(folder: Path, text: str) -> pd.DataFrame:
    """One row per token of `text`; columns `token_id`, `token` (as in the vocabulary), `text` (what it stands for)."""
    tokenizer = load_tokenizer(folder)
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = zip(token_ids, tokenizer.convert_ids_to_tokens(token_ids), map(tokenizer.decode, token_ids), strict=True)
    return pd.DataFrame(rows, columns=["token_id", "token", "text"])
