"""An ordered map of address ranges that never overlap: which mapping holds this IOVA?

A virtual IOMMU maps page by page, so a client may keep a million mappings; libvfio-user allows exactly that many. One
sorted list with :mod:`bisect` finds a range quickly, but inserting near its front moves the whole tail: 0.6 ms at a
million entries. So the sorted start addresses live in blocks of at most ``2 * _BLOCK`` entries, with a second sorted
list holding the first start of each block. A search is two bisections, an insertion moves at most one block, and an
exact lookup (what DMA_UNMAP does) is one dictionary access::

    _firsts   [     0x0000,                0x9000,              0x20000, ...]
    _blocks   [ [0x0000, 0x4000, ...],  [0x9000, ...],      [0x20000, ...], ]
    _ranges   { start: range }

The map knows nothing of DMA: a range is anything with a first and an end address.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["AddressRange", "IovaMap"]

#: Half the largest block. Measured at a million entries, ascending and random: 256 to 2048 are alike, 4096 doubles the
#: cost of random insertion.
_BLOCK = 512


class AddressRange(Protocol):
    """A half-open address range ``[iova, end)``; neither end may change while it is in a map."""

    @property
    def iova(self) -> int:
        """The first address."""

    @property
    def end(self) -> int:
        """The address after the last; greater than ``iova``."""


R = TypeVar("R", bound=AddressRange)


class IovaMap(Generic[R]):
    """Ranges by address, in ascending order. Iteration yields them in that order.

    Threading: session thread.
    """

    __slots__ = ("_blocks", "_firsts", "_ranges")

    def __init__(self) -> None:
        self._ranges: dict[int, R] = {}
        self._blocks: list[list[int]] = []
        self._firsts: list[int] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[R]:
        """The ranges in ascending order; the map must not change meanwhile."""
        for block in self._blocks:
            for start in block:
                yield self._ranges[start]

    def at(self, start: int) -> R | None:
        """The range that begins exactly at ``start``."""
        return self._ranges.get(start)

    def find(self, iova: int) -> R | None:
        """The range that contains ``iova``."""
        index = bisect_right(self._firsts, iova) - 1  # _floor, written out: every access that misses comes here
        if index < 0:
            return None
        block = self._blocks[index]
        found = self._ranges[block[bisect_right(block, iova) - 1]]
        return found if iova < found.end else None

    def overlap(self, start: int, end: int) -> R | None:
        """The lowest range that shares an address with ``[start, end)``, if any does."""
        below = self._floor(start)
        if below is not None and start < below.end:
            return below
        above = self.next(start)
        return above if above is not None and above.iova < end else None

    def next(self, iova: int) -> R | None:
        """The lowest range that begins at ``iova`` or above."""
        index = max(bisect_right(self._firsts, iova) - 1, 0)
        if index == len(self._blocks):
            return None
        block = self._blocks[index]
        position = bisect_left(block, iova)
        if position < len(block):
            return self._ranges[block[position]]
        return self._ranges[self._firsts[index + 1]] if index + 1 < len(self._firsts) else None

    def insert(self, entry: R) -> None:
        """Adds a range. The caller has made sure, with ``overlap``, that it shares no address with another."""
        start = entry.iova
        self._ranges[start] = entry
        firsts = self._firsts
        if not firsts:
            firsts.append(start)
            self._blocks.append([start])
            return
        index = max(bisect_right(firsts, start) - 1, 0)
        block = self._blocks[index]
        position = bisect_right(block, start)
        block.insert(position, start)
        if position == 0:
            firsts[index] = start
        if len(block) > 2 * _BLOCK:
            upper = block[_BLOCK:]
            del block[_BLOCK:]
            self._blocks.insert(index + 1, upper)
            firsts.insert(index + 1, upper[0])

    def remove(self, entry: R) -> None:
        """Takes a range out.

        Raises:
            KeyError: no range begins where ``entry`` does.
        """
        start = entry.iova
        del self._ranges[start]
        index = bisect_right(self._firsts, start) - 1
        block = self._blocks[index]
        position = bisect_left(block, start)
        del block[position]
        if not block:
            del self._blocks[index], self._firsts[index]
        elif position == 0:
            self._firsts[index] = block[0]

    def clear(self) -> None:
        """Takes every range out."""
        self._ranges.clear()
        self._blocks.clear()
        self._firsts.clear()

    def _floor(self, iova: int) -> R | None:
        """The highest range that begins at ``iova`` or below."""
        index = bisect_right(self._firsts, iova) - 1
        if index < 0:
            return None
        block = self._blocks[index]
        return self._ranges[block[bisect_right(block, iova) - 1]]
