"""Every backend behaves as a row of bytes does; what is particular to one is in its own file."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfio_user.backends import (
    Backend,
    FileBackend,
    MappedFileBackend,
    MemoryBackend,
    NullBackend,
    OverlayBackend,
    ReadableBuffer,
)

#: Bytes: several pages and a part of one, so that no end is aligned to anything but a sector.
SIZE = 5 * mmap.PAGESIZE + 1536

Maker = Callable[[Path, bytes], Backend]


def image(directory: Path, contents: bytes) -> Path:
    path = directory / "disk.img"
    path.write_bytes(contents)
    return path


class Plain(Backend):
    """Only what a backend must have: everything else is the base class's."""

    def __init__(self, contents: bytes) -> None:
        super().__init__(len(contents))
        self.bytes = bytearray(contents)

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        for view in views:
            view[:] = self.bytes[offset : offset + len(view)]
            offset += len(view)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        self.bytes[offset : offset + length] = b"".join(views)


MAKERS: dict[str, Maker] = {
    "plain": lambda _, contents: Plain(contents),
    "memory": lambda _, contents: MemoryBackend(contents),
    "file": lambda directory, contents: FileBackend(image(directory, contents)),
    "direct": lambda directory, contents: FileBackend(image(directory, contents), direct=True),
    "mapped": lambda directory, contents: MappedFileBackend(image(directory, contents)),
    "overlay of file": lambda directory, contents: OverlayBackend(
        FileBackend(image(directory, contents), read_only=True)
    ),
    "overlay in memory": lambda _, contents: OverlayBackend(Plain(contents), MemoryBackend(len(contents))),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], Backend]]:
    with contextlib.ExitStack() as opened:
        maker = MAKERS[request.param]

        def made(contents: bytes) -> Backend:
            return opened.enter_context(maker(tmp_path, contents))

        yield made


Operation = tuple[str, int, int, int]

#: Edges of sectors, pages and the disk, and whatever lies between them.
OFFSETS = st.one_of(st.integers(0, SIZE), st.sampled_from(range(0, SIZE + 1, 512)))

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "zero", "keep", "discard", "flush", "contents"]),
        OFFSETS,
        OFFSETS,
        st.integers(1, 4),
    ),
    max_size=12,
)


def cut(buffer: bytearray, parts: int) -> list[memoryview]:
    """Views of a buffer that together are all of it; not all of one length, and perhaps empty."""
    edges = [len(buffer) * part // parts | (1 if 0 < part < parts and len(buffer) else 0) for part in range(parts + 1)]
    return [memoryview(buffer)[first:last] for first, last in itertools.pairwise(edges)]


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_backend_is_a_row_of_bytes(kind: str, tmp_path: Path, data: st.DataObject) -> None:
    model = bytearray(os.urandom(SIZE))
    with MAKERS[kind](tmp_path, bytes(model)) as backend:
        assert backend.size == SIZE
        for number, (what, one, other, parts) in enumerate(data.draw(OPERATIONS)):
            start, end = min(one, other), max(one, other)
            if what == "read":
                target = bytearray(end - start)
                if backend.read_at_once(start, cut(target, parts)):
                    assert target == model[start:end]
                backend.read(start, cut(target, parts))
                assert target == model[start:end]
            elif what == "write":
                source = bytearray(bytes([number + 1]) * (end - start))
                backend.write(start, cut(source, parts))
                model[start:end] = source
            elif what in ("zero", "keep"):
                backend.zero(start, end - start, may_deallocate=what == "zero")
                model[start:end] = bytes(end - start)
            elif what == "discard":
                backend.discard(start, end - start)
                model[start:end] = bytes(end - start)
            elif what == "flush":
                backend.flush()
            else:
                contents = backend.contents
                if contents is not None:
                    assert contents == model
                    contents[start:end] = model[start:end] = bytes([0xC0 + number]) * (end - start)
        everything = bytearray(SIZE)
        backend.read(0, [memoryview(everything)])
        assert everything == model


@pytest.mark.parametrize(("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (-1, 0), (SIZE + 1, 0)])
def test_a_range_outside_is_the_callers_bug(make: Callable[[bytes], Backend], offset: int, length: int) -> None:
    backend = make(bytes(SIZE))
    buffer = memoryview(bytearray(length))
    calls: list[Callable[[], object]] = [
        lambda: backend.read(offset, [buffer]),
        lambda: backend.read_at_once(offset, [buffer]),
        lambda: backend.is_at_hand(offset, length),
        lambda: backend.write(offset, [buffer]),
        lambda: backend.zero(offset, length),
        lambda: backend.discard(offset, length),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"the range has to lie inside"):
            call()


def test_nothing_is_a_range_everywhere_inside(make: Callable[[bytes], Backend]) -> None:
    backend = make(bytes(SIZE))
    backend.read(SIZE, [])
    backend.write(SIZE, [b""])
    backend.zero(SIZE, 0)
    backend.discard(0, 0)


def test_more_buffers_than_one_system_call_takes(make: Callable[[bytes], Backend]) -> None:
    backend = make(bytes(SIZE))
    pieces = [bytes([number & 0xFF, number >> 8]) for number in range(2500)]
    backend.write(512, pieces)
    targets = [bytearray(2) for _ in pieces]
    backend.read(512, [memoryview(target) for target in targets])
    assert targets == pieces


def test_a_backend_that_is_closed_refuses_everything(make: Callable[[bytes], Backend]) -> None:
    backend = make(bytes(SIZE))
    backend.close()
    backend.close()
    calls: list[Callable[[], object]] = [
        lambda: backend.read(0, []),
        lambda: backend.read_at_once(0, []),
        lambda: backend.is_at_hand(0, 0),
        lambda: backend.write(0, []),
        lambda: backend.zero(0, 0),
        lambda: backend.discard(0, 0),
        backend.flush,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_disk_of_no_size(make: Callable[[bytes], Backend]) -> None:
    backend = make(b"")
    assert backend.size == 0
    backend.read(0, [])
    with pytest.raises(ValueError, match="inside"):
        backend.write(0, [b"x"])


READ_ONLY: dict[str, Maker] = {
    "memory": lambda _, contents: MemoryBackend(contents, read_only=True),
    "file": lambda directory, contents: FileBackend(image(directory, contents), read_only=True),
    "mapped": lambda directory, contents: MappedFileBackend(image(directory, contents), read_only=True),
}


@pytest.mark.parametrize("kind", READ_ONLY)
def test_a_read_only_backend_cannot_be_changed(kind: str, tmp_path: Path) -> None:
    contents = os.urandom(SIZE)
    with READ_ONLY[kind](tmp_path, contents) as backend:
        assert backend.read_only
        calls: list[Callable[[], object]] = [
            lambda: backend.write(0, [b"x"]),
            lambda: backend.zero(0, 1),
            lambda: backend.discard(0, 1),
        ]
        for call in calls:
            with pytest.raises(OSError, match="read-only") as refused:
                call()
            assert refused.value.errno == errno.EROFS
        if backend.contents is not None:
            assert backend.contents.readonly
        target = bytearray(SIZE)
        backend.read(0, [memoryview(target)])
        assert target == contents
        backend.flush()


def test_a_size_below_zero() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        NullBackend(-1)


def test_devices_know_what_waits(make: Callable[[bytes], Backend]) -> None:
    backend = make(bytes(512))
    assert backend.flush_blocks == (not isinstance(backend, MemoryBackend) and not in_memory(backend))
    assert backend.blocking == (backend.contents is None)


def in_memory(backend: Backend) -> bool:
    """An overlay that is."""
    return isinstance(backend, OverlayBackend) and not backend._overlay.blocking
