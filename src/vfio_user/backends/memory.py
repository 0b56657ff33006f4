"""Storage in memory: a RAM disk, and a disk that keeps nothing.

Both are quick enough to show what everything around a backend costs.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence

from vfio_user.backends.base import Backend, ReadableBuffer, fill_zeroes

__all__ = ["MemoryBackend", "NullBackend"]


class MemoryBackend(Backend):
    """A RAM disk. It begins as zeroes, and takes memory as it is written to, in pieces of up to 2 MiB.

    Args:
        size: bytes, or the contents to begin with (copied).
        block_size: see ``Backend``.
        read_only: see ``Backend``.

    Raises:
        OSError: ENOMEM, there is no room for that in the address space.
    """

    blocking = False

    def __init__(self, size: int | ReadableBuffer, *, block_size: int = 512, read_only: bool = False) -> None:
        length = size if isinstance(size, int) else len(size)
        super().__init__(length, block_size=block_size, read_only=read_only)
        # Private, not shared: only pages of a private mapping are given back, and read as zeroes, on MADV_DONTNEED.
        self._map = mmap.mmap(-1, max(length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # With small pages random blocks of a large disk miss the TLB each time: a tenth of all that a read takes.
        with contextlib.suppress(OSError):  # a kernel without
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(self._map)[:length]
        self._contents = self._memory
        if not isinstance(size, int):
            self._memory[:] = size
        if read_only:
            self._contents = self._memory.toreadonly()

    @property
    def contents(self) -> memoryview | None:
        """See ``Backend``."""
        return self._contents

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        memory = self._memory
        for view in views:
            end = offset + len(view)
            view[:] = memory[offset:end]
            offset = end

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        memory = self._memory
        for view in views:
            end = offset + len(view)
            memory[offset:end] = view
            offset = end

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        end = offset + length
        if may_deallocate:
            first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            if first < last:
                self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
                fill_zeroes(self._memory[offset:first])
                offset = last
        fill_zeroes(self._memory[offset:end])

    def _close(self) -> None:
        # A view somebody keeps keeps the memory; it goes with the last of them.
        with contextlib.suppress(BufferError):
            self._contents.release()
            self._memory.release()
            self._map.close()


class NullBackend(Backend):
    """Takes everything and keeps nothing: it reads as zeroes, at any size."""

    blocking = False

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        for view in views:
            fill_zeroes(view)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        pass

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        pass
