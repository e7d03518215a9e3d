"""The tokenizer: facts about it, and how it splits a text."""

from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, format_count

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, by transformers; no code of the folder is run, nothing is downloaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise bare exceptions of many kinds here
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {error}. Download its files again.") from error


def tokenizer_facts(folder: Path) -> pd.DataFrame:
    """One row per fact; columns `fact`, `value` (text)."""
    tokenizer = load_tokenizer(folder)
    template = tokenizer.chat_template
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


def _longest(limit: float) -> str:
    """transformers writes "no limit" as the float 1e30."""
    return "not stated" if limit > 1e12 else f"{int(limit):,} tokens"


def token_table(folder: Path, text: str) -> pd.DataFrame:
    """One row per token of `text`; columns `token_id`, `token` (as in the vocabulary), `text` (what it stands for)."""
    tokenizer = load_tokenizer(folder)
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = zip(token_ids, tokenizer.convert_ids_to_tokens(token_ids), map(tokenizer.decode, token_ids), strict=True)
    return pd.DataFrame(rows, columns=["token_id", "token", "text"])
