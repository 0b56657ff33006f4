"""Copy on write; that it is a row of bytes is tested with all backends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vfio_user.backends import FileBackend, MemoryBackend, OverlayBackend, open_backend
from vfio_user.backends import overlay as module

CLUSTER = 4096


def test_the_base_stays_as_it_is(tmp_path: Path) -> None:
    contents = os.urandom(10 * CLUSTER + 100)
    (tmp_path / "base.img").write_bytes(contents)
    (tmp_path / "base.img").chmod(0o400)
    with open_backend(f"overlay:{tmp_path / 'base.img'}") as disk:
        disk.write(CLUSTER + 5, [b"changed"])
        disk.discard(3 * CLUSTER, 2 * CLUSTER)
        disk.zero(10 * CLUSTER + 50, 50)
        disk.flush()
        read = bytearray(len(contents))
        disk.read(0, [memoryview(read)])
    expected = bytearray(contents)
    expected[CLUSTER + 5 : CLUSTER + 12] = b"changed"
    expected[3 * CLUSTER : 5 * CLUSTER] = bytes(2 * CLUSTER)
    expected[-50:] = bytes(50)
    assert read == expected
    assert (tmp_path / "base.img").read_bytes() == contents


def test_only_what_changes_takes_space(tmp_path: Path) -> None:
    base = MemoryBackend(os.urandom(64 * CLUSTER))
    (tmp_path / "overlay.img").touch()
    os.truncate(tmp_path / "overlay.img", 64 * CLUSTER)
    disk = OverlayBackend(base, FileBackend(tmp_path / "overlay.img"))
    with disk:
        disk.read(0, [memoryview(bytearray(64 * CLUSTER))])
        assert disk.own_clusters == 0
        disk.write(CLUSTER, [bytes([1]) * 2 * CLUSTER])
        disk.write(9 * CLUSTER + 1, [b"x"])
        assert disk.own_clusters == 3
        disk.discard(20 * CLUSTER, 40 * CLUSTER)
        assert disk.own_clusters == 43
        disk.flush()
        assert (tmp_path / "overlay.img").stat().st_blocks * 512 == 3 * CLUSTER


def test_whole_clusters_are_not_copied_first() -> None:
    class Untouched(MemoryBackend):
        def _read(self, *_: object) -> None:
            raise AssertionError("the base was read")

    with OverlayBackend(Untouched(8 * CLUSTER), MemoryBackend(8 * CLUSTER)) as disk:
        disk.write(0, [bytes(CLUSTER)])
        disk.zero(CLUSTER, CLUSTER)
        disk.discard(2 * CLUSTER, CLUSTER)
        disk.read(0, [memoryview(bytearray(3 * CLUSTER))])
        with pytest.raises(AssertionError, match="was read"):
            disk.write(4 * CLUSTER, [bytes(CLUSTER - 1)])


def test_a_large_disk_has_larger_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CLUSTERS", 4)
    contents = os.urandom(16 * CLUSTER)
    with OverlayBackend(MemoryBackend(contents), MemoryBackend(16 * CLUSTER)) as disk:
        disk.write(100, [b"x"])
        assert disk.own_clusters == 1
        read = bytearray(len(contents))
        disk.read(0, [memoryview(read)])
        assert read == contents[:100] + b"x" + contents[101:]
        disk.discard(0, 4 * CLUSTER)
        disk.read(0, [memoryview(read)])
        assert read == bytes(4 * CLUSTER) + contents[4 * CLUSTER :]


def test_an_overlay_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="has to hold all"):
        OverlayBackend(MemoryBackend(1024), MemoryBackend(512))


def test_closing_closes_both() -> None:
    base, overlay = MemoryBackend(512), MemoryBackend(512)
    OverlayBackend(base, overlay).close()
    for backend in (base, overlay):
        with pytest.raises(ValueError, match="closed"):
            backend.flush()


def test_what_waits_is_what_its_parts_do() -> None:
    with OverlayBackend(MemoryBackend(512), MemoryBackend(512)) as disk:
        assert not disk.blocking
        assert not disk.flush_blocks
    with OverlayBackend(MemoryBackend(512)) as disk:
        assert disk.blocking
        assert disk.flush_blocks
