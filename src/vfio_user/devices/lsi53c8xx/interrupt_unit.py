"""Interrupts of a 53C8xx: status registers that clear when they are read, and what waits behind them.

Theory of operation. A cause that interrupts is posted in SIST (and SIP set in ISTAT0) or in DSTAT (and DIP set). While
either bit is set, further causes are *stacked*: they wait behind, and move up once the driver has read all of the
first. A cause that is not enabled in SIEN and not fatal is only posted: SIP stays clear, nothing waits for it. A fatal
one that is not enabled stops the processor and sets SIP; the pin stays quiet. Interrupts on the fly have a bit of their
own; the pin shows them once the present slice of the program has ended. Before that the driver could not be answered,
and a program that ends many commands in a slice tells of all of them at once.

Ref: LSI53C895A Technical Manual, 2.2.17, "Interrupt Handling".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vfio_user.hardware.lsi53c8xx.interrupts import FATAL_SCSI_INTERRUPTS
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c810Registers

__all__ = ["InterruptUnit"]

_FATAL = int(FATAL_SCSI_INTERRUPTS)
_DIP, _SIP, _INTF = 0x01, 0x02, 0x04
_DFE = 0x80
_IRQD = 0x02
_SIRQD = 0x01


class InterruptUnit:
    """See the module.

    Args:
        registers: the chip's.
        set_line: is told the level of the interrupt pin when it changes.
    """

    def __init__(self, registers: Lsi53c810Registers, set_line: Callable[[bool], None]) -> None:
        slots = {name: register.slot for name, register in type(registers).layout.registers.items()}
        self._values = registers.stored_values
        self._istat0, self._dstat, self._sist = slots["istat0"], slots["dstat"], slots["sist"]
        self._sien, self._dien, self._dcntl = slots["sien"], slots["dien"], slots["dcntl"]
        self._istat1 = slots.get("istat1")
        self._set_line = set_line
        self._level = False
        self._stacked_scsi = 0
        self._stacked_dma = 0

    def post_scsi(self, causes: int) -> bool:
        """A SCSI interrupt, ``ScsiInterrupt``.

        Returns:
            Whether it stops the SCRIPTS processor.
        """
        values = self._values
        interrupts = bool(causes & (_FATAL | values[self._sien]))
        if values[self._istat0] & (_SIP | _DIP):
            self._stacked_scsi |= causes
        else:
            values[self._sist] |= causes
            if interrupts:
                values[self._istat0] |= _SIP
                self.update()
        return interrupts

    def post_dma(self, causes: int) -> None:
        """A DMA interrupt, ``DmaInterrupt``; each stops the SCRIPTS processor."""
        values = self._values
        if values[self._istat0] & (_SIP | _DIP):
            self._stacked_dma |= causes
        else:
            values[self._dstat] |= causes
            values[self._istat0] |= _DIP
            self.update()

    def post_on_the_fly(self) -> None:
        """INTFLY: the processor goes on. The pin follows with ``update``, at the end of the slice."""
        self._values[self._istat0] |= _INTF

    def sist_was_read(self) -> None:
        """The driver read SIST0, SIST1 or both, and what it read was cleared."""
        values = self._values
        if values[self._istat0] & _SIP and not values[self._sist]:
            values[self._istat0] &= ~_SIP
            self._move_up()

    def dstat_was_read(self) -> None:
        """The driver read DSTAT, which cleared it."""
        values = self._values
        if values[self._istat0] & _DIP:
            values[self._istat0] &= ~_DIP
            self._move_up()

    def _move_up(self) -> None:
        values = self._values
        # The pin rests for a moment even if more has been waiting, so that edges are seen too.
        self.update()
        if values[self._istat0] & (_SIP | _DIP):
            return
        if self._stacked_scsi:
            values[self._sist] |= self._stacked_scsi
            if values[self._sist] & (_FATAL | values[self._sien]):
                values[self._istat0] |= _SIP
        if self._stacked_dma:
            values[self._dstat] |= self._stacked_dma
            values[self._istat0] |= _DIP
        self._stacked_scsi = self._stacked_dma = 0
        self.update()

    def update(self) -> None:
        """Something the pin depends on changed."""
        values = self._values
        pending = values[self._istat0]
        level = bool(
            pending & _INTF
            or (pending & _SIP and values[self._sist] & values[self._sien])
            or (pending & _DIP and values[self._dstat] & values[self._dien] & ~_DFE)
        )
        if values[self._dcntl] & _IRQD or (self._istat1 is not None and values[self._istat1] & _SIRQD):
            level = False
        if level != self._level:
            self._level = level
            self._set_line(level)

    def reset(self) -> None:
        """The registers were reset; what was stacked goes, too."""
        self._stacked_scsi = self._stacked_dma = 0
        self.update()

    def save(self) -> dict[str, Any]:
        """What the registers do not show."""
        return {"level": self._level, "scsi": self._stacked_scsi, "dma": self._stacked_dma}

    def load(self, state: dict[str, Any]) -> None:
        """Puts that back; the level of the pin itself is saved elsewhere."""
        self._level, self._stacked_scsi, self._stacked_dma = state["level"], state["scsi"], state["dma"]
