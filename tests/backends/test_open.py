"""What a user may write for a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfio_user.backends import (
    FileBackend,
    MappedFileBackend,
    MemoryBackend,
    NullBackend,
    OverlayBackend,
    open_backend,
    parse_size,
)

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512", 512), ("64M", 64 << 20), ("64m", 64 << 20), ("1GiB", 1 << 30), ("2 TB", 2 << 40), ("1K", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "64X", "64 M B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "kind", "read_only"),
    [
        ("{}", FileBackend, False),
        ("file:{}", FileBackend, False),
        ("file:{}?read_only=on", FileBackend, True),
        ("file:{}?read-only=on&direct=on", FileBackend, True),
        ("file:{}?mapped=on", MappedFileBackend, False),
        ("file:{}?mapped=yes&read_only=1", MappedFileBackend, True),
        ("file:{}?mapped=off&read_only=off", FileBackend, False),
        ("overlay:{}", OverlayBackend, False),
        ("overlay:file:{}?mapped=on", OverlayBackend, False),
    ],
)
def test_files(image: Path, text: str, kind: type, read_only: bool) -> None:
    with open_backend(text.format(image)) as disk:
        assert type(disk) is kind
        assert disk.size == SIZE
        assert disk.read_only == read_only
        assert (disk.block_size == 4096) == ("direct" in text)


def test_memory_and_null() -> None:
    with open_backend("memory:64K") as disk:
        assert isinstance(disk, MemoryBackend)
        assert disk.size == 64 << 10
    with open_backend("null:1P") as disk:
        assert isinstance(disk, NullBackend)
        assert disk.size == 1 << 50
    with open_backend("overlay:memory:1M") as disk:
        assert disk.size == SIZE


def test_names_that_look_like_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("disk:1.img", "what?read_only=on", "C:image"):
        (tmp_path / name).write_bytes(bytes(512))
        with open_backend(name) as disk:
            assert isinstance(disk, FileBackend)
            assert not disk.read_only


def test_the_base_of_an_overlay_need_not_be_writable(image: Path) -> None:
    with open_backend(f"overlay:{image}") as disk:
        assert isinstance(disk, OverlayBackend)
        assert disk._base.read_only
        disk.write(0, [b"x"])
    assert image.read_bytes()[:1] == b"\0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "without a name"),
        ("memory:lots", "'lots' is no size"),
        ("iscsi://host/1", "no backend is called 'iscsi'; there are file, memory, nbd"),
        ("file:x?cache=on", "no option 'cache'; it has read_only, direct and mapped"),
        ("file:x?direct=maybe", "is on or off, not 'maybe'"),
        ("file:x?direct", "is on or off, not ''"),
        ("file:x?direct=on&mapped=on", "one of the two"),
        ("overlay:", "without a name"),
    ],
)
def test_what_means_nothing(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_backend(text)


def test_what_is_not_there(tmp_path: Path) -> None:
    for text in ("{}", "file:{}", "file:{}?mapped=on", "overlay:{}"):
        with pytest.raises(FileNotFoundError):
            open_backend(text.format(tmp_path / "missing.img"))
