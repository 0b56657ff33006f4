"""What a device does with guest memory."""

from __future__ import annotations

import array
import errno
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.guest_files import PAGE, mapped_times, memfd
from vfio_user.errors import DeviceError, DmaAccess, DmaNotMapped, InvalidAccess
from vfio_user.memory import DirtyLog, Dma
from vfio_user.protocol.constants import DmaMapFlags

READ, WRITE = DmaMapFlags.READ, DmaMapFlags.WRITE
RW = READ | WRITE
FILE_IO = DmaMapFlags.ACCESS_FILE_IO


class Client:
    """Answers messages from its own memory."""

    def __init__(self) -> None:
        self.memory = bytearray(0x100000)
        self.writes: list[tuple[int, bytes]] = []

    def read(self, iova: int, length: int) -> bytes:
        return bytes(self.memory[iova : iova + length])

    @property
    def is_ready(self) -> bool:
        return True

    def write(self, iova: int, data: memoryview) -> None:
        self.writes.append((iova, bytes(data)))
        self.memory[iova : iova + len(data)] = data


@pytest.fixture
def dma() -> Iterator[Dma]:
    """Guest memory of every kind.

    ==================  =============================
    [0x10000, 0x12000)  rw, pages 0 and 1 of one file
    [0x12000, 0x13000)  rw, page 2 of it
    [0x13000, 0x14000)  rw, page 5 of it
    [0x14000, 0x15000)  r-, page 6 of it
    [0x15000, 0x16000)  -w, page 7 of it
    [0x16000, 0x17000)  rw, page 3 of it by file I/O
    [0x17000, 0x18000)  rw, by messages
    [0x20000, 0x21000)  rw, another file
    ==================  =============================
    """
    dma = Dma()
    fd = memfd(8)
    dma.map(0x10000, 0x2000, RW, 0, os.dup(fd))
    dma.map(0x12000, 0x1000, RW, 0x2000, os.dup(fd))
    dma.map(0x13000, 0x1000, RW, 0x5000, os.dup(fd))
    dma.map(0x14000, 0x1000, READ, 0x6000, os.dup(fd))
    dma.map(0x15000, 0x1000, WRITE, 0x7000, os.dup(fd))
    dma.map(0x16000, 0x1000, RW | FILE_IO, 0x3000, fd)
    dma.map(0x17000, 0x1000, RW)
    dma.map(0x20000, 0x1000, RW, 0, memfd(1))
    yield dma
    dma.clear()
    assert mapped_times() == 0


def test_read_and_write_across_every_kind(dma: Dma) -> None:
    dma.messenger = client = Client()
    dma.unmap(0x14000, 0x1000)
    dma.unmap(0x15000, 0x1000)
    dma.map(0x14000, 0x2000, RW, 0, memfd(2))
    data = bytes(range(1, 251)) * 131
    assert len(data) > 0x7000
    dma.write(0x10800, data[:0x7000])
    assert dma.read(0x10800, 0x7000) == data[:0x7000]
    target = bytearray(0x7000)
    dma.read_into(0x10800, target)
    assert target == data[:0x7000]
    assert client.writes == [(0x17000, data[0x6800:0x7000])]
    assert dma.read(0x10000, 1) == b"\0"
    assert dma.read(0x17800, 1) == b"\0"


@given(offset=st.integers(0, 0x2FFF), length=st.integers(0, 0x3000))
def test_against_a_bytearray(offset: int, length: int) -> None:
    length = min(length, 0x3000 - offset)
    dma = Dma()
    fd = memfd(3)
    for page, place in enumerate((2, 0, 1)):
        dma.map(0x1000 * (1 + page), 0x1000, RW, 0x1000 * place, os.dup(fd))
    os.close(fd)
    model = bytearray(os.urandom(0x3000))
    dma.write(0x1000, model)
    data = os.urandom(length)
    model[offset : offset + length] = data
    dma.write(0x1000 + offset, data)
    assert dma.read(0x1000, 0x3000) == model
    assert dma.read(0x1000 + offset, length) == data
    segments = dma.sgl(0x1000 + offset, length)
    assert b"".join(segment.memory or b"" for segment in segments) == data
    del segments
    dma.clear()


ACCESSES: list[Callable[[Dma, int, int], object]] = [
    lambda dma, iova, length: dma.read(iova, length),
    lambda dma, iova, length: dma.read_into(iova, bytearray(length)),
    lambda dma, iova, length: dma.write(iova, bytes(length)),
    lambda dma, iova, length: dma.view(iova, length),
    lambda dma, iova, length: dma.view(iova, length, writable=True),
    lambda dma, iova, length: dma.sgl(iova, length),
    lambda dma, iova, length: dma.sgl(iova, length, write=True),
    lambda dma, iova, length: dma.read_struct(iova, struct.Struct(f"{length}s")),
    lambda dma, iova, length: dma.write_struct(iova, struct.Struct(f"{length}s"), b""),
]


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("iova", "length", "gap"),
    [
        (0x20FFF, 2, r"\[0x21000, 0x21001\)"),
        (0xFFFF, 2, r"\[0xffff, 0x10000\)"),
        (0x17000, 0xA000, r"\[0x18000, 0x20000\)"),
        (0x0, 0x8, r"\[0x0, 0x8\)"),
        (1 << 64, 1, r"\[0x10000000000000000, "),
        (-1, 1, r"\[-0x1, 0x0\)"),
    ],
)
def test_gaps_are_named(
    dma: Dma, access: Callable[[Dma, int, int], object], warm: bool, iova: int, length: int, gap: str
) -> None:
    dma.messenger = Client()
    if warm:
        dma.write(0x20000, dma.read(0x20000, 1))
    with pytest.raises(DmaNotMapped, match=f"has not mapped {gap}") as caught:
        access(dma, iova, length)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("access", ACCESSES)
def test_no_bus_master_no_access(dma: Dma, access: Callable[[Dma, int, int], object]) -> None:
    dma.write(0x10000, dma.read(0x10000, 8))
    dma.enabled = False
    assert not dma.enabled
    with pytest.raises(DmaAccess, match="Bus Master Enable") as caught:
        access(dma, 0x10000, 8)
    assert caught.value.errno == errno.EACCES
    dma.enabled = True
    access(dma, 0x10000, 8)


@pytest.mark.parametrize("access", ACCESSES)
def test_no_access_while_stopped(dma: Dma, access: Callable[[Dma, int, int], object]) -> None:
    dma.write(0x10000, dma.read(0x10000, 8))
    dma.held = True
    assert dma.held
    with pytest.raises(DmaAccess, match=r"\[0x10000, 0x1000[8-9a-f]\) while the device is stopped") as caught:
        access(dma, 0x10000, 8)
    assert caught.value.errno == errno.EACCES
    dma.held = False
    access(dma, 0x10000, 8)


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("length", [0, 8])
def test_permissions(dma: Dma, access: Callable[[Dma, int, int], object], length: int) -> None:
    writes = access in (ACCESSES[2], ACCESSES[4], ACCESSES[6], ACCESSES[8])
    allowed, forbidden = (0x15000, 0x14000) if writes else (0x14000, 0x15000)
    if writes:
        dma.read(forbidden, 1)  # what the other direction found must not open the way
    else:
        dma.write(forbidden, b"x")
    for _ in range(2):  # the second time finds the mapping at once
        if length:
            with pytest.raises(DmaAccess, match=f"does not allow {'writing' if writes else 'reading'}"):
                access(dma, forbidden, length)
        access(dma, allowed, length)


@pytest.mark.parametrize("access", [ACCESSES[0], ACCESSES[3], ACCESSES[4], ACCESSES[5]])
def test_negative_lengths(dma: Dma, access: Callable[[Dma, int, int], object]) -> None:
    dma.write(0x10000, dma.read(0x10000, 1))
    with pytest.raises(InvalidAccess, match="cannot be negative"):
        access(dma, 0x10800, -1)


def test_a_refused_write_writes_nothing(dma: Dma) -> None:
    dma.write(0x13FF0, bytes(16))
    with pytest.raises(DmaAccess):
        dma.write(0x13FF0, b"x" * 32)
    assert dma.read(0x13FF0, 16) == bytes(16)
    assert dma.statistics().faults == 1


def test_messages_are_found_missing_before_anything_moves(dma: Dma) -> None:
    with pytest.raises(DmaAccess, match="share the guest's RAM"):
        dma.write(0x16FFF, b"xy")
    assert dma.read(0x16FFF, 1) == b"\0"
    assert dma.messenger is None


def test_a_read_ends_with_its_mapping(dma: Dma) -> None:
    assert dma.read(0x20000, 1) == b"\0"
    dma.write(0x20000, b"x")
    dma.unmap(0x20000, 0x1000)
    for attempt in (lambda: dma.read(0x20000, 1), lambda: dma.write(0x20000, b"x"), lambda: dma.read_u32(0x20000)):
        with pytest.raises(DmaNotMapped):
            attempt()


def test_arrays_of_wider_items(dma: Dma) -> None:
    items = array.array("I", [1, 2, 3])
    dma.write(0x10000, memoryview(items))
    dma.write(0x10010, memoryview(items))
    assert dma.read(0x10000, 12) == dma.read(0x10010, 12) == items.tobytes()
    target = array.array("I", [0, 0, 0])
    dma.read_into(0x10000, memoryview(target))
    assert target == items


class TestWords:
    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    @pytest.mark.parametrize("iova", [0x10000, 0x10008, 0x10009, 0x11FFF, 0x12FFF, 0x16000, 0x17003, 0x20FF8])
    @pytest.mark.parametrize("warm", [False, True])
    def test_every_width_everywhere(self, dma: Dma, size: int, iova: int, warm: bool) -> None:
        dma.messenger = Client()
        if warm:
            dma.write(iova, dma.read(iova, 1))
        value = 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
        getattr(dma, f"write_u{8 * size}")(iova, value)
        assert dma.read(iova, size) == value.to_bytes(size, "little")
        assert getattr(dma, f"read_u{8 * size}")(iova) == value

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    @pytest.mark.parametrize("value", [-1, "too large"])
    @pytest.mark.parametrize("warm", [False, True])
    def test_values_that_do_not_fit(self, dma: Dma, size: int, value: int | str, warm: bool) -> None:
        if warm:
            dma.write(0x10000, b"\0")
        with pytest.raises(ValueError, match=r"fit|format"):
            getattr(dma, f"write_u{8 * size}")(0x10000, 1 << 8 * size if value == "too large" else value)
        with pytest.raises(ValueError, match="does not fit"):
            getattr(dma, f"write_u{8 * size}")(0x13FFF, 1 << 8 * size if value == "too large" else value)
        assert dma.read(0x10000, 8) == bytes(8)

    def test_the_last_word_of_a_mapping(self, dma: Dma) -> None:
        dma.write(0x20000, dma.read(0x20000, 1))
        dma.write_u64(0x20FF8, 5)
        assert dma.read_u64(0x20FF8) == 5
        for call in (
            partial(dma.read_u32, 0x20FFD),
            partial(dma.read_u64, 0x20FFC),
            partial(dma.write_u32, 0x20FFD, 0),
            partial(dma.write_u64, 0x20FFC, 0),
            partial(dma.read_u8, 0x21000),
            partial(dma.write_u16, 0x20FFF, 0),
        ):
            with pytest.raises(DmaNotMapped):
                call()
        assert dma.read_u64(0x20FF8) == 5

    def test_an_aligned_word_beyond_the_end_of_an_odd_mapping(self) -> None:
        dma = Dma()
        dma.map(0, 15, RW, 0, memfd(1))
        dma.write(0, dma.read(0, 15))
        for call in (
            partial(dma.read_u32, 12),
            partial(dma.write_u32, 12, 1),
            partial(dma.read_u64, 8),
            partial(dma.write_u64, 8, 1),
        ):
            with pytest.raises(DmaNotMapped):
                call()
        dma.clear()

    def test_alignment_is_that_of_the_file(self) -> None:
        dma = Dma()
        dma.map(0x1000, 0x100, RW, 1, memfd(1))
        dma.write_u32(0x1000, 0x0403_0201)
        assert dma.read(0x1000, 4) == b"\1\2\3\4"
        assert dma.read_u32(0x1000) == 0x0403_0201
        dma.write_u64(0x1008, 7)
        assert dma.read_u64(0x1008) == 7
        dma.clear()


def test_words_that_can_be_had_without_more_ado(dma: Dma) -> None:
    """Only in memory of ours, the same as the time before; and never a part of one."""
    assert dma.read_u32_nowait(0x10000) is None
    assert not dma.write_u32_nowait(0x10000, 1)
    dma.write_u32(0x10000, 0x0403_0201)
    assert dma.read_u32(0x10000) == 0x0403_0201
    assert dma.read_u32_nowait(0x10000) == 0x0403_0201
    assert dma.write_u32_nowait(0x11FFC, 0x0807_0605)
    assert dma.read(0x11FFC, 4) == b"\5\6\7\10"
    for iova in (0x10001, 0x10002, 0xFFFC, 0x14000, 0x16000, 0x17000, 0x20000, 0x30000):
        assert dma.read_u32_nowait(iova) is None
        assert not dma.write_u32_nowait(iova, 1)
    dma.enabled = False
    assert dma.read_u32_nowait(0x10000) is None
    assert not dma.write_u32_nowait(0x10000, 1)


def test_ranges_that_can_be_had_without_more_ado(dma: Dma) -> None:
    assert dma.view_nowait(0x10000, 1) is None
    assert dma.views_nowait([(0x10000, 8)]) is None
    dma.write(0x10000, bytes(1))
    dma.read(0x10000, 1)
    views = dma.views_nowait([(0x11FFD, 3), (0x10000, 4), (0x10801, 1)])
    assert views is not None
    for place, data in zip(views, (b"abc", b"defg", b"h"), strict=True):
        place[:] = data
    for iova, wanted in ((0x11FFD, b"abc"), (0x10000, b"defg"), (0x10801, b"h")):
        view = dma.view_nowait(iova, len(wanted))
        assert view is not None
        assert bytes(view) == wanted
        assert view.readonly
    for iova in (0x11FFE, 0xFFFE, 0x20000, 0x17000):
        assert dma.view_nowait(iova, 3) is None
        assert dma.views_nowait([(0x10000, 5), (iova, 3)]) is None


def test_structures(dma: Dma) -> None:
    layout = struct.Struct("<HIQ")
    for iova in (0x10001, 0x10101, 0x11FF9):
        dma.write_struct(iova, layout, 1, 2, 3)
        assert dma.read(iova, layout.size) == layout.pack(1, 2, 3)
        assert dma.read_struct(iova, layout) == (1, 2, 3)
    with pytest.raises(DmaNotMapped):
        dma.read_struct(0x20FFF, layout)
    with pytest.raises(struct.error):
        dma.write_struct(0x10000, layout, 1 << 16, 2, 3)


class TestViews:
    def test_a_view_is_the_memory(self, dma: Dma) -> None:
        view = dma.view(0x10000, 16, writable=True)
        view[3] = 7
        assert dma.read_u8(0x10003) == 7
        dma.write_u8(0x10004, 8)
        assert view[4] == 8

    def test_a_view_crosses_slices_that_are_neighbours_in_the_file(self, dma: Dma) -> None:
        for _ in range(2):
            with dma.view(0x11FFF, 0x1001) as view:
                assert len(view) == 0x1001
                assert view[1] == 2

    @pytest.mark.parametrize(
        ("iova", "text"),
        [(0x12FFF, "2 separate pieces"), (0x16000, "no memory behind"), (0x17000, "no memory behind")],
    )
    def test_no_view_of_what_is_not_one_piece(self, dma: Dma, iova: int, text: str) -> None:
        dma.messenger = Client()
        with pytest.raises(DmaAccess, match=text):
            dma.view(iova, 2)
        assert dma.statistics().faults == 1

    def test_a_view_to_read_cannot_be_written(self, dma: Dma) -> None:
        for _ in range(2):
            with pytest.raises(TypeError):
                dma.view(0x10000, 4)[0] = 1

    def test_a_view_of_nothing(self, dma: Dma) -> None:
        assert len(dma.view(0x10000, 0)) == 0
        dma.read(0x10000, 1)
        assert len(dma.view(0x10000, 0)) == 0

    @pytest.mark.parametrize("warm", [False, True])
    def test_a_view_ends_with_its_mapping(self, dma: Dma, warm: bool) -> None:
        if warm:
            dma.read(0x20000, 1)
        view = dma.view(0x20000, 8)
        dma.unmap(0x20000, 0x1000)
        with pytest.raises(ValueError, match="released"):
            view[0]

    @pytest.mark.parametrize("part", [(0x10000, 0x2000), (0x12000, 0x1000)])
    def test_a_view_across_mappings_ends_with_any_of_them(self, dma: Dma, part: tuple[int, int]) -> None:
        view = dma.view(0x11FFF, 2)
        dma.unmap(*part)
        with pytest.raises(ValueError, match="released"):
            view[0]

    def test_a_view_that_cannot_be_revoked_keeps_the_memory(self, dma: Dma, caplog: pytest.LogCaptureFixture) -> None:
        before = mapped_times()
        view = dma.view(0x20000, 8)
        stuck = pickle.PickleBuffer(view)
        dma.unmap(0x20000, 0x1000)
        assert dma.statistics().stuck_views == 1
        assert "could not be revoked" in caplog.text
        assert mapped_times() == before
        assert view[0] == 0
        stuck.release()
        view.release()
        assert mapped_times() == before - 1


class TestScatterGather:
    def test_neighbours_in_the_file_are_one_segment(self, dma: Dma) -> None:
        dma.messenger = Client()
        segments = dma.sgl(0x11800, 0x2000)
        assert [(s.iova, s.length) for s in segments] == [(0x11800, 0x1800), (0x13000, 0x800)]
        assert [s.memory is not None and s.memory.readonly for s in segments] == [True, True]
        assert dma.sgl(0x11800, 0) == []

    def test_segments_without_memory(self, dma: Dma) -> None:
        dma.messenger = Client()
        segments = dma.sgl(0x16800, 0x1000)
        assert [(s.iova, s.length, s.memory) for s in segments] == [(0x16800, 0x800, None), (0x17000, 0x800, None)]

    @pytest.mark.parametrize("warm", [False, True])
    def test_segments_to_write(self, dma: Dma, warm: bool) -> None:
        if warm:
            dma.write(0x10000, b"\0")
        (segment,) = dma.sgl(0x10010, 4, write=True)
        assert segment.memory is not None
        segment.memory[:] = b"abcd"
        assert dma.read(0x10010, 4) == b"abcd"


class TestDirtyLog:
    def dirty(self, dma: Dma) -> list[int]:
        assert dma.dirty_log is not None
        bitmap = int.from_bytes(dma.dirty_log.report(0x10000, 0x20000, 4096), "little")
        return [page for page in range(32) if bitmap >> page & 1]

    def test_what_marks_pages(self, dma: Dma) -> None:
        dma.messenger = Client()
        dma.write(0x10000, b"before logging began")
        dma.dirty_log = DirtyLog(4096)
        dma.read(0x10000, 4096)
        dma.view(0x11000, 1)
        dma.sgl(0x11000, 1)
        assert self.dirty(dma) == []
        for _ in range(2):
            dma.write(0x11FFF, b"xy")
            assert self.dirty(dma) == [1, 2]
            dma.write_u32(0x10000, 1)
            dma.write_u64(0x12000, 1)
            assert self.dirty(dma) == [0, 2]
            dma.view(0x13000, 1, writable=True)
            assert self.dirty(dma) == [3]
            dma.sgl(0x15000, 1, write=True)
            assert self.dirty(dma) == [5]
            dma.write(0x16FFF, b"file and message")
            assert self.dirty(dma) == [6]  # what goes by message is the client's to track
            dma.mark_dirty(0x20000, 1)
            assert self.dirty(dma) == [16]

    def test_a_refused_write_marks_nothing(self, dma: Dma) -> None:
        dma.dirty_log = DirtyLog(4096)
        with pytest.raises(DmaNotMapped):
            dma.write(0x20FFF, b"xy")
        assert self.dirty(dma) == []

    def test_no_log_no_marks(self, dma: Dma) -> None:
        dma.mark_dirty(0x10000, 1)
        dma.dirty_log = DirtyLog(4096)
        log = dma.dirty_log
        dma.dirty_log = None
        dma.write(0x10000, b"x")
        dma.dirty_log = log
        assert self.dirty(dma) == []


def test_a_file_truncated_under_file_io_is_an_error_not_a_crash() -> None:
    dma = Dma()
    fd = memfd(2)
    dma.map(0, 2 * PAGE, RW | FILE_IO, 0, os.dup(fd))
    os.ftruncate(fd, PAGE)
    os.close(fd)
    assert dma.read(0, 1) == b"\0"
    with pytest.raises(DeviceError, match="truncated") as caught:
        dma.read(PAGE, 1)
    assert caught.value.errno == errno.EIO
    dma.clear()
