"""What the controller counts, for the SMART log; and what it remembers of commands that failed, for the error log."""

from __future__ import annotations

from collections import deque
from typing import Any

from vfio_user.hardware.nvme.logs import ErrorLogEntry

__all__ = ["ERROR_LOG_ENTRIES", "NOMINAL_TEMPERATURE", "Health"]

#: Entries of the error log.
ERROR_LOG_ENTRIES = 64
#: Kelvin; there is nothing to be measured.
NOMINAL_TEMPERATURE = 313

_COUNTERS = ("reads", "writes", "blocks_read", "blocks_written", "media_errors", "errors", "power_cycles")


class Health:
    """Counters, and the newest errors.

    Attributes:
        reads: commands that read.
        writes: commands that wrote.
        blocks_read: 512 bytes each.
        blocks_written: 512 bytes each.
        media_errors: blocks that could not be read.
        errors: entries the error log has ever had.
        power_cycles: the controller's.
        temperature: kelvin.
        error_log: the newest first.
    """

    def __init__(self) -> None:
        self.reads = self.writes = 0
        self.blocks_read = self.blocks_written = 0
        self.media_errors = self.errors = 0
        self.power_cycles = 1
        self.temperature = NOMINAL_TEMPERATURE
        self.error_log: deque[ErrorLogEntry] = deque(maxlen=ERROR_LOG_ENTRIES)

    def add_error(self, **fields: Any) -> None:
        """Enters an error; ``fields`` are those of ``ErrorLogEntry``."""
        self.errors += 1
        self.error_log.appendleft(ErrorLogEntry(error_count=self.errors, **fields))

    def save(self) -> dict[str, Any]:
        """What is saved."""
        counters: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        return counters | {"error_log": [entry.pack() for entry in self.error_log]}

    def restore(self, kept: dict[str, Any]) -> None:
        """Goes on counting where a process before this one has ended.

        Raises:
            ValueError: they are no counters.
        """
        counters = {name: kept[name] for name in _COUNTERS}
        if not all(isinstance(value, int) and 0 <= value < 1 << 64 for value in counters.values()):
            raise ValueError(f"its counters are {counters}")
        for name, value in counters.items():
            setattr(self, name, value)

    def load(self, saved: dict[str, Any]) -> None:
        """Puts ``save`` back."""
        for name in _COUNTERS:
            setattr(self, name, saved[name])
        self.error_log = deque(map(ErrorLogEntry.unpack, saved["error_log"]), maxlen=ERROR_LOG_ENTRIES)
