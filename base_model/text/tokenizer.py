"""The tokenizer: loaded safely, its chat template tried out, and facts about it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from base_model import ModelError, brief, format_count, visible
from base_model.architecture.config import described, is_tied
from base_model.read.folder import names_in, read_config, read_json, readable_headers
from base_model.read.tensors import tensor_table

TEMPLATE_BYTES = 4 * 2**30  # address space, of which the libraries take their share
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
SETTINGS = "generation_config.json"
# Article 1 of the Universal Declaration of Human Rights: the same for every model, so that they can be compared.
SAMPLE = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood."
)


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
    render_prompt(tokenizer, "Hello, who or what are you?", seconds)


def render_prompt(tokenizer: Any, text: str, seconds: float = 0.5) -> str:
    """`text` as the model is given it: in the turns of the chat template, or as it stands where there is none."""
    import subprocess

    template = _default_template(tokenizer.chat_template)
    if not template:
        return text
    task = {"template": template, "text": text, "seconds": seconds, "bytes": TEMPLATE_BYTES}
    task["tokens"] = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    command = [sys.executable, "-P", str(Path(__file__).with_name("render.py"))]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=120)
    if done.returncode:
        fault = "ran too long" if done.returncode < 0 else done.stderr.strip().rpartition("\n")[2]
        raise ModelError(f"The chat template does not work: {visible(fault)}. Download the tokenizer's files again.")
    return str(json.loads(done.stdout))


def _default_template(template: Any) -> Any:
    """A tokenizer may carry several templates by name; `default` is the one that is used."""
    return template.get("default", next(iter(template.values()), None)) if isinstance(template, dict) else template


def tokenizer_facts(folder: Path, text: str = SAMPLE) -> pd.DataFrame:
    """One row per fact; columns `fact`, `value` (text)."""
    tokenizer = load_tokenizer(folder)
    template = _default_template(tokenizer.chat_template)
    stated = stated_ids(folder)
    facts = {
        "class": type(tokenizer).__name__,
        "vocabulary, added tokens included": format_count(len(tokenizer)),
        "added tokens": f"{len(tokenizer.get_added_vocab()):,}",
        "embedding rows": _rows(_embedding_rows(folder), len(tokenizer)),
        **{role.replace("_", " "): _special(tokenizer, role) for role in ROLES},
        **{f"{role[:3]} in {SETTINGS}": _agreement(tokenizer, role, stated) for role in ROLES[:3]},
        "padding": _padding(tokenizer, stated),
        "longest input": _longest(tokenizer.model_max_length),
        "chat template": f"yes, {len(template):,} characters" if template else "none: a base model, or an old one",
        "tokens per word": _per_word(tokenizer, text),
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def _embedding_rows(folder: Path) -> int | None:
    """The rows of the largest embedding, from the headers; None in a folder without readable weights."""
    headers = readable_headers(folder, names_in(folder))
    table = tensor_table(headers, read_config(folder), is_tied)
    shapes = table.loc[table["component"] == "embedding", "shape"]
    return max((shape[0] for shape in shapes if len(shape) == 2), default=None)


def _rows(rows: int | None, tokens: int) -> str:
    """The embedding's rows, and what it means when they are not one for each token."""
    if rows is None:
        return "not known: no embedding was found in the headers"
    if rows == tokens:
        return f"{rows:,}: one for each token"
    if rows > tokens:
        return f"{rows:,}: {rows - tokens:,} more than tokens, free for tokens of your own"
    return f"{rows:,}: MISMATCH, {tokens - rows:,} tokens have no row, and their ids would fail"


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
        return "none: name one before tuning in batches, a special token that nothing else uses"
    if pad in ends:
        return "the same as EOS: what skips padding by its id skips true ends too, and the tuned model may never stop"
    return "a token of its own: padding can be masked by its id"


def _per_word(tokenizer: Any, text: str) -> str:
    tokens, words = len(tokenizer(text, add_special_tokens=False)["input_ids"]), len(text.split())
    of = "of a fixed English sample" if text == SAMPLE else "of the text given"
    return f"{tokens / words:.2f} ({tokens:,} for {words:,} words {of})" if words else "no words given"


def _special(tokenizer: Any, role: str) -> str:
    token, token_id = getattr(tokenizer, role), getattr(tokenizer, f"{role}_id")
    return "none" if token is None else f"{visible(str(token))}  (id {token_id:,})"


def _longest(limit: Any) -> str:
    """transformers writes "no limit" as the float 1e30, and takes whatever a file says."""
    stated = isinstance(limit, int | float) and 0 < limit < 1e12
    return f"{int(limit):,} tokens" if stated else "not stated"
