from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.pci.config_space import CONVENTIONAL_SIZE, ConfigSpace
from vfio_user.regions import MemoryRegion


class Recording(MemoryRegion):
    """Memory that remembers the accesses it saw."""

    def __init__(self, size: int) -> None:
        super().__init__(size, contents=bytes(range(1, size + 1)))
        self.seen: list[tuple[int, int, int]] = []

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))
        super().write(offset, size, value)


def make() -> tuple[ConfigSpace, Recording, Recording]:
    header, capability = Recording(64), Recording(12)
    return ConfigSpace(CONVENTIONAL_SIZE, [(0x50, capability), (0, header)]), header, capability


def test_parts_lie_where_they_were_put_and_zeros_between() -> None:
    space, *_ = make()
    whole = bytes(range(1, 65)) + bytes(16) + bytes(range(1, 13)) + bytes(256 - 0x5C)
    assert space.read_bytes(0, 256) == whole
    assert [space.read(at, 1) for at in range(256)] == list(whole)
    assert space.read(0x50, 4) == 0x0403_0201
    assert space.read(0x40, 4) == 0


@pytest.mark.parametrize(
    ("offset", "size", "value", "expected"),
    [
        (0x50, 4, 0xAABBCCDD, [(0, 4, 0xAABBCCDD)]),
        (0x52, 2, 0xAABB, [(2, 2, 0xAABB)]),
        (0x53, 1, 0xAA, [(3, 1, 0xAA)]),
        (0x50, 8, 0x1122334455667788, [(0, 4, 0x55667788), (4, 4, 0x11223344)]),
        (0x51, 4, 0xAABBCCDD, [(1, 1, 0xDD), (2, 2, 0xBBCC), (4, 1, 0xAA)]),
        (0x58, 8, 0x1122334455667788, [(8, 4, 0x55667788)]),
    ],
)
def test_parts_see_aligned_pieces(offset: int, size: int, value: int, expected: list[tuple[int, int, int]]) -> None:
    space, header, capability = make()
    space.write(offset, size, value)
    assert capability.seen == expected
    assert header.seen == []


@given(offset=st.integers(0, 255), size=st.sampled_from([1, 2, 4, 8]), value=st.integers(0, 2**64 - 1))
def test_every_access_in_range_behaves_as_memory_with_holes(offset: int, size: int, value: int) -> None:
    if offset + size > 256:
        return
    space, *_ = make()
    value %= 1 << size * 8
    expected = bytearray(space.read_bytes(0, 256))
    for at, byte in enumerate(value.to_bytes(size, "little"), offset):
        if at < 64 or 0x50 <= at < 0x5C:
            expected[at] = byte
    space.write(offset, size, value)
    assert space.read_bytes(0, 256) == bytes(expected)
    assert space.read(offset, size) == int.from_bytes(expected[offset : offset + size], "little")


def test_calls_wait_for_the_end_of_the_write() -> None:
    space, _, capability = make()
    seen: list[bytes] = []

    class Trigger(MemoryRegion):
        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            space.call_after_access(lambda: seen.append(bytes(capability.memory[0:4])))

    space = ConfigSpace(256, [(0x4C, Trigger(4)), (0x50, capability)])
    space.write(0x4C, 8, 0)
    assert seen == [bytes(4)]
    space.write(0x4C, 4, 0)
    assert len(seen) == 2
