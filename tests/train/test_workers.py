"""Work in several processes: the same results, and nothing left behind."""

import os
import time

import psutil
import pytest

from base_model.train import workers


def where(item):
    """The item, and the process that has it."""
    return item, os.getpid()


def only_here(parent):
    """Ends any process but this one, as the system does where memory runs out."""
    if os.getpid() != parent:
        os._exit(9)
    return parent


def slow(item):
    time.sleep(0 if item == 0 else 600)
    return item


def wrong(item):
    raise ValueError(item)


@pytest.fixture
def two(monkeypatch):
    """At once, in two processes."""
    monkeypatch.setattr(workers, "ALONE_S", 0.0)
    monkeypatch.setattr(workers, "count_workers", lambda: 2)


def children():
    """The processes at work; a tracker of theirs ends with this one."""
    return [one for one in psutil.Process().children() if "popen_loky" in " ".join(one.cmdline())]


def test_what_is_quick_stays_in_this_process():
    assert list(workers.results(where, [1, 2, 3])) == [(number, (number, os.getpid())) for number in (1, 2, 3)]


def test_others_help_with_the_rest(two):
    found = dict(workers.results(where, list(range(6))))
    assert sorted(found) == list(range(6)) and all(found[item][0] == item for item in found)
    assert os.getpid() not in {process for _, process in found.values()}
    assert not children()


def test_a_process_that_is_killed_loses_nothing(two):
    assert list(workers.results(only_here, [os.getpid()] * 3)) == [(os.getpid(), os.getpid())] * 3


def test_who_stops_asking_stops_the_work(two):
    found = workers.results(slow, [0, 1, 2])
    assert next(found) == (0, 0)
    assert len(children()) == 2
    found.close()
    assert not children()


def test_an_error_comes_back_as_it_is(two):
    with pytest.raises(ValueError, match="7"):
        list(workers.results(wrong, [7, 7]))
    assert not children()


@pytest.mark.parametrize(("cores", "room", "count"), [(4, 2.5, 2), (2, 99, 2), (64, 99, 8), (4, 0.5, 0)])
def test_workers_are_as_many_as_find_room(monkeypatch, cores, room, count):
    machine = workers.this_machine().head(1).assign(device="cpu", usable_bytes=int(room * 2**30))
    monkeypatch.setattr(workers, "this_machine", lambda: machine)
    monkeypatch.setattr("loky.cpu_count", lambda only_physical_cores: cores)
    assert workers.count_workers() == count
