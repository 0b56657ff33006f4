"""Guest memory by pages, as NumPy arrays: many pages at many addresses are found, and copied, together.

A page is one item of an array of opaque bytes ("V4096"), so that ``pages[rows] = others[rows]`` is two ``memcpy`` a
page, the first into memory that stays in the cache, and nothing more; measured, 0.25 us a page where a loop of
memoryview slices takes 0.35 to 0.9. What is many pages long is copied once: as pieces where its pages follow each
other, as those of most drivers' buffers do.

The table of mappings is made anew after they change. An array keeps its memory mapped, so the table is dropped before
a mapping ends, and what ``locate`` returned must not be used after.

Needs NumPy.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfio_user.memory.dma import Dma
from vfio_user.memory.mapping import DmaMapping, MmapMapping
from vfio_user.memory.shared_file import MappedFile

__all__ = ["GuestPages", "LocatedPages", "as_pages"]

#: More mappings than this are not put into a table: with a virtual IOMMU they come and go with every transfer.
_MAX_MAPPINGS = 1024

#: So many pages of a disk are worth calling in first: 128 of 256 MiB take 88 us instead of 101, from the doorbell to
#: the completion.
_MANY = 32
#: Runs of so many pages are copied one by one: nothing is copied to a third place in between.
_LONG = 8
#: So many pages that follow each other are quicker as a piece of their own than page by page.
_PIECE = 4

_ALL = slice(None)


@functools.cache
def _page_type(page_size: int) -> np.dtype[np.void]:
    """Made once: making a type of its name takes as long as what is done with it here."""
    return np.dtype(f"V{page_size}")


def as_pages(memory: memoryview, page_size: int) -> NDArray[np.void]:
    """The whole pages of a memory, as an array of them, without a copy."""
    return np.ndarray(len(memory) // page_size, _page_type(page_size), memory)


class LocatedPages:
    """Pages of the guest, found.

    Attributes:
        found: which of the addresses can be accessed that way; None for all of them, and only then can they be copied.
    """

    __slots__ = ("_files", "_pages", "_rows", "found")

    def __init__(
        self,
        found: NDArray[np.bool_] | None,
        pages: list[NDArray[np.void]],
        rows: NDArray[np.int64],
        files: NDArray[np.intp] | None,
    ) -> None:
        self.found = found
        self._pages = pages
        self._rows = rows
        self._files = files

    def store(self, source: NDArray[np.void], rows: Any, part: slice = _ALL) -> None:
        """Copies ``source[rows]`` into the guest's pages, in the order of their addresses; or into part of these."""
        if self._files is None:
            if part is _ALL and len(self._rows) >= _MANY:
                _call_in(source, rows)
            self._pages[0][self._rows if part is _ALL else self._rows[part]] = source[rows]
            return
        chosen, files = source[rows], self._files[part]
        for number in np.unique(files):
            here = files == number
            self._pages[number][self._rows[part][here]] = chosen[here]

    def load(self, target: NDArray[np.void], rows: Any, part: slice = _ALL) -> None:
        """Copies the guest's pages, or part of them, into ``target[rows]``."""
        if self._files is None:
            target[rows] = self._pages[0][self._rows if part is _ALL else self._rows[part]]
            return
        files = self._files[part]
        chosen = np.empty(len(files), target.dtype)
        for number in np.unique(files):
            here = files == number
            chosen[here] = self._pages[number][self._rows[part][here]]
        target[rows] = chosen

    def store_runs(self, source: NDArray[np.void], firsts: NDArray[np.int64], length: int) -> None:
        """Copies runs of ``source``, of so many pages from each of these rows on, into the guest's pages."""
        if length < _LONG:
            self.store(source, _rows_of_runs(firsts, length))
        elif (pieces := self._pieces(firsts, length)) is None:
            for number, row in enumerate(firsts.tolist()):
                self.store(source, slice(row, row + length), slice(number * length, (number + 1) * length))
        else:
            guest = self._pages[0]
            for ours, theirs, count in pieces:
                guest[ours : ours + count] = source[theirs : theirs + count]

    def load_runs(self, target: NDArray[np.void], firsts: NDArray[np.int64], length: int) -> None:
        """Copies the guest's pages into runs of ``target``, of so many pages from each of these rows on."""
        if length < _LONG:
            self.load(target, _rows_of_runs(firsts, length))
        elif (pieces := self._pieces(firsts, length)) is None:
            for number, row in enumerate(firsts.tolist()):
                self.load(target, slice(row, row + length), slice(number * length, (number + 1) * length))
        else:
            guest = self._pages[0]
            for ours, theirs, count in pieces:
                target[theirs : theirs + count] = guest[ours : ours + count]

    def load_words(self, count: int) -> NDArray[np.int64]:
        """A copy of the first 64-bit words of each page: an array of pages by words."""
        if self._files is None:
            # A view of a view: nothing but these words is touched.
            words = self._pages[0].view(np.int64).reshape(len(self._pages[0]), -1)[:, :count]
            return words[self._rows]
        copied = np.empty(len(self._rows), self._pages[0].dtype)
        self.load(copied, _ALL)
        return copied.view(np.int64).reshape(len(copied), -1)[:, :count]

    def _pieces(self, firsts: NDArray[np.int64], length: int) -> list[tuple[int, int, int]] | None:
        """Cuts runs where the guest's pages do not follow each other.

        Returns:
            (row of the guest's, row of the other array, pages) of each piece; None if they are too small, or the pages
            are in several files.
        """
        if self._files is not None:
            return None
        steps = self._rows[1:] - self._rows[:-1]
        steps[length - 1 :: length] = 0  # each run begins elsewhere
        breaks = np.flatnonzero(steps != 1) + 1
        if (len(breaks) + 2) * _PIECE > len(self._rows):
            return None
        edges = [0, *breaks.tolist(), len(self._rows)]
        ours = [int(self._rows[0]), *self._rows[breaks].tolist()]
        theirs = firsts.tolist()
        return [
            (row, theirs[start // length] + start % length, stop - start)
            for row, (start, stop) in zip(ours, pairwise(edges), strict=True)
        ]


def _call_in(pages: NDArray[np.void], rows: Any) -> None:
    """Has the beginnings of pages fetched from memory, many at the same time, before each is copied.

    A copy finds out where the next page is when it is done with one, and waits for the memory then. One word of each is
    enough: the processor follows by itself.
    """
    np.ndarray(len(pages), np.uint8, pages, 0, (pages.itemsize,))[rows]


def _rows_of_runs(firsts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = (firsts[:, np.newaxis] + np.arange(length)).ravel()
    return rows


class _Mapping(NamedTuple):
    """A mapping whose pages are pages of its file, in pages.

    Attributes:
        first: the number of its first page, in the guest.
        ends: the number after its last: to read, and to write; ``first`` where that is not allowed.
        shift: what added to a page's number gives its row in the file.
        pages: the file.
    """

    first: int
    ends: tuple[int, int]
    shift: int
    pages: NDArray[np.void]


class _Table(NamedTuple):
    """All of them, by ascending address: as they are, and column by column."""

    mappings: list[_Mapping]
    files: list[NDArray[np.void]]
    firsts: NDArray[np.int64]
    ends: tuple[NDArray[np.int64], NDArray[np.int64]]
    shifts: NDArray[np.int64]
    file_numbers: NDArray[np.intp]


class GuestPages:
    """See the module.

    Args:
        dma: the guest's memory.
        page_size: bytes; a power of two.

    Ownership: listens to ``dma`` until ``close``.

    Threading: session thread.
    """

    def __init__(self, dma: Dma, page_size: int = 4096) -> None:
        self.page_size = page_size
        self._page_shift = page_size.bit_length() - 1
        # As an array, which a Python integer would be made into each time.
        self._shift = np.array(self._page_shift)
        self._dma = dma
        self._table: _Table | None = None
        self._hit: _Mapping | None = None
        dma.on_map.append(self._forget)
        dma.on_unmap.append(self._forget)

    def close(self) -> None:
        """Lets go of the memory and stops listening. Idempotent."""
        self._table = self._hit = None
        for listeners in (self._dma.on_map, self._dma.on_unmap):
            if self._forget in listeners:
                listeners.remove(self._forget)

    def locate(
        self, addresses: NDArray[np.int64], *, write: bool, bounds: tuple[int, int] | None = None
    ) -> LocatedPages:
        """Finds the pages at these addresses.

        Pages that are not mapped that way, or not by us, or only in part, are not found; nor is any while the device is
        no bus master, or stopped. To ``store`` there, say ``write``; when a dirty log is kept, the pages are marked
        now, if all were found.

        Args:
            addresses: at least one; multiples of the page size. Those of 2**63 and above, here negative, are never
                found.
            write: the pages are going to be written.
            bounds: what no address is below, and what none is above, where something of that kind is known, however
                far off: it may save looking.
        """
        if not self._dma.enabled or self._dma.held:
            return LocatedPages(np.zeros(len(addresses), np.bool_), [], addresses, None)
        numbers = addresses >> self._shift
        located = None
        hit = self._hit
        if hit is not None:
            first, end = hit.first << self._page_shift, hit.ends[write] << self._page_shift
            low, high = bounds or (0, -1)
            # One of the upper half of addresses is negative, and makes the upper bound negative.
            if high < low or low < first:
                low = int(addresses.min())
            if high < low or high >= end:
                high = int(addresses.max())
            if first <= low and high < end:
                located = LocatedPages(None, [hit.pages], numbers + hit.shift if hit.shift else numbers, None)
        if located is None:
            located = self._search(numbers, write=write)
        if write and located.found is None and self._dma.dirty_log is not None:
            self._mark(numbers)
        return located

    def _search(self, numbers: NDArray[np.int64], *, write: bool) -> LocatedPages:
        table = self._table or self._make()
        # Below the first mapping, this is one of no pages.
        which = table.firsts.searchsorted(numbers, "right") - 1
        found = numbers < table.ends[write][which]
        if not found.all():
            return LocatedPages(found, [], numbers, None)
        first = int(which[0])
        if (which == first).all():
            hit = self._hit = table.mappings[first]
            return LocatedPages(None, [hit.pages], numbers + hit.shift, None)
        return LocatedPages(None, table.files, numbers + table.shifts[which], table.file_numbers[which])

    def _mark(self, numbers: NDArray[np.int64]) -> None:
        """Marks pages as dirty, neighbours together."""
        ordered = np.unique(numbers)
        for run in np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1):
            self._dma.mark_dirty(int(run[0]) * self.page_size, len(run) * self.page_size)

    def _make(self) -> _Table:
        size = self.page_size
        files: dict[MappedFile, int] = {}
        arrays: list[NDArray[np.void]] = []
        # searchsorted finds this one for what is below all others.
        made = [_Mapping(-(1 << 62), (-(1 << 62),) * 2, 0, np.empty(0, _page_type(size)))]
        file_numbers = [0]
        for mapping in self._dma if len(self._dma) <= _MAX_MAPPINGS else ():
            if not isinstance(mapping, MmapMapping) or mapping.iova % size or mapping.shift % size:
                continue
            if mapping.file not in files:
                files[mapping.file] = len(arrays)
                arrays.append(as_pages(mapping.file.words[1], size))
            first, end = mapping.iova // size, mapping.end // size
            ends = (end if mapping.readable else first, end if mapping.writable else first)
            made.append(_Mapping(first, ends, mapping.shift // size, arrays[files[mapping.file]]))
            file_numbers.append(files[mapping.file])
        self._table = _Table(
            made,
            arrays,
            np.array([one.first for one in made], np.int64),
            (np.array([one.ends[0] for one in made], np.int64), np.array([one.ends[1] for one in made], np.int64)),
            np.array([one.shift for one in made], np.int64),
            np.array(file_numbers, np.intp),
        )
        return self._table

    def _forget(self, _mapping: DmaMapping) -> None:
        self._table = self._hit = None
