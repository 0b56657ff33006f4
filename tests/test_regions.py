"""Regions: the ready-made ones, and what is derived for the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import InvalidAccess
from vfio_user.regions import ACCESS_SIZES, CallbackRegion, EmptyRegion, MemoryRegion, Region, aligned_accesses


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
