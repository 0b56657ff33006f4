"""Files that stand for guest RAM, and how often this process has them mapped."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

PAGE = 4096


def memfd(pages: int, name: str = "guest-ram", *, seals: int = 0) -> int:
    """A memfd of ``pages`` pages; page n begins with the byte n. The caller closes it, or gives it away."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE)
    for page in range(min(pages, 256)):
        os.pwrite(fd, bytes([page]), page * PAGE)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def mapped_times(name: str = "guest-ram") -> int:
    """How many mappings of a memfd this process has."""
    return sum(f"/memfd:{name} " in line for line in Path("/proc/self/maps").read_text().splitlines())
