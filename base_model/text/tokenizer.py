"""The tokenizer: loaded safely, its chat template tried out, and facts about it."""

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, format_count, visible
from base_model.architecture.config import is_tied
from base_model.read.folder import TOKENIZER_FILES, is_file, names_in, read_config, read_json, readable_headers
from base_model.read.limits import TEMPLATE_SECONDS
from base_model.read.tensors import tensor_table
from base_model.text.tame import SAMPLE, faults_in_words, in_child, require_plain_settings, require_tame, require_text

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
SETTINGS = "generation_config.json"
MOST_FREE = 2_000, 0.1  # rows, and their share: models round their number up, by less than 2% where we looked
_VOCABULARY = re.compile(r"\.(model|tiktoken|spm|vocab|bpe)$|^(vocab|merges)\.(json|txt)$|^tokenizer\.model")


def load_tokenizer(folder: Path, text: str = SAMPLE) -> Any:
    """The folder's tokenizer, by transformers; no code of the folder is run, nothing is downloaded.

    It is tried out first, on `text` too, where it can do no harm; see child.py. Raises ModelError.
    """
    from transformers import AutoTokenizer

    config = _plain_config(require_plain_settings(folder))
    fast = folder / "tokenizer.json"
    if os.path.lexists(fast):
        require_tame(folder, {"tokenizer": str(fast.resolve())}, text)
    with faults_in_words(f"The tokenizer in {folder} cannot be loaded", "Download its files again"):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
        _require_vocabulary(folder, tokenizer)
        if not os.path.lexists(fast) and hasattr(tokenizer, "backend_tokenizer"):
            require_tame(folder, {"json": tokenizer.backend_tokenizer.to_str()}, text)
    template = _default_template(tokenizer.chat_template)
    if not isinstance(template, str | None):
        raise ModelError(f"The chat template in {folder} is not text. Download the tokenizer's files again.")
    return tokenizer


def split(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, without those that a tokenizer adds. Raises ModelError, for an unknown word too."""
    with faults_in_words("The tokenizer cannot split this text", "Give another text, or download its files again"):
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _require_vocabulary(folder: Path, tokenizer: Any) -> None:
    """transformers makes an empty vocabulary up where a folder holds none. Raises ModelError."""
    wanted = {name for name in type(tokenizer).vocab_files_names.values() if isinstance(name, str)}
    there = {name for name in names_in(folder) if is_file(folder / name)}
    absent = there.isdisjoint(wanted.union(TOKENIZER_FILES)) and not any(map(_VOCABULARY.search, there))
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if wanted and (absent or len(tokenizer) <= len(special)):
        raise ModelError(
            f"{folder} holds no vocabulary ({', '.join(sorted(wanted))}): transformers would make one up. Download it."
        )


def _plain_config(settings: dict[str, Any]) -> Any:
    """A config of the model's class that says no more of it than a tokenizer must know.

    transformers is given it, so that it reads no config.json of its own accord.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    names = ("tokenizer_class", "model_name", "_name_or_path")
    stated = {name: settings[name] for name in names if isinstance(settings.get(name), str)}
    model_type = settings.get("model_type")
    if not isinstance(model_type, str):
        return PreTrainedConfig(**stated)
    plain = PreTrainedConfig(**stated | {"model_type": model_type})
    try:
        return CONFIG_MAPPING[model_type](**stated) if model_type in CONFIG_MAPPING else plain
    except Exception:  # a few architectures have no defaults: the name of the type has to do
        return plain


def require_tame_template(tokenizer: Any, seconds: float = TEMPLATE_SECONDS) -> None:
    """Refuse a chat template that fails, runs longer than `seconds` or needs gigabytes; see child.py."""
    render_prompt(tokenizer, "Hello, who or what are you?", seconds)


def render_prompt(tokenizer: Any, text: str, seconds: float = TEMPLATE_SECONDS) -> str:
    """`text` as the model gets it: in the turns of the chat template, or unchanged where there is none.

    In a process of its own: a template may run away on one prompt and not on another. Raises ModelError.
    """
    require_text(text)
    template = _default_template(tokenizer.chat_template)
    if not template:
        return text
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return _rendered(template, text, tuple(tokens.items()), seconds)


@lru_cache(maxsize=64)
def _rendered(template: str, text: str, tokens: tuple[tuple[str, str], ...], seconds: float) -> str:
    done = in_child({"template": template, "text": text, "tokens": dict(tokens), "seconds": seconds})
    if done.returncode:
        fault = "ran too long" if done.returncode < 0 else done.stderr.strip().rpartition("\n")[2]
        raise ModelError(f"The chat template does not work: {visible(fault)}. Download the tokenizer's files again.")
    return str(json.loads(done.stdout))


def _default_template(template: Any) -> Any:
    """A tokenizer may carry several templates by name; `default` is the one that is used. Raises ModelError."""
    if not isinstance(template, dict) or not template:
        return template or None
    if "default" not in template:
        names = ", ".join(visible(str(name)) for name in template)
        raise ModelError(f"The chat templates have the names {names}, and transformers takes `default`. Name one so.")
    return template["default"]


def tokenizer_facts(folder: Path, text: str = SAMPLE) -> pd.DataFrame:
    """One row per fact; columns `fact`, `value` (text)."""
    tokenizer = load_tokenizer(folder, text)
    template = _default_template(tokenizer.chat_template)
    stated = stated_ids(folder)
    ids = sorted(tokenizer.get_vocab().values())
    facts = {
        "class": type(tokenizer).__name__,
        "vocabulary, added tokens included": format_count(len(tokenizer)) + _sparse(ids),
        "added tokens": f"{len(tokenizer.get_added_vocab()):,}",
        "embedding rows": _rows(embedding_rows(folder), ids),
        **{role.replace("_", " "): _special(tokenizer, role) for role in ROLES},
        **{f"{role[:3]} in {SETTINGS}": _agreement(tokenizer, role, stated) for role in ROLES[:3]},
        "padding": _padding(tokenizer, stated),
        "longest input": _longest(tokenizer.model_max_length),
        "chat template": f"yes, {len(template):,} characters" if template else "none: a base model, or an old one",
        "tokens per word": _per_word(tokenizer, text),
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _sparse(ids: list[int]) -> str:
    """What is unusual about ids: that some are left out, so that more rows are needed than there are tokens."""
    return f", with ids up to {ids[-1]:,}" if ids and ids[-1] >= len(ids) else ""


def embedding_rows(folder: Path) -> int | None:
    """The rows of the largest embedding, from the headers; None in a folder without readable weights."""
    headers = readable_headers(folder, names_in(folder))
    table = tensor_table(headers, read_config(folder), is_tied)
    shapes = table.loc[table["component"] == "embedding", "shape"]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=None)


def _rows(rows: int | None, ids: list[int]) -> str:
    """The embedding's rows, and what it means when they are not one for each id up to the last."""
    if rows is None:
        return "not known: no embedding was found in the headers"
    needed = ids[-1] + 1 if ids else 0
    what = "tokens" if needed == len(ids) else "ids"
    if rows == needed:
        return f"{rows:,}: one for each {what[:-1]}"
    if rows - needed > max(MOST_FREE[0], MOST_FREE[1] * rows):
        return f"{rows:,}: MISMATCH?, {rows - needed:,} have no token: is this the model's own tokenizer?"
    if rows > needed:
        return f"{rows:,}: {rows - needed:,} more than {what}, free for tokens of your own"
    without = sum(number >= rows for number in ids)
    return f"{rows:,}: MISMATCH, {without:,} tokens have no row, and their ids would fail"


def stated_ids(folder: Path) -> dict[str, list[int]]:
    """`{role: ids}` as generation_config.json states them; it may give several to EOS, and others are left out."""
    settings = read_json(folder / SETTINGS) if os.path.lexists(folder / SETTINGS) else {}
    stated = {role: settings.get(f"{role}_id") for role in ROLES}
    lists: dict[str, list[Any]] = {role: ids if isinstance(ids, list) else [ids] for role, ids in stated.items()}
    return {role: ids for role, ids in lists.items() if ids and all(type(number) is int for number in ids)}


def _agreement(tokenizer: Any, role: str, stated: dict[str, list[int]]) -> str:
    """Whether the id that ends, begins or fills a text is the same when text is made as when it is read."""
    own = getattr(tokenizer, f"{role}_id")
    if role not in stated:
        return "not stated"
    ids = ", ".join(f"{number:,}" for number in stated[role])
    if own is None:
        return f"{ids}: the tokenizer names none"
    if own not in stated[role]:
        return f"{ids}: MISMATCH, the tokenizer says {own:,}"
    return f"{ids}: match" + (f", {own:,} among {len(stated[role])}" if len(stated[role]) > 1 else "")


def _padding(tokenizer: Any, stated: dict[str, list[int]]) -> str:
    """What the pad token means for tuning; transformers' collators leave out of the loss whatever has its id."""
    pad, ends = tokenizer.pad_token_id, [tokenizer.eos_token_id, *stated.get("eos_token", [])]
    if pad is None:
        return "none: before tuning in batches, choose a special token that nothing else uses"
    if pad in ends:
        return "the same as EOS: a script that masks padding by its id masks true ends, too (TRL masks it by its place)"
    return "a token of its own: padding can be masked by its id"


def _per_word(tokenizer: Any, text: str) -> str:
    tokens, words = len(split(tokenizer, text)), len(text.split())
    of = "of a fixed English sample" if text == SAMPLE else "of the given text"
    return (
        f"{tokens / words:.2f} ({tokens:,} for {words:,} word{'s' * (words != 1)} {of})" if words else "no words given"
    )


def _special(tokenizer: Any, role: str) -> str:
    token, token_id = getattr(tokenizer, role), getattr(tokenizer, f"{role}_id")
    return "none" if token is None else f"{visible(str(token))}  (id {token_id:,})"


def _longest(limit: Any) -> str:
    """transformers writes "no limit" as the float 1e30, and takes whatever a file says."""
    stated = isinstance(limit, int | float) and limit < 1e12
    return f"{int(limit):,} tokens" if stated else "not stated"
