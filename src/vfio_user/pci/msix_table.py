"""The two structures MSI-X keeps in BAR memory: the vector table and the pending bit array (PBA).

QEMU emulates the table itself and forwards reads of the PBA alone; other clients read and write both, so both are real.

Spec: PCI 3.0 6.8.2.6 to 6.8.2.9; PCI Express Base 7.7.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from vfio_user.regions import Region

__all__ = ["MSIX_ENTRY_SIZE", "MsiXPendingBits", "MsiXTable"]

#: Bytes of one entry of the table.
MSIX_ENTRY_SIZE = 16

_ENTRY = struct.Struct("<QII")  # message address, message data, vector control
_MASK_BIT = 1
_CONTROL = 12  # offset of vector control in an entry

#: What software may change in vector control, byte by byte: the mask bit. The rest is reserved.
_CONTROL_WRITABLE = (_MASK_BIT, 0, 0, 0)


class MsiXTable(Region):
    """The vector table: address, data and a mask bit for each vector.

    Args:
        vectors: entries, 1 to 2048.
        on_mask: called with (vector, masked) after a client changed a mask bit.

    Threading: session thread.
    """

    def __init__(self, vectors: int, on_mask: Callable[[int, bool], None] | None = None) -> None:
        self.size = vectors * MSIX_ENTRY_SIZE
        self.vectors = vectors
        self._on_mask = on_mask
        self._memory = bytearray(self.size)
        self.reset()

    def reset(self) -> None:
        """Masks every vector and forgets its address and data, as any reset does."""
        self._memory[:] = _ENTRY.pack(0, 0, _MASK_BIT) * self.vectors

    def restore(self, contents: bytes) -> None:
        """Puts back what ``read_bytes`` of all of it gave once; nobody is told.

        Raises:
            ValueError: it is not as long as the table.
        """
        if len(contents) != self.size:
            raise ValueError(f"{len(contents)} bytes of contents for an MSI-X table of {self.size}")
        self._memory[:] = contents

    def entry(self, vector: int) -> tuple[int, int, bool]:
        """What software put there.

        Returns:
            (message address, message data, masked).

        Raises:
            IndexError: there is no such vector.
        """
        if not 0 <= vector < self.vectors:
            raise IndexError(f"MSI-X vector {vector} of {self.vectors}: vectors count from 0")
        address, data, control = _ENTRY.unpack_from(self._memory, vector * MSIX_ENTRY_SIZE)
        return address, data, bool(control & _MASK_BIT)

    def is_masked(self, vector: int) -> bool:
        """Whether the mask bit of one vector is set.

        Raises:
            IndexError: there is no such vector.
        """
        return self.entry(vector)[2]

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        return int.from_bytes(self._memory[offset : offset + size], "little")

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``."""
        return bytes(self._memory[offset : offset + count])

    def write(self, offset: int, size: int, value: int) -> None:
        """See ``Region.write``."""
        self.write_bytes(offset, value.to_bytes(size, "little"))

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See ``Region.write_bytes``."""
        changed: list[int] = []
        for at, byte in enumerate(data, offset):
            lane = at % MSIX_ENTRY_SIZE - _CONTROL
            if lane >= 0:
                byte &= _CONTROL_WRITABLE[lane]
                if lane == 0 and byte != self._memory[at]:
                    changed.append(at // MSIX_ENTRY_SIZE)
            self._memory[at] = byte
        # Only once the whole access is stored: the callback may look at any of it.
        if self._on_mask is not None:
            for vector in changed:
                self._on_mask(vector, self.is_masked(vector))


class MsiXPendingBits(Region):
    """The pending bit array: one bit a vector, rounded up to whole 8-byte words, read only for clients.

    Args:
        vectors: bits in use.

    Attributes:
        source: gives the pending bits, where somebody else keeps them; None while ``set`` does.
    """

    def __init__(self, vectors: int) -> None:
        self.size = -(-vectors // 64) * 8
        self.vectors = vectors
        self.source: Callable[[], int] | None = None
        self._bits = 0

    @property
    def bits(self) -> int:
        """Every pending bit; bit i is vector i."""
        return self._bits if self.source is None else self.source()

    def set(self, vector: int, pending: bool) -> None:
        """Sets or clears the pending bit of one vector.

        Raises:
            IndexError: there is no such vector.
        """
        if not 0 <= vector < self.vectors:
            raise IndexError(f"MSI-X vector {vector} of {self.vectors}: vectors count from 0")
        if pending:
            self._bits |= 1 << vector
        else:
            self._bits &= ~(1 << vector)

    def reset(self) -> None:
        """Clears every pending bit."""
        self._bits = 0

    def read(self, offset: int, size: int) -> int:
        """See ``Region.read``."""
        return self.bits >> offset * 8 & (1 << size * 8) - 1

    def read_bytes(self, offset: int, count: int) -> bytes:
        """See ``Region.read_bytes``."""
        return (self.bits >> offset * 8 & (1 << count * 8) - 1).to_bytes(count, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Does nothing: "software must not write" the PBA, and hardware drops what does."""

    def write_bytes(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Does nothing, as ``write``."""
