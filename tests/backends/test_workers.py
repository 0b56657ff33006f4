"""Threads for what may wait."""

from __future__ import annotations

import os
import select
import threading
import weakref
from typing import Any

import pytest

from vfio_user.backends.workers import Workers


def is_readable(workers: Workers, timeout: float = 0.0) -> bool:
    return bool(select.select([workers], [], [], timeout)[0])


def test_results_and_failures_come_back_on_the_collecting_thread() -> None:
    failure = OSError(5, "the disk is gone")
    told: list[tuple[Any, int]] = []

    def done(result: Any) -> None:
        told.append((result, threading.get_ident()))

    def fail() -> None:
        raise failure

    with Workers(1) as workers:
        workers.submit(threading.get_ident, done)
        workers.submit(fail, done)
        assert workers.pending == 2
        workers.drain()
        assert workers.pending == 0
    (worker, here), (raised, here_again) = told
    assert worker != threading.get_ident() == here == here_again
    assert raised is failure


def test_the_descriptor_is_readable_when_something_is_finished() -> None:
    go = threading.Event()
    with Workers(2) as workers:
        assert not is_readable(workers)
        told: list[object] = []
        workers.submit(lambda: go.wait(10), told.append)
        workers.collect()
        assert told == []
        go.set()
        assert is_readable(workers, 10)
        workers.collect()
        assert told == [True]
        assert not is_readable(workers)


def test_as_many_run_at_once_as_there_are_threads() -> None:
    meeting = threading.Barrier(3)
    told: list[object] = []
    with Workers(3) as workers:
        for _ in range(3):
            workers.submit(lambda: meeting.wait(10) >= 0, told.append)
        workers.drain()
        assert told == [True] * 3
        assert len(workers._threads) == 3
        for _ in range(20):
            workers.submit(lambda: True, told.append)
        workers.drain()
        assert len(workers._threads) == 3


def test_what_is_finished_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = 0
    write = os.eventfd_write

    def eventfd_write(fd: int, value: int) -> None:
        nonlocal told
        told += 1
        write(fd, value)

    monkeypatch.setattr(os, "eventfd_write", eventfd_write)
    with Workers(1) as workers:
        for _ in range(2):
            last = threading.Event()
            for _ in range(20):
                workers.submit(lambda: None, lambda _: None)
            workers.submit(last.set, lambda _: None)
            assert last.wait(10)
            while len(workers._finished) < 21:
                workers.give_way(10)
            workers.collect()
            assert workers.pending == 0
    assert told == 2


def test_what_is_finished_while_it_collects_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.eventfd_read
    go = threading.Event()

    def eventfd_read(fd: int) -> int:
        go.set()
        while len(workers._finished) < 2 or not is_readable(workers):
            workers.give_way(0.01)
        return read(fd)

    told: list[object] = []
    with Workers(2) as workers:
        workers.submit(lambda: 1, told.append)
        assert is_readable(workers, 10)
        workers.submit(lambda: go.wait(10), told.append)
        with monkeypatch.context() as patch:
            patch.setattr(os, "eventfd_read", eventfd_read)
            workers.collect()
        workers.submit(lambda: 3, told.append)
        assert is_readable(workers, 10)
        workers.collect()
    assert told == [1, True, 3]


def test_giving_way_to_the_threads() -> None:
    with Workers(1) as workers:
        assert workers.give_way(10)  # nobody is waited for
        worked: list[int] = []
        for number in range(10):
            workers.submit(lambda number=number: worked.append(number), lambda _: None)  # type: ignore[misc]
        while len(workers._finished) < 10:  # they may have come to the end of a part before there was more
            assert workers.give_way(10)
        workers.drain()
        go = threading.Event()
        workers.submit(lambda: go.wait(10), lambda _: None)
        while workers.give_way(0.001):  # the end of what was before
            assert not workers._finished
        go.set()
        workers.drain()


def test_a_callback_that_fails_does_not_swallow_the_others() -> None:
    told: list[object] = []

    def broken(_result: object) -> None:
        raise RuntimeError("broken callback")

    with Workers(1) as workers:
        both = threading.Event()
        workers.submit(lambda: None, broken)
        workers.submit(lambda: 1, told.append)
        workers.submit(both.set, told.append)
        assert both.wait(10)
        while len(workers._finished) < 3:
            assert is_readable(workers, 10)
        with pytest.raises(RuntimeError, match="broken callback"):
            workers.collect()
        assert is_readable(workers)
        workers.collect()
    assert told == [1, None]


def test_work_submitted_by_a_callback_waits_for_the_next_collection() -> None:
    turns = 0
    with Workers(1) as workers:

        def again(_result: object) -> None:
            nonlocal turns
            turns += 1
            if turns < 5:
                workers.submit(lambda: None, again)

        workers.submit(lambda: None, again)
        workers.drain()
    assert turns == 5


def test_a_thread_does_not_keep_what_it_worked_on() -> None:
    class Thing:
        def work(self) -> None:
            pass

    with Workers(1) as workers:
        thing = Thing()
        gone = weakref.ref(thing)
        workers.submit(thing.work, lambda _: None)
        workers.drain()
        workers.submit(lambda: None, lambda _: None)  # the thread has come back to its queue, and on
        workers.drain()
        del thing
        assert gone() is None


def test_closing_waits_for_the_work() -> None:
    worked: list[int] = []
    workers = Workers(1)
    for number in range(10):
        workers.submit(lambda number=number: worked.append(number), lambda _: worked.append(-1))  # type: ignore[misc]
    workers.close()
    workers.close()
    assert worked == list(range(10))
    assert workers.pending == 0
    with pytest.raises(ValueError, match="closed"):
        workers.submit(lambda: None, lambda _: None)


def test_no_threads_cannot_work() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Workers(0)
