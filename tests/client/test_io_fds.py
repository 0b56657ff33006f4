"""Accesses without messages: a real device's doorbells, shadows and sockets, and what a server may send instead."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.client.scripted import Answering
from tests.support.fds import close_all, memory_file
from vfio_user.client.device import VfioUserClient
from vfio_user.client.io_fds import IoFds, Kick
from vfio_user.errors import CommandTimeoutError, ConnectionClosedError, RemoteProtocolError
from vfio_user.protocol.constants import Command, IoEventFdFlags, RegionFlags
from vfio_user.protocol.region import RegionInfo
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds, Shadow
from vfio_user.regions import Doorbell, IoRange, Region
from vfio_user.server.device import Device
from vfio_user.server.server import Server

SIZE = 4096


class Bells(Region):
    """Doorbells of every kind, a range with a socket, and a note of what happened."""

    size = SIZE

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        self.ioeventfds = [
            Doorbell(0x10, 4, None, lambda: self.log.append(("any",))),
            Doorbell(0x20, 2, 7, lambda: self.log.append(("seven",))),
            Doorbell(0x30, 4, None, lambda value: self.log.append(("shadow", value)), shadow=True),
        ]
        self.ioregionfds = [IoRange(0x100, 0x100), IoRange(0x200, 0x10, posted_writes=True)]

    def read(self, offset: int, size: int) -> int:
        return (offset << 16 | len(self.log)) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[tuple[Bells, VfioUserClient]]:
    device = Device()
    region = Bells()
    device.set_region(0, region)
    with Server(device, tmp_path / "socket").start(), VfioUserClient.connect(tmp_path / "socket") as client:
        yield region, client


def test_everything_at_once(bells: tuple[Bells, VfioUserClient]) -> None:
    region, client = bells
    with client.io_fds(0) as fds:
        assert [(kick.offset, kick.size, kick.value, kick.shadow is None) for kick in fds.kicks] == [
            (0x10, 4, None, True),
            (0x20, 2, 7, True),
            (0x30, 4, None, False),
        ]
        assert [(part.offset, part.end) for part in fds.ranges] == [(0x100, 0x200), (0x200, 0x210)]
        for offset, size, value in [(0x10, 4, 1), (0x20, 2, 7), (0x30, 4, 0xABCD)]:
            before = len(region.log)
            fds.write(offset, size, value)
            while len(region.log) == before:
                client.region(0).read32(0)
        # What was not offered goes by messages, what has a socket by that.
        fds.write(0x10, 2, 5)
        fds.write(0x20, 2, 8)
        fds.write(0x1FC, 4, 9)
        assert fds.read(0x1FC, 4) == 0x01FC_0006
        fds.write(0x200, 8, 10)
        assert fds.read(0x200, 8) == 0x0200_0007
        assert fds.read(0xF00, 2) == 7
    assert region.log == [
        ("any",),
        ("seven",),
        ("shadow", 0xABCD),
        (0x10, 2, 5),
        (0x20, 2, 8),
        (0x1FC, 4, 9),
        (0x200, 8, 10),
    ]
    fds.close()


def test_a_device_without(tmp_path: Path) -> None:
    device = Device()
    plain = Bells()
    plain.ioeventfds, plain.ioregionfds = [], []
    device.set_region(0, plain)
    with (
        Server(device, tmp_path / "socket").start(),
        VfioUserClient.connect(tmp_path / "socket") as client,
        client.io_fds(0) as fds,
    ):
        assert (fds.kicks, fds.ranges) == ([], [])
        fds.write(0x10, 4, 1)
        assert fds.read(0, 4) == 1


@contextmanager
def offered(answering: Answering, found: RegionIoFds, fds: list[int]) -> Iterator[VfioUserClient]:
    """A client of a server that offers that; its descriptors are closed at the end."""
    answering.answers[Command.DEVICE_GET_REGION_INFO] = lambda _: RegionInfo(0, RegionFlags.READ, SIZE).encode(32)[0]

    def answer(heard: object) -> tuple[bytes, list[int]]:
        payload, complete = found.encode(int.from_bytes(heard.payload[:4], "little"))  # type: ignore[attr-defined]
        return payload, fds if complete else []

    answering.answers[Command.DEVICE_GET_REGION_IO_FDS] = answer
    with answering.client() as client:
        yield client
    close_all(fds)


SHADOWED = IoEventFd(0x10, 4, 0, shadow=Shadow(1, 0))


@pytest.mark.parametrize(
    ("entry", "kinds", "why"),
    [
        (IoEventFd(SIZE, 4, 0), "e", "leaves the region of 0x1000 bytes"),
        (IoEventFd((1 << 64) - 1, 0, 0), "e", "leaves the region"),
        (IoEventFd(0, 3, 0), "e", "for writes of no size there is"),
        (IoEventFd(0, 4, 1), "e", "counts descriptor 1 of the 1 that came"),
        (IoEventFd(0, 4, 0), "", "counts descriptor 0 of the 0"),
        (IoEventFd(0, 4, 0), "m", "comes with /memfd:test .*, which is no eventfd"),
        (IoRegionFd(0, 4, 0), "e", "comes with anon_inode:.*, which is no socket"),
        (SHADOWED, "e", "counts descriptor 1 of the 1"),
        (SHADOWED, "ee", "has a shadow in anon_inode.*, which cannot be mapped"),
        (SHADOWED, "em", "has a shadow in /memfd.*, which cannot be mapped"),
        (IoEventFd(0, 4, 0, shadow=Shadow(1, SIZE - 3)), "eM", "has a shadow at 0xffd of a file of 0x1000 bytes"),
        (IoEventFd(0, 0, 0, shadow=Shadow(1, SIZE - 7)), "eM", "has a shadow at 0xff9"),
        (IoEventFd(0, 4, 0, shadow=Shadow(1, 1 << 63)), "eM", "has a shadow at 0x8000"),
    ],
)
def test_offers_that_cannot_be(answering: Answering, entry: IoEventFd | IoRegionFd, kinds: str, why: str) -> None:
    make: dict[str, Callable[[], int]] = {
        "e": lambda: os.eventfd(0),
        "m": memory_file,
        "M": lambda: memory_file(bytes(SIZE)),
    }
    fds = [make[kind]() for kind in kinds]
    offer = RegionIoFds.of(0, (entry,))
    with offered(answering, offer, fds) as client, pytest.raises(RemoteProtocolError, match=why):
        client.io_fds(0)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (RegionIoFds(1).encode(16)[0], "was answered for BAR1"),
        (RegionIoFds(0, count=2000, argsz=96_016).encode(16)[0], "says argsz 96016; entries of up to 65536"),
        (RegionIoFds(0, count=1, argsz=56).encode(16)[0], "now asks for 56 bytes"),
    ],
)
def test_replies_that_cannot_be(answering: Answering, reply: bytes, why: str) -> None:
    argsz = iter([56, 57])

    def answer(_heard: object) -> bytes:
        if "now asks" in why:
            return RegionIoFds(0, count=1, argsz=next(argsz)).encode(16)[0]
        return reply

    answering.answers[Command.DEVICE_GET_REGION_IO_FDS] = answer
    with answering.client() as client, pytest.raises(RemoteProtocolError, match=why.replace("56 bytes", "57 bytes")):
        client.io_fds(0)


def test_one_eventfd_for_several(answering: Answering) -> None:
    fd = os.eventfd(0)
    entries = (
        IoEventFd(0x10, 0, 0),
        IoEventFd(0x20, 4, 0, IoEventFdFlags.DATAMATCH, 5),
    )
    with offered(answering, RegionIoFds.of(0, entries, long=True), [fd]) as client, client.io_fds(0) as fds:
        for size in (1, 2, 4, 8):
            fds.write(0x10, size, 1)
        fds.write(0x20, 4, 5)
        assert os.eventfd_read(fd) == 5
        # A counter that is full does not make anybody wait, whatever the server made of it.
        os.eventfd_write(fd, (1 << 64) - 2)
        fds.write(0x10, 1, 1)


def test_what_a_kick_is_for() -> None:
    kick = Kick(0x10, 4, 7, -1)
    assert kick.fits(0x10, 4, 7)
    assert not any(kick.fits(*write) for write in [(0x14, 4, 7), (0x10, 2, 7), (0x10, 4, 8)])


@pytest.mark.parametrize("then", ["silence", "half", "gone"])
def test_sockets_that_do_not_answer(answering: Answering, then: str) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    with ours, offered(answering, RegionIoFds.of(0, (IoRegionFd(0, 16, 0),)), [fd]) as client:
        client.connection.timeout = 0.02
        with client.io_fds(0) as fds:
            if then == "half":
                ours.send(bytes(16))
                ours.send(bytes(15))
            if then != "silence":
                ours.shutdown(socket.SHUT_WR)
            error = CommandTimeoutError if then == "silence" else ConnectionClosedError
            with pytest.raises(error, match="an access of 4 bytes at 0x4 by its socket"):
                fds.read(4, 4)
            if then == "silence":
                with pytest.raises(ConnectionClosedError):
                    fds.read(4, 4)


def test_a_value_is_cut_to_its_size(answering: Answering) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    with ours, offered(answering, RegionIoFds.of(0, (IoRegionFd(0, 16, 0),)), [fd]) as client, client.io_fds(0) as fds:
        ours.send(b"\xff" * 5)
        ours.send(b"\xff" * 27)
        assert fds.read(0, 2) == 0xFFFF


def test_closing_twice() -> None:
    fds = IoFds(RegionIoFds(0), [], None, 1.0)  # type: ignore[arg-type]
    fds.close()
    fds.close()
