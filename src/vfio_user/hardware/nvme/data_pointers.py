"""Where a command's data is: SGL descriptors. (PRP entries are plain addresses.) Spec: 4.1.1, 4.1.2."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple, Self

__all__ = ["SGL_DESCRIPTOR", "SGL_DESCRIPTOR_SIZE", "SglDescriptor", "SglType"]

#: The layout of an SGL descriptor: address, length, three reserved bytes as two numbers, identifier.
SGL_DESCRIPTOR = struct.Struct("<QIHBB")
#: Bytes of an SGL descriptor.
SGL_DESCRIPTOR_SIZE = 16


class SglType(enum.IntEnum):
    """SGL descriptor types. Spec: figure 101."""

    DATA_BLOCK = 0
    BIT_BUCKET = 1
    SEGMENT = 2
    LAST_SEGMENT = 3
    KEYED_DATA_BLOCK = 4
    TRANSPORT_DATA_BLOCK = 5
    VENDOR_SPECIFIC = 15


class SglDescriptor(NamedTuple):
    """An SGL descriptor.

    Attributes:
        address: of the data, or of the next segment; reserved for a bit bucket.
        length: bytes.
        type: ``SglType``, or one of the reserved ones.
        subtype: 0 for an address.
    """

    address: int
    length: int
    type: int = SglType.DATA_BLOCK
    subtype: int = 0

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Self:
        """Reads a descriptor.

        Raises:
            struct.error: fewer than 16 bytes from ``offset`` on.
        """
        address, length, _, _, identifier = SGL_DESCRIPTOR.unpack_from(data, offset)
        return cls(address, length, identifier >> 4, identifier & 0xF)

    @classmethod
    def from_entry(cls, prp1: int, prp2: int) -> Self:
        """The descriptor in a submission queue entry, whose data pointer was read as two PRP entries."""
        identifier = prp2 >> 56
        return cls(prp1, prp2 & 0xFFFF_FFFF, identifier >> 4, identifier & 0xF)

    def pack(self) -> bytes:
        """The 16 bytes."""
        return SGL_DESCRIPTOR.pack(self.address, self.length, 0, 0, self.type << 4 | self.subtype)

    def to_entry(self) -> tuple[int, int]:
        """The two halves of a data pointer, as ``prp1`` and ``prp2`` of an entry."""
        return self.address, self.length | (self.type << 4 | self.subtype) << 56
