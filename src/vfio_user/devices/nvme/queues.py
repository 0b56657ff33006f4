"""Submission and completion queues: the rings, and what waits to go in or out of them.

Ends of a command's life are here: ``SubmissionQueue.complete`` takes the command out of flight and puts an entry into
``CompletionQueue.ready``; ``CompletionQueue.flush`` shows the host as many of those as there is room for. A queue that
was deleted is not ``alive``, and what still comes for it is dropped.
"""

from __future__ import annotations

from vfio_user.devices.nvme.command import Command
from vfio_user.devices.nvme.events import REQUEST_LIMIT
from vfio_user.hardware.nvme.entries import (
    COMPLETION_ENTRY,
    COMPLETION_ENTRY_SIZE,
    SUBMISSION_ENTRY_SIZE,
    SubmissionEntry,
)
from vfio_user.hardware.nvme.status import Status
from vfio_user.memory import Dma
from vfio_user.rings import CompletionRing, PhaseTag, SubmissionRing

__all__ = ["CompletionQueue", "SubmissionQueue"]

_PHASE_TAG = PhaseTag(14, 0)
_pack = COMPLETION_ENTRY.pack


class CompletionQueue:
    """A completion queue.

    Args:
        dma: the guest's memory.
        qid: its number.
        iova: where it lies.
        length: entries.
        vector: the interrupt it raises; None for none.

    Attributes:
        ring: the entries.
        ready: completions the host has not been shown, 16 bytes each.
        is_dirty: it is in the controller's list of queues to flush.
        submission_queues: how many send their completions here.
        alive: it was not deleted.
    """

    def __init__(self, dma: Dma, qid: int, iova: int, length: int, vector: int | None) -> None:
        self.qid = qid
        self.ring = CompletionRing(dma, iova, length, COMPLETION_ENTRY_SIZE, _PHASE_TAG)
        self.vector = vector
        self.ready = bytearray()
        self.is_dirty = False
        self.submission_queues = 0
        self.alive = True

    def flush(self) -> int:
        """Shows the host what there is room for.

        Returns:
            How many completions it was shown.

        Raises:
            DeviceError: the queue's memory cannot be written.
        """
        count = min(len(self.ready) // COMPLETION_ENTRY_SIZE, self.ring.room)
        if count:
            cut = count * COMPLETION_ENTRY_SIZE
            if cut == len(self.ready):
                shown, self.ready = self.ready, bytearray()
            else:
                shown = self.ready[:cut]
                del self.ready[:cut]
            self.ring.post(shown)
        return count

    @property
    def is_empty(self) -> bool:
        """The host has taken everything it was shown."""
        return self.ring.head == self.ring.tail


class SubmissionQueue:
    """A submission queue.

    Args:
        dma: the guest's memory.
        qid: its number; 0 is the admin queue.
        iova: where it lies.
        length: entries.
        completions: where its completions go.
        priority: 0 urgent to 3 low; what the host said, and nothing depends on it with round robin.

    Attributes:
        ring: the entries.
        in_flight: commands that were fetched and end later, by identifier.
        fused: the first command of a fused operation, whose second has not come.
        closing: the command that deletes it, and waits for those in flight to end.
        is_rung: it is in the controller's list of queues to fetch from.
        alive: it was not deleted.
    """

    def __init__(
        self, dma: Dma, qid: int, iova: int, length: int, completions: CompletionQueue, priority: int = 0
    ) -> None:
        self.qid = qid
        self.ring = SubmissionRing(dma, iova, length, SUBMISSION_ENTRY_SIZE)
        self.completions = completions
        self.priority = priority
        self.in_flight: dict[int, Command] = {}
        # Requests for asynchronous events stay for as long as nothing happens: they are not to fill a short queue.
        self._most = length + (0 if qid else REQUEST_LIMIT)
        self.fused: SubmissionEntry | None = None
        self.closing: Command | None = None
        self.is_rung = False
        self.alive = True
        completions.submission_queues += 1

    def complete(self, cid: int, status: int, dw0: int = 0) -> None:
        """A command has ended; the host sees it when ``completions`` is flushed.

        Args:
            cid: which.
            status: status field, without phase tag.
            dw0: its result.
        """
        if self.alive:
            self.completions.ready += _pack(dw0, 0, self.ring.head, self.qid, cid, status << 1)

    def abort(self, command: Command, status: Status) -> None:
        """A command in flight never begins: it ends, and with it the first of a fused operation.

        Do Not Retry is 0, as the same command would succeed: with a 1 Linux makes it an I/O error of the program's.
        """
        del self.in_flight[command.entry.cid]
        for entry in (command.first, command.entry):
            if entry is not None:
                self.complete(entry.cid, status)

    def has_room(self) -> bool:
        """It may be fetched from: neither completions nor commands pile up."""
        return self.closing is None and not self.completions.ready and len(self.in_flight) < self._most

    def delete(self) -> None:
        """It is gone."""
        self.alive = False
        self.completions.submission_queues -= 1
        for command in self.in_flight.values():
            command.cancelled = True
        self.in_flight.clear()
