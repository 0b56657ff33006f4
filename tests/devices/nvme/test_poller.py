"""Doorbells that are looked at."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from vfio_user.devices.nvme import poller as module
from vfio_user.devices.nvme.poller import REST_LIMIT, DoorbellPoller


class Timer:
    def __init__(self, due: float, delay: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.delay = delay
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Scheduler:
    """A device's loop whose turns and time the test passes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: list[Callable[[], None]] = []
        self.timers: list[Timer] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.ready.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay, delay, callback))
        return self.timers[-1]

    def turn(self) -> None:
        ready, self.ready = self.ready, []
        for callback in ready:
            callback()

    def settle(self, limit: int = 1000) -> None:
        while self.ready:
            limit -= 1
            assert limit, "it never rests"
            self.turn()

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.callback and timer.due <= end]:
            timer = min(due, key=lambda one: one.due)
            self.now, callback = timer.due, timer.callback
            timer.cancel()
            assert callback is not None
            callback()
            self.settle()
        self.now = end


class Doorbells:
    """The memory, and what was rung."""

    def __init__(self, count: int) -> None:
        self.values = [0] * count
        self.rung: list[tuple[int, int]] = []
        self.worked: list[int] = []
        self.scheduler = Scheduler()
        self.on_look: Callable[[], None] | None = None
        self.give_way: Callable[[], bool] | None = None

    def look(self) -> bytes:
        if self.on_look is not None:
            self.on_look()
        return struct.pack(f"<{len(self.values)}I", *self.values)

    def ring(self, number: int, value: int) -> None:
        self.rung.append((number, value))

    def work(self) -> None:
        self.worked.append(len(self.rung))

    def poller(self, arm: Callable[[bytes], None] | None = None) -> DoorbellPoller:
        return DoorbellPoller(self.scheduler, self.look, self.ring, self.work, arm, self.give_way)


@pytest.fixture
def bells() -> Doorbells:
    return Doorbells(4)


def test_changes_ring_each_once(bells: Doorbells) -> None:
    poller = bells.poller()
    bells.values = [0, 5, 0, 0]
    poller.start()
    poller.start()
    bells.scheduler.turn()
    assert bells.rung == [(1, 5)]
    assert len(bells.scheduler.ready) == 1
    bells.values = [7, 6, 0, 1]
    bells.scheduler.turn()
    bells.scheduler.turn()
    assert bells.rung == [(1, 5), (0, 7), (1, 6), (3, 1)]
    assert bells.worked == [1, 4]


def test_what_changes_while_it_looks_is_seen_in_the_same_turn(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    looks = 0

    def write() -> None:
        nonlocal looks
        looks += 1
        if looks % 10 == 0:
            bells.values[2] = looks

    bells.on_look = write
    bells.scheduler.turn()
    assert bells.rung == [(2, value) for value in range(10, module._LOOKS + 1, 10)]


def test_a_turn_ends_however_much_there_is_to_do(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()

    def write() -> None:
        bells.values[2] += 1

    bells.on_look = write
    for turn in (1, 2, 3):
        bells.scheduler.turn()
        assert bells.rung == [(2, value) for value in range(1, turn * module._FINDS + 1)]
        assert poller.looks == turn * module._FINDS


def test_while_others_have_work_it_looks_once_in_a_turn(bells: Doorbells) -> None:
    gave_way: list[int] = []

    def give_way() -> bool:
        gave_way.append(poller.looks)
        return have_work

    have_work = True
    bells.give_way = give_way
    poller = bells.poller()
    poller.start(bells.look())
    for turn in (1, 2, 3):
        bells.scheduler.turn()
        assert poller.looks == turn
        assert gave_way == list(range(turn))  # before it looks
    have_work = False
    bells.scheduler.turn()
    assert poller.looks == 3 + module._LOOKS
    # What is found may be work for them: then it is their turn at once.
    bells.values[0] = 7

    def work() -> None:
        nonlocal have_work
        have_work = True

    poller._work = work
    looks = poller.looks
    gave_way.clear()
    bells.scheduler.turn()
    assert (poller.looks, len(gave_way)) == (looks + 1, 2)


def test_it_may_be_stopped_while_it_gives_way(bells: Doorbells) -> None:
    def give_way() -> bool:
        poller.stop()
        return False

    bells.give_way = give_way
    poller = bells.poller()
    poller.start()
    bells.values[0] = 7
    bells.scheduler.settle()
    assert bells.rung == []
    assert not poller.is_running


def test_without_work_it_looks_ever_more_rarely(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    bells.scheduler.settle()
    assert poller.is_resting
    assert poller.looks == module._LOOKS * (module._TURNS + 1)
    before = poller.looks
    bells.scheduler.sleep(1.0)
    assert poller.is_resting
    # From the shortest rest to the longest, and then one after the other.
    assert 1 / REST_LIMIT <= poller.looks - before <= 1 / REST_LIMIT + 6
    gaps = [
        later.due - sooner.due
        for sooner, later in zip(bells.scheduler.timers, bells.scheduler.timers[1:], strict=False)
    ]
    assert gaps[-1] == pytest.approx(REST_LIMIT)
    assert max(gaps) <= REST_LIMIT + 1e-9


def test_work_ends_a_rest(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    bells.scheduler.settle()
    bells.scheduler.sleep(1.0)
    bells.values[0] = 3
    before, rested = poller.looks, len(bells.scheduler.timers)
    bells.scheduler.sleep(REST_LIMIT)
    assert bells.rung == [(0, 3)]
    assert poller.looks >= before + module._LOOKS * module._TURNS  # it was busy again,
    assert poller.is_resting  # and rests again
    rests = [timer.delay for timer in bells.scheduler.timers[rested:]]
    assert min(rests) == module._FIRST_REST


def test_waking_ends_a_rest(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.wake()
    assert bells.scheduler.ready == []
    poller.start()
    poller.wake()
    assert len(bells.scheduler.ready) == 1
    bells.scheduler.settle()
    poller.wake()
    assert not poller.is_resting
    bells.scheduler.turn()
    assert len(bells.scheduler.ready) == 1
    assert not [timer for timer in bells.scheduler.timers if timer.callback]


def test_with_an_event_index_nothing_is_looked_at_until_woken(bells: Doorbells) -> None:
    armed: list[bytes] = []
    poller = bells.poller(armed.append)
    bells.values = [1, 2, 3, 4]
    poller.start()
    bells.scheduler.settle()
    assert armed == [struct.pack("<4I", 1, 2, 3, 4)]
    assert poller.is_resting
    assert bells.scheduler.timers == []
    bells.values[0] = 9
    bells.scheduler.sleep(10)
    assert bells.rung[4:] == []
    poller.wake()
    bells.scheduler.settle()
    assert bells.rung[4:] == [(0, 9)]
    assert len(armed) == 2


def test_what_is_written_before_the_event_index_is_seen_is_not_missed(bells: Doorbells) -> None:
    armed: list[bytes] = []

    def arm(seen: bytes) -> None:
        armed.append(seen)
        if len(armed) == 1:
            bells.values[2] = 6  # the driver has not seen it yet, and does not ring

    poller = bells.poller(arm)
    poller.start()
    bells.scheduler.settle()
    assert bells.rung == [(2, 6)]
    assert armed == [bytes(16), struct.pack("<4I", 0, 0, 6, 0)]


def test_stopping(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    poller.stop()
    poller.stop()
    bells.values[0] = 1
    bells.scheduler.settle()
    assert bells.rung == []
    assert poller.looks == 0
    poller.start()
    bells.scheduler.settle()
    assert bells.rung == [(0, 1)]
    poller.stop()
    assert not poller.is_running
    bells.values[0] = 2
    bells.scheduler.sleep(1)
    assert bells.rung == [(0, 1)]
    # After a start they count as 0 again.
    poller.start()
    bells.scheduler.turn()
    assert bells.rung == [(0, 1), (0, 2)]


def test_stopping_from_a_doorbell(bells: Doorbells) -> None:
    poller = bells.poller()

    def ring(number: int, value: int) -> None:
        bells.rung.append((number, value))
        poller.stop()

    poller._ring = ring
    poller.start()
    bells.values[0] = 1
    bells.scheduler.settle()
    assert bells.rung == [(0, 1)]
    assert not poller.is_running


def test_a_queue_made_again_hears_the_same_tail(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    bells.values = [0, 0, 5, 8]
    bells.scheduler.turn()
    poller.forget(2)
    poller.forget(77)
    bells.scheduler.turn()
    assert bells.rung == [(2, 5), (3, 8), (2, 5)]


def test_more_and_fewer_doorbells(bells: Doorbells) -> None:
    poller = bells.poller()
    poller.start()
    bells.scheduler.turn()
    bells.values = [0, 0, 0, 0, 0, 4]
    bells.scheduler.turn()
    bells.values = [0, 1]
    bells.scheduler.turn()
    assert bells.rung == [(5, 4), (1, 1)]


@pytest.mark.parametrize("when", ["busy", "resting", "arming"])
def test_a_failure_stops_it(bells: Doorbells, when: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "the guest's memory is gone")

    poller = bells.poller(fail if when == "arming" else None)
    poller.start()
    if when == "resting":
        bells.scheduler.settle()
    if when != "arming":
        bells.on_look = fail
    with pytest.raises(OSError, match="gone"):
        bells.scheduler.sleep(1) if when == "resting" else bells.scheduler.settle()
    assert not poller.is_running
    bells.scheduler.settle()
