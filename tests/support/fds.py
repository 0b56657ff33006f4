"""Which file descriptors this process has open, and which of them a test forgot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest

from vfio_user.testing.leaks import leaked_since, open_files


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """Fails if what runs inside leaves descriptors open, and names them."""
    before = open_files()
    yield
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
