"""Migration: what a client makes of a device by setting its state, and the log of the pages it wrote.

The states, and the way from each to each, are ``vfio_user.protocol.migration``. Here is what each single step does, and
which commands are carried out in which state; both are tables.

Saving: on the way to STOP_COPY the device is stopped, and its state is made piece by piece while the client reads it.
In PRE_COPY it runs, and the memory behind its BARs can be read already; what has changed by then is sent again at the
end.

Restoring: what the client writes in RESUMING is collected, and put into effect by the step to STOP. If it is no state
of this device, that step fails, nothing has changed, and the device stays in RESUMING with nothing collected. When a
step fails in any other way nobody knows what state the device is in, and it says so: ERROR, until it is reset.

A client that goes takes its migration with it: the next one finds the device running.

Spec: "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from vfio_user.errors import DeviceError, DmaNotMapped, InvalidAccess, Unsupported
from vfio_user.memory import DirtyLog
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import (
    DeviceFeature,
    DirtyReport,
    DmaLoggingStart,
    Feature,
    FeatureFlags,
    MigrationFlags,
    MigrationStateData,
    MigrationSupport,
    bitmap_size,
)
from vfio_user.protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite, MigrationState, next_state
from vfio_user.protocol.payload import check_argsz

if TYPE_CHECKING:
    from vfio_user.server.pci_device import PciDevice
    from vfio_user.server.saved_state import StateWriter

__all__ = ["ALLOWED_COMMANDS", "Migration"]

log = logging.getLogger("vfio_user.server")

_ERROR = MigrationState.ERROR
_STOP = MigrationState.STOP
_RUNNING = MigrationState.RUNNING
_STOP_COPY = MigrationState.STOP_COPY
_RESUMING = MigrationState.RESUMING
_PRE_COPY = MigrationState.PRE_COPY

_REGION_ACCESSES = frozenset({Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE_MULTI})

#: The commands that are carried out in a state; where it is not listed, all. As libvfio-user has it: a stopped device
#: may be looked at, until its state is being read.
ALLOWED_COMMANDS: Mapping[MigrationState, frozenset[int]] = {
    _STOP: _REGION_ACCESSES | {Command.DEVICE_FEATURE},
    _STOP_COPY: frozenset({Command.DEVICE_FEATURE, Command.MIG_DATA_READ}),
}

#: Bytes of the largest dirty bitmap made: what QEMU says as ``max_bitmap_size``.
_MAX_BITMAP = 256 << 20


class _Reading:
    """The bytes a client is reading, out of pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = bytearray()

    def go_on_with(self, pieces: Iterator[bytes]) -> None:
        """Replaces the pieces nobody has asked for yet."""
        self._pieces = pieces

    def take(self, size: int) -> bytes:
        """The next bytes; fewer than ``size`` are the last."""
        left = self._left
        while len(left) < size and (piece := next(self._pieces, None)) is not None:
            left += piece
        taken = bytes(left[:size])
        del left[:size]
        return taken


class Migration:
    """The migration of one device.

    Args:
        device: a device whose class says ``migratable = True``.

    Attributes:
        state: the state it is in.

    Threading: session thread.
    """

    def __init__(self, device: PciDevice) -> None:
        self.state = _RUNNING
        self._device = device
        self._writer: StateWriter | None = None
        self._reading: _Reading | None = None
        self._received = bytearray()
        # Every step in ARCS has its entry; the value does what the step takes.
        self._steps: Mapping[tuple[MigrationState, MigrationState], Callable[[], None]] = {
            (_RUNNING, _STOP): self._stop,
            (_STOP, _RUNNING): device.release,
            (_STOP, _STOP_COPY): self._begin_saving,
            (_STOP_COPY, _STOP): self._end_saving,
            (_STOP, _RESUMING): self._received.clear,
            (_RESUMING, _STOP): self._restore,
            (_RUNNING, _PRE_COPY): self._begin_rehearsal,
            (_PRE_COPY, _RUNNING): self._end_saving,
            (_PRE_COPY, _STOP_COPY): self._end_rehearsal,
        }
        self._features: Mapping[Feature, Callable[[DeviceFeature, bytes], bytes]] = {
            Feature.MIGRATION: self._support,
            Feature.MIG_DEVICE_STATE: self._device_state,
            Feature.DMA_LOGGING_START: self._start_log,
            Feature.DMA_LOGGING_STOP: self._stop_log,
            Feature.DMA_LOGGING_REPORT: self._report,
        }

    # What happens to it.

    def check_command(self, command: int) -> None:
        """Checks that a command is carried out in the state the device is in.

        Raises:
            InvalidAccess: it is not.
        """
        allowed = ALLOWED_COMMANDS.get(self.state)
        if allowed is not None and command not in allowed:
            raise InvalidAccess(
                f"a device in {self.state.name} carries out only {', '.join(sorted(Command(c).name for c in allowed))}"
            )

    @property
    def refuses_accesses(self) -> bool:
        """Its regions cannot be read or written now."""
        allowed = ALLOWED_COMMANDS.get(self.state)
        return allowed is not None and Command.REGION_READ not in allowed

    def was_reset(self) -> None:
        """The device was reset: that is the way out of ERROR. Other states stay, as in libvfio-user."""
        if self.state == _ERROR:
            self._forget()
            self._device.deferred.forget()
            self.state = _RUNNING
            self._device.release()

    def abandon(self) -> None:
        """The client is gone: nobody wants the log or the state any more, and the device runs, unless it is broken."""
        self._device.dma.dirty_log = None
        if self.state not in (_RUNNING, _ERROR):
            self._forget()
            self._received.clear()
            try:
                self.go_to(_RUNNING)
            except Exception:
                log.exception("the device does not run again after its client went")

    def go_to(self, goal: MigrationState) -> None:
        """Takes the device to another state, step by step.

        Raises:
            InvalidAccess: there is no way there, or (out of RESUMING) what was written is no state of this device.
            Exception: what the device's code raised, whose state is ERROR now.
        """
        while self.state != goal:
            old = self.state
            new = next_state(old, goal)
            if new is None:
                hint = ": reset the device first" if old == _ERROR else ""
                raise InvalidAccess(f"no way leads from {old.name} to {goal.name}{hint}")
            self._step(old, new)

    def _step(self, old: MigrationState, new: MigrationState) -> None:
        try:
            self._steps[old, new]()
            self.state = new
            self._device.on_state(old, new)
        except _NotAState as exc:
            raise InvalidAccess(str(exc)) from exc
        except Exception:
            self._break()
            raise

    def _break(self) -> None:
        """Nobody knows any more what state the device is in."""
        self._forget()
        self._device.hold()
        self.state = _ERROR

    # The steps.

    def _stop(self) -> None:
        self._device.ioeventfds.answer()
        self._device.hold()

    def _begin_saving(self) -> None:
        self._writer = self._device.state.writer()
        self._reading = _Reading(self._writer.finish())

    def _begin_rehearsal(self) -> None:
        self._writer = self._device.state.writer()
        self._reading = _Reading(self._writer.rehearse())

    def _end_rehearsal(self) -> None:
        self._stop()
        assert self._reading is not None
        assert self._writer is not None
        self._reading.go_on_with(self._writer.finish())

    def _end_saving(self) -> None:
        self._writer = self._reading = None

    def _restore(self) -> None:
        received, self._received[:] = bytes(self._received), b""
        if not received:
            return  # called off before it began: the device is what it was
        try:
            load = self._device.check_state(received)
        except DeviceError as exc:
            raise _NotAState(str(exc)) from exc
        load()

    def _forget(self) -> None:
        self._received.clear()
        self._end_saving()

    # The commands.

    def feature(self, payload: bytes) -> bytes:
        """DEVICE_FEATURE: the reply's payload.

        Raises:
            RemoteProtocolError: there is no such feature or operation, or no room for the reply.
            DeviceError: it cannot be done now; its errno.
        """
        request = DeviceFeature.decode(payload)
        request.check_supported()
        if request.operation & FeatureFlags.PROBE:
            check_argsz(request.argsz, len(payload), "DEVICE_FEATURE")
            return payload
        feature = Feature(request.feature)
        if request.operation == FeatureFlags.SET:
            check_argsz(request.argsz, len(payload), "DEVICE_FEATURE")
            self._features[feature](request, payload[DeviceFeature.SIZE :])
            return payload
        data = self._features[feature](request, payload[DeviceFeature.SIZE :])
        return DeviceFeature(feature, request.operation, DeviceFeature.SIZE + len(data)).encode() + data

    def _support(self, request: DeviceFeature, _data: bytes) -> bytes:
        check_argsz(request.argsz, DeviceFeature.SIZE + MigrationSupport.SIZE, "feature MIGRATION")
        return MigrationSupport(MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY).encode()

    def _device_state(self, request: DeviceFeature, data: bytes) -> bytes:
        if request.operation == FeatureFlags.SET:
            self.go_to(MigrationStateData.decode(data).state)
            return b""
        check_argsz(request.argsz, DeviceFeature.SIZE + MigrationStateData.SIZE, "feature MIG_DEVICE_STATE")
        return MigrationStateData(self.state).encode()

    def _start_log(self, _request: DeviceFeature, data: bytes) -> bytes:
        # Everything is logged, whatever ranges are asked for: what nobody asks a report of costs an integer a chunk.
        page_size = DmaLoggingStart.decode(data).page_size
        dma = self._device.dma
        if dma.dirty_log is None:
            dma.dirty_log = DirtyLog(page_size)
        elif dma.dirty_log.page_size != page_size:
            raise InvalidAccess(
                f"dirty pages are logged by {dma.dirty_log.page_size} bytes already: stop that before logging by "
                f"{page_size}"
            )
        return b""

    def _stop_log(self, _request: DeviceFeature, _data: bytes) -> bytes:
        self._device.dma.dirty_log = None
        return b""

    def _report(self, request: DeviceFeature, data: bytes) -> bytes:
        wanted = DirtyReport.decode(data)
        dma = self._device.dma
        if dma.dirty_log is None:
            raise InvalidAccess("a report of dirty pages while none are logged: DMA_LOGGING_START comes first")
        dma.dirty_log.check_report(wanted.iova, wanted.length, wanted.page_size)
        size = bitmap_size(wanted.length, wanted.page_size)
        check_argsz(request.argsz, DeviceFeature.SIZE + DirtyReport.SIZE + size, "feature DMA_LOGGING_REPORT")
        if size > _MAX_BITMAP:
            raise InvalidAccess(f"a dirty bitmap of {size} bytes; at most {_MAX_BITMAP} are made: ask for a part")
        mapping = dma.lookup(wanted.iova)
        if mapping is None:
            raise DmaNotMapped(f"a report of dirty pages at {wanted.iova:#x}, where nothing is mapped")
        if mapping.iova != wanted.iova:
            raise Unsupported(f"a report of dirty pages from {wanted.iova:#x}, which is inside {mapping}")
        return wanted.encode() + dma.dirty_log.report(wanted.iova, wanted.length, wanted.page_size)

    def read(self, payload: bytes, limit: int) -> bytes:
        """MIG_DATA_READ: the reply's payload.

        Args:
            payload: the request's.
            limit: bytes of data the client takes in one message.

        Raises:
            RemoteProtocolError: the request is malformed.
            InvalidAccess: nothing is being saved, or more bytes are asked for than the client takes.
            DefinitionError: the device holds what cannot be saved; its state is ERROR now.
        """
        size = MigDataRead.decode(payload).size
        if self._reading is None:
            raise InvalidAccess(f"MIG_DATA_READ of a device in {self.state.name}: it needs STOP_COPY or PRE_COPY")
        if size > limit:
            raise InvalidAccess(f"MIG_DATA_READ of {size} bytes; the client takes {limit} (max_data_xfer_size)")
        try:
            return MigDataReadReply(self._reading.take(size)).encode()
        except Exception:
            self._break()
            raise

    def write(self, payload: bytes, limit: int) -> None:
        """MIG_DATA_WRITE.

        Args:
            payload: the request's.
            limit: bytes of data one message may have.

        Raises:
            RemoteProtocolError: the request is malformed.
            InvalidAccess: nothing is being restored, or there are more bytes than any state of this device has.
        """
        data = MigDataWrite.decode(payload).data
        if self.state != _RESUMING:
            raise InvalidAccess(f"MIG_DATA_WRITE to a device in {self.state.name}: it needs RESUMING")
        if len(data) > limit:
            raise InvalidAccess(f"MIG_DATA_WRITE of {len(data)} bytes; at most {limit} go in one message")
        if len(self._received) + len(data) > self._device.state.max_size:
            raise InvalidAccess(f"more than {self._device.state.max_size} bytes of state: this device has less")
        self._received += data


class _NotAState(Exception):
    """What was written in RESUMING is no state of the device, which is unchanged."""
