"""The first migration protocol: states and data by the registers of region 9, the log by DIRTY_PAGES.

``vfio_user.protocol.migration_region`` says how the registers are used. Behind them lies the window, memory that a
client may map; a state that is larger goes through it in several rounds.

A client that was told of this protocol is not served the other. It is offered only where somebody asks for it
(``Server(migration="v1")``), since it makes a tenth region, and clients of today insist on nine.

Spec: vfio-user 0.9.1 "VFIO device migration info", "VFIO_USER_DIRTY_PAGES".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from vfio_user.errors import InvalidAccess, RemoteProtocolError
from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.protocol.dirty_pages import DirtyPages, DirtyPagesFlags
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.migration_region import MIGRATION_REGION_TYPE, TRANSITIONS, DeviceState, MigrationRegister
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import PAGE_SIZE, Region, SharedMemory
from vfio_user.server.migration import REGION_ACCESSES, Migration, Saving

if TYPE_CHECKING:
    from vfio_user.server.commands import Limits
    from vfio_user.server.pci_device import PciDevice

__all__ = ["DATA_OFFSET", "WINDOW_SIZE", "MigrationRegion", "RegionMigration"]

#: Where the window is in the region: on a page of its own, to be mapped.
DATA_OFFSET = PAGE_SIZE

#: Bytes of the window: as many as a message carries.
WINDOW_SIZE = 1 << 20

#: The state the device is in, as either protocol has it.
_STATES: Mapping[DeviceState, MigrationState] = {
    DeviceState.STOPPED: MigrationState.STOP,
    DeviceState.RUNNING: MigrationState.RUNNING,
    DeviceState.STOP_AND_COPY: MigrationState.STOP_COPY,
    DeviceState.PRE_COPY: MigrationState.PRE_COPY,
    DeviceState.RESUMING: MigrationState.RESUMING,
    DeviceState.ERROR: MigrationState.ERROR,
}
_DEVICE_STATES: Mapping[MigrationState, DeviceState] = {state: device_state for device_state, state in _STATES.items()}

#: What a REGION_WRITE of device_state begins with, and its bytes.
_STATE_ACCESS = ACCESS.pack(MigrationRegister.DEVICE_STATE, RegionIndex.MIGRATION, 4)
_STATE_SIZE = ACCESS.size + 4

_REGISTERS = {(int(register), register.width): register for register in MigrationRegister}


class RegionMigration(Migration):
    """The migration of one device by the first protocol; see ``Migration``.

    A stopped device may be looked at, until its state is being read: then the migration region alone is.

    Attributes:
        region: the migration region.

    Raises:
        OSError: no memory file can be made for the window.
    """

    allowed: ClassVar[Mapping[MigrationState, frozenset[int]]] = {
        MigrationState.STOP: REGION_ACCESSES | {Command.DIRTY_PAGES},
        MigrationState.STOP_COPY: frozenset({Command.REGION_READ, Command.REGION_WRITE, Command.DIRTY_PAGES}),
    }

    def __init__(self, device: PciDevice) -> None:
        super().__init__(device)
        self.region = MigrationRegion(self)

    def check_command(self, command: int, payload: bytes) -> None:
        """See ``Migration.check_command``."""
        super().check_command(command, payload)
        if self.state == MigrationState.STOP_COPY and command != Command.DIRTY_PAGES and len(payload) >= ACCESS.size:
            index = ACCESS.unpack_from(payload)[1]
            if index != RegionIndex.MIGRATION:
                raise InvalidAccess(f"an access of region {index} while the device's state is being read")

    def goal_of(self, command: int, payload: bytes) -> MigrationState | None:
        """See ``Migration.goal_of``."""
        if command != Command.REGION_WRITE or payload[: ACCESS.size] != _STATE_ACCESS or len(payload) != _STATE_SIZE:
            return None
        value = int.from_bytes(payload[ACCESS.size :], "little")
        is_allowed = (_DEVICE_STATES[self.state], value) in TRANSITIONS
        return _STATES[DeviceState(value)] if is_allowed else None

    def set_device_state(self, value: int) -> None:
        """Takes the device to the state a client wrote.

        Raises:
            InvalidAccess: it is none, or none the device can go to from here.
            Exception: see ``go_to``.
        """
        old = _DEVICE_STATES[self.state]
        if value == old:
            return
        if (old, value) not in TRANSITIONS:
            goals = (
                ", ".join(f"{new.name} ({new})" for new in DeviceState if (old, new) in TRANSITIONS)
                or "nowhere before a reset"
            )
            raise InvalidAccess(f"device_state: {value:#x} was written; a device in {old.name} can go to: {goals}")
        if value == DeviceState.ERROR:
            self._break()
        else:
            self.go_to(_STATES[DeviceState(value)])

    def _step(self, old: MigrationState, new: MigrationState) -> None:
        self.region.end_round()
        super()._step(old, new)

    @property
    def operations(self) -> Mapping[int, Callable[[bytes, Limits], bytes]]:
        """See ``Migration.operations``."""
        return {Command.DIRTY_PAGES: self._dirty_pages}

    def _dirty_pages(self, payload: bytes, limits: Limits) -> bytes:
        request = DirtyPages.decode(payload)
        wanted = request.wanted
        if request.operation == DirtyPagesFlags.START:
            self.start_log(limits.page_size)
        elif request.operation == DirtyPagesFlags.STOP:
            self.stop_log()
        if wanted is None:
            return b""
        if wanted.page_size != limits.page_size:
            raise InvalidAccess(
                f"DIRTY_PAGES: a bitmap of pages of {wanted.page_size} bytes; {limits.page_size} was agreed on"
            )

        def check_size(size: int) -> None:
            if wanted.bitmap_size != size:
                raise RemoteProtocolError(
                    f"DIRTY_PAGES asks for {wanted.bitmap_size} bytes of bitmap; {wanted.length:#x} bytes in pages of "
                    f"{wanted.page_size} have {bitmap_size(wanted.length, wanted.page_size)}"
                )

        needed = DirtyPages.REPORT_SIZE + wanted.bitmap_size
        # A client with less room asks again: so that nothing is lost, the pages stay in the log.
        keep = request.argsz < needed
        bitmap = self.report(wanted.iova, wanted.length, wanted.page_size, check_size, keep=keep)
        reply = DirtyPages(request.operation, wanted, needed).encode() + bitmap
        return reply[: request.argsz] if keep else reply


class MigrationRegion(Region):
    """Region 9: the registers, and the window.

    Args:
        migration: what they are the registers of.

    Attributes:
        window: the bytes of the window.

    Threading: session thread; the client may write to the window at any moment.
    """

    size = DATA_OFFSET + WINDOW_SIZE
    region_type = MIGRATION_REGION_TYPE

    def __init__(self, migration: RegionMigration) -> None:
        self._migration = migration
        shared = self._shared = SharedMemory(self.size, [(DATA_OFFSET, WINDOW_SIZE)])
        self.mappable_areas, self.mappable_fd = shared.areas, shared.fd
        self.window = shared.views[DATA_OFFSET]
        #: The data of the round that ``pending_bytes`` began, and whether they are in the window.
        self._round: bytes | None = None
        self._is_prepared = False

    def end_round(self) -> None:
        """The device is about to change its state: what is not in the window yet is for another round."""
        if self._round is not None and not self._is_prepared and self._migration.saving is not None:
            self._migration.saving.put_back(self._round)
        self._round, self._is_prepared = None, False

    # Reading.

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        return int.from_bytes(self.read_bytes(offset, size), "little")

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``."""
        if offset >= DATA_OFFSET:
            return self._read_data(offset - DATA_OFFSET, count)
        register = _register(offset, count, "read")
        if register == MigrationRegister.DEVICE_STATE:
            value = int(_DEVICE_STATES[self._migration.state])
        elif register == MigrationRegister.PENDING_BYTES:
            value = self._begin_round()
        elif register == MigrationRegister.DATA_OFFSET:
            if self._migration.state != MigrationState.RESUMING:
                self._prepare(register)
            value = DATA_OFFSET
        elif register == MigrationRegister.DATA_SIZE:
            value = self._prepare(register)
        else:
            value = 0
        return value.to_bytes(register.width, "little")

    def _begin_round(self) -> int:
        """Returns the bytes that are left to read, this round's included."""
        saving = self._saving(MigrationRegister.PENDING_BYTES)
        if self._round is None or self._is_prepared:
            self._is_prepared = False
            self._round = self._migration.take(WINDOW_SIZE) or None
        return 0 if self._round is None else len(self._round) + saving.remaining

    def _prepare(self, register: MigrationRegister) -> int:
        """Fills the window; returns how far."""
        self._saving(register)
        if self._round is None:
            raise InvalidAccess(f"{register.name.lower()} was read, and no data are ready: read pending_bytes first")
        if not self._is_prepared:
            self.window[: len(self._round)] = self._round
            self._is_prepared = True
        return len(self._round)

    def _read_data(self, at: int, count: int) -> bytes:
        is_there = self._round is not None and self._is_prepared and self._migration.saving is not None
        length = len(self._round or b"") if is_there else 0
        if at + count > length:
            raise InvalidAccess(
                f"a read of [{at:#x}, {at + count:#x}) of the migration data, of which {length:#x} are there now"
            )
        return bytes(self.window[at : at + count])

    def _saving(self, register: MigrationRegister) -> Saving:
        saving = self._migration.saving
        if saving is None:
            name = _DEVICE_STATES[self._migration.state].name
            raise InvalidAccess(f"{register.name.lower()} was read in {name}: it needs PRE_COPY or STOP_AND_COPY")
        return saving

    # Writing.

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        self.write_bytes(offset, value.to_bytes(size, "little"))

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``."""
        if offset >= DATA_OFFSET:
            self._check_resuming("migration data were")
            self.window[offset - DATA_OFFSET : offset - DATA_OFFSET + len(data)] = data
            return
        register = _register(offset, len(data), "write")
        value = int.from_bytes(data, "little")
        if register == MigrationRegister.DEVICE_STATE:
            self._migration.set_device_state(value)
        elif register == MigrationRegister.DATA_SIZE:
            self._take_in(value)
        elif register != MigrationRegister.RESERVED:
            raise InvalidAccess(f"{register.name.lower()} was written: it can only be read")

    def _take_in(self, size: int) -> None:
        self._check_resuming("data_size was")
        if size > WINDOW_SIZE:
            raise InvalidAccess(f"data_size: {size} bytes were written, and the window has {WINDOW_SIZE}")
        # Once and for all: a client that has mapped the window may still be writing there.
        self._migration.put(bytes(self.window[:size]))

    def _check_resuming(self, what: str) -> None:
        if self._migration.state != MigrationState.RESUMING:
            raise InvalidAccess(f"{what} written in {_DEVICE_STATES[self._migration.state].name}: it needs RESUMING")


def _register(offset: int, count: int, what: str) -> MigrationRegister:
    """The register an access is of.

    Raises:
        InvalidAccess: none is there, or it has another width.
    """
    register = _REGISTERS.get((offset, count))
    if register is not None:
        return register
    raise InvalidAccess(
        f"a {what} of {count} bytes at {offset:#x} of the migration region, which is none of its registers (of 4 bytes "
        f"at 0, of 8 bytes at 8, 16 and 24), nor the data at {DATA_OFFSET:#x}"
    )
