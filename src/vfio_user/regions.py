"""Regions: what lies behind one region index of a device - registers, plain memory, anything.

The message path works in integers: a driver's access is nearly always 1, 2, 4 or 8 bytes, and an ``int`` goes straight
between the wire and a register without a ``bytes`` object in between. ``read`` and ``write`` are therefore the two
methods every region has; the byte-wise pair is for what a client does in bulk (QEMU reads the whole configuration space
and the whole ROM in one message) and is derived from them unless a region knows better.

This module knows nothing of PCI, of messages or of sockets.
"""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.errors import InvalidAccess

__all__ = ["ACCESS_SIZES", "CallbackRegion", "EmptyRegion", "MemoryRegion", "Region"]

#: The sizes, in bytes, of an access that is one integer.
ACCESS_SIZES = (1, 2, 4, 8)


class Region:
    """One region of a device. Subclass it, or use one of the ready ones below.

    The caller (the session) has checked ``offset + size <= self.size`` and ``size in ACCESS_SIZES`` before any call, so
    a region does not check them again; it does decide about alignment and about sizes it does not like.

    Attributes:
        size: bytes; fixed for the life of the region.
        readable: a client may read it.
        writable: a client may write it.

    Threading: session thread.
    """

    size: int = 0
    readable: bool = True
    writable: bool = True

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
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        self.memory[offset : offset + size] = value.to_bytes(size, "little")

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
