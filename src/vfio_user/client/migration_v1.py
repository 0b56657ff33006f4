"""Migration as vfio-user 0.9.1 has it: the registers of the migration region, and DIRTY_PAGES.

What the registers mean, and in which order they are read, is ``protocol.migration_region``.

Spec: vfio-user 0.9.1 "VFIO device migration", "VFIO_USER_DIRTY_PAGES".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from vfio_user.client.guest_memory import GuestMapping
from vfio_user.client.migration import Migration
from vfio_user.client.region import DeviceRegion
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.protocol.constants import NUM_PCI_REGIONS, Command
from vfio_user.protocol.dirty_pages import BitmapRange, DirtyPages, DirtyPagesFlags
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.migration_region import MIGRATION_REGION_TYPE, DeviceState, MigrationRegister

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["RegionMigration"]

_REGISTERS_END = MigrationRegister.DATA_SIZE + MigrationRegister.DATA_SIZE.width

_STOP = MigrationState.STOP
_RUNNING = MigrationState.RUNNING
_STOP_COPY = MigrationState.STOP_COPY
_RESUMING = MigrationState.RESUMING
_PRE_COPY = MigrationState.PRE_COPY

#: What each state is in ``device_state``.
_NUMBERS: Mapping[MigrationState, DeviceState] = MappingProxyType(
    {
        _STOP: DeviceState.STOPPED,
        _RUNNING: DeviceState.RUNNING,
        _STOP_COPY: DeviceState.STOP_AND_COPY,
        _PRE_COPY: DeviceState.PRE_COPY,
        _RESUMING: DeviceState.RESUMING,
        MigrationState.ERROR: DeviceState.ERROR,
    }
)
_STATES = {int(number): state for state, number in _NUMBERS.items()}

#: From each state, what to write one after another to get to each other, made of the steps 0.9.1 itself lists: those no
#: server refuses. (From PRE_COPY the only one is to stop; QEMU goes straight back to RUNNING.)
_WAYS: Mapping[MigrationState, Mapping[MigrationState, tuple[MigrationState, ...]]] = MappingProxyType(
    {
        _STOP: {
            _RUNNING: (_RUNNING,),
            _STOP_COPY: (_RUNNING, _STOP_COPY),
            _RESUMING: (_RUNNING, _RESUMING),
            _PRE_COPY: (_RUNNING, _PRE_COPY),
        },
        _RUNNING: {
            _STOP: (_STOP,),
            _STOP_COPY: (_STOP_COPY,),
            _RESUMING: (_RESUMING,),
            _PRE_COPY: (_PRE_COPY,),
        },
        _STOP_COPY: {
            _STOP: (_STOP,),
            _RUNNING: (_RUNNING,),
            _RESUMING: (_RUNNING, _RESUMING),
        },
        _RESUMING: {
            _STOP: (_RUNNING, _STOP),
            _RUNNING: (_RUNNING,),
            _STOP_COPY: (_RUNNING, _STOP_COPY),
            _PRE_COPY: (_RUNNING, _PRE_COPY),
        },
        _PRE_COPY: {
            _STOP: (_STOP_COPY, _STOP),
            _RUNNING: (_STOP_COPY, _RUNNING),
            _STOP_COPY: (_STOP_COPY,),
            _RESUMING: (_STOP_COPY, _RUNNING, _RESUMING),
        },
    }
)

#: Bytes of a DIRTY_PAGES reply that a server makes, at most; libvfio-user's limit.
_MAX_REPLY = 1 << 20

#: Bytes of a GET_BITMAP request, and of its reply before the bitmap.
_BITMAP_HEAD = 40


class RegionMigration(Migration):
    """See the module, and the class above."""

    generation = 1

    def __init__(self, client: VfioUserClient, region: DeviceRegion) -> None:
        super().__init__(client)
        self._region = region

    @classmethod
    def find(cls, client: VfioUserClient) -> Self | None:
        """Looks for the region among those that are no PCI regions; None if there is none.

        Raises:
            RemoteProtocolError: it is smaller than its registers.
        """
        for index in range(NUM_PCI_REGIONS, client.info.num_regions):
            region = client.region(index)
            if region.info.region_type == MIGRATION_REGION_TYPE:
                if region.size < _REGISTERS_END:
                    raise RemoteProtocolError(
                        f"the migration region has {region.size} bytes; its registers have {_REGISTERS_END}"
                    )
                return cls(client, region)
        return None

    @property
    def has_pre_copy(self) -> bool:
        """See ``Migration``: every device of this generation has."""
        return True

    @property
    def state(self) -> MigrationState:
        """See ``Migration``."""
        number = self._region.read32(MigrationRegister.DEVICE_STATE)
        if number not in _STATES:
            raise RemoteProtocolError(f"the device says it is in migration state {number:#x}, which does not exist")
        return _STATES[number]

    def go_to(self, state: MigrationState) -> None:
        """See ``Migration``."""
        current = self.state
        if current == state:
            return
        way = _WAYS.get(current, {}).get(state)
        if way is None:
            raise StateError(f"no way leads from {current.name} to {state.name}: reset the device first")
        for step in way:
            self._region.write32(MigrationRegister.DEVICE_STATE, _NUMBERS[step])

    def read(self) -> Iterator[bytes]:
        """See ``Migration``."""
        region = self._region
        is_stopped = self.state == _STOP_COPY
        while pending := region.read64(MigrationRegister.PENDING_BYTES):
            offset, size = region.read64(MigrationRegister.DATA_OFFSET), region.read64(MigrationRegister.DATA_SIZE)
            if offset < _REGISTERS_END or offset + size > region.size:
                raise RemoteProtocolError(
                    f"the device's state is said to be at [{offset:#x}, {offset + size:#x}) of the migration region, "
                    f"which has data at [{_REGISTERS_END:#x}, {region.size:#x})"
                )
            if not size:
                if is_stopped:
                    raise RemoteProtocolError(f"the device has {pending} bytes of state left, and gives none of them")
                return
            yield region.read_bytes(offset, size)

    def write(self, chunk: bytes) -> None:
        """See ``Migration``; the region has to have room for all of the chunk."""
        region = self._region
        offset = region.read64(MigrationRegister.DATA_OFFSET)
        if offset < _REGISTERS_END or offset > region.size:
            raise RemoteProtocolError(
                f"the device wants its state at {offset:#x} of the migration region, which has room for it at "
                f"[{_REGISTERS_END:#x}, {region.size:#x})"
            )
        if offset + len(chunk) > region.size:
            raise StateError(
                f"a chunk of {len(chunk)} bytes of state; this device's migration region has room for "
                f"{region.size - offset}: it must be as large as that of the device it came from"
            )
        region.write_bytes(offset, chunk)
        region.write64(MigrationRegister.DATA_SIZE, len(chunk))

    def _start_log(self, page_size: int) -> None:
        del page_size  # asked for with every bitmap
        self._dirty_pages(DirtyPages(DirtyPagesFlags.START))

    def _stop_log(self) -> None:
        self._dirty_pages(DirtyPages(DirtyPagesFlags.STOP))

    def _report(self, mapping: GuestMapping, page_size: int) -> bytes:
        size = bitmap_size(mapping.size, page_size)
        if _BITMAP_HEAD + size > min(_MAX_REPLY, self._client.connection.offer.max_data_xfer_size):
            raise StateError(
                f"a mapping of {mapping.size:#x} bytes has a dirty bitmap of {size}; generation 1 moves {_MAX_REPLY} "
                "at once: map the memory in parts"
            )
        wanted = BitmapRange(mapping.iova, mapping.size, page_size, size)
        reply = self._dirty_pages(DirtyPages(DirtyPagesFlags.GET_BITMAP, wanted, _BITMAP_HEAD + size))
        if len(reply) != _BITMAP_HEAD + size or DirtyPages.decode(reply).wanted != wanted:
            raise RemoteProtocolError(
                f"GET_BITMAP of {wanted} was answered with {len(reply)} bytes for another range; the reply repeats the "
                f"request, and brings {size} bytes of bitmap"
            )
        return reply[_BITMAP_HEAD:]

    def _dirty_pages(self, message: DirtyPages) -> bytes:
        what = f"DIRTY_PAGES {message.operation.name}"
        room = 0 if message.wanted is None else message.argsz
        return self._client.connection.request(
            Command.DIRTY_PAGES, message.encode(), max_payload=room, request=what
        ).payload
