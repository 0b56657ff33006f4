"""What a server does for each command, one function each.

A function gets the session, the payload and the message's descriptors; it takes from the list what it keeps, and
returns the reply. Refusals are raised: RemoteProtocolError for what breaks the protocol, DeviceError for what the
device does not do. To support a new command, write its function and enter it in ``COMMANDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.errors import DeviceError, InvalidAccess, RemoteProtocolError, VersionError
from vfio_user.protocol.constants import (
    MAX_FDS_PER_MESSAGE,
    Command,
    DmaUnmapFlags,
    IoEventFdFlags,
    IoRegionFdFlags,
    IrqIndex,
    IrqSetFlags,
    RegionFlags,
)
from vfio_user.protocol.device import DeviceInfoRequest
from vfio_user.protocol.dma import DmaMap, DmaUnmap
from vfio_user.protocol.header import Header, reply_header
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest, SetIrqs
from vfio_user.protocol.region import (
    ACCESS,
    MAX_MULTI_WRITE_SIZE,
    MappableArea,
    RegionAccess,
    RegionInfo,
    RegionInfoRequest,
    RegionWriteMulti,
    WriteMultiReply,
)
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, RegionIoFdsRequest, Shadow
from vfio_user.protocol.version import VersionMessage, answer
from vfio_user.regions import ACCESS_SIZES, Doorbell, IoRange, Region

if TYPE_CHECKING:
    from vfio_user.server.session import Session

__all__ = ["COMMANDS", "Limits", "Reply", "placeholder_reply"]


class Reply(NamedTuple):
    """What goes back to the client.

    Attributes:
        payload: what follows the header.
        fds: descriptors that go along; they stay whose they are.
    """

    payload: bytes = b""
    fds: tuple[int, ...] = ()


class Limits(NamedTuple):
    """How much one message may carry.

    Attributes:
        client: bytes of data the client takes.
        server: bytes of data it may send.
        page_size: bytes of the pages of dirty bitmaps, as agreed on for the first protocol.
    """

    client: int
    server: int
    page_size: int


@dataclass(frozen=True, slots=True)
class _KnownClient:
    """A client recognised by what it says in VERSION."""

    minor: int
    capabilities: dict[str, object]


#: The rust client (cloud-hypervisor). It never looks at the error flag of a reply and waits for the bytes of a success,
#: so an error reply hangs it; what it proposes is always exactly this.
_RUST_CLIENT = _KnownClient(1, {"max_msg_fds": 1, "max_data_xfer_size": 1048576, "migration": {"pgsize": 4096}})


def _version(session: Session, payload: bytes, fds: list[int]) -> Reply:
    if fds:
        raise VersionError(f"VERSION came with {len(fds)} file descriptors; it carries none")
    request = VersionMessage.decode(payload)
    reply, agreement = answer(request, session.offer)
    session.ignores_errors = _KnownClient(request.minor, request.capabilities or {}) == _RUST_CLIENT
    return Reply(reply.encode(), session.agreed(agreement))


def _dma_map(session: Session, payload: bytes, fds: list[int]) -> Reply:
    request = DmaMap.decode(payload)
    # More than one descriptor has no meaning; the first counts, and the session closes the others.
    fd = fds.pop(0) if fds else None
    session.device.dma.map(request.iova, request.size, request.flags, request.fd_offset, fd)
    return Reply()


def _dma_unmap(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    # SPDK sends its descriptor along with an unmap, too; the session closes it.
    request = DmaUnmap.decode(payload)
    if request.flags == DmaUnmapFlags.GET_DIRTY_BITMAP:
        return _dma_unmap_with_bitmap(session, request, payload)
    session.device.dma.unmap(request.iova, request.size, request.flags)
    return Reply(request.encode())


def _dma_unmap_with_bitmap(session: Session, request: DmaUnmap, payload: bytes) -> Reply:
    # Imported by those alone that need it: a server listens sooner without.
    from vfio_user.protocol.dirty_pages import BitmapHeader
    from vfio_user.protocol.feature import bitmap_size

    wanted = BitmapHeader.decode(payload[DmaUnmap.SIZE :])
    wanted.check_room(request)
    if wanted.page_size and wanted.size != bitmap_size(request.size, wanted.page_size):
        raise RemoteProtocolError(
            f"DMA_UNMAP asks for {wanted.size} bytes of bitmap; {request.size:#x} bytes in pages of {wanted.page_size} "
            f"have {bitmap_size(request.size, wanted.page_size)}"
        )
    bitmap = session.device.dma.unmap(request.iova, request.size, request.flags, page_size=wanted.page_size)
    return Reply(request.encode() + wanted.encode() + bitmap)


def _get_info(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    DeviceInfoRequest.decode(payload)
    return Reply(session.device.info().encode())


def _get_region_info(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    request = RegionInfoRequest.decode(payload)
    region = _region(session, request.index)
    flags = RegionFlags(0)
    if region.size:
        flags |= RegionFlags.READ if region.readable else RegionFlags(0)
        flags |= RegionFlags.WRITE if region.writable else RegionFlags(0)
    areas: tuple[MappableArea, ...] = ()
    fds: tuple[int, ...] = ()
    # A client that takes no descriptor gets no flag either: cloud-hypervisor dies of the one without the other.
    if region.mappable_areas and region.mappable_fd is not None and _max_fds(session):
        flags |= RegionFlags.MMAP
        # Listed even where one area is the whole region: SPDK maps nothing without.
        areas = tuple(MappableArea(*area) for area in region.mappable_areas)
        fds = (region.mappable_fd,)
    reply, complete = RegionInfo(request.index, flags, region.size, areas=areas, region_type=region.region_type).encode(
        request.argsz
    )
    return Reply(reply, fds if complete else ())


def _get_region_io_fds(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    request = RegionIoFdsRequest.decode(payload)
    region = _region(session, request.index)
    if not region.size or not (region.readable or region.writable):
        raise InvalidAccess(f"region {request.index} cannot be accessed at all")
    # One descriptor each, and one message for all. What is not offered is written by messages, as ever.
    room = _max_fds(session)
    has_shadows = room > 1 and any(doorbell.shadow for doorbell in region.ioeventfds)
    doorbells = [bell for bell in region.ioeventfds if has_shadows or not bell.shadow][: room - has_shadows]
    ranges = region.ioregionfds[: room - has_shadows - len(doorbells)]
    # In this order: an eventfd each, the shadows' memory, a socket each.
    shadow_fd_index = len(doorbells)
    entries: list[IoEventFd | IoRegionFd] = []
    ioeventfds = session.device.ioeventfds
    shadow_fds: tuple[int, ...] = ()
    for number, doorbell in enumerate(doorbells):
        shadow = None
        if doorbell.shadow:
            fd, offset = ioeventfds.shadow(request.index, doorbell)
            shadow_fds, shadow = (fd,), Shadow(shadow_fd_index, offset)
        entries.append(_io_eventfd(number, doorbell, shadow))
    first = len(doorbells) + len(shadow_fds)
    entries += (_io_regionfd(first + number, part) for number, part in enumerate(ranges))
    reply, complete = RegionIoFds.of(request.index, tuple(entries)).encode(request.argsz)
    if not complete:
        return Reply(reply)
    eventfds = ioeventfds.eventfds(request.index, doorbells)
    sockets = session.device.ioregionfds.client_fds(request.index, region, ranges) if ranges else ()
    return Reply(reply, eventfds + shadow_fds + sockets)


def _io_eventfd(number: int, doorbell: Doorbell, shadow: Shadow | None) -> IoEventFd:
    flags = IoEventFdFlags.PIO if doorbell.is_io else IoEventFdFlags(0)
    if doorbell.value is not None:
        flags |= IoEventFdFlags.DATAMATCH
    return IoEventFd(doorbell.offset, doorbell.size, number, flags, doorbell.value or 0, shadow)


def _io_regionfd(number: int, part: IoRange) -> IoRegionFd:
    flags = IoRegionFdFlags.PIO if part.is_io else IoRegionFdFlags(0)
    if part.posted_writes:
        flags |= IoRegionFdFlags.POSTED_WRITES
    return IoRegionFd(part.offset, part.size, number, flags)


def _max_fds(session: Session) -> int:
    """Descriptors the client takes in one message."""
    return 0 if session.agreement is None else min(session.agreement.client.max_msg_fds, MAX_FDS_PER_MESSAGE)


def _get_irq_info(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    request = IrqInfoRequest.decode(payload)
    flags, count = session.device.interrupts.info(request.index)
    return Reply(IrqInfo(request.index, flags, count).encode())


def _set_irqs(session: Session, payload: bytes, fds: list[int]) -> Reply:
    request = SetIrqs.decode(payload)
    taken = fds.copy()
    fds.clear()
    device = session.device
    device.interrupts.set_irqs(request.index, request.flags, request.start, request.count, request.bools, taken)
    masked = bool(request.flags & IrqSetFlags.ACTION_MASK)
    if (masked or request.flags & IrqSetFlags.ACTION_UNMASK) and not request.flags & IrqSetFlags.DATA_EVENTFD:
        vectors: Sequence[int] = range(request.start, request.start + request.count)
        if request.bools is not None:
            vectors = [vector for vector, chosen in zip(vectors, request.bools, strict=True) if chosen]
        device.on_irq_mask(IrqIndex(request.index), vectors, masked)
    return Reply()


def _region_read(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    access = RegionAccess.decode(payload, "REGION_READ")
    region = _accessed(session, access, "read")
    if not region.readable and access.count:
        raise InvalidAccess(f"region {access.region} cannot be read")
    if access.count in ACCESS_SIZES:
        data = region.read(access.offset, access.count).to_bytes(access.count, "little")
    else:
        data = region.read_bytes(access.offset, access.count)
        if len(data) != access.count:
            raise InvalidAccess(f"a read of {access.count} bytes of region {access.region} gave {len(data)}")
    return Reply(payload[: ACCESS.size] + data)


def _region_write(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    access = RegionAccess.decode(payload, "REGION_WRITE")
    data = payload[ACCESS.size :]
    if len(data) != access.count:
        raise RemoteProtocolError(f"REGION_WRITE: {len(data)} bytes of data came for a count of {access.count}")
    _write(_accessed(session, access, "write"), access, data)
    return Reply(payload[: ACCESS.size])


def _region_write_multi(session: Session, payload: bytes, _fds: list[int]) -> Reply:
    # A device that waits for DMA in one of the writes takes those after it out of the iterator, to be done in order.
    session.client_memory.posted_rest = writes = iter(RegionWriteMulti.decode(payload).writes)
    done = 0
    try:
        for write in writes:
            if write.count > MAX_MULTI_WRITE_SIZE:
                raise RemoteProtocolError(f"REGION_WRITE_MULTI: a write of {write.count} bytes; each has 8 at most")
            access = RegionAccess(write.offset, write.region, write.count)
            _write(_accessed(session, access, "write"), access, write.field[: write.count])
            done += 1
    except (RemoteProtocolError, DeviceError):
        # Those before stay done. The client learns how many, unless there is none to tell of.
        if not done:
            raise
    finally:
        session.client_memory.posted_rest = None
    return Reply(WriteMultiReply(done).encode())


def _migrate(command: Command) -> Callable[[Session, bytes, list[int]], Reply]:
    """What carries out a command of either migration protocol, where it is the one offered."""

    def carry_out(session: Session, payload: bytes, _fds: list[int]) -> Reply:
        migration = session.device.migration or session.device.prepare_migration()
        operation = migration.operations.get(command)
        if operation is None:
            protocol = session.device.migration_protocol
            raise RemoteProtocolError(
                f"{command.name} is of another migration protocol than {protocol}, the one offered"
            )
        return Reply(operation(payload, session.limits))

    return carry_out


def _reset(session: Session, _payload: bytes, _fds: list[int]) -> Reply:
    # Accepted whether or not it is advertised: the rust client sends it to devices that do not.
    session.device.reset()
    return Reply()


#: What carries out each command a client may send.
COMMANDS: dict[int, Callable[[Session, bytes, list[int]], Reply]] = {
    Command.VERSION: _version,
    Command.DMA_MAP: _dma_map,
    Command.DMA_UNMAP: _dma_unmap,
    Command.DEVICE_GET_INFO: _get_info,
    Command.DEVICE_GET_REGION_INFO: _get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: _get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: _get_irq_info,
    Command.DEVICE_SET_IRQS: _set_irqs,
    Command.REGION_READ: _region_read,
    Command.REGION_WRITE: _region_write,
    Command.DEVICE_RESET: _reset,
    Command.REGION_WRITE_MULTI: _region_write_multi,
    **{
        command: _migrate(command)
        for command in (
            Command.DEVICE_FEATURE,
            Command.MIG_DATA_READ,
            Command.MIG_DATA_WRITE,
            Command.DIRTY_PAGES,
        )
    },
}


def placeholder_reply(header: Header, payload: bytes | bytearray) -> bytes | None:
    """A reply in the form of a success, for a client that takes no notice of errors; None where there is none.

    A failed read gives all ones, as a bus does when nothing answers.
    """
    if header.command == Command.REGION_READ and len(payload) >= ACCESS.size:
        count = min(RegionAccess.decode(payload).count, 1 << 20)
        body = bytes(payload[: ACCESS.size]) + b"\xff" * count
    elif header.command == Command.REGION_WRITE and len(payload) >= ACCESS.size:
        body = bytes(payload[: ACCESS.size])
    elif header.command == Command.DMA_UNMAP:
        body = bytes(payload[:24])
    else:
        return None
    return reply_header(header.message_id, header.command, len(body)) + body


def _region(session: Session, index: int) -> Region:
    """The region of that index.

    Raises:
        InvalidAccess: the device has no such index.
    """
    if index >= session.device.num_regions:
        raise InvalidAccess(f"region {index} is not one of the {session.device.num_regions} the device has")
    return session.device.region(index)


def _accessed(session: Session, access: RegionAccess, what: str) -> Region:
    """The region an access is about, which it fits.

    Raises:
        InvalidAccess: no such region, more bytes than were agreed on, or beyond the region's end.
    """
    region = _region(session, access.region)
    limit = session.offer.max_data_xfer_size
    if access.count > limit:
        raise InvalidAccess(f"a {what} of {access.count} bytes; at most {limit} go in one message")
    if access.offset + access.count > region.size:
        raise InvalidAccess(
            f"a {what} of [{access.offset:#x}, {access.offset + access.count:#x}) of region {access.region}, "
            f"which has {region.size:#x} bytes"
        )
    return region


def _write(region: Region, access: RegionAccess, data: bytes) -> None:
    if not region.writable and access.count:
        raise InvalidAccess(f"region {access.region} cannot be written")
    if access.count in ACCESS_SIZES:
        region.write(access.offset, access.count, int.from_bytes(data, "little"))
    else:
        region.write_bytes(access.offset, data)
