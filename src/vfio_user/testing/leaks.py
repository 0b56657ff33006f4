"""Which file descriptors this process has open, and which of them somebody forgot."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

__all__ = ["leaked_since", "open_files"]

_OPEN = Path("/proc/self/fd")


def open_files() -> dict[int, tuple[int, int]]:
    """Every open descriptor with what tells its file from another's, since a number may be used again."""
    found = {}
    for name in os.listdir(_OPEN):  # noqa: PTH208  # numbers, not paths
        # The descriptor the directory was listed with is closed by now.
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            found[int(name)] = status.st_dev, status.st_ino
    return found


def leaked_since(before: dict[int, tuple[int, int]]) -> list[str]:
    """What was opened since and is still open, as ``number -> target``.

    What only a reference cycle keeps open is closed first, and does not count.
    """
    if _new(before):
        gc.collect()
    return [f"{fd} -> {_target(fd)}" for fd in _new(before)]


def _new(before: dict[int, tuple[int, int]]) -> list[int]:
    return [fd for fd, identity in sorted(open_files().items()) if before.get(fd) != identity]


def _target(fd: int) -> str:
    try:
        return str((_OPEN / str(fd)).readlink())
    except OSError:
        return "closed meanwhile"
