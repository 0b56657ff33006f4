"""A region of the device, as the client reaches it: by messages, or by mapping where the server allows that.

A server that passes a descriptor with a region's description offers all of it for mapping, or the *sparse areas* it
names. An access that lies in one of those is a load or a store; every other is a message.

**SIGBUS.** Touching mapped memory beyond the end of its file kills the process. An area is mapped only if the file is
long enough for it now; a server that truncates it later can still kill its client, as it can kill QEMU. For a server
that is not trusted that far, map nothing (``VfioUserClient(..., map_regions=False)``).

Spec: "VFIO_USER_DEVICE_GET_REGION_INFO"; ``struct vfio_region_info_cap_sparse_mmap`` of ``linux/vfio.h``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from typing import TYPE_CHECKING

from vfio_user.client.access_path import region_name
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import RegionFlags
from vfio_user.protocol.region import MappableArea, RegionInfo

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["DeviceRegion", "MappedArea", "map_areas"]

_PROTECTION = {
    RegionFlags.READ: mmap.PROT_READ,
    RegionFlags.WRITE: mmap.PROT_WRITE,
    RegionFlags.READ | RegionFlags.WRITE: mmap.PROT_READ | mmap.PROT_WRITE,
}


class MappedArea:
    """A part of a region that is mapped here.

    Attributes:
        offset: where in the region it begins, bytes.
        end: where it ends.
        view: the bytes.
    """

    def __init__(self, area: MappableArea, memory: mmap.mmap) -> None:
        self.offset = area.offset
        self.end = area.offset + area.size
        self.view = memoryview(memory)
        self._memory = memory
        self._words = {1: self.view, 2: self.view.cast("H"), 4: self.view.cast("I"), 8: self.view.cast("Q")}

    def read(self, at: int, size: int) -> int:
        """Reads an integer, with a single load where it is aligned."""
        if at % size == 0:
            return int(self._words[size][at // size])
        return int.from_bytes(self.view[at : at + size], "little")

    def write(self, at: int, size: int, value: int) -> None:
        """Writes an integer, with a single store where it is aligned."""
        if at % size == 0:
            self._words[size][at // size] = value
        else:
            self.view[at : at + size] = value.to_bytes(size, "little")

    def close(self) -> None:
        """Unmaps, or lets the last holder of a view do it. Idempotent."""
        for view in self._words.values():
            view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()


def map_areas(info: RegionInfo, fd: int) -> list[MappedArea]:
    """Maps what the server offers of a region.

    Args:
        info: its description.
        fd: the descriptor that came with it; stays the caller's, who may close it at once.

    Returns:
        The areas, in ascending order; none if the region is not for mapping, or the kernel cannot map its file.

    Raises:
        RemoteProtocolError: an area is not made of whole pages, leaves the region or the file, or overlaps another.
    """
    protection = _PROTECTION.get(info.flags & (RegionFlags.READ | RegionFlags.WRITE))
    if not info.flags & RegionFlags.MMAP or not info.size or protection is None:
        return []
    areas = _checked(info, os.fstat(fd))
    mapped: list[MappedArea] = []
    try:
        for area in areas:
            memory = mmap.mmap(
                fd, area.size, flags=mmap.MAP_SHARED, prot=protection, offset=info.fd_offset + area.offset
            )
            mapped.append(MappedArea(area, memory))
    except (OSError, ValueError, OverflowError):
        # Not a file that can be mapped, or not for this: messages do as well.
        for area_mapped in mapped:
            area_mapped.close()
        return []
    return mapped


def _checked(info: RegionInfo, file: os.stat_result) -> list[MappableArea]:
    name = region_name(info.index)
    areas = sorted(info.areas) if info.areas else [MappableArea(0, info.size)]
    end = 0
    for area in areas:
        text = f"{name}: mappable area [{area.offset:#x}, {area.offset + area.size:#x})"
        if (info.fd_offset + area.offset) % mmap.PAGESIZE or (info.areas and area.size % mmap.PAGESIZE):
            raise RemoteProtocolError(f"{text} at {info.fd_offset:#x} in its file is not made of whole pages")
        if not area.size or area.offset + area.size > info.size:
            raise RemoteProtocolError(f"{text} is empty or leaves the region of {info.size:#x} bytes")
        if area.offset < end:
            raise RemoteProtocolError(f"{text} overlaps the one before it, which ends at {end:#x}")
        if stat.S_ISREG(file.st_mode) and info.fd_offset + area.offset + area.size > file.st_size:
            raise RemoteProtocolError(
                f"{text} is beyond the end of its file of {file.st_size:#x} bytes; touching it would be fatal"
            )
        end = area.offset + area.size
    return areas


class DeviceRegion:
    """One region of the device. Get it from ``VfioUserClient.region``.

    Offsets are in bytes from the start of the region. What is out of range, read-only or of an odd size is the server's
    to refuse.

    Attributes:
        index: which.
        size: bytes; 0 for a region the device does not have.
        info: its whole description.
        areas: what of it is mapped here.

    ``read8`` to ``write64`` raise what ``PendingReply.result`` does.
    """

    def __init__(self, client: VfioUserClient, info: RegionInfo, areas: list[MappedArea]) -> None:
        self.index = info.index
        self.size = info.size
        self.info = info
        self.areas = areas
        self._client = client
        self._read = client.connection.read
        self._write = client.connection.write
        self._post = client.connection.post

    @property
    def name(self) -> str:
        """``BAR0``, ``CONFIG``."""
        return region_name(self.index)

    @property
    def readable(self) -> bool:
        """It can be read."""
        return bool(self.info.flags & RegionFlags.READ)

    @property
    def writable(self) -> bool:
        """It can be written."""
        return bool(self.info.flags & RegionFlags.WRITE)

    def read(self, offset: int, size: int) -> int:
        """Reads an integer of 1, 2, 4 or 8 bytes."""
        for area in self.areas:
            if area.offset <= offset and offset + size <= area.end:
                return area.read(offset - area.offset, size)
        return self._read(self.index, offset, size)

    def write(self, offset: int, size: int, value: int, *, posted: bool = False) -> None:
        """Writes an integer of 1, 2, 4 or 8 bytes.

        Args:
            offset: where.
            size: bytes.
            value: what.
            posted: do not wait until it is done, nor hear whether it failed; a later read waits for it. This is how
                QEMU writes to memory BARs.
        """
        for area in self.areas:
            if area.offset <= offset and offset + size <= area.end:
                area.write(offset - area.offset, size, value)
                return
        (self._post if posted else self._write)(self.index, offset, size, value)

    def read8(self, offset: int) -> int:
        """Reads one byte."""
        return self.read(offset, 1)

    def read16(self, offset: int) -> int:
        """Reads two bytes."""
        return self.read(offset, 2)

    def read32(self, offset: int) -> int:
        """Reads four bytes."""
        return self.read(offset, 4)

    def read64(self, offset: int) -> int:
        """Reads eight bytes."""
        return self.read(offset, 8)

    def write8(self, offset: int, value: int, *, posted: bool = False) -> None:
        """Writes one byte."""
        self.write(offset, 1, value, posted=posted)

    def write16(self, offset: int, value: int, *, posted: bool = False) -> None:
        """Writes two bytes."""
        self.write(offset, 2, value, posted=posted)

    def write32(self, offset: int, value: int, *, posted: bool = False) -> None:
        """Writes four bytes."""
        self.write(offset, 4, value, posted=posted)

    def write64(self, offset: int, value: int, *, posted: bool = False) -> None:
        """Writes eight bytes."""
        self.write(offset, 8, value, posted=posted)

    def read_bytes(self, offset: int, count: int) -> bytes:
        """Reads any number of bytes, in as few messages as it takes."""
        for area in self.areas:
            if area.offset <= offset and offset + count <= area.end:
                return bytes(area.view[offset - area.offset : offset - area.offset + count])
        return self._client.region_read(self.index, offset, count)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes any number of bytes, in as few messages as it takes."""
        for area in self.areas:
            if area.offset <= offset and offset + len(data) <= area.end:
                area.view[offset - area.offset : offset - area.offset + len(data)] = data
                return
        self._client.region_write(self.index, offset, data)

    def close(self) -> None:
        """Unmaps what is mapped. Idempotent."""
        for area in self.areas:
            area.close()
        self.areas.clear()

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size:#x} bytes>"
