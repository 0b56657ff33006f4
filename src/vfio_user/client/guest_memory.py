"""The client's memory, which the device reaches by DMA.

``GuestMemory`` is the memory itself: a memfd, so that a server can map it, sealed so that nobody can shrink it under
the server's feet. ``GuestAddressSpace`` says where the device sees it: the mappings of DMA_MAP, by IOVA. Through it go
the server's DMA_READ and DMA_WRITE, which reach memory whose descriptor the server was not given. ``DmaBuffer`` is what
a driver works with: some bytes, and the address the device knows them by.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vfio_user.errors import DeviceError, StateError
from vfio_user.memory.dirty_log import DirtyLog
from vfio_user.memory.iova_map import IovaMap

__all__ = ["PAGE_SIZE", "DmaBuffer", "GuestAddressSpace", "GuestMapping", "GuestMemory"]

#: Bytes of a page: what a mapping is made of.
PAGE_SIZE = 4096

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class GuestMemory:
    """Memory that can be shared with a server.

    Args:
        size: bytes; rounded up to whole pages.

    Attributes:
        size: bytes.
        fd: the memfd, sealed against growing and shrinking.
        view: all of it.

    Ownership: ``close`` it, or use it in a ``with`` statement. A view somebody still holds keeps the memory, not the
    descriptor.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"a memory of {size} bytes: it has at least one")
        self.size = -(-size // PAGE_SIZE) * PAGE_SIZE
        self.fd = os.memfd_create("vfio-user guest memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        #: By size in bytes: indexing one is a single load or store, which a device on another thread sees whole.
        self.words = {1: self.view, 2: self.view.cast("H"), 4: self.view.cast("I"), 8: self.view.cast("Q")}
        self._free = [(0, self.size)]
        self._closed = False

    def allocate(self, size: int, *, align: int = PAGE_SIZE) -> int:
        """Finds room for ``size`` bytes and returns its offset; the bytes are zero the first time.

        Raises:
            MemoryError: there is none.
            ValueError: ``align`` is no power of two.
        """
        if align <= 0 or align & (align - 1):
            raise ValueError(f"an alignment of {align} bytes: it is a power of two")
        size = max(size, 1)
        for position, (start, end) in enumerate(self._free):
            offset = -(-start // align) * align
            if offset + size <= end:
                self._free[position : position + 1] = [
                    part for part in ((start, offset), (offset + size, end)) if part[0] < part[1]
                ]
                return offset
        raise MemoryError(
            f"no {size} bytes in a row are free in a guest memory of {self.size}: free some, or make a larger one"
        )

    def free(self, offset: int, size: int) -> None:
        """Takes back what ``allocate`` gave."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self._free, (offset, offset + max(size, 1))]):
            if merged and merged[-1][1] >= start:
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((start, end))
        self._free = merged

    def close(self) -> None:
        """Unmaps and closes. Idempotent."""
        if not self._closed:
            self._closed = True
            for view in self.words.values():
                view.release()
            # A view somebody holds keeps the mapping until it is dropped.
            with contextlib.suppress(BufferError):
                self._map.close()
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class GuestMapping:
    """One DMA mapping: where the device sees a part of a memory.

    Attributes:
        iova: the first address.
        size: bytes.
        memory: what is there.
        offset: where in ``memory`` it begins, bytes.
        readable: the device may read.
        writable: the device may write.
        shared: the server was given the descriptor; otherwise it has to ask by messages.
    """

    iova: int
    size: int
    memory: GuestMemory
    offset: int
    readable: bool
    writable: bool
    shared: bool

    @property
    def end(self) -> int:
        """The address after the last."""
        return self.iova + self.size


class GuestAddressSpace:
    """The mappings of one device, by IOVA; a ``DmaTarget``.

    As QEMU does, it answers ENODEV to whatever the device may not do: an address nobody mapped, a range that leaves
    what is mapped, a write to what only reads.

    Attributes:
        dirty_log: the pages the device wrote by messages, while the device is being migrated; None otherwise. Only this
            end knows of them.
    """

    def __init__(self) -> None:
        self._map: IovaMap[GuestMapping] = IovaMap()
        self.dirty_log: DirtyLog | None = None

    def __iter__(self) -> Iterator[GuestMapping]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def add(self, mapping: GuestMapping) -> None:
        """Enters a mapping.

        Raises:
            StateError: it overlaps another.
        """
        other = self._map.overlap(mapping.iova, mapping.end)
        if other is not None:
            raise StateError(
                f"[{mapping.iova:#x}, {mapping.end:#x}) overlaps [{other.iova:#x}, {other.end:#x}), which is mapped: "
                "unmap that first"
            )
        self._map.insert(mapping)

    def remove(self, mapping: GuestMapping) -> None:
        """Takes a mapping out."""
        self._map.remove(mapping)

    def find(self, iova: int) -> GuestMapping | None:
        """The mapping that holds an address."""
        return self._map.find(iova)

    def overlap(self, start: int, end: int) -> GuestMapping | None:
        """The first mapping that has any of ``[start, end)``."""
        return self._map.overlap(start, end)

    def clear(self) -> None:
        """Takes all out."""
        self._map.clear()

    def read(self, iova: int, count: int) -> bytes:
        """See ``DmaTarget.read``."""
        parts = [
            bytes(mapping.memory.view[at : at + size])
            for mapping, at, size in self._pieces(iova, count, lambda mapping: mapping.readable)
        ]
        return b"".join(parts)

    def write(self, iova: int, data: bytes | bytearray | memoryview) -> None:
        """See ``DmaTarget.write``; nothing is written unless all of it can be."""
        done = 0
        for mapping, at, size in self._pieces(iova, len(data), lambda mapping: mapping.writable):
            mapping.memory.view[at : at + size] = data[done : done + size]
            done += size
        if self.dirty_log is not None:
            self.dirty_log.mark(iova, done)

    def _pieces(
        self, iova: int, count: int, allowed: Callable[[GuestMapping], bool]
    ) -> list[tuple[GuestMapping, int, int]]:
        """What a range is made of: (mapping, offset in its memory, bytes)."""
        pieces = []
        at, end = iova, iova + count
        while at < end:
            mapping = self._map.find(at)
            if mapping is None or not allowed(mapping):
                why = "nothing is mapped there" if mapping is None else "the mapping does not allow it"
                raise DeviceError(errno.ENODEV, f"no DMA of {count} bytes at {iova:#x}: {why} ({at:#x})")
            size = min(end, mapping.end) - at
            pieces.append((mapping, mapping.offset + at - mapping.iova, size))
            at += size
        return pieces


class DmaBuffer:
    """Memory the driver shares with the device.

    Bytes are read and written through slices, as in ``buffer[0:4]``, or as integers, little-endian.

    Attributes:
        iova: where the device finds it.
        size: bytes.

    Ownership: ``free`` it, or use it in a ``with`` statement, or close the client.
    """

    def __init__(self, memory: GuestMemory, offset: int, iova: int, size: int) -> None:
        self.iova = iova
        self.size = size
        self._memory = memory
        self._offset = offset
        self._freed = False

    @property
    def view(self) -> memoryview:
        """The bytes themselves."""
        return self._memory.view[self._offset : self._offset + self.size]

    def free(self) -> None:
        """Gives the memory back for other buffers; the device can still reach it. Idempotent."""
        if not self._freed:
            self._freed = True
            self._memory.free(self._offset, self.size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, where: slice) -> bytes:
        with self.view as view:
            return bytes(view[where])

    def __setitem__(self, where: slice, data: bytes | bytearray | memoryview) -> None:
        with self.view as view:
            view[where] = data

    def read8(self, offset: int) -> int:
        """One byte."""
        return self._read(offset, 1)

    def read16(self, offset: int) -> int:
        """Two bytes."""
        return self._read(offset, 2)

    def read32(self, offset: int) -> int:
        """Four bytes."""
        return self._read(offset, 4)

    def read64(self, offset: int) -> int:
        """Eight bytes."""
        return self._read(offset, 8)

    def write8(self, offset: int, value: int) -> None:
        """One byte."""
        self._write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Two bytes."""
        self._write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Four bytes."""
        self._write(offset, 4, value)

    def write64(self, offset: int, value: int) -> None:
        """Eight bytes."""
        self._write(offset, 8, value)

    def _read(self, offset: int, size: int) -> int:
        at = self._place(offset, size)
        if at % size == 0:
            return int(self._memory.words[size][at // size])
        return int.from_bytes(self._memory.view[at : at + size], "little")

    def _write(self, offset: int, size: int, value: int) -> None:
        at = self._place(offset, size)
        if at % size == 0:
            self._memory.words[size][at // size] = value
        else:
            self._memory.view[at : at + size] = value.to_bytes(size, "little")

    def _place(self, offset: int, size: int) -> int:
        if not 0 <= offset <= self.size - size:
            raise IndexError(f"{size} bytes at {offset:#x} of a buffer of {self.size:#x} bytes")
        return self._offset + offset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.free()

    def __repr__(self) -> str:
        return f"DmaBuffer([{self.iova:#x}, {self.iova + self.size:#x}))"
