"""DEVICE_GET_REGION_INFO with its capabilities, REGION_READ, REGION_WRITE and REGION_WRITE_MULTI.

The access forms below are also compiled whole, header included, for the two shells' hot loops: one ``unpack_from`` and
one ``pack`` a message is what keeps a Python server beside a C one.

Spec: "VFIO_USER_DEVICE_GET_REGION_INFO", "VFIO_USER_REGION_READ", "VFIO_USER_REGION_WRITE",
"VFIO_USER_REGION_WRITE_MULTI".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from vfio_user.errors import LocalProtocolError, RemoteProtocolError
from vfio_user.protocol.constants import RegionCapability, RegionFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = [
    "ACCESS",
    "ACCESS_MESSAGE",
    "INTEGER_ACCESS_MESSAGE",
    "MAX_MULTI_WRITES",
    "MAX_MULTI_WRITE_SIZE",
    "MappableArea",
    "MultiWrite",
    "RegionAccess",
    "RegionInfo",
    "RegionInfoRequest",
    "RegionWriteMulti",
    "WriteMultiReply",
]

#: offset u64, region u32, count u32: the payload of a read, and the start of a write's and of both replies.
ACCESS = struct.Struct("<QII")

#: The same with the header before it.
ACCESS_MESSAGE = struct.Struct("<HHIIIQII")

#: The same again with the data behind it as one integer, by its size in bytes.
INTEGER_ACCESS_MESSAGE = {
    size: struct.Struct("<HHIIIQII" + code) for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}

_INFO = struct.Struct("<IIIIQQ")
_CAP_HEADER = struct.Struct("<HHI")
_SPARSE_HEAD = struct.Struct("<HHIII")
_AREA = struct.Struct("<QQ")
_MULTI_COUNT = struct.Struct("<Q")
_MULTI_ENTRY = struct.Struct("<QII8s")

_NO_FLAGS = RegionFlags(0)

#: Writes one REGION_WRITE_MULTI may hold; QEMU's and libvfio-user's limit.
MAX_MULTI_WRITES = 200

#: Bytes one write of a REGION_WRITE_MULTI may have. Spec: its data field is 8 bytes.
MAX_MULTI_WRITE_SIZE = 8


@dataclass(frozen=True, slots=True)
class RegionInfoRequest:
    """A client asks about one region.

    Attributes:
        index: a ``RegionIndex``, or a number that is none.
        argsz: bytes of reply payload the client has room for.
    """

    index: int
    argsz: int = _INFO.size

    @classmethod
    def decode(cls, payload: Bytes) -> RegionInfoRequest:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 32 bytes.
        """
        argsz, _, index, *_ = unpack_head(_INFO, payload, "DEVICE_GET_REGION_INFO")
        check_argsz(argsz, _INFO.size, "DEVICE_GET_REGION_INFO")
        return cls(index, argsz)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _INFO.pack(self.argsz, 0, self.index, 0, 0, 0)


class MappableArea(NamedTuple):
    """Part of a region a client may map: ``[offset, offset + size)`` in bytes of the region."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """One region: the reply. At most one descriptor comes along, for mapping.

    Attributes:
        index: which.
        flags: what a client may do with it; ``CAPS`` is set by ``encode``.
        size: bytes; 0 for a region the device does not have.
        fd_offset: added to an offset in the region to get one in the descriptor.
        areas: the parts that may be mapped, in ascending order; empty with ``MMAP`` means all of it.
        region_type: type and subtype of a device specific region, as the migration region of 0.9.1 is.
        argsz: in a decoded reply, the bytes the server needs for all of it.
    """

    index: int
    flags: RegionFlags = _NO_FLAGS
    size: int = 0
    fd_offset: int = 0
    areas: tuple[MappableArea, ...] = ()
    region_type: tuple[int, int] | None = None
    argsz: int = _INFO.size

    def encode(self, room: int) -> tuple[bytes, bool]:
        """Returns the payload for a client that has room for that many bytes, and whether it is complete.

        When the capabilities do not fit, the fixed part alone goes, with the size all of it needs; the client asks
        again. The descriptor goes only with a complete reply, or the client would be given it twice.
        """
        bodies = []
        if self.areas:
            head = struct.pack("<II", len(self.areas), 0)
            bodies.append((RegionCapability.SPARSE_MMAP, head + b"".join(_AREA.pack(*area) for area in self.areas)))
        if self.region_type is not None:
            bodies.append((RegionCapability.TYPE, struct.pack("<II", *self.region_type)))
        capabilities = bytearray()
        for position, (cap_id, body) in enumerate(bodies):
            end = _INFO.size + len(capabilities) + _CAP_HEADER.size + len(body)
            following = end if position + 1 < len(bodies) else 0
            capabilities += _CAP_HEADER.pack(cap_id, 1, following) + body
        argsz = _INFO.size + len(capabilities)
        complete = argsz <= room
        flags, cap_offset = self.flags & ~RegionFlags.CAPS, 0
        if capabilities and complete:
            flags, cap_offset = flags | RegionFlags.CAPS, _INFO.size
        fixed = _INFO.pack(argsz, flags, self.index, cap_offset, self.size, self.fd_offset)
        return (fixed + capabilities if complete else fixed), complete

    @classmethod
    def decode(cls, payload: Bytes) -> RegionInfo:
        """Reads a reply; capabilities it does not know are skipped.

        Raises:
            RemoteProtocolError: the payload is under 32 bytes, or its chain of capabilities runs out of it, does not
                advance, claims more areas than it holds, or lists areas twice.
        """
        argsz, flags, index, cap_offset, size, fd_offset = unpack_head(_INFO, payload, "DEVICE_GET_REGION_INFO reply")
        areas: list[MappableArea] = []
        region_type = None
        at = cap_offset if flags & RegionFlags.CAPS else 0
        last = 0
        while at:
            if at <= last or at < _INFO.size or at + _CAP_HEADER.size > len(payload):
                raise RemoteProtocolError(
                    f"region {index}: a capability at {at:#x} does not follow {last:#x} inside {len(payload)} bytes"
                )
            cap_id, _, following = _CAP_HEADER.unpack_from(payload, at)
            if cap_id == RegionCapability.SPARSE_MMAP:
                # Capabilities may overlap, so a server could have one list of areas told a thousand times.
                if areas:
                    raise RemoteProtocolError(f"region {index}: it has two sparse mmap capabilities")
                areas = _decode_areas(payload, at, index)
            elif cap_id == RegionCapability.TYPE:
                if at + _CAP_HEADER.size + 8 > len(payload):
                    raise RemoteProtocolError(f"region {index}: its type capability is cut short")
                region_type = struct.unpack_from("<II", payload, at + _CAP_HEADER.size)
            last, at = at, following
        return cls(index, RegionFlags(flags), size, fd_offset, tuple(areas), region_type, argsz)


def _decode_areas(payload: Bytes, at: int, index: int) -> list[MappableArea]:
    """The areas of the sparse mmap capability at ``at``."""
    count = None
    if at + _SPARSE_HEAD.size <= len(payload):
        count = _SPARSE_HEAD.unpack_from(payload, at)[3]
    first = at + _SPARSE_HEAD.size
    if count is None or first + count * _AREA.size > len(payload):
        raise RemoteProtocolError(f"region {index}: its sparse mmap capability claims more areas than it holds")
    return [MappableArea._make(_AREA.unpack_from(payload, first + n * _AREA.size)) for n in range(count)]


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """Which bytes of which region a REGION_READ or REGION_WRITE is about.

    Attributes:
        offset: bytes into the region.
        region: a ``RegionIndex``, or a number that is none.
        count: bytes accessed.
    """

    offset: int
    region: int
    count: int

    @classmethod
    def decode(cls, payload: Bytes, what: str = "region access") -> RegionAccess:
        """Reads the 16 bytes; data may follow.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes.
        """
        return cls(*unpack_head(ACCESS, payload, what))

    def encode(self) -> bytes:
        """Returns the 16 bytes."""
        return ACCESS.pack(self.offset, self.region, self.count)


@dataclass(frozen=True, slots=True)
class MultiWrite:
    """One write of a REGION_WRITE_MULTI.

    Attributes:
        offset: bytes into the region.
        region: a ``RegionIndex``, or a number that is none.
        count: bytes to write; over 8 is for the receiver to refuse.
        field: the 8 bytes of the entry, of which the first ``count`` are the data.
    """

    offset: int
    region: int
    count: int
    field: bytes


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """Several small writes in one message, to be done in order. Never with more than 200 of them."""

    writes: tuple[MultiWrite, ...]

    @classmethod
    def decode(cls, payload: Bytes) -> RegionWriteMulti:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes, or not exactly as long as its number of writes needs, or
                there are over 200. (A bad entry is not an error of the message: those before it are done.)
        """
        (number,) = unpack_head(_MULTI_COUNT, payload, "REGION_WRITE_MULTI")
        if number > MAX_MULTI_WRITES:
            raise RemoteProtocolError(f"REGION_WRITE_MULTI: {number} writes; the limit is {MAX_MULTI_WRITES}")
        needed = _MULTI_COUNT.size + number * _MULTI_ENTRY.size
        if len(payload) != needed:
            raise RemoteProtocolError(f"REGION_WRITE_MULTI: {number} writes take {needed} bytes, not {len(payload)}")
        entries = _MULTI_ENTRY.iter_unpack(payload[_MULTI_COUNT.size :])
        return cls(tuple(MultiWrite(*entry) for entry in entries))

    def encode(self) -> bytes:
        """Returns the payload.

        Raises:
            LocalProtocolError: there are over 200.
        """
        if len(self.writes) > MAX_MULTI_WRITES:
            raise LocalProtocolError(f"REGION_WRITE_MULTI: {len(self.writes)} writes; the limit is {MAX_MULTI_WRITES}")
        parts = [_MULTI_COUNT.pack(len(self.writes))]
        parts += [_MULTI_ENTRY.pack(write.offset, write.region, write.count, write.field) for write in self.writes]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class WriteMultiReply:
    """How many of the writes were done."""

    done: int

    @classmethod
    def decode(cls, payload: Bytes) -> WriteMultiReply:
        """Reads a reply.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes.
        """
        return cls(*unpack_head(_MULTI_COUNT, payload, "REGION_WRITE_MULTI reply"))

    def encode(self) -> bytes:
        """Returns the payload."""
        return _MULTI_COUNT.pack(self.done)
