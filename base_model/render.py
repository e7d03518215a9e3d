"""Render a chat template in a process of its own, which a template that runs away takes down alone.

Reads JSON from standard input (`template`, `seconds`, `bytes`), renders one short conversation as transformers would,
and exits 0. A template is a program: it may loop for ever or build a string of many gigabytes.
"""

import json
import resource
import signal
import sys


def main() -> None:
    """Render under a limit of time and memory; being killed by them is the answer."""
    from transformers.utils.chat_template_utils import render_jinja_template

    task = json.load(sys.stdin)
    conversation = [{"role": "user", "content": "Hello, who or what are you?"}]
    if sys.platform == "linux":  # macOS refuses this limit; there the time has to do
        resource.setrlimit(resource.RLIMIT_AS, (task["bytes"], task["bytes"]))
    render_jinja_template(
        [conversation], chat_template="warm"
    )  # the libraries' own start is not on the template's bill
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])  # of the processor's time, which a busy machine does not take
    render_jinja_template([conversation], chat_template=task["template"], add_generation_prompt=True, **task["tokens"])


if __name__ == "__main__":
    main()
