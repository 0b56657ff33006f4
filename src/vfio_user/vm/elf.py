"""As much of ELF as the guest kit asks: is it 64-bit, which libraries does it need, can it start as a PVH kernel.

Spec: System V ABI, chapters 4 and 5; the PVH note is ``XEN_ELFNOTE_PHYS32_ENTRY`` of Xen's ``elfnote.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ElfFile", "is_elf"]

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_XEN_ELFNOTE_PHYS32_ENTRY = 18


def is_elf(content: bytes) -> bool:
    """Whether the bytes begin like a 64-bit little-endian ELF file."""
    return content[:6] == b"\x7fELF\x02\x01"


@dataclass(frozen=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


class ElfFile:
    """A 64-bit little-endian ELF file in memory.

    Raises:
        ValueError: the bytes are not one.
    """

    def __init__(self, content: bytes) -> None:
        if not is_elf(content):
            raise ValueError(f"not a 64-bit little-endian ELF file: begins {content[:6].hex()}")
        self._content = content
        try:
            (offset,) = struct.unpack_from("<Q", content, 32)
            entry_size, count = struct.unpack_from("<HH", content, 54)
            self._segments = []
            for index in range(count):
                kind, _flags, at, address, _physical, size = struct.unpack_from(
                    "<IIQQQQ", content, offset + index * entry_size
                )
                self._segments.append(_Segment(kind, at, address, size))
        except struct.error as error:
            raise ValueError(f"the ELF file is cut short: {error}") from error

    @property
    def is_static(self) -> bool:
        """Whether it starts without a dynamic loader."""
        return not any(segment.kind == _PT_INTERP for segment in self._segments)

    @property
    def interpreter(self) -> str | None:
        """The path of the dynamic loader it asks for, None when it is static or a library."""
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return self._content[segment.offset : segment.offset + segment.size].rstrip(b"\0").decode()
        return None

    @property
    def needed(self) -> list[str]:
        """The names of the shared libraries it is linked with, in order."""
        entries = list(self._dynamic())
        for tag, value in entries:
            if tag == _DT_STRTAB:
                table = self._offset_of(value)
                return [self._string(table + offset) for kind, offset in entries if kind == _DT_NEEDED]
        return []

    @property
    def has_pvh_entry(self) -> bool:
        """Whether a kernel tells where to enter it directly, as QEMU's ``-kernel`` needs of an uncompressed one."""
        return any(name == b"Xen\0" and kind == _XEN_ELFNOTE_PHYS32_ENTRY for name, kind in self._notes())

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        for segment in self._segments:
            if segment.kind == _PT_DYNAMIC:
                for offset in range(segment.offset, segment.offset + segment.size, 16):
                    tag, value = struct.unpack_from("<QQ", self._content, offset)
                    if tag == _DT_NULL:
                        return
                    yield tag, value

    def _notes(self) -> Iterator[tuple[bytes, int]]:
        for segment in self._segments:
            if segment.kind != _PT_NOTE:
                continue
            offset, end = segment.offset, segment.offset + segment.size
            while offset + 12 <= end:
                name_size, value_size, kind = struct.unpack_from("<III", self._content, offset)
                yield self._content[offset + 12 : offset + 12 + name_size], kind
                offset += 12 + (name_size + 3 & ~3) + (value_size + 3 & ~3)

    def _offset_of(self, address: int) -> int:
        for segment in self._segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise ValueError(f"address {address:#x} is in no segment of the ELF file")

    def _string(self, offset: int) -> str:
        return self._content[offset : self._content.index(b"\0", offset)].decode()
