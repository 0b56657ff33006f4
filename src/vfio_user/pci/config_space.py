"""Configuration space as a region: parts at fixed offsets, zeros between them, and no access that fails.

Hardware has no way to refuse a configuration access, and clients count on that: QEMU reads the whole space in one
message, cloud-hypervisor walks the capabilities byte by byte, and every write of the guest is forwarded, whatever its
size and wherever it lands. So any access is cut into naturally aligned pieces of at most four bytes, each piece goes to
the part that owns that offset, and what no part owns reads as 0 and ignores writes.

Spec: PCI 3.0 6.1 ("reserved or unimplemented registers": writes are no-ops, reads return 0); PCI Express Base 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import ParamSpec

from vfio_user.regions import Region, aligned_accesses

__all__ = ["CONVENTIONAL_SIZE", "EXPRESS_SIZE", "ConfigSpace"]

P = ParamSpec("P")

#: Bytes of the configuration space of a conventional PCI function; QEMU takes a function with that much for one.
CONVENTIONAL_SIZE = 256

#: Bytes of the configuration space of a PCI Express function.
EXPRESS_SIZE = 4096


class ConfigSpace(Region):
    """The configuration space of one function.

    Args:
        size: CONVENTIONAL_SIZE or EXPRESS_SIZE.
        parts: (offset, region) pairs, each four-byte aligned and a multiple of four bytes long, none overlapping.

    Threading: session thread.
    """

    def __init__(self, size: int, parts: Iterable[tuple[int, Region]]) -> None:
        self.size = size
        self.parts = sorted(parts, key=lambda part: part[0])
        self._owners: list[tuple[Region, int] | None] = [None] * (size // 4)
        for start, part in self.parts:
            for word in range(start // 4, (start + part.size) // 4):
                self._owners[word] = (part, start)
        self._after: list[Callable[[], object]] = []

    def call_after_access(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Calls ``function`` once the write in progress has reached every register it covers.

        What a write sets off as a whole - a function level reset, a change of power state - must not happen while the
        rest of that write is still on its way.
        """
        self._after.append(partial(function, *args, **kwargs))

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``: any size, any alignment, never an error."""
        if size <= 4 and not offset % size:
            owner = self._owners[offset >> 2]
            return 0 if owner is None else owner[0].read(offset - owner[1], size)
        return int.from_bytes(self.read_bytes(offset, size), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``: any size, any alignment, never an error of the registers'."""
        if size <= 4 and not offset % size:
            self._store(offset, size, value)
            if self._after:
                self._run_after()
        else:
            self.write_bytes(offset, value.to_bytes(size, "little"))

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``: one bulk read of each part the range covers."""
        data = bytearray(count)
        end = offset + count
        for start, part in self.parts:
            low, high = max(offset, start), min(end, start + part.size)
            if low < high:
                data[low - offset : high - offset] = part.read_bytes(low - start, high - low)
        return bytes(data)

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``."""
        for at, size in aligned_accesses(offset, len(data)):
            self._store(at, size, int.from_bytes(data[at - offset : at - offset + size], "little"))
        if self._after:
            self._run_after()

    def _store(self, offset: int, size: int, value: int) -> None:
        owner = self._owners[offset >> 2]
        if owner is not None:
            owner[0].write(offset - owner[1], size, value)

    def _run_after(self) -> None:
        pending, self._after = self._after, []
        for function in pending:
            function()
