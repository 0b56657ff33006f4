"""DMA_MAP and DMA_UNMAP: every rule with its errno, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.memory.guest_files import PAGE, mapped_times, memfd
from vfio_user.errors import Busy, DeviceError, DmaExists, DmaLimit, DmaNotMapped
from vfio_user.memory import MAX_MAPPING_SIZE, AccessMode, DirtyLog, Dma, DmaMapping
from vfio_user.protocol.constants import DmaMapFlags, DmaUnmapFlags
from vfio_user.testing.leaks import open_files

RW = DmaMapFlags.READ | DmaMapFlags.WRITE
TOP = 1 << 64


def refused(call: Callable[[], object]) -> int:
    """The errno of the DeviceError a call raises."""
    with pytest.raises(DeviceError) as caught:
        call()
    return caught.value.reply_errno


@pytest.mark.parametrize(
    ("iova", "size", "flags", "with_fd", "number"),
    [
        (0, 0, RW, True, errno.EINVAL),
        (0, 0, RW, False, errno.EINVAL),
        (0, MAX_MAPPING_SIZE + 1, RW, False, errno.ENOSPC),
        (0, TOP - 1, RW, False, errno.ENOSPC),
        (TOP - PAGE, PAGE + 1, RW, False, errno.EINVAL),
        (TOP - PAGE, PAGE + 1, RW, True, errno.EINVAL),
        (0, PAGE, RW | 0x10, True, errno.EINVAL),
        (0, PAGE, 1 << 31, False, errno.EINVAL),
        (0, PAGE, RW | DmaMapFlags.ACCESS_MMAP, False, errno.EINVAL),
        (0, PAGE, RW | DmaMapFlags.ACCESS_FILE_IO, False, errno.EINVAL),
        (0, PAGE, RW | DmaMapFlags.ACCESS_FILE_IO | DmaMapFlags.ACCESS_MMAP, True, errno.EINVAL),
        (0, PAGE, RW | DmaMapFlags.ACCESS_FILE_IO | DmaMapFlags.ACCESS_MMAP, False, errno.EINVAL),
        (0, 5 * PAGE, RW, True, errno.EINVAL),
        (0, 5 * PAGE, RW | DmaMapFlags.ACCESS_FILE_IO, True, errno.EINVAL),
    ],
)
def test_refused_maps(iova: int, size: int, flags: int, with_fd: bool, number: int) -> None:
    dma = Dma()
    assert refused(lambda: dma.map(iova, size, flags, 0, memfd(4) if with_fd else None)) == number
    assert len(dma) == 0


@pytest.mark.parametrize(
    ("iova", "size"), [(TOP - PAGE, PAGE), (0, MAX_MAPPING_SIZE), (1, 1), (TOP - MAX_MAPPING_SIZE, MAX_MAPPING_SIZE)]
)
def test_extreme_maps(iova: int, size: int) -> None:
    dma = Dma()
    dma.map(iova, size, RW)
    assert dma.lookup(iova + size - 1) is dma.lookup(iova) is not None
    dma.unmap(iova, size)


def test_an_offset_beyond_every_file() -> None:
    dma = Dma()
    assert refused(lambda: dma.map(0, PAGE, RW, TOP - PAGE, memfd(4))) == errno.EINVAL
    assert refused(lambda: dma.map(0, PAGE, RW, 3 * PAGE + 1, memfd(4))) == errno.EINVAL


def test_a_writable_mapping_of_a_read_only_descriptor() -> None:
    dma = Dma()
    fd = memfd(1)
    for mode in (DmaMapFlags.ACCESS_MMAP, DmaMapFlags.ACCESS_FILE_IO):
        readonly = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        assert refused(partial(dma.map, 0, PAGE, RW | mode, 0, readonly)) == errno.EACCES
    os.close(fd)


@pytest.mark.parametrize("flags", [RW, RW | DmaMapFlags.ACCESS_FILE_IO])
def test_a_pipe_is_no_memory(flags: int) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert refused(lambda: Dma().map(0, PAGE, flags, 0, reading)) == errno.ENODEV


def test_a_descriptor_that_is_none() -> None:
    assert refused(lambda: Dma().map(0, PAGE, RW, 0, 1_000_000)) == errno.EBADF


@pytest.mark.parametrize(
    ("iova", "size"), [(0x1000, 0x1000), (0x1FFF, 1), (0, 0x10000), (0x2FFF, 0x10), (0x1000, 0x800)]
)
def test_overlap(iova: int, size: int) -> None:
    dma = Dma()
    dma.map(0x1000, 0x2000, RW, 0, memfd(2))
    with pytest.raises(DmaExists, match=r"overlaps DMA mapping \[0x1000, 0x3000\)") as caught:
        dma.map(iova, size, RW, 0, memfd(16))
    assert caught.value.errno == errno.EEXIST
    assert len(dma) == 1
    dma.clear()


def test_mapping_exactly_the_same_again_changes_nothing() -> None:
    dma = Dma()
    told: list[DmaMapping] = []
    dma.on_map.append(told.append)
    fd = memfd(4)
    mapping = dma.map(0x1000, PAGE, RW, PAGE, os.dup(fd))
    assert dma.map(0x1000, PAGE, RW, PAGE, os.dup(fd)) is mapping
    assert told == [mapping]
    assert dma.statistics().maps == 1
    bare = dma.map(0x8000, PAGE, DmaMapFlags.READ)
    assert dma.map(0x8000, PAGE, DmaMapFlags.READ) is bare
    for flags, offset, other in (
        (DmaMapFlags.READ, PAGE, os.dup(fd)),
        (RW, 2 * PAGE, os.dup(fd)),
        (RW, PAGE, memfd(4)),
        (RW, 0, None),
    ):
        assert refused(partial(dma.map, 0x1000, PAGE, flags, offset, other)) == errno.EEXIST
    dma.clear()
    os.close(fd)


def test_too_many_maps() -> None:
    dma = Dma(max_maps=2)
    dma.map(0, PAGE, RW)
    dma.map(PAGE, PAGE, RW)
    with pytest.raises(DmaLimit, match="max_dma_maps") as caught:
        dma.map(2 * PAGE, PAGE, RW, 0, memfd(1))
    assert caught.value.errno == errno.EINVAL
    dma.map(0, PAGE, RW)  # the same again is not one more
    dma.unmap(0, PAGE)
    dma.map(2 * PAGE, PAGE, RW)


def test_too_many_files() -> None:
    dma = Dma(max_files=1)
    dma.map(0, PAGE, RW, 0, memfd(1))
    assert refused(lambda: dma.map(PAGE, PAGE, RW, 0, memfd(1))) == errno.EINVAL
    dma.clear()


def test_a_range_ends_every_mapping_in_it() -> None:
    """As QEMU asks when a guest sets up its IOMMU."""
    dma = Dma()
    ended: list[int] = []
    dma.on_unmap.append(lambda mapping: ended.append(mapping.iova))
    for page in (1, 2, 5, 9):
        dma.map(page * PAGE, PAGE, RW)
    dma.unmap(0, 8 * PAGE)
    assert ended == [PAGE, 2 * PAGE, 5 * PAGE]
    assert [mapping.iova for mapping in dma] == [9 * PAGE]


@pytest.mark.parametrize(
    ("iova", "size", "flags", "number"),
    [
        (0x1000, 0x1000, 0, errno.ENOENT),
        (0x2000, 0x1000, 0, errno.ENOENT),
        (0x0000, 0x2000, 0, errno.ENOENT),
        (0x0000, 0x1000, 0, errno.ENOENT),
        (0x2000, 0x8000, 0, errno.ENOENT),
        (0x8000, 0x1000, 0, errno.ENOENT),
        (0, 0, 0, errno.ENOENT),
        (0x1000, 0x2000, 3, errno.EINVAL),
        (0x1000, 0x2000, 4, errno.EINVAL),
        (0x1000, 0x2000, 2, errno.EINVAL),
        (0x1000, 0, 2, errno.EINVAL),
        (0, 0x2000, 2, errno.EINVAL),
        (0x1000, 0x2000, 1, errno.EINVAL),
    ],
)
def test_refused_unmaps(iova: int, size: int, flags: int, number: int) -> None:
    dma = Dma()
    dma.map(0x1000, 0x2000, RW, 0, memfd(2))
    assert refused(lambda: dma.unmap(iova, size, flags)) == number
    assert len(dma) == 1
    dma.clear()


def test_unmap_gives_everything_back() -> None:
    before = len(open_files())
    dma = Dma()
    fd = memfd(4)
    dma.map(0, PAGE, RW, 0, os.dup(fd))
    dma.map(PAGE, PAGE, RW | DmaMapFlags.ACCESS_FILE_IO, 0, fd)
    assert mapped_times() == 1
    assert dma.statistics().files == 2
    assert dma.unmap(0, PAGE) == b""
    assert mapped_times() == 0
    dma.unmap(PAGE, PAGE)
    assert len(open_files()) == before
    assert dma.statistics() == type(dma.statistics())(0, 0, 0, maps=2, unmaps=2, faults=0, stuck_views=0)


def test_unmap_of_everything() -> None:
    dma = Dma()
    for page in range(10):
        dma.map(page * PAGE, PAGE, RW, 0, memfd(1))
    assert dma.unmap(0, 0, DmaUnmapFlags.ALL) == b""
    assert len(dma) == 0
    assert mapped_times() == 0
    dma.unmap(0, 0, DmaUnmapFlags.ALL)


def test_statistics() -> None:
    dma = Dma()
    dma.map(0, PAGE, RW)
    dma.map(PAGE, 3 * PAGE, RW, 0, memfd(3))
    dma.unmap(0, PAGE)
    with pytest.raises(DmaNotMapped):
        dma.read(0, 1)
    found = dma.statistics()
    assert (found.mappings, found.mapped_bytes, found.files) == (1, 3 * PAGE, 1)
    assert (found.maps, found.unmaps, found.faults, found.stuck_views) == (2, 1, 1, 0)
    dma.clear()


@pytest.mark.parametrize(("seals", "mode"), [(fcntl.F_SEAL_SHRINK, AccessMode.MMAP), (0, AccessMode.FILE_IO)])
def test_an_untrusted_client_gets_what_it_cannot_shrink_mapped(seals: int, mode: AccessMode) -> None:
    dma = Dma(sealed_only=True)
    mapping = dma.map(0, 2 * PAGE, RW | DmaMapFlags.ACCESS_MMAP, 0, memfd(2, seals=seals))
    assert mapping.mode is mode
    dma.write(PAGE, b"abc")
    assert dma.read(PAGE, 3) == b"abc"
    dma.clear()


class TestListeners:
    def test_unmap_is_told_while_the_memory_still_works(self) -> None:
        dma = Dma()
        seen: list[bytes] = []
        dma.on_unmap.append(lambda mapping: seen.append(dma.read(mapping.iova, 1)))
        dma.map(0, PAGE, RW, 3 * PAGE, memfd(4))
        dma.unmap(0, PAGE)
        assert seen == [b"\3"]

    def test_a_listener_refuses_a_mapping(self) -> None:
        dma = Dma()
        told: list[str] = []
        dma.on_map.append(lambda mapping: told.append("map"))

        def refuse(mapping: DmaMapping) -> None:
            raise Busy("not now")

        dma.on_map.append(refuse)
        dma.on_unmap.append(lambda mapping: told.append("unmap"))
        assert refused(lambda: dma.map(0, PAGE, RW, 0, memfd(1))) == errno.EBUSY
        assert told == ["map", "unmap"]
        assert len(dma) == 0
        assert mapped_times() == 0

    def test_the_first_listener_refuses_a_mapping(self) -> None:
        dma = Dma()

        def refuse(mapping: DmaMapping) -> None:
            raise Busy("not now")

        dma.on_map.append(refuse)
        dma.on_unmap.append(lambda mapping: pytest.fail("nobody took the mapping"))
        assert refused(lambda: dma.map(0, PAGE, RW, 0, memfd(1))) == errno.EBUSY
        assert len(dma) == 0

    @pytest.mark.parametrize("everything", [False, True])
    def test_a_failing_listener_keeps_no_memory(self, everything: bool) -> None:
        dma = Dma()
        told: list[int] = []

        def fail(mapping: DmaMapping) -> None:
            raise RuntimeError(f"bug at {mapping.iova}")

        dma.on_unmap.append(fail)
        dma.on_unmap.append(lambda mapping: told.append(mapping.iova))
        dma.map(0, PAGE, RW, 0, memfd(1))
        dma.map(PAGE, PAGE, RW, 0, memfd(1))
        end = dma.clear if everything else partial(dma.unmap, 0, PAGE)
        with pytest.raises(RuntimeError, match="bug at 0"):
            end()
        assert told == ([0, PAGE] if everything else [0])
        assert len(dma) == (0 if everything else 1)
        dma.on_unmap.clear()
        dma.clear()
        assert mapped_times() == 0


class TestDirtyBitmap:
    def test_of_the_mapping_that_ends(self) -> None:
        dma = Dma()
        dma.dirty_log = DirtyLog(4096)
        dma.map(0x10000, 4 * PAGE, RW, 0, memfd(4))
        dma.on_unmap.append(lambda mapping: dma.write(mapping.iova, b"last words"))
        dma.write(0x12000, b"x")
        bitmap = dma.unmap(0x10000, 4 * PAGE, DmaUnmapFlags.GET_DIRTY_BITMAP, page_size=4096)
        assert bitmap == bytes([0b101, 0, 0, 0, 0, 0, 0, 0])

    @pytest.mark.parametrize("page_size", [0, 3, 8 * PAGE])
    def test_impossible_pages_are_refused_before_anything_happens(self, page_size: int) -> None:
        dma = Dma()
        dma.dirty_log = DirtyLog(4096)
        dma.map(0, 4 * PAGE, RW)
        call = partial(dma.unmap, 0, 4 * PAGE, DmaUnmapFlags.GET_DIRTY_BITMAP, page_size=page_size)
        assert refused(call) == errno.EINVAL
        assert len(dma) == 1

    def test_of_no_mapping(self) -> None:
        dma = Dma()
        dma.dirty_log = DirtyLog(4096)
        call = partial(dma.unmap, 0, PAGE, DmaUnmapFlags.GET_DIRTY_BITMAP, page_size=4096)
        assert refused(call) == errno.ENOENT


def test_an_inherited_hook_is_required() -> None:
    from vfio_user.memory.dma_table import DmaTable

    table = DmaTable()
    table.map(0, PAGE, RW)
    with pytest.raises(NotImplementedError):
        table.unmap(0, PAGE)


class DmaTableMachine(RuleBasedStateMachine):
    """Any order of maps and unmaps, of three files that also change size: errnos as modelled, and no leak."""

    def __init__(self) -> None:
        super().__init__()
        self.before = len(open_files())
        self.files = [memfd(pages) for pages in (4, 8, 8)]
        self.pages = [4, 8, 8]
        self.dma = Dma(max_maps=6)
        self.model: dict[int, tuple[int, int, int, int]] = {}

    @rule(
        page=st.integers(0, 15),
        pages=st.integers(0, 4),
        flags=st.sampled_from([0, 1, 2, 3, 7, 11, 15, 16]),
        offset=st.integers(0, 8),
        file=st.sampled_from([-1, 0, 1, 2]),
    )
    def map(self, page: int, pages: int, flags: int, offset: int, file: int) -> None:
        fd = None if file < 0 else os.dup(self.files[file])
        wanted = (pages, flags & 3, 0 if fd is None else offset, file)
        overlaps = any(page < at + entry[0] and at < page + pages for at, entry in self.model.items())
        if pages == 0 or flags > 15 or flags & 12 == 12 or (flags & 12 and fd is None):
            expected = errno.EINVAL
        elif self.model.get(page) == wanted:
            expected = 0
        elif overlaps:
            expected = errno.EEXIST
        elif len(self.model) >= 6 or (fd is not None and offset + pages > self.pages[file]):
            expected = errno.EINVAL
        else:
            expected = 0
        if expected:
            assert refused(lambda: self.dma.map(page * PAGE, pages * PAGE, flags, offset * PAGE, fd)) == expected
        else:
            self.dma.map(page * PAGE, pages * PAGE, flags, offset * PAGE, fd)
            self.model[page] = wanted

    @rule(page=st.integers(0, 15), pages=st.integers(0, 4))
    def unmap_anything(self, page: int, pages: int) -> None:
        touched = [at for at, entry in self.model.items() if at < page + pages and page < at + entry[0]]
        whole = [at for at in touched if page <= at and at + self.model[at][0] <= page + pages]
        if touched and whole == touched:
            self.dma.unmap(page * PAGE, pages * PAGE)
            for at in whole:
                del self.model[at]
        else:
            assert refused(lambda: self.dma.unmap(page * PAGE, pages * PAGE)) == errno.ENOENT

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(sorted(self.model)))
        self.dma.unmap(page * PAGE, self.model.pop(page)[0] * PAGE)

    @rule()
    def unmap_all(self) -> None:
        self.dma.unmap(0, 0, DmaUnmapFlags.ALL)
        self.model.clear()

    @rule(file=st.integers(0, 2))
    def grow(self, file: int) -> None:
        if self.pages[file] < 10:
            self.pages[file] += 1
            os.ftruncate(self.files[file], self.pages[file] * PAGE)

    @rule(page=st.integers(0, 15))
    def read(self, page: int) -> None:
        for at, (pages, flags, offset, file) in self.model.items():
            if at <= page < at + pages and flags & 1 and file >= 0:
                assert self.dma.read(page * PAGE, 1) == os.pread(self.files[file], 1, (offset + page - at) * PAGE)

    @invariant()
    def holds_what_it_maps(self) -> None:
        assert [mapping.iova // PAGE for mapping in self.dma] == sorted(self.model)
        assert self.dma.statistics().mapped_bytes == sum(entry[0] for entry in self.model.values()) * PAGE

    def teardown(self) -> None:
        self.dma.clear()
        for fd in self.files:
            os.close(fd)
        assert self.dma.statistics().files == 0
        assert len(open_files()) == self.before
        assert mapped_times() == 0


TestAnySequence = DmaTableMachine.TestCase
TestAnySequence.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
