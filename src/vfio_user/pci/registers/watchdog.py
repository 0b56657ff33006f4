"""The spin watchdog: names the register a client polls in vain.

A driver that waits for a bit the model never changes hangs its guest without a word. The watchdog sees the same read
give the same value again and again, and says which register, which value, how often and for how long. A block that is
not watched has no trace of it on its hot path.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Spin", "SpinWatch"]

_log = logging.getLogger(__name__)

#: Distinct places that are watched at a time; a client that sweeps a large BAR must not fill our memory.
CAPACITY = 4096


@dataclass(frozen=True, slots=True)
class Spin:
    """A client that reads the same value from the same place.

    Attributes:
        name: the register, or its offset if there is none.
        offset: bytes from the start of the watched block.
        size: bytes of each read.
        value: what it reads, as the client sees it.
        shown: the same with its fields.
        reads: how often.
        seconds: since the first of them.
    """

    name: str
    offset: int
    size: int
    value: int
    shown: str
    reads: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"the client spins on {self.name} (offset {self.offset:#x}) = {self.shown}: "
            f"{self.reads} reads in {self.seconds:.3g} s"
        )


@dataclass(slots=True)
class _Run:
    value: int
    reads: int
    since: float
    next_look: int
    is_spin: bool = False


class SpinWatch:
    """Watches the reads of one block.

    Args:
        describe: ``describe(offset, size, value) -> (name, value with fields)``.
        reads: how many reads of the same value from the same place make a spin ...
        within: ... if no more than this many seconds pass from the first to the last.
        report: called with each Spin when it is found, and again each time its reads have grown tenfold; None logs it.
        clock: seconds; for tests.

    Raises:
        ValueError: ``reads`` is less than 2.

    Threading: session thread.
    """

    def __init__(
        self,
        describe: Callable[[int, int, int], tuple[str, str]],
        *,
        reads: int,
        within: float,
        report: Callable[[Spin], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if reads < 2:
            raise ValueError(f"reads={reads}: a spin is at least 2 reads")
        self._describe = describe
        self._reads = reads
        self._within = within
        self._report = report
        self._clock = clock
        self._runs: dict[tuple[int, int], _Run] = {}

    def wrap(self, offset: int, size: int, reader: Callable[[], int]) -> Callable[[], int]:
        """The reader of one place, watched."""
        runs, clock, place = self._runs, self._clock, (offset, size)

        def read() -> int:
            value = reader()
            run = runs.get(place)
            if run is None or run.value != value:
                if run is not None or len(runs) < CAPACITY:
                    runs[place] = _Run(value, 1, clock(), self._reads)
                return value
            run.reads += 1
            if run.reads >= run.next_look:
                self._look(offset, size, run)
            return value

        return read

    def _look(self, offset: int, size: int, run: _Run) -> None:
        now = self._clock()
        if not run.is_spin and now - run.since > self._within:
            run.reads, run.since = 1, now  # the same value, but at leisure
            return
        run.is_spin = True
        run.next_look *= 10
        spin = self._spin(offset, size, run, now)
        if self._report is None:
            _log.warning("%s", spin)
        else:
            self._report(spin)

    def _spin(self, offset: int, size: int, run: _Run, now: float) -> Spin:
        name, shown = self._describe(offset, size, run.value)
        return Spin(name, offset, size, run.value, shown, run.reads, now - run.since)

    @property
    def spins(self) -> list[Spin]:
        """Those found whose last read still gave the same value, up to now."""
        now = self._clock()
        return [self._spin(offset, size, run, now) for (offset, size), run in self._runs.items() if run.is_spin]
