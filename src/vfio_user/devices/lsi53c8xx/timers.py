"""The chip's two timers: a general purpose one, and one that watches over handshakes.

Both count the clock of the SCSI core, so how long they take depends on the clock conversion factor the driver chose.
Drivers measure the chip's clock with the first one, counting how often they can read SIST until it expires. Reads take
longer here than from a real chip, so that the clock would look faster than any there is. The times in the manual are
minima; ours are twice as long, and what drivers measure is right.

Ref: LSI53C895A Technical Manual, 4.2, STIME0 and STIME1; table of GEN, HTH and SEL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vfio_user.hardware.lsi53c8xx.interrupts import ScsiInterrupt
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c810Registers

__all__ = ["ChipTimers"]

#: Seconds of code 1, each further code taking twice as long, with the clock conversion factor a driver should choose.
_SHORTEST = 125e-6

#: By how much times are longer than the least ones.
_MARGIN = 2.0

#: Divisors of the clock, by the clock conversion factor in SCNTL3.
_DIVISORS = (3.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)

#: The divisor times are given for: of a clock of 40 MHz, and of the same one quadrupled.
_USUAL, _USUAL_QUADRUPLED = 2.0, 8.0

_QUADRUPLED = 0x0C
_SCALE = 16


class _Timer(Protocol):
    deadline: float

    @property
    def is_pending(self) -> bool: ...

    def cancel(self) -> None: ...


class ChipTimers:
    """See the module.

    Args:
        registers: the chip's.
        call_later: calls something in some seconds.
        clock: the time ``call_later`` goes by, in seconds.
        expired: told the interrupt of a timer that has.
    """

    def __init__(
        self,
        registers: Lsi53c810Registers,
        *,
        call_later: Callable[[float, Callable[[], None]], _Timer],
        clock: Callable[[], float],
        expired: Callable[[ScsiInterrupt], object],
    ) -> None:
        self._registers = registers
        self._call_later = call_later
        self._clock = clock
        self._expired = expired
        self._timers: dict[ScsiInterrupt, _Timer] = {}

    def set_general(self) -> None:
        """STIME1 was written: the general purpose timer starts again, or stops."""
        stime1 = self._registers.stime1
        self._set(ScsiInterrupt.GENERAL_TIMER, int(stime1.gen), scaled=bool(stime1.gensf))

    def watch_handshake(self, *, waits: bool) -> None:
        """The chip begins, or ceases, to wait for a handshake of the target."""
        if waits and self._registers.stime0.hth:
            code, scaled = int(self._registers.stime0.hth), bool(self._registers.stime1.hthsf)
            self._set(ScsiInterrupt.HANDSHAKE_TIMER, code, scaled=scaled)
        else:
            self._cancel(ScsiInterrupt.HANDSHAKE_TIMER)

    def reset(self) -> None:
        """Stops both."""
        for interrupt in list(self._timers):
            self._cancel(interrupt)

    def save(self) -> dict[str, Any]:
        """Seconds each timer has left, by name."""
        now = self._clock()
        return {
            interrupt.name or "": max(0.0, timer.deadline - now)
            for interrupt, timer in self._timers.items()
            if timer.is_pending
        }

    def load(self, state: dict[str, Any]) -> None:
        """Starts them with what they had left."""
        self.reset()
        for name, seconds in state.items():
            self._start(ScsiInterrupt[name], seconds)

    def _set(self, interrupt: ScsiInterrupt, code: int, *, scaled: bool) -> None:
        self._cancel(interrupt)
        if code:
            usual = _USUAL_QUADRUPLED if int(self._registers.stest1) & _QUADRUPLED == _QUADRUPLED else _USUAL
            seconds = _SHORTEST * (1 << code - 1) * _MARGIN * _DIVISORS[int(self._registers.scntl3.ccf)] / usual
            self._start(interrupt, seconds * _SCALE if scaled else seconds)

    def _start(self, interrupt: ScsiInterrupt, seconds: float) -> None:
        self._timers[interrupt] = self._call_later(seconds, lambda: self._expire(interrupt))

    def _cancel(self, interrupt: ScsiInterrupt) -> None:
        timer = self._timers.pop(interrupt, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, interrupt: ScsiInterrupt) -> None:
        del self._timers[interrupt]
        self._expired(interrupt)
