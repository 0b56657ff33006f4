"""Interrupts: what sets the pin, what reading clears, and what waits behind."""

from __future__ import annotations

import pytest

from vfio_user.devices.lsi53c8xx.interrupt_unit import InterruptUnit
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters

MA, STO, GEN, RST, UDC = 0x80, 0x400, 0x200, 0x02, 0x04


class Chip:
    """An interrupt unit, and what its pin did."""

    def __init__(self) -> None:
        self.registers = Lsi53c895aRegisters()
        self.registers.sien, self.registers.dien = 0x04FF, 0x7F
        self.pin: list[bool] = []
        self.unit = InterruptUnit(self.registers, self.pin.append)

    @property
    def pending(self) -> tuple[int, int]:
        """SIP and DIP."""
        return int(self.registers.istat0.sip), int(self.registers.istat0.dip)

    def read_sist(self, offset: int = 0x42, size: int = 2) -> int:
        value = self.registers.read(offset, size)
        self.unit.sist_was_read()
        return value

    def read_dstat(self) -> int:
        value = self.registers.read(0x0C, 1)
        self.unit.dstat_was_read()
        return value


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_a_scsi_interrupt(chip: Chip) -> None:
    assert chip.unit.post_scsi(MA)
    assert chip.pending == (1, 0)
    assert chip.pin == [True]
    assert chip.read_sist() == MA
    assert chip.pending == (0, 0)
    assert chip.pin == [True, False]
    assert chip.read_sist() == 0


def test_a_dma_interrupt(chip: Chip) -> None:
    chip.unit.post_dma(DmaInterrupt.SCRIPTS_INTERRUPT)
    assert chip.pending == (0, 1)
    assert chip.pin == [True]
    assert chip.read_dstat() == 0x84
    assert chip.pending == (0, 0)
    assert chip.pin == [True, False]
    assert chip.read_dstat() == 0x80


def test_the_two_bytes_of_sist_are_read_apart(chip: Chip) -> None:
    chip.unit.post_scsi(STO | RST)
    assert chip.read_sist(0x42, 1) == RST
    assert chip.pending == (1, 0)
    assert chip.pin == [True]
    assert chip.read_sist(0x43, 1) == STO >> 8
    assert chip.pending == (0, 0)


def test_what_comes_later_waits_behind(chip: Chip) -> None:
    chip.unit.post_scsi(MA)
    chip.unit.post_scsi(UDC)
    chip.unit.post_scsi(RST)
    chip.unit.post_dma(DmaInterrupt.ABORTED)
    assert chip.pending == (1, 0)
    assert chip.read_dstat() == 0x80
    assert chip.read_sist() == MA
    # The pin rests for a moment.
    assert chip.pin == [True, False, True]
    assert chip.pending == (1, 1)
    assert chip.read_sist() == UDC | RST
    assert chip.pending == (0, 1)
    assert chip.read_dstat() == 0x90
    assert chip.pin == [True, False, True, False]


def test_the_second_level_waits_for_both_of_the_first(chip: Chip) -> None:
    chip.unit.post_scsi(MA)
    chip.registers.istat0.dip = 1
    chip.registers.dstat = 0x84
    chip.unit.post_scsi(RST)
    assert chip.read_sist() == MA
    assert chip.pending == (0, 1)
    assert chip.read_dstat() == 0x84
    assert chip.read_sist() == RST


def test_one_that_is_not_enabled_and_not_fatal_is_only_posted(chip: Chip) -> None:
    assert not chip.unit.post_scsi(GEN)
    assert chip.pending == (0, 0)
    assert chip.pin == []
    # Nothing waits behind it.
    assert chip.unit.post_scsi(MA)
    assert chip.read_sist() == MA | GEN


def test_enabled_it_interrupts(chip: Chip) -> None:
    chip.registers.sien = GEN
    assert chip.unit.post_scsi(GEN)
    assert chip.pending == (1, 0)
    assert chip.pin == [True]


def test_behind_another_it_does_not_interrupt_either(chip: Chip) -> None:
    chip.unit.post_scsi(MA)
    assert not chip.unit.post_scsi(GEN)
    assert chip.read_sist() == MA
    assert chip.pending == (0, 0)
    assert chip.pin == [True, False]
    assert chip.read_sist() == GEN


@pytest.mark.parametrize("cause", [ScsiInterrupt.PHASE_MISMATCH, ScsiInterrupt.RESET, ScsiInterrupt.SELECTION_TIMEOUT])
def test_a_fatal_one_that_is_not_enabled_stops_in_silence(chip: Chip, cause: ScsiInterrupt) -> None:
    chip.registers.sien = 0
    assert chip.unit.post_scsi(cause)
    assert chip.pending == (1, 0)
    assert chip.pin == []


def test_a_dma_interrupt_that_is_not_enabled_is_silent(chip: Chip) -> None:
    chip.registers.dien = 0
    chip.unit.post_dma(DmaInterrupt.BUS_FAULT)
    assert chip.pending == (0, 1)
    assert chip.pin == []
    chip.registers.dien = 0x20
    chip.unit.update()
    assert chip.pin == [True]


def test_the_empty_fifo_is_no_cause(chip: Chip) -> None:
    chip.registers.dien = 0xFF
    chip.registers.istat0.dip = 1
    chip.unit.update()
    assert chip.pin == []


@pytest.mark.parametrize(("register", "field"), [("dcntl", "irqd"), ("istat1", "sirqd")])
def test_the_pin_can_be_turned_off(chip: Chip, register: str, field: str) -> None:
    setattr(getattr(chip.registers, register), field, 1)
    chip.unit.post_scsi(MA)
    assert chip.pending == (1, 0)
    assert chip.pin == []
    setattr(getattr(chip.registers, register), field, 0)
    chip.unit.update()
    assert chip.pin == [True]


def test_on_the_fly(chip: Chip) -> None:
    chip.unit.post_on_the_fly()
    assert chip.registers.istat0.intf
    assert chip.pending == (0, 0)
    assert chip.pin == []
    chip.unit.update()
    assert chip.pin == [True]


def test_a_reset_forgets_what_waits(chip: Chip) -> None:
    chip.unit.post_scsi(MA)
    chip.unit.post_scsi(RST)
    chip.registers.reset()
    chip.unit.reset()
    assert chip.pin == [True, False]
    assert chip.read_sist() == 0
    chip.unit.post_dma(DmaInterrupt.ABORTED)
    chip.read_dstat()
    assert chip.read_sist() == 0


def test_what_waits_is_saved(chip: Chip) -> None:
    chip.unit.post_scsi(MA)
    chip.unit.post_scsi(RST)
    other = Chip()
    other.registers.load_state(chip.registers.save_state())
    other.unit.load(chip.unit.save())
    assert other.read_sist() == MA
    assert other.pin == [False, True]
    assert other.read_sist() == RST
