"""PRP entries, PRP lists and SGLs of any legal shape are the pieces they describe."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fds import memory_file
from vfio_user.devices.nvme.command import CommandFailed
from vfio_user.devices.nvme.data import BIT_BUCKET, DataPointers, Pieces
from vfio_user.hardware.nvme.data_pointers import SglDescriptor, SglType
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.status import Status
from vfio_user.memory import Dma
from vfio_user.protocol.constants import DmaMapFlags

SIZE = 4 << 20
PAGE = 4096


class Memory(NamedTuple):
    dma: Dma
    data: DataPointers


@pytest.fixture(scope="module")
def memory() -> Iterator[Memory]:
    dma = Dma()
    dma.map(0, SIZE, DmaMapFlags.READ | DmaMapFlags.WRITE, 0, memory_file(bytes(SIZE)))
    yield Memory(dma, DataPointers(dma))
    dma.clear()


def flat(pieces: Pieces) -> list[int]:
    """The address of every 4 bytes."""
    return [iova + at for iova, length in pieces for at in range(0, length, 4)]


@given(
    st.integers(0, PAGE // 4 - 1).map(lambda dword: 4 * dword),
    st.lists(st.integers(256, 1023), min_size=1, max_size=80),
    st.integers(4, PAGE),
    st.integers(0, PAGE // 8 - 1),
)
def test_prp_lists(memory: Memory, offset: int, pages: list[int], last: int, list_offset: int) -> None:
    # Lists begin anywhere in their page, and go on in pages 1, 2, ... of which all but the last entry lead on.
    dma, data = memory
    last -= last % 4
    length = PAGE - offset + (len(pages) - 2) * PAGE + last if len(pages) > 1 else min(last, PAGE - offset)
    addresses = [page * PAGE for page in pages]
    prp1, rest = addresses[0] + offset, addresses[1:]
    prp2 = 0
    if len(rest) == 1:
        [prp2] = rest
    elif rest:
        at = prp2 = PAGE + 8 * list_offset
        left, following = rest, 2 * PAGE
        while left:
            room = (PAGE - at % PAGE) // 8
            if len(left) > room:
                now, left = [*left[: room - 1], following], left[room - 1 :]
            else:
                now, left = left, []
            dma.write(at, struct.pack(f"<{len(now)}Q", *now))
            at, following = following, following + PAGE
    expected = [prp1 + at for at in range(0, min(length, PAGE - offset), 4)]
    for page in rest:
        expected += [page + at for at in range(0, min(PAGE, length - 4 * len(expected)), 4)]
    assert flat(data.prp(prp1, prp2, length)) == expected


def test_neighbours_are_one_piece(memory: Memory) -> None:
    dma, data = memory
    assert data.prp(0x1_0000, 0x1_1000, 0x2000) == [(0x1_0000, 0x2000)]
    dma.write(PAGE, struct.pack("<4Q", 0x1_1000, 0x1_2000, 0x4_0000, 0x4_1000))
    assert data.prp(0x1_0000, PAGE, 0x5000) == [(0x1_0000, 0x3000), (0x4_0000, 0x2000)]


def test_a_chain_of_lists_that_goes_in_circles_ends(memory: Memory) -> None:
    dma, data = memory
    dma.write(PAGE, struct.pack("<512Q", *[PAGE] * 512))
    assert sum(length for _, length in data.prp(0, PAGE, 8 << 20)) == 8 << 20
    dma.write(2 * PAGE - 8, struct.pack("<Q", PAGE + 8))
    with pytest.raises(CommandFailed) as caught:
        data.prp(0, PAGE, 8 << 20)
    assert caught.value.status == Status.PRP_OFFSET_INVALID


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 3000), st.booleans()), max_size=30), st.data())
def test_sgls(memory: Memory, parts: list[tuple[int, int, bool]], draw: st.DataObject) -> None:
    dma, data = memory
    descriptors = [
        SglDescriptor(0 if bucket else address, length, SglType.BIT_BUCKET if bucket else SglType.DATA_BLOCK)
        for address, length, bucket in parts
    ]
    total = sum(length for _, length, _ in parts)
    length = draw.draw(st.integers(0, total))
    # Segments from the last to the first, each but the last leading on.
    at, tail = 2 << 20, descriptors
    head = draw.draw(st.integers(0, len(descriptors)))
    first, tail = descriptors[:head], descriptors[head:] or [SglDescriptor(0, 0)]
    dma.write(at, b"".join(descriptor.pack() for descriptor in tail))
    last = SglDescriptor(at, 16 * len(tail), SglType.LAST_SEGMENT)
    dma.write(at + 0x1000, b"".join(descriptor.pack() for descriptor in [*first, last]))
    pointer = SglDescriptor(at + 0x1000, 16 * (len(first) + 1), SglType.SEGMENT) if first else last
    prp1, prp2 = pointer.to_entry()
    found = data.pieces(SubmissionEntry(2, 0x40, prp1=prp1, prp2=prp2), length)
    expected, left = [], length
    for address, size, bucket in parts:
        count = min(size, left)
        left -= count
        if count:
            expected.append((BIT_BUCKET if bucket else address, count))
    assert found == expected


def test_a_bit_bucket_means_nothing_to_a_write(memory: Memory) -> None:
    dma, data = memory
    dma.write(PAGE, SglDescriptor(0, 512, SglType.BIT_BUCKET).pack() + SglDescriptor(0x2000, 512).pack())
    prp1, prp2 = SglDescriptor(PAGE, 32, SglType.LAST_SEGMENT).to_entry()
    assert data.pieces(SubmissionEntry(1, 0x40, prp1=prp1, prp2=prp2), 512) == [(0x2000, 512)]


def test_data_goes_to_and_from_the_pieces(memory: Memory) -> None:
    _, data = memory
    pieces = [(0x1_0000, 3), (BIT_BUCKET, 2), (0x2_0000, 4)]
    data.write(pieces, b"abcdefghi")
    assert data.read([pieces[2], pieces[0]]) == b"fghiabc"
