"""What holds the data of a storage device: the one interface all backends have.

A backend is a row of bytes of a size that stays. It knows nothing of devices, queues or guests; it is handed memory to
fill or to take from, and that may well be a guest's own memory, so that data moves once.

A backend of your own implements the methods that begin with an underscore: by the time they are called the range is
known to be inside, the backend to be open and, for those that change something, writable::

    class Constant(Backend):
        def _read(self, offset, views, length):
            for view in views:
                view[:] = b"*" * len(view)

        ...
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

__all__ = ["Backend", "ReadableBuffer", "fill_zeroes"]

#: What data is taken from: contiguous, and counted in bytes (a memoryview of format "B").
ReadableBuffer = bytes | bytearray | memoryview

#: Zeroes are written in pieces of this many bytes: large enough that a piece costs more than the call that moves it.
_ZERO_PIECE = 256 * 1024
_ZEROES = bytes(_ZERO_PIECE)


def fill_zeroes(view: memoryview) -> None:
    """Fills writable bytes with zeroes, without a temporary of their size."""
    for start in range(0, len(view), _ZERO_PIECE):
        piece = view[start : start + _ZERO_PIECE]
        piece[:] = _ZEROES[: len(piece)]


class Backend(ABC):
    """See the module.

    Args:
        size: bytes.
        block_size: see below.
        read_only: see below.

    Attributes:
        block_size: bytes; transfers that begin and end on a multiple are the fast ones. Others work, too.
        read_only: whatever would change the contents is refused with EROFS.
        blocking: reads and writes may wait for something (a disk, a server): a device moves them off its thread with
            ``Workers``. False where they are no more than a copy.
        flush_blocks: the same of ``flush``, ``zero`` and ``discard``.

    Ownership: ``close`` it, or use it in a ``with`` statement.

    Threading: any thread, several at once. Transfers that overlap and run at once may mix, as on a disk.
    """

    blocking: bool = True

    def __init__(self, size: int, *, block_size: int = 512, read_only: bool = False) -> None:
        if size < 0:
            raise ValueError(f"a backend of {size} bytes: a size cannot be negative")
        self._size = size
        self.block_size = block_size
        self.read_only = read_only
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes; the same for as long as the backend is open."""
        return self._size

    @property
    def flush_blocks(self) -> bool:
        """See the class."""
        return self.blocking

    @property
    def contents(self) -> memoryview | None:
        """All of the contents as one view of bytes, where they are memory; otherwise None.

        Writable unless the backend is ``read_only``. A write through it is a write like any other; ``flush`` makes it
        last. Ask anew for each batch of transfers, and keep no reference: the backend checks here that touching the
        memory is still safe, and ``close`` needs it back.

        Raises:
            OSError: the memory has gone: EIO.
        """
        return None

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fills all the views, one after the other, with the bytes from ``offset`` on.

        Args:
            offset: bytes.
            views: writable, contiguous, of format "B".

        Raises:
            ValueError: the range is not all inside, or the backend is closed: the caller's bug.
            OSError: the bytes could not be had; what the views hold then is undefined.
        """
        length = sum(map(len, views))
        self._check(offset, length, "read")
        if length:
            self._read(offset, views, length)

    def read_at_once(self, offset: int, views: Sequence[memoryview]) -> bool:
        """Does what ``read`` does if that takes no longer than a copy: the bytes are in memory already.

        So a device's own thread can do it, and straight into the guest's memory.

        Args:
            offset: bytes.
            views: see ``read``.

        Returns:
            Whether it was done. If not, the views hold anything, and ``read`` does it, or says what is wrong.

        Raises:
            ValueError: see ``read``.
        """
        length = sum(map(len, views))
        self._check(offset, length, "read")
        return self._read_at_once(offset, views, length)

    def is_at_hand(self, offset: int, length: int) -> bool:
        """Whether ``read_at_once`` of that range would very likely do it; a guess, and a cheap one.

        Raises:
            ValueError: see ``read``.
        """
        self._check(offset, length, "read")
        return length > 0 and self._is_at_hand(offset, length)

    def write(self, offset: int, views: Sequence[ReadableBuffer]) -> None:
        """Writes all the buffers, one after the other, from ``offset`` on.

        Args:
            offset: bytes.
            views: contiguous, of format "B".

        Raises:
            ValueError: see ``read``.
            OSError: not all could be written (EROFS, ENOSPC, EIO...); what the range holds then is undefined.
        """
        length = sum(map(len, views))
        self._check_change(offset, length, "write")
        if length:
            self._write(offset, views, length)

    def zero(self, offset: int, length: int, *, may_deallocate: bool = True) -> None:
        """Makes a range read as zeroes.

        Args:
            offset: bytes.
            length: bytes.
            may_deallocate: the space may be given back; otherwise writing there later cannot fail for want of it.

        Raises:
            ValueError: see ``read``.
            OSError: see ``write``.
        """
        self._check_change(offset, length, "zero")
        if length:
            self._zero(offset, length, may_deallocate=may_deallocate)

    def discard(self, offset: int, length: int) -> None:
        """Gives the space of a range back; it reads as zeroes afterwards.

        Raises:
            ValueError: see ``read``.
            OSError: see ``write``.
        """
        self._check_change(offset, length, "discard")
        if length:
            self._discard(offset, length)

    def flush(self) -> None:
        """Returns when everything written before would survive a loss of power.

        Raises:
            ValueError: the backend is closed.
            OSError: it may not survive. What the kernel could not write it may have dropped: writes since the last
                flush that succeeded are in doubt.
        """
        self._check(0, 0, "flush")
        self._flush()

    def close(self) -> None:
        """Gives everything back; does not flush. Idempotent."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # What a kind of backend implements.

    @abstractmethod
    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        """Fills the views, ``length`` bytes together and more than 0."""

    @abstractmethod
    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        """Writes the buffers, ``length`` bytes together and more than 0."""

    def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        """Fills the views if nothing has to be waited for. Unless overridden it never does."""
        return False

    def _is_at_hand(self, offset: int, length: int) -> bool:
        """Whether that would be done; of bytes that are all inside, and more than 0. Override it with the other."""
        return False

    def _zero(self, offset: int, length: int, *, may_deallocate: bool) -> None:
        """Makes ``length`` bytes, more than 0, read as zeroes. Unless overridden they are written."""
        end = offset + length
        while offset < end:
            count = min(end - offset, _ZERO_PIECE)
            self._write(offset, [_ZEROES if count == _ZERO_PIECE else _ZEROES[:count]], count)
            offset += count

    def _discard(self, offset: int, length: int) -> None:
        """Gives ``length`` bytes, more than 0, back. Unless overridden they are zeroed."""
        self._zero(offset, length, may_deallocate=True)

    def _flush(self) -> None:  # noqa: B027  # optional, and nothing is right for many
        """Makes writes last. Unless overridden there is nothing to do."""

    def _close(self) -> None:  # noqa: B027  # the same
        """Gives everything back; called once. Unless overridden there is nothing to do."""

    def _check(self, offset: int, length: int, what: str) -> None:
        if self._closed:
            raise ValueError(f"{what} of a {type(self).__name__} that is closed")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(
                f"{what} of [{offset:#x}, {offset + length:#x}) of a {type(self).__name__} of {self._size:#x} bytes: "
                "the range has to lie inside"
            )

    def _check_change(self, offset: int, length: int, what: str) -> None:
        self._check(offset, length, what)
        if self.read_only:
            raise OSError(errno.EROFS, f"{what} of a read-only {type(self).__name__}: {os.strerror(errno.EROFS)}")
