"""The two timers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vfio_user.devices.lsi53c8xx.timers import ChipTimers
from vfio_user.hardware.lsi53c8xx.interrupts import ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.server.loop import EventLoop

GENERAL, HANDSHAKE = ScsiInterrupt.GENERAL_TIMER, ScsiInterrupt.HANDSHAKE_TIMER


class Chip:
    def __init__(self) -> None:
        self.registers = Lsi53c895aRegisters()
        self.registers.scntl3.ccf = 3
        self.now = 100.0
        self.expired: list[ScsiInterrupt] = []
        self.loop = EventLoop(lambda: self.now)
        self.timers = ChipTimers(
            self.registers, call_later=self.loop.call_later, clock=self.loop.clock, expired=self.expired.append
        )

    def set(self, stime1: int) -> None:
        self.registers.stime1 = stime1
        self.timers.set_general()

    def advance(self, seconds: float) -> list[ScsiInterrupt]:
        self.now += seconds
        self.loop.run_once()
        expired, self.expired[:] = list(self.expired), []
        return expired


@pytest.fixture
def chip() -> Iterator[Chip]:
    made = Chip()
    yield made
    made.loop.close()


@pytest.mark.parametrize(
    ("stime1", "ccf", "stest1", "seconds"),
    [
        (0x01, 3, 0, 250e-6),
        (0x08, 3, 0, 32e-3),
        (0x0F, 3, 0, 4.096),
        (0x11, 3, 0, 4e-3),  # 16 times as long
        (0x08, 4, 0, 48e-3),  # a slower core
        (0x08, 7, 0x0C, 32e-3),  # a faster clock, divided by more
    ],
)
def test_how_long_it_takes(chip: Chip, stime1: int, ccf: int, stest1: int, seconds: float) -> None:
    chip.registers.scntl3.ccf = ccf
    chip.registers.stest1 = stest1
    chip.set(stime1)
    assert chip.advance(seconds * 0.99) == []
    assert chip.advance(seconds * 0.02) == [GENERAL]
    assert chip.advance(seconds * 2) == []


def test_zero_stops_it_and_another_value_starts_it_again(chip: Chip) -> None:
    chip.set(0x08)
    chip.set(0x00)
    assert chip.advance(1) == []
    chip.set(0x08)
    assert chip.advance(0.02) == []
    chip.set(0x08)
    assert chip.advance(0.02) == []
    assert chip.advance(0.02) == [GENERAL]


def test_handshakes_are_watched_while_one_is_waited_for(chip: Chip) -> None:
    chip.timers.watch_handshake(waits=True)
    assert chip.advance(10) == []
    chip.registers.stime0 = 0x80
    chip.timers.watch_handshake(waits=True)
    chip.timers.watch_handshake(waits=False)
    assert chip.advance(10) == []
    chip.timers.watch_handshake(waits=True)
    assert chip.advance(0.033) == [HANDSHAKE]


def test_a_reset_stops_both(chip: Chip) -> None:
    chip.registers.stime0 = 0x80
    chip.timers.watch_handshake(waits=True)
    chip.set(0x08)
    chip.timers.reset()
    assert chip.advance(10) == []


def test_what_is_left_is_saved(chip: Chip) -> None:
    chip.set(0x08)
    chip.advance(0.030)
    saved = chip.timers.save()
    assert saved == {"GENERAL_TIMER": pytest.approx(0.002)}
    other = Chip()
    other.set(0x0F)
    other.timers.load(saved)
    assert other.advance(0.0019) == []
    assert other.advance(0.0002) == [GENERAL]
    assert other.timers.save() == {}
    other.loop.close()
