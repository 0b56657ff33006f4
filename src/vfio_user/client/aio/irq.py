"""Interrupts, awaited: an eventfd for each vector."""

from __future__ import annotations

import asyncio
import contextlib
import os

from vfio_user.errors import StateError

__all__ = ["AsyncVector"]


class AsyncVector:
    """One interrupt vector, with its eventfd. Get it from ``AsyncClient.enable_irqs``.

    Attributes:
        number: which.
        fd: the eventfd; -1 when it is closed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waiting: asyncio.Future[None] | None = None

    async def wait(self) -> int:
        """Waits until it fires; ``asyncio.timeout`` sets a limit.

        Returns:
            How often it has fired since it was last asked, at least 1.

        Raises:
            StateError: it was closed, or another task waits for it.
        """
        while not (fired := self.poll()):
            if self._waiting is not None:
                raise StateError(f"vector {self.number} is waited for by another task already")
            loop = asyncio.get_running_loop()
            waiting = self._waiting = loop.create_future()
            fd = self.fd
            loop.add_reader(fd, _resolve, waiting)
            try:
                await waiting
            finally:
                self._waiting = None
                if self.fd == fd:  # else it is closed, and the number may be another's
                    loop.remove_reader(fd)
        return fired

    def poll(self) -> int:
        """How often it has fired since it was last asked, 0 if not."""
        if self.fd < 0:
            raise StateError(f"vector {self.number} is closed: enable it again, and take the new one")
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.fd)
        return 0

    def close(self) -> None:
        """Closes the eventfd; who waits for it gets StateError. Idempotent."""
        if self.fd >= 0:
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_exception(StateError(f"vector {self.number} was closed while it was waited for"))
                self._waiting.get_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
