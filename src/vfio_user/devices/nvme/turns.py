"""Turns of work: a batch of each queue that was rung is fetched, carried out, and what has ended is shown to the host.

A turn (``work``) gives each batch to the engine of its queue, then shows the completions, and interrupts once a queue.
It is put off (``Device.call_soon``) by whoever has found something to do. While the controller is to be quiet, before
it is stopped, there are no turns: what has ended meanwhile waits with its queue, and is shown, or saved, with that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.errors import DeviceError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.status import MORE, Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["Turns"]

#: Entries fetched from one queue before the others have their turn.
_BATCH = 128


class Turns:
    """The turns of work of a controller.

    Args:
        controller: whose.

    Attributes:
        is_due: a turn will come, or is under way.
        are_paused: there are none, until ``resume``.
        is_working: one is under way. A reset can come in its middle, where the guest's memory is reached by messages.

    Threading: session thread.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._rung: list[SubmissionQueue] = []
        self._dirty: list[CompletionQueue] = []
        self._stalled: list[SubmissionQueue] = []
        self.is_due = False
        self.are_paused = False
        self.is_working = False
        self._was_reset = False
        self._put_off: list[Callable[[], None]] = []

    # What there is to do.

    def fetch_soon(self, queue: SubmissionQueue) -> None:
        """There may be entries in a submission queue."""
        if not queue.is_rung:
            queue.is_rung = True
            self._rung.append(queue)
            if not self.is_due:
                self.is_due = True
                self._controller.call_soon(self.work)

    def flush_soon(self, queue: CompletionQueue) -> None:
        """The host is to be shown what is ready in a completion queue, and interrupted."""
        if not queue.is_dirty:
            queue.is_dirty = True
            self._dirty.append(queue)
            if not self.is_due:
                self.is_due = True
                self._controller.call_soon(self.work)

    def taken(self, queue: CompletionQueue) -> None:
        """The host has taken completions: there is room for more."""
        if queue.ready:
            self.flush_soon(queue)
        if self._controller.interrupts.intx_level:
            self._controller.vectors.update_pin()

    def clear(self) -> None:
        """All queues are gone."""
        self._rung.clear()
        self._dirty.clear()
        self._stalled.clear()
        self._was_reset = self.is_working

    def pause(self) -> None:
        """No turn is to come until ``resume``."""
        self.are_paused = True

    def put_off(self, callback: Callable[[], None]) -> None:
        """Has something done when turns come again."""
        self._put_off.append(callback)

    def resume(self) -> None:
        """Turns come again. Idempotent."""
        if self.are_paused:
            self.are_paused = False
            put_off, self._put_off = self._put_off, []
            for callback in put_off:
                callback()
            self.is_due = True
            self._controller.call_soon(self.work)

    # A turn.

    def work(self) -> None:
        """One turn; see the module."""
        self.is_due = False
        if self.are_paused:
            return
        self.is_working = True
        try:
            rung, self._rung = self._rung, []
            for queue in rung:
                queue.is_rung = False
                if queue.alive:
                    self._fetch(queue)
            dirty, self._dirty = self._dirty, []
            for completions in dirty:
                completions.is_dirty = False
                if completions.alive:
                    self._flush(completions)
        except DeviceError as exc:
            if not self._was_reset:
                self._controller.life.fail(f"a queue cannot be reached: {exc}")
        finally:
            self.is_working = False
        if self._was_reset:
            self._was_reset = False
            self._controller.life.work_ended()

    def _fetch(self, queue: SubmissionQueue) -> None:
        controller = self._controller
        doorbells = controller.doorbells
        if doorbells.are_followed:
            doorbells.follow_tail(queue)
        # Admin commands hold no data, and may be what ends those that do.
        if not queue.has_room() or (queue.qid and not controller.jobs.has_room):
            self._stalled.append(queue)
            return
        entries = queue.ring.fetch(_BATCH)
        if entries and queue.alive:
            engine = controller.engine if queue.qid else controller.admin_engine
            engine.take(queue, entries)
            if queue.completions.ready and not queue.completions.is_dirty:
                queue.completions.is_dirty = True
                self._dirty.append(queue.completions)
        if doorbells.are_followed and not len(queue.ring):
            doorbells.rest_tail(queue)
        if len(queue.ring):
            self.fetch_soon(queue)

    def _flush(self, queue: CompletionQueue) -> None:
        controller = self._controller
        doorbells = controller.doorbells
        if doorbells.are_followed:
            doorbells.follow_head(queue)
        count = queue.flush()
        if doorbells.are_followed and (queue.ready or not controller.function.msix_enabled):
            doorbells.rest_head(queue)
            count += queue.flush()
        if count:
            controller.posted(queue, count)
        if not queue.ready and self._stalled:
            self.go_on()

    def go_on(self) -> None:
        """Queues that had to wait may have room now."""
        stalled, self._stalled = self._stalled, []
        for queue in stalled:
            if queue.alive:
                self.fetch_soon(queue)

    # The ends of commands.

    def end(self, command: Command, failure: CommandFailed | None, dw0: int) -> None:
        """A command whose job is over ends."""
        queue, cid = command.queue, command.entry.cid
        queue.in_flight.pop(cid, None)
        if failure is not None:
            self.fail(queue, command.entry, failure)
        else:
            queue.complete(cid, 0, dw0)
        if not queue.alive:
            return
        self.flush_soon(queue.completions)
        self._controller.doorbells.expect()
        if self._stalled:
            self.go_on()
        closing = queue.closing
        if closing is not None and not queue.in_flight:
            self._controller.queue_commands.finish_deletion(queue)
            closing.queue.in_flight.pop(closing.entry.cid, None)
            closing.queue.complete(closing.entry.cid, 0)
            self.flush_soon(closing.queue.completions)

    def fail(self, queue: SubmissionQueue, entry: SubmissionEntry, failure: CommandFailed) -> None:
        """A command ends with an error, which the error log remembers."""
        if not queue.alive:
            return
        status = failure.field
        if failure.status not in (Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED):
            status |= MORE
            self._controller.health.add_error(
                sqid=queue.qid,
                cid=entry.cid,
                status_field=status << 1,
                parameter_error_location=failure.location,
                lba=failure.lba,
                nsid=entry.nsid,
            )
        queue.complete(entry.cid, status, failure.dw0)
