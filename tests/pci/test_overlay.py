from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from vfio_user.pci.overlay import OverlayRegion, SharedOverlay, UnclaimedRegion
from vfio_user.regions import PAGE_SIZE, MemoryRegion, SharedMemoryRegion


def three_parts() -> tuple[OverlayRegion, MemoryRegion, MemoryRegion, MemoryRegion]:
    base = MemoryRegion(64, contents=b"\xbb" * 64)
    low, high = MemoryRegion(8, contents=b"\x11" * 8), MemoryRegion(16, contents=b"\x22" * 16)
    return OverlayRegion(base, [(40, high), (16, low)]), base, low, high


def test_accesses_go_to_the_part_that_holds_them() -> None:
    region, base, low, high = three_parts()
    assert region.size == 64
    assert region.read(16, 8) == 0x1111_1111_1111_1111
    assert region.read(52, 4) == 0x2222_2222
    assert region.read(0, 4) == region.read(24, 4) == region.read(56, 4) == 0xBBBB_BBBB
    region.write(20, 4, 0)
    region.write(28, 4, 0)
    region.write(60, 4, 0)
    assert low.memory == b"\x11" * 4 + bytes(4)
    assert base.memory[28:32] == base.memory[60:64] == bytes(4)
    assert high.memory == b"\x22" * 16


def test_an_access_over_an_edge_goes_underneath() -> None:
    region, base, low, _ = three_parts()
    region.write(20, 8, 0)
    assert base.memory[20:28] == bytes(8)
    assert low.memory == b"\x11" * 8


@given(offset=st.integers(0, 64), count=st.integers(0, 64))
def test_bulk_reads_and_writes_split_at_the_edges(offset: int, count: int) -> None:
    count = min(count, 64 - offset)
    region, *_ = three_parts()
    whole = b"\xbb" * 16 + b"\x11" * 8 + b"\xbb" * 16 + b"\x22" * 16 + b"\xbb" * 8
    assert region.read_bytes(offset, count) == whole[offset : offset + count]
    region.write_bytes(offset, bytes(count))
    assert region.read_bytes(0, 64) == whole[:offset] + bytes(count) + whole[offset + count :]


def test_unclaimed_space_reads_zero_and_drops_writes() -> None:
    region = UnclaimedRegion(16)
    region.write(0, 4, 5)
    region.write_bytes(8, b"1234")
    assert (region.size, region.read(0, 4), region.read_bytes(4, 8)) == (16, 0, bytes(8))


# What a client maps of it.


def test_what_can_be_mapped_of_the_base_can_be_mapped_of_the_whole() -> None:
    base = SharedMemoryRegion(2 * PAGE_SIZE)
    whole = OverlayRegion(UnclaimedRegion(4 * PAGE_SIZE), [(0, base)])
    assert (whole.mappable_areas, whole.mappable_fd) == (((0, 2 * PAGE_SIZE),), base.mappable_fd)
    sparse = SharedOverlay(MemoryRegion(4 * PAGE_SIZE), [(0, PAGE_SIZE), (2 * PAGE_SIZE, PAGE_SIZE)])
    covered = OverlayRegion(sparse, [(3 * PAGE_SIZE - 8, MemoryRegion(16))])
    assert (covered.mappable_areas, covered.mappable_fd) == (((0, PAGE_SIZE),), sparse.mappable_fd)


def test_what_is_covered_or_moved_cannot_be_mapped() -> None:
    base = SharedMemoryRegion(2 * PAGE_SIZE)
    covered = OverlayRegion(base, [(PAGE_SIZE, MemoryRegion(16))])
    moved = OverlayRegion(UnclaimedRegion(4 * PAGE_SIZE), [(PAGE_SIZE, base)])
    for region in (covered, moved):
        assert (tuple(region.mappable_areas), region.mappable_fd) == ((), None)


def test_areas_are_shared_and_the_rest_is_what_it_was() -> None:
    base = MemoryRegion(4 * PAGE_SIZE, contents=b"\xbb" * 4 * PAGE_SIZE)
    region = SharedOverlay(base, [(PAGE_SIZE, PAGE_SIZE)])
    assert (region.size, region.mappable_areas) == (4 * PAGE_SIZE, ((PAGE_SIZE, PAGE_SIZE),))
    assert region.mappable_fd is not None
    memory = region.shared.views[PAGE_SIZE]
    region.write(PAGE_SIZE, 4, 0x0A0B0C0D)
    region.write(PAGE_SIZE - 4, 4, 1)
    assert bytes(memory[:4]) == os.pread(region.mappable_fd, 4, PAGE_SIZE) == b"\x0d\x0c\x0b\x0a"
    memory[-4:] = b"last"
    assert region.read(2 * PAGE_SIZE - 4, 4) == int.from_bytes(b"last", "little")
    assert region.read(2 * PAGE_SIZE, 4) == 0xBBBB_BBBB
    assert region.read_bytes(2 * PAGE_SIZE - 2, 4) == b"st\xbb\xbb"
    assert base.memory[PAGE_SIZE - 4 : PAGE_SIZE + 4] == b"\1\0\0\0\xbb\xbb\xbb\xbb"


@given(
    edge=st.sampled_from([PAGE_SIZE, 2 * PAGE_SIZE]),
    back=st.integers(0, 8),
    size=st.sampled_from([1, 2, 4, 8]),
    data=st.binary(min_size=8),
)
def test_an_access_over_an_edge_of_an_area_reaches_both_sides(edge: int, back: int, size: int, data: bytes) -> None:
    region = SharedOverlay(MemoryRegion(3 * PAGE_SIZE), [(PAGE_SIZE, PAGE_SIZE)])
    value = int.from_bytes(data[:size], "little")
    region.write(edge - back, size, value)
    assert region.read(edge - back, size) == value
    assert region.read_bytes(edge - back, size) == data[:size]
