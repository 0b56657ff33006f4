from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.cache import Cache, default_cache_folder
from vfio_user.vm.progress import Progress


def _build(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub/file").write_text("content")
    (folder / "link").symlink_to("sub/file")


def _refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was built again")


def test_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.ensure("thing", {"version": 1}, _build)
    assert (entry / "sub/file").read_text() == "content"
    assert cache.ensure("thing", {"version": 1}, _refuse) == entry
    assert Cache(tmp_path).ensure("thing", {"version": 1}, _refuse) == entry
    assert json.loads((entry / "manifest.json").read_text()) == {
        "recipe": {"version": 1},
        "files": {"sub/file": 7},
    }


def test_new_recipe_is_a_new_entry(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.ensure("thing", {"version": 1, "a": "b"}, _build)
    assert cache.ensure("thing", {"a": "b", "version": 1}, _refuse) == first
    assert cache.ensure("thing", {"version": 2, "a": "b"}, _build) != first
    assert first.exists()


@pytest.mark.parametrize("damage", ["manifest.json", "sub/file", "shorter"])
def test_incomplete_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path)
    entry = cache.ensure("thing", {}, _build)
    if damage == "shorter":
        (entry / "sub/file").write_text("cont")
    else:
        (entry / damage).unlink()
    assert cache.ensure("thing", {}, _build) == entry
    assert (entry / "sub/file").read_text() == "content"


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        _build(folder)
        raise VmUnavailableError("no network")

    with pytest.raises(VmUnavailableError, match="no network"):
        cache.ensure("thing", {}, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    cache.ensure("thing", {}, _build)


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.ensure("thing", {}, _build)
    (entry / "manifest.json").unlink()
    leftover = tmp_path / f".{entry.name}.abcdef"
    leftover.mkdir()
    cache.ensure("thing", {}, _build)
    assert not leftover.exists()


def test_nothing_is_seen_before_it_is_whole(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        _build(folder)
        assert not list(tmp_path.glob("thing-*"))

    Cache(tmp_path).ensure("thing", {}, build)


def test_many_at_once_make_it_once(tmp_path: Path) -> None:
    built: list[Path] = []
    together = threading.Barrier(4)

    def build(folder: Path) -> None:
        built.append(folder)
        _build(folder)

    def ensure() -> None:
        cache = Cache(tmp_path)
        together.wait()
        cache.ensure("thing", {}, build)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_waits_for_another_process(tmp_path: Path) -> None:
    waiting = threading.Event()

    class Noticing(Progress):
        def note(self, text: str) -> None:
            assert text == "waiting for another process that is preparing thing"
            waiting.set()

    cache = Cache(tmp_path)
    other = os.open(tmp_path / ".thing.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    made = []
    thread = threading.Thread(target=lambda: made.append(cache.ensure("thing", {}, _build, Noticing(None))))
    thread.start()
    assert waiting.wait(10)
    thread.join(0.1)
    assert not made
    os.close(other)
    thread.join()
    assert made


def test_store(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.store("images", ".cpio", b"content", 0o755)
    assert path.read_bytes() == b"content"
    assert path.parent == tmp_path / "images"
    assert path.suffix == ".cpio"
    assert path.stat().st_mode & 0o777 == 0o755
    before = path.stat().st_ino
    assert cache.store("images", ".cpio", b"content").stat().st_ino == before
    assert cache.store("images", ".cpio", b"other") != path
    path.write_bytes(b"cut")
    assert cache.store("images", ".cpio", b"content").read_bytes() == b"content"
    assert not list((tmp_path / "images").glob(".*"))


def test_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("VFIO_USER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_folder() == Path("/home/me/.cache/vfio-user")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache_folder() == Path("/xdg/vfio-user")
    monkeypatch.setenv("VFIO_USER_CACHE", "/named")
    assert default_cache_folder() == Path("/named")


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VmUnavailableError, match=r"file/cache cannot be used \(Not a directory\): set VFIO_USER_CACHE"):
        Cache(tmp_path / "file/cache")
    cache = Cache(tmp_path)
    (tmp_path / "images").touch()
    with pytest.raises(VmUnavailableError, match="cannot be used"):
        cache.store("images", "", b"")
    (tmp_path / ".thing.lock").mkdir()
    with pytest.raises(VmUnavailableError, match="cannot be used"):
        cache.ensure("thing", {}, _build)
