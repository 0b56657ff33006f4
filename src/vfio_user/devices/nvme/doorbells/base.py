"""``Doorbells``: what the controller knows of the way the host tells of new entries and of completions it has taken.

A doorbell has a number: 2y for the tail of submission queue y, 2y + 1 for the head of completion queue y. Wherever its
value comes from - a register write, a page of guest memory, a page of BAR0 - it ends in ``write``; or in
``follow_tail`` and ``follow_head`` where the controller has to ask, before it fetches and before it shows completions.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar

from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.logs import ErrorEvent

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme
    from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue

__all__ = ["DoorbellMode", "Doorbells"]


class DoorbellMode(enum.Enum):
    """How the host tells of new entries."""

    TRAPPED = "trapped"
    SHADOW = "shadow"
    MAPPED = "mapped"


class Doorbells:
    """See the module.

    Args:
        controller: whose.

    Attributes:
        mode: which way it is.
        takes_buffers: Doorbell Buffer Config is one of the controller's commands.
        are_followed: the doorbells of I/O queues lie where the controller has to look: ``follow_tail`` and
            ``follow_head`` say more than the ring knows.

    Threading: session thread.
    """

    mode: ClassVar[DoorbellMode]
    takes_buffers: ClassVar[bool] = False

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self.are_followed = False

    # What becomes of the queues.

    def create(self, number: int) -> None:
        """A queue is about to be made that has this doorbell, whose value is 0 now."""

    def drop(self) -> None:
        """All queues are gone."""

    def set_buffers(self, shadows: int, event_indexes: int) -> None:
        """Doorbell Buffer Config: the pages the host has given, their addresses aligned.

        Raises:
            DeviceError: they cannot be reached.
        """
        raise NotImplementedError

    # What the host writes.

    def write(self, number: int, value: int) -> None:
        """The host has written a doorbell, however that became known."""
        qid = number >> 1
        if number & 1:
            completions = self._controller.completion_queues.get(qid)
            if completions is None:
                self.refuse(ErrorEvent.INVALID_DOORBELL_REGISTER, qid)
            elif self._advance(completions, value):
                self._controller.turns.taken(completions)
            return
        queue = self._controller.submission_queues.get(qid)
        if queue is None:
            self.refuse(ErrorEvent.INVALID_DOORBELL_REGISTER, qid)
        elif self._advance(queue, value):
            self._controller.turns.fetch_soon(queue)

    def _advance(self, queue: SubmissionQueue | CompletionQueue, value: int) -> bool:
        """A ring's new tail or head; whether it can be that."""
        try:
            queue.ring.advance(value)
        except InvalidAccess:
            self.refuse(ErrorEvent.INVALID_DOORBELL_VALUE, queue.qid)
            return False
        return True

    def refuse(self, event: ErrorEvent, qid: int) -> None:
        """What was written to a doorbell cannot be: the host is told. Spec: 5.2.1, figure 146."""
        self._controller.bad_doorbell(event, qid)

    def expect(self) -> None:
        """A command has ended that took a while: the host is about to write a doorbell, or several."""

    # What the controller asks, where ``are_followed``.

    def follow_tail(self, queue: SubmissionQueue) -> None:
        """Brings a ring up to its doorbell; it is about to be fetched from.

        Raises:
            DeviceError: the doorbell cannot be read.
        """

    def rest_tail(self, queue: SubmissionQueue) -> None:
        """The same of a ring that is empty: from now on the host is to ring.

        Raises:
            DeviceError: the doorbell cannot be reached.
        """

    def follow_head(self, queue: CompletionQueue) -> None:
        """Brings a ring up to its doorbell; completions are about to be shown.

        Raises:
            DeviceError: the doorbell cannot be read.
        """

    def rest_head(self, queue: CompletionQueue) -> None:
        """The same of a ring in which nothing more can be shown: from now on the host is to ring.

        Raises:
            DeviceError: the doorbell cannot be reached.
        """

    # State.

    def save(self) -> Any:
        """What is saved besides the rings: plain data."""
        return None

    def load(self, saved: Any) -> None:
        """Puts ``save`` back; the queues are there, as they were when it was saved."""
