"""The admin queue: finds the handler of each command, and has those of the commands that belong to no family.

Spec: 5.1 (Abort), 5.2 (Asynchronous Event Request), 5.8 (Doorbell Buffer Config), 5.18 (Keep Alive).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.command import Command, CommandFailed, status_of
from vfio_user.devices.nvme.queues import SubmissionQueue
from vfio_user.hardware.nvme.entries import SUBMISSION_ENTRY_SIZE, SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["AdminCommands"]

_NOT_ABORTED = 1


class AdminCommands:
    """The commands of a controller's admin queue.

    Args:
        controller: whose.
        families: the handlers of all other commands, by opcode.
    """

    def __init__(self, controller: Nvme, *families: dict[int, Callable[[Command], int | None]]) -> None:
        self._controller = controller
        self._keep_alive: Any = None
        self.handlers: dict[int, Callable[[Command], int | None]] = {
            AdminOpcode.ABORT: self._abort,
            AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST: controller.events.request,
            AdminOpcode.KEEP_ALIVE: self._keep,
        }
        if controller.doorbells.takes_buffers:
            self.handlers[AdminOpcode.DOORBELL_BUFFER_CONFIG] = self._configure_doorbells
        for family in families:
            self.handlers.update(family)

    def take(self, queue: SubmissionQueue, entries: bytes) -> None:
        """Carries out a batch of commands: whole entries, in order."""
        for offset in range(0, len(entries), SUBMISSION_ENTRY_SIZE):
            if not queue.alive:  # there was a reset while memory was reached by messages
                return
            self.execute(queue, SubmissionEntry.unpack(entries, offset))

    def execute(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """Carries out one command; it ends now or later."""
        command = Command(queue, entry)
        try:
            if entry.cid in queue.in_flight:
                raise CommandFailed(Status.COMMAND_ID_CONFLICT, location=2)
            if entry.flags & 3:  # admin commands are never fused
                raise CommandFailed(Status.INVALID_FIELD, location=1)
            if entry.flags >> 6:  # and over PCIe they have PRPs
                raise CommandFailed(Status.INVALID_FIELD, location=1 | 6 << 8)
            handler = self.handlers.get(entry.opcode)
            if handler is None:
                raise CommandFailed(Status.INVALID_COMMAND_OPCODE, location=0)
            dw0 = handler(command)
        except (CommandFailed, OSError) as exc:
            self._controller.fail(queue, entry, status_of(exc, write=False))
        else:
            if dw0 is not None:
                queue.complete(entry.cid, 0, dw0)

    def _abort(self, command: Command) -> int:
        controller = self._controller
        sqid, cid = command.entry.cdw10 & 0xFFFF, command.entry.cdw10 >> 16
        queue = controller.submission_queues.get(sqid)
        target = None if queue is None else queue.in_flight.get(cid)
        if queue is None or target is None or target is command:
            return _NOT_ABORTED
        if not (controller.events.abort(target) or controller.jobs.abort(target)):
            return _NOT_ABORTED
        queue.abort(target, Status.COMMAND_ABORT_REQUESTED)
        controller.flush_soon(queue.completions)
        return 0

    def _configure_doorbells(self, command: Command) -> int:
        entry, page = command.entry, self._controller.data.page_size
        for location, address in ((24, entry.prp1), (32, entry.prp2)):
            if address % page:
                raise CommandFailed(Status.INVALID_FIELD, location=location)
        self._controller.doorbells.set_buffers(entry.prp1, entry.prp2)
        return 0

    # Keep alive.

    def _keep(self, command: Command) -> int:
        self.restart_keep_alive()
        return 0

    def restart_keep_alive(self) -> None:
        """The host is alive; if it says nothing for as long as it has set, the controller fails."""
        self.stop_keep_alive()
        milliseconds = self._controller.features.value(Feature.KEEP_ALIVE_TIMER)
        if milliseconds:
            # The granularity is 100 ms (KAS); to be late is allowed.
            self._keep_alive = self._controller.call_later(-(-milliseconds // 100) * 0.1, self._expire)

    def stop_keep_alive(self) -> None:
        """The controller was reset."""
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            self._keep_alive = None

    def _expire(self) -> None:
        self._controller.life.fail("the host has not kept it alive")
