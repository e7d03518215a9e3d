"""How much a server may send and how long it may take: every limit on an answer, stated and held here.

Requests run in daemon threads, so that whoever waits for them can stop at any moment; hooks of the Hub's client count
what comes. Both act on this project's own requests alone: those that are made within `ask` or `side_by_side`.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from base_model import format_bytes
from base_model.read.folder import MAX_JSON_BYTES

ANSWER_BYTES = MAX_JSON_BYTES  # of a list, a settings file or a header; a file of the model has a limit of its own
ERROR_BYTES = 100_000  # of a refusal, which is read for its words; the rest is left
ANSWERS = 10_000  # to one question, as a list has pages
PATIENCE = 30.0  # seconds until an answer begins, and seconds in which it comes too slowly
SLOWEST = 1024  # bytes a second, on average
ANSWER_SECONDS = 300.0  # until an answer that is no file of the model is whole
RETRY_SECONDS = 30  # that a server may ask to wait before the next request
TICK = 0.2  # seconds between two looks at the clock

Result = TypeVar("Result")


class OverLimitError(Exception):
    """What the other side did, in words that follow "gave up: it"."""


class StoppedError(Exception):
    """Ends a transfer that nobody waits for any more."""


class Watch:
    """What the requests of one question have received so far, and whether that is fast enough."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.waiting: dict[int, float] = {}  # thread: when its request was sent, until the answer begins
        self.reading: dict[int, float] = {}  # thread: when its answer must be whole
        self.bytes = self.answers = 0
        self._seen, self._slow, self._looked = 0, 0.0, time.monotonic()

    def look(self) -> None:
        """Raise OverLimitError where an answer does not come, comes too slowly, or takes too long."""
        now = time.monotonic()
        passed, came = min(now - self._looked, 1.0), self.bytes - self._seen  # a machine may have slept meanwhile
        self._looked, self._seen = now, self.bytes
        if self.reading:  # seconds without enough bytes; those that come pay for themselves and for what was missing
            self._slow = max(0.0, self._slow + passed - came / SLOWEST)
        if any(now - sent > PATIENCE for sent in list(self.waiting.values())):
            raise OverLimitError(f"did not begin to answer within {PATIENCE:g} s")
        if self._slow > PATIENCE:
            raise OverLimitError(f"sent less than {format_bytes(SLOWEST)} per second for {PATIENCE:g} s")
        if any(now > end for end in list(self.reading.values())):
            raise OverLimitError(f"had not sent a whole answer after {ANSWER_SECONDS:g} s")


_watch: ContextVar[Watch | None] = ContextVar("_watch", default=None)
_most_bytes: ContextVar[int | None] = ContextVar("_most_bytes", default=None)  # of a file of the model


def ask(call: Callable[[], Result], seconds: float | None = None) -> Result:
    """What `call` gives, whose requests keep within the limits. Raises OverLimitError where they do not."""
    return side_by_side([call], 1, seconds)[0]


def side_by_side(calls: Sequence[Callable[[], Result]], connections: int, seconds: float | None = None) -> list[Result]:
    """What the calls give, in their order, some of them at once. The first fault ends them all, and so does Ctrl-C.

    The wait holds no lock, since nothing else lets Ctrl-C in. `seconds`: for all of them together, in place of the
    limits on pace, for a server that thinks while it answers.
    """
    _limit_client()
    watch, todo, done = Watch(), queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
    for item in enumerate(calls):
        todo.put(item)
    for _ in range(min(connections, len(calls))):
        threading.Thread(target=_work, args=(watch, todo, done), daemon=True).start()
    began, results = time.monotonic(), dict[int, Result]()
    try:
        while len(results) < len(calls):
            for number, result, fault in _finished(done):
                if fault:
                    raise fault
                results[number] = result
            if seconds is None:
                watch.look()
            elif len(results) < len(calls) and time.monotonic() - began > seconds:
                raise OverLimitError(f"had not sent a whole answer after {seconds:g} s")
    finally:
        watch.stop.set()
    return [results[number] for number in range(len(calls))]


def _finished(done: Any) -> Iterator[tuple[int, Any, BaseException | None]]:
    """The calls that have ended, after a short wait for the first of them."""
    try:
        yield done.get(timeout=TICK)
        while True:
            yield done.get_nowait()
    except queue.Empty:
        return


def _work(watch: Watch, todo: Any, done: Any) -> None:
    """One connection: call after call until there is none left, or until they are stopped."""
    _watch.set(watch)
    while not watch.stop.is_set():
        try:
            number, call = todo.get_nowait()
        except queue.Empty:
            return
        try:
            done.put((number, call(), None))
        except BaseException as error:  # whatever it is, the waiting side must hear of it
            done.put((number, None, error))
        watch.waiting.pop(threading.get_ident(), None)


def require_wanted() -> None:
    """Raise StoppedError in a thread whose work nobody waits for any more."""
    watch = _watch.get()
    if watch and watch.stop.is_set():
        raise StoppedError


@contextmanager
def file_of(size: int) -> Iterator[None]:
    """Within, this thread brings a file of so many bytes: it may take its time, but may not be longer."""
    mark = _most_bytes.set(max(size, ERROR_BYTES))
    try:
        yield
    finally:
        _most_bytes.reset(mark)


# --- Hooks of the Hub's client

_factories: list[Any] = []  # of clients with these hooks; the last is in use


def _limit_client() -> None:
    """Have the client of this process call the hooks; a factory of the user's own still makes it."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = _http._GLOBAL_CLIENT_FACTORY
    if make in _factories:
        return

    def factory() -> Any:
        client = make()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], _asked], "response": [*hooks["response"], _answered]}
        return client

    _factories.append(factory)
    set_client_factory(factory)


def _asked(request: Any) -> None:
    """Before a request leaves."""
    if (watch := _watch.get()) is None:
        return
    require_wanted()
    watch.answers += 1
    if watch.answers > ANSWERS:
        raise OverLimitError(f"sent more than {ANSWERS:,} answers to one question")
    request.headers["Accept-Encoding"] = "identity"  # some kilobytes can be unpacked to many gigabytes
    watch.waiting[threading.get_ident()] = time.monotonic()


def _answered(response: Any) -> None:
    """When the head of an answer has come."""
    if (watch := _watch.get()) is None:
        return
    watch.waiting.pop(threading.get_ident(), None)
    _shorten_wait(response.headers)
    is_error = response.status_code >= 300
    if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        if not is_error:
            raise OverLimitError("sent a compressed answer, which was not requested")
        del response.headers["Content-Encoding"]  # its words are not read
    response.stream = _counted(response.stream, watch, is_error)


def _shorten_wait(headers: Any) -> None:
    """Take away what asks to wait for long: the client would sleep as long as it is told."""
    for name, pattern in {"Retry-After": r"\s*(\d{1,9})\s*", "RateLimit": r'"\w+";r=\d+;t=(\d{1,9})'}.items():
        if name in headers:
            match = re.fullmatch(pattern, headers[name], re.ASCII)
            if not match or int(match[1]) > RETRY_SECONDS:
                del headers[name]


def _counted(stream: Any, watch: Watch, is_error: bool) -> Any:
    """The same stream, counted: it ends where a refusal grows too long, and raises where an answer does."""
    from huggingface_hub.utils import httpx

    most, thread = _most_bytes.get(), threading.get_ident()
    watch.reading[thread] = float("inf") if most else time.monotonic() + ANSWER_SECONDS
    limit = ERROR_BYTES if is_error else most or ANSWER_BYTES

    class Counted(httpx.SyncByteStream):
        """A stream of the client's own kind, which takes no other."""

        def __iter__(self) -> Iterator[bytes]:
            total = 0
            for piece in stream:
                require_wanted()
                total, watch.bytes = total + len(piece), watch.bytes + len(piece)
                if total > limit and is_error:
                    return
                if total > limit:
                    raise OverLimitError(f"sent more than {format_bytes(limit)}, which cannot be right")
                yield piece

        def close(self) -> None:
            """Nobody waits for this body any more."""
            watch.reading.pop(thread, None)
            stream.close()

    return Counted()
