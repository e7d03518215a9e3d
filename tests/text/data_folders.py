"""Tokenizers and data sets for the tests, and a way to prepare them in this process, which has loaded TRL already."""

import io
import json
from pathlib import Path

from tests.folders import toy_tokenizer

MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = ["the loss", "a token counts", "memory", "the adapter is small", "ü – 你好", "  two spaces", "of the layers"]


def bos_tokenizer():
    """Adds BOS by itself; its template writes BOS and marks what the assistant says."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = toy_tokenizer(chat=True)
    bos = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
    tokenizer.chat_template = MARKED
    return tokenizer


def word_tokenizer():
    """Merges of several letters, and spaces as SentencePiece writes them: a prompt's end may join its answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "<eos>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*WORDS, "user assistant system: Is it? Yes."] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    fast.chat_template += "{% if add_generation_prompt %}assistant:{% endif %}"
    return fast


def known_tokenizer():
    """Its template marks no answers, but TRL knows one like it that does."""
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer = toy_tokenizer(chat=True)
    tokenizer.chat_template = qwen2_5_chat_template
    return tokenizer


TOKENIZERS = {"bytes": lambda: toy_tokenizer(chat=True), "bos": bos_tokenizer, "words": word_tokenizer}


def said(number: int) -> str:
    return " ".join(WORDS[(number + step * step) % len(WORDS)] for step in range(1 + number % 9))


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _talk(number: int) -> list:
    return [
        turn("user", said(number)),
        turn("assistant", said(3 * number)),
        turn("user", "Is it?"),
        turn("assistant", "Yes."),
    ]


FORMATS = {
    "text": lambda n: {"text": said(n)},
    "prompt and completion": lambda n: {"prompt": said(n), "completion": said(2 * n)},
    "messages": lambda n: {"messages": _talk(n)},
    "conversational prompt": lambda n: {"prompt": [turn("user", said(n))], "completion": [turn("assistant", said(2 * n))]},
    "from and value": lambda n: {"conversations": [{"from": "user", "value": said(n)}, {"from": "assistant", "value": "Yes."}]},
}  # fmt: skip


def write_lines(path: Path, rows) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def in_this_process(task):
    """Instead of `in_processes`: the same work without the seconds that a process takes to load its libraries."""
    from base_model.text.measure import write_rows
    from base_model.text.tokenizer import load_tokenizer

    file = io.BytesIO()
    write_rows(task, load_tokenizer(task.model), file)
    return [file.getvalue()], []
