"""What descriptors are, and files that several mappings share."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
from pathlib import Path

import pytest

from tests.memory.guest_files import PAGE, mapped_times, memfd
from vfio_user.errors import DeviceError, InvalidAccess
from vfio_user.memory.shared_file import FileHandle, FileInfo, MappedFile, SharedFile, is_sealed


def mapped(fd: int, pages: int) -> MappedFile:
    memory = mmap.mmap(fd, pages * PAGE)
    return MappedFile((0, 0), lambda _file: None, memory, 0, sealed=False)


def test_info_of_a_memfd() -> None:
    fd = memfd(3)
    try:
        info = FileInfo.of(fd)
        assert info.size == 3 * PAGE
        assert info.access == os.O_RDWR
        other = os.dup(fd)
        assert FileInfo.of(other).identity == info.identity
        os.close(other)
    finally:
        os.close(fd)


def test_two_files_differ_in_identity() -> None:
    first, second = memfd(1), memfd(1)
    assert FileInfo.of(first).identity != FileInfo.of(second).identity
    os.close(first)
    os.close(second)


def open_kind(kind: str) -> tuple[int, ...]:
    """Descriptors without a size; the first is the one to try."""
    match kind:
        case "pipe":
            return os.pipe()
        case "socket":
            return (socket.socket(socket.AF_UNIX).detach(),)
        case "eventfd":
            return (os.eventfd(0),)
        case _:
            return (os.open(kind, os.O_RDONLY),)


@pytest.mark.parametrize("kind", ["pipe", "socket", "eventfd", "/dev/zero", "/"])
def test_what_has_no_size_is_refused_with_enodev(kind: str) -> None:
    fds = open_kind(kind)
    with pytest.raises(DeviceError, match="send a memfd") as caught:
        FileInfo.of(fds[0])
    assert caught.value.errno == errno.ENODEV
    for fd in fds:
        os.close(fd)


def test_a_closed_descriptor() -> None:
    fd = memfd(1)
    os.close(fd)
    with pytest.raises(DeviceError) as caught:
        FileInfo.of(fd)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(
    ("offset", "size", "fits"), [(0, 8192, True), (4096, 4096, True), (1, 8192, False), (1 << 63, 1 << 63, False)]
)
def test_a_slice_must_lie_in_the_file(offset: int, size: int, fits: bool) -> None:
    info = FileInfo((0, 0), 8192, os.O_RDWR, 4096)
    if fits:
        info.check(offset, size, read=True, write=True)
    else:
        with pytest.raises(InvalidAccess, match="a file that ends at 0x2000"):
            info.check(offset, size, read=True, write=True)


@pytest.mark.parametrize(
    ("access", "read", "write", "allowed"),
    [
        (os.O_RDONLY, True, False, True),
        (os.O_RDONLY, False, True, False),
        (os.O_WRONLY, True, False, False),
        (os.O_WRONLY, False, True, True),
        (os.O_RDWR, True, True, True),
    ],
)
def test_the_descriptor_must_allow_the_access(access: int, read: bool, write: bool, allowed: bool) -> None:
    info = FileInfo((0, 0), 8192, access, 4096)
    if allowed:
        info.check(0, 1, read=read, write=write)
    else:
        with pytest.raises(DeviceError) as caught:
            info.check(0, 1, read=read, write=write)
        assert caught.value.errno == errno.EACCES


def test_seals(tmp_path: Path) -> None:
    sealed, open_ended = memfd(1, seals=fcntl.F_SEAL_SHRINK), memfd(1, seals=fcntl.F_SEAL_GROW)
    plain = os.open(tmp_path / "plain", os.O_RDWR | os.O_CREAT)
    assert [is_sealed(fd) for fd in (sealed, open_ended, plain)] == [True, False, False]
    for fd in (sealed, open_ended, plain):
        os.close(fd)


def test_the_last_holder_closes() -> None:
    gone: list[SharedFile] = []
    fd = memfd(1)
    handle = FileHandle((1, 2), gone.append, fd)
    handle.holders = 2
    handle.release()
    os.fstat(fd)
    assert gone == []
    handle.release()
    assert gone == [handle]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_words_of_a_mapped_file() -> None:
    fd = memfd(1)
    file = mapped(fd, 1)
    file.words[4][2] = 0x1122_3344
    assert file.map[8:12].hex() == "44332211"
    assert file.words[8][1] == 0x1122_3344
    assert file.words[2][4] == 0x3344
    assert file.words[1][11] == 0x11
    assert file.readonly.readonly
    file.close()
    assert mapped_times() == 0
    os.close(fd)


def test_a_view_outlives_the_file_and_takes_the_mapping_with_it() -> None:
    fd = memfd(2)
    file = mapped(fd, 2)
    os.close(fd)
    view = file.readonly[PAGE : PAGE + 1]
    file.close()
    assert mapped_times() == 1
    assert view[0] == 1
    del file
    view.release()
    assert mapped_times() == 0


def test_file_io() -> None:
    fd = memfd(2)
    file = FileHandle((0, 0), lambda _file: None, fd)
    file.write(PAGE, memoryview(b"abcdef"))
    target = bytearray(4)
    file.read_into(PAGE + 1, memoryview(target))
    assert target == b"bcde"
    os.ftruncate(fd, PAGE)
    with pytest.raises(DeviceError, match="truncated") as caught:
        file.read_into(PAGE - 1, memoryview(target))
    assert caught.value.errno == errno.EIO
    file.close()


def test_file_io_carries_the_kernels_errno() -> None:
    fd = memfd(1, seals=fcntl.F_SEAL_WRITE)
    file = FileHandle((0, 0), lambda _file: None, fd)
    with pytest.raises(DeviceError, match="file I/O on guest memory at byte 0x10") as caught:
        file.write(0x10, memoryview(b"x"))
    assert caught.value.errno == errno.EPERM
    file.close()
