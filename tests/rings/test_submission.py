"""Entries from a driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import GuestRam, guest_ram
from vfio_user.errors import DmaNotMapped, InvalidAccess
from vfio_user.memory.dma import Dma
from vfio_user.rings import SubmissionRing

IOVA = 0x10_0000
RING = IOVA + 0x40


@pytest.fixture
def memory() -> Iterator[tuple[Dma, GuestRam]]:
    with guest_ram((IOVA, 0x2000)) as (dma, [ram]):
        yield dma, ram


def entry(number: int) -> bytes:
    return number.to_bytes(4, "little") * 4


@given(
    length=st.integers(2, 9),
    steps=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 10)), max_size=30),
)
def test_every_entry_is_taken_once_and_in_order(length: int, steps: list[tuple[int, int]]) -> None:
    with guest_ram((IOVA, 0x1000)) as (dma, [ram]):
        ring = SubmissionRing(dma, RING, length, 16)
        written, taken = 0, b""
        for more, limit in steps:
            more = min(more, length - 1 - len(ring))
            for _ in range(more):
                at = RING + written % length * 16
                ram[at : at + 16] = entry(written)
                written += 1
            ring.advance(written % length)
            waiting = len(ring)
            entries = ring.fetch(limit)
            assert len(entries) == 16 * min(limit, waiting)
            assert len(ring) == waiting - min(limit, waiting)
            taken += entries
            assert ring.head == len(taken) // 16 % length
        assert taken + ring.fetch(length) == b"".join(entry(number) for number in range(written))
        assert ring.fetch(length) == b""


def test_what_was_taken_is_a_copy(memory: tuple[Dma, GuestRam]) -> None:
    dma, ram = memory
    ring = SubmissionRing(dma, RING, 4, 16)
    ram[RING : RING + 16] = entry(1)
    ring.advance(1)
    entries = ring.fetch(4)
    ram[RING : RING + 16] = entry(2)
    assert entries == entry(1)


@pytest.mark.parametrize("tail", [4, 5, -1, 0xFFFF_FFFF])
def test_a_tail_that_is_no_entry(memory: tuple[Dma, GuestRam], tail: int) -> None:
    ring = SubmissionRing(memory[0], RING, 4, 16)
    ring.advance(3)
    with pytest.raises(InvalidAccess, match="no entry of that number"):
        ring.advance(tail)
    assert ring.tail == 3


@pytest.mark.parametrize("length", [1, 0])
def test_a_ring_that_holds_nothing(memory: tuple[Dma, GuestRam], length: int) -> None:
    with pytest.raises(InvalidAccess, match="takes 2"):
        SubmissionRing(memory[0], RING, length, 16)


@pytest.mark.parametrize("head", [0, 2])
def test_entries_in_memory_that_is_gone_are_not_taken(memory: tuple[Dma, GuestRam], head: int) -> None:
    ring = SubmissionRing(memory[0], IOVA + 0x2000 - 16 * 3, 4, 16)  # the last entry is outside
    ring.head = head
    ring.advance((head + 3) % 4 if head else 3)
    if head:
        with pytest.raises(DmaNotMapped):
            ring.fetch(2)
        assert ring.head == head
    else:
        assert len(ring.fetch(4)) == 48
