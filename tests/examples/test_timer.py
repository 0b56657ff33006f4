"""``examples/timer.py`` does what its words say."""

from __future__ import annotations

from examples.timer import Timer
from tests.support.raw_client import memory_session
from vfio_user.protocol.constants import RegionIndex
from vfio_user.server.loop import EventLoop

DELAY, STATUS, EXPIRATIONS = 0x4, 0x8, 0xC
RUNNING, EXPIRED = 1, 2


class Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def interrupts(timer: Timer) -> bool:
    """The device asserts its line."""
    return timer.interrupts.intx_level


def test_it_interrupts_when_its_time_is_up() -> None:
    clock = Clock()
    timer = Timer()
    loop = EventLoop(clock)
    timer.attach(loop)
    bar0 = timer.bar0
    bar0.write(DELAY, 4, 20)
    assert bar0.read(STATUS, 4) == RUNNING
    clock.now = 0.019
    loop.run_once()
    assert bar0.read(STATUS, 4) == RUNNING
    assert not interrupts(timer)
    clock.now = 0.020
    loop.run_once()
    assert bar0.read(STATUS, 4) == EXPIRED
    assert bar0.read(EXPIRATIONS, 4) == 1
    assert interrupts(timer)
    bar0.write(STATUS, 4, EXPIRED)
    assert bar0.read(STATUS, 4) == 0
    assert not interrupts(timer)
    loop.close()


def test_a_client_sees_it() -> None:
    with memory_session(Timer()) as client:
        client.negotiate()
        assert client.read(RegionIndex.CONFIG, 0) == 0x7133_1234
        assert client.read(RegionIndex.BAR0, 0) == 0x7133_0001
