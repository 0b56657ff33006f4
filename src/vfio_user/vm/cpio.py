"""Writes cpio archives in the *newc* format, the one the kernel unpacks as its initramfs.

Deterministic: the same content gives the same bytes, on any machine, as any user.
Spec: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

__all__ = ["CpioArchive"]

_MAGIC = "070701"


class CpioArchive:
    """An archive being written. Folders above a path are made by themselves; a later file replaces an earlier one."""

    def __init__(self) -> None:
        # path -> (mode, content, (device major, device minor)); written out in sorted order, folders before content.
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def __contains__(self, path: str) -> bool:
        return _normal(path) in self._entries

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Adds a folder; one that is there already stays as it is."""
        name = _normal(path)
        if name and name not in self._entries:
            self._add(name, stat.S_IFDIR | mode, b"", (0, 0))

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Adds a regular file."""
        self._add(_normal(path), stat.S_IFREG | mode, content, (0, 0))

    def link(self, path: str, target: str) -> None:
        """Adds a symbolic link."""
        self._add(_normal(path), stat.S_IFLNK | 0o777, target.encode(), (0, 0))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._add(_normal(path), stat.S_IFCHR | mode, b"", (major, minor))

    def to_bytes(self) -> bytes:
        """The whole archive."""
        archive = bytearray()
        # A folder sorts before what is in it, as "a" sorts before "a/b".
        for inode, (name, (mode, content, device)) in enumerate(sorted(self._entries.items()), start=1):
            _append(archive, inode, name, mode, content, device)
        _append(archive, 0, "TRAILER!!!", 0, b"", (0, 0))
        archive += bytes(-len(archive) % 512)
        return bytes(archive)

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
        if not name:
            raise ValueError("the root folder of an archive cannot be replaced: give a path below it")
        self.folder(str(PurePosixPath(name).parent))
        self._entries[name] = (mode, content, device)


def _normal(path: str) -> str:
    """The path as the archive holds it: without the leading slash, dots or doubled slashes."""
    parts = [part for part in PurePosixPath(path.lstrip("/")).parts if part != "."]
    if ".." in parts:
        raise ValueError(f"path {path!r} of an archive may not go up: write it without '..'")
    return "/".join(parts)


def _append(archive: bytearray, inode: int, name: str, mode: int, content: bytes, device: tuple[int, int]) -> None:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_maj, c_min, c_rmaj, c_rmin, c_namesize, c_chksum
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    archive += (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode()
    archive += encoded
    archive += bytes(-len(archive) % 4)
    archive += content
    archive += bytes(-len(archive) % 4)
