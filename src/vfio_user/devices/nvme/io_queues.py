"""Creating and deleting I/O queues. Spec: 5.4 to 5.7."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["IoQueues"]

_CONTIGUOUS, _INTERRUPTS = 1 << 0, 1 << 1


class IoQueues:
    """The commands that make and delete the I/O queues of a controller.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {
            AdminOpcode.CREATE_IO_COMPLETION_QUEUE: self._create_completion_queue,
            AdminOpcode.CREATE_IO_SUBMISSION_QUEUE: self._create_submission_queue,
            AdminOpcode.DELETE_IO_COMPLETION_QUEUE: self._delete_completion_queue,
            AdminOpcode.DELETE_IO_SUBMISSION_QUEUE: self._delete_submission_queue,
        }

    def _place(self, command: Command) -> tuple[int, int, int]:
        """Identifier, length and address of a queue that is to be made."""
        entry = command.entry
        qid, length = entry.cdw10 & 0xFFFF, (entry.cdw10 >> 16) + 1
        if not 1 <= qid <= self._controller.max_queue_pairs:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=40)
        cc = self._controller.bar0.cc
        if (cc.iosqes, cc.iocqes) != (6, 4):  # the host has not said how long the entries are
            raise CommandFailed(Status.INVALID_QUEUE_SIZE)
        if not 2 <= length <= self._controller.max_queue_entries:
            raise CommandFailed(Status.INVALID_QUEUE_SIZE, location=42)
        if not entry.cdw11 & _CONTIGUOUS:
            raise CommandFailed(Status.INVALID_FIELD, location=44)
        if entry.prp1 % self._controller.data.page_size:
            raise CommandFailed(Status.PRP_OFFSET_INVALID, location=24)
        return qid, length, entry.prp1

    def _create_completion_queue(self, command: Command) -> int:
        controller = self._controller
        qid, length, iova = self._place(command)
        if qid in controller.completion_queues:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=40)
        cdw11 = command.entry.cdw11
        vector = cdw11 >> 16
        # What the host has enabled of them is the host's affair; what there is, ours. Without MSI-X there is the pin.
        if vector >= controller.vector_count:
            raise CommandFailed(Status.INVALID_INTERRUPT_VECTOR, location=46)
        enabled = vector if cdw11 & _INTERRUPTS else None
        controller.add_queue(CompletionQueue(controller.dma, qid, iova, length, enabled))
        return 0

    def _create_submission_queue(self, command: Command) -> int:
        controller = self._controller
        cqid = command.entry.cdw11 >> 16
        qid, length, iova = self._place(command)
        if qid in controller.submission_queues:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=40)
        if not 1 <= cqid <= controller.max_queue_pairs:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=46)
        completions = controller.completion_queues.get(cqid)
        if completions is None:
            raise CommandFailed(Status.COMPLETION_QUEUE_INVALID, location=46)
        priority = command.entry.cdw11 >> 1 & 3
        controller.add_queue(SubmissionQueue(controller.dma, qid, iova, length, completions, priority))
        return 0

    def _delete_completion_queue(self, command: Command) -> int:
        queues, qid = self._controller.completion_queues, command.entry.cdw10 & 0xFFFF
        queue = queues.get(qid) if qid else None
        if queue is None:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=40)
        if queue.submission_queues:
            raise CommandFailed(Status.INVALID_QUEUE_DELETION, location=40)
        queue.alive = False
        del queues[qid]
        self._controller.vectors.update_pin()
        return 0

    def _delete_submission_queue(self, command: Command) -> int | None:
        queues, qid = self._controller.submission_queues, command.entry.cdw10 & 0xFFFF
        queue = queues.get(qid) if qid else None
        if queue is None or queue.closing is not None:
            raise CommandFailed(Status.INVALID_QUEUE_IDENTIFIER, location=40)
        # Commands that have not begun never will; those that have end first, and the deletion after them.
        if queue.fused is not None:
            queue.complete(queue.fused.cid, Status.ABORTED_SQ_DELETION)
            queue.fused = None
        begun = []
        for other in list(queue.in_flight.values()):
            if self._controller.jobs.abort(other):
                queue.abort(other, Status.ABORTED_SQ_DELETION)
            else:
                begun.append(other)
        self._controller.flush_soon(queue.completions)
        queue.closing = command if begun else None
        if begun:
            command.queue.in_flight[command.entry.cid] = command
            return None
        self.finish_deletion(queue)
        return 0

    def finish_deletion(self, queue: SubmissionQueue) -> None:
        """The last command of a queue that is being deleted has ended."""
        del self._controller.submission_queues[queue.qid]
        queue.delete()
