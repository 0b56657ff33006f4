"""Mapped doorbells: a page of BAR0 that is memory, which the client maps and the controller looks at.

A driver's store there leaves no trace but itself: no message, no exit, no system call. That is the quickest way to many
commands a second, for clients that map BARs; the price is a thread that looks, all the time while there is work, and
some hundred times a second while there is none. See ``vfio_user.devices.nvme.poller``. A client that does not map the
page writes to it by messages, which are looked at all the same.

**Moving it.** The page is memory of the device, so what is in it when the device has stopped moves with it; a client
stops its processors first. Where it is loaded the doorbell of every queue is looked at and rings, whether or not its
value was seen before it was saved: a tail or head that is known already changes nothing.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.doorbells.base import DoorbellMode, Doorbells
from vfio_user.devices.nvme.poller import DOORBELL_SIZE, DoorbellPoller
from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.registers import completion_doorbell, submission_doorbell

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["MappedDoorbells"]


class MappedDoorbells(Doorbells):
    """See the module.

    Args:
        controller: whose; its ``doorbell_page`` is there.

    Attributes:
        poller: looks at the page while there are queues.
    """

    mode = DoorbellMode.MAPPED

    def __init__(self, controller: Nvme) -> None:
        super().__init__(controller)
        self._page = controller.doorbell_page
        #: The doorbells of queues there are, and have been since the controller was enabled.
        self._used = self._page[:0]
        self.poller = DoorbellPoller(
            controller,
            self._look,
            self._changed,
            work=controller.turns.work,
            give_way=self._give_way,
        )

    def create(self, number: int) -> None:
        """See ``Doorbells``."""
        at = number * DOORBELL_SIZE
        # Whatever was written there for a queue before it.
        self._page[at : at + DOORBELL_SIZE] = bytes(DOORBELL_SIZE)
        self.poller.forget(number)
        if at + DOORBELL_SIZE > len(self._used):
            self._used = self._page[: at + DOORBELL_SIZE]
        # The admin queue's is the first.
        self.poller.start()

    def drop(self) -> None:
        """See ``Doorbells``."""
        self.poller.stop()
        self._used = self._page[:0]

    def expect(self) -> None:
        """See ``Doorbells``."""
        self.poller.wake()

    def _look(self) -> bytes:
        return self._used.tobytes()

    def _give_way(self) -> bool:
        turns = self._controller.turns
        if turns.is_due:  # what jobs have ended is to be shown before it is looked what else there is
            turns.work()
        return self._controller.jobs.give_way()

    def _changed(self, number: int, value: int) -> None:
        # The poller has the work done at once: nobody has to be asked to.
        controller = self._controller
        controller.turns.is_due = True
        if number & 1:
            completions = controller.completion_queues.get(number >> 1)
            if completions is not None and not completions.ready and value < completions.ring.length:
                try:
                    completions.ring.advance(value)
                    if completions.vector is not None:
                        controller.turns.taken(completions)
                    return
                except InvalidAccess:
                    pass  # as everything else that is not plain
        self.write(number, value)

    def load(self, saved: Any) -> None:
        """See ``Doorbells``."""
        controller = self._controller
        numbers = [submission_doorbell(qid) for qid in controller.submission_queues]
        numbers += [completion_doorbell(qid) for qid in controller.completion_queues]
        if not numbers:
            return
        self._used = self._page[: (max(numbers) + 1) * DOORBELL_SIZE]
        seen = self._look()
        for number in numbers:
            self.write(number, *struct.unpack_from("<I", seen, number * DOORBELL_SIZE))
        # The doorbells of queues that were deleted are seen, too: they do not ring.
        self.poller.start(seen)
