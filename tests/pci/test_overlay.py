from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vfio_user.pci.overlay import OverlayRegion, UnclaimedRegion
from vfio_user.regions import MemoryRegion


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
