"""Completions for a driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.guest_ram import GuestRam, guest_ram
from vfio_user.errors import DmaNotMapped, InvalidAccess
from vfio_user.memory.dma import Dma
from vfio_user.rings import CompletionRing, PhaseTag

IOVA = 0x10_0000
RING = IOVA + 0x80

#: NVMe's: bit 0 of the last two bytes.
TAG = PhaseTag(14, 0)


class Driver:
    """Takes completions as a driver does: by the phase tag alone."""

    def __init__(self, ram: GuestRam, length: int) -> None:
        self.ram = ram
        self.length = length
        self.head = 0
        self.phase = 1

    def take(self) -> list[bytes]:
        taken: list[bytes] = []
        while True:
            at = RING + self.head * 16
            entry = bytearray(self.ram[at : at + 16])
            if entry[14] & 1 != self.phase:
                return taken
            entry[14] &= ~1
            taken.append(bytes(entry))
            self.head += 1
            if self.head == self.length:
                self.head = 0
                self.phase ^= 1


@pytest.fixture
def memory() -> Iterator[tuple[Dma, GuestRam]]:
    with guest_ram((IOVA, 0x1000)) as (dma, [ram]):
        yield dma, ram


def entry(number: int) -> bytes:
    return number.to_bytes(4, "little") * 3 + bytes([number & 0xFF, 0xAA, 0xFE, 0xBB])


@given(
    length=st.integers(2, 9),
    steps=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=40),
    tagged=st.booleans(),
)
def test_a_driver_takes_every_completion_once_and_in_order(
    length: int, steps: list[tuple[int, bool, bool]], *, tagged: bool
) -> None:
    with guest_ram((IOVA, 0x1000)) as (dma, [ram]):
        ring = CompletionRing(dma, RING, length, 16, TAG)
        driver = Driver(ram, length)
        posted, taken = [], []
        number = 0
        for count, take, tell in steps:
            count = min(count, ring.room)
            entries = [entry(number + index) for index in range(count)]
            number += count
            posted += entries
            # Whatever the tags are in what is posted, they are set.
            ring.post(bytearray(b"".join(one[:14] + bytes([one[14] | tagged]) + one[15:] for one in entries)))
            if take:
                taken += driver.take()
            if tell:
                ring.advance(driver.head)
            assert ring.room == length - 1 - (ring.tail - ring.head) % length
        assert taken + driver.take() == posted


def test_a_full_ring_takes_nothing(memory: tuple[Dma, GuestRam]) -> None:
    ring = CompletionRing(memory[0], RING, 4, 16, TAG)
    ring.post(bytearray(48))
    assert ring.room == 0
    with pytest.raises(ValueError, match="room for 0"):
        ring.post(bytearray(16))
    ring.advance(1)
    assert ring.room == 1
    with pytest.raises(ValueError, match="whole entries"):
        ring.post(bytearray(15))
    ring.post(bytearray(16))
    assert (ring.tail, ring.phase) == (0, 0)


@pytest.mark.parametrize(("head", "says"), [(4, "no entry"), (-1, "no entry"), (3, "never written"), (0, "never")])
def test_a_head_that_cannot_be(memory: tuple[Dma, GuestRam], head: int, says: str) -> None:
    ring = CompletionRing(memory[0], RING, 4, 16, TAG)
    ring.post(bytearray(32))
    ring.advance(1)
    with pytest.raises(InvalidAccess, match=says):
        ring.advance(head)
    assert ring.head == 1


@pytest.mark.parametrize("length", [1, 0])
def test_a_ring_that_takes_nothing(memory: tuple[Dma, GuestRam], length: int) -> None:
    with pytest.raises(InvalidAccess, match="takes 2"):
        CompletionRing(memory[0], RING, length, 16, TAG)


def test_the_tag_changes_when_everything_else_is_there(
    memory: tuple[Dma, GuestRam], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of every entry is in memory, and the barrier passed, before the first tag changes."""
    dma, ram = memory
    ring = CompletionRing(dma, RING, 4, 16, TAG)
    events: list[Any] = []
    write = dma.write

    def watched(iova: int, data: Any) -> None:
        write(iova, data)
        events.append((iova, [ram[at : at + 16] for at in range(RING, RING + 64, 16)]))

    monkeypatch.setattr(dma, "write", watched)
    monkeypatch.setattr("vfio_user.rings.completion.store_barrier", lambda: events.append("barrier"))
    for lap in range(2):
        for half in range(2):
            events.clear()
            entries = [entry(10 * lap + 5 * half + index) for index in range(2)]
            ring.post(bytearray(b"".join(entries)))
            (first, before), barrier, (second, after) = events
            assert first == second == RING + 32 * half
            assert barrier == "barrier"
            old, new = (0, 1) if lap == 0 else (1, 0)
            mine = slice(2 * half, 2 * half + 2)
            assert before[mine] == [one[:14] + bytes([one[14] | old]) + one[15:] for one in entries]
            assert after[mine] == [one[:14] + bytes([one[14] | new]) + one[15:] for one in entries]
            ring.advance(ring.tail)


def test_the_tag_of_a_single_entry_changes_last(memory: tuple[Dma, GuestRam], monkeypatch: pytest.MonkeyPatch) -> None:
    dma, ram = memory
    ring = CompletionRing(dma, RING, 2, 16, TAG)
    tags: list[int] = []
    monkeypatch.setattr(
        "vfio_user.rings.completion.store_barrier",
        lambda: tags.append(ram[RING + 16 * ring.tail : RING + 16 * ring.tail + 16][14] & 1),
    )
    for _ in range(4):
        ring.post(bytearray(entry(6)))
        ring.advance(ring.tail)
    assert tags == [0, 0, 1, 1]


def test_memory_that_is_gone(memory: tuple[Dma, GuestRam]) -> None:
    memory[0].clear()
    ring = CompletionRing(memory[0], RING, 4, 16, TAG)
    with pytest.raises(DmaNotMapped):
        ring.post(bytearray(16))
