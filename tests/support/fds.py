"""Which file descriptors this process has open, and which of them a test forgot."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

_OPEN = Path("/proc/self/fd")


def open_fds() -> dict[int, tuple[int, int]]:
    """Every open descriptor with what tells its file from another's; a number alone may have been used again."""
    found = {}
    for name in os.listdir(_OPEN):  # noqa: PTH208  # numbers, not paths
        # The descriptor the directory was listed with is closed by now.
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            found[int(name)] = status.st_dev, status.st_ino
    return found


def leaked_since(before: dict[int, tuple[int, int]]) -> list[str]:
    """What was opened since and is still open, as "number -> target"."""
    return [
        f"{fd} -> {(_OPEN / str(fd)).readlink()}"
        for fd, identity in sorted(open_fds().items())
        if before.get(fd) != identity
    ]


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fails if what runs inside leaves descriptors open, and names them."""
    before = open_fds()
    yield
    if leaked_since(before):
        # An object in a reference cycle is not a leak of its own: its finalizer may warn, and a warning is an error.
        gc.collect()
        leaked = leaked_since(before)
        if leaked:
            pytest.fail(f"{len(leaked)} file descriptors leaked: {', '.join(leaked)}", pytrace=False)


def memory_file(contents: bytes = b"") -> int:
    """A new descriptor of a new memory file: no two have the same ``identity``."""
    fd = os.memfd_create("test")
    os.write(fd, contents)
    return fd


def identity(fd: int) -> int:
    """What stays the same of a descriptor when it travels: its file's inode number."""
    return os.fstat(fd).st_ino


def close_all(fds: Sequence[int]) -> None:
    """Closes them."""
    for fd in fds:
        os.close(fd)
