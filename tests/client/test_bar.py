"""BARs: found by sizing, placed, accessed through an overlay."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest

from vfio_user.client.bar import find_bars
from vfio_user.client.pci_function import PciFunction
from vfio_user.pci import IoBar, MemoryBar, Register, RegisterBlock
from vfio_user.regions import MemoryRegion
from vfio_user.server.pci_device import PciDevice
from vfio_user.testing.in_process import DeviceUnderTest

MiB = 1 << 20


class Registers(RegisterBlock):
    """One register."""

    value = Register(0x10)


class Overlay:
    """Bytes 0x20 to 0x30, kept here."""

    start, end = 0x20, 0x30

    def __init__(self) -> None:
        self.log: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append((offset, size))
        return 0xAA

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


class Card(PciDevice):
    """BARs of every kind."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    bar0 = MemoryBar(size=4096, registers=Registers)
    bar1 = IoBar(size=8)
    bar4 = MemoryBar(size=2 * MiB, width=64, prefetchable=True)


@pytest.fixture
def function() -> Iterator[PciFunction]:
    with DeviceUnderTest(Card()) as under_test:
        yield under_test.function


def test_found_and_placed(function: PciFunction) -> None:
    bars = function.bars
    assert {index: (bar.size, bar.is_io, bar.is_64bit, bar.prefetchable) for index, bar in bars.items()} == {
        0: (4096, False, False, False),
        1: (8, True, False, False),
        4: (2 * MiB, False, True, True),
    }
    assert repr(bars[1]) == "<BAR1: 0x8 bytes at 0x1000, I/O>"
    spans = sorted((bar.address, bar.address + bar.size) for bar in bars.values() if not bar.is_io)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert all(bar.address % bar.size == 0 for bar in bars.values())
    config = function.config
    assert config.read32(0x10) == bars[0].address
    assert config.read32(0x14) == bars[1].address | 1
    assert (config.read32(0x20), config.read32(0x24)) == (bars[4].address | 0xC, 0)


def test_sizing_leaves_the_addresses_as_they_were(function: PciFunction) -> None:
    before = [function.config.read32(0x10 + 4 * index) for index in range(6)]
    find_bars(function.client, function.config)
    assert [function.config.read32(0x10 + 4 * index) for index in range(6)] == before


def test_large_bars_go_above_four_gigabytes() -> None:
    class Large(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
        bar2 = MemoryBar(size=1 << 36, width=64, prefetchable=True, region=lambda _: Sparse())

    class Sparse(MemoryRegion):
        def __init__(self) -> None:
            super().__init__(0)
            self.size = 1 << 36

    with DeviceUnderTest(Large()) as under_test:
        bar = under_test.function.bar2
        assert (bar.size, bar.address) == (1 << 36, 0x80_0000_0000)
        assert under_test.function.config.read32(0x1C) == 0x80


def test_registers_by_name(function: PciFunction) -> None:
    function.bar0.registers(Registers).value = 5
    assert function.bar0.read32(0x10) == 5
    assert function.bar4.registers(Registers, 0x100).value == 0


def test_an_overlay(function: PciFunction) -> None:
    bar, overlay = function.bar4, Overlay()
    bar.overlay(overlay)
    assert (bar.read32(0x20), bar.read8(0x2F), bar.read8(0x1F), bar.read8(0x30)) == (0xAA, 0xAA, 0, 0)
    bar.write16(0x22, 5, posted=True)
    bar.write16(0x30, 6)
    assert bar.read16(0x30) == 6
    assert overlay.log == [(0, 4), (15, 1), (2, 2, 5)]


def test_sizing_that_contradicts_the_description(caplog: pytest.LogCaptureFixture) -> None:
    device = Card()
    device.set_region(0, MemoryRegion(256))
    device.set_region(2, MemoryRegion(16))
    with caplog.at_level(logging.WARNING, "vfio_user.client"), DeviceUnderTest(device) as under_test:
        assert under_test.function.bar0.size == 256
        assert under_test.function.bar2.size == 16
    assert [record.getMessage() for record in caplog.records] == [
        "BAR0 decodes 0x1000 bytes, and its region has 0x100: a guest will see the first",
        "BAR2 decodes 0x0 bytes, and its region has 0x10: a guest will see the first",
    ]
