"""The threads that wait for storage, listened to only while there is something to wait for.

A server that waits for nothing but its client receives from it directly, which is faster than asking first which of
several descriptors is ready. Most reads need no thread: what is in memory is read at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.backends.workers import Workers

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.loop import Watch

__all__ = ["StorageThreads"]


class StorageThreads:
    """``Workers`` of a device; a ``WorkQueue`` for its logical units.

    Args:
        device: whose.

    Ownership: ``close`` it.

    Threading: the device's thread.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._workers = Workers()
        self._watch: Watch | None = None

    def submit(self, work: Callable[[], object], done: Callable[[object], None], /) -> None:
        """See ``WorkQueue.submit``."""
        if self._watch is None:
            self._watch = self._device.watch(self._workers.fileno(), self._collect)
        self._workers.submit(work, done)

    def drain(self) -> None:
        """Waits until everything that was submitted is done."""
        self._workers.drain()
        self._unwatch()

    def close(self) -> None:
        """Ends the threads. Idempotent."""
        self._unwatch()
        self._workers.close()

    def _collect(self) -> None:
        self._workers.collect()
        if not self._workers.pending:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
