"""A BAR made of parts: one region underneath, and others that cover stretches of it.

This is how an MSI-X table shares a BAR with registers, how a register block smaller than its BAR is filled up, and how
part of a BAR becomes memory that a client maps.
"""

from __future__ import annotations

from collections.abc import Iterable

from vfio_user.regions import MemoryRegion, Region, SharedMemory, SharedMemoryRegion

__all__ = ["OverlayRegion", "ReadOnlyMemory", "SharedOverlay", "UnclaimedRegion"]


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

    What can be mapped of the base, or else of a part at offset 0, can be mapped of the whole, except for areas that
    another part reaches into. (There is one descriptor, in which an area lies where it lies in the whole.)

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
        candidates = [base, *(part for start, _, part in self.parts if start == 0)]
        mapped = next((region for region in candidates if region.mappable_areas), None)
        if mapped is not None:
            others = [(start, stop) for start, stop, part in self.parts if part is not mapped]
            self.mappable_areas = tuple(
                (at, size)
                for at, size in mapped.mappable_areas
                if not any(at < stop and start < at + size for start, stop in others)
            )
            self.mappable_fd = mapped.mappable_fd if self.mappable_areas else None

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


class SharedOverlay(OverlayRegion):
    """A region some areas of which are memory that a client may map; the rest of it stays what it was.

    Unlike in other overlays, an access over an edge is done in bytes, by both sides of it: the client's own accesses to
    a mapping know no edge.

    Args:
        base: what lies underneath.
        areas: (offset, size) pairs, in bytes, whole pages.

    Attributes:
        shared: the memory; its ``views`` are for the device to read and change.

    Raises:
        ValueError: see ``SharedMemory``.
    """

    def __init__(self, base: Region, areas: Iterable[tuple[int, int]]) -> None:
        self.shared = SharedMemory(base.size, areas)
        super().__init__(base, [(offset, SharedMemoryRegion(view)) for offset, view in self.shared.views.items()])
        self.mappable_areas, self.mappable_fd = self.shared.areas, self.shared.fd
        self._base_read, self._base_write = base.read, base.write
        self._edges = {edge for start, size in self.shared.areas for edge in (start, start + size)}

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        if offset + size <= self._low or self._high <= offset:  # registers, which is what messages are about
            return self._base_read(offset, size)
        if offset % size and not self._edges.isdisjoint(range(offset + 1, offset + size)):
            return int.from_bytes(self.read_bytes(offset, size), "little")
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        if offset + size <= self._low or self._high <= offset:
            self._base_write(offset, size, value)
        elif offset % size and not self._edges.isdisjoint(range(offset + 1, offset + size)):
            self.write_bytes(offset, value.to_bytes(size, "little"))
        else:
            super().write(offset, size, value)
