"""One mmap a file, whatever is sent."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

import pytest

from tests.memory.guest_files import PAGE, mapped_times, memfd
from vfio_user.errors import DeviceError, DmaLimit
from vfio_user.memory.file_cache import FileCache
from vfio_user.memory.shared_file import FileInfo, MappedFile
from vfio_user.testing.leaks import open_files


def map_slice(cache: FileCache, fd: int, offset: int, size: int, *, write: bool = True) -> MappedFile:
    return cache.map(fd, FileInfo.of(fd), offset, size, write=write)


def reopened(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags)


def test_slices_share_one_mapping_and_one_descriptor() -> None:
    cache = FileCache()
    fd = memfd(64)
    before = len(open_files())
    files = [map_slice(cache, fd, page * PAGE, PAGE) for page in range(64)]
    assert len(set(map(id, files))) == 1
    assert mapped_times() == 1
    assert len(open_files()) == before + 1
    assert cache.held == 1
    for file in files[:-1]:
        file.release()
    assert mapped_times() == 1
    files[-1].release()
    assert mapped_times() == 0
    assert cache.held == 0
    os.close(fd)


def test_a_read_only_slice_shares_the_writable_mapping() -> None:
    cache = FileCache()
    fd = memfd(4)
    readonly = reopened(fd, os.O_RDONLY)
    both = map_slice(cache, fd, 0, PAGE)
    assert map_slice(cache, readonly, PAGE, PAGE, write=False) is both
    both.release()
    both.release()
    os.close(readonly)
    os.close(fd)


def test_a_read_only_descriptor_makes_a_read_only_mapping() -> None:
    cache = FileCache()
    fd = memfd(4)
    readonly = reopened(fd, os.O_RDONLY)
    file = map_slice(cache, readonly, 0, PAGE, write=False)
    with pytest.raises(TypeError):
        file.map[0:1] = b"x"
    writable = map_slice(cache, fd, 0, PAGE)
    assert writable is not file
    assert mapped_times() == 2
    file.release()
    writable.release()
    os.close(readonly)
    os.close(fd)


def test_a_file_that_grew_is_mapped_again_for_its_new_part() -> None:
    cache = FileCache()
    fd = memfd(2)
    small = map_slice(cache, fd, 0, PAGE)
    os.ftruncate(fd, 4 * PAGE)
    large = map_slice(cache, fd, 3 * PAGE, PAGE)
    assert (small.length, large.length) == (2 * PAGE, 4 * PAGE)
    assert cache.held == 2
    large.map[0:3] = b"new"
    assert small.map[0:3] == b"new"
    assert map_slice(cache, fd, 0, PAGE) is large
    small.release()
    assert map_slice(cache, fd, 0, PAGE) is large
    for _ in range(3):
        large.release()
    assert cache.held == 0
    assert mapped_times() == 0
    os.close(fd)


def test_memory_sealed_against_writing_can_be_read() -> None:
    cache = FileCache()
    fd = memfd(2, seals=fcntl.F_SEAL_WRITE)
    file = map_slice(cache, fd, 0, PAGE, write=False)
    assert file.map[PAGE] == 1
    with pytest.raises(DeviceError, match="mmap of guest memory failed") as caught:
        map_slice(cache, fd, 0, PAGE, write=True)
    assert caught.value.errno == errno.EPERM
    file.release()
    os.close(fd)


def test_a_file_too_large_for_the_address_space_is_mapped_by_slices(tmp_path: Path) -> None:
    cache = FileCache()
    fd = os.memfd_create("huge")
    os.ftruncate(fd, (1 << 63) - PAGE)
    offset = (1 << 62) + 100
    os.pwrite(fd, b"far away", offset)
    file = map_slice(cache, fd, offset, 5000)
    assert file.base == 1 << 62
    assert file.length == 2 * PAGE
    assert file.map[100:108] == b"far away"
    other = map_slice(cache, fd, offset, 5000)
    assert other is not file
    assert cache.held == 2
    file.release()
    other.release()
    assert mapped_times("huge") == 0
    os.close(fd)


def test_no_more_files_than_allowed() -> None:
    cache = FileCache(max_files=2)
    fds = [memfd(1) for _ in range(3)]
    first = map_slice(cache, fds[0], 0, PAGE)
    handle = cache.open(fds[1], FileInfo.of(fds[1]))
    for attempt in (lambda: map_slice(cache, fds[2], 0, PAGE), lambda: cache.open(fds[2], FileInfo.of(fds[2]))):
        with pytest.raises(DmaLimit, match="more than 2 different files") as caught:
            attempt()
        assert caught.value.errno == errno.EINVAL
    handle.release()
    map_slice(cache, fds[2], 0, PAGE).release()
    first.release()
    for fd in fds:
        os.close(fd)


def test_file_io_shares_one_descriptor() -> None:
    cache = FileCache()
    fd = memfd(4)
    info = FileInfo.of(fd)
    handle = cache.open(fd, info)
    assert cache.open(fd, info) is handle
    assert handle.fd != fd
    handle.release()
    os.fstat(handle.fd)
    handle.release()
    assert cache.held == 0
    os.close(fd)


@pytest.mark.parametrize("number", [errno.ENFILE, errno.EAGAIN])
def test_mmap_failures_carry_their_errno(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    cache = FileCache()
    fd = memfd(1)
    attempts = []

    def refuse(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        raise OSError(number, "refused")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(DeviceError) as caught:
        map_slice(cache, fd, 0, PAGE)
    assert caught.value.errno == number
    assert cache.held == 0
    assert len(attempts) == 1
    os.close(fd)


def test_no_memory_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache()
    fd = memfd(1)

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOMEM, "refused")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(DeviceError) as caught:
        map_slice(cache, fd, 0, PAGE)
    assert caught.value.errno == errno.ENOMEM
    os.close(fd)


def test_a_file_that_shrank_since_it_was_looked_at() -> None:
    cache = FileCache()
    fd = memfd(4)
    info = FileInfo.of(fd)
    os.ftruncate(fd, PAGE)
    with pytest.raises(DeviceError) as caught:
        cache.map(fd, info, 0, 4 * PAGE, write=True)
    assert caught.value.errno == errno.EINVAL
    os.close(fd)


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FileCache()
    fd = memfd(1)

    def refuse(fd: int) -> int:
        raise OSError(errno.EMFILE, "refused")

    monkeypatch.setattr(os, "dup", refuse)
    with pytest.raises(DeviceError) as caught:
        cache.open(fd, FileInfo.of(fd))
    assert caught.value.errno == errno.EMFILE
    assert cache.held == 0
    os.close(fd)
