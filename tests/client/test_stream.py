"""A stream of messages that waits for nothing: bytes and descriptors in any portions, in both directions."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator

import pytest

from tests.client.scripted import message
from tests.support.fds import identity, memory_file
from vfio_user.client import stream as stream_module
from vfio_user.client.stream import MessageStream
from vfio_user.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.header import Header
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, ancillary_fds

RESET = 13


class Pair:
    """A stream, what it has handed on, and the other end."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.came: list[tuple[int, bytes, int]] = []
        self.kept: list[int] = []
        self.stream = MessageStream(ours, 4096, self.handle)

    def handle(self, header: Header, payload: bytes, fds: list[int]) -> None:
        self.came.append((header.message_id, payload, len(fds)))
        self.kept += fds[:1]
        del fds[:1]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    with pair.theirs, contextlib.closing(pair.stream):
        yield pair
    close_fds(pair.kept)


def test_messages_in_any_portions(pair: Pair) -> None:
    assert not pair.stream.receive()
    data = message(1, RESET, b"one") + message(2, RESET) + message(3, RESET, b"three")
    for byte in data[:-1]:
        pair.theirs.send(bytes([byte]))
        assert pair.stream.receive()
    assert pair.came == [(1, b"one", 0), (2, b"", 0)]
    pair.theirs.send(data[-1:] + data)
    assert pair.stream.receive()
    assert pair.came[2:] == [(3, b"three", 0), (1, b"one", 0), (2, b"", 0), (3, b"three", 0)]


def test_what_is_not_taken_is_closed(pair: Pair) -> None:
    fd, other = memory_file(), memory_file()
    socket.send_fds(pair.theirs, [message(1, RESET)], [fd, other])
    close_fds([fd, other])
    assert pair.stream.receive()
    assert pair.came == [(1, b"", 2)]
    assert len(pair.kept) == 1


@pytest.mark.parametrize(
    ("sent", "error"), [(message(1, RESET, size=5), FramingError), (message(1, RESET, size=4097), FramingError)]
)
def test_what_is_no_message(pair: Pair, sent: bytes, error: type[Exception]) -> None:
    pair.theirs.send(sent)
    with pytest.raises(error):
        pair.stream.receive()


def test_the_other_end_goes(pair: Pair) -> None:
    pair.theirs.close()
    with pytest.raises(ConnectionClosedError, match="the server closed the connection"):
        pair.stream.receive()
    with pytest.raises(ConnectionClosedError, match="the peer is gone"):
        pair.stream.send(b"x")


def test_what_there_is_no_room_for_goes_later(pair: Pair) -> None:
    pair.theirs.setblocking(False)
    fd = memory_file()
    number = identity(fd)
    while not pair.stream.outbox:
        pair.stream.send(bytes(4096))
    assert pair.stream.events == select.POLLIN | select.POLLOUT
    before = pair.stream.unsent
    pair.stream.send(b"the last", [fd])
    os.close(fd)
    assert pair.stream.unsent == before + 8
    received, fds = b"", []
    while not received.endswith(b"the last"):
        pair.stream.flush()
        data, ancdata, flags, _ = pair.theirs.recvmsg(1 << 20, ANCILLARY_SIZE, RECEIVE_FLAGS)
        received += data
        fds += ancillary_fds(ancdata, flags)
    assert (pair.stream.unsent, pair.stream.events) == (0, select.POLLIN)
    assert [identity(fd) for fd in fds] == [number]
    close_fds(fds)


def test_descriptors_that_wait_are_closed_with_it(pair: Pair) -> None:
    fd = memory_file()
    while not pair.stream.outbox:
        pair.stream.send(bytes(4096))
    pair.stream.send(b"x", [fd])
    os.close(fd)
    pair.stream.close()
    pair.stream.close()
    assert (pair.stream.unsent, list(pair.stream.outbox)) == (0, [])


def test_nothing_is_taken_of_a_server_that_does_not_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_MAX_UNSENT", 10)
    pair.stream.keep(bytes(10), 0)
    pair.theirs.send(message(1, RESET))
    assert not pair.stream.receive()
    assert pair.stream.events == select.POLLOUT
    pair.stream.flush()
    assert pair.stream.receive()
    assert pair.came == [(1, b"", 0)]


def test_descriptors_over_what_carries_none() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as channel,
    ):
        stream = MessageStream(channel, 4096, lambda *_: None)
        with pytest.raises(LocalProtocolError, match="only UNIX sockets carry them"):
            stream.send(b"x", [0])
        assert not stream.outbox
        stream.close()
