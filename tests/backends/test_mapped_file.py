"""Mapped images; that one is a row of bytes is tested with all backends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vfio_user.backends import MappedFileBackend

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


def test_the_contents_are_the_file(image: Path) -> None:
    with MappedFileBackend(image) as disk:
        assert disk.contents is not None
        disk.contents[5:10] = b"bytes"
        disk.flush()
        assert image.read_bytes()[5:10] == b"bytes"
        assert not disk.blocking
        assert disk.flush_blocks


def test_all_of_it_has_its_space_and_keeps_it(image: Path) -> None:
    """Otherwise a store to it would be SIGBUS when the disk is full."""
    with MappedFileBackend(image) as disk:
        assert image.stat().st_blocks * 512 == SIZE
        for length in (512, SIZE):
            disk.write(0, [b"\xff" * length])
            disk.discard(0, length)
            assert image.read_bytes() == bytes(SIZE)
            disk.zero(0, length)
        assert image.stat().st_blocks * 512 == SIZE


def test_read_only_it_takes_no_space(image: Path) -> None:
    with MappedFileBackend(image, read_only=True):
        assert image.stat().st_blocks == 0


def test_a_file_that_was_truncated_fails_instead_of_killing(image: Path) -> None:
    with MappedFileBackend(image) as disk:
        os.truncate(image, SIZE // 2)
        view = memoryview(bytearray(512))
        calls: list[Callable[[], object]] = [
            lambda: disk.contents,
            lambda: disk.read(0, [view]),
            lambda: disk.write(0, [view]),
            lambda: disk.zero(0, 512),
        ]
        for call in calls:
            with pytest.raises(OSError, match="truncated") as failed:
                call()
            assert failed.value.errno == errno.EIO
        os.truncate(image, SIZE)
        disk.read(0, [view])


def test_a_view_that_is_kept_keeps_the_memory(image: Path) -> None:
    disk = MappedFileBackend(image)
    contents = disk.contents
    assert contents is not None
    kept = contents[:512]
    disk.close()
    assert bytes(kept) == bytes(512)
