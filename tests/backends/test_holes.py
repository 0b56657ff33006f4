"""Holes and zeroes in files."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user.backends import holes

SIZE = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"\xff" * SIZE)
    made = os.open(tmp_path / "file", os.O_RDWR)
    yield made
    os.close(made)


def blocks(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_a_hole_takes_no_space_and_reads_as_zeroes(fd: int) -> None:
    assert holes.punch_hole(fd, SIZE // 2, SIZE // 2)
    assert blocks(fd) == SIZE // 2
    assert os.fstat(fd).st_size == SIZE
    assert os.pread(fd, SIZE, 0) == b"\xff" * (SIZE // 2) + bytes(SIZE // 2)


def test_zeroes_may_keep_their_space(fd: int) -> None:
    if not holes.zero_range(fd, 4096, SIZE - 4096):
        pytest.skip("this file system has no FALLOC_FL_ZERO_RANGE")
    assert blocks(fd) == SIZE
    assert os.pread(fd, SIZE, 0) == b"\xff" * 4096 + bytes(SIZE - 4096)


def test_space_for_holes(fd: int) -> None:
    holes.punch_hole(fd, 0, SIZE)
    assert holes.allocate(fd, 0, SIZE)
    assert blocks(fd) == SIZE


def test_what_cannot_do_it_says_so() -> None:
    readable, writable = os.pipe()
    with pytest.raises(OSError, match=r"fallocate of \[0x0, 0x200\)") as failed:
        holes.punch_hole(writable, 0, 512)
    assert failed.value.errno == errno.ESPIPE
    os.close(readable)
    os.close(writable)


def test_a_file_system_without_it(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, answer in ((errno.EOPNOTSUPP, False), (errno.EINVAL, False), (0, True)):
        monkeypatch.setattr(holes, "_function", lambda number=number: lambda *_: number)
        assert holes.punch_hole(fd, 0, 512) is answer
    monkeypatch.setattr(holes, "_function", lambda: lambda *_: errno.ENOSPC)
    with pytest.raises(OSError, match="fallocate") as failed:
        holes.zero_range(fd, 0, 512)
    assert failed.value.errno == errno.ENOSPC
