from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import (
    FunctionEvents,
    PciAttributes,
    SubsystemIds,
    VendorSpecific,
    VitalProductData,
    build_function,
    build_vital_product_data,
)

VPD = build_vital_product_data("Card", {"PN": "X-1", "SN": b"42"}, {"YA": "tag"})


class Card(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0xFF0000
    vpd = VitalProductData(VPD, writable=range(31, 34))
    ids = SubsystemIds(0x1AF4, 0x1100)
    private = VendorSpecific(b"hello")
    scratch = VendorSpecific(bytes(5), writable=True)


def test_vital_product_data_is_tags_keywords_and_a_checksum() -> None:
    assert (b"\x82\x04\x00Card\x90\x0f\x00PN\x03X-1SN\x0242RV\x01" + VPD[24:25] + b"\x91\x06\x00YA\x03tag\x78") == VPD
    assert sum(VPD[:25]) % 256 == 0
    assert build_vital_product_data("", {})[-1] == 0x78


def test_vital_product_data_is_read_by_address_and_flag() -> None:
    config = build_function(Card()).config
    data = b""
    for address in range(0, 40, 4):
        config.write(0x42, 2, address)
        assert config.read(0x42, 2) == 0x8000 | address  # done
        data += config.read_bytes(0x44, 4)
    assert data == VPD.ljust(40, b"\0")
    config.write(0x42, 2, 0x7FFC)
    assert config.read(0x44, 4) == 0


def test_vital_product_data_is_written_where_it_may_be() -> None:
    seen: list[tuple[str, str]] = []
    device = Card()
    config = build_function(device, FunctionEvents(on_capability=lambda *what: seen.append(what))).config
    for address in (0, 32, 0x7FFC):
        config.write(0x44, 4, 0x44434241)
        config.write(0x42, 2, 0x8000 | address)
        assert config.read(0x42, 2) == address  # done
    assert bytes(device.vpd.memory) == VPD[:32] + b"AB" + VPD[34:] + b"\0"
    assert seen == [("vpd", "word")] * 3
    assert bytes(Card.vpd.memory) == VPD + b"\0"


def test_other_identifying_capabilities() -> None:
    config = build_function(Card()).config
    assert config.read_bytes(0x48, 8).hex() == "0d500000f41a0011"
    assert config.read_bytes(0x50, 8) == b"\x09\x58\x08hello"
    assert config.read_bytes(0x58, 8).hex() == "0900080000000000"
    for offset in range(0x48, 0x60, 4):
        config.write(offset, 4, 0xFFFF_FFFF)
    assert config.read_bytes(0x48, 16) == b"\x0d\x50\0\0\xf4\x1a\x00\x11\x09\x58\x08hello"
    assert config.read_bytes(0x58, 8).hex() == "090008ffffffffff"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="32769 bytes; the address has 15 bits"):
        VitalProductData(bytes(32769))
    with pytest.raises(DefinitionError, match="subsystem_id=0x10000"):
        SubsystemIds(1, 0x10000)
    with pytest.raises(DefinitionError, match=r"203 bytes.*use VendorSpecificExtended"):
        VendorSpecific(bytes(200))
    with pytest.raises(DefinitionError, match="'SERIAL' with 1 bytes"):
        build_vital_product_data("x", {"SERIAL": "1"})
    with pytest.raises(DefinitionError, match="'SN' with 256 bytes"):
        build_vital_product_data("x", {"SN": bytes(256)})
