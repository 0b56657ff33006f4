"""Migration: what a client makes of a device by setting its state, and the log of the pages it wrote.

There are two protocols for it, and one device. Here is what they share: the states, what each step between them does,
the bytes that are saved and restored, the log. ``migration_features`` and ``migration_region`` put the commands of the
second and of the first protocol on top. The states, and the way from each to each, are those of the second,
``vfio_user.protocol.migration``, for it has all that the first has.

Saving: on the way to STOP_COPY the device is stopped, and its state is made piece by piece while the client reads it.
In PRE_COPY it runs, and the memory behind its BARs can be read already, as can chunks of the device's own; what has
changed by then is sent again at the end.

Restoring: what the client writes in RESUMING is collected, and put into effect by the step to STOP. If it is no state
of this device, that step fails, nothing has changed, and the device stays in RESUMING with nothing collected. When a
step fails in any other way nobody knows what state the device is in, and it says so: ERROR, until it is reset.

A client that goes takes its migration with it: the next one finds the device running.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from vfio_user.errors import DeviceError, DmaNotMapped, InvalidAccess, Unsupported
from vfio_user.memory import DirtyLog
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.migration import MigrationState, next_state

if TYPE_CHECKING:
    from vfio_user.server.commands import Limits
    from vfio_user.server.pci_device import PciDevice
    from vfio_user.server.saved_state import StateWriter

__all__ = ["REGION_ACCESSES", "Migration", "Saving"]

log = logging.getLogger("vfio_user.server")

_ERROR = MigrationState.ERROR
_STOP = MigrationState.STOP
_RUNNING = MigrationState.RUNNING
_STOP_COPY = MigrationState.STOP_COPY
_RESUMING = MigrationState.RESUMING
_PRE_COPY = MigrationState.PRE_COPY

_RUNS = (_RUNNING, _PRE_COPY)

#: What a stopped device is looked at with, in both protocols, as libvfio-user has it.
REGION_ACCESSES = frozenset({Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE_MULTI})

#: Bytes of the largest dirty bitmap made: what QEMU says as ``max_bitmap_size``.
_MAX_BITMAP = 256 << 20


class Saving:
    """What a client is reading: the bytes of a state, out of pieces of any size.

    Args:
        writer: makes the pieces.
        pieces: those of the moment; an empty one says that there are no more now, but may be later.
    """

    def __init__(self, writer: StateWriter, pieces: Iterator[bytes]) -> None:
        self._writer = writer
        self._pieces = pieces
        self._left = bytearray()

    def stopped(self) -> None:
        """The device runs no more: what nobody has asked for yet is made anew, and then comes the end."""
        self._pieces = self._writer.finish()

    def take(self, size: int) -> bytes:
        """The next bytes; fewer than ``size`` are the last, or the last for now."""
        left = self._left
        while len(left) < size and (piece := next(self._pieces, b"")):
            left += piece
        taken = bytes(left[:size])
        del left[:size]
        return taken

    def put_back(self, data: bytes) -> None:
        """Takes back what was taken last, and not read."""
        self._left[:0] = data

    @property
    def remaining(self) -> int:
        """Bytes that follow, at most, as far as is known before they are made."""
        return len(self._left) + self._writer.remaining


class Migration(ABC):
    """The migration of one device, by either protocol.

    Args:
        device: a device whose class says ``migratable = True``.

    Attributes:
        allowed: the commands that are carried out in a state; where it is not listed, all.
        state: the state it is in.
        saving: what the client reads, in PRE_COPY and STOP_COPY; None in other states.

    Threading: session thread.
    """

    allowed: ClassVar[Mapping[MigrationState, frozenset[int]]]

    def __init__(self, device: PciDevice) -> None:
        self.state = _RUNNING
        self.saving: Saving | None = None
        self._device = device
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

    # What happens to it.

    def check_command(self, command: int, payload: bytes) -> None:
        """Checks that a command is carried out in the state the device is in.

        Raises:
            InvalidAccess: it is not.
        """
        allowed = self.allowed.get(self.state)
        if allowed is not None and command not in allowed:
            raise InvalidAccess(
                f"a device in {self.state.name} carries out only {', '.join(sorted(Command(c).name for c in allowed))}"
            )

    @property
    @abstractmethod
    def operations(self) -> Mapping[int, Callable[[bytes, Limits], bytes]]:
        """What carries out each command of this protocol: payload and limits in, the reply's payload out."""

    def would_stop(self, command: int, payload: bytes) -> bool:
        """Whether a command takes the device from where it runs to where it does not.

        Raises:
            RemoteProtocolError: it is malformed.
        """
        goal = self.goal_of(command, payload)
        state: MigrationState | None = self.state
        while goal is not None and state is not None and state != goal:
            old, state = state, next_state(state, goal)
            if old in _RUNS and state not in _RUNS and state is not None:
                return True
        return False

    @abstractmethod
    def goal_of(self, command: int, payload: bytes) -> MigrationState | None:
        """The state a command sets; None if it sets none."""

    @property
    def refuses_accesses(self) -> bool:
        """The device's regions cannot be read or written now: it is being saved."""
        return self.state == _STOP_COPY

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
        self._device.answer_sockets()
        self._device.hold()

    def _begin_saving(self) -> None:
        writer = self._device.state.writer()
        self.saving = Saving(writer, writer.finish())

    def _begin_rehearsal(self) -> None:
        writer = self._device.state.writer()
        self.saving = Saving(writer, writer.rehearse())

    def _end_rehearsal(self) -> None:
        self._stop()
        assert self.saving is not None
        self.saving.stopped()

    def _end_saving(self) -> None:
        self.saving = None

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

    # The data, and the log.

    def take(self, size: int) -> bytes:
        """The next bytes of the state that is being saved.

        Raises:
            InvalidAccess: nothing is being saved.
            DefinitionError: the device holds what cannot be saved; its state is ERROR now.
        """
        if self.saving is None:
            raise InvalidAccess(f"a device in {self.state.name} has no state to read: it needs STOP_COPY or PRE_COPY")
        try:
            return self.saving.take(size)
        except Exception:
            self._break()
            raise

    def put(self, data: bytes) -> None:
        """Collects the next bytes of the state that is being restored.

        Raises:
            InvalidAccess: nothing is being restored, or there are more bytes than any state of this device has.
        """
        if self.state != _RESUMING:
            raise InvalidAccess(f"a device in {self.state.name} takes no state: it needs RESUMING")
        if len(self._received) + len(data) > self._device.state.max_size:
            raise InvalidAccess(f"more than {self._device.state.max_size} bytes of state: this device has less")
        self._received += data

    def start_log(self, page_size: int) -> None:
        """Begins to log what the device writes, everywhere.

        Raises:
            InvalidAccess: the page size is impossible, or pages of another are logged already.
        """
        dma = self._device.dma
        if dma.dirty_log is None:
            dma.dirty_log = DirtyLog(page_size)
        elif dma.dirty_log.page_size != page_size:
            raise InvalidAccess(
                f"dirty pages are logged by {dma.dirty_log.page_size} bytes already: stop that before logging by "
                f"{page_size}"
            )

    def stop_log(self) -> None:
        """Ends it; nothing happens if there was none."""
        self._device.dma.dirty_log = None

    def report(
        self, iova: int, length: int, page_size: int, check_room: Callable[[int], None], *, keep: bool = False
    ) -> bytes:
        """Takes the bitmap of a range out of the log.

        Args:
            iova: where the range begins.
            length: bytes.
            page_size: bytes a bit stands for.
            check_room: is told the size of the bitmap before anything is taken out; raises what it does not like.
            keep: nothing is taken out.

        Raises:
            InvalidAccess: there is no log, or it cannot tell that.
            Unsupported: the range begins inside a mapping.
            DmaNotMapped: nothing is mapped there.
        """
        dma = self._device.dma
        if dma.dirty_log is None:
            raise InvalidAccess("a report of dirty pages while none are logged: start logging first")
        dma.dirty_log.check_report(iova, length, page_size)
        size = bitmap_size(length, page_size)
        check_room(size)
        if size > _MAX_BITMAP:
            raise InvalidAccess(f"a dirty bitmap of {size} bytes; at most {_MAX_BITMAP} are made: ask for a part")
        mapping = dma.lookup(iova)
        if mapping is None:
            raise DmaNotMapped(f"a report of dirty pages at {iova:#x}, where nothing is mapped")
        if mapping.iova != iova:
            raise Unsupported(f"a report of dirty pages from {iova:#x}, which is inside {mapping}")
        take = dma.dirty_log.peek if keep else dma.dirty_log.report
        return take(iova, length, page_size)


class _NotAState(Exception):
    """What was written in RESUMING is no state of the device, which is unchanged."""
