"""Block ranges, slices, capacity; and the gate commands go through."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.backends import MemoryBackend, open_backend
from vfio_user.devices.nvme.command import CommandFailed
from vfio_user.devices.nvme.gate import Gate
from vfio_user.devices.nvme.namespaces import BlockRanges, Namespaces, Slice
from vfio_user.errors import InvalidAccess
from vfio_user.hardware.nvme.status import Status

RANGES = st.tuples(st.integers(0, 40), st.integers(1, 10)).map(lambda item: (item[0], item[0] + item[1]))


@given(st.lists(st.tuples(st.booleans(), RANGES), max_size=20), RANGES)
def test_block_ranges_are_a_set_of_blocks(steps: list[tuple[bool, tuple[int, int]]], asked: tuple[int, int]) -> None:
    ranges, model = BlockRanges(), set[int]()
    for add, (start, end) in steps:
        if add:
            ranges.add(start, end)
            model.update(range(start, end))
        else:
            ranges.remove(start, end)
            model.difference_update(range(start, end))
        found = list(ranges)
        assert {block for start, end in found for block in range(start, end)} == model
        assert all(one[1] < other[0] for one, other in itertools.pairwise(found))
        assert bool(ranges) == bool(model)
        assert len(ranges) == len(found)
    assert ranges.first(*asked) == min(model.intersection(range(*asked)), default=None)
    assert list(BlockRanges([list(blocks) for blocks in ranges])) == list(ranges)


def test_a_slice_is_a_part_of_its_base() -> None:
    with open_backend("memory:64K") as base:
        part = Slice(base, 4096, 8192)
        part.write(0, [b"\1" * 8192])
        part.zero(512, 512)
        part.discard(1024, 512)
        part.flush()
        contents = base.contents
        assert contents is not None
        assert part.contents == contents[4096:12288]
        assert bytes(contents[4095:4097]) == b"\0\1"
        assert (bytes(contents[4608:5632]), contents[5632]) == (bytes(1024), 1)
        view = bytearray(512)
        part.read(8192 - 512, [memoryview(view)])
        assert view == b"\1" * 512
        with pytest.raises(ValueError, match="has to lie inside"):
            part.read(8192 - 511, [memoryview(view)])
        assert not part.read_at_once(0, [memoryview(view)])
        assert (part.blocking, part.flush_blocks, part.read_only) == (False, False, False)


class AtOnce(MemoryBackend):
    """Need not be waited for."""

    def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        self._read(offset, views, length)
        return True


def test_a_slice_of_what_need_not_be_waited_for() -> None:
    with AtOnce(bytes(8192) + b"\1" * 8192) as base:
        view = bytearray(512)
        assert Slice(base, 4096, 8192).read_at_once(4096, [memoryview(view)])
        assert view == b"\1" * 512


def test_capacity_is_given_and_taken_back() -> None:
    with open_backend("memory:4M") as pool:
        namespaces = Namespaces("serial", pool)
        assert namespaces.total_capacity == namespaces.unallocated_capacity == 4 << 20
        made = []
        for size in (1, 1 << 20, (1 << 20) + 512):
            backend = namespaces.allocate(size)
            assert backend is not None
            made.append(namespaces.add(backend, 0, nguid=b"x" * 16) if size >= 512 else None)
            if size < 512:
                backend.close()
        assert namespaces.unallocated_capacity == 1 << 20
        assert namespaces.allocate((1 << 20) + 1) is None
        namespaces.remove(1)
        assert namespaces.unallocated_capacity == 2 << 20
        assert namespaces.allocate((1 << 20) + 1) is None  # not in one piece
        assert namespaces.free_nsid() == 1


def test_another_namespace_has_another_name() -> None:
    names = []
    for _ in range(2):
        namespaces = Namespaces("serial", None)
        names.append(namespaces.add(MemoryBackend(4096), 0).nguid)
    assert names[0] == names[1]  # in the next process
    namespaces.remove(1)
    names += [namespaces.add(MemoryBackend(4096), 0, nsid).nguid for nsid in (1, 2)]
    assert len(set(names)) == 3


def test_which_namespace_a_command_is_about() -> None:
    namespaces = Namespaces("serial", None)
    one = namespaces.add(open_backend("memory:64K"), 1)
    two = namespaces.add(open_backend("memory:64K"), 0)
    two.attached = False
    assert (one.blocks, two.blocks) == (16, 128)
    assert one.nguid != two.nguid
    assert one.uuid != two.uuid
    assert namespaces.active(1) is one
    assert namespaces.existing(2) is two
    assert namespaces.selected(0xFFFF_FFFF) == [one]
    for nsid, status in (
        (0, Status.INVALID_NAMESPACE_OR_FORMAT),
        (2, Status.INVALID_FIELD),
        (3, Status.INVALID_FIELD),
        (257, Status.INVALID_NAMESPACE_OR_FORMAT),
    ):
        with pytest.raises(CommandFailed) as caught:
            namespaces.active(nsid)
        assert caught.value.status == status
    for nsid in (0, 1, 257):
        with pytest.raises(ValueError, match=f"namespace identifier {nsid}"):
            namespaces.add(open_backend("memory:64K"), 0, nsid)
    with pytest.raises(ValueError, match="at least one block"):
        namespaces.add(open_backend("memory:512"), 1)
    namespaces.close()
    assert namespaces.total_capacity == 128 << 10


def test_a_saved_state_of_namespaces() -> None:
    pool = open_backend("memory:4M")
    namespaces = Namespaces("serial", pool)
    namespaces.add(open_backend("memory:64K"), 0).uncorrectable.add(3, 5)
    backend = namespaces.allocate(1 << 20)
    assert backend is not None
    namespaces.add(backend, 1, nguid=b"n" * 16).attached = False
    state = namespaces.save()
    other = Namespaces("serial", pool)
    with pytest.raises(InvalidAccess, match="made without it"):
        other.load(state)
    other.add(open_backend("memory:64K"), 1)
    other.load(state)
    assert other.save() == state
    one = other.get(1)
    assert one is not None
    assert (one.shift, list(one.uncorrectable)) == (9, [(3, 5)])
    namespaces.close()
    other.close()


def test_the_gate_lets_one_in_alone_and_in_its_turn() -> None:
    gate, log = Gate(), list[str]()
    for name, alone in (("a", False), ("b", False), ("c", True), ("d", False), ("e", True), ("f", False)):
        gate.enter(lambda name=name: log.append(name), alone=alone)  # type: ignore[misc]
    assert log == ["a", "b"]
    assert not gate.is_open
    gate.leave()
    assert log == ["a", "b"]
    for expected in ("abc", "abcd", "abcde", "abcdef"):
        gate.leave()
        assert "".join(log) == expected
    gate.leave()
    assert gate.is_open


def test_the_gate_lets_in_many_that_end_at_once() -> None:
    gate, count = Gate(), 0

    def start() -> None:
        nonlocal count
        count += 1
        gate.leave()

    gate.enter(lambda: None, alone=True)
    for _ in range(5000):
        gate.enter(start)
    gate.leave()
    assert count == 5000
    assert gate.is_open
