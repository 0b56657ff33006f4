"""``PolledNvme``: the controller whose doorbells are memory a client maps, and are looked at.

A driver's store to such a doorbell leaves no trace but itself: no message, no exit, no system call. That is the
quickest way to many commands a second, for clients that map BARs; the price is a thread that looks, all the time while
there is work and some hundred times a second while there is none. See ``poller``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vfio_user.devices.nvme.controller import Nvme
from vfio_user.devices.nvme.poller import DOORBELL_SIZE, DoorbellPoller
from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.registers import (
    DOORBELLS_OFFSET,
    NvmeRegisters,
    completion_doorbell,
    submission_doorbell,
)
from vfio_user.pci import MemoryBar

__all__ = ["PolledNvme", "PolledRegisters"]

Q = TypeVar("Q")


class PolledRegisters(NvmeRegisters):
    """The registers of the page before the doorbells, which are memory."""

    doorbells = None  # type: ignore[assignment]


class _Queues(dict[int, Q]):
    """Queues by number, whose doorbell is reset when one is made."""

    def __init__(self, device: PolledNvme, doorbell_of: Callable[[int], int]) -> None:
        super().__init__()
        self._device = device
        self._doorbell_of = doorbell_of

    def __setitem__(self, qid: int, queue: Q) -> None:
        self._device.reset_doorbell(self._doorbell_of(qid))
        super().__setitem__(qid, queue)


class PolledNvme(Nvme):
    """An NVM Express I/O controller whose doorbells are mapped memory. It cannot be migrated.

    Otherwise it is as ``Nvme``; the module says when it wins. A client that does not map BAR0 writes the doorbells by
    messages, and they are looked at all the same.

    Args:
        image: see ``Nvme``, as all others.
        unallocated: likewise.
        lba_size: likewise.
        serial: likewise.
        threads: likewise.
        faults: likewise.

    Raises:
        ValueError: see ``Nvme``.
        OSError: see ``Nvme``.
    """

    bar0 = MemoryBar(size=0x4000, width=64, registers=PolledRegisters)
    doorbell_page = bar0.shared_area(DOORBELLS_OFFSET, 0x1000)

    # What was written to a doorbell and not yet looked at would be lost.
    migratable = False

    # Nobody writes a register: this hook of the base class has nothing to wait for.
    _ring_register = Nvme._doorbell
    _doorbell = None  # type: ignore[assignment]

    def __init__(
        self,
        *,
        image: str = "memory:64M",
        unallocated: str = "",
        lba_size: int = 512,
        serial: str = "vfio-user-1",
        threads: int = 4,
        faults: str = "",
    ) -> None:
        super().__init__(
            image=image, unallocated=unallocated, lba_size=lba_size, serial=serial, threads=threads, faults=faults
        )
        #: The doorbells of queues there are, and have been since the controller was enabled.
        self._used = self.doorbell_page[:0]
        self._poller = DoorbellPoller(self, self._look, self._changed, work=self._work)
        self.submission_queues = _Queues(self, submission_doorbell)
        self.completion_queues = _Queues(self, completion_doorbell)

    def reset_doorbell(self, number: int) -> None:
        """A queue is about to be made: its doorbell is 0, whatever was written there for one before it."""
        at = number * DOORBELL_SIZE
        self.doorbell_page[at : at + DOORBELL_SIZE] = bytes(DOORBELL_SIZE)
        self._poller.forget(number)
        if at + DOORBELL_SIZE > len(self._used):
            self._used = self.doorbell_page[: at + DOORBELL_SIZE]
        # The admin queue's is the first.
        self._poller.start()

    def abandon(self) -> None:
        """See ``Nvme``."""
        self._poller.stop()
        self._used = self.doorbell_page[:0]
        super().abandon()

    def _look(self) -> bytes:
        return self._used.tobytes()

    def _changed(self, number: int, value: int) -> None:
        # The poller has the work done at once: nobody has to be asked to.
        self._is_scheduled = True
        qid = number >> 1
        if number & 1:
            completions = self.completion_queues.get(qid)
            if completions is not None and not completions.ready and value < completions.ring.length:
                try:
                    completions.ring.advance(value)
                    if completions.vector is not None:
                        self._taken(completions)
                    return
                except InvalidAccess:
                    pass  # as everything else that is not plain
        else:
            queue = self.submission_queues.get(qid)
            if queue is not None:
                self.rung(queue, value)
                return
        self._ring_register(number, value)
