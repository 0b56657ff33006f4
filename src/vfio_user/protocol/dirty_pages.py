"""DIRTY_PAGES, and DMA_UNMAP with a dirty bitmap: how the first migration protocol asks what the device wrote.

Spec: vfio-user 0.9.1 "VFIO_USER_DIRTY_PAGES", "VFIO_USER_DMA_UNMAP"; the current text has neither, and logs by
DEVICE_FEATURE. The tables of 0.9.1 count a pointer that is on no wire: what is here is what its peers send.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import ClassVar

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.dma import DmaUnmap
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["BitmapHeader", "BitmapRange", "DirtyPages", "DirtyPagesFlags"]

_HEAD = struct.Struct("<II")
_RANGE = struct.Struct("<QQ")
_BITMAP = struct.Struct("<QQ")

#: Bytes a client may ask to get back; libvfio-user's limit.
_MAX_ARGSZ = 1 << 20


class DirtyPagesFlags(IntFlag):
    """What is asked for, exactly one of them. Spec: "VFIO_USER_DIRTY_PAGES"."""

    START = 1 << 0
    STOP = 1 << 1
    GET_BITMAP = 1 << 2


@dataclass(frozen=True, slots=True)
class BitmapHeader:
    """Which bitmap is wanted, in DMA_UNMAP behind the request; the bitmap follows it in the reply.

    Attributes:
        page_size: bytes a bit stands for.
        size: bytes of the bitmap.
    """

    page_size: int
    size: int

    @classmethod
    def decode(cls, payload: Bytes) -> BitmapHeader:
        """Reads what stands behind the 24 bytes of a DMA_UNMAP.

        Raises:
            RemoteProtocolError: it is under 16 bytes.
        """
        return cls(*unpack_head(_BITMAP, payload, "the bitmap of DMA_UNMAP"))

    def encode(self) -> bytes:
        """Returns it."""
        return _BITMAP.pack(self.page_size, self.size)

    def check_room(self, request: DmaUnmap) -> None:
        """Checks that the client has room for the reply it asks for.

        Raises:
            RemoteProtocolError: ``argsz`` is under what the request, this and the bitmap need.
        """
        check_argsz(request.argsz, DmaUnmap.SIZE + _BITMAP.size + self.size, "DMA_UNMAP with a dirty bitmap")


@dataclass(frozen=True, slots=True)
class BitmapRange:
    """The range whose dirty pages are wanted.

    Attributes:
        iova: where it, and bit 0, begins.
        length: bytes.
        page_size: bytes a bit stands for.
        bitmap_size: bytes of the bitmap.
    """

    iova: int
    length: int
    page_size: int
    bitmap_size: int


@dataclass(frozen=True, slots=True)
class DirtyPages:
    """A request. The reply to ``GET_BITMAP`` repeats it, and the bitmap follows; the others' is a header alone.

    Attributes:
        operation: one of the flags.
        wanted: what ``GET_BITMAP`` asks for; None with the others.
        argsz: bytes of reply payload the client has room for; the 2021 client only counts the request here, and so
            gets as much of the bitmap as it said.
        REPORT_SIZE: bytes of ``GET_BITMAP``, and of what stands before the bitmap in the reply.
    """

    REPORT_SIZE: ClassVar[int] = _HEAD.size + _RANGE.size + _BITMAP.size

    operation: DirtyPagesFlags
    wanted: BitmapRange | None = None
    argsz: int = _HEAD.size

    @classmethod
    def decode(cls, payload: Bytes) -> DirtyPages:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 8 bytes, or the payload of GET_BITMAP under 40;
                ``argsz`` of that is over 1 MiB; the flags are not exactly one of the three.
        """
        argsz, flags = unpack_head(_HEAD, payload, "DIRTY_PAGES")
        check_argsz(argsz, _HEAD.size, "DIRTY_PAGES")
        if flags in (DirtyPagesFlags.START, DirtyPagesFlags.STOP):
            return cls(DirtyPagesFlags(flags), None, argsz)
        if flags != DirtyPagesFlags.GET_BITMAP:
            raise RemoteProtocolError(
                f"DIRTY_PAGES: flags {flags:#x} is none of 1 (start), 2 (stop) and 4 (get bitmap)"
            )
        if argsz > _MAX_ARGSZ:
            raise RemoteProtocolError(f"DIRTY_PAGES: argsz {argsz} is over the limit of {_MAX_ARGSZ} bytes")
        iova, length = unpack_head(_RANGE, payload[_HEAD.size :], "DIRTY_PAGES, its range")
        page_size, size = unpack_head(_BITMAP, payload[_HEAD.size + _RANGE.size :], "DIRTY_PAGES, its bitmap")
        return cls(DirtyPagesFlags.GET_BITMAP, BitmapRange(iova, length, page_size, size), argsz)

    def encode(self) -> bytes:
        """Returns the payload."""
        head = _HEAD.pack(self.argsz, self.operation)
        wanted = self.wanted
        if wanted is None:
            return head
        return head + _RANGE.pack(wanted.iova, wanted.length) + _BITMAP.pack(wanted.page_size, wanted.bitmap_size)
