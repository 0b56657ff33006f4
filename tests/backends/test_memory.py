"""Storage in memory; that it is a row of bytes is tested with all backends."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from vfio_user.backends import MemoryBackend, NullBackend
from vfio_user.backends.base import fill_zeroes


def mapping(backend: MemoryBackend, what: str) -> list[str]:
    """What the kernel says of its memory; no other mapping may be as large."""
    pattern = f"{backend.size // 1024:>8} kB"
    with open("/proc/self/smaps") as smaps:  # noqa: PTH123
        lines = smaps.read().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("Size:") and line.endswith(pattern))
    return next(line for line in lines[at:] if line.startswith(f"{what}:")).split()[1:]


def resident(backend: MemoryBackend) -> int:
    """Bytes of it that are in memory."""
    return int(mapping(backend, "Rss")[0]) * 1024


def test_it_takes_memory_as_it_is_written_and_gives_it_back() -> None:
    with MemoryBackend(777 * mmap.PAGESIZE * 16) as disk:
        assert resident(disk) == 0
        disk.write(0, [b"\xff" * (10 * mmap.PAGESIZE)])
        assert resident(disk) >= 10 * mmap.PAGESIZE
        disk.discard(1, disk.size - 1)
        assert resident(disk) == mmap.PAGESIZE
        target = bytearray(10 * mmap.PAGESIZE)
        disk.read(0, [memoryview(target)])
        assert target == b"\xff" + bytes(10 * mmap.PAGESIZE - 1)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this kernel has no transparent huge pages"
)
def test_it_asks_for_large_pages() -> None:
    with MemoryBackend(779 * mmap.PAGESIZE * 16) as disk:
        assert "hg" in mapping(disk, "VmFlags")


def test_zeroes_that_keep_their_memory() -> None:
    with MemoryBackend(778 * mmap.PAGESIZE * 16) as disk:
        disk.write(0, [b"\xff" * (10 * mmap.PAGESIZE)])
        before = resident(disk)
        disk.zero(0, 10 * mmap.PAGESIZE, may_deallocate=False)
        assert resident(disk) == before


def test_contents_are_it() -> None:
    with MemoryBackend(b"abcdef") as disk:
        assert disk.contents is not None
        disk.contents[1:3] = b"XY"
        target = bytearray(4)
        disk.read(0, [memoryview(target)])
        assert target == b"aXYd"
        assert disk.block_size == 512


def test_a_view_that_is_kept_keeps_the_memory() -> None:
    disk = MemoryBackend(b"abcdef")
    assert disk.contents is not None
    kept = disk.contents[:3]
    disk.close()
    assert bytes(kept) == b"abc"


def test_the_null_backend_keeps_nothing() -> None:
    with NullBackend(1 << 50) as disk:
        disk.write(1 << 49, [b"something"])
        target = bytearray(b"\xff" * 9)
        disk.read(1 << 49, [memoryview(target)])
        assert target == bytes(9)
        disk.discard(0, 1 << 50)
        disk.zero(0, 1 << 50)
        disk.flush()
        assert disk.contents is None
        assert not disk.blocking
        with pytest.raises(ValueError, match="inside"):
            disk.write(1 << 50, [b"x"])


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 700_000])
def test_zeroes_of_any_length(size: int) -> None:
    buffer = bytearray(b"\xff" * (size + 2))
    fill_zeroes(memoryview(buffer)[1:-1])
    assert buffer == b"\xff" + bytes(size) + b"\xff"
