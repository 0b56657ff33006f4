"""DMA_MAP and DMA_UNMAP.

Spec: "VFIO_USER_DMA_MAP", "VFIO_USER_DMA_UNMAP". DMA_READ and DMA_WRITE, which a server sends, have their place here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DmaMapFlags, DmaUnmapFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["DmaMap", "DmaUnmap"]

_MAP = struct.Struct("<IIQQQ")
_UNMAP = struct.Struct("<IIQQ")

#: Bytes a client may ask to get back from an unmap; libvfio-user's limit.
_MAX_UNMAP_ARGSZ = 1 << 20


@dataclass(frozen=True, slots=True)
class DmaMap:
    """The client grants the device a range of IOVA space; at most one descriptor comes along.

    Attributes:
        flags: what the device may do there, and how. Bits without a meaning are kept, for the receiver to refuse.
        fd_offset: bytes into the descriptor at which the range begins.
        iova: where the range begins for the device.
        size: bytes.
    """

    flags: DmaMapFlags
    fd_offset: int
    iova: int
    size: int

    @classmethod
    def decode(cls, payload: Bytes) -> DmaMap:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 32 bytes.
        """
        argsz, flags, fd_offset, iova, size = unpack_head(_MAP, payload, "DMA_MAP")
        check_argsz(argsz, _MAP.size, "DMA_MAP")
        return cls(DmaMapFlags(flags), fd_offset, iova, size)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _MAP.pack(_MAP.size, self.flags, self.fd_offset, self.iova, self.size)


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """The client takes a range back: exactly one it mapped, or with ``ALL`` everything.

    The reply repeats the request. ``GET_DIRTY_BITMAP`` belongs to the first migration protocol.

    Attributes:
        flags: at most one of ``DmaUnmapFlags``.
        iova: where the range begins; 0 with ``ALL``.
        size: bytes; 0 with ``ALL``.
        argsz: bytes of reply payload the client has room for.
    """

    flags: DmaUnmapFlags
    iova: int
    size: int
    argsz: int = _UNMAP.size

    @classmethod
    def decode(cls, payload: Bytes) -> DmaUnmap:
        """Reads a request (or a reply: they have one form).

        Raises:
            RemoteProtocolError: the payload is under 24 bytes; ``argsz`` is under 24 bytes or over 1 MiB; ``flags`` is
                neither 0 nor one known flag; ``ALL`` comes with an address or a size.
        """
        argsz, flags, iova, size = unpack_head(_UNMAP, payload, "DMA_UNMAP")
        check_argsz(argsz, _UNMAP.size, "DMA_UNMAP")
        if argsz > _MAX_UNMAP_ARGSZ:
            raise RemoteProtocolError(f"DMA_UNMAP: argsz {argsz} is over the limit of {_MAX_UNMAP_ARGSZ} bytes")
        if flags not in (0, DmaUnmapFlags.GET_DIRTY_BITMAP, DmaUnmapFlags.ALL):
            raise RemoteProtocolError(f"DMA_UNMAP: flags {flags:#x} is neither 0, 1 (dirty bitmap) nor 2 (all)")
        if flags == DmaUnmapFlags.ALL and (iova or size):
            raise RemoteProtocolError(
                f"DMA_UNMAP: unmapping everything goes with address 0 and size 0, not {iova:#x} and {size:#x}"
            )
        return cls(DmaUnmapFlags(flags), iova, size, argsz)

    def encode(self) -> bytes:
        """Returns the payload: 24 bytes, which the rust client insists on in the reply."""
        return _UNMAP.pack(self.argsz, self.flags, self.iova, self.size)
