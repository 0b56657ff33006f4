from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import FunctionEvents, Msi, PciAttributes, build_function


def make(**options: bool | int) -> type[PciAttributes]:
    namespace = {"vendor_id": 0x1234, "device_id": 1, "class_code": 0xFF0000, "msi": Msi(**options)}  # type: ignore[arg-type]
    return type("Card", (PciAttributes,), namespace)


class Card(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
    msi = Msi(vectors=8, per_vector_masking=True)


@pytest.mark.parametrize(
    ("address_64", "masking", "size", "control"),
    [(False, False, 12, 0x0004), (True, False, 16, 0x0084), (False, True, 20, 0x0104), (True, True, 24, 0x0184)],
)
def test_layout_and_size_follow_the_options(address_64: bool, masking: bool, size: int, control: int) -> None:
    config = build_function(make(vectors=4, address_64=address_64, per_vector_masking=masking)()).config
    assert config.read(0x42, 2) == control
    config.write(0x44, 8, 0xFFFF_FFFF_FFFF_FFFF)
    config.write(0x4C, 8, 0xFFFF_FFFF_FFFF_FFFF)
    config.write(0x54, 8, 0xFFFF_FFFF_FFFF_FFFF)
    data = "ffff0000"
    mask = "0f000000" if masking else ""
    high = "ffffffff" if address_64 else ""
    expected = f"fcffffff{high}{data}{mask}"
    assert config.read_bytes(0x44, 0x1C).hex() == expected.ljust(56, "0")
    assert (make(address_64=address_64, per_vector_masking=masking).__dict__["msi"].size) == size


def test_message_is_what_software_wrote() -> None:
    device = Card()
    config = build_function(device).config
    config.write(0x44, 4, 0xFEE0_0003)
    config.write(0x48, 4, 0x1)
    config.write(0x4C, 4, 0xFFFF_4041)
    assert device.msi.message == (0x1_FEE0_0000, 0x4041)


def test_message_of_32_bits() -> None:
    class Small(PciAttributes):
        vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
        msi = Msi(address_64=False)

    device = Small()
    config = build_function(device).config
    config.write(0x44, 8, 0x0000_4041_FEE0_0000)
    assert device.msi.message == (0xFEE0_0000, 0x4041)


def test_software_gets_no_more_vectors_than_there_are() -> None:
    seen: list[tuple[bool, int]] = []
    device = Card()
    config = build_function(device, FunctionEvents(on_msi=lambda on, count: seen.append((on, count)))).config
    assert (device.msi.enabled, device.msi.vectors_enabled) == (False, 0)
    config.write(0x42, 2, 0x0021)
    config.write(0x42, 2, 0x0051)  # asks for 32
    config.write(0x42, 2, 0x0051)
    config.write(0x42, 1, 0x00)
    assert seen == [(True, 4), (True, 8), (False, 0)]
    assert config.read(0x42, 2) == 0x0186


def test_masks_and_pending_bits() -> None:
    seen: list[tuple[int, bool]] = []
    device = Card()
    config = build_function(device, FunctionEvents(on_msi_mask=lambda vector, on: seen.append((vector, on)))).config
    config.write(0x50, 4, 0xFFFF_FF05)
    config.write(0x50, 1, 0x04)
    assert seen == [(0, True), (2, True), (0, False)]
    assert device.msi.masked == 4
    device.msi.set_pending(2, True)
    device.msi.set_pending(7, True)
    assert config.read(0x54, 4) == 0x84
    config.write(0x54, 4, 0)
    assert config.read(0x54, 4) == 0x84
    device.msi.set_pending(2, False)
    assert config.read(0x54, 4) == 0x80
    with pytest.raises(IndexError, match="MSI vector 8 of 8"):
        device.msi.set_pending(8, True)


def test_pending_without_masking_shows_nowhere() -> None:
    class Plain(PciAttributes):
        vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
        msi = Msi()

    device = Plain()
    config = build_function(device).config
    device.msi.set_pending(0, True)
    assert config.read(0x54, 4) == 0
    assert device.msi.masked == 0


def test_pending_of_32_bit_addresses() -> None:
    class Small(PciAttributes):
        vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
        msi = Msi(address_64=False, per_vector_masking=True)

    device = Small()
    config = build_function(device).config
    device.msi.set_pending(0, True)
    config.write(0x4C, 4, 1)
    assert (config.read(0x50, 4), device.msi.masked) == (1, 1)


@pytest.mark.parametrize(("vectors", "better"), [(0, 1), (3, 4), (33, 32), (-1, 1)])
def test_impossible_numbers_of_vectors_are_refused(vectors: int, better: int) -> None:
    with pytest.raises(DefinitionError, match=rf"vectors={vectors};.*write vectors={better}, or use MsiX"):
        Msi(vectors=vectors)
