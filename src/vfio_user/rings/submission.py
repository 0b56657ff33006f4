"""The ring a driver writes entries to and a device takes them from."""

from __future__ import annotations

from vfio_user.errors import InvalidAccess
from vfio_user.memory.dma import Dma
from vfio_user.rings.order import load_barrier

__all__ = ["SubmissionRing"]


class SubmissionRing:
    """Entries from ``head`` up to, but not including, ``tail`` are the device's to take.

    Entries are copied before anybody looks at them: the driver can change guest memory at any time, also between a
    check and the use of what was checked.

    Args:
        dma: the guest's memory.
        iova: where the ring begins.
        length: entries in the ring, at least 2; it is full with one less.
        entry_size: bytes.

    Attributes:
        iova: as given.
        length: as given.
        entry_size: as given.
        head: the entry to be taken next.
        tail: the entry the driver writes next, as far as it has told.

    Raises:
        InvalidAccess: a ring of less than 2 entries is always empty.

    Threading: session thread.
    """

    __slots__ = ("_dma", "entry_size", "head", "iova", "length", "tail")

    def __init__(self, dma: Dma, iova: int, length: int, entry_size: int) -> None:
        if length < 2:
            raise InvalidAccess(f"a ring of {length} entries holds none: one is always left free, so it takes 2")
        self._dma = dma
        self.iova = iova
        self.length = length
        self.entry_size = entry_size
        self.head = 0
        self.tail = 0

    def __len__(self) -> int:
        """Entries that wait to be taken."""
        waiting = self.tail - self.head
        return waiting if waiting >= 0 else waiting + self.length

    def advance(self, tail: int) -> None:
        """The driver has written its entries up to ``tail``: what it wrote to the doorbell.

        Raises:
            InvalidAccess: there is no such entry. Nothing has changed.
        """
        if not 0 <= tail < self.length:
            raise InvalidAccess(f"tail {tail} of a ring of {self.length} entries: there is no entry of that number")
        load_barrier()
        self.tail = tail

    def fetch(self, limit: int) -> bytes:
        """Takes up to ``limit`` entries, in order: a private copy of whole entries, empty when none wait.

        Raises:
            DeviceError: the guest's memory cannot be read there (see ``Dma.read``). No entry was taken.
        """
        head, tail, size = self.head, self.tail, self.entry_size
        if head == tail:
            return b""
        if head < tail:
            end = min(tail, head + limit)
            entries = self._dma.read(self.iova + head * size, (end - head) * size)
            self.head = end
            return entries
        end = min(self.length, head + limit)
        entries = self._dma.read(self.iova + head * size, (end - head) * size)
        limit -= end - head
        if end == self.length:
            end = min(tail, limit)
            if end:
                entries += self._dma.read(self.iova, end * size)
        self.head = end
        return entries
