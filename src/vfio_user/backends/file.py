"""A disk image: a file, or a block device, whose bytes are the disk's.

Data moves between the file and the views it is given in one system call (``preadv``, ``pwritev``), which lets other
threads run meanwhile. What is in the page cache can be had at once (``RWF_NOWAIT``, where the file system knows it).

**O_DIRECT** goes past the page cache. It needs offset, lengths and memory aligned to the block size. Transfers between
page-aligned guest memory and whole blocks are, and go straight; what is not aligned goes through a buffer that is, and
a write that begins or ends inside a block reads that block first. Nothing else may change the block until it is written
back: that would be undone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vfio_user.backends.base import Backend, ReadableBuffer
from vfio_user.backends.holes import punch_hole, zero_range

__all__ = ["FileBackend", "open_image"]

#: IOV_MAX: the most buffers of one preadv or pwritev.
_MAX_VIEWS = 1024

#: Bytes of the buffer for what is not aligned.
_BOUNCE = 1024 * 1024

#: Bytes between two of which the page cache is asked for. What comes of it is never looked at.
_PROBE_DISTANCE = 256 * 1024
_PROBE = memoryview(bytearray(1))

#: linux/fs.h, _IO(0x12, 104): bytes of a logical block of a block device.
_BLKSSZGET = 0x1268


def open_image(path: str | os.PathLike[str], *, read_only: bool, flags: int = 0) -> tuple[int, int, int]:
    """Opens what can be a disk.

    Returns:
        The descriptor, which is the caller's; its size and its logical blocks' size, in bytes.

    Raises:
        OSError: it cannot be opened, or it is neither a file nor a block device.
    """
    fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | flags)
    try:
        mode = os.fstat(fd).st_mode
        block_size = 512
        if stat.S_ISBLK(mode):
            block_size = struct.unpack("I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
        elif not stat.S_ISREG(mode):
            raise OSError(
                errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
                f"{Path(path)} is neither a file nor a block device: it cannot be a disk",
            )
        return fd, os.lseek(fd, 0, os.SEEK_END), block_size
    except BaseException:
        os.close(fd)
        raise


class FileBackend(Backend):
    """See the module.

    Args:
        path: the file or block device. Its size is the disk's; ``truncate -s 1G disk.img`` makes an empty one.
        read_only: see ``Backend``; the file is opened for reading only.
        direct: use O_DIRECT.

    Raises:
        OSError: it cannot be opened; EINVAL for O_DIRECT on a file system without it.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, direct: bool = False) -> None:
        self._fd, size, block_size = open_image(path, read_only=read_only, flags=os.O_DIRECT if direct else 0)
        if direct:
            # The grain of memory and file together: what is aligned to a page is aligned for every disk there is.
            block_size = max(block_size, mmap.PAGESIZE)
        super().__init__(size, block_size=block_size, read_only=read_only)
        self._direct = direct
        #: What changes the file with O_DIRECT now: first byte, the one after the last, and whether blocks are read.
        self._changes: list[tuple[int, int, bool]] = []
        self._changed = threading.Condition()
        self._can_punch = self._can_zero = True
        # With O_DIRECT it would not wait for memory, but still for the disk.
        self._can_read_at_once = not direct

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        if self._direct and not self._try_direct(os.preadv, offset, views, length):
            self._read_bounced(offset, views)
        elif not self._direct and (len(views) > _MAX_VIEWS or os.preadv(self._fd, views, offset) != length):
            # Short, or too many at once: rare, so what was read is read again.
            _all_of(os.preadv, self._fd, offset, views)

    def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        if not self._can_read_at_once or len(views) > _MAX_VIEWS:
            return False
        try:
            return os.preadv(self._fd, views, offset, os.RWF_NOWAIT) == length
        except BlockingIOError:  # not a byte of it is in the page cache
            return False
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # nor will it be: tmpfs, or an old kernel
                self._can_read_at_once = False
            return False  # whatever is wrong, a read that may wait will say so

    def _is_at_hand(self, offset: int, length: int) -> bool:
        # A byte here and there: the kernel brings in, and lets go of, many pages together.
        end = offset + length
        return all(self._read_at_once(at, [_PROBE], 1) for at in (*range(offset, end, _PROBE_DISTANCE), end - 1))

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        if self._direct:
            with self._changing(offset, length, reads=False):
                if self._try_direct(os.pwritev, offset, views, length):
                    return
            with self._changing(offset, length, reads=True):
                self._write_bounced(offset, views)
        elif len(views) > _MAX_VIEWS or os.pwritev(self._fd, views, offset) != length:
            _all_of(os.pwritev, self._fd, offset, views)

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        with self._changing(offset, length, reads=False):
            if may_deallocate and self._can_punch:
                if punch_hole(self._fd, offset, length):
                    return
                self._can_punch = False
            if self._can_zero:
                if zero_range(self._fd, offset, length):
                    return
                self._can_zero = False
        super()._zero(offset, length, may_deallocate=may_deallocate)

    def _flush(self) -> None:
        os.fdatasync(self._fd)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    # O_DIRECT.

    def _try_direct(
        self,
        operation: Callable[[int, Sequence[ReadableBuffer], int], int],
        offset: int,
        views: Sequence[ReadableBuffer],
        length: int,
    ) -> bool:
        """Transfers without a buffer, if everything is aligned for that; False if not, or not all was transferred."""
        if len(views) > _MAX_VIEWS or any(position % self.block_size for position in (offset, *map(len, views))):
            return False
        try:
            return operation(self._fd, views, offset) == length
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return False  # the memory is not aligned: nobody but the kernel knows where it is

    def _read_bounced(self, offset: int, views: Sequence[memoryview]) -> None:
        with mmap.mmap(-1, _BOUNCE) as memory, memoryview(memory) as buffer:
            for start, target in _pieces(offset, views, _BOUNCE - self.block_size):
                first, end = self._span(start, len(target))
                self._fill(buffer, first, end)
                target[:] = buffer[start - first : start - first + len(target)]

    def _write_bounced(self, offset: int, views: Sequence[ReadableBuffer]) -> None:
        with mmap.mmap(-1, _BOUNCE) as memory, memoryview(memory) as buffer:
            for start, source in _pieces(offset, [memoryview(view) for view in views], _BOUNCE - self.block_size):
                first, end = self._span(start, len(source))
                if first != start or end != start + len(source):
                    self._fill(buffer, first, end)
                buffer[start - first : start - first + len(source)] = source
                with buffer[: end - first] as whole:
                    _all_of(os.pwritev, self._fd, first, [whole])
                if end > self._size:
                    os.ftruncate(self._fd, self._size)  # the last block of a file that is no multiple of blocks

    @contextlib.contextmanager
    def _changing(self, offset: int, length: int, *, reads: bool) -> Iterator[None]:
        """Keeps changes of the same blocks apart if one of them reads what it then writes back."""
        if not self._direct:
            yield
            return
        start, end = self._span(offset, length)
        change = start, end, reads
        with self._changed:
            while any(start < stop and begin < end and (reads or other) for begin, stop, other in self._changes):
                self._changed.wait()
            self._changes.append(change)
        try:
            yield
        finally:
            with self._changed:
                self._changes.remove(change)
                self._changed.notify_all()

    def _span(self, start: int, length: int) -> tuple[int, int]:
        """The whole blocks around a range."""
        block = self.block_size
        return start // block * block, -(-(start + length) // block) * block

    def _fill(self, buffer: memoryview, first: int, end: int) -> None:
        """Reads whole blocks; what is after the end of the file reads as zeroes."""
        within = min(end, self._size) - first
        count = os.preadv(self._fd, [buffer[: end - first]], first)
        if count < within:
            raise _ended(first + count)
        buffer[within : end - first] = bytes(end - first - within)


def _pieces(offset: int, views: Sequence[memoryview], most: int) -> list[tuple[int, memoryview]]:
    """Cuts views into parts of at most ``most`` bytes, each with its place in the file."""
    pieces = []
    for view in views:
        for start in range(0, len(view), most):
            pieces.append((offset + start, view[start : start + most]))  # noqa: PERF401  # reads better
        offset += len(view)
    return pieces


def _all_of(
    operation: Callable[[int, Sequence[ReadableBuffer], int], int],
    fd: int,
    offset: int,
    views: Sequence[ReadableBuffer],
) -> None:
    """Repeats a transfer until all of it is done.

    Raises:
        OSError: it failed; EIO where the file has ended.
    """
    left = [memoryview(view) for view in views if len(view)]
    left.reverse()  # taken from the end
    while left:
        count = operation(fd, left[: -_MAX_VIEWS - 1 : -1], offset)
        if count == 0:
            raise _ended(offset)
        offset += count
        while left and count >= len(left[-1]):
            count -= len(left.pop())
        if count:
            left[-1] = left[-1][count:]


def _ended(offset: int) -> OSError:
    return OSError(errno.EIO, f"the image ends at byte {offset:#x}: it was truncated while it was in use")
