from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.vm.cpio import CpioArchive

_NAMES = st.from_regex(r"[a-z]{1,4}(/[a-z]{1,4}){0,2}", fullmatch=True)


def read_cpio(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader: name -> (mode, content, device). Fails on anything the kernel would not take."""
    entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    offset = 0
    inodes = set()
    while True:
        assert offset % 4 == 0
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, _links, mtime, size, major, minor, rmajor, rminor, name_size, checksum = fields
        name_at = offset + 110
        name = archive[name_at : name_at + name_size]
        assert name.endswith(b"\0")
        content_at = name_at + name_size + -(name_at + name_size) % 4
        content = archive[content_at : content_at + size]
        assert (uid, gid, mtime, major, minor, checksum) == (0, 0, 0, 0, 0, 0)
        if name == b"TRAILER!!!\0":
            assert len(archive) % 512 == 0
            assert not archive[content_at:].strip(b"\0")
            return entries
        assert inode not in inodes
        inodes.add(inode)
        path = name[:-1].decode()
        assert path not in entries
        parent = path.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(entries[parent][0]), f"{path} comes before its folder"
        entries[path] = (mode, content, (rmajor, rminor))
        offset = content_at + size + -(content_at + size) % 4


def test_each_kind_of_entry() -> None:
    archive = CpioArchive()
    archive.device("/dev/console", 5, 1)
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.link("bin/sh", "busybox")
    archive.folder("proc")
    assert read_cpio(archive.to_bytes()) == {
        "bin": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "bin/sh": (stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        "dev": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "dev/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
        "init": (stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0)),
        "proc": (stat.S_IFDIR | 0o755, b"", (0, 0)),
    }


@given(st.dictionaries(_NAMES, st.binary(max_size=9)))
def test_files_come_back(files: dict[str, bytes]) -> None:
    # A name may not be a file and the folder of another.
    files = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)}
    archive = CpioArchive()
    for name, data in files.items():
        archive.file(name, data)
    back = {name: data for name, (mode, data, _) in read_cpio(archive.to_bytes()).items() if stat.S_ISREG(mode)}
    assert back == files


def test_order_of_adding_does_not_matter() -> None:
    names = ["b/c", "a", "b/a", "c.d", "b.x"]
    archives = []
    for order in (names, sorted(names), sorted(names, reverse=True)):
        archive = CpioArchive()
        for name in order:
            archive.file(name, name.encode())
        archives.append(archive.to_bytes())
    assert archives[0] == archives[1] == archives[2]


def test_later_file_replaces_and_folder_stays() -> None:
    archive = CpioArchive()
    archive.file("etc/a", b"1")
    archive.file("/etc//./a", b"2", 0o600)
    archive.folder("etc", 0o700)
    entries = read_cpio(archive.to_bytes())
    assert entries["etc/a"] == (stat.S_IFREG | 0o600, b"2", (0, 0))
    assert entries["etc"][0] == stat.S_IFDIR | 0o755
    assert "etc/a" in archive
    assert "etc/b" not in archive


@pytest.mark.parametrize(("path", "complaint"), [("../a", "may not go up"), ("a/../b", "may not go up"), ("/", "root")])
def test_paths_that_lead_elsewhere_are_refused(path: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CpioArchive().file(path, b"")
