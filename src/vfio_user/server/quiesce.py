"""Quiet: a device that works on its own ends what it has begun before its client takes away what that needs.

Theory of operation
-------------------

A device with reads of a disk under way cannot lose the memory they go to, be reset, or be stopped to be migrated, from
one moment to the next. So before DMA_UNMAP, DEVICE_RESET and a change of the migration state that stops it are carried
out, ``Device.on_quiesce`` is called. Who has nothing under way does nothing there. Who has, begins nothing new, says so
with ``Quiesce.wait``, and calls ``Quiesce.done`` when the last of it has ended. The command is carried out then, its
reply goes, and ``Device.on_unquiesce`` lets the device go on; if it was stopped, not before it runs again.

**What the client sends meanwhile waits**, all of it, in the order it came: a client relies on commands being carried
out in that order, and posted writes behind a DMA_UNMAP may be about other memory in its place. What is the server's own
goes on: timers, watched descriptors, replies to its DMA messages, other devices. When too much waits, the client is not
read from any more.

**It cannot take for ever.** After a second the log says what is waited for, and after ``Device.quiesce_timeout`` the
command fails with ETIMEDOUT, not carried out: QEMU gives a server five seconds, and a reply that comes after them, if
it has a payload, wrecks the connection.

A client that is gone takes its command with it: ``done`` has no effect any more, and the device goes on.

Not asked for quiet: function level resets and power states, which software does through configuration space and the
specification of PCI lets end whatever is under way; and the end of a connection, after which there is nothing to save.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.errors import DeviceError, RemoteProtocolError
from vfio_user.protocol.constants import Command, DmaUnmapFlags
from vfio_user.protocol.dma import DmaUnmap
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.header import Header

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.loop import Timer
    from vfio_user.server.session import Session

__all__ = ["MAY_NEED_QUIET", "Quiesce", "QuiesceReason", "Quiescence"]

log = logging.getLogger("vfio_user.server")

#: The commands a device may have to be quiet for. (A REGION_WRITE may be of the migration region.)
MAY_NEED_QUIET = frozenset({Command.DMA_UNMAP, Command.DEVICE_RESET, Command.DEVICE_FEATURE, Command.REGION_WRITE})

#: Seconds after which the log says what is waited for.
_PATIENCE = 1.0


class QuiesceReason(Enum):
    """What a device is to be quiet for."""

    UNMAP = "DMA_UNMAP"
    RESET = "DEVICE_RESET"
    STOP = "stop, to be migrated"


class Quiesce:
    """One call for quiet; see the module.

    Attributes:
        reason: what for.
        iova: with UNMAP, where the memory begins that goes.
        length: its bytes; with UNMAP of everything, 2**64.
        is_over: the command was carried out, or will never be.

    Threading: ``done`` from any thread; everything else on the device's.
    """

    def __init__(self, reason: QuiesceReason, iova: int = 0, length: int = 0) -> None:
        self.reason = reason
        self.iova = iova
        self.length = length
        self.is_over = False
        self._waits_for: str | Callable[[], str] | None = None
        self._is_done = False
        self._on_done: Callable[[], None] | None = None

    def wait(self, what_for: str | Callable[[], str]) -> None:
        """Says, in ``on_quiesce``, that the device is not quiet yet.

        Args:
            what_for: what is under way, for the log; a function is asked when it is needed: ``"3 reads"``.
        """
        self._waits_for = what_for

    def done(self) -> None:
        """The device is quiet. Idempotent, and without effect when it is too late. Any thread."""
        self._is_done = True
        if self._on_done is not None:
            self._on_done()

    @property
    def is_awaited(self) -> bool:
        """The device has said that it is not quiet yet, and nothing more."""
        return self._waits_for is not None and not self._is_done

    @property
    def what_for(self) -> str:
        """What is under way, as the device says it."""
        waits_for = self._waits_for
        text: str = waits_for() if callable(waits_for) else waits_for or ""
        return text

    def __str__(self) -> str:
        if self.reason is QuiesceReason.UNMAP:
            return f"{self.reason.value} of [{self.iova:#x}, {self.iova + self.length:#x})"
        return str(self.reason.value)


class Kept(NamedTuple):
    """A command that waits, with its descriptors, and when it came."""

    quiesce: Quiesce
    header: Header
    payload: bytes
    fds: list[int]
    began: float
    timer: Timer


class Quiescence:
    """The quiet of one session's device.

    Args:
        session: carries out what waited.

    Attributes:
        kept: the command that waits; None when none does. While one does, nothing else of the client's is carried out.

    Ownership: ``close`` it with the session.

    Threading: session thread.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.kept: Kept | None = None

    @property
    def client_waits(self) -> bool:
        """A command waits, and the client for its reply."""
        return self.kept is not None and not self.kept.header.no_reply

    @property
    def is_due(self) -> bool:
        """What waited can be carried out: call ``finish``."""
        return self.kept is not None and (self.kept.quiesce.is_over or not self.kept.quiesce.is_awaited)

    def keeps(self, header: Header, payload: bytes, fds: list[int], began: float) -> bool:
        """Whether a command is kept back until the device is quiet; if so, takes its descriptors.

        Raises:
            Exception: what ``on_quiesce`` raised; the device is taken to be as it was.
        """
        device = self._session.device
        if device.is_quiet:
            return False
        quiesce = _wanted(device, header.command, payload)
        if quiesce is None:
            return False
        device.is_quiet = True
        quiesce._on_done = self._done
        try:
            device.on_quiesce(quiesce)
        except BaseException:
            device.is_quiet = False
            raise
        if not quiesce.is_awaited:
            quiesce.is_over = True
            return False
        timeout = device.quiesce_timeout
        patience = _PATIENCE if timeout is None else min(_PATIENCE, timeout)
        timer = device.loop.call_later(patience, self._remind, quiesce, patience)
        self.kept = Kept(quiesce, header, payload, fds.copy(), began, timer)
        fds.clear()
        return True

    def _done(self) -> None:
        # By way of the loop: the device's code that says so is to return first, and may run on another thread.
        self._session.device.loop.call_soon(self._session.go_on_soon)

    def _remind(self, quiesce: Quiesce, waited: float) -> None:
        kept, session = self.kept, self._session
        if kept is None or kept.quiesce is not quiesce or not quiesce.is_awaited:
            return
        device = session.device
        name = type(device).__name__
        timeout = device.quiesce_timeout
        if timeout is not None and waited >= timeout:
            quiesce.is_over = True
            session.go_on_soon()
            return
        log.warning(
            "%s: %s has waited %.1f s for the %s to be quiet: %s", session.peer, quiesce, waited, name, quiesce.what_for
        )
        if timeout is not None:
            left = timeout - waited
            self.kept = kept._replace(timer=device.loop.call_later(left, self._remind, quiesce, timeout))

    def finish(self) -> None:
        """Carries out what waited, or refuses it if its time is over, and lets the device go on."""
        kept = self.kept
        assert kept is not None
        self.kept = None
        kept.timer.cancel()
        quiesce = kept.quiesce
        failure = None
        if quiesce.is_awaited:
            failure = DeviceError(
                errno.ETIMEDOUT,
                f"{quiesce}: not carried out, as the {type(self._session.device).__name__} was not quiet within "
                f"{self._session.device.quiesce_timeout:g} seconds: it waits for {quiesce.what_for}. Call "
                "Quiesce.done() when that has ended, or allow more (quiesce_timeout; QEMU waits 5 seconds)",
            )
        quiesce.is_over = True
        try:
            self._session.answer(kept.header, kept.payload, kept.fds, kept.began, failure=failure)
        finally:
            close_fds(kept.fds)

    def close(self) -> None:
        """The client is gone, and with it what waited."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.quiesce.is_over = True
            kept.timer.cancel()
            close_fds(kept.fds)


def _wanted(device: Device, command: int, payload: bytes) -> Quiesce | None:
    """What a command needs quiet for; None if it needs none, or is one that is going to be refused anyway."""
    try:
        if command == Command.DEVICE_RESET:
            return Quiesce(QuiesceReason.RESET)
        if command == Command.DMA_UNMAP:
            return _unmap(device, DmaUnmap.decode(payload))
        if device.migratable and command in (Command.DEVICE_FEATURE, Command.REGION_WRITE):
            migration = device.migration
            if migration is None and command == Command.DEVICE_FEATURE:
                migration = device.prepare_migration()
            if migration is not None and migration.would_stop(command, payload):
                return Quiesce(QuiesceReason.STOP)
    except (RemoteProtocolError, DeviceError):
        pass
    return None


def _unmap(device: Device, request: DmaUnmap) -> Quiesce | None:
    if request.flags == DmaUnmapFlags.ALL:
        return Quiesce(QuiesceReason.UNMAP, 0, 1 << 64) if len(device.dma) else None
    start, end = request.iova, request.iova + request.size
    # Nearly always it is exactly one mapping.
    if device.dma.lookup(start) is None and not any(start <= mapping.iova < end for mapping in device.dma):
        return None
    return Quiesce(QuiesceReason.UNMAP, start, request.size)
