"""Regions: the ready-made ones, and what is derived for the others."""

from __future__ import annotations

import fcntl
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import InvalidAccess
from vfio_user.regions import (
    ACCESS_SIZES,
    PAGE_SIZE,
    CallbackRegion,
    EmptyRegion,
    MemoryRegion,
    Region,
    SharedMemory,
    SharedMemoryRegion,
    aligned_accesses,
)


class RecordingRegion(Region):
    """Memory that notes the accesses it is asked for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = bytearray(n & 0xFF for n in range(size))
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        assert 0 <= value < 256**size
        self.accesses.append(("write", offset, size))
        self.memory[offset : offset + size] = value.to_bytes(size, "little")


def test_a_region_is_something_to_subclass() -> None:
    region = Region()
    assert (region.size, region.readable, region.writable) == (0, True, True)
    with pytest.raises(NotImplementedError):
        region.read(0, 4)
    with pytest.raises(NotImplementedError):
        region.write(0, 4, 0)


# Cutting.


@pytest.mark.parametrize(
    ("offset", "count", "accesses"),
    [
        (0, 0, []),
        (5, 0, []),
        (0, 1, [(0, 1)]),
        (0, 4, [(0, 4)]),
        (0, 8, [(0, 4), (4, 4)]),
        (2, 4, [(2, 2), (4, 2)]),
        (1, 8, [(1, 1), (2, 2), (4, 4), (8, 1)]),
        (3, 2, [(3, 1), (4, 1)]),
        (0x1001, 6, [(0x1001, 1), (0x1002, 2), (0x1004, 2), (0x1006, 1)]),
    ],
)
def test_aligned_accesses(offset: int, count: int, accesses: list[tuple[int, int]]) -> None:
    assert aligned_accesses(offset, count) == accesses


@given(st.integers(0, 1 << 20), st.integers(0, 200))
def test_aligned_accesses_cover_exactly_what_was_asked(offset: int, count: int) -> None:
    at = offset
    for start, size in aligned_accesses(offset, count):
        assert start == at
        assert size in (1, 2, 4)
        assert start % size == 0
        # No larger one was possible.
        assert size == 4 or start % (2 * size) or start + 2 * size > offset + count
        at += size
    assert at == offset + count


@given(st.integers(0, 20), st.binary(max_size=44))
def test_any_number_of_bytes_through_integers(offset: int, data: bytes) -> None:
    region = RecordingRegion(64)
    expected = bytearray(region.memory)
    assert region.read_bytes(offset, len(data)) == expected[offset : offset + len(data)]
    region.write_bytes(offset, data)
    expected[offset : offset + len(data)] = data
    assert region.memory == expected
    accesses = aligned_accesses(offset, len(data))
    assert region.accesses == [("read", *access) for access in accesses] + [("write", *access) for access in accesses]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("region", [RecordingRegion(16), MemoryRegion(16)])
def test_bytes_of_any_kind(region: Region, kind: type[bytes]) -> None:
    region.write_bytes(3, kind(b"abcdef"))
    found = region.read_bytes(3, 6)
    assert found == b"abcdef"
    assert type(found) is bytes


# Memory.


@given(st.data())
def test_memory_reads_what_was_written(data: st.DataObject) -> None:
    region = MemoryRegion(32)
    model = bytearray(32)
    for _ in range(data.draw(st.integers(1, 6))):
        size = data.draw(st.sampled_from(ACCESS_SIZES))
        offset = data.draw(st.integers(0, 32 - size))
        value = data.draw(st.integers(0, 256**size - 1))
        region.write(offset, size, value)
        model[offset : offset + size] = value.to_bytes(size, "little")
        assert region.read(offset, size) == value
    assert region.memory == model
    assert region.read_bytes(0, 32) == model
    assert len(region.memory) == region.size == 32


def test_memory_is_little_endian_at_any_alignment() -> None:
    region = MemoryRegion(16, contents=bytes(range(16)))
    assert [region.read(3, size) for size in ACCESS_SIZES] == [0x03, 0x0403, 0x06050403, 0x0A09080706050403]


def test_contents_come_first_and_the_rest_is_zero() -> None:
    region = MemoryRegion(8, contents=b"abc")
    assert region.read_bytes(0, 8) == b"abc\0\0\0\0\0"
    assert MemoryRegion(3, contents=b"abc").memory == b"abc"
    with pytest.raises(ValueError, match="4 bytes of contents do not fit a memory region of 3 bytes"):
        MemoryRegion(3, contents=b"abcd")


def test_memory_may_be_read_only() -> None:
    assert (MemoryRegion(8).readable, MemoryRegion(8).writable) == (True, True)
    assert (MemoryRegion(8, readonly=True).readable, MemoryRegion(8, readonly=True).writable) == (True, False)


def test_an_empty_region_allows_nothing() -> None:
    assert (EmptyRegion().size, EmptyRegion().readable, EmptyRegion().writable) == (0, False, False)


# Functions.


def test_functions_are_called_with_what_was_accessed() -> None:
    calls: list[tuple[int, ...]] = []

    def read(offset: int, size: int) -> int:
        calls.append((offset, size))
        return 0x11

    def write(offset: int, size: int, value: int) -> None:
        calls.append((offset, size, value))

    region = CallbackRegion(64, read, write)
    assert (region.size, region.readable, region.writable) == (64, True, True)
    assert region.read(8, 2) == 0x11
    region.write(12, 4, 0xABCD)
    assert calls == [(8, 2), (12, 4, 0xABCD)]
    assert region.read_bytes(0, 8) == b"\x11\0\0\0\x11\0\0\0"


def test_a_missing_function_refuses() -> None:
    region = CallbackRegion(64)
    assert (region.readable, region.writable) == (False, False)
    with pytest.raises(InvalidAccess, match="read of 2 bytes at 0x8 of a region that has no read function"):
        region.read(8, 2)
    with pytest.raises(InvalidAccess, match="write of 4 bytes at 0xc of a region that has no write function"):
        region.write(12, 4, 1)


# Memory a client maps.


def client_mapping(fd: int, offset: int, size: int) -> mmap.mmap:
    """What a client makes of a descriptor and an area."""
    return mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)


def test_no_region_is_mapped_or_rung_unless_it_says_so() -> None:
    region = Region()
    assert (region.mappable_areas, region.mappable_fd, region.ioeventfds) == ((), None, ())


def test_a_shared_region_and_a_mapping_of_it_are_the_same_memory() -> None:
    region = SharedMemoryRegion(2 * PAGE_SIZE)
    assert (region.size, region.readable, region.writable) == (2 * PAGE_SIZE, True, True)
    assert region.mappable_areas == ((0, 2 * PAGE_SIZE),)
    assert region.mappable_fd is not None
    with client_mapping(region.mappable_fd, 0, region.size) as theirs:
        theirs[8:16] = b"client's"
        assert bytes(region.memory[8:16]) == b"client's"
        assert region.read(8, 8) == int.from_bytes(b"client's", "little")
        region.memory[16:20] = b"ours"
        region.write(PAGE_SIZE, 4, 0x11223344)
        region.write_bytes(PAGE_SIZE + 5, b"more of ours")
        assert theirs[16:20] == b"ours"
        assert theirs[PAGE_SIZE : PAGE_SIZE + 4] == b"\x44\x33\x22\x11"
        assert theirs[PAGE_SIZE + 5 : PAGE_SIZE + 17] == region.read_bytes(PAGE_SIZE + 5, 12) == b"more of ours"


@given(st.lists(st.tuples(st.integers(0, PAGE_SIZE - 8), st.sampled_from(ACCESS_SIZES), st.binary(min_size=8))))
def test_a_shared_region_is_memory_at_any_offset_and_width(writes: list[tuple[int, int, bytes]]) -> None:
    shared, plain = SharedMemoryRegion(PAGE_SIZE), MemoryRegion(PAGE_SIZE)
    for offset, size, data in writes:
        for region in (shared, plain):
            region.write(offset, size, int.from_bytes(data[:size], "little"))
        assert shared.read(offset, size) == plain.read(offset, size)
    assert shared.read_bytes(0, PAGE_SIZE) == plain.memory


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 16])
def test_a_shared_region_has_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="both must be multiples of the page"):
        SharedMemoryRegion(size)


@pytest.mark.parametrize(
    ("areas", "match"),
    [
        ([(0, 0)], "area of 0x0 bytes at 0x0 cannot be mapped"),
        ([(0, -PAGE_SIZE)], "cannot be mapped"),
        ([(16, PAGE_SIZE)], "bytes at 0x10 cannot"),
        ([(PAGE_SIZE, 100)], "area of 0x64 bytes at"),
        ([(3 * PAGE_SIZE, 2 * PAGE_SIZE)], "does not fit a region of"),
        ([(-PAGE_SIZE, PAGE_SIZE)], "does not fit the area before it, which ends at 0x0"),
        ([(PAGE_SIZE, PAGE_SIZE), (0, 2 * PAGE_SIZE)], "does not fit the area before it"),
    ],
)
def test_areas_that_cannot_be(areas: list[tuple[int, int]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SharedMemory(4 * PAGE_SIZE, areas)


def test_areas_lie_in_the_file_where_they_lie_in_the_region() -> None:
    memory = SharedMemory(1 << 30, [(1 << 29, PAGE_SIZE), (PAGE_SIZE, PAGE_SIZE)])
    assert memory.areas == ((PAGE_SIZE, PAGE_SIZE), (1 << 29, PAGE_SIZE))
    memory.views[1 << 29][:4] = b"high"
    memory.views[PAGE_SIZE][:3] = b"low"
    assert os.pread(memory.fd, 4, 1 << 29) == b"high"
    assert os.pread(memory.fd, 3, PAGE_SIZE) == b"low"
    assert os.fstat(memory.fd).st_blocks * 512 <= 8 * PAGE_SIZE, "what no area has takes no memory"


def test_a_client_cannot_change_the_file_but_for_its_bytes() -> None:
    memory = SharedMemory(4 * PAGE_SIZE, [(0, 4 * PAGE_SIZE)])
    for size in (0, PAGE_SIZE, 5 * PAGE_SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(memory.fd)


def test_a_mapping_outlives_the_descriptor() -> None:
    view = SharedMemory(PAGE_SIZE, [(0, PAGE_SIZE)]).views[0]
    view[0] = 7
    assert view[0] == 7


def test_memory_that_cannot_be_made_leaves_no_descriptor() -> None:
    with pytest.raises((OSError, OverflowError)):
        SharedMemory(1 << 63, [(0, PAGE_SIZE)])
