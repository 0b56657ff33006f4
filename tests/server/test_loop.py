"""One thread's work, with a clock of the test's own."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.server.loop import EventLoop
from vfio_user.testing.leaks import open_files


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[EventLoop]:
    loop = EventLoop(clock)
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@contextlib.contextmanager
def eventfd(value: int) -> Iterator[int]:
    fd = os.eventfd(value)
    yield fd
    os.close(fd)


# Calls put off.


def test_calls_run_in_order_with_their_arguments(loop: EventLoop) -> None:
    seen: list[Any] = []
    loop.call_soon(seen.append, 1)
    loop.call_soon(lambda: seen.append(2))
    loop.call_soon(lambda *args: seen.append(args), 3, 4)
    assert loop.next_timeout() == 0.0
    loop.run_once()
    assert seen == [1, 2, (3, 4)]
    assert loop.next_timeout() is None


def test_a_call_made_by_a_call_waits_for_the_next_turn(loop: EventLoop) -> None:
    seen: list[int] = []

    def again(n: int) -> None:
        seen.append(n)
        loop.call_soon(again, n + 1)

    loop.call_soon(again, 0)
    for turns in range(1, 4):
        loop.run_once()
        assert seen == list(range(turns))


def test_descriptors_get_their_turn_between_calls(loop: EventLoop, pipe: tuple[int, int]) -> None:
    seen: list[str] = []

    def again() -> None:
        seen.append("call")
        loop.call_soon(again)

    loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 1).decode()))
    loop.call_soon(again)
    os.write(pipe[1], b"ab")
    loop.run_once()
    loop.run_once()
    assert seen == ["a", "call", "b", "call"]


def test_a_call_that_raises_is_logged_and_the_others_run(
    loop: EventLoop, caplog: pytest.LogCaptureFixture, pipe: tuple[int, int]
) -> None:
    seen: list[str] = []
    failures: list[Exception] = []

    def breaks() -> None:
        raise RuntimeError("its own fault")

    def watched() -> None:
        os.read(pipe[0], 1)
        breaks()

    loop.watch(pipe[0], watched)
    os.write(pipe[1], b"x")
    loop.call_soon(breaks)
    loop.call_soon(seen.append, "after")
    loop.call_later(0, breaks)
    loop.run_once()
    loop.on_failure = failures.append
    loop.call_soon(breaks)
    loop.run_once()
    assert seen == ["after"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 4
    assert "breaks" in caplog.records[1].message
    assert caplog.records[1].exc_info is not None
    assert [str(failure) for failure in failures] == ["its own fault"]


# Timers.


def test_a_timer_runs_when_its_time_has_come(loop: EventLoop, clock: Clock) -> None:
    seen: list[str] = []
    timer = loop.call_later(2.0, seen.append, "now")
    loop.run_once()
    assert (seen, timer.is_pending) == ([], True)
    assert loop.next_timeout() == 2.0
    clock.now += 1.5
    assert loop.next_timeout() == 0.5
    loop.run_once()
    assert seen == []
    clock.now += 0.5
    loop.run_once()
    assert (seen, timer.is_pending) == (["now"], False)
    assert loop.next_timeout() is None


def test_timers_that_are_late_are_due_at_once(loop: EventLoop, clock: Clock) -> None:
    loop.call_later(1.0, lambda: None)
    clock.now += 10
    assert loop.next_timeout() == 0.0


@given(st.lists(st.integers(0, 5), max_size=12))
def test_timers_run_by_deadline_and_then_by_age(delays: list[int]) -> None:
    clock = Clock()
    loop = EventLoop(clock)
    seen: list[tuple[int, int]] = []
    for position, delay in enumerate(delays):
        loop.call_later(delay, lambda *what: seen.append(what), delay, position)
    clock.now += 3
    loop.run_once()
    assert seen == sorted((delay, position) for position, delay in enumerate(delays) if delay <= 3)
    clock.now += 3
    loop.run_once()
    assert seen == sorted((delay, position) for position, delay in enumerate(delays))
    loop.close()


def test_a_cancelled_timer_never_runs(loop: EventLoop, clock: Clock) -> None:
    seen: list[str] = []
    timers = [loop.call_later(delay, seen.append, f"{delay}") for delay in (1, 2)]
    timers[0].cancel()
    timers[0].cancel()
    assert [timer.is_pending for timer in timers] == [False, True]
    assert loop.next_timeout() == 2.0
    clock.now += 3
    loop.run_once()
    assert seen == ["2"]
    timers[1].cancel()


def test_a_timer_may_cancel_another_and_start_a_new_one(loop: EventLoop, clock: Clock) -> None:
    seen: list[str] = []

    def first() -> None:
        other.cancel()
        loop.call_later(1, seen.append, "new")

    loop.call_later(1, first)
    other = loop.call_later(1, seen.append, "other")
    clock.now += 1
    loop.run_once()
    clock.now += 1
    loop.run_once()
    assert seen == ["new"]


def test_waiting_ends_with_the_first_timer() -> None:
    loop = EventLoop()
    seen: list[str] = []
    loop.call_later(0.001, seen.append, "timer")
    while not seen:
        loop.run_once(None)
    loop.close()


# Descriptors.


def test_a_watch_is_called_until_it_is_closed(loop: EventLoop, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []
    watch = loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 1)))
    loop.run_once()
    assert seen == []
    os.write(pipe[1], b"abc")
    loop.run_once()
    loop.run_once()
    assert seen == [b"a", b"b"]
    watch.close()
    watch.close()
    watch.set_events(writable=True)
    loop.run_once()
    assert seen == [b"a", b"b"]


def test_what_to_wait_for_can_change(loop: EventLoop) -> None:
    seen: list[str] = []
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    watch = loop.watch(fd, lambda: seen.append("ready"))
    watch.set_events(readable=False)
    loop.run_once()
    assert seen == []
    watch.set_events(readable=False, writable=True)
    loop.run_once()
    assert seen == ["ready"]
    watch.close()
    os.close(fd)


def test_a_descriptor_is_watched_once(loop: EventLoop, pipe: tuple[int, int]) -> None:
    watch = loop.watch(pipe[0], lambda: None)
    with pytest.raises(ValueError, match=rf"descriptor {pipe[0]} is watched already"):
        loop.watch(pipe[0], lambda: None)
    watch.close()
    loop.watch(pipe[0], lambda: None).close()


def test_what_cannot_be_waited_for_is_refused_and_forgotten(loop: EventLoop) -> None:
    fd = os.open(__file__, os.O_RDONLY)
    for _ in range(2):
        with pytest.raises(PermissionError):
            loop.watch(fd, lambda: None)
    os.close(fd)
    assert loop.is_simple


def test_a_watch_closed_by_another_callback_of_the_same_turn_is_not_called(loop: EventLoop) -> None:
    fds = [os.eventfd(1), os.eventfd(1)]
    seen: list[int] = []

    def close_both(which: int) -> None:
        seen.append(which)
        for watch in watches:
            watch.close()

    watches = [loop.watch(fd, lambda which=which: close_both(which)) for which, fd in enumerate(fds)]  # type: ignore[misc]
    loop.run_once()
    assert len(seen) == 1
    for fd in fds:
        os.close(fd)


# Other threads.


def from_another_thread(call: Any, *args: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call(*args)))
    thread.start()
    thread.join()
    return results[0]


def test_another_threads_call_wakes_the_loop(loop: EventLoop) -> None:
    seen: list[int] = []
    loop.run_once()
    from_another_thread(loop.call_soon, lambda: seen.append(threading.get_ident()))
    loop.run_once(None)
    assert seen == [threading.get_ident()]


def test_another_threads_call_is_done_even_before_the_loop_ever_ran(loop: EventLoop) -> None:
    seen: list[str] = []
    from_another_thread(loop.call_soon, seen.append, "early")
    loop.run_once(None)
    assert seen == ["early"]


def test_another_threads_timer_is_added_on_the_loops_thread(loop: EventLoop, clock: Clock) -> None:
    seen: list[str] = []
    loop.run_once()
    timer = from_another_thread(loop.call_later, 1.0, seen.append, "timer")
    loop.run_once(None)
    assert loop.next_timeout() == 1.0
    clock.now += 1
    loop.run_once()
    assert seen == ["timer"]
    assert not timer.is_pending


def test_another_threads_watch(loop: EventLoop, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []
    loop.run_once()
    from_another_thread(loop.watch, pipe[0], lambda: seen.append(os.read(pipe[0], 9)))
    os.write(pipe[1], b"x")
    loop.run_once(None)
    assert seen == [b"x"]


def test_stop_ends_run_from_another_thread(loop: EventLoop) -> None:
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.stop()
    thread.join()
    assert loop.is_stopping
    loop.run()  # stopped is stopped


# ``is_simple``: whether the server may wait in the receive call itself.


def is_simple(loop: EventLoop) -> bool:
    """The attribute, but no fact that a type checker would carry on from one line to the next."""
    return loop.is_simple


def test_simple_is_a_loop_with_one_descriptor_and_nothing_to_do(loop: EventLoop, pipe: tuple[int, int]) -> None:
    assert is_simple(loop)
    watch = loop.watch(pipe[0], lambda: None)
    assert is_simple(loop)
    other = loop.watch(pipe[1], lambda: None)
    assert not is_simple(loop)
    other.close()
    assert is_simple(loop)
    loop.call_soon(lambda: None)
    assert not is_simple(loop)
    loop.run_once()
    assert is_simple(loop)
    timer = loop.call_later(1, lambda: None)
    assert not is_simple(loop)
    loop.call_soon(timer.cancel)
    loop.run_once()
    assert is_simple(loop)
    watch.close()


def test_a_loop_another_thread_has_called_is_never_simple_again(loop: EventLoop) -> None:
    loop.run_once()
    from_another_thread(loop.call_soon, lambda: None)
    loop.run_once()
    loop.run_once()
    assert not loop.is_simple


@pytest.mark.parametrize("what", ["stop", "call_soon", "watch"])
def test_what_comes_while_simple_is_being_worked_out_is_not_lost(
    loop: EventLoop, pipe: tuple[int, int], what: str
) -> None:
    """Another thread, or a signal handler, may come between the look at the state and what is made of it."""
    loop.run_once()
    first = loop.watch(pipe[0], lambda: None)

    class Watches(dict[int, Any]):
        """The last thing that is looked at."""

        def __len__(self) -> int:
            found = super().__len__()
            if not interrupted:
                interrupted.append(True)
                if what == "stop":
                    loop.stop()
                elif what == "call_soon":
                    from_another_thread(loop.call_soon, lambda: None)
                else:
                    from_another_thread(loop.watch, pipe[1], lambda: None)
            return found

    interrupted: list[bool] = []
    loop._watches = Watches(loop._watches)
    loop.run_once()
    assert interrupted
    assert not loop.is_simple
    first.close()


# ``settle``: for who waits for the one descriptor itself.


def test_settled_is_what_was_put_off(loop: EventLoop, pipe: tuple[int, int]) -> None:
    seen: list[int] = []
    loop.watch(pipe[0], lambda: seen.append(0))
    loop.call_soon(seen.append, 1)
    loop.call_soon(seen.append, 2)
    os.write(pipe[1], b"x")
    assert loop.settle()
    assert seen == [1, 2]
    assert is_simple(loop)
    # From here on, other threads' calls wake it.
    assert loop.thread_id == threading.get_ident()


@pytest.mark.parametrize("what", ["descriptor", "thread", "nothing"])
def test_who_settles_waits_for_one_descriptor_and_for_other_threads(
    loop: EventLoop, pipe: tuple[int, int], what: str
) -> None:
    assert loop.settle()
    if what == "descriptor":
        os.write(pipe[1], b"x")
    elif what == "thread":
        from_another_thread(loop.call_soon, lambda: None)
    for _ in range(2):
        assert loop.wait_for(pipe[0], 0.0 if what == "nothing" else 60.0) is (what != "nothing")


def test_timers_are_settled_when_they_are_due(loop: EventLoop, clock: Clock) -> None:
    seen: list[int] = []
    loop.call_later(2.5, seen.append, 1)
    timer = loop.call_later(9.0, seen.append, 2)
    assert loop.settle()
    assert (seen, loop.next_timeout()) == ([], 2.5)
    clock.now += 3
    assert loop.settle()
    assert (seen, loop.next_timeout()) == ([1], 6.0)
    assert not is_simple(loop)
    timer.cancel()
    assert loop.settle()
    assert (seen, loop.next_timeout()) == ([1], None)
    assert is_simple(loop)


def test_what_a_settled_call_puts_off_waits_for_the_next_time(loop: EventLoop) -> None:
    seen: list[int] = []
    loop.call_soon(lambda: loop.call_soon(seen.append, 1))
    assert loop.settle()
    assert (seen, loop.next_timeout()) == ([], 0.0)
    assert loop.settle()
    assert (seen, loop.next_timeout()) == ([1], None)


@pytest.mark.parametrize("what", ["watch", "stop"])
def test_a_call_after_which_there_is_more_to_wait_for(loop: EventLoop, pipe: tuple[int, int], what: str) -> None:
    loop.watch(pipe[0], lambda: None)
    loop.call_soon(lambda: loop.watch(pipe[1], lambda: None) if what == "watch" else loop.stop())
    assert not loop.settle()
    assert not is_simple(loop)


@pytest.mark.parametrize("what", ["descriptors", "thread", "stop"])
def test_nothing_is_settled_where_something_else_is_to_be_done(
    loop: EventLoop, pipe: tuple[int, int], what: str
) -> None:
    seen: list[int] = []
    loop.run_once()
    if what == "descriptors":
        for end in pipe:
            loop.watch(end, lambda: None)
    elif what == "thread":
        from_another_thread(loop.call_soon, lambda: None)
        loop.run_once()
    else:
        loop.stop()
    loop.call_soon(seen.append, 1)
    assert not loop.settle()
    assert seen == []


@pytest.mark.parametrize("what", ["call", "timer"])
def test_a_failure_is_told_when_all_is_settled(
    loop: EventLoop, clock: Clock, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    failed: list[Exception] = []
    loop.on_failure = failed.append
    if what == "call":
        loop.call_soon(lambda: 1 // 0)
    else:
        loop.call_later(1.0, lambda: 1 // 0)
        clock.now += 2
    others: list[int] = []
    loop.call_soon(others.append, 1)
    assert not loop.settle()
    assert (len(failed), others) == (1, [1])
    assert "a callback of the device failed" in caplog.text


# Taking over, and the end.


def test_a_loop_takes_over_what_another_was_to_do(loop: EventLoop, clock: Clock, pipe: tuple[int, int]) -> None:
    before = open_files()
    other = EventLoop(clock)
    seen: list[Any] = []
    watch = other.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 1)))
    other.call_soon(seen.append, "soon")
    other.call_later(2, seen.append, "later")
    cancelled = other.call_later(1, seen.append, "never")
    assert other.has_work
    loop.adopt(other)
    assert open_files() == before
    cancelled.cancel()
    os.write(pipe[1], b"xy")
    loop.run_once()
    assert seen == [b"x", "soon"]
    watch.close()
    clock.now += 2
    loop.run_once()
    assert seen == [b"x", "soon", "later"]
    assert not loop.has_work


def test_a_closed_loop_does_nothing_more_and_touches_no_descriptor() -> None:
    loop = EventLoop()
    pipe = os.pipe()
    watch = loop.watch(pipe[0], lambda: None)
    loop.run_once()
    loop.close()
    loop.close()
    # The number of its own eventfd is likely this one's now.
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    watch.close()
    from_another_thread(loop.call_soon, lambda: None)
    loop.stop()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    for open_fd in (*pipe, fd):
        os.close(open_fd)


def test_a_loop_nobody_closes_leaves_nothing_open() -> None:
    before = open_files()
    loop = EventLoop()
    loop.call_soon(lambda: None)
    del loop
    assert open_files() == before


def test_fileno_is_readable_when_there_is_something_to_do(loop: EventLoop, pipe: tuple[int, int]) -> None:
    outer = EventLoop()
    outer.watch(loop.fileno(), loop.run_once)
    seen: list[bytes] = []
    loop.watch(pipe[0], lambda: seen.append(os.read(pipe[0], 1)))
    os.write(pipe[1], b"x")
    outer.run_once(None)
    assert seen == [b"x"]
    outer.close()


# What servers have to do while a callback waits for its client.


def test_serve_once_serves_clients_and_leaves_the_rest(loop: EventLoop) -> None:
    seen: list[str] = []
    with contextlib.ExitStack() as stack:
        fds = [stack.enter_context(eventfd(1)) for _ in range(3)]
        loop.watch(fds[0], lambda: seen.append("device"))
        loop.watch(fds[1], lambda: seen.append("server"), for_clients=True)
        loop.call_soon(seen.append, "later")
        assert loop.serve_once(1.0, {fds[2]: select.POLLIN}) == {fds[2]}
        assert seen == ["server"]
        # Looked after by the caller, even if it is watched as well.
        assert loop.serve_once(1.0, {fds[1]: select.POLLIN}) == {fds[1]}
        assert seen == ["server"]
        loop.run_once(0)
        assert sorted(seen) == ["device", "later", "server", "server"]


def test_serve_once_waits_no_longer_than_it_may_and_is_woken(loop: EventLoop) -> None:
    assert loop.serve_once(0.001, {}) == set()
    loop.stop()
    started = time.monotonic()
    loop.serve_once(10.0, {})
    assert time.monotonic() - started < 5
    assert loop.is_stopping


def test_a_watch_that_waits_for_nothing_is_not_served(loop: EventLoop) -> None:
    seen: list[str] = []
    with eventfd(1) as fd:
        watch = loop.watch(fd, lambda: seen.append("server"), for_clients=True)
        watch.set_events(readable=False)
        loop.serve_once(0, {})
        assert seen == []
        watch.set_events(readable=False, writable=True)
        loop.serve_once(0, {})
        assert seen == ["server"]
