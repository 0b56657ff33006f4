"""Causes, phases and signals: the same numbers as the fields of the registers have."""

from __future__ import annotations

from vfio_user.hardware.lsi53c8xx.interrupts import (
    FATAL_SCSI_INTERRUPTS,
    DmaInterrupt,
    Phase,
    ScsiInterrupt,
    Signal,
)
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters


def test_causes_are_fields() -> None:
    registers = Lsi53c895aRegisters()
    registers.dstat = 0
    registers.dstat.iid = registers.dstat.bf = 1
    assert int(registers.dstat) == int(DmaInterrupt.ILLEGAL_INSTRUCTION | DmaInterrupt.BUS_FAULT)
    registers.sist.sto = registers.sist.ma = registers.sist.udc = 1
    expected = ScsiInterrupt.SELECTION_TIMEOUT | ScsiInterrupt.PHASE_MISMATCH | ScsiInterrupt.UNEXPECTED_DISCONNECT
    assert int(registers.sist) == int(expected)
    assert expected in FATAL_SCSI_INTERRUPTS


def test_timers_and_selections_are_not_fatal() -> None:
    for cause in ("GENERAL_TIMER", "HANDSHAKE_TIMER", "SELECTED", "RESELECTED", "FUNCTION_COMPLETE"):
        assert ScsiInterrupt[cause] not in FATAL_SCSI_INTERRUPTS


def test_phases_are_signals() -> None:
    assert int(Phase.MESSAGE_IN) == int(Signal.MSG | Signal.CD | Signal.IO)
    assert [phase.name for phase in Phase if phase.is_input] == ["DATA_IN", "STATUS", "RESERVED_IN", "MESSAGE_IN"]
