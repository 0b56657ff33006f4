"""A submission queue with its completion queue, as a driver has them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vfio_user.client.guest_memory import DmaBuffer
from vfio_user.errors import InterruptTimeoutError, StateError, VfioUserError
from vfio_user.hardware.nvme.entries import (
    COMPLETION_ENTRY_SIZE,
    SUBMISSION_ENTRY_SIZE,
    CompletionEntry,
    SubmissionEntry,
)
from vfio_user.hardware.nvme.registers import DOORBELLS_OFFSET, completion_doorbell, submission_doorbell
from vfio_user.hardware.nvme.status import status_text
from vfio_user.rings import full_barrier, load_barrier

if TYPE_CHECKING:
    from vfio_user.client.irq import IrqVector
    from vfio_user.client.pci_function import PciFunction

__all__ = ["NvmeError", "QueuePair"]

#: Seconds between two looks at the completion queue, where it has no interrupt.
_LOOK = 0.001


class NvmeError(VfioUserError):
    """A command ended with a status other than success.

    Attributes:
        entry: the command.
        completion: how it ended.
        status: status code type and status code, as ``Status`` has them.
    """

    def __init__(self, entry: SubmissionEntry, completion: CompletionEntry) -> None:
        self.entry = entry
        self.completion = completion
        self.status = completion.status
        retry = "" if completion.do_not_retry else "; it may be tried again"
        super().__init__(f"command {entry.opcode:#04x} ended with {status_text(completion.status)}{retry}")


class QueuePair:
    """See the module. Commands are submitted, and their completions taken in whatever order they come.

    Args:
        function: the controller.
        qid: of both queues.
        length: entries of each.
        vector: interrupts when there are completions; None to look for them.

    Attributes:
        submissions: the memory of the submission queue.
        completions: the memory of the completion queue.
        in_flight: commands whose completion was not taken, by identifier.

    Threading: one thread.
    """

    def __init__(self, function: PciFunction, qid: int, length: int, vector: IrqVector | None) -> None:
        self.qid = qid
        self.length = length
        self.vector = vector
        self.submissions = function.dma_alloc(length * SUBMISSION_ENTRY_SIZE)
        self.completions = function.dma_alloc(length * COMPLETION_ENTRY_SIZE)
        self.completions[:] = bytes(length * COMPLETION_ENTRY_SIZE)
        self.in_flight: dict[int, SubmissionEntry] = {}
        self._function = function
        self._bar = function.bar0
        self._shadows: tuple[DmaBuffer, DmaBuffer] | None = None
        self._tail = self._head = 0
        self._sq_head = 0
        self._phase = 1
        self._next_cid = 0
        self._taken: dict[int, CompletionEntry] = {}

    def moved_to(self, function: PciFunction, vector: IrqVector | None) -> None:
        """The controller goes on behind another client; see ``NvmeDriver.moved_to``."""
        self._function = function
        self._bar = function.bar0
        self.vector = vector

    def use_shadows(self, shadows: DmaBuffer, event_indexes: DmaBuffer) -> None:
        """From now on doorbells are written to memory, and rung when the controller asks for that.

        Args:
            shadows: the page of doorbells, as Doorbell Buffer Config told the controller.
            event_indexes: the page of what the controller has seen.
        """
        for number, value in ((submission_doorbell(self.qid), self._tail), (completion_doorbell(self.qid), self._head)):
            shadows.write32(4 * number, value)
            event_indexes.write32(4 * number, value)
        self._shadows = shadows, event_indexes

    def _write_doorbell(self, number: int, value: int) -> None:
        if self._shadows is not None:
            shadows, event_indexes = self._shadows
            old = shadows.read32(4 * number)
            shadows.write32(4 * number, value)
            full_barrier()  # or the event index is read before the controller, going to rest, can see this
            seen = event_indexes.read32(4 * number)
            if (value - seen - 1) & 0xFFFF >= (value - old) & 0xFFFF:
                return
        self._bar.write(DOORBELLS_OFFSET + 4 * number, 4, value, posted=True)

    @property
    def room(self) -> int:
        """Commands that can be submitted now."""
        return (self._sq_head - self._tail - 1) % self.length

    def submit(self, *entries: SubmissionEntry) -> list[int]:
        """Submits commands, with one ring of the doorbell.

        Args:
            *entries: the commands; their identifiers are given here.

        Returns:
            The identifiers.

        Raises:
            StateError: there is no room for all of them; none was submitted.
        """
        if len(entries) > self.room:
            raise StateError(
                f"{len(entries)} commands for queue {self.qid}, which has room for {self.room}: take completions first"
            )
        cids = []
        for entry in entries:
            while self._next_cid in self.in_flight or self._next_cid in self._taken:
                self._next_cid = (self._next_cid + 1) % 0xFFFF
            cid = self._next_cid
            self._next_cid = (cid + 1) % 0xFFFF
            self.put(entry._replace(cid=cid))
            cids.append(cid)
        self.ring(self._tail)
        return cids

    def put(self, entry: SubmissionEntry) -> None:
        """Writes one command as it is into the queue, without ringing."""
        at = self._tail * SUBMISSION_ENTRY_SIZE
        self.submissions[at : at + SUBMISSION_ENTRY_SIZE] = entry.pack()
        self._tail = (self._tail + 1) % self.length
        self.in_flight[entry.cid] = entry

    def ring(self, tail: int | None = None) -> None:
        """Writes the submission queue's doorbell; the tail, if not another value."""
        self._write_doorbell(submission_doorbell(self.qid), self._tail if tail is None else tail)

    def poll(self) -> list[CompletionEntry]:
        """Takes the completions that are there, and frees their entries; waits for nothing."""
        found = []
        completions: DmaBuffer = self.completions
        while True:
            at = self._head * COMPLETION_ENTRY_SIZE
            if completions.read16(at + 14) & 1 != self._phase:
                break
            load_barrier()
            entry = CompletionEntry.unpack(completions[at : at + COMPLETION_ENTRY_SIZE])
            self._head += 1
            if self._head == self.length:
                self._head, self._phase = 0, self._phase ^ 1
            self._sq_head = entry.sq_head
            self.in_flight.pop(entry.cid, None)
            found.append(entry)
        if found:
            self._write_doorbell(completion_doorbell(self.qid), self._head)
        return found

    def wait(self, cids: Iterable[int], timeout: float = 10.0) -> list[CompletionEntry]:
        """Waits for commands to end.

        Args:
            cids: their identifiers, as ``submit`` gave them.
            timeout: seconds.

        Returns:
            Their completions, in the order of ``cids``. Those of other commands are kept for who waits for them.

        Raises:
            InterruptTimeoutError: they did not.
        """
        wanted = list(cids)
        deadline = time.monotonic() + timeout
        while True:
            for entry in self.poll():
                self._taken[entry.cid] = entry
            if all(cid in self._taken for cid in wanted):
                return [self._taken.pop(cid) for cid in wanted]
            left = deadline - time.monotonic()
            if left <= 0:
                missing = [cid for cid in wanted if cid not in self._taken]
                raise InterruptTimeoutError(f"commands {missing} of queue {self.qid} did not end within {timeout:g} s")
            if self.vector is not None:
                self.vector.wait(left)
            else:
                self._function.client.connection.process(min(left, _LOOK))

    def execute(self, entry: SubmissionEntry, timeout: float = 10.0) -> CompletionEntry:
        """Submits a command and waits for its end.

        Raises:
            NvmeError: it failed.
            InterruptTimeoutError: it did not end.
        """
        [completion] = self.wait(self.submit(entry), timeout)
        if completion.status:
            raise NvmeError(entry, completion)
        return completion

    def free(self) -> None:
        """Gives the memory back; the queues are gone."""
        self.submissions.free()
        self.completions.free()
