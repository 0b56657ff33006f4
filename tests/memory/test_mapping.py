"""One mapping, in each of its three kinds."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
from collections.abc import Callable

import pytest

from tests.memory.guest_files import PAGE, memfd
from vfio_user.errors import DmaAccess
from vfio_user.memory.mapping import (
    NOWHERE,
    AccessMode,
    DmaMapping,
    FileMapping,
    MessageMapping,
    Messenger,
    MmapMapping,
)
from vfio_user.memory.shared_file import FileHandle, MappedFile


def mmapped(pages: int = 4, iova: int = 0x10000, offset: int = PAGE) -> MmapMapping:
    fd = memfd(pages)
    file = MappedFile((1, 1), lambda _file: None, mmap.mmap(fd, pages * PAGE), 0, sealed=False)
    os.close(fd)
    file.holders = 1
    return MmapMapping(iova, PAGE, offset, file, readable=True, writable=True)


def by_file_io() -> FileMapping:
    handle = FileHandle((1, 1), lambda _file: None, memfd(4))
    handle.holders = 1
    return FileMapping(0x10000, PAGE, PAGE, handle, readable=True, writable=True)


class EchoMessages:
    """A client that shares nothing and answers everything."""

    def __init__(self) -> None:
        self.memory = bytearray(0x20000)
        self.memory[0x10000] = 1

    def read(self, iova: int, length: int) -> bytes:
        return bytes(self.memory[iova : iova + length])

    @property
    def is_ready(self) -> bool:
        return True

    def write(self, iova: int, data: memoryview) -> None:
        self.memory[iova : iova + len(data)] = data


def by_messages() -> MessageMapping:
    messenger = Messenger()
    messenger.dma = EchoMessages()
    return MessageMapping(0x10000, PAGE, 0, messenger, readable=True, writable=True)


@pytest.mark.parametrize("make", [mmapped, by_file_io, by_messages])
def test_every_kind_reads_and_writes(make: Callable[[], DmaMapping]) -> None:
    mapping = make()
    target = bytearray(2)
    mapping.read_into(0x10000, memoryview(target))
    assert target == b"\1\0"
    mapping.write(0x10004, memoryview(b"word"))
    target = bytearray(8)
    mapping.read_into(0x10000, memoryview(target))
    assert target == b"\1\0\0\0word"
    mapping.check_reachable()
    assert mapping.revoke_views() == 0
    mapping.release()


def test_text() -> None:
    mapping = MessageMapping(0x1000, 0x2000, 0, Messenger(), readable=True, writable=False)
    assert str(mapping) == "DMA mapping [0x1000, 0x3000) r- by messages"
    assert repr(mapping) == f"<{mapping}>"
    assert mapping.mode is AccessMode.MESSAGE


def test_messages_without_a_messenger() -> None:
    mapping = MessageMapping(0x1000, 0x2000, 0, Messenger(), readable=True, writable=True)
    for attempt in (
        mapping.check_reachable,
        lambda: mapping.read_into(0x1000, memoryview(bytearray(1))),
        lambda: mapping.write(0x1000, memoryview(b"x")),
    ):
        with pytest.raises(DmaAccess, match="memory-backend-memfd,id=ram,size=1G,share=on"):
            attempt()


def test_same_slice() -> None:
    mapping = mmapped()
    same = {"size": PAGE, "offset": PAGE, "identity": (1, 1), "readable": True, "writable": True}
    assert mapping.same_slice(**same)  # type: ignore[arg-type]
    for name, value in {"size": 1, "offset": 0, "identity": (1, 2), "readable": False, "writable": False}.items():
        assert not mapping.same_slice(**{**same, name: value}), name  # type: ignore[arg-type]
    mapping.release()
    # An offset means nothing where there is no file.
    assert by_messages().same_slice(PAGE, 5, None, readable=True, writable=True)


def test_neighbours() -> None:
    first = mmapped()
    after = MmapMapping(first.end, PAGE, 2 * PAGE, first.file, readable=True, writable=True)
    skipping = MmapMapping(first.end, PAGE, 3 * PAGE, first.file, readable=True, writable=True)
    apart = MmapMapping(first.end + PAGE, PAGE, 3 * PAGE, first.file, readable=True, writable=True)
    elsewhere = mmapped(iova=first.end, offset=2 * PAGE)
    assert after.continues(first)
    assert not first.continues(after)
    assert not skipping.continues(first)
    assert not apart.continues(first)
    assert not elsewhere.continues(first)
    first.release()
    elsewhere.release()


def test_revoked_views_are_released_and_forgotten_ones_are_not_kept() -> None:
    mapping = mmapped()
    kept = mapping.file.readonly[:8]
    mapping.track(kept)
    for _ in range(1000):
        mapping.track(mapping.file.readonly[:8])
    gc.collect()
    assert mapping._views is not None
    assert len(mapping._views) < 50
    assert mapping.revoke_views() == 0
    with pytest.raises(ValueError, match="released"):
        kept[0]
    mapping.release()


def test_a_view_under_an_array_is_stuck() -> None:
    mapping = mmapped()
    view = mapping.file.readonly[PAGE : PAGE + 8]
    mapping.track(view)
    array = pickle.PickleBuffer(view)  # stands on the view as a NumPy array does
    assert mapping.revoke_views() == 1
    assert view[0] == 1
    array.release()
    view.release()
    mapping.release()


def test_nowhere_contains_no_address() -> None:
    for address in (0, 1, 2, (1 << 64) - 1):
        assert not NOWHERE.iova <= address <= address <= NOWHERE.end
