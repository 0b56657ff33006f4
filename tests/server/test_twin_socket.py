"""The server's end of the second socket: partial sends, replies however they are cut, descriptors nobody wants."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw_client import message
from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header, reply_header
from vfio_user.server.twin_socket import TwinSocket


@pytest.fixture
def twin() -> Iterator[TwinSocket]:
    twin = TwinSocket(1 << 16)
    yield twin
    twin.close()


def clients_end(twin: TwinSocket) -> socket.socket:
    """The client's end, as the client has it when the reply to VERSION has come."""
    end = socket.socket(fileno=os.dup(twin.client_fd))
    twin.client_has_its_end()
    return end


def received(twin: TwinSocket) -> list[tuple[Header, bytes]]:
    seen: list[tuple[Header, bytes]] = []
    twin.receive(lambda header, payload: seen.append((header, payload)))
    return seen


def test_what_there_is_no_room_for_goes_later_and_in_order(twin: TwinSocket) -> None:
    with clients_end(twin) as client:
        commands = [message(Command.DMA_WRITE, bytes([n]) * 60_000, message_id=n) for n in range(8)]
        for command in commands:
            twin.send(command)
        assert twin.events == select.POLLIN | select.POLLOUT
        came = b""
        while len(came) < sum(map(len, commands)):
            came += client.recv(1 << 20)
            twin.flush()
        assert came == b"".join(commands)
        assert twin.events == select.POLLIN


@given(st.lists(st.integers(1, 200), max_size=20))
def test_replies_however_they_are_cut(cuts: list[int]) -> None:
    twin = TwinSocket(1 << 16)
    replies = [(reply_header(n, Command.DMA_READ, n * 30), bytes([n]) * n * 30) for n in range(6)]
    stream = b"".join(header + payload for header, payload in replies)
    try:
        with clients_end(twin) as client:
            seen = []
            for cut in (*cuts, len(stream)):
                client.sendall(stream[:cut])
                stream = stream[cut:]
                seen += received(twin)
            assert seen == [(Header.decode(header), payload) for header, payload in replies]
            assert received(twin) == []
    finally:
        twin.close()


def test_descriptors_are_closed(twin: TwinSocket) -> None:
    # The leak check that follows every test is the assertion.
    with clients_end(twin) as client:
        socket.send_fds(client, [reply_header(1, Command.DMA_READ, 0)], [client.fileno()] * 3)
        assert [header.message_id for header, _ in received(twin)] == [1]


@pytest.mark.parametrize("size", [15, (1 << 16) + 1])
def test_what_cannot_be_cut_is_the_end(twin: TwinSocket, size: int) -> None:
    with clients_end(twin) as client:
        client.sendall(message(Command.DMA_READ, size=size, flags=1))
        with pytest.raises(
            ConnectionClosedError, match=f"of no more use: a header announces a message of {size} bytes"
        ):
            received(twin)


def test_the_client_closes_its_end(twin: TwinSocket) -> None:
    clients_end(twin).close()
    with pytest.raises(ConnectionClosedError, match="closed the twin socket"):
        received(twin)
    with pytest.raises(ConnectionClosedError, match="gone"):
        twin.send(message(Command.DMA_READ, bytes(16)))


def test_both_ends_go_with_it(twin: TwinSocket) -> None:
    fds = twin.fileno(), twin.client_fd
    twin.close()
    twin.close()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
