"""Shadow doorbells: the host writes them to memory, and rings the real ones only when the controller may be asleep.

Beside each shadow doorbell is an event index, written by the controller: the host rings when its new value passes that.
So the controller, before it rests, writes the value it has seen as event index, and looks at the shadow once more.

The admin queue's doorbells are always rung: that is what drivers do.

Spec: 5.8 (Doorbell Buffer Config), annex B.5.
"""

from __future__ import annotations

from vfio_user.hardware.nvme.registers import completion_doorbell, submission_doorbell
from vfio_user.memory import Dma
from vfio_user.rings import full_barrier

__all__ = ["ShadowDoorbells"]


class ShadowDoorbells:
    """The two pages of a controller.

    Args:
        dma: the guest's memory.
        shadows: address of the page the host writes.
        event_indexes: address of the page the controller writes.
    """

    def __init__(self, dma: Dma, shadows: int, event_indexes: int) -> None:
        self._dma = dma
        self.shadows = shadows
        self.event_indexes = event_indexes

    def tail(self, qid: int) -> int:
        """The tail of a submission queue, as the host has it.

        Raises:
            DeviceError: the page cannot be read.
        """
        return self._dma.read_u32(self.shadows + 4 * submission_doorbell(qid))

    def head(self, qid: int) -> int:
        """The head of a completion queue, as the host has it.

        Raises:
            DeviceError: the page cannot be read.
        """
        return self._dma.read_u32(self.shadows + 4 * completion_doorbell(qid))

    def rest_tail(self, qid: int, tail: int) -> int:
        """From now on the host rings when the tail passes ``tail``; returns the tail as it is then.

        Raises:
            DeviceError: a page cannot be reached.
        """
        self._dma.write_u32(self.event_indexes + 4 * submission_doorbell(qid), tail)
        full_barrier()
        return self.tail(qid)

    def rest_head(self, qid: int, head: int) -> int:
        """The same of the head of a completion queue.

        Raises:
            DeviceError: a page cannot be reached.
        """
        self._dma.write_u32(self.event_indexes + 4 * completion_doorbell(qid), head)
        full_barrier()
        return self.head(qid)
