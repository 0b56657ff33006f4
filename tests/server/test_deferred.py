"""Work a stopped device put off: it waits, in its order, and what belongs to another past is dropped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vfio_user.server.deferred import DeferredWork
from vfio_user.server.loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


@pytest.fixture
def work() -> DeferredWork:
    return DeferredWork()


def test_nothing_waits_while_the_device_runs(work: DeferredWork) -> None:
    done: list[int] = []
    work.wrap(done.append, (1,))()
    assert done == [1]
    assert not work.is_held


def test_held_work_is_done_in_its_order_once_released(work: DeferredWork, loop: EventLoop) -> None:
    done: list[int] = []
    work.hold()
    assert work.is_held
    for number in range(3):
        loop.call_soon(work.wrap(done.append, (number,)))
    loop.run_once()
    assert done == []
    work.release(loop.call_soon)
    assert done == []  # soon, not at once
    loop.run_once()
    assert done == [0, 1, 2]
    loop.run_once()
    assert done == [0, 1, 2]


def test_held_again_before_it_was_done(work: DeferredWork, loop: EventLoop) -> None:
    done: list[int] = []
    work.hold()
    work.wrap(done.append, (1,))()
    work.release(loop.call_soon)
    work.hold()
    loop.run_once()
    assert done == []
    work.release(loop.call_soon)
    loop.run_once()
    assert done == [1]


def test_forgotten_work_is_never_done(work: DeferredWork, loop: EventLoop) -> None:
    done: list[int] = []
    due, later = work.wrap(done.append, (1,)), work.wrap(done.append, (2,))
    work.hold()
    due()
    work.forget()
    after = work.wrap(done.append, (3,))
    after()
    work.release(loop.call_soon)
    loop.run_once()
    later()
    assert done == [3]


def test_a_held_descriptor_is_not_looked_at(work: DeferredWork, loop: EventLoop) -> None:
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    other = os.eventfd(1, os.EFD_NONBLOCK)
    seen: list[int] = []
    try:
        first = work.add(loop.watch(fd, lambda: seen.append(os.eventfd_read(fd))))
        work.hold()
        second = work.add(loop.watch(other, lambda: seen.append(10 * os.eventfd_read(other))))
        loop.run_once()
        assert seen == []
        work.release(loop.call_soon)
        loop.run_once()
        assert sorted(seen) == [1, 10]
        first.close()
        work.hold()
        work.release(loop.call_soon)
        second.close()
    finally:
        os.close(fd)
        os.close(other)


def test_it_is_called_what_the_callback_is(work: DeferredWork) -> None:
    def finish() -> None: ...

    assert work.wrap(finish, ()).__qualname__ == finish.__qualname__
