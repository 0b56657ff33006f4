"""Option ROMs: the expansion ROM of a function, checked when it is declared and read by firmware.

A ROM is a chain of images. Each begins with ``55 AA`` and points to a data structure (``PCIR``) that names the device
it is for, its length, and whether another image follows. Firmware skips what it cannot parse without a word, so a
broken ROM is refused here, where the author still sees it.

Spec: PCI Firmware 3.x, chapter 5; PCI 3.0 6.2.5.2 (the base address register) and 6.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from vfio_user.errors import DefinitionError
from vfio_user.pci.overlay import ReadOnlyMemory

__all__ = ["MAX_ROM_SIZE", "MIN_ROM_SIZE", "OptionRom", "RomImage", "build_option_rom"]

#: The base address register's address begins at bit 11, so nothing smaller can be decoded.
MIN_ROM_SIZE = 2 << 10

#: "The maximum amount of space an Expansion ROM can occupy is 16 MB" (PCI 3.0 6.2.5.2).
MAX_ROM_SIZE = 16 << 20

_SIGNATURE = b"\x55\xaa"
_PCIR_POINTER = struct.Struct("<H")  # at offset 0x18 of an image
_PCIR = struct.Struct("<4sHHHHB3sHHBB")
_BLOCK = 512
_LAST_IMAGE = 0x80
_CODE_TYPE_PC = 0x00


@dataclass(frozen=True, kw_only=True)
class RomImage:
    """One image of an option ROM, as its headers describe it.

    Attributes:
        offset: bytes from the start of the ROM.
        size: bytes, a multiple of 512.
        vendor_id: of the device the image is for.
        device_id: of the device the image is for.
        class_code: 24 bits, of the device the image is for.
        code_type: 0 PC (BIOS), 1 Open Firmware, 3 EFI.
        last: no image follows.
    """

    offset: int
    size: int
    vendor_id: int
    device_id: int
    class_code: int
    code_type: int
    last: bool


class OptionRom(ReadOnlyMemory):
    """The ROM of a function: read only, padded to a power of two, its images checked.

    Args:
        contents: the ROM's bytes, or the file that holds them.
        check: walk the images and refuse what firmware would silently skip. Turn it off for deliberately broken ROMs.

    Attributes:
        images: what the ROM holds; empty when it was not checked.

    Raises:
        DefinitionError: the contents are empty, larger than 16 MiB, or no chain of option ROM images.
        OSError: the file cannot be read.
    """

    images: tuple[RomImage, ...] = ()

    def __init__(self, contents: bytes | Path, *, check: bool = True) -> None:
        if isinstance(contents, Path):
            contents = contents.read_bytes()
        if not contents:
            raise DefinitionError("an option ROM of 0 bytes: leave rom = None for a device without a ROM")
        if len(contents) > MAX_ROM_SIZE:
            raise DefinitionError(
                f"an option ROM of {len(contents)} bytes: PCI allows {MAX_ROM_SIZE} (16 MiB); put the rest behind a BAR"
            )
        if check:
            self.images = parse_images(contents)
        size = max(MIN_ROM_SIZE, 1 << (len(contents) - 1).bit_length())
        # Erased flash reads as ones, and no image begins with FF FF.
        super().__init__(contents.ljust(size, b"\xff"))


def parse_images(contents: bytes) -> tuple[RomImage, ...]:
    """Walks the chain of images.

    Args:
        contents: the whole ROM.

    Returns:
        The images, in order.

    Raises:
        DefinitionError: an image lacks its signature or its PCIR structure, or leaves the ROM.
    """
    images: list[RomImage] = []
    offset = 0
    while True:
        image = _parse_image(contents, offset)
        images.append(image)
        if image.last:
            return tuple(images)
        offset += image.size


def _parse_image(contents: bytes, offset: int) -> RomImage:
    signature = contents[offset : offset + 2]
    if signature != _SIGNATURE:
        found = signature.hex(" ") or "nothing"
        raise DefinitionError(
            f"option ROM: an image at {offset:#x} begins with 55 aa, found {found}; "
            "mark the image before it as the last one (bit 7 of the PCIR indicator), or pass check=False"
        )
    if offset + 0x1A > len(contents):
        raise DefinitionError(
            f"option ROM: the image at {offset:#x} ends before its PCIR pointer (offset 0x18, 2 bytes)"
        )
    pcir = offset + int(_PCIR_POINTER.unpack_from(contents, offset + 0x18)[0])
    if pcir + _PCIR.size > len(contents) or contents[pcir : pcir + 4] != b"PCIR":
        raise DefinitionError(
            f"option ROM: the image at {offset:#x} points to a PCIR structure at {pcir:#x}, where there is none; "
            "build_option_rom() makes a valid ROM, check=False takes this one as it is"
        )
    fields = _PCIR.unpack_from(contents, pcir)
    _, vendor_id, device_id, _, _, _, class_bytes, blocks, _, code_type, indicator = fields
    size = blocks * _BLOCK
    if not blocks or offset + size > len(contents):
        raise DefinitionError(
            f"option ROM: the image at {offset:#x} says it is {size} bytes long, the ROM has {len(contents) - offset} "
            f"left; its PCIR image length (offset {pcir + 0x10:#x}) counts blocks of 512 bytes"
        )
    return RomImage(
        offset=offset,
        size=size,
        vendor_id=vendor_id,
        device_id=device_id,
        class_code=int.from_bytes(class_bytes, "little"),
        code_type=code_type,
        last=bool(indicator & _LAST_IMAGE),
    )


def build_option_rom(
    *, vendor_id: int, device_id: int, class_code: int = 0, code: bytes = b"\xcb", last: bool = True
) -> bytes:
    """Makes a minimal valid option ROM: one PC image whose entry point runs ``code``.

    Larger ROMs are chains: ``build_option_rom(..., last=False) + build_option_rom(...)``.

    Args:
        vendor_id: of the device; SeaBIOS skips a ROM that names another one.
        device_id: of the device.
        class_code: 24 bits.
        code: what the entry point (offset 3) holds: 16-bit x86 code. The default returns at once.
        last: no image follows this one.

    Returns:
        The image: a multiple of 512 bytes, its bytes adding up to 0 modulo 256.

    Raises:
        DefinitionError: the code does not fit an image of 127.5 KiB.
    """
    pcir_offset = 0x1C
    code_offset = pcir_offset + _PCIR.size
    # The entry point has room for a jump alone before the pointer at 0x18: EB is a two-byte short jump.
    entry = bytes((0xEB, code_offset - 5))
    used = code_offset + len(code) + 1  # one byte for the checksum
    blocks = -(-used // _BLOCK)
    if blocks > 0xFF:
        raise DefinitionError(
            f"option ROM code of {len(code)} bytes: a PC image counts its 512-byte blocks in one byte"
        )
    image = bytearray(blocks * _BLOCK)
    image[0:2] = _SIGNATURE
    image[2] = blocks
    image[3:5] = entry
    _PCIR_POINTER.pack_into(image, 0x18, pcir_offset)
    class_bytes = class_code.to_bytes(3, "little")
    indicator = _LAST_IMAGE if last else 0
    _PCIR.pack_into(
        image,
        pcir_offset,
        *(b"PCIR", vendor_id, device_id, 0, _PCIR.size, 0, class_bytes, blocks, 0, _CODE_TYPE_PC, indicator),
    )
    image[code_offset : code_offset + len(code)] = code
    image[-1] = -sum(image) & 0xFF
    return bytes(image)
