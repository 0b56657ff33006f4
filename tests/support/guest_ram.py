"""Guest memory for tests of what works on it: a memfd mapped at an address of the guest, and seen from both sides."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

from vfio_user.memory.dma import Dma
from vfio_user.protocol.constants import DmaMapFlags

__all__ = ["GuestRam", "guest_ram"]


class GuestRam:
    """Memory of a guest.

    Attributes:
        memory: as the guest sees it.
        iova: where it is for the device.
    """

    def __init__(self, dma: Dma, iova: int, size: int, *, flags: int = DmaMapFlags.READ | DmaMapFlags.WRITE) -> None:
        fd = os.memfd_create("guest-ram")
        os.ftruncate(fd, size)
        self.memory = mmap.mmap(fd, size)
        self.iova = iova
        dma.map(iova, size, flags, 0, fd)

    def __getitem__(self, addresses: slice) -> bytes:
        """Bytes by addresses of the device."""
        return self.memory[addresses.start - self.iova : addresses.stop - self.iova]

    def __setitem__(self, addresses: slice, data: bytes) -> None:
        self.memory[addresses.start - self.iova : addresses.stop - self.iova] = data


@contextlib.contextmanager
def guest_ram(*ranges: tuple[int, int]) -> Iterator[tuple[Dma, list[GuestRam]]]:
    """A ``Dma`` with memory at these (IOVA, size), each in a file of its own."""
    dma = Dma()
    made = [GuestRam(dma, iova, size) for iova, size in ranges]
    try:
        yield dma, made
    finally:
        dma.clear()
        for ram in made:
            ram.memory.close()
