from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import DefinitionError
from vfio_user.pci.rom import MAX_ROM_SIZE, OptionRom, RomImage, build_option_rom, parse_images


def minimal() -> bytes:
    return build_option_rom(vendor_id=0x1234, device_id=0x11E8, class_code=0x00FF00)


def test_generated_rom_is_one_last_image_for_the_device() -> None:
    assert parse_images(minimal()) == (
        RomImage(offset=0, size=512, vendor_id=0x1234, device_id=0x11E8, class_code=0x00FF00, code_type=0, last=True),
    )


@given(code=st.binary(max_size=5000))
def test_generated_rom_holds_the_code_and_sums_to_zero(code: bytes) -> None:
    rom = build_option_rom(vendor_id=1, device_id=2, code=code)
    assert len(rom) == rom[2] * 512
    assert sum(rom) % 256 == 0
    entry = 3 + 2 + rom[4]  # EB rel8: relative to the next instruction
    assert rom[3] == 0xEB
    assert rom[entry : entry + len(code)] == code


def test_code_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="131072 bytes"):
        build_option_rom(vendor_id=1, device_id=2, code=bytes(131072))


def test_rom_is_padded_to_a_power_of_two_of_at_least_2_kib() -> None:
    rom = OptionRom(minimal())
    assert rom.size == 2048
    assert rom.read_bytes(0, 2048) == minimal() + b"\xff" * 1536
    assert OptionRom(bytes(2049), check=False).size == 4096
    assert OptionRom(bytes(4096), check=False).size == 4096


def test_rom_reads_and_drops_writes() -> None:
    rom = OptionRom(minimal())
    assert rom.read(0, 2) == 0xAA55
    assert not rom.writable
    rom.write(0, 2, 0)
    rom.write_bytes(0, b"\0\0")
    assert rom.read(0, 2) == 0xAA55


def test_rom_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "option.rom"
    path.write_bytes(minimal())
    assert OptionRom(path).images == parse_images(minimal())


def test_chain_of_images_is_walked() -> None:
    first = build_option_rom(vendor_id=0x1234, device_id=0x11E8, code=bytes(600), last=False)
    images = parse_images(first + minimal())
    assert [(image.offset, image.last) for image in images] == [(0, False), (1024, True)]
    assert sum(first) % 256 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 0x54}, "begins with 55 aa, found 54 aa"),
        ({0x18: 0xFF, 0x19: 0xFF}, "PCIR structure at 0xffff, where there is none"),
        ({0x1C: 0}, "PCIR structure at 0x1c, where there is none"),
        ({0x1C + 0x10: 2}, "says it is 1024 bytes long, the ROM has 512 left"),
        ({0x1C + 0x10: 0}, "says it is 0 bytes long"),
        ({0x1C + 0x15: 0}, "an image at 0x200 begins with 55 aa, found nothing"),
    ],
)
def test_broken_images_are_refused(change: dict[int, int], message: str) -> None:
    rom = bytearray(minimal())
    for offset, value in change.items():
        rom[offset] = value
    with pytest.raises(DefinitionError, match=message):
        OptionRom(bytes(rom))
    assert OptionRom(bytes(rom), check=False).images == ()


def test_image_without_room_for_its_pointer_is_refused() -> None:
    with pytest.raises(DefinitionError, match="ends before its PCIR pointer"):
        OptionRom(b"\x55\xaa" + bytes(10))


def test_empty_and_oversized_roms_are_refused() -> None:
    with pytest.raises(DefinitionError, match="0 bytes"):
        OptionRom(b"")
    with pytest.raises(DefinitionError, match="16 MiB"):
        OptionRom(bytes(MAX_ROM_SIZE + 1))


@given(st.binary(max_size=600))
def test_any_contents_give_images_or_a_definition_error(tail: bytes) -> None:
    for contents in (tail, b"\x55\xaa" + tail, minimal()[:0x1C] + tail):
        try:
            images = parse_images(contents)
        except DefinitionError:
            continue
        assert images[-1].last
