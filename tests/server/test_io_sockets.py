"""Accesses through a socket: what DEVICE_GET_REGION_IO_FDS gives a client, and what comes through it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fds import close_all
from tests.support.raw_client import RawClient, connect, memory_session
from vfio_user.errors import Busy
from vfio_user.protocol.constants import Command, IoRegionFdFlags
from vfio_user.protocol.io_region import IoRegionCommand, decode_io_region_reply
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, RegionIoFdsRequest
from vfio_user.regions import CallbackRegion, Doorbell, IoRange, MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.testing.leaks import leaked_since, open_files


class Card(Device):
    """Memory of which two parts have a socket, and a region that refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryRegion(0x100)
        self.memory.ioregionfds = (IoRange(0x10, 0x20), IoRange(0x80, 8, posted_writes=True, is_io=True))
        self.set_region(0, self.memory)
        refusing = CallbackRegion(16, self.refuse, lambda *_: None)
        refusing.ioregionfds = (IoRange(0, 16),)
        self.set_region(1, refusing)
        blind = CallbackRegion(16, write=lambda *_: None)
        blind.ioregionfds = (IoRange(0, 16),)
        self.set_region(2, blind)

    def refuse(self, offset: int, _size: int) -> int:
        if offset:
            raise RuntimeError("a bug")
        raise Busy("not now")


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def client(card: Card) -> Iterator[RawClient]:
    with memory_session(card) as client:
        client.negotiate()
        yield client


def ask(client: RawClient, index: int, argsz: int = 4096) -> tuple[RegionIoFds, list[int]]:
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, RegionIoFdsRequest(index, argsz).encode())
    assert reply.error == 0
    return RegionIoFds.decode(reply.payload), reply.fds


@pytest.fixture
def sockets(client: RawClient) -> Iterator[list[socket.socket]]:
    _, fds = ask(client, 0)
    opened = [socket.socket(fileno=fd) for fd in fds]
    for each in opened:
        each.setblocking(False)
    yield opened
    for each in opened:
        each.close()


def test_what_is_offered(client: RawClient) -> None:
    told, fds = ask(client, 0)
    assert told.entries == (
        IoRegionFd(0x10, 0x20, 0),
        IoRegionFd(0x80, 8, 1, IoRegionFdFlags.PIO | IoRegionFdFlags.POSTED_WRITES),
    )
    short, none = ask(client, 0, told.argsz - 1)
    assert (short.count, short.entries, none) == (2, (), [])
    again, more = ask(client, 0)
    assert again == told
    assert [os.fstat(fd).st_ino for fd in more] == [os.fstat(fd).st_ino for fd in fds]
    close_all([*fds, *more])


def test_beside_doorbells(client: RawClient, card: Card) -> None:
    card.memory.ioeventfds = [Doorbell(0, 4, None, lambda: None), Doorbell(4, 4, None, lambda _: None, shadow=True)]
    told, fds = ask(client, 0)
    assert [(type(entry), entry.fd_index) for entry in told.entries] == [
        (IoEventFd, 0),
        (IoEventFd, 1),
        (IoRegionFd, 3),
        (IoRegionFd, 4),
    ]
    assert told.long
    names = [Path(f"/proc/self/fd/{fd}").readlink().as_posix().partition(":")[0] for fd in fds]
    assert names == ["anon_inode", "anon_inode", "/memfd", "socket", "socket"]
    close_all(fds)


def test_a_client_that_takes_few_descriptors(card: Card) -> None:
    with memory_session(card) as client:
        client.negotiate({"max_msg_fds": 1})
        told, fds = ask(client, 0)
        assert told.count == len(fds) == 1
        close_all(fds)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_writing_and_reading(client: RawClient, sockets: list[socket.socket], card: Card, size: int) -> None:
    value = 0x8877_6655_4433_2211 % 256**size
    sockets[0].send(IoRegionCommand(True, size, 8, value).encode())
    assert client.is_silent()
    assert len(sockets[0].recv(100)) == 32
    assert card.memory.read(0x18, size) == value == client.read(0, 0x18, size)
    sockets[0].send(IoRegionCommand(False, size, 8).encode())
    assert client.is_silent()
    assert decode_io_region_reply(sockets[0].recv(100)) == value


def test_a_write_nobody_waits_for(client: RawClient, sockets: list[socket.socket], card: Card) -> None:
    sockets[1].send(IoRegionCommand(True, 4, 4, 7, wants_reply=False).encode())
    assert client.is_silent()
    assert card.memory.read(0x84, 4) == 7
    with pytest.raises(BlockingIOError):
        sockets[1].recv(1)


def test_what_has_come_can_be_carried_out_at_once(sockets: list[socket.socket], card: Card) -> None:
    card.answer_sockets()  # nothing has
    for value in range(1, 101):  # more than one batch
        sockets[1].send(IoRegionCommand(True, 4, 4, value, wants_reply=False).encode())
    sockets[0].send(b"?" * 32 + 80 * IoRegionCommand(True, 4, 0, 5, wants_reply=False).encode())  # that one ends
    card.answer_sockets()
    assert card.memory.read(0x84, 4) == 100
    sockets[1].close()
    card.answer_sockets()
    card.answer_sockets()
    assert card.memory.read(0x10, 4) == 0


def test_many_and_in_pieces(client: RawClient, sockets: list[socket.socket], card: Card) -> None:
    stream = b"".join(IoRegionCommand(True, 4, 0, n, wants_reply=False).encode() for n in range(1, 200))
    stream += IoRegionCommand(False, 4, 0).encode()
    for at in range(0, len(stream), 1000):
        sockets[0].send(stream[at : at + 1000])
        assert client.is_silent()
    assert decode_io_region_reply(sockets[0].recv(100)) == 199
    assert card.memory.read(0x10, 4) == 199


@pytest.mark.parametrize("offset", [0x1D, 0x20, 1 << 63, (1 << 64) - 1])
def test_beyond_the_range(client: RawClient, sockets: list[socket.socket], card: Card, offset: int) -> None:
    before = bytes(card.memory.memory)
    sockets[0].send(IoRegionCommand(True, 4, offset, 7).encode() + IoRegionCommand(False, 4, offset).encode())
    assert client.is_silent()
    sockets[0].recv(32)
    assert decode_io_region_reply(sockets[0].recv(32)) == 0xFFFF_FFFF
    assert card.memory.memory == before


@pytest.mark.parametrize(("region", "offset"), [(1, 0), (1, 4), (2, 0)])
def test_what_is_refused_reads_as_ones(client: RawClient, region: int, offset: int) -> None:
    _, (fd,) = ask(client, region)
    with socket.socket(fileno=fd) as end:
        end.send(IoRegionCommand(False, 2, offset).encode())
        assert client.is_silent()
        assert decode_io_region_reply(end.recv(32)) == 0xFFFF


def test_what_means_nothing_ends_the_socket_alone(client: RawClient, sockets: list[socket.socket]) -> None:
    sockets[0].send(IoRegionCommand(False, 4, 0).encode() + b"\x07" * 32)
    assert client.is_silent()
    assert len(sockets[0].recv(100)) == 32
    assert sockets[0].recv(100) == b""
    sockets[1].send(IoRegionCommand(False, 4, 0).encode())
    assert client.is_silent()
    assert len(sockets[1].recv(100)) == 32
    assert client.read(0, 0) == 0


def test_a_client_that_does_not_read_is_not_served(client: RawClient, sockets: list[socket.socket]) -> None:
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    reads = IoRegionCommand(False, 4, 0).encode() * 64
    sent = 0
    with contextlib.suppress(BrokenPipeError):
        for _ in range(1000):
            sockets[0].send(reads)
            sent += 1
            assert client.is_silent()
    assert 0 < sent < 1000
    assert client.read(0, 0) == 0


def test_a_client_that_hangs_up_one_of_them(client: RawClient, sockets: list[socket.socket], card: Card) -> None:
    sockets[0].shutdown(socket.SHUT_WR)
    assert client.is_silent()
    assert card.loop.next_timeout() is None
    assert sockets[0].recv(1) == b""
    assert client.read(0, 0) == 0


def test_they_go_with_the_client(card: Card) -> None:
    before = open_files()
    with memory_session(card) as client:
        client.negotiate()
        _, fds = ask(client, 0)
    for fd in fds:
        with socket.socket(fileno=fd) as end:
            assert end.recv(1) == b""
    assert leaked_since(before) == []


def test_over_a_real_socket(card: Card, tmp_path: Path) -> None:
    with Server(card, tmp_path / "s").start(), connect(tmp_path / "s") as client:
        client.negotiate()
        _, fds = ask(client, 0)
        ends = [socket.socket(fileno=fd) for fd in fds]
        ends[0].settimeout(10)
        for n in range(100):
            ends[0].send(IoRegionCommand(True, 4, 0, n, wants_reply=False).encode())
            ends[0].send(IoRegionCommand(False, 4, 0).encode())
            assert decode_io_region_reply(ends[0].recv(32)) == n
        for end in ends:
            end.close()
        assert client.read(0, 0x10) == 99
