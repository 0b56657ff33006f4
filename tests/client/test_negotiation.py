"""VERSION from the client's side, and the twin socket: a real one, and all that a server may send instead."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.client.scripted import ScriptedServer, message
from tests.client.traveller import MEMORY_SIZE, Guest, Traveller
from tests.support.fds import close_all, memory_file
from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.client.negotiation import OFFER, proposal
from vfio_user.errors import ConnectionClosedError, FramingError, RemoteProtocolError, VersionError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.dma import DmaRead, DmaReadReply
from vfio_user.protocol.header import Header
from vfio_user.protocol.version import Capabilities
from vfio_user.server.server import Server
from vfio_user.testing.in_process import DeviceUnderTest

TWIN = replace(OFFER, twin_socket=True)
READ = Command.DMA_READ


def say_version(server: ScriptedServer, twin: str, fds: list[int]) -> None:
    text = b'{"capabilities":{"max_msg_fds":8,"twin_socket":%s}}\0' % twin.encode()
    server.say(message(0, Command.VERSION, b"\0\0\0\0" + text), fds)


@pytest.fixture
def twins(server: ScriptedServer) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection with a twin socket, and the server's end of that."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        say_version(server, '{"supported":true,"fd_index":0}', [theirs.fileno()])
        theirs.close()
        with GuestMemory(4096) as memory:
            space = GuestAddressSpace()
            space.add(GuestMapping(0, 4096, memory, 0, True, True, True))
            with Connection(server.channel, offer=TWIN, dma=space) as connection:
                assert connection.has_twin
                server.heard()
                yield connection, ours


def test_what_is_proposed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert "twin_socket" not in (proposal(OFFER, ours).capabilities or {})
        assert (proposal(TWIN, ours).capabilities or {})["twin_socket"] == {"supported": True}
    with socket.socket(socket.AF_INET) as tcp:
        assert proposal(TWIN, tcp).capabilities == {
            "max_msg_fds": 0,
            "max_data_xfer_size": 1 << 20,
            "write_multiple": True,
        }


@pytest.mark.parametrize("twin", ['{"supported":false}', "{}"])
def test_a_server_without(server: ScriptedServer, twin: str) -> None:
    say_version(server, twin, [])
    with Connection(server.channel, offer=TWIN) as connection:
        assert not connection.has_twin
        assert connection.agreement.server == Capabilities(max_msg_fds=8)


@pytest.mark.parametrize(
    ("twin", "number", "why"),
    [
        ('{"supported":true}', 1, "descriptor None of the 1"),
        ('{"supported":true,"fd_index":0}', 0, "descriptor 0 of the 0"),
        ('{"supported":true,"fd_index":1}', 1, "descriptor 1 of the 1"),
        ('{"supported":true,"fd_index":-1}', 1, "descriptor -1 of the 1"),
        ('{"supported":true,"fd_index":false}', 1, "descriptor False of the 1"),
        ('{"supported":true,"fd_index":"0"}', 1, "descriptor '0' of the 1"),
        ('{"supported":true,"fd_index":0}', 1, "is no socket"),
        ('{"supported":true,"fd_index":0}', 2, "came with 2 file descriptors; it has 1 at most"),
    ],
)
def test_twins_that_are_none(server: ScriptedServer, twin: str, number: int, why: str) -> None:
    fds = [memory_file() for _ in range(number)]
    say_version(server, twin, fds)
    close_all(fds)
    with pytest.raises(RemoteProtocolError, match=why):
        Connection(server.channel, offer=TWIN)
    assert server.channel_is_closed()


@pytest.mark.parametrize(
    ("family", "kind"), [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM)]
)
def test_twins_of_another_kind(server: ScriptedServer, family: int, kind: int) -> None:
    with socket.socket(family, kind) as other:
        say_version(server, '{"supported":true,"fd_index":0}', [other.fileno()])
    with pytest.raises(VersionError, match="it must be a UNIX stream socket"):
        Connection(server.channel, offer=TWIN)


def test_a_descriptor_that_came_unasked_is_closed(server: ScriptedServer) -> None:
    fd = memory_file()
    say_version(server, '{"supported":false}', [fd])
    os.close(fd)
    with Connection(server.channel, offer=TWIN) as connection:
        assert not connection.has_twin


def test_commands_are_answered_where_they_came_from(
    server: ScriptedServer, twins: tuple[Connection, socket.socket]
) -> None:
    connection, twin = twins
    twin.sendall(message(7, READ, DmaRead(0, 4).encode(), flags=0))
    server.say(message(8, READ, DmaRead(0, 2).encode(), flags=0))
    server.say(message(1, Command.DEVICE_RESET))
    connection.request(Command.DEVICE_RESET)
    connection.process()
    answer = twin.recv(100)
    assert (Header.decode(answer).message_id, answer[16:]) == (7, DmaReadReply(0, bytes(4)).encode())
    assert [heard.header.message_id for heard in server.heard()] == [1, 8]
    assert connection.statistics.served == 2


def test_a_reply_waits_for_what_comes_over_the_twin(
    server: ScriptedServer, twins: tuple[Connection, socket.socket]
) -> None:
    # The server answers the access only when it has got its memory: whoever looks at one socket alone waits for ever.
    connection, twin = twins

    def serve() -> None:
        twin.sendall(message(7, READ, DmaRead(0, 4).encode(), flags=0))
        assert len(twin.recv(100)) == 36
        server.say(message(1, Command.REGION_READ, bytes(8) + b"\0\0\0\0\1\0\0\0" + b"\5"))

    thread = threading.Thread(target=serve)
    thread.start()
    assert connection.read(0, 0, 1) == 5
    thread.join()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (message(1, Command.DEVICE_RESET), FramingError),
        (message(1, READ, size=3), FramingError),
        (b"", ConnectionClosedError),
    ],
)
def test_a_twin_that_goes_wrong_ends_it_all(
    twins: tuple[Connection, socket.socket], sent: bytes, error: type[Exception]
) -> None:
    connection, twin = twins
    twin.sendall(sent)
    twin.shutdown(socket.SHUT_WR)
    with pytest.raises(error):
        connection.process(1)
    assert connection.is_closed


@pytest.mark.parametrize("twin_socket", [False, True])
def test_a_real_server(tmp_path: Path, twin_socket: bool) -> None:
    with (
        Server(Traveller(), tmp_path / "socket").start(),
        VfioUserClient.connect(tmp_path / "socket", twin_socket=twin_socket) as client,
        GuestMemory(MEMORY_SIZE) as memory,
    ):
        assert client.connection.has_twin == twin_socket
        guest = Guest(client, memory, shared=False)
        while guest.entries < 100:
            guest.work(1)
        guest.check()
        assert client.connection.statistics.served > 100


def test_within_one_thread() -> None:
    with DeviceUnderTest(Traveller(), share_memory=False) as under_test:
        assert not under_test.client.connection.has_twin
