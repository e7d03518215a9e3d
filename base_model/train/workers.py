"""Pieces of work that do not know each other, in as many processes as this machine has cores and memory for."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, as_completed
from typing import Any, TypeVar

from base_model.plan.machine import this_machine

ALONE_S = 5.0  # seconds before others are asked to help: they start in as many, with libraries of their own
MOST_WORKERS = 8
WORKER_BYTES = 1 << 30  # the libraries, and a plan
Item = TypeVar("Item")
Result = TypeVar("Result")


def results(function: Callable[[Item], Result], items: list[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, as they come: the first ones from this process, and all where it is quick.

    `function` and items must be picklable, results too. Whoever stops asking stops the work.
    """
    start, rest = time.monotonic(), list(items)
    while rest and (len(rest) == 1 or time.monotonic() - start < ALONE_S):
        item = rest.pop(0)
        yield item, function(item)
    done: set[int] = set()
    if rest and (workers := min(count_workers(), len(rest))) > 1:
        try:
            for number, result in _in_processes(function, rest, workers):
                done.add(number)
                yield rest[number], result
        except BrokenExecutor:  # one was killed, as where memory ran out: no reason to lose the rest
            pass
    yield from ((item, function(item)) for number, item in enumerate(rest) if number not in done)


def count_workers() -> int:
    """How many processes can work at once: one per core, and no more than find room."""
    from loky import cpu_count

    room = int(this_machine().set_index("device").loc["cpu", "usable_bytes"]) // WORKER_BYTES
    return min(cpu_count(only_physical_cores=True), room, MOST_WORKERS)


def _in_processes(function: Callable[[Any], Any], items: list[Any], workers: int) -> Iterator[tuple[int, Any]]:
    from loky import ProcessPoolExecutor  # unlike the standard library's, it runs no script a second time

    pool = ProcessPoolExecutor(max_workers=workers, initializer=_leave_interrupts)
    try:
        numbers = {pool.submit(function, item): number for number, item in enumerate(items)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    finally:
        pool.shutdown(kill_workers=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the one that asked ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
