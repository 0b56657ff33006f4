"""Regions: what lies behind one region index of a device - registers, plain memory, anything.

The message path works in integers: a driver's access is nearly always 1, 2, 4 or 8 bytes, and an ``int`` goes straight
between the wire and a register without a ``bytes`` object in between. ``read`` and ``write`` are therefore the two
methods every region has; the byte-wise pair is for what a client does in bulk (QEMU reads the whole configuration space
and the whole ROM in one message) and is derived from them unless a region knows better.

Two things spare a client the message. What lies in ``mappable_areas`` is memory it maps and then accesses on its own;
``SharedMemory`` is such memory. A ``Doorbell`` is an offset whose writes only mean "look", which it can ring through an
eventfd. Neither has to be used: every access may always come as a message, and then does the same.

This module knows nothing of PCI, of messages or of sockets.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vfio_user.errors import InvalidAccess

__all__ = [
    "ACCESS_SIZES",
    "PAGE_SIZE",
    "CallbackRegion",
    "Doorbell",
    "EmptyRegion",
    "IoRange",
    "MemoryRegion",
    "Region",
    "SharedMemory",
    "SharedMemoryRegion",
]

#: The sizes, in bytes, of an access that is one integer.
ACCESS_SIZES = (1, 2, 4, 8)

_FORMS = {1: struct.Struct("<B"), 2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_UNPACK = {size: form.unpack_from for size, form in _FORMS.items()}
_PACK = {size: form.pack_into for size, form in _FORMS.items()}

#: Bytes; what can be mapped begins and ends at multiples of it.
PAGE_SIZE = mmap.PAGESIZE


class Doorbell(NamedTuple):
    """Writes a client may make by adding one to an eventfd, instead of sending them.

    What an eventfd tells is that there were writes: not how many, nor, without ``value``, which value they had; and it
    is not ordered with messages. So this is for registers that say "there is work, look in memory".

    Attributes:
        offset: bytes into the region.
        size: bytes a write has that rings.
        value: the one value that rings; None for any. Other values are sent.
        ring: called for one or more such writes that came through the eventfd; those that are sent go to the region's
            ``write`` as ever.
        is_io: it lies in I/O space.
        shadow: the client puts the value written into memory it shares with the device, before it rings, and ``ring``
            is called with it: the last one, where several came. Only clients that know libvfio-user's addition do so.
    """

    offset: int
    size: int
    value: int | None
    ring: Callable[..., None]
    is_io: bool = False
    shadow: bool = False


class IoRange(NamedTuple):
    """Part of a region that a client may access through a socket of its own, instead of by messages (ioregionfd).

    What comes through it is in no order with messages.

    Attributes:
        offset: bytes into the region.
        size: bytes.
        posted_writes: who writes need not wait until it is done.
        is_io: it lies in I/O space.
    """

    offset: int
    size: int
    posted_writes: bool = False
    is_io: bool = False


class Region:
    """One region of a device. Subclass it, or use one of the ready ones below.

    The caller (the session) has checked ``offset + size <= self.size`` and ``size in ACCESS_SIZES`` before any call, so
    a region does not check them again; it does decide about alignment and about sizes it does not like.

    Attributes:
        size: bytes; fixed for the life of the region.
        readable: a client may read it.
        writable: a client may write it.
        mappable_areas: (offset, size) of what a client may map, in bytes, whole pages, ascending and apart. There its
            accesses need no message, and nobody sees them; ``read`` and ``write`` of those bytes must reach the same
            memory. In QEMU one such area in any region makes every write to the whole device wait for its reply.
        mappable_fd: the file to map, in which each area lies at its offset in the region; None with no area. It stays
            the region's, and must be one no client can shorten: see ``SharedMemory``.
        ioeventfds: the doorbells a client may ring through an eventfd.
        ioregionfds: the parts a client may access through sockets.
        region_type: type and subtype of a region that is none of PCI's; None for all others.

    Threading: session thread.
    """

    size: int = 0
    readable: bool = True
    writable: bool = True
    mappable_areas: Sequence[tuple[int, int]] = ()
    mappable_fd: int | None = None
    ioeventfds: Sequence[Doorbell] = ()
    ioregionfds: Sequence[IoRange] = ()
    region_type: tuple[int, int] | None = None

    def read(self, offset: int, size: int) -> int:
        """Reads ``size`` bytes (1, 2, 4 or 8) at ``offset``: an unsigned integer, little-endian in memory.

        Raises:
            DeviceError: the access is refused; its errno is the reply.
        """
        raise NotImplementedError

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes ``size`` bytes (1, 2, 4 or 8) at ``offset``; ``0 <= value < 256 ** size``.

        Raises:
            DeviceError: the access is refused; its errno is the reply, if the client asked for one.
        """
        raise NotImplementedError

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Reads any number of bytes, as a run of the largest aligned accesses that cover it."""
        data = bytearray()
        for at, size in aligned_accesses(offset, count):
            data += self.read(at, size).to_bytes(size, "little")
        return bytes(data)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes any number of bytes, as a run of the largest aligned accesses that cover it."""
        for at, size in aligned_accesses(offset, len(data)):
            start = at - offset
            self.write(at, size, int.from_bytes(data[start : start + size], "little"))


def aligned_accesses(offset: int, count: int) -> list[tuple[int, int]]:
    """Cuts ``[offset, offset + count)`` into the fewest naturally aligned accesses of 1, 2 or 4 bytes.

    Four is the largest: registers of more than 32 bits are commonly readable in halves, while few 32-bit registers
    take an access of eight.

    Returns:
        (offset, size) pairs in ascending order.
    """
    accesses = []
    end = offset + count
    while offset < end:
        size = 4
        while offset % size or offset + size > end:
            size >>= 1
        accesses.append((offset, size))
        offset += size
    return accesses


class EmptyRegion(Region):
    """A region index the device does not use: size 0, and no access possible."""

    readable = False
    writable = False


class MemoryRegion(Region):
    """Plain memory: what is written is read back, at any offset and width.

    Args:
        size: bytes.
        readonly: writes are refused with EINVAL (a ROM).
        contents: initial bytes, at offset 0; at most ``size`` long.

    Attributes:
        memory: the bytes themselves, for the device to read and change.

    Raises:
        ValueError: ``contents`` is longer than ``size``.
    """

    def __init__(self, size: int, *, readonly: bool = False, contents: bytes = b"") -> None:
        if len(contents) > size:
            raise ValueError(f"{len(contents)} bytes of contents do not fit a memory region of {size} bytes")
        self.size = size
        self.writable = not readonly
        self.memory = bytearray(size)
        self.memory[: len(contents)] = contents

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        value: int = _UNPACK[size](self.memory, offset)[0]
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        _PACK[size](self.memory, offset, value)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``."""
        return bytes(self.memory[offset : offset + count])

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``."""
        self.memory[offset : offset + len(data)] = data


class SharedMemory:
    """Memory that a client may map too: parts of a memory file as long as a region.

    The file is sealed at that length: a client has the descriptor, and shortening the file would kill, by SIGBUS, who
    touches its memory next. Pages nobody touches take no room, so a file with one area is as cheap as that area.

    A client that has mapped it keeps the mapping until it unmaps it or ends, disconnected or not, and may write at any
    moment: read what you check once, into a variable or ``bytes``, and then use that.

    Args:
        size: bytes of the region.
        areas: (offset, size) of each part in bytes, whole pages.

    Attributes:
        areas: as given, ascending.
        fd: the descriptor of the file.
        views: the bytes of each area, by its offset.

    Raises:
        ValueError: an area is empty, not made of whole pages, outside the region or over another one.
        OSError: no memory file can be made of that size.

    Ownership: the descriptor goes with this object, each mapping with the last view of it.
    """

    def __init__(self, size: int, areas: Iterable[tuple[int, int]]) -> None:
        self.areas = tuple(sorted(areas))
        end = 0
        for start, length in self.areas:
            if length <= 0 or start % PAGE_SIZE or length % PAGE_SIZE:
                raise ValueError(
                    f"an area of {length:#x} bytes at {start:#x} cannot be mapped: both must be multiples of the page, "
                    f"{PAGE_SIZE:#x}, and the size not 0"
                )
            if start < end or start + length > size:
                where = f"the area before it, which ends at {end:#x}" if start < end else f"a region of {size:#x} bytes"
                raise ValueError(f"the area [{start:#x}, {start + length:#x}) does not fit {where}")
            end = start + length
        self.fd = os.memfd_create("vfio-user-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)
        # F_SEAL_SEAL, because the client could add others: F_SEAL_FUTURE_WRITE would shut out the one after it.
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.views = {
            start: memoryview(mmap.mmap(self.fd, length, mmap.MAP_SHARED, offset=start)) for start, length in self.areas
        }


class SharedMemoryRegion(Region):
    """Plain memory that a client may map, all of it: what one writes the other reads, at once and without a message.

    Resets and disconnects leave the contents alone, as in every memory; ``on_reset`` may clear them.

    Args:
        memory: the bytes behind it. Usually a size, for memory of its own; else a view of shared memory.

    Attributes:
        memory: the bytes, for the device to read and change. (``memory.cast("I")[n]`` is one load or store of 32 bits.)

    Raises:
        ValueError: the size is not made of whole pages.
        OSError: no memory file can be made of that size.
    """

    def __init__(self, memory: int | memoryview) -> None:
        if isinstance(memory, int):
            shared = self._shared = SharedMemory(memory, [(0, memory)])
            self.mappable_areas, self.mappable_fd = shared.areas, shared.fd
            memory = shared.views[0]
        self.size = len(memory)
        self.memory = memory
        # An aligned access must be a single load or store: the client is looking at the same bytes.
        self._words = {1: memory, 2: memory.cast("H"), 4: memory.cast("I"), 8: memory.cast("Q")}

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        if offset % size:
            return int.from_bytes(self.memory[offset : offset + size], "little")
        value: int = self._words[size][offset // size]
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        if offset % size:
            self.memory[offset : offset + size] = value.to_bytes(size, "little")
        else:
            self._words[size][offset // size] = value

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``."""
        return bytes(self.memory[offset : offset + count])

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``."""
        self.memory[offset : offset + len(data)] = data


class CallbackRegion(Region):
    """Two functions instead of a class.

    Args:
        size: bytes.
        read: ``read(offset, size) -> value``; None refuses reads with EINVAL.
        write: ``write(offset, size, value)``; None refuses writes with EINVAL.
    """

    def __init__(
        self,
        size: int,
        read: Callable[[int, int], int] | None = None,
        write: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.size = size
        self.readable = read is not None
        self.writable = write is not None
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        if self._read is None:
            raise InvalidAccess(f"read of {size} bytes at {offset:#x} of a region that has no read function")
        return self._read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        if self._write is None:
            raise InvalidAccess(f"write of {size} bytes at {offset:#x} of a region that has no write function")
        self._write(offset, size, value)
