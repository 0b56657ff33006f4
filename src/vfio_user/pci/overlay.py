"""A BAR made of parts: one region underneath, and others that cover stretches of it.

This is how an MSI-X table shares a BAR with registers, and how a register block smaller than its BAR is filled up.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfio_user.regions import MemoryRegion, Region

__all__ = ["OverlayRegion", "ReadOnlyMemory", "UnclaimedRegion"]


class UnclaimedRegion(Region):
    """Address space the BAR decodes and nothing answers: reads as 0, writes vanish.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``: always 0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``: does nothing."""

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``: zeros."""
        return bytes(count)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``: does nothing."""


class ReadOnlyMemory(MemoryRegion):
    """Bytes a client reads; what it writes vanishes.

    Args:
        contents: the bytes, which also say the size.
    """

    def __init__(self, contents: bytes) -> None:
        super().__init__(len(contents), readonly=True, contents=contents)

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``: does nothing."""

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``: does nothing."""


class OverlayRegion(Region):
    """A region with others on top of it.

    An access belongs to a part when it lies in it completely; every other access, also one that straddles an edge,
    goes to the region underneath.

    Args:
        base: what lies underneath; its size is the size of the whole.
        parts: (offset, region) pairs; they lie in the base and do not overlap.
    """

    def __init__(self, base: Region, parts: Iterable[tuple[int, Region]]) -> None:
        self.base = base
        self.parts = sorted(((start, start + part.size, part) for start, part in parts), key=lambda item: item[0])
        self.size = base.size
        self._low = self.parts[0][0]
        self._high = self.parts[-1][1]

    def _part(self, offset: int, end: int) -> tuple[int, Region]:
        for start, stop, part in self.parts:
            if start <= offset and end <= stop:
                return start, part
        return 0, self.base

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        if self._low <= offset < self._high:
            start, part = self._part(offset, offset + size)
            return part.read(offset - start, size)
        return self.base.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        if self._low <= offset < self._high:
            start, part = self._part(offset, offset + size)
            part.write(offset - start, size, value)
        else:
            self.base.write(offset, size, value)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``: each stretch comes from the region that owns it."""
        return b"".join(part.read_bytes(at, size) for part, at, size in self._stretches(offset, offset + count))

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``: each stretch goes to the region that owns it."""
        done = 0
        for part, at, size in self._stretches(offset, offset + len(data)):
            part.write_bytes(at, data[done : done + size])
            done += size

    def _stretches(self, offset: int, end: int) -> list[tuple[Region, int, int]]:
        stretches: list[tuple[Region, int, int]] = []
        for start, stop, part in self.parts:
            if stop <= offset or end <= start:
                continue
            if offset < start:
                stretches.append((self.base, offset, start - offset))
                offset = start
            reach = min(stop, end)
            stretches.append((part, offset - start, reach - offset))
            offset = reach
        if offset < end:
            stretches.append((self.base, offset, end - offset))
        return stretches
