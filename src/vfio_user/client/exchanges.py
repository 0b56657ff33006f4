"""What a client says, and what it makes of the replies: the commands of a device, without any waiting.

Each function here is an *exchange*: a generator that yields an ``Ask`` for each message, is sent the reply, and returns
what came of it. ``VfioUserClient`` runs them on a connection that blocks, ``aio.AsyncClient`` on one that does not; so
every rule about what a server may answer stands here once.

Nothing a server sends is trusted: sizes, counts and indexes are checked before they are used.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from vfio_user.client.access_path import describe_access, region_name
from vfio_user.client.guest_memory import GuestMapping
from vfio_user.client.pending import Reply
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.protocol.constants import Command, DmaMapFlags, DmaUnmapFlags, IrqIndex, IrqSetFlags
from vfio_user.protocol.device import DeviceInfo, DeviceInfoRequest
from vfio_user.protocol.dma import DmaMap, DmaUnmap
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest, SetIrqs
from vfio_user.protocol.region import ACCESS, RegionInfo, RegionInfoRequest
from vfio_user.protocol.region_io_fds import RegionIoFds, RegionIoFdsRequest

__all__ = [
    "Ask",
    "Exchange",
    "connect_irqs",
    "device_info",
    "dma_map",
    "dma_unmap",
    "irq_info",
    "irq_name",
    "region_info",
    "region_io_fds",
    "region_read",
    "region_write",
    "reset",
    "set_irqs",
]

T = TypeVar("T")

#: The most regions and kinds of interrupt a device may claim; QEMU's limits.
_MAX_REGIONS = 100
_MAX_IRQS = 50

#: The most vectors of one kind. MSI-X ends at 2048.
_MAX_VECTORS = 2048

#: Bytes of a region's description, capabilities included; QEMU's largest seen is 3248, for 200 areas.
_MAX_REGION_INFO = 64 * 1024


class Ask(NamedTuple):
    """One command; the fields are those of ``Connection.submit``."""

    command: int
    payload: bytes = b""
    fds: Sequence[int] = ()
    max_payload: int = 0
    max_fds: int = 0
    request: str = ""


#: See the module.
Exchange = Generator[Ask, Reply, T]


def device_info() -> Exchange[DeviceInfo]:
    """DEVICE_GET_INFO."""
    reply = yield Ask(Command.DEVICE_GET_INFO, DeviceInfoRequest().encode(), max_payload=16)
    info = DeviceInfo.decode(reply.payload)
    if info.num_regions > _MAX_REGIONS or info.num_irqs > _MAX_IRQS:
        raise RemoteProtocolError(
            f"the device claims {info.num_regions} regions and {info.num_irqs} kinds of interrupt; "
            f"at most {_MAX_REGIONS} and {_MAX_IRQS} make sense"
        )
    return info


def reset() -> Exchange[None]:
    """DEVICE_RESET."""
    yield Ask(Command.DEVICE_RESET)


def region_info(index: int) -> Exchange[tuple[RegionInfo, int | None]]:
    """DEVICE_GET_REGION_INFO, asked again with more room where its capabilities need that.

    Returns:
        The description, and the descriptor for mapping, if there is one: the caller's to close.
    """
    what = f"DEVICE_GET_REGION_INFO of {region_name(index)}"
    argsz = RegionInfoRequest(index).argsz
    for _ in range(2):
        payload = RegionInfoRequest(index, argsz).encode()
        reply = yield Ask(Command.DEVICE_GET_REGION_INFO, payload, max_payload=argsz, max_fds=1, request=what)
        try:
            info = RegionInfo.decode(reply.payload)
            if info.index != index:
                raise RemoteProtocolError(f"{what} was answered for {region_name(info.index)}")
            if not RegionInfoRequest(index).argsz <= info.argsz <= _MAX_REGION_INFO:
                raise RemoteProtocolError(
                    f"{what}: the reply says argsz {info.argsz}; a description has 32 to {_MAX_REGION_INFO} bytes"
                )
        except RemoteProtocolError:
            close_fds(reply.fds)
            raise
        if info.argsz <= argsz:
            return info, reply.fds[0] if reply.fds else None
        close_fds(reply.fds)
        argsz = info.argsz
    raise RemoteProtocolError(f"{what}: with the room it asked for, the server now asks for {argsz} bytes")


def region_read(index: int, offset: int, count: int, limit: int) -> Exchange[bytes]:
    """REGION_READ of any number of bytes, ``limit`` of them in one message."""
    data = bytearray()
    while len(data) < count:
        size = min(count - len(data), limit)
        at = offset + len(data)
        what = describe_access("REGION_READ", index, at, size)
        request = ACCESS.pack(at, index, size)
        payload = (yield Ask(Command.REGION_READ, request, max_payload=ACCESS.size + size, request=what)).payload
        if payload[: ACCESS.size] != request or len(payload) != ACCESS.size + size:
            raise RemoteProtocolError(
                f"the reply to {what} is about another access, or has {len(payload) - ACCESS.size} bytes of data"
            )
        data += memoryview(payload)[ACCESS.size :]
    return bytes(data)


def region_write(index: int, offset: int, data: bytes | bytearray | memoryview, limit: int) -> Exchange[None]:
    """REGION_WRITE of any number of bytes, ``limit`` of them in one message."""
    for start in range(0, len(data), limit):
        chunk = data[start : start + limit]
        payload = ACCESS.pack(offset + start, index, len(chunk)) + chunk
        what = describe_access("REGION_WRITE", index, offset + start, len(chunk))
        yield Ask(Command.REGION_WRITE, payload, max_payload=len(payload), request=what)


def region_io_fds(index: int, max_fds: int) -> Exchange[tuple[RegionIoFds, list[int]]]:
    """DEVICE_GET_REGION_IO_FDS, asked again with the room its entries need.

    Returns:
        The entries, and the descriptors they count: the caller's to close.
    """
    what = f"DEVICE_GET_REGION_IO_FDS of {region_name(index)}"
    argsz = RegionIoFdsRequest(index).argsz
    for _ in range(2):
        payload = RegionIoFdsRequest(index, argsz).encode()
        reply = yield Ask(Command.DEVICE_GET_REGION_IO_FDS, payload, max_payload=argsz, max_fds=max_fds, request=what)
        try:
            found = RegionIoFds.decode(reply.payload)
            if found.index != index:
                raise RemoteProtocolError(f"{what} was answered for {region_name(found.index)}")
            if found.argsz > _MAX_REGION_INFO:
                raise RemoteProtocolError(
                    f"{what}: the reply says argsz {found.argsz}; entries of up to {_MAX_REGION_INFO} bytes are taken"
                )
        except RemoteProtocolError:
            close_fds(reply.fds)
            raise
        if found.argsz <= argsz:
            return found, reply.fds
        close_fds(reply.fds)
        argsz = found.argsz
    raise RemoteProtocolError(f"{what}: with the room it asked for, the server now asks for {argsz} bytes")


def irq_info(index: int) -> Exchange[IrqInfo]:
    """DEVICE_GET_IRQ_INFO."""
    what = f"DEVICE_GET_IRQ_INFO of {irq_name(index)}"
    reply = yield Ask(Command.DEVICE_GET_IRQ_INFO, IrqInfoRequest(index).encode(), max_payload=16, request=what)
    info = IrqInfo.decode(reply.payload)
    if info.index != index or info.count > _MAX_VECTORS:
        raise RemoteProtocolError(
            f"{what} was answered for {irq_name(info.index)} with {info.count} vectors; "
            f"there can be {_MAX_VECTORS} at most"
        )
    return info


def set_irqs(
    index: int, flags: IrqSetFlags, start: int, count: int, bools: bytes | None = None, fds: Sequence[int] = ()
) -> Exchange[None]:
    """DEVICE_SET_IRQS, one message."""
    payload = SetIrqs(flags, index, start, count, bools).encode()
    what = f"DEVICE_SET_IRQS of {irq_name(index)} vectors [{start}, {start + count})"
    yield Ask(Command.DEVICE_SET_IRQS, payload, fds=fds, request=what)


def connect_irqs(index: int, fds: Sequence[int | None], start: int, max_fds: int) -> Exchange[None]:
    """DEVICE_SET_IRQS with eventfds, in as many messages as the limit on descriptors makes them.

    Raises:
        StateError: the server takes no descriptors.
    """
    flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
    if not max_fds and any(fd is not None for fd in fds):
        raise StateError("the server said max_msg_fds 0, or the connection carries none: it cannot get an eventfd")
    at = 0
    while at < len(fds):
        end = at + 1
        connecting = fds[at] is not None
        # A message has a descriptor for each of its vectors, or none at all.
        while end < len(fds) and (fds[end] is not None) == connecting:
            if connecting and end - at >= max_fds:
                break
            end += 1
        yield from set_irqs(index, flags, start + at, end - at, fds=[fd for fd in fds[at:end] if fd is not None])
        at = end


def dma_map(mapping: GuestMapping) -> Exchange[None]:
    """DMA_MAP."""
    flags = (DmaMapFlags.READ if mapping.readable else 0) | (DmaMapFlags.WRITE if mapping.writable else 0)
    offset = mapping.offset if mapping.shared else 0
    yield Ask(
        Command.DMA_MAP,
        DmaMap(DmaMapFlags(flags), offset, mapping.iova, mapping.size).encode(),
        fds=[mapping.memory.fd] if mapping.shared else [],
        request=f"DMA_MAP of [{mapping.iova:#x}, {mapping.end:#x})",
    )


def dma_unmap(mapping: GuestMapping | None) -> Exchange[None]:
    """DMA_UNMAP of one mapping, or of everything."""
    if mapping is None:
        payload = DmaUnmap(DmaUnmapFlags.ALL, 0, 0).encode()
        what = "DMA_UNMAP of everything"
    else:
        payload = DmaUnmap(DmaUnmapFlags(0), mapping.iova, mapping.size).encode()
        what = f"DMA_UNMAP of [{mapping.iova:#x}, {mapping.end:#x})"
    yield Ask(Command.DMA_UNMAP, payload, max_payload=len(payload), request=what)


def irq_name(index: int) -> str:
    """``MSIX``; a number that is none stays one."""
    try:
        return IrqIndex(index).name
    except ValueError:
        return f"interrupt {index}"
