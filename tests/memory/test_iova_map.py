"""The ordered map of address ranges, against a list that is searched from the front."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vfio_user.memory import iova_map
from vfio_user.memory.iova_map import IovaMap


class Range(NamedTuple):
    iova: int
    end: int


ADDRESS = st.integers(0, 300)
LENGTH = st.integers(1, 12)


def naive_overlap(ranges: list[Range], start: int, end: int) -> Range | None:
    return min((r for r in ranges if r.iova < end and start < r.end), default=None)


class IovaMapMachine(RuleBasedStateMachine):
    """Any order of insertions and removals, with blocks small enough to split and vanish."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(iova_map, "_BLOCK", 2)
        self.map: IovaMap[Range] = IovaMap()
        self.model: list[Range] = []

    def teardown(self) -> None:
        self.patch.undo()

    @rule(start=ADDRESS, length=LENGTH)
    def insert(self, start: int, length: int) -> None:
        clash = naive_overlap(self.model, start, start + length)
        assert self.map.overlap(start, start + length) == clash
        if clash is None:
            self.map.insert(Range(start, start + length))
            self.model.append(Range(start, start + length))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.model))
        self.map.remove(entry)
        self.model.remove(entry)

    @rule(address=ADDRESS)
    def look_up(self, address: int) -> None:
        assert self.map.find(address) == next((r for r in self.model if r.iova <= address < r.end), None)
        assert self.map.at(address) == next((r for r in self.model if r.iova == address), None)
        assert self.map.next(address) == min((r for r in self.model if r.iova >= address), default=None)

    @rule()
    def clear(self) -> None:
        self.map.clear()
        self.model.clear()

    @invariant()
    def same_order_and_number(self) -> None:
        assert list(self.map) == sorted(self.model)
        assert len(self.map) == len(self.model)


TestIovaMap = IovaMapMachine.TestCase


def test_empty() -> None:
    empty: IovaMap[Range] = IovaMap()
    assert empty.find(0) is None
    assert empty.next(0) is None
    assert empty.overlap(0, 1 << 64) is None
    with pytest.raises(KeyError):
        empty.remove(Range(0, 1))


def test_removing_an_unknown_range_changes_nothing() -> None:
    ranges: IovaMap[Range] = IovaMap()
    ranges.insert(Range(16, 32))
    with pytest.raises(KeyError):
        ranges.remove(Range(20, 32))
    assert list(ranges) == [Range(16, 32)]


@given(st.sampled_from([0, 1 << 63, (1 << 64) - 16]))
def test_the_whole_address_space(start: int) -> None:
    ranges: IovaMap[Range] = IovaMap()
    ranges.insert(Range(start, start + 16))
    assert ranges.find(start + 15) == Range(start, start + 16)
    assert ranges.find(start + 16) is None


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_many_ranges(order: str) -> None:
    """Enough for several real blocks, made and unmade in different orders."""
    starts = list(range(0, 5000 * 32, 32))
    if order == "descending":
        starts.reverse()
    elif order == "random":
        random.Random(1).shuffle(starts)
    ranges: IovaMap[Range] = IovaMap()
    for start in starts:
        assert ranges.overlap(start, start + 16) is None
        ranges.insert(Range(start, start + 16))
    assert [r.iova for r in ranges] == sorted(starts)
    assert ranges.find(100 * 32 + 15) == Range(100 * 32, 100 * 32 + 16)
    assert ranges.find(100 * 32 + 16) is None
    for start in reversed(starts):
        ranges.remove(Range(start, start + 16))
    assert len(ranges) == 0
    assert list(ranges) == []
