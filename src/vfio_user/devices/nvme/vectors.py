"""Interrupts: one vector a completion queue may choose, coalesced where the host asked for it; or the pin.

Spec: NVMe over PCIe Transport 3.5; features 08h and 09h of Base 5.26.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user.hardware.nvme.features import Feature
from vfio_user.protocol.constants import IrqIndex

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme
    from vfio_user.devices.nvme.queues import CompletionQueue
    from vfio_user.server.loop import Timer

__all__ = ["Vectors"]

#: Seconds of one unit of the aggregation time.
_AGGREGATION_UNIT = 100e-6


class Vectors:
    """The interrupts of a controller.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._collected: dict[int, int] = {}
        self._timers: dict[int, Timer] = {}

    def posted(self, queue: CompletionQueue, count: int) -> None:
        """The host was shown ``count`` completions in a queue."""
        vector = queue.vector
        if vector is None:
            return
        if not self._controller.function.msix_enabled:
            self.update_pin()
            return
        coalescing = self._controller.features.value(Feature.INTERRUPT_COALESCING)
        if coalescing < 0x100 or queue.qid == 0 or vector in self._controller.features.vectors_alone:
            self._controller.interrupts.trigger(IrqIndex.MSIX, vector)
            return
        collected = self._collected.get(vector, 0) + count
        self._collected[vector] = collected
        if collected > coalescing & 0xFF:
            self._fire(vector)
        elif vector not in self._timers:
            delay = (coalescing >> 8) * _AGGREGATION_UNIT
            self._timers[vector] = self._controller.call_later(delay, self._fire, vector)

    def update_pin(self) -> None:
        """Without MSI-X: the pin is asserted while a queue that interrupts has completions the host has not taken."""
        controller = self._controller
        if controller.function.msix_enabled:
            return
        pending = 0
        for queue in self._controller.completion_queues.values():
            if queue.vector is not None and not queue.is_empty:
                pending |= 1 << queue.vector
        if pending & ~controller.bar0.intms:
            controller.raise_interrupt()
        else:
            controller.lower_interrupt()

    def reset(self) -> None:
        """The controller was reset: nothing is to be fired any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._collected.clear()

    def restart(self) -> None:
        """A state was loaded: what may have been collected is fired."""
        self.reset()
        for queue in self._controller.completion_queues.values():
            if queue.vector is not None and not queue.is_empty and self._controller.function.msix_enabled:
                self._controller.raise_interrupt(queue.vector)
        self.update_pin()

    def _fire(self, vector: int) -> None:
        self._collected.pop(vector, None)
        timer = self._timers.pop(vector, None)
        if timer is not None:
            timer.cancel()
        if self._controller.function.msix_enabled:
            self._controller.raise_interrupt(vector)
