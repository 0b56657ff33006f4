from __future__ import annotations

from typing import Any

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import (
    IoBar,
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


def places(**namespace: Any) -> tuple[int, int]:
    """The two location registers of a class with these attributes."""
    config = build_function(type("Made", (Base,), namespace)()).config
    return config.read(0x44, 4), config.read(0x48, 4)


@pytest.mark.parametrize(
    ("vectors", "size", "pba"),
    [(1, 4096, 0x800), (128, 4096, 0x800), (129, 8192, 0x1000), (2048, 65536, 0x8000)],
)
def test_a_bar_of_its_own_is_as_large_as_needed(vectors: int, size: int, pba: int) -> None:
    class Own(Base):
        msix = MsiX(vectors=vectors)

    function = build_function(Own())
    assert function.regions[0].size == size
    assert function.config.read(0x44, 8) == pba << 32


def test_the_first_free_index_is_taken() -> None:
    assert places(msix=MsiX(vectors=1), bar0=MemoryBar(4096, width=64), bar3=MemoryBar(16))[0] == 2
    assert places(msix=MsiX(vectors=1, bar=4), bar0=MemoryBar(4096))[0] == 4


def test_behind_the_registers_of_a_bar() -> None:
    assert places(msix=MsiX(vectors=8, bar=0), bar0=MemoryBar(16 << 10, registers=Registers)) == (0x2000, 0x3000)
    assert places(msix=MsiX(vectors=8, bar=0), bar0=MemoryBar(8 << 10, registers=Registers)) == (0x1010, 0x1090)


def test_registers_and_table_share_a_bar() -> None:
    class Shared(Base):
        msix = MsiX(vectors=8, bar=2)
        bar2 = MemoryBar(16 << 10, registers=Registers)

    device = Shared()
    region = build_function(device).regions[2]
    region.write(0x1004, 4, 7)
    region.write(0x2000, 4, 0xFEE0_0000)
    device.msix.set_pending(1, True)
    assert device.bar2.last == 7
    assert device.msix.table.entry(0)[0] == 0xFEE0_0000
    assert region.read(0x3000, 8) == 2
    assert len(region.read_bytes(0, 0x4000)) == 0x4000


def test_explicit_places() -> None:
    assert places(
        msix=MsiX(vectors=4, bar=0, table_offset=0x800, pba_bar=1, pba_offset=0x10),
        bar0=MemoryBar(4096),
        bar1=MemoryBar(4096),
    ) == (0x800, 0x11)


def test_pending_bits_in_another_bar_than_a_new_table() -> None:
    assert places(msix=MsiX(vectors=4, pba_bar=1), bar1=MemoryBar(16 << 10, registers=Registers)) == (0x0, 0x2001)


def test_plain_memory_can_be_shared_at_explicit_places() -> None:
    class Shared(Base):
        msix = MsiX(vectors=1, bar=0, table_offset=0x100, pba_offset=0x200)
        bar0 = MemoryBar(4096)

    device = Shared()
    region = build_function(device).regions[0]
    region.write(0x100, 4, 0xFEE0_0000)
    region.write(0x300, 4, 3)
    assert device.msix.table.entry(0)[0] == 0xFEE0_0000
    assert device.bar0.memory[0x100:0x104] == bytes(4)
    assert device.bar0.memory[0x300] == 3


def test_with_six_bars_the_first_with_room_is_shared() -> None:
    bars = {f"bar{index}": MemoryBar(4096) for index in range(5)}
    assert places(msix=MsiX(vectors=1), bar5=MemoryBar(16 << 10, registers=Registers), **bars) == (0x2005, 0x3005)
    with pytest.raises(DefinitionError, match="all six BARs are taken"):
        places(msix=MsiX(vectors=1), bar5=IoBar(4), **bars)
    with pytest.raises(DefinitionError, match="all six BARs are taken"):
        places(msix=MsiX(vectors=512), bar5=MemoryBar(8 << 10, registers=Registers), **bars)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bar": 1}, r"bar 1 is not declared; there are: bar0, bar2, bar3"),
        ({"bar": 2}, "bar 2 is an I/O BAR"),
        ({"bar": 3}, "what of bar 3 .* is free cannot be known"),
        ({"bar": 0, "table_offset": 0x1000}, r"the table \[0x1000, 0x1080\) of bar 0 overlaps register last"),
        ({"bar": 3, "table_offset": 0, "pba_offset": 0x78}, r"pending bits at 0x78 lie in the table, \[0x0, 0x80\)"),
        ({"bar": 3, "table_offset": 0xFF0, "pba_offset": 0}, r"the table \[0xff0, 0x1070\) leaves bar 3"),
    ],
)
def test_impossible_places_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        places(
            msix=MsiX(vectors=8, **options),
            bar0=MemoryBar(16 << 10, width=64, registers=Registers),
            bar2=IoBar(32),
            bar3=MemoryBar(4096),
        )


def test_bar_without_room_is_refused() -> None:
    with pytest.raises(
        DefinitionError, match=r"bar 0 of 0x2000 bytes .* has no 8192 bytes free behind its 0x1008 used"
    ):
        places(msix=MsiX(vectors=512, bar=0), bar0=MemoryBar(8 << 10, registers=Registers))


def test_the_table_leaves_room_for_the_pending_bits() -> None:
    # On a page of its own the table would fill the BAR to its end.
    assert places(msix=MsiX(vectors=512, bar=0), bar0=MemoryBar(16 << 10, registers=Registers)) == (0x1010, 0x3010)


def test_equal_offsets_of_two_bars_are_no_overlap() -> None:
    assert places(
        msix=MsiX(vectors=4, bar=0, table_offset=0, pba_bar=1, pba_offset=0),
        bar0=MemoryBar(4096),
        bar1=MemoryBar(4096),
    ) == (0, 1)
