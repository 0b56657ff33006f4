"""A disk image mapped into memory: the quickest of the disks that last, and what the vector engine copies from.

**SIGBUS.** Touching a mapped page that its file cannot provide kills the process. Three things can bring that about,
and each has its answer:

* The file has become shorter. The size is looked at before each use of the memory (one ``lseek``, 0.1 us) and a file
  that shrank fails with EIO from then on. No more can be had of an ordinary file: who truncates it in the very
  microsecond of a copy still wins. Images that others may truncate are for ``FileBackend``.
* A page of a hole is written to and the disk is full. Opened for writing, all of the file gets its blocks at once, and
  keeps them: ``discard`` zeroes, and keeps the space. (A file system that writes in new places, as btrfs, cannot
  promise that.)
* The disk fails to read. Then the process ends, as a program whose code cannot be read.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Sequence

from vfio_user.backends.base import Backend, ReadableBuffer, fill_zeroes
from vfio_user.backends.file import open_image
from vfio_user.backends.holes import allocate, zero_range

__all__ = ["MappedFileBackend"]

#: From this many bytes on, asking the file system for zeroes is quicker than writing them.
_LARGE = 64 * 1024


class MappedFileBackend(Backend):
    """See the module.

    Args:
        path: the file or block device; its size is the disk's.
        read_only: see ``Backend``.

    Raises:
        OSError: it cannot be opened or mapped; ENOSPC, there is no room for all of it.
    """

    blocking = False

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self._fd, size, block_size = open_image(path, read_only=read_only)
        try:
            if size and not read_only:
                allocate(self._fd, 0, size)
            access = mmap.ACCESS_READ if read_only else mmap.ACCESS_WRITE
            # mmap cannot be empty.
            self._map = mmap.mmap(self._fd, size, access=access) if size else mmap.mmap(-1, 1)
        except BaseException:
            os.close(self._fd)
            raise
        super().__init__(size, block_size=block_size, read_only=read_only)
        self._memory = memoryview(self._map)[:size]

    @property
    def flush_blocks(self) -> bool:
        """See ``Backend``."""
        return True

    @property
    def contents(self) -> memoryview | None:
        """See ``Backend``."""
        if os.lseek(self._fd, 0, os.SEEK_END) < self._size:
            raise OSError(
                errno.EIO, f"the mapped image was truncated to less than its {self._size:#x} bytes while it was in use"
            )
        return self._memory

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        memory = self.contents
        assert memory is not None
        for view in views:
            end = offset + len(view)
            view[:] = memory[offset:end]
            offset = end

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        memory = self.contents
        assert memory is not None
        for view in views:
            end = offset + len(view)
            memory[offset:end] = view
            offset = end

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        memory = self.contents
        assert memory is not None
        if length < _LARGE or not zero_range(self._fd, offset, length):
            fill_zeroes(memory[offset : offset + length])

    def _flush(self) -> None:
        os.fdatasync(self._fd)  # what was written through a shared mapping is the file's like any other write

    def _close(self) -> None:
        # A view somebody keeps keeps the memory; it goes with the last of them.
        with contextlib.suppress(BufferError):
            self._memory.release()
            self._map.close()
        os.close(self._fd)
