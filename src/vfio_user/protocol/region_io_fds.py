"""DEVICE_GET_REGION_IO_FDS: descriptors through which accesses of a region pass without a message.

An *ioeventfd* is an eventfd to which a client (in fact KVM) adds one instead of sending a write. An *ioregionfd* is a
socket for reads and writes, in a form of its own: see ``io_region``. (KVM never got it.)

The head has 16 bytes, and an entry 40 in the specification, but 48 in libvfio-user, which keeps ``datamatch`` further
back to make room for a shadow: a place in shared memory the value written goes to. Which of the two came is told by the
size of the whole, ``(argsz - 16) / count``. (The specification's text says 32 where the head has 16.)

Spec: "VFIO_USER_DEVICE_GET_REGION_IO_FDS"; ``struct kvm_ioeventfd`` of ``linux/kvm.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import DEFAULT_MAX_DATA_XFER_SIZE, IoEventFdFlags, IoFdType, IoRegionFdFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["IoEventFd", "IoRegionFd", "RegionIoFds", "RegionIoFdsRequest", "Shadow"]

_WHAT = "DEVICE_GET_REGION_IO_FDS"

#: argsz, flags, index, count.
_HEAD = struct.Struct("<IIII")

#: offset, size, index of the descriptor, type, flags, a gap, then datamatch or user data.
_ENTRY = struct.Struct("<QQIIIIQ")

#: The same, but the gap is the index of the shadow's descriptor and its offset comes before datamatch.
_LONG_ENTRY = struct.Struct("<QQIIIIQQ")

_NO_EVENT_FLAGS = IoEventFdFlags(0)
_NO_REGION_FLAGS = IoRegionFdFlags(0)


@dataclass(frozen=True, slots=True)
class RegionIoFdsRequest:
    """A client asks which accesses of a region it may pass on without a message.

    Attributes:
        index: a ``RegionIndex``, or a number that is none.
        argsz: bytes of reply payload the client has room for.
    """

    index: int
    argsz: int = _HEAD.size

    @classmethod
    def decode(cls, payload: Bytes) -> RegionIoFdsRequest:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 16 bytes, ``argsz`` over 1 MiB, or flags or count are
                not 0.
        """
        argsz, flags, index, count = unpack_head(_HEAD, payload, _WHAT)
        check_argsz(argsz, _HEAD.size, _WHAT)
        if argsz > DEFAULT_MAX_DATA_XFER_SIZE:
            raise RemoteProtocolError(f"{_WHAT}: argsz {argsz} is over the limit of {DEFAULT_MAX_DATA_XFER_SIZE} bytes")
        if flags or count:
            raise RemoteProtocolError(f"{_WHAT}: flags {flags:#x} and count {count} of a request must be 0")
        return cls(index, argsz)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _HEAD.pack(self.argsz, 0, self.index, 0)


@dataclass(frozen=True, slots=True)
class Shadow:
    """Where a client puts the value written, before it adds to the eventfd. libvfio-user's addition.

    Attributes:
        fd_index: which of the reply's descriptors is the memory.
        offset: bytes into it.
    """

    fd_index: int
    offset: int


@dataclass(frozen=True, slots=True)
class IoEventFd:
    """Writes that may be told by adding one to an eventfd.

    Attributes:
        offset: bytes into the region.
        size: bytes a write has; 0 for any.
        fd_index: which of the reply's descriptors; several entries may share one.
        flags: ``DATAMATCH`` if only the writes of one value are meant.
        datamatch: that value; with no such flag it says nothing.
        shadow: where the value goes; None for the specification's own kind.
    """

    offset: int
    size: int
    fd_index: int
    flags: IoEventFdFlags = _NO_EVENT_FLAGS
    datamatch: int = 0
    shadow: Shadow | None = None

    def _encode(self, *, long: bool) -> bytes:
        shadow = self.shadow
        kind = IoFdType.IOEVENTFD if shadow is None else IoFdType.IOEVENTFD_SHADOW
        start = (self.offset, self.size, self.fd_index, kind, self.flags)
        if not long:
            return _ENTRY.pack(*start, 0, self.datamatch)
        if shadow is None:
            return _LONG_ENTRY.pack(*start, 0, 0, self.datamatch)
        return _LONG_ENTRY.pack(*start, shadow.fd_index, shadow.offset, self.datamatch)


@dataclass(frozen=True, slots=True)
class IoRegionFd:
    """Accesses that may go through a socket.

    Attributes:
        offset: bytes into the region.
        size: bytes.
        fd_index: which of the reply's descriptors.
        flags: of ``IoRegionFdFlags``.
        user_data: what accesses through it are marked with.
    """

    offset: int
    size: int
    fd_index: int
    flags: IoRegionFdFlags = _NO_REGION_FLAGS
    user_data: int = 0

    def _encode(self, *, long: bool) -> bytes:
        entry = _ENTRY.pack(self.offset, self.size, self.fd_index, IoFdType.IOREGIONFD, self.flags, 0, self.user_data)
        return entry.ljust(_LONG_ENTRY.size, b"\0") if long else entry


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """What may pass without a message: the reply. The descriptors come along, in the order ``fd_index`` counts.

    Attributes:
        index: the region.
        entries: what may pass; in a decoded reply that had no room for them, empty.
        count: how many there are; as many as ``entries`` unless there was no room.
        argsz: bytes the server needs for all of them.
        long: entries are in libvfio-user's form of 48 bytes; needed by any with a shadow.
    """

    index: int
    entries: tuple[IoEventFd | IoRegionFd, ...] = ()
    count: int = 0
    argsz: int = _HEAD.size
    long: bool = False

    @classmethod
    def of(cls, index: int, entries: tuple[IoEventFd | IoRegionFd, ...], *, long: bool = False) -> RegionIoFds:
        """A reply of these entries, its sizes worked out; with a shadow among them it is long."""
        long = long or any(isinstance(entry, IoEventFd) and entry.shadow is not None for entry in entries)
        size = _LONG_ENTRY.size if long else _ENTRY.size
        return cls(index, entries, len(entries), _HEAD.size + size * len(entries), long and bool(entries))

    def encode(self, room: int) -> tuple[bytes, bool]:
        """Returns the payload for a client that has room for that many bytes, and whether it is complete.

        When the entries do not fit, the head alone goes, with the size all of it needs, and no descriptor; the client
        asks again.
        """
        head = _HEAD.pack(self.argsz, 0, self.index, self.count)
        if self.argsz > room:
            return head, False
        return head + b"".join(entry._encode(long=self.long) for entry in self.entries), True

    @classmethod
    def decode(cls, payload: Bytes) -> RegionIoFds:
        """Reads a reply; entries of a type that is not known are left out.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes, or ends in the middle of its entries, or these have
                neither 40 nor 48 bytes, or are of a type that does not fit in theirs.
        """
        argsz, _, index, count = unpack_head(_HEAD, payload, f"{_WHAT} reply")
        if not count or len(payload) == _HEAD.size:
            return cls(index, (), count, argsz)
        stride, rest = divmod(argsz - _HEAD.size, count)
        if rest or stride not in (_ENTRY.size, _LONG_ENTRY.size):
            raise RemoteProtocolError(
                f"{_WHAT} reply: {count} entries in {argsz} bytes; each has {_ENTRY.size} or {_LONG_ENTRY.size}"
            )
        if argsz > len(payload):
            raise RemoteProtocolError(f"{_WHAT} reply: {count} entries take {argsz} bytes, and {len(payload)} came")
        long = stride == _LONG_ENTRY.size
        found = (_decode_entry(payload, _HEAD.size + stride * number, long=long) for number in range(count))
        return cls(index, tuple(entry for entry in found if entry is not None), count, argsz, long)


def _decode_entry(payload: Bytes, at: int, *, long: bool) -> IoEventFd | IoRegionFd | None:
    offset, size, fd_index, kind, flags, shadow_index, last = _ENTRY.unpack_from(payload, at)
    if kind == IoFdType.IOREGIONFD:
        return IoRegionFd(offset, size, fd_index, IoRegionFdFlags(flags), last)
    if kind not in (IoFdType.IOEVENTFD, IoFdType.IOEVENTFD_SHADOW):
        return None
    if not long:
        if kind == IoFdType.IOEVENTFD_SHADOW:
            raise RemoteProtocolError(f"{_WHAT} reply: an ioeventfd with a shadow in an entry of {_ENTRY.size} bytes")
        return IoEventFd(offset, size, fd_index, IoEventFdFlags(flags), last)
    (datamatch,) = struct.unpack_from("<Q", payload, at + _ENTRY.size)
    shadow = Shadow(shadow_index, last) if kind == IoFdType.IOEVENTFD_SHADOW else None
    return IoEventFd(offset, size, fd_index, IoEventFdFlags(flags), datamatch, shadow)
