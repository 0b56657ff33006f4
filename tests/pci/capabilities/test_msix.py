from __future__ import annotations

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import (
    FunctionEvents,
    MemoryBar,
    MsiX,
    PciAttributes,
    Register,
    RegisterBlock,
    build_function,
)


class Registers(RegisterBlock):
    control = Register(0x00)
    last = Register(0x1004)


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000


class Card(Base):
    msix = MsiX(vectors=20)
    bar0 = MemoryBar(4096, registers=RegisterBlock)


def test_control_register() -> None:
    seen: list[tuple[bool, bool]] = []
    device = Card()
    function = build_function(device, FunctionEvents(on_msix=lambda on, masked: seen.append((on, masked))))
    assert function.config.read(0x42, 2) == 19
    function.config.write(0x42, 2, 0xFFFF)
    assert function.config.read(0x42, 2) == 0xC013
    function.config.write(0x42, 2, 0x8000)
    function.config.write(0x43, 1, 0x00)
    assert seen == [(True, True), (True, False), (False, False)]
    function.config.write(0x44, 8, 0)
    assert function.config.read(0x44, 8) == 0x0000_0801_0000_0001


def test_table_behind_the_bar_works() -> None:
    seen: list[tuple[int, bool]] = []
    device = Card()
    function = build_function(device, FunctionEvents(on_msix_mask=lambda vector, on: seen.append((vector, on))))
    region = function.regions[1]
    region.write(0x10, 8, 0xFEE0_1000)
    region.write(0x18, 8, 0x4042)
    assert device.msix.table.entry(1) == (0xFEE0_1000, 0x4042, False)
    assert region.read(0x18, 4) == 0x4042
    assert seen == [(1, False)]
    assert device.msix.is_masked(0)
    assert not device.msix.is_masked(1)
    function.config.write(0x42, 2, 0x4000)
    assert device.msix.is_masked(1) is True
    region.write(0x20 * 16, 4, 5)  # behind the last vector: plain memory of the BAR made for it


def test_pending_bits_behind_the_bar() -> None:
    device = Card()
    region = build_function(device).regions[1]
    device.msix.set_pending(17, True)
    assert region.read(0x800, 8) == 1 << 17
    region.write(0x800, 8, 0)
    assert region.read(0x802, 1) == 2
    device.msix.set_pending(17, False)
    assert region.read(0x800, 8) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": 0}, "vectors=0; MSI-X has 1 to 2048"),
        ({"vectors": 2049}, "vectors=2049"),
        ({"vectors": 1, "table_offset": 8}, "table_offset=0x8 says nothing without bar="),
        ({"vectors": 1, "pba_offset": 8}, "pba_offset=0x8 says nothing without bar="),
        ({"vectors": 1, "bar": 0, "table_offset": 4}, "table_offset=0x4; the registers hold multiples of 8"),
        ({"vectors": 1, "bar": 6}, "bar=6; BARs count from 0 to 5"),
    ],
)
def test_impossible_declarations_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        MsiX(**options)
