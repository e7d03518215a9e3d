"""Render a chat template in a process of its own, which a template that runs away takes down alone.

Reads JSON from standard input (`template`, `tokens`, `text`, `seconds`, `bytes`), renders a conversation that begins
with `text` as transformers would, and prints the start of it as JSON. A template is a program: it may loop for ever or
build a string of many gigabytes.
"""

import json
import resource
import signal
import sys
from typing import Any

MAX_CHARACTERS = 100_000  # more is no prompt that a person reads


def main() -> None:
    """Render under a limit of time and memory; being killed by them is the answer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    task = json.load(sys.stdin)
    conversation = [{"role": "user", "content": task["text"]}]
    if sys.platform == "linux":  # macOS refuses this limit; there the time has to do
        resource.setrlimit(resource.RLIMIT_AS, (task["bytes"], task["bytes"]))
    render_jinja_template(
        [conversation], chat_template="warm"
    )  # the libraries' own start is not on the template's bill
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])  # of the processor's time, which a busy machine does not take
    answer: Any = render_jinja_template(
        [conversation], chat_template=task["template"], add_generation_prompt=True, **task["tokens"]
    )
    json.dump(answer[0][0][:MAX_CHARACTERS], sys.stdout)


if __name__ == "__main__":
    main()
