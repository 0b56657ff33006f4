from __future__ import annotations

import mmap
import os
from typing import assert_type

import pytest

from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci.bars import IoBar, MemoryBar
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.pci.function import PciAttributes, build_function
from vfio_user.pci.registers import Register, RegisterBlock, ResetKind
from vfio_user.pci.shared_areas import SharedArea
from vfio_user.regions import PAGE_SIZE, CallbackRegion, MemoryRegion, Region, SharedMemoryRegion


class Registers(RegisterBlock):
    control = Register(0x00)
    tail = Register(0x100, count=4, stride=8)


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0x00FF00


class Card(Base):
    bar0 = MemoryBar(8 * PAGE_SIZE, registers=Registers)
    rings = bar0.shared_area(4 * PAGE_SIZE, 2 * PAGE_SIZE)
    tails = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)
    bar2 = MemoryBar(PAGE_SIZE, shared=True)


def test_the_class_has_the_declaration_and_the_device_the_memory() -> None:
    card = Card()
    build_function(card)
    assert_type(Card.tails, SharedArea)
    assert_type(card.tails, memoryview)
    assert_type(card.bar2, SharedMemoryRegion)
    assert isinstance(Card.tails, SharedArea)
    assert isinstance(card.bar0, Registers)
    assert (len(card.tails), len(card.rings), len(card.bar2.memory)) == (PAGE_SIZE, 2 * PAGE_SIZE, PAGE_SIZE)
    other = Card()
    build_function(other)
    other.tails[0] = 1
    assert card.tails[0] == 0
    assert str(Card.tails).startswith(f"tails = shared_area({PAGE_SIZE:#x}, {PAGE_SIZE:#x}) (")


class Sometimes(Base):
    bar0 = MemoryBar(8 * PAGE_SIZE, registers=Registers)
    over = bar0.shared_area(0, PAGE_SIZE, when=lambda device: device.is_mapped)
    half = bar0.shared_area(2 * PAGE_SIZE, PAGE_SIZE // 2, when=lambda device: device.is_odd)

    def __init__(self, *, is_mapped: bool, is_odd: bool = False) -> None:
        self.is_mapped, self.is_odd = is_mapped, is_odd


def test_an_area_some_devices_have_may_cover_registers() -> None:
    with_it, without = Sometimes(is_mapped=True), Sometimes(is_mapped=False)
    regions = build_function(with_it).regions[0], build_function(without).regions[0]
    assert [region.mappable_areas for region in regions] == [((0, PAGE_SIZE),), ()]
    for region in regions:
        region.write(0, 4, 7)
    assert (with_it.over[0], with_it.bar0.control, without.bar0.control) == (7, 0, 7)
    with pytest.raises(StateError, match=r"or its when= said that this one has none"):
        without.over  # noqa: B018


def test_an_area_some_devices_have_is_checked_where_it_is() -> None:
    build_function(Sometimes(is_mapped=True))
    with pytest.raises(DefinitionError, match="what is mapped are whole pages"):
        build_function(Sometimes(is_mapped=True, is_odd=True))


def test_an_unbuilt_device_says_so() -> None:
    with pytest.raises(StateError, match=r"tails is not built yet in this Card: call super\(\).__init__\(\)"):
        Card().tails  # noqa: B018


def test_areas_are_mapped_and_registers_beside_them_are_not() -> None:
    card = Card()
    region = build_function(card).regions[0]
    assert region.mappable_areas == ((PAGE_SIZE, PAGE_SIZE), (4 * PAGE_SIZE, 2 * PAGE_SIZE))
    assert region.mappable_fd is not None
    with mmap.mmap(region.mappable_fd, PAGE_SIZE, offset=5 * PAGE_SIZE) as theirs:
        theirs[:4] = b"ring"
    assert bytes(card.rings[PAGE_SIZE : PAGE_SIZE + 4]) == b"ring"
    assert region.read(5 * PAGE_SIZE, 4) == int.from_bytes(b"ring", "little")
    region.write(0, 4, 7)
    assert card.bar0.control == 7
    assert os.pread(region.mappable_fd, 4, 0) == bytes(4)


def test_a_whole_bar_is_mapped() -> None:
    card = Card()
    region = build_function(card).regions[2]
    assert region is card.bar2
    assert region.mappable_areas == ((0, PAGE_SIZE),)


@pytest.mark.parametrize("kind", list(ResetKind))
def test_a_reset_leaves_shared_memory_alone(kind: ResetKind) -> None:
    card = Card()
    function = build_function(card)
    card.tails[:4] = card.bar2.memory[:4] = b"kept"
    function.reset(kind)
    assert bytes(card.tails[:4]) == bytes(card.bar2.memory[:4]) == b"kept"


def test_plain_memory_and_made_regions_have_areas_too() -> None:
    class Two(Base):
        bar0 = MemoryBar(2 * PAGE_SIZE)
        page = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)
        bar1 = MemoryBar(2 * PAGE_SIZE, region=lambda _: CallbackRegion(64, read=lambda offset, _size: offset))
        other_page = bar1.shared_area(PAGE_SIZE, PAGE_SIZE)

    two = Two()
    regions = build_function(two).regions
    regions[0].write(PAGE_SIZE - 4, 4, 1)
    assert two.bar0.read(PAGE_SIZE - 4, 4) == 1
    two.other_page[0] = 9
    assert (regions[1].read(8, 4), regions[1].read(PAGE_SIZE, 1)) == (8, 9)


def test_a_made_region_may_have_areas_of_its_own() -> None:
    class Made(Base):
        bar0 = MemoryBar(4 * PAGE_SIZE, region=lambda _: SharedMemoryRegion(2 * PAGE_SIZE))

    made = Made()
    region = build_function(made).regions[0]
    assert region.size == 4 * PAGE_SIZE
    assert (region.mappable_areas, region.mappable_fd) == (((0, 2 * PAGE_SIZE),), made.bar0.mappable_fd)


def test_subclasses_inherit_drop_and_move_areas() -> None:
    class Larger(Card):
        bar0 = MemoryBar(16 * PAGE_SIZE, registers=Registers)
        rings = None  # type: ignore[assignment]
        tails = bar0.shared_area(8 * PAGE_SIZE, PAGE_SIZE)

    region = build_function(Larger()).regions[0]
    assert region.size == 16 * PAGE_SIZE
    assert region.mappable_areas == ((8 * PAGE_SIZE, PAGE_SIZE),)

    class Same(Card):
        pass

    assert build_function(Same()).regions[0].mappable_areas == build_function(Card()).regions[0].mappable_areas


def test_msix_beside_areas() -> None:
    class Beside(Base):
        msix = MsiX(vectors=4, bar=0, table_offset=2 * PAGE_SIZE, pba_offset=3 * PAGE_SIZE)
        bar0 = MemoryBar(8 * PAGE_SIZE, registers=Registers)
        tails = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)

    beside = Beside()
    region = build_function(beside).regions[0]
    assert region.mappable_areas == ((PAGE_SIZE, PAGE_SIZE),)
    assert region.read(2 * PAGE_SIZE + 12, 4) == 1  # a vector is masked at first


# What cannot be.


@pytest.mark.parametrize(
    ("offset", "size", "way_out"),
    [
        (PAGE_SIZE + 16, PAGE_SIZE, f"write shared_area({PAGE_SIZE:#x}, {2 * PAGE_SIZE:#x})"),
        (PAGE_SIZE, 100, f"write shared_area({PAGE_SIZE:#x}, {PAGE_SIZE:#x})"),
        (PAGE_SIZE, 0, f"write shared_area({PAGE_SIZE:#x}, {PAGE_SIZE:#x})"),
        (-PAGE_SIZE, PAGE_SIZE, f"write shared_area(0x0, {PAGE_SIZE:#x})"),
    ],
)
def test_areas_are_whole_pages(offset: int, size: int, way_out: str) -> None:
    with pytest.raises(DefinitionError, match="whole pages of 0x") as caught:
        MemoryBar(8 * PAGE_SIZE).shared_area(offset, size)
    assert str(caught.value).endswith(way_out)
    assert "test_shared_areas.py:" in str(caught.value)


def test_areas_do_not_overlap() -> None:
    with pytest.raises(DefinitionError, match=r"second = shared_area\(0x.*\): it overlaps first = shared_area\(0x"):

        class Wrong(Base):
            bar0 = MemoryBar(8 * PAGE_SIZE)
            first = bar0.shared_area(PAGE_SIZE, 2 * PAGE_SIZE)
            second = bar0.shared_area(2 * PAGE_SIZE, PAGE_SIZE)


def test_areas_do_not_cover_registers() -> None:
    with pytest.raises(
        DefinitionError, match=r"page = shared_area\(0x0, .*: register .*control.* of bar0 .* lies in it"
    ):

        class Wrong(Base):
            bar0 = MemoryBar(8 * PAGE_SIZE, registers=Registers)
            page = bar0.shared_area(0, PAGE_SIZE)


def test_areas_lie_in_their_bar() -> None:
    with pytest.raises(DefinitionError, match=r"page = .*: it leaves bar0 \(.*\), which has 0x"):

        class Wrong(Base):
            bar0 = MemoryBar(2 * PAGE_SIZE)
            page = bar0.shared_area(PAGE_SIZE, 2 * PAGE_SIZE)


def test_areas_of_a_dropped_bar() -> None:
    with pytest.raises(DefinitionError, match=r"rings = .*: there is no bar0: drop the area too, rings = None"):

        class Wrong(Card):
            bar0 = None  # type: ignore[assignment]


def test_areas_of_a_bar_that_became_io() -> None:
    with pytest.raises(DefinitionError, match=r"rings = .*: bar0 \(.*\) is an I/O BAR; only memory can be mapped"):

        class Wrong(Card):
            bar0 = IoBar(64)  # type: ignore[assignment]


def test_areas_of_a_bar_shared_whole() -> None:
    with pytest.raises(DefinitionError, match=r"all of bar2 \(.*\) is shared already"):

        class Wrong(Base):
            bar2 = MemoryBar(2 * PAGE_SIZE, shared=True)
            page = bar2.shared_area(PAGE_SIZE, PAGE_SIZE)


def test_an_area_has_one_name() -> None:
    with pytest.raises(DefinitionError, match=r"Wrong.again and .page are one declaration"):

        class Wrong(Base):
            bar0 = MemoryBar(2 * PAGE_SIZE)
            page = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)
            again = page


@pytest.mark.parametrize(
    ("table", "pba", "what"), [(PAGE_SIZE + 64, 0x800, "table"), (0x800, 2 * PAGE_SIZE - 16, "pending bits")]
)
def test_msix_does_not_lie_in_an_area(table: int, pba: int, what: str) -> None:
    with pytest.raises(DefinitionError, match=rf"page = .*: the MSI-X {what} \[0x.* lies in it, .*table_offset="):

        class Wrong(Base):
            msix = MsiX(vectors=4, bar=0, table_offset=table, pba_offset=pba)
            bar0 = MemoryBar(4 * PAGE_SIZE, registers=Registers)
            page = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)


def test_msix_does_not_lie_in_a_bar_shared_whole() -> None:
    with pytest.raises(DefinitionError, match=r"bar0 = MemoryBar .*: the MSI-X table .* lies in it"):

        class Wrong(Base):
            msix = MsiX(vectors=4, bar=0, table_offset=0, pba_offset=0x800)
            bar0 = MemoryBar(4 * PAGE_SIZE, shared=True)


def test_msix_does_not_lie_in_what_a_made_region_maps() -> None:
    class Wrong(Base):
        msix = MsiX(vectors=4, bar=0, table_offset=0, pba_offset=0x800)
        bar0 = MemoryBar(4 * PAGE_SIZE, region=lambda _: SharedMemoryRegion(4 * PAGE_SIZE))

    with pytest.raises(DefinitionError, match="MSI-X lies in an area of its region that can be mapped"):
        build_function(Wrong())


def test_a_made_region_with_areas_gets_no_others() -> None:
    class Wrong(Base):
        bar0 = MemoryBar(4 * PAGE_SIZE, region=lambda _: SharedMemoryRegion(PAGE_SIZE))
        page = bar0.shared_area(2 * PAGE_SIZE, PAGE_SIZE)

    with pytest.raises(DefinitionError, match=r"page = .*the region of its BAR has areas of its own"):
        build_function(Wrong())


def test_what_a_block_places_does_not_lie_in_an_area() -> None:
    class Placing(Registers):
        def __init__(self, *, size: int) -> None:
            super().__init__(size=size)
            self.place(PAGE_SIZE, MemoryRegion(64), "extra")

    class Wrong(Base):
        bar0 = MemoryBar(4 * PAGE_SIZE, registers=Placing)
        page = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)

    with pytest.raises(DefinitionError, match=r"page = .*extra \[0x.*\) was placed in it"):
        build_function(Wrong())


def test_a_bar_no_file_can_hold() -> None:
    class Wrong(Base):
        bar0 = MemoryBar(1 << 63, width=64, registers=Registers)
        page = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)

    with pytest.raises(DefinitionError, match="no memory file of 0x8000000000000000 bytes can be made"):
        build_function(Wrong())


def test_shared_whole_is_memory_of_whole_pages() -> None:
    with pytest.raises(DefinitionError, match=r"shared=True and size=0x10; what is mapped are whole pages"):
        MemoryBar(16, shared=True)
    with pytest.raises(DefinitionError, match=r"bar0.shared_area\("):
        MemoryBar(PAGE_SIZE, shared=True, registers=Registers)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match=r"bar0.shared_area\("):
        MemoryBar(PAGE_SIZE, shared=True, region=lambda _: Region())  # type: ignore[call-overload]
