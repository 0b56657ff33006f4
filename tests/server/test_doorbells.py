"""Doorbells: what DEVICE_GET_REGION_IO_FDS gives a client, and what becomes of its rings."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fds import close_all
from tests.support.raw_client import RawClient, connect, memory_session
from vfio_user import WO, IoBar, MemoryBar, PciDevice, Register, RegisterBlock, ResetKind, Server
from vfio_user.protocol.constants import Command, IoEventFdFlags
from vfio_user.protocol.region_io_fds import IoEventFd, RegionIoFds, RegionIoFdsRequest, Shadow
from vfio_user.regions import Doorbell, MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.doorbells import Doorbells
from vfio_user.server.loop import EventLoop
from vfio_user.testing.leaks import leaked_since, open_files

DATAMATCH, PIO = IoEventFdFlags.DATAMATCH, IoEventFdFlags.PIO


class Queues(RegisterBlock):
    kick = Register(0x00, access=WO, count=3)
    notify = Register(0x10, width=16, access=WO)


class Card(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    bar0 = MemoryBar(4096, registers=Queues)
    bar1 = IoBar(64, registers=Queues)

    def __init__(self) -> None:
        super().__init__()
        self.rung: list[object] = []
        self.was_rung = threading.Semaphore(0)

    def ring(self, what: object) -> None:
        self.rung.append(what)
        self.was_rung.release()

    @bar0.doorbell("kick")
    def kicked(self, queue: int) -> None:
        self.ring(queue)

    @bar0.doorbell("notify", value=0x77)
    def notified(self) -> None:
        self.ring("notified")

    @bar1.doorbell("notify")
    def port_written(self) -> None:
        self.ring("port")


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def client(card: Card) -> Iterator[RawClient]:
    with memory_session(card) as client:
        client.negotiate()
        yield client


def ask(client: RawClient, index: int, argsz: int = 4096) -> tuple[RegionIoFds, list[int]]:
    """DEVICE_GET_REGION_IO_FDS, which must succeed; the descriptors are the caller's."""
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFdsRequest(index, argsz).encode())
    assert reply.error == 0
    return RegionIoFds.decode(reply.payload), reply.fds


def test_a_client_gets_an_eventfd_for_each(client: RawClient, card: Card) -> None:
    told, fds = ask(client, 0)
    assert told.entries == (
        IoEventFd(0x00, 4, 0),
        IoEventFd(0x04, 4, 1),
        IoEventFd(0x08, 4, 2),
        IoEventFd(0x10, 2, 3, DATAMATCH, 0x77),
    )
    assert (told.argsz, told.count, told.long) == (16 + 4 * 40, 4, False)
    for fd in fds:
        assert Path(f"/proc/self/fd/{fd}").readlink() == Path("anon_inode:[eventfd]")
        os.eventfd_write(fd, 1)
        assert client.is_silent()
    assert card.rung == [0, 1, 2, "notified"]
    close_all(fds)


def test_io_space_says_so(client: RawClient, card: Card) -> None:
    told, fds = ask(client, 1)
    assert told.entries == (IoEventFd(0x10, 2, 0, PIO),)
    os.eventfd_write(fds[0], 1)
    assert client.is_silent()
    assert card.rung == ["port"]
    close_all(fds)


def test_rings_before_they_are_answered_are_one(client: RawClient, card: Card) -> None:
    _, fds = ask(client, 0)
    for count in (1, 1, 1000, (1 << 64) - 1004):
        os.eventfd_write(fds[1], count)
    assert client.is_silent()
    assert card.rung == [1]
    close_all(fds)


def test_messages_ring_as_well(client: RawClient, card: Card) -> None:
    _, fds = ask(client, 0)
    client.write(0, 0x08, 123)
    client.write(0, 0x10, 0x77, 2)
    client.write(0, 0x10, 0x78, 2)
    assert card.rung == [2, "notified"]
    close_all(fds)


def test_asking_again_gives_the_same(client: RawClient, card: Card) -> None:
    _, first = ask(client, 0)
    before = open_files()
    for _ in range(3):
        told, again = ask(client, 0)
        assert told.count == 4
        close_all(again)
    assert leaked_since(before) == []
    _, other = ask(client, 0)
    os.eventfd_write(first[0], 1)
    os.eventfd_write(other[0], 1)
    assert client.is_silent()
    assert card.rung == [0]
    close_all(first + other)


@pytest.mark.parametrize("argsz", [16, 175])
def test_without_room_nothing_is_opened(client: RawClient, argsz: int) -> None:
    before = open_files()
    told, fds = ask(client, 0, argsz)
    assert (told.entries, told.count, told.argsz, fds) == ((), 4, 176, [])
    assert leaked_since(before) == []
    told, fds = ask(client, 0, told.argsz)
    assert len(told.entries) == len(fds) == 4
    close_all(fds)


@pytest.mark.parametrize(("takes", "gets"), [(0, 0), (1, 1), (3, 3), (4, 4), (16, 4)])
def test_a_client_is_offered_what_it_can_take(card: Card, takes: int, gets: int) -> None:
    with memory_session(card) as client:
        client.negotiate({"max_msg_fds": takes})
        told, fds = ask(client, 0)
        assert told.count == len(told.entries) == len(fds) == gets
        close_all(fds)


def test_a_region_without_doorbells_has_none(client: RawClient) -> None:
    before = open_files()
    told, fds = ask(client, 7)
    assert (told, fds) == (RegionIoFds.of(7, ()), [])
    assert leaked_since(before) == []


def test_a_reset_forgets_rings(client: RawClient, card: Card) -> None:
    _, fds = ask(client, 0)
    for kind in ResetKind:
        os.eventfd_write(fds[0], 1)
        card.reset(kind)
        assert client.is_silent()
    assert card.rung == []
    os.eventfd_write(fds[0], 1)
    assert client.is_silent()
    assert card.rung == [0]
    close_all(fds)


def test_what_a_former_client_kept_rings_nothing(card: Card) -> None:
    before = open_files()
    with memory_session(card) as client:
        client.negotiate()
        _, kept = ask(client, 0)
    with memory_session(card) as client:
        client.negotiate()
        _, fds = ask(client, 0)
        os.eventfd_write(kept[0], 1)
        assert client.is_silent()
        assert card.rung == []
        os.eventfd_write(fds[0], 1)
        assert client.is_silent()
        assert card.rung == [0]
        close_all(fds)
    close_all(kept)
    assert leaked_since(before) == []


def test_a_device_of_another_kind_has_doorbells_too() -> None:
    rung = []
    device, region = Device(), MemoryRegion(64)
    region.ioeventfds = [Doorbell(8, 4, None, lambda: rung.append(8))]
    device.set_region(3, region)
    with memory_session(device) as client:
        client.negotiate()
        told, fds = ask(client, 3)
        assert told.entries == (IoEventFd(8, 4, 0),)
        os.eventfd_write(fds[0], 1)
        assert client.is_silent()
        device.reset()
        close_all(fds)
    assert rung == [8]


def test_over_a_socket_with_nothing_but_the_eventfd(card: Card, tmp_path: Path) -> None:
    with Server(card, tmp_path / "card.sock", strict=True).start(), connect(tmp_path / "card.sock") as client:
        client.negotiate()
        _, fds = ask(client, 0)
        os.eventfd_write(fds[2], 1)
        assert card.was_rung.acquire(timeout=10)
        assert card.rung == [2]
        # The session goes on as it was, and its own way of receiving with it.
        client.write(0, 0, 1)
        assert card.rung == [2, 0]
        close_all(fds)


# What a client does to make trouble: the eventfd's other end is its own.


def doorbells_on(loop: EventLoop, rung: list[int]) -> tuple[Doorbells, int]:
    doorbells = Doorbells(loop.watch)
    (fd,) = doorbells.eventfds(0, [Doorbell(0, 4, None, lambda: rung.append(0))])
    return doorbells, fd


@pytest.mark.parametrize("old_kernel", [False, True])
def test_a_client_that_takes_its_ring_back_holds_nobody_up(monkeypatch: pytest.MonkeyPatch, old_kernel: bool) -> None:
    loop, rung = EventLoop(), list[int]()
    doorbells, fd = doorbells_on(loop, rung)
    if not old_kernel:  # the flag is the client's to clear; an old kernel is at its mercy
        os.set_blocking(fd, True)
    real = os.preadv

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        os.eventfd_read(fd)  # between the loop's look and its read
        if old_kernel:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    os.eventfd_write(fd, 1)
    loop.run_once(0)
    assert rung == []
    doorbells.clear()
    loop.close()


def test_a_kernel_that_cannot_read_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, rung = EventLoop(), list[int]()
    doorbells, fd = doorbells_on(loop, rung)

    def preadv(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", preadv)
    os.eventfd_write(fd, 1)
    loop.run_once(0)
    assert rung == [0]
    doorbells.clear()
    loop.close()


def test_an_eventfd_that_cannot_be_watched_is_closed() -> None:
    def watch(fd: int, callback: object) -> None:
        raise OSError(errno.ENOSPC, "too many watches")

    before = open_files()
    doorbells = Doorbells(watch)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="too many watches"):
        doorbells.eventfds(0, [Doorbell(0, 4, None, lambda: None)])
    doorbells.clear()
    assert leaked_since(before) == []


def test_replies_are_the_specifications_bytes(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, struct.pack("<IIII", 1 << 20, 0, 1, 0))
    assert reply.payload == struct.pack("<IIII", 56, 0, 1, 1) + struct.pack("<QQIIIIQ", 0x10, 2, 0, 0, 2, 0, 0)
    close_all(reply.fds)


# With a shadow, the value comes along.


class Shadowed(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    bar0 = MemoryBar(4096, registers=Queues)
    bar1 = MemoryBar(4096, registers=Queues)

    def __init__(self) -> None:
        super().__init__()
        self.rung: list[object] = []

    @bar0.doorbell("kick", shadow=True)
    def kicked(self, queue: int, value: int) -> None:
        self.rung.append((queue, value))

    @bar0.doorbell("notify")
    def notified(self) -> None:
        self.rung.append("notified")

    @bar1.doorbell("notify", shadow=True)
    def other(self, value: int) -> None:
        self.rung.append(("other", value))


def test_the_value_is_put_in_shared_memory() -> None:
    card = Shadowed()
    with memory_session(card) as client:
        client.negotiate()
        told, fds = ask(client, 0)
        assert told.long
        assert told.argsz == 16 + 4 * 48
        assert [(entry.offset, entry.size, entry.fd_index) for entry in told.entries] == [
            (0, 4, 0),
            (4, 4, 1),
            (8, 4, 2),
            (0x10, 2, 3),
        ]
        shadows = [entry.shadow for entry in told.entries if isinstance(entry, IoEventFd)]
        assert shadows == [Shadow(4, 0), Shadow(4, 8), Shadow(4, 16), None]
        with mmap.mmap(fds[4], 4096) as memory:
            memory[8:12] = struct.pack("<I", 0x1234_5678)
            memory[12:20] = b"\xff" * 8  # of nobody's, and the next one's
            os.eventfd_write(fds[1], 1)
            assert client.is_silent()
            assert card.rung == [(1, 0x1234_5678)]
            os.eventfd_write(fds[3], 1)
            assert client.is_silent()
            # As a message it does the same.
            client.write(0, 8, 7)
            assert card.rung[1:] == ["notified", (2, 7)]
        again, more = ask(client, 0)
        assert again == told
        assert [os.fstat(fd).st_ino for fd in more] == [os.fstat(fd).st_ino for fd in fds]
        other, others = ask(client, 1)
        assert [entry.shadow for entry in other.entries if isinstance(entry, IoEventFd)] == [Shadow(1, 24)]
        with mmap.mmap(others[1], 4096) as memory:
            memory[24:26] = b"\x34\x12"
        os.eventfd_write(others[0], 1)
        assert client.is_silent()
        assert card.rung[3:] == [("other", 0x1234)]
        assert os.fstat(others[1]).st_size >= 4096
        with pytest.raises(PermissionError):
            os.ftruncate(others[1], 0)
        close_all([*fds, *more, *others])


@pytest.mark.parametrize(("room", "offered"), [(0, []), (1, [0x10]), (2, [0]), (3, [0, 4]), (5, [0, 4, 8, 0x10])])
def test_with_room_for_few_descriptors_the_memory_counts(room: int, offered: list[int]) -> None:
    with memory_session(Shadowed()) as client:
        client.negotiate({"max_msg_fds": room})
        told, fds = ask(client, 0)
        assert [entry.offset for entry in told.entries] == offered
        assert len(fds) <= room
        close_all(fds)


def test_the_next_client_gets_other_memory() -> None:
    card = Shadowed()
    seen = set()
    for _ in range(2):
        before = open_files()
        with memory_session(card) as client:
            client.negotiate()
            told, fds = ask(client, 0)
            assert isinstance(told.entries[0], IoEventFd)
            assert told.entries[0].shadow == Shadow(4, 0)
            seen.add(os.fstat(fds[4]).st_ino)
            close_all(fds)
        assert leaked_since(before) == []
    assert len(seen) == 2
