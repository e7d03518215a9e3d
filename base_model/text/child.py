"""Try out a chat template or a tokenizer in a process of its own, which one that runs away takes down alone.

Reads JSON from standard input and answers in JSON. A template is a program: it may loop for ever or build a string of
many gigabytes. So may a tokenizer.json, by rules that replace one letter with two, forty times.

Give `template`, `tokens`, `text`: renders a conversation that begins with `text`, as transformers would. Or give
`tokenizer` (a path), or `json`, and `texts`: loads it, splits each text and puts it together again. Both with
`seconds` of the processor's time and `bytes` of memory at most; being killed by them is the answer.
"""

import json
import resource
import signal
import sys
from typing import Any

MOST_PER_CHARACTER = 20  # tokens, or characters that come back; a letter outside the alphabet may be four tokens


def main() -> None:
    """One task, one answer."""
    task = json.load(sys.stdin)
    if sys.platform == "linux":  # macOS refuses this limit; there the time has to do
        resource.setrlimit(resource.RLIMIT_AS, (task["bytes"], task["bytes"]))
    json.dump(render(task) if "template" in task else probe(task), sys.stdout)


def render(task: dict[str, Any]) -> str:
    """The conversation in the turns of the template, which may add so many `characters`."""
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [{"role": "user", "content": task["text"]}]
    # the libraries' own start is not on the template's bill
    render_jinja_template([conversation], chat_template="warm")
    limit(task)
    answer: Any = render_jinja_template(
        [conversation], chat_template=task["template"], add_generation_prompt=True, **task["tokens"]
    )
    rendered = str(answer[0][0])
    if len(rendered) > len(task["text"]) + task["characters"]:
        sys.exit(f"it turns {len(task['text']):,} characters into {len(rendered):,}")
    return rendered


def probe(task: dict[str, Any]) -> list[int]:
    """How many tokens each text becomes."""
    from tokenizers import Tokenizer

    limit(task)
    tokenizer = Tokenizer.from_file(task["tokenizer"]) if "tokenizer" in task else Tokenizer.from_str(task["json"])
    return [tokens_of(tokenizer, text) for text in task["texts"]]


def tokens_of(tokenizer: Any, text: str) -> int:
    """How many tokens a text becomes; none, where it holds what the tokenizer does not know."""
    try:
        ids = tokenizer.encode(text).ids
    except Exception:  # told where this text is asked for: others may do
        return 0
    for kind, count in (("tokens", len(ids)), ("characters when read back", len(tokenizer.decode(ids)))):
        if count > MOST_PER_CHARACTER * (len(text) + 100):
            sys.exit(f"it turns {len(text):,} characters into {count:,} {kind}")
    return len(ids)


def limit(task: dict[str, Any]) -> None:
    """From here on, so much of the processor's time, which a busy machine does not take."""
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])


if __name__ == "__main__":
    main()
