"""What a 53C8xx interrupts for, and the signals and phases of the SCSI bus as its registers show them.

Ref: LSI53C895A Technical Manual, 2.2.17 (interrupt handling), 4.2 (DSTAT, SIST0, SIST1, SBCL).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = ["FATAL_SCSI_INTERRUPTS", "DmaInterrupt", "Phase", "ScsiInterrupt", "Signal"]


class DmaInterrupt(IntFlag):
    """Causes in DSTAT. Every one of them stops the SCRIPTS processor."""

    MASTER_PARITY_ERROR = 0x40
    BUS_FAULT = 0x20
    ABORTED = 0x10
    SINGLE_STEP = 0x08
    SCRIPTS_INTERRUPT = 0x04
    ILLEGAL_INSTRUCTION = 0x01


class ScsiInterrupt(IntFlag):
    """Causes in SIST0 (the low byte) and SIST1."""

    SELECTION_TIMEOUT = 0x0400
    GENERAL_TIMER = 0x0200
    HANDSHAKE_TIMER = 0x0100
    PHASE_MISMATCH = 0x80
    FUNCTION_COMPLETE = 0x40
    SELECTED = 0x20
    RESELECTED = 0x10
    GROSS_ERROR = 0x08
    UNEXPECTED_DISCONNECT = 0x04
    RESET = 0x02
    PARITY_ERROR = 0x01


#: Those that stop the SCRIPTS processor whether they are enabled or not; the others do where they are enabled.
FATAL_SCSI_INTERRUPTS = (
    ScsiInterrupt.SELECTION_TIMEOUT
    | ScsiInterrupt.PHASE_MISMATCH
    | ScsiInterrupt.GROSS_ERROR
    | ScsiInterrupt.UNEXPECTED_DISCONNECT
    | ScsiInterrupt.RESET
    | ScsiInterrupt.PARITY_ERROR
)


class Signal(IntFlag):
    """Control signals of the bus, as in SBCL and SOCL."""

    REQ = 0x80
    ACK = 0x40
    BSY = 0x20
    SEL = 0x10
    ATN = 0x08
    MSG = 0x04
    CD = 0x02
    IO = 0x01


class Phase(IntEnum):
    """Information transfer phases: MSG, C/D and I/O as three bits. Spec: SPI-4 table 41."""

    DATA_OUT = 0
    DATA_IN = 1
    COMMAND = 2
    STATUS = 3
    RESERVED_OUT = 4
    RESERVED_IN = 5
    MESSAGE_OUT = 6
    MESSAGE_IN = 7

    @property
    def is_input(self) -> bool:
        """Bytes go to the initiator."""
        return bool(self & 1)
