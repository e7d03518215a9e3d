"""The clock of a run and the record of several: when each token came, medians, and how far the runs lie apart."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from base_model import ModelError


@dataclass(frozen=True)
class Generation:
    """One measured answer: medians of `runs` timed runs, from the prompt as text to the answer as text.

    NaN where there is no figure; times in seconds, sizes in bytes.
    """

    text: str
    method: str
    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float  # prompt to first token: tokenising and prefill
    total_s: float
    tokens_per_s: float  # decoding alone: the tokens after the first, over the time they took
    token_ids: tuple[int, ...]  # the new tokens
    runs: int = 1
    spread: float = math.nan  # of the decoding speed: fastest less slowest, over the median
    prefill_tokens_per_s: float = math.nan  # the prompt's tokens over first_token_s
    warmup_first_token_s: float = math.nan  # the first token of all: on the CPU weights are read from disk for it
    load_first_token_s: float = math.nan  # that and the loading before it, the only honest figure of loading
    peak_bytes: float = math.nan  # the most that torch held on the device, where it counts: CUDA
    bytes_per_token: float = math.nan  # what decoding one token must read: weights and KV cache
    threads: int = 0
    attention: str = ""
    kernel: str = ""  # of one-token passes on the CPU, see kernels.py
    first_logits: tuple[float, ...] = ()  # the winning scores of the first tokens, to compare devices by
    stopped: bool = False  # by an interrupt; text and times are those until then


def require_some(max_new_tokens: int, runs: int) -> None:
    """Stop where nothing would be made or timed. Raises ModelError."""
    if max_new_tokens < 1 or runs < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens} and runs is {runs}; ask for at least 1 of each.")


@dataclass(frozen=True)
class Pass:
    """One run of a method."""

    text: str
    prompt_tokens: int
    new_tokens: int
    first_token_s: float
    total_s: float
    tokens_per_s: float
    prompt_ids: tuple[int, ...] = ()  # a server tells no ids
    token_ids: tuple[int, ...] = ()


class Clock:
    """A streamer, as `generate` takes one: notes what arrives and when. The first to arrive is the prompt."""

    def __init__(self, synchronize: Callable[[], None], printer: Any = None) -> None:
        self.synchronize, self.printer = synchronize, printer  # printer: a streamer too, or None
        self.arrivals: list[tuple[float, list[int]]] = []
        self.began = 0.0

    def start(self) -> None:
        """From here on time counts; what the device had still to do is waited for."""
        self.synchronize()
        self.began = time.perf_counter()

    def put(self, tokens: Any) -> None:
        """Called with each token, of shape (1,), and at first with the prompt, of shape (1, prompt tokens)."""
        self.arrivals.append((time.perf_counter(), tokens.flatten().tolist()))
        if self.printer:
            self.printer.put(tokens)

    def end(self) -> None:
        """Called after the last token; printing may have held back the beginning of a word."""
        if self.printer:
            self.printer.end()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The new tokens so far."""
        return tuple(token_id for _, ids in self.arrivals[1:] for token_id in ids)

    def stop(self, text: str) -> Pass:
        """The finished run, with its answer."""
        self.synchronize()
        total_s = time.perf_counter() - self.began
        (_, prompt_ids), *arrivals = self.arrivals
        times = [moment for moment, _ in arrivals]
        first_token_s = times[0] - self.began if times else math.nan
        speed = decoding_speed(times, len(times))
        return Pass(text, len(prompt_ids), len(times), first_token_s, total_s, speed, tuple(prompt_ids), self.token_ids)


def decoding_speed(times: Sequence[float], tokens: int) -> float:
    """Tokens per second after the first, from the moments of arrival; NaN for fewer than two."""
    return (tokens - 1) / (times[-1] - times[0]) if len(times) > 1 else math.nan


def summary(passes: Sequence[Pass], **facts: Any) -> Generation:
    """The record of a warm-up and the timed runs after it; `facts` are the fields that no clock knows."""
    warmup, *timed = passes
    speeds = [each.tokens_per_s for each in timed]
    speed = statistics.median(speeds)
    first_token_s = statistics.median(each.first_token_s for each in timed)
    return Generation(
        text=timed[0].text,
        prompt_tokens=timed[0].prompt_tokens,
        new_tokens=timed[0].new_tokens,
        first_token_s=first_token_s,
        total_s=statistics.median(each.total_s for each in timed),
        tokens_per_s=speed,
        token_ids=timed[0].token_ids,
        runs=len(timed),
        spread=(max(speeds) - min(speeds)) / speed,
        prefill_tokens_per_s=timed[0].prompt_tokens / first_token_s,
        warmup_first_token_s=warmup.first_token_s,
        **facts,
    )
