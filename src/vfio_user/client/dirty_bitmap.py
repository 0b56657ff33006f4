"""The pages of a range that were written: a bitmap as servers send it, and what it says.

Spec: "VFIO_USER_DEVICE_FEATURE", ``VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT`` of ``linux/vfio.h``; vfio-user 0.9.1
"VFIO_USER_DIRTY_PAGES". Both have the same bitmap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.feature import bitmap_size

__all__ = ["DirtyBitmap"]

_WORD = struct.Struct("<Q")
_ALL_ONES = (1 << 64) - 1


class DirtyBitmap:
    """Which pages of ``[iova, iova + length)`` were written.

    Iterating gives (IOVA, bytes) of each run of written pages, in ascending order; the last run ends with the range.

    Args:
        iova: where the range, and bit 0, begins.
        length: bytes.
        page_size: bytes a bit stands for.
        bitmap: little-endian u64 words, bit i = page i; bits beyond the range mean nothing.

    Attributes:
        iova: as given, like the others.
        length: bytes.
        page_size: bytes.
        bitmap: the words.

    Raises:
        RemoteProtocolError: the bitmap has another size than that of so many pages.
    """

    def __init__(self, iova: int, length: int, page_size: int, bitmap: bytes) -> None:
        expected = bitmap_size(length, page_size)
        if len(bitmap) != expected:
            raise RemoteProtocolError(
                f"a dirty bitmap of {len(bitmap)} bytes; {length:#x} bytes in pages of {page_size} have {expected}"
            )
        self.iova = iova
        self.length = length
        self.page_size = page_size
        self.bitmap = bitmap

    @classmethod
    def all(cls, iova: int, length: int, page_size: int) -> DirtyBitmap:
        """All of the range, as where nothing is known."""
        return cls(iova, length, page_size, b"\xff" * bitmap_size(length, page_size))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        pages = -(-self.length // self.page_size)
        start = None  # the page the run under way began with
        for first, word in enumerate(word for (word,) in _WORD.iter_unpack(self.bitmap)):
            first *= 64
            if word in (0, _ALL_ONES):
                # Nearly every word of a guest's memory; 64 pages at once.
                if word and start is None:
                    start = first
                elif not word and start is not None:
                    yield self._run(start, first)
                    start = None
                continue
            for page in range(first, min(first + 64, pages)):
                dirty = word >> page - first & 1
                if dirty and start is None:
                    start = page
                elif not dirty and start is not None:
                    yield self._run(start, page)
                    start = None
        if start is not None:
            yield self._run(start, pages)

    def _run(self, start: int, end: int) -> tuple[int, int]:
        at = start * self.page_size
        return self.iova + at, min(end * self.page_size, self.length) - at

    @property
    def size(self) -> int:
        """Bytes of all written pages."""
        return sum(size for _, size in self)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __or__(self, other: DirtyBitmap) -> DirtyBitmap:
        """What is in either.

        Raises:
            ValueError: the other is about another range, or other pages.
        """
        if (self.iova, self.length, self.page_size) != (other.iova, other.length, other.page_size):
            raise ValueError(f"{self!r} and {other!r} are not about the same pages: they cannot be united")
        united = int.from_bytes(self.bitmap, "little") | int.from_bytes(other.bitmap, "little")
        return DirtyBitmap(self.iova, self.length, self.page_size, united.to_bytes(len(self.bitmap), "little"))

    def __repr__(self) -> str:
        runs = sum(1 for _ in self)
        return f"<DirtyBitmap of [{self.iova:#x}, {self.iova + self.length:#x}): {self.size:#x} bytes in {runs} runs>"
