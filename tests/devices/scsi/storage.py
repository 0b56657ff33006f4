"""Backends that do what a test wants: fail, or keep one waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from vfio_user.backends import Backend, ReadableBuffer


class Storage(Backend):
    """Bytes without ``contents``, which count flushes and fail on demand."""

    blocking = False

    def __init__(self, size: int, *, read_only: bool = False, block_size: int = 512) -> None:
        super().__init__(size, read_only=read_only, block_size=block_size)
        self.bytes = bytearray(size)
        self.flushes = 0
        self.failure: OSError | None = None
        self.good_calls = 0  # before the failure
        self.discarded: list[tuple[int, int]] = []

    def _perhaps_fail(self) -> None:
        if self.failure is not None:
            if not self.good_calls:
                raise self.failure
            self.good_calls -= 1

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        self._perhaps_fail()
        for view in views:
            view[:] = self.bytes[offset : offset + len(view)]
            offset += len(view)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        self._perhaps_fail()
        for view in views:
            self.bytes[offset : offset + len(view)] = view
            offset += len(view)

    def _discard(self, offset: int, length: int) -> None:
        self._perhaps_fail()
        self.discarded.append((offset, length))
        self.bytes[offset : offset + length] = bytes(length)

    def _flush(self) -> None:
        self._perhaps_fail()
        self.flushes += 1


class SlowStorage(Storage):
    """The same, which has to be waited for."""

    blocking = True


class Jobs:
    """Workers without threads: work is done when the test says so."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.done = 0

    def submit(self, work: Callable[[], object], done: Callable[[object], None], /) -> None:
        self.waiting.append((work, done))

    def step(self) -> None:
        """Does what was submitted first."""
        work, done = self.waiting.popleft()
        self.done += 1
        try:
            result = work()
        except Exception as exc:
            done(exc)
        else:
            done(result)
