"""Layouts: big-endian structures described field by field, as the tables of the SCSI specifications do.

One description serves the target, which decodes and points at the field that is wrong; whoever builds a command; and
REPORT SUPPORTED OPERATION CODES, which tells which bits of a CDB are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vfio_user.hardware.scsi.sense import FieldPointer

__all__ = ["Field", "Layout", "Place"]

#: Where a field lies: byte, bit, and width in bits unless it is a single one.
Place = tuple[int, int] | tuple[int, int, int]


class Field(NamedTuple):
    """Where a field lies.

    Attributes:
        byte: the byte of its most significant bit.
        bit: that bit in the byte, 7 the most significant.
        width: bits.
    """

    byte: int
    bit: int = 7
    width: int = 1

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.byte + (7 - self.bit + self.width + 7) // 8

    @property
    def shift(self) -> int:
        """Bits of its last byte below it."""
        return (self.end - self.byte) * 8 - (7 - self.bit) - self.width


class Layout:
    """A structure of a fixed length.

    Args:
        length: bytes.
        fields: ``(byte, bit, width)`` by name; ``(byte, bit)`` for a single bit.

    Raises:
        ValueError: a field is not all in the structure.
    """

    def __init__(self, length: int, /, **fields: Place) -> None:
        self.length = length
        self.fields: Mapping[str, Field] = {name: Field(*place) for name, place in fields.items()}
        for name, field in self.fields.items():
            if not 0 <= field.bit <= 7:
                raise ValueError(f"field {name} begins at bit {field.bit}: bits of a byte are 7 to 0")
            if field.end > length or field.shift < 0:
                raise ValueError(f"field {name} ends in byte {field.end - 1} of a structure of {length}")
        #: First byte, end, shift and mask of each field.
        self.plans: Mapping[str, tuple[int, int, int, int]] = {
            name: (field.byte, field.end, field.shift, (1 << field.width) - 1) for name, field in self.fields.items()
        }

    def get(self, data: bytes | bytearray | memoryview, name: str) -> int:
        """Reads a field; bytes that are not there count as zero."""
        first, end, shift, mask = self.plans[name]
        part = data[first:end]
        value = int.from_bytes(part, "big") << 8 * (end - first - len(part))
        return value >> shift & mask

    def put(self, data: bytearray, name: str, value: int | str) -> None:
        """Writes a field: a number, or text, which spaces fill up.

        Raises:
            ValueError: it does not fit.
        """
        first, end, shift, mask = self.plans[name]
        if isinstance(value, str):
            text = value.encode("ascii").ljust(end - first)
            if len(text) != end - first:
                raise ValueError(f"{value!r} does not fit in the {end - first} bytes of {name}")
            data[first:end] = text
            return
        if not 0 <= value <= mask:
            raise ValueError(f"{value:#x} does not fit in the {mask.bit_length()} bits of {name}")
        whole = int.from_bytes(data[first:end], "big") & ~(mask << shift) | value << shift
        data[first:end] = whole.to_bytes(end - first, "big")

    def pack(self, **values: int | str) -> bytearray:
        """A structure with these values, and zero elsewhere."""
        data = bytearray(self.length)
        for name, value in values.items():
            self.put(data, name, value)
        return data

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, int]:
        """All fields, as numbers."""
        return {name: self.get(data, name) for name in self.fields}

    def mask(self) -> bytes:
        """Which bits belong to a field."""
        data = bytearray(self.length)
        for name in self.fields:
            self.put(data, name, self.plans[name][3])
        return bytes(data)

    def pointer(self, name: str, *, offset: int | None = None) -> FieldPointer:
        """Points at a field: in a CDB, or with ``offset`` at this structure's place in a parameter list."""
        field = self.fields[name]
        bit = None if field.bit == 7 and field.width % 8 == 0 else field.bit
        return FieldPointer(field.byte + (offset or 0), bit, in_data=offset is not None)
