"""Sense data: what went wrong, in the two formats. Spec: SPC-4 4.5."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey

__all__ = ["FIXED_LENGTH", "FieldPointer", "Sense"]

#: Bytes of fixed format sense data, as everybody sends it: additional length 10.
FIXED_LENGTH = 18

_FIXED = struct.Struct(">BxBIB4sBBx3s")
_DESCRIPTOR = struct.Struct(">BBBB3xB")
_INFORMATION = struct.Struct(">BBBxQ")
_KEY_SPECIFIC = struct.Struct(">BB2x3sx")

_CURRENT_FIXED, _CURRENT_DESCRIPTOR = 0x70, 0x72
_VALID = 0x80


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """Which field is wrong. Spec: SPC-4 4.5.2.4.2.

    Attributes:
        byte: its first byte.
        bit: its most significant bit in that byte; None where the whole byte is meant.
        in_data: it is in the parameter list rather than in the CDB.
    """

    byte: int
    bit: int | None = None
    in_data: bool = False

    def pack(self) -> bytes:
        """SENSE KEY SPECIFIC, three bytes."""
        flags = 0x80 | (0 if self.in_data else 0x40)
        if self.bit is not None:
            flags |= 0x08 | self.bit
        return struct.pack(">BH", flags, self.byte)

    @classmethod
    def unpack(cls, data: bytes) -> FieldPointer | None:
        """Reads SENSE KEY SPECIFIC; None where it says nothing."""
        flags, byte = struct.unpack(">BH", data)
        if not flags & 0x80:
            return None
        return cls(byte, flags & 7 if flags & 8 else None, not flags & 0x40)


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense data, format left open.

    Attributes:
        key: the kind.
        additional: what exactly.
        information: the block it is about; None where that means nothing.
        pointer: the field it is about, of an ILLEGAL REQUEST.
    """

    key: SenseKey
    additional: AdditionalSense = AdditionalSense.NONE
    information: int | None = None
    pointer: FieldPointer | None = None

    def pack(self, *, descriptor: bool = False) -> bytes:
        """Writes it: fixed format (4.5.3), or with ``descriptor`` the other one (4.5.2).

        Fixed format has four bytes for INFORMATION; what is larger is left out, as it asks for.
        """
        specific = self.pointer.pack() if self.pointer is not None else bytes(3)
        if descriptor:
            parts = b""
            if self.information is not None:
                parts += _INFORMATION.pack(0x00, 0x0A, _VALID, self.information)
            if self.pointer is not None:
                parts += _KEY_SPECIFIC.pack(0x02, 0x06, specific)
            asc, ascq = self.additional.asc, self.additional.ascq
            return _DESCRIPTOR.pack(_CURRENT_DESCRIPTOR, self.key, asc, ascq, len(parts)) + parts
        fits = self.information is not None and self.information < 1 << 32
        return _FIXED.pack(
            _CURRENT_FIXED | (_VALID if fits else 0),
            self.key,
            self.information or 0 if fits else 0,
            FIXED_LENGTH - 8,
            bytes(4),
            self.additional.asc,
            self.additional.ascq,
            specific,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Sense:
        """Reads either format.

        Raises:
            ValueError: it is neither, or too short, or has a code that is not in ``AdditionalSense``.
        """
        code = data[0] & 0x7F if data else 0
        if code == _CURRENT_FIXED and len(data) >= FIXED_LENGTH:
            first, key, information, _, _, asc, ascq, specific = _FIXED.unpack_from(data)
            return cls(
                SenseKey(key & 0xF),
                AdditionalSense(asc << 8 | ascq),
                information if first & _VALID else None,
                FieldPointer.unpack(specific),
            )
        if code == _CURRENT_DESCRIPTOR and len(data) >= _DESCRIPTOR.size:
            _, key, asc, ascq, length = _DESCRIPTOR.unpack_from(data)
            value, pointer, offset = None, None, _DESCRIPTOR.size
            while offset + 2 <= min(len(data), _DESCRIPTOR.size + length):
                kind, size = data[offset], data[offset + 1] + 2
                if kind == 0x00 and size == _INFORMATION.size:
                    value = _INFORMATION.unpack_from(data, offset)[3]
                elif kind == 0x02 and size == _KEY_SPECIFIC.size:
                    pointer = FieldPointer.unpack(_KEY_SPECIFIC.unpack_from(data, offset)[2])
                offset += size
            return cls(SenseKey(key & 0xF), AdditionalSense(asc << 8 | ascq), value, pointer)
        raise ValueError(f"{data.hex(' ') or 'nothing'} is no sense data: it begins with 70h or 72h, and is complete")
