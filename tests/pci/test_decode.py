"""Configuration space read from its bytes: against what the device knows of itself, and of bytes that lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.pci.test_dump import everything
from tests.pci.walker import capabilities, extended_capabilities
from vfio_user.pci import Msi, PciAttributes, PciExpress, VendorSpecific, build_function
from vfio_user.pci.decode import CapabilityInWords, ConfigInWords, decode_config


def named(found: ConfigInWords, name: str, *, extended: bool = False) -> CapabilityInWords:
    return next(each for each in found.capabilities if (each.name, each.extended) == (name, extended))


def values(capability: CapabilityInWords) -> dict[str, int]:
    return {register.name: register.value for register in capability.registers}


def fields(capability: CapabilityInWords, register: str) -> dict[str, int | str]:
    [found] = [each for each in capability.registers if each.name == register]
    return {field.name: field.meaning or field.value for field in found.fields}


def config_of(cls: type[PciAttributes], size: int) -> bytes:
    return build_function(cls()).config.read_bytes(0, size)


def test_everything_that_can_be_declared_is_named() -> None:
    config = everything()
    found = decode_config(config)
    places = [(each.cap_id, each.offset) for each in capabilities(config)]
    places += [(each.cap_id, each.offset) for each in extended_capabilities(config)]
    assert [(each.cap_id, each.offset) for each in found.capabilities] == places
    assert all(each.name and each.registers for each in found.capabilities)
    assert found.faults == ()


def test_every_register_is_where_it_says_and_reads_as_it_says() -> None:
    config = everything()
    found = decode_config(config)
    registers = [*found.header, *(register for each in found.capabilities for register in each.registers)]
    for register in registers:
        assert int.from_bytes(config[register.offset : register.offset + register.size], "little") == register.value
    claimed = sorted((register.offset, register.offset + register.size) for register in registers)
    assert all(before[1] <= after[0] for before, after in pairwise(claimed))


def test_header() -> None:
    header = {register.name: register for register in decode_config(everything()).header}
    assert header["vendor_id"].value == 0x1AF4
    assert {field.name for field in header["command"].fields if field.value} == {
        "io_space",
        "memory_space",
        "bus_master",
    }
    assert header["bars[2]"].value == 0xC001


def test_capabilities_end_where_they_say() -> None:
    found = decode_config(everything())
    assert fields(named(found, "Power Management"), "control")["power_state"] == "D0"
    assert named(found, "Vendor Specific").contents == b"hello"
    assert named(found, "Vendor Specific", extended=True).contents == bytes(4)
    assert named(found, "Designated Vendor Specific", extended=True).contents == bytes(2)
    assert set(values(named(found, "Resizable BAR", extended=True))) == {"capability[0]", "control[0]"}
    assert set(values(named(found, "TPH Requester", extended=True))) == {"capability", "control"}
    assert set(values(named(found, "Access Control Services", extended=True))) == {"capability", "control"}


@pytest.mark.parametrize(
    ("address_64", "masking", "registers"),
    [
        (False, False, {"control", "address", "data_32"}),
        (True, False, {"control", "address", "address_high", "data_64"}),
        (False, True, {"control", "address", "data_32", "mask_32", "pending_32"}),
        (True, True, {"control", "address", "address_high", "data_64", "mask_64", "pending_64"}),
    ],
)
def test_forms_of_msi(address_64: bool, masking: bool, registers: set[str]) -> None:
    class Function(PciAttributes):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000
        msi = Msi(vectors=2, address_64=address_64, per_vector_masking=masking)

    assert set(values(named(decode_config(config_of(Function, 256)), "MSI"))) == registers


def test_version_1_of_pci_express_is_shorter() -> None:
    class Function(PciAttributes):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000
        express = PciExpress()

    config = bytearray(config_of(Function, 4096))
    at = config[0x34]
    assert "link_status_2" in values(named(decode_config(config), "PCI Express"))
    config[at + 2] = 1
    assert list(values(named(decode_config(config), "PCI Express")))[-1] == "link_status"


def test_what_runs_into_the_next_capability_is_cut() -> None:
    class Function(PciAttributes):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000
        vendor = VendorSpecific(b"abcdefgh", at=0x40)
        msi = Msi(at=0x50)

    config = bytearray(config_of(Function, 256))
    config[0x42] = 0xFF  # it claims 255 bytes
    assert named(decode_config(config), "Vendor Specific").contents == b"abcdefgh" + bytes(5)


def test_a_bridge_and_an_unknown_capability() -> None:
    config = bytearray(256)
    config[0x0E] = 1
    config[0x06], config[0x34], config[0x40] = 0x10, 0x40, 0xEE
    found = decode_config(config)
    assert "bars[0]" not in {register.name for register in found.header}
    assert found.faults == ("header type 1 is no endpoint's: what stands behind the first 16 bytes is not decoded",)
    assert [(each.cap_id, each.name, each.registers) for each in found.capabilities] == [(0xEE, "", ())]


@pytest.mark.parametrize(
    ("pointer", "following", "fault"),
    [(0x40, 0x40, "leads back, to 0x40"), (0x40, 0x10, "leads into the header, to 0x10"), (0x3C, 0, "header, to 0x3c")],
)
def test_chains_that_lead_nowhere(pointer: int, following: int, fault: str) -> None:
    config = bytearray(256)
    config[0x06], config[0x34], config[0x40:0x42] = 0x10, pointer, bytes([0x09, following])
    assert fault in decode_config(config).faults[0]


def test_extended_chains_that_lead_nowhere() -> None:
    config = bytearray(4096)
    config[0x100:0x104] = (0x100 << 20 | 1 << 16 | 3).to_bytes(4, "little")
    assert decode_config(config).faults == ("the chain of extended capabilities leads back, to 0x100",)
    config[0x100:0x104] = b"\xff\xff\xff\xff"
    assert decode_config(config) == decode_config(config[:0x104] + bytes(4096 - 0x104))


@given(st.binary(max_size=300), st.integers(0, 255), st.binary(max_size=64))
@example(b"", 0, b"")
def test_no_bytes_make_it_raise(start: bytes, pointer: int, extended: bytes) -> None:
    config = bytearray(start)
    if len(config) > 0x40:
        config[0x06] |= 0x10
        config[0x34] = pointer
    found = decode_config(bytes(config))
    assert len(found.capabilities) <= 48
    if extended:
        config = bytearray(everything())
        config[0x100 : 0x100 + len(extended)] = extended
        found = decode_config(bytes(config))
        assert len(found.capabilities) <= 48 + 960
