"""The rooms behind `model_tools`, and what all of them share: two messages and how to write a number."""

import numbers
import os
import sys
import traceback
import warnings
from pathlib import Path

MOST = 10**9  # tokens or texts; far above any model of today
LAYOUT = "\n\t\u200c\u200d"  # the last two join letters, in Persian or Hindi, and emoji
HOUSE = Path(__file__).parent
OURS = (f"{HOUSE}{os.sep}", str(HOUSE.with_name("model_tools.py")))  # how the names of our own source files begin
COMPONENTS = ("embedding", "attention", "mlp", "norm", "head", "other")


class ModelError(Exception):
    """Something is wrong with a model, folder, Hub answer or machine: what, in which file, and what to do next."""

    def __init__(self, words: str) -> None:
        """The words, safe to print whatever names or texts they quote."""
        super().__init__(visible_text(words))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of its frames: the sentence says what to do, the frames do not."""
        return [f"{type(self).__name__}: {self}"]


class ModelWarning(UserWarning):
    """A number is still given, but read this first."""


def warn(message: str) -> None:
    """A ModelWarning at the line of the user's that called the project, however deep inside it arose."""
    stack = enumerate(traceback.walk_stack(sys._getframe()), start=1)
    ours = [level for level, (frame, _) in stack if frame.f_code.co_filename.startswith(OURS)]
    warnings.warn(visible_text(message), ModelWarning, stacklevel=max(ours) + 1)


def require_whole(name: str, value: object, least: int = 1, most: int = MOST) -> None:
    """Stop where a number of tokens, texts or devices is not a whole one within reason. Raises ModelError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) <= most:
        raise ModelError(f"{name} must be a whole number from {least} to {most:,}, not {value!r}.")


def format_bytes(n: int) -> str:
    """A size in 1024s: `866 B`, `20.46 KiB`, `-4.66 GiB`."""
    if n < 0:
        return f"-{format_bytes(-n)}"
    if n < 1024:
        return f"{n:,} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.995:  # above this, two decimals would round up to 1024.00
            return f"{size:.2f} {unit}"
    return f"{size / 1024:,.2f} TiB"


def format_count(n: int) -> str:
    """A count in full, then rounded: `1,249,689,600 (~1.250 B)`, `49,552,704 (~49.6 M)`; B is 10^9, M is 10^6."""
    if n >= 500_000_000:
        return f"{n:,} (~{n / 1e9:.3f} B)"
    if n >= 500_000:
        return f"{n:,} (~{n / 1e6:.1f} M)"
    return f"{n:,}"


def format_share(share: float) -> str:
    """A share of 0 to 1 in percent: `59.2%`; what is there but would round to nothing is `<0.1%`."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def visible(name: str) -> str:
    """A name from a model folder, safe to print: newlines, control and direction marks are written as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def visible_text(text: str) -> str:
    """A text of several lines, safe to print: of what is not printable, only line ends, tabs and joiners are left."""
    return "".join(char if char in LAYOUT else visible(char) for char in text)


def storable(name: str) -> str:
    """A name that a table can hold: bytes that are not UTF-8, which Arrow refuses, become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_fault(error: BaseException) -> bool:
    """Whether something went wrong: any Exception, or a panic of Rust code, which is none; no Ctrl-C."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def brief(error: BaseException) -> str:
    """A library's own words for a fault, safe to print and short: some list hundreds of classes."""
    words = visible(" ".join(str(error).split())) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."
