"""Which pages the device wrote: what a client asks for while it migrates a running guest.

A page is one bit. The bits of 4,096 neighbouring pages are one ``int`` in a dictionary, so the log of a terabyte of
guest memory costs only what was touched, and marking or reporting a long run is arithmetic on whole integers.

Spec: vfio-user "VFIO_USER_DEVICE_FEATURE", ``VFIO_DEVICE_FEATURE_DMA_LOGGING_*`` of ``linux/vfio.h``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vfio_user.errors import InvalidAccess

__all__ = ["DirtyLog"]

#: Pages whose bits share one integer.
_CHUNK = 4096


class DirtyLog:
    """The pages written since they were last reported.

    Args:
        page_size: bytes of the pages to remember; a power of two.

    Raises:
        InvalidAccess: ``page_size`` is not a power of two.

    Threading: session thread.
    """

    def __init__(self, page_size: int) -> None:
        _check_page_size(page_size)
        self.page_size = page_size
        self._chunks: dict[int, int] = {}

    def mark(self, iova: int, length: int) -> None:
        """Remembers that bytes ``[iova, iova + length)`` were written."""
        if length <= 0:
            return
        first = iova // self.page_size
        last = (iova + length - 1) // self.page_size
        while first <= last:
            chunk, bit = divmod(first, _CHUNK)
            count = min(last - first + 1, _CHUNK - bit)
            self._chunks[chunk] = self._chunks.get(chunk, 0) | ((1 << count) - 1) << bit
            first += count

    def check_report(self, iova: int, length: int, page_size: int) -> None:
        """Checks the arguments of ``report`` without taking anything out.

        Raises:
            InvalidAccess: as ``report``.
        """
        _check_page_size(page_size)
        if iova % page_size or page_size > length:
            raise InvalidAccess(
                f"a dirty report of {length} bytes from {iova:#x} cannot be made in pages of {page_size} bytes: "
                "the range must begin on a page and hold at least one"
            )

    def report(self, iova: int, length: int, page_size: int) -> bytes:
        """Takes out which pages of a range were written: they count as clean from then on.

        Args:
            iova: where the range, and so bit 0, begins; aligned to ``page_size``.
            length: bytes.
            page_size: bytes a bit of the answer stands for; a power of two. Where it is less than the log's own, each
                logged page sets several bits; where it is more, one written page sets the bit.

        Returns:
            Little-endian u64 words; bit i, counted from the least significant bit of the first, is page i of the range.

        Raises:
            InvalidAccess: ``page_size`` is not a power of two, or more than ``length``, or does not
                divide ``iova``.
        """
        self.check_report(iova, length, page_size)
        pages = -(-length // page_size)
        bitmap = bytearray(8 * -(-pages // 64))
        own_size = self.page_size
        if own_size == page_size and not iova // page_size % 8:
            self._report_same(iova // page_size, pages, bitmap)
            return bytes(bitmap)
        for page in self._take(iova, iova + length):
            lowest = max(page * own_size - iova, 0) // page_size
            highest = min((page + 1) * own_size - iova - 1, length - 1) // page_size
            _set_bits(bitmap, lowest, highest)
        return bytes(bitmap)

    def peek(self, iova: int, length: int, page_size: int) -> bytes:
        """As ``report``, and the pages stay dirty."""
        chunks = self._chunks.copy()
        try:
            return self.report(iova, length, page_size)
        finally:
            self._chunks = chunks

    def _report_same(self, first: int, pages: int, bitmap: bytearray) -> None:
        """The common case, in whole integers: logged and reported pages are the same, bits begin on a byte."""
        at = 0
        while at < pages:
            chunk, bit = divmod(first + at, _CHUNK)
            count = min(pages - at, _CHUNK - bit)
            taken = self._take_bits(chunk, ((1 << count) - 1) << bit) >> bit
            if taken:
                size = -(-count // 8)
                bitmap[at // 8 : at // 8 + size] = taken.to_bytes(size, "little")
            at += count

    def _take(self, start: int, end: int) -> Iterator[int]:
        """The logged pages that touch ``[start, end)``, cleared as they are read if they lie in it entirely."""
        page_size = self.page_size
        first, after = start // page_size, -(-end // page_size)
        chunks = range(first // _CHUNK, (after - 1) // _CHUNK + 1)
        # Only what was written is looked at: a client can ask about any range, in pages as large as it likes.
        in_range = chunks if len(chunks) <= len(self._chunks) else sorted(filter(chunks.__contains__, self._chunks))
        for chunk in in_range:
            bits = f"{self._chunks.get(chunk, 0):b}"[::-1]
            bit = bits.find("1")
            while bit >= 0:
                page = chunk * _CHUNK + bit
                # A page that sticks out of the range stays dirty for the report of its other part.
                if start <= page * page_size and (page + 1) * page_size <= end:
                    self._take_bits(chunk, 1 << bit)
                if first <= page < after:
                    yield page
                bit = bits.find("1", bit + 1)

    def _take_bits(self, chunk: int, mask: int) -> int:
        stored = self._chunks.get(chunk, 0)
        taken = stored & mask
        if taken:
            self._chunks[chunk] = stored ^ taken
            if stored == taken:
                del self._chunks[chunk]
        return taken


def _set_bits(bitmap: bytearray, first: int, last: int) -> None:
    """Sets a run of bits, the last one included."""
    begin, end = first >> 3, last >> 3
    head, tail = 0xFF << (first & 7) & 0xFF, 0xFF >> 7 - (last & 7)
    if begin == end:
        bitmap[begin] |= head & tail
        return
    bitmap[begin] |= head
    bitmap[begin + 1 : end] = b"\xff" * (end - begin - 1)
    bitmap[end] |= tail


def _check_page_size(page_size: int) -> None:
    if page_size <= 0 or page_size & page_size - 1:
        raise InvalidAccess(f"a dirty page size of {page_size} bytes is not a power of two")
