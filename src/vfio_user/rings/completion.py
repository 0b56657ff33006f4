"""The ring a device writes completions to and a driver takes them from.

**The phase tag.** A driver does not ask how many completions there are: it looks at the next entry. One bit of it says
in which lap of the ring it was written, 1 in the first, 0 in the second, and so on, so an entry whose bit is the other
one is an old one. So the bit has to change last, when all the rest of the entry is there.

Entries are therefore written twice: first whole, with the bit as it was; then, behind a barrier for machines that need
one, once more with the bit as it is to be. The second copy changes nothing but that bit, so it does not matter in what
order and in what pieces the copy is made, and any number of entries are published by two copies, whatever the memory
is reached by.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user.errors import InvalidAccess
from vfio_user.memory.dma import Dma
from vfio_user.rings.order import store_barrier

__all__ = ["CompletionRing", "PhaseTag"]


@dataclass(frozen=True, slots=True)
class PhaseTag:
    """Where the phase tag of an entry is.

    Attributes:
        offset: of the byte it is in, in the entry.
        bit: of that byte, 0 to 7.
    """

    offset: int
    bit: int


class CompletionRing:
    """Entries from ``head`` up to, but not including, ``tail`` are the driver's to take.

    Args:
        dma: the guest's memory.
        iova: where the ring begins.
        length: entries in the ring, at least 2; it is full with one less.
        entry_size: bytes.
        phase_tag: where in an entry it is.

    Attributes:
        iova: as given.
        length: as given.
        entry_size: as given.
        head: the entry the driver takes next, as far as it has told.
        tail: the entry written next.
        phase: the phase tag of the entry written next, 0 or 1.

    Raises:
        InvalidAccess: a ring of less than 2 entries is always full.

    Threading: session thread.
    """

    __slots__ = ("_clear", "_dma", "_offset", "_set", "entry_size", "head", "iova", "length", "phase", "tail")

    def __init__(self, dma: Dma, iova: int, length: int, entry_size: int, phase_tag: PhaseTag) -> None:
        if length < 2:
            raise InvalidAccess(f"a ring of {length} entries takes none: one is always left free, so it takes 2")
        self._dma = dma
        self._offset = phase_tag.offset
        mask = 1 << phase_tag.bit
        # bytes.translate changes the tags of a whole batch in C.
        self._set = bytes(value | mask for value in range(256))
        self._clear = bytes(value & ~mask for value in range(256))
        self.iova = iova
        self.length = length
        self.entry_size = entry_size
        self.head = 0
        self.tail = 0
        self.phase = 1

    @property
    def room(self) -> int:
        """How many entries can be written now."""
        used = self.tail - self.head
        return (self.length - 1 if used >= 0 else -1) - used

    def advance(self, head: int) -> None:
        """The driver has taken the entries before ``head``: what it wrote to the doorbell.

        Raises:
            InvalidAccess: there is no such entry, or it and those before it were not all written. Nothing has changed.
        """
        if not 0 <= head < self.length:
            raise InvalidAccess(f"head {head} of a ring of {self.length} entries: there is no entry of that number")
        if (head - self.head) % self.length > (self.tail - self.head) % self.length:
            raise InvalidAccess(
                f"head {head} of a ring whose entries from {self.head} up to {self.tail} are there to be taken: the "
                "driver has taken one that was never written"
            )
        self.head = head

    def post(self, entries: bytearray) -> None:
        """Writes whole entries; the driver sees them one by one, each when it is complete.

        Args:
            entries: one or more; their phase tags are set here, in this very buffer.

        Raises:
            ValueError: there is no room for them, or they are not whole. Nothing was written.
            DeviceError: the guest's memory cannot be written there (see ``Dma.write``). Some may have been written.
        """
        count, rest = divmod(len(entries), self.entry_size)
        if rest or count > self.room:
            raise ValueError(
                f"{len(entries)} bytes for a ring of {self.entry_size}-byte entries with room for {self.room}: "
                "ask room first, and post whole entries"
            )
        before_end = self.length - self.tail
        if count < before_end:
            self._publish(entries)
            self.tail += count
            return
        cut = before_end * self.entry_size
        self._publish(entries[:cut])
        self.tail = 0
        self.phase ^= 1
        if cut < len(entries):
            self._publish(entries[cut:])
            self.tail = count - before_end

    def _publish(self, entries: bytearray) -> None:
        """Writes entries that are contiguous in the ring."""
        iova = self.iova + self.tail * self.entry_size
        old, new = (self._clear, self._set) if self.phase else (self._set, self._clear)
        if len(entries) == self.entry_size:  # the same for a single one, in half the time
            offset = self._offset
            value = entries[offset]
            entries[offset] = old[value]
            self._dma.write(iova, entries)
            store_barrier()
            entries[offset] = new[value]
            self._dma.write(iova, entries)
            return
        tags = slice(self._offset, None, self.entry_size)
        values = entries[tags]
        entries[tags] = values.translate(old)
        self._dma.write(iova, entries)
        store_barrier()
        entries[tags] = values.translate(new)
        self._dma.write(iova, entries)
