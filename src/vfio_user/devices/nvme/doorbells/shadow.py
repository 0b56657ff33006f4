"""Shadow doorbells: the host writes them to memory, and rings the real ones only when the controller may be asleep.

Beside each shadow doorbell is an event index, written by the controller: the host rings when its new value passes that.
So the controller, before it rests, writes the value it has seen as event index, and looks at the shadow once more.

The admin queue's doorbells are always rung: that is what drivers do. So are all others until the host has said where
the shadows are.

Spec: 5.8 (Doorbell Buffer Config), annex B.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.doorbells.base import DoorbellMode, Doorbells
from vfio_user.hardware.nvme.registers import completion_doorbell, submission_doorbell
from vfio_user.rings import full_barrier

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme
    from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue

__all__ = ["ShadowDoorbells"]


class ShadowDoorbells(Doorbells):
    """See the module.

    Args:
        controller: whose.

    Attributes:
        shadows: address of the page the host writes; with ``are_followed``.
        event_indexes: address of the page the controller writes; likewise.
    """

    mode = DoorbellMode.SHADOW
    takes_buffers = True

    def __init__(self, controller: Nvme) -> None:
        super().__init__(controller)
        self._dma = controller.dma
        self.shadows = self.event_indexes = 0

    def drop(self) -> None:
        """See ``Doorbells``."""
        self.are_followed = False

    def set_buffers(self, shadows: int, event_indexes: int) -> None:
        """See ``Doorbells``."""
        self._dma.read(shadows, self._controller.data.page_size)  # a page that is not there is found now
        self._dma.write_u32(event_indexes, 0)
        self.shadows, self.event_indexes = shadows, event_indexes
        self.are_followed = True

    def follow_tail(self, queue: SubmissionQueue) -> None:
        """See ``Doorbells``."""
        if queue.qid:
            self._advance(queue, self._dma.read_u32(self.shadows + 4 * submission_doorbell(queue.qid)))

    def rest_tail(self, queue: SubmissionQueue) -> None:
        """See ``Doorbells``."""
        if queue.qid:
            self._dma.write_u32(self.event_indexes + 4 * submission_doorbell(queue.qid), queue.ring.tail)
            full_barrier()
            self.follow_tail(queue)

    def follow_head(self, queue: CompletionQueue) -> None:
        """See ``Doorbells``."""
        if queue.qid:
            self._advance(queue, self._dma.read_u32(self.shadows + 4 * completion_doorbell(queue.qid)))

    def rest_head(self, queue: CompletionQueue) -> None:
        """See ``Doorbells``."""
        if queue.qid:
            self._dma.write_u32(self.event_indexes + 4 * completion_doorbell(queue.qid), queue.ring.head)
            full_barrier()
            self.follow_head(queue)

    def save(self) -> Any:
        """See ``Doorbells``."""
        return [self.shadows, self.event_indexes] if self.are_followed else None

    def load(self, saved: Any) -> None:
        """See ``Doorbells``."""
        if saved is not None:
            self.shadows, self.event_indexes = saved
            self.are_followed = True
