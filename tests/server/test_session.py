"""One connection: what is observed, logged and counted, and how it ends, at any byte."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fds import close_all, memory_file
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.errors import Busy, ConnectionClosedError
from vfio_user.protocol.constants import Command, IrqIndex
from vfio_user.protocol.header import Header
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Session
from vfio_user.testing.leaks import leaked_since, open_files

VERSION = message(Command.VERSION, b"\0\0\0\0{}\0", message_id=11)
READ = message(Command.REGION_READ, ACCESS.pack(0, 0, 4), message_id=12)


def fails(*_: int) -> int:
    raise Busy("not now")


def breaks(*_: int) -> int:
    raise ZeroDivisionError("a bug in the device")


def make_device() -> Device:
    device = Device(irqs={IrqIndex.MSIX: 4})
    device.set_region(0, MemoryRegion(64))
    device.set_region(1, CallbackRegion(64, fails))
    device.set_region(2, CallbackRegion(64, breaks))
    return device


class Log:
    """An observer that writes down what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        self.seen.append(("command", header.command, payload, fds))

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
        assert 0 <= seconds < 10
        self.seen.append(("reply", header.command, header.error, payload, fds))

    def own_command(self, header: Header, payload: bytes) -> None:
        self.seen.append(("own command", header.command, payload))

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None:
        assert seconds is None or 0 <= seconds < 10
        self.seen.append(("own reply", header.command, payload, seconds is not None))

    def closed(self) -> None:
        self.seen.append(("closed",))


# Observing.


def test_an_observer_is_shown_every_message_in_order() -> None:
    log = Log()
    fd = memory_file(bytes(0x1000))
    with memory_session(make_device(), observer=log) as client:
        client.send(VERSION)
        client.receive()
        client.read(0, 0)
        client.write(0, 0, 7, posted=True)
        client.read_error(1, 0)
        client.command(Command.REGION_READ, ACCESS.pack(0, 1, 4), no_reply=True)
        client.request(Command.DMA_MAP, bytes(3), [fd])
        client.send(message(Command.REGION_READ, bytes(4), flags=1))
        client.send(message(Command.DEVICE_RESET, flags=2))
        with contextlib.suppress(EOFError):
            client.receive()
    os.close(fd)
    read, refused = ACCESS.pack(0, 0, 4), ACCESS.pack(0, 1, 4)
    assert log.seen[0] == ("command", 1, VERSION[16:], 0)
    assert log.seen[1][:3] == ("reply", 1, 0)
    assert log.seen[2:] == [
        ("command", 9, read, 0),
        ("reply", 9, 0, read + bytes(4), 0),
        ("command", 10, access(0, 0, b"\7\0\0\0"), 0),
        ("command", 9, refused, 0),
        ("reply", 9, errno.EBUSY, b"", 0),
        ("command", 9, refused, 0),
        ("command", 2, bytes(3), 1),
        ("reply", 2, errno.EINVAL, b"", 0),
        ("own reply", 9, bytes(4), False),
        ("command", 13, b"", 0),
        ("reply", 13, errno.EINVAL, b"", 0),
        ("closed",),
    ]


# Failures of the device.


def test_a_devices_error_is_the_reply_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with memory_session(make_device()) as client:
        client.negotiate()
        assert client.read_error(1, 0) == errno.EBUSY
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "client: REGION_READ refused: [Errno 16] not now"


@pytest.mark.parametrize("size", [4, 32])
def test_a_bug_in_the_device_is_eio_logged_with_its_traceback(caplog: pytest.LogCaptureFixture, size: int) -> None:
    with memory_session(make_device(), strict=False) as client:
        client.negotiate()
        assert client.read_error(2, 0, size) == errno.EIO
        assert client.read(0, 0) == 0
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "REGION_READ failed in the device's code" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    caplog.clear()


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("no_reply", [False, True])
def test_a_strict_session_raises_a_bug_in_the_device(size: int, no_reply: bool) -> None:
    with memory_session(make_device(), strict=True) as client:
        client.negotiate()
        client.command(Command.REGION_READ, ACCESS.pack(0, 2, size), no_reply=no_reply)
        with pytest.raises(ZeroDivisionError):
            client.is_silent()


def test_a_client_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vfio_user.server"), memory_session(make_device()) as client:
        client.negotiate()
        for _ in range(30):
            client.read_error(1, 0)
    levels = [record.levelno for record in caplog.records]
    assert levels.count(logging.WARNING) == 21
    assert levels.count(logging.DEBUG) == 10
    assert "further warnings about this client" in caplog.records[20].message


def test_what_failed_is_counted() -> None:
    ours, theirs = socket.socketpair()
    with RawClient(ours) as client, contextlib.closing(Session(make_device(), theirs)) as session:
        client.send(VERSION)
        session.receive()
        client.receive()
        refused = message(Command.REGION_READ, ACCESS.pack(0, 1, 4))
        quiet = message(Command.REGION_READ, ACCESS.pack(0, 1, 4), no_reply=True)
        client.send(refused + quiet + quiet + READ + message(99) + message(99, no_reply=True))
        session.receive()
        assert (session.statistics.errors, session.statistics.dropped_errors) == (2, 3)


# Receiving.


def test_nothing_to_receive() -> None:
    ours, theirs = socket.socketpair()
    session = Session(make_device(), theirs)
    assert not session.receive()
    assert not session.wants_to_write
    session.close()
    session.close()
    assert ours.recv(1) == b""
    ours.close()


def test_a_broken_connection() -> None:
    ours, theirs = socket.socketpair()
    session = Session(make_device(), theirs)
    # Closed with bytes unread, a UNIX socket resets the connection.
    theirs.send(b"x")
    ours.close()
    with pytest.raises(ConnectionClosedError, match="the connection broke: Connection reset by peer"):
        session.receive()
    session.close()


def test_waiting_in_the_receive_call_ends_when_there_is_something_else_to_do() -> None:
    ours, theirs = socket.socketpair()
    device = make_device()
    loop = EventLoop()
    device.attach(loop)
    seen: list[str] = []
    read, write = os.pipe()

    def called() -> None:
        seen.append("called")
        if len(seen) == 2:
            device.call_later(0.0, timer)

    def timer() -> None:
        # Again and again, with receptions in between; until there is more to wait for.
        seen.append("timer")
        device.call_soon(timer)
        if len(seen) == 10:
            client.send(READ)
        if len(seen) == 20:
            for end in (read, write):
                device.watch(end, lambda: None)

    device.set_region(3, CallbackRegion(4, write=lambda *_: device.call_soon(called)))
    with RawClient(ours) as client, contextlib.closing(Session(device, theirs)) as session:
        command = message(Command.REGION_WRITE, access(0, 3, bytes(4)))
        client.send(VERSION + READ + command + command + READ)
        session.receive_blocking(loop)
        assert [client.receive().header.command for _ in range(6)] == [1, 9, 10, 10, 9, 9]
        assert seen == ["called"] * 2 + ["timer"] * 18
        ours.shutdown(socket.SHUT_WR)
        session.receive_blocking(loop)
        assert len(seen) == 20
    device.detach()
    loop.close()
    os.close(read)
    os.close(write)


def test_waiting_in_the_receive_call_ends_with_the_connection() -> None:
    ours, theirs = socket.socketpair()
    loop = EventLoop()
    with RawClient(ours) as client, contextlib.closing(Session(make_device(), theirs)) as session:
        client.send(VERSION + READ)
        loop.call_later(60.0, lambda: None)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionClosedError, match="the client closed the connection"):
            session.receive_blocking(loop)
    loop.close()


def test_waiting_in_the_receive_call_ends_when_the_client_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    loop = EventLoop()
    with RawClient(ours) as client, contextlib.closing(Session(make_device(), theirs)) as session:
        client.send(VERSION)
        client.send(READ * 300)
        session.receive_blocking(loop)
        held_back = session.wants_to_write
        client.receive()
        for _ in range(300):
            session.flush()
            client.receive()
        assert (held_back, session.wants_to_write) == (True, False)
    loop.close()


# The end of a connection, wherever in the stream it comes.


def script() -> list[tuple[bytes, int]]:
    """A session with descriptors in it: messages, and how many of each kind they carry."""
    return [
        (VERSION, 0),
        (message(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x8000, 0x1000)), 1),
        (message(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 2)), 2),
        (READ, 0),
        (message(Command.REGION_WRITE, access(4, 0, b"kept")), 0),
        (message(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x9000, 0x1000)), 1),
    ]


LENGTH = sum(len(data) for data, _ in script())


def play(upto: int, chunk: int | None) -> Device:
    """The script up to a byte, and then the client is gone."""
    device = make_device()
    with memory_session(device, chunk=chunk) as client:
        left = upto
        for number, (data, fds) in enumerate(script()):
            if left <= 0:
                break
            carried = [memory_file(bytes(0x1000)) if number != 2 else os.eventfd(0) for _ in range(fds)]
            client.send(data[:left], carried)
            close_all(carried)
            left -= len(data)
        while not client.is_silent():
            client.receive()
    return device


@pytest.mark.parametrize("chunk", [None, 1])
def test_the_client_may_go_at_any_byte(chunk: int | None) -> None:
    before = open_files()
    for upto in range(LENGTH + 1):
        device = play(upto, chunk)
        assert leaked_since(before) == []
        assert len(device.dma) == 0
        assert not device.interrupts.trigger(IrqIndex.MSIX, 0)
        assert not device.is_connected
        written = device.region(0).read_bytes(4, 4)
        assert written == (b"kept" if upto >= LENGTH - 40 else bytes(4))


@given(st.binary(max_size=200), st.integers(0, 2), st.integers(1, 64))
def test_any_bytes_and_descriptors_leave_nothing_behind(data: bytes, fds: int, chunk: int) -> None:
    before = open_files()
    with memory_session(make_device(), chunk=chunk) as client:
        client.negotiate()
        carried = [memory_file() for _ in range(fds)]
        with contextlib.suppress(ConnectionClosedError, EOFError):
            client.send(data, carried)
            while not client.is_silent():
                client.receive()
        close_all(carried)
    assert leaked_since(before) == []
