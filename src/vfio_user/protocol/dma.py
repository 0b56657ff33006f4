"""DMA_MAP and DMA_UNMAP, which a client sends; DMA_READ and DMA_WRITE, which a server sends.

Spec: "VFIO_USER_DMA_MAP", "VFIO_USER_DMA_UNMAP", "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE". The counts of the last
two have 64 bits: 0.9.1 prints 32 for the reply to DMA_WRITE, the current text and every real peer have 64.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import ClassVar

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DmaMapFlags, DmaUnmapFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["DmaMap", "DmaRead", "DmaReadReply", "DmaUnmap", "DmaWrite", "DmaWriteReply"]

_MAP = struct.Struct("<IIQQQ")
_UNMAP = struct.Struct("<IIQQ")
_TRANSFER = struct.Struct("<QQ")
_OLD_WRITE_REPLY = struct.Struct("<QI")

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

    #: Bytes of a request; behind it may stand which bitmap is wanted.
    SIZE: ClassVar[int] = _UNMAP.size

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


@dataclass(frozen=True, slots=True)
class DmaRead:
    """The server asks for bytes of the client's memory.

    Attributes:
        iova: where they begin.
        count: how many.
    """

    iova: int
    count: int

    @classmethod
    def decode(cls, payload: Bytes) -> DmaRead:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes.
        """
        return cls(*unpack_head(_TRANSFER, payload, "DMA_READ"))

    def encode(self) -> bytes:
        """Returns the payload."""
        return _TRANSFER.pack(self.iova, self.count)


@dataclass(frozen=True, slots=True)
class DmaReadReply:
    """The bytes a server asked for.

    Attributes:
        iova: where they begin.
        data: the bytes; fewer than asked for is the client's choice, and the receiver's to judge.
    """

    iova: int
    data: bytes

    @classmethod
    def decode(cls, payload: Bytes) -> DmaReadReply:
        """Reads a reply.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes, or does not hold exactly the bytes it counts.
        """
        iova, count = unpack_head(_TRANSFER, payload, "DMA_READ reply")
        data = bytes(payload[_TRANSFER.size :])
        if len(data) != count:
            raise RemoteProtocolError(f"DMA_READ reply: {len(data)} bytes of data came for a count of {count}")
        return cls(iova, data)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _TRANSFER.pack(self.iova, len(self.data)) + self.data


@dataclass(frozen=True, slots=True)
class DmaWrite:
    """The server writes into the client's memory.

    Attributes:
        iova: where.
        data: what.
    """

    iova: int
    data: bytes

    @classmethod
    def decode(cls, payload: Bytes) -> DmaWrite:
        """Reads a request; bytes beyond its count are dropped, as QEMU does.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes, or (E2BIG, as QEMU says it) counts more bytes than came.
        """
        iova, count = unpack_head(_TRANSFER, payload, "DMA_WRITE")
        data = bytes(payload[_TRANSFER.size : _TRANSFER.size + count])
        if len(data) != count:
            raise RemoteProtocolError(
                f"DMA_WRITE: {len(data)} bytes of data came for a count of {count}", errno_hint=errno.E2BIG
            )
        return cls(iova, data)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _TRANSFER.pack(self.iova, len(self.data)) + self.data


@dataclass(frozen=True, slots=True)
class DmaWriteReply:
    """How much of a server's write was done.

    Attributes:
        iova: where; None where the client did not say.
        count: bytes written; None where the client did not say, which means all of them.
    """

    iova: int | None
    count: int | None

    @classmethod
    def decode(cls, payload: Bytes) -> DmaWriteReply:
        """Reads a reply of any generation: nothing (QEMU 10.1), 12 bytes (0.9.1 to the letter), or 16.

        Raises:
            RemoteProtocolError: the payload has any other length.
        """
        if not payload:
            return cls(None, None)
        if len(payload) == _OLD_WRITE_REPLY.size:
            return cls(*_OLD_WRITE_REPLY.unpack(payload))
        if len(payload) != _TRANSFER.size:
            raise RemoteProtocolError(f"DMA_WRITE reply: a payload of {len(payload)} bytes; it has 0, 12 or 16")
        return cls(*_TRANSFER.unpack(payload))

    def encode(self) -> bytes:
        """Returns the payload: 16 bytes, or none where nothing is said."""
        if self.iova is None or self.count is None:
            return b""
        return _TRANSFER.pack(self.iova, self.count)
