"""Disk images; that one is a row of bytes is tested with all backends."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vfio_user.backends import FileBackend
from vfio_user.backends import file as module

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xff" * SIZE)
    return path


def space(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_what_is_written_is_in_the_file(image: Path) -> None:
    with FileBackend(image) as disk:
        disk.write(1000, [b"some", bytearray(b" "), memoryview(b"bytes")])
        disk.flush()
    assert image.read_bytes()[990:1020] == b"\xff" * 10 + b"some bytes" + b"\xff" * 10


def test_a_discard_makes_a_hole(image: Path) -> None:
    with FileBackend(image) as disk:
        disk.discard(SIZE // 2, SIZE // 4)
        assert space(image) == SIZE - SIZE // 4
        disk.zero(0, SIZE // 4)
        assert space(image) == SIZE // 2


def test_zeroes_that_keep_their_space(image: Path) -> None:
    with FileBackend(image) as disk:
        disk.zero(0, SIZE, may_deallocate=False)
    assert image.read_bytes() == bytes(SIZE)
    assert space(image) == SIZE


@pytest.mark.parametrize("may_deallocate", [True, False])
def test_file_systems_that_can_do_less(image: Path, monkeypatch: pytest.MonkeyPatch, may_deallocate: bool) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "punch_hole", lambda *_: asked.append("hole"))
    monkeypatch.setattr(module, "zero_range", lambda *_: asked.append("zeroes"))
    with FileBackend(image) as disk:
        for _ in range(2):
            disk.zero(512, SIZE - 1024, may_deallocate=may_deallocate)
    assert image.read_bytes() == b"\xff" * 512 + bytes(SIZE - 1024) + b"\xff" * 512
    assert asked == (["hole", "zeroes"] if may_deallocate else ["zeroes"])  # once is enough to know


def test_a_transfer_in_pieces(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may move less than it was asked to."""

    def first_bytes(views: Any, most: int = 700) -> list[memoryview]:
        some = []
        for view in views:
            some.append(memoryview(view)[:most])
            most -= len(some[-1])
        return some

    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, first_bytes(views), offset))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: pwritev(fd, first_bytes(views), offset))
    data = os.urandom(5000)
    with FileBackend(image) as disk:
        disk.write(100, [data[:1], b"", data[1:4000], data[4000:]])
        target = bytearray(5000)
        disk.read(100, [memoryview(target)[:999], memoryview(target)[999:999], memoryview(target)[999:]])
    assert target == data
    assert image.read_bytes()[100:5100] == data


# What is in the page cache.


@pytest.fixture
def cached(image: Path) -> Iterator[FileBackend]:
    with FileBackend(image) as disk:
        if not disk.read_at_once(0, [memoryview(bytearray(512))]):
            pytest.skip("this file system always waits (RWF_NOWAIT)")
        yield disk


def test_what_is_in_the_page_cache_is_read_at_once(cached: FileBackend) -> None:
    cached.write(1000, [b"some", b"bytes"])
    targets = [bytearray(4), bytearray(0), bytearray(5)]
    assert cached.read_at_once(1000, [memoryview(target) for target in targets])
    assert targets == [b"some", b"", b"bytes"]


def test_what_is_not_there_is_left_to_who_may_wait(cached: FileBackend) -> None:
    cached.flush()
    os.posix_fadvise(cached._fd, 0, 0, os.POSIX_FADV_DONTNEED)
    target = memoryview(bytearray(SIZE))
    assert not cached.read_at_once(0, [target])
    cached.read(0, [target])
    assert cached.read_at_once(0, [target])
    # Half of it.
    os.posix_fadvise(cached._fd, SIZE // 2, 0, os.POSIX_FADV_DONTNEED)
    assert not cached.read_at_once(0, [target])
    assert cached.read_at_once(0, [target[:512]])


def test_whether_it_is_there_is_asked_without_reading_it(cached: FileBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    preadv = os.preadv

    def counted(*args: Any) -> int:
        nonlocal read
        count = preadv(*args)
        read += count
        return count

    cached.flush()
    cached.read(0, [memoryview(bytearray(SIZE))])
    monkeypatch.setattr(os, "preadv", counted)
    assert cached.is_at_hand(0, SIZE)
    assert cached.is_at_hand(SIZE - 1, 1)
    assert not cached.is_at_hand(SIZE, 0)
    assert 0 < read < 16
    for offset in (0, SIZE // 2):
        os.posix_fadvise(cached._fd, offset, 0, os.POSIX_FADV_DONTNEED)
        assert not cached.is_at_hand(0, SIZE)
        cached.read(0, [memoryview(bytearray(SIZE))])
        assert cached.is_at_hand(0, SIZE)


def test_errors_and_ends_are_left_to_who_may_wait(cached: FileBackend, image: Path) -> None:
    os.truncate(image, 8192)
    assert not cached.read_at_once(4097, [memoryview(bytearray(4096))])
    assert cached.read_at_once(4096, [memoryview(bytearray(4096))])
    os.close(cached._fd)
    cached._fd = os.open(image, os.O_WRONLY)
    assert not cached.read_at_once(0, [memoryview(bytearray(1))])
    os.close(cached._fd)
    cached._fd = os.open(image, os.O_RDONLY)
    assert cached.read_at_once(0, [memoryview(bytearray(1))])


def test_more_buffers_than_one_call_takes_are_not_read_at_once(cached: FileBackend) -> None:
    assert not cached.read_at_once(0, [memoryview(bytearray(1))] * 1025)
    assert cached.read_at_once(0, [memoryview(bytearray(1))] * 1024)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_always_waits_is_asked_once(
    image: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    asked = 0

    def preadv(*_: Any) -> int:
        nonlocal asked
        asked += 1
        raise OSError(error, os.strerror(error))

    with FileBackend(image) as disk:
        monkeypatch.setattr(os, "preadv", preadv)
        for _ in range(3):
            assert not disk.read_at_once(0, [memoryview(bytearray(512))])
    assert asked == 1


def test_a_disk_that_is_read_directly_is_always_waited_for(image: Path) -> None:
    with FileBackend(image, direct=True) as disk, mmap.mmap(-1, 4096) as memory, memoryview(memory) as target:
        disk.read(0, [target])
        assert not disk.read_at_once(0, [target])


# What goes wrong.


@pytest.mark.parametrize("direct", [False, True])
def test_an_image_that_is_truncated_meanwhile(image: Path, direct: bool) -> None:
    with FileBackend(image, direct=direct) as disk:
        os.truncate(image, 8192)
        target = memoryview(bytearray(4096))
        disk.read(4096, [target])
        for offset in (4097, SIZE - 4096):
            with pytest.raises(OSError, match="truncated while it was in use") as failed:
                disk.read(offset, [target])
            assert failed.value.errno == errno.EIO


def test_errors_are_those_of_the_system(image: Path) -> None:
    with FileBackend(image) as disk:
        os.close(disk._fd)
        disk._fd = os.open(image, os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file") as failed:
            disk.write(0, [b"x"])
        assert failed.value.errno == errno.EBADF


def test_unaligned_neighbours_written_directly_at_once(image: Path) -> None:
    """Each reads the block it changes a part of: none may undo what another did."""
    with FileBackend(image, direct=True) as disk:
        assert disk.block_size == mmap.PAGESIZE

        def write(at: int) -> None:
            for _ in range(20):
                disk.write(at * 64, [bytes([at]) * 64])

        threads = [threading.Thread(target=write, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert image.read_bytes()[:512] == b"".join(bytes([at]) * 64 for at in range(8))


@pytest.mark.parametrize("change", ["zero", "discard", "write"])
def test_a_change_is_not_undone_by_a_write_that_has_read_its_block(
    image: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with FileBackend(image, direct=True) as disk, mmap.mmap(-1, 4096) as memory, memoryview(memory) as page:
        page[:] = b"\3" * 4096
        filled, go_on, fill = threading.Event(), threading.Event(), disk._fill

        def slow_fill(buffer: memoryview, first: int, end: int) -> None:
            fill(buffer, first, end)
            filled.set()
            assert go_on.wait(10)

        def other() -> None:
            if change == "write":
                disk.write(0, [page])
            else:
                getattr(disk, change)(0, 512)
            ended.set()

        monkeypatch.setattr(disk, "_fill", slow_fill)
        ended = threading.Event()
        threads = [threading.Thread(target=lambda: disk.write(512, [b"\2" * 512])), threading.Thread(target=other)]
        threads[0].start()
        assert filled.wait(10)
        threads[1].start()
        disk.write(8192, [page])  # other blocks need not wait
        assert not ended.wait(0.05)
        go_on.set()
        for thread in threads:
            thread.join()
    assert image.read_bytes()[:512] == (b"\3" if change == "write" else b"\0") * 512


def test_a_last_block_in_part_does_not_lengthen_the_image(image: Path) -> None:
    os.truncate(image, SIZE - 1000)
    with FileBackend(image, direct=True) as disk:
        disk.write(SIZE - 1100, [b"x" * 100])
    assert image.stat().st_size == SIZE - 1000
    assert image.read_bytes()[-101:] == b"\xff" + b"x" * 100


def test_aligned_memory_is_not_copied(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileBackend(image, direct=True) as disk, mmap.mmap(-1, 8192) as pages:
        monkeypatch.setattr(disk, "_read_bounced", None)
        monkeypatch.setattr(disk, "_write_bounced", None)
        pages[:] = os.urandom(8192)
        with memoryview(pages) as memory:
            disk.write(4096, [memory])
            disk.read(8192, [memory[:4096]])
        assert pages[:4096] == pages[4096:]


def test_what_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="neither a file nor a block device"):
        FileBackend("/dev/null")
    with pytest.raises(IsADirectoryError):
        FileBackend(tmp_path, read_only=True)
    with pytest.raises(FileNotFoundError):
        FileBackend(tmp_path / "missing.img")
