"""Commands on an event loop: replies in any order, time limits, cancellation, the server's commands, hostile bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.client.scripted import ScriptedServer, message
from tests.support.fds import memory_file
from vfio_user.client.aio.connection import AsyncConnection
from vfio_user.client.guest_memory import GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.client.negotiation import OFFER
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionClosedError,
    FramingError,
    LocalProtocolError,
    RemoteProtocolError,
    StateError,
    VersionError,
)
from vfio_user.protocol.constants import Command
from vfio_user.protocol.dma import DmaRead, DmaReadReply

RESET, INFO, READ = Command.DEVICE_RESET, Command.DEVICE_GET_INFO, Command.DMA_READ


def connected(server: ScriptedServer, body: Callable[[AsyncConnection], Awaitable[None]], **options: Any) -> None:
    """Runs ``body`` with a connection that has negotiated."""

    async def run() -> None:
        server.say_version()
        connection = await AsyncConnection.open(server.channel, **options)
        server.heard()
        try:
            await body(connection)
        finally:
            connection.close()

    asyncio.run(run())


async def turn() -> None:
    """Lets the loop look at its sockets."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_replies_in_another_order(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        first = asyncio.ensure_future(connection.request(INFO, bytes(16), max_payload=16))
        second = asyncio.ensure_future(connection.request(RESET))
        await turn()
        assert [heard.header.message_id for heard in server.heard()] == [1, 2]
        server.say(message(2, RESET) + message(7, RESET))
        assert (await second).payload == b""
        assert not first.done()
        server.say(message(1, INFO, b"x" * 16))
        assert (await first).payload == b"x" * 16
        assert connection.commands.statistics.dropped_replies == 1

    connected(server, body)


@pytest.mark.parametrize(
    ("reply", "error", "why"),
    [
        (message(1, RESET, flags=0x21, error=errno.EBUSY), CommandError, "refused DEVICE_RESET"),
        (message(1, RESET, flags=0x20, error=errno.EBUSY), CommandError, "refused DEVICE_RESET"),
        (message(1, INFO), RemoteProtocolError, "was answered as DEVICE_GET_INFO"),
        (message(1, RESET, b"x"), RemoteProtocolError, "payload of 1 bytes; it has 0 at most"),
        (message(1, RESET, size=3), ConnectionClosedError, "ended before DEVICE_RESET was answered: .* 3 bytes"),
        (message(1, RESET, flags=2), ConnectionClosedError, "neither command nor reply"),
    ],
)
def test_replies_that_are_none(server: ScriptedServer, reply: bytes, error: type[Exception], why: str) -> None:
    async def body(connection: AsyncConnection) -> None:
        server.say(reply)
        with pytest.raises(error, match=why):
            await connection.request(RESET)
        assert connection.is_closed == (error is ConnectionClosedError)
        if connection.is_closed:
            with pytest.raises(ConnectionClosedError, match="the connection has ended"):
                await connection.request(RESET)

    connected(server, body)


def test_a_server_that_hangs_up(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        server.close()
        with pytest.raises(ConnectionClosedError):
            await connection.request(RESET)

    connected(server, body)


@pytest.mark.parametrize(
    ("version", "error"),
    [
        (b"\0\0\1\0", VersionError),
        (b"\0\0", VersionError),
        (bytes(4097), RemoteProtocolError),
        (b'\0\0\0\0{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0', VersionError),
    ],
)
def test_versions_that_come_to_nothing(server: ScriptedServer, version: bytes, error: type[Exception]) -> None:
    async def run() -> None:
        server.say(message(0, Command.VERSION, version))
        with pytest.raises(error):
            await AsyncConnection.open(server.channel, offer=replace(OFFER, twin_socket=True))

    asyncio.run(run())
    assert server.channel_is_closed()


def test_time_is_over(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        with pytest.raises(CommandTimeoutError, match=r"did not answer DEVICE_RESET within 0\.01 seconds"):
            await connection.request(RESET)
        # The late reply costs nothing.
        server.say(message(1, RESET) + message(2, RESET))
        await connection.request(RESET, timeout=5)
        assert connection.commands.statistics.dropped_replies == 1

    connected(server, body, timeout=0.01)


def test_a_command_that_is_cancelled(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        fd = memory_file()
        task = asyncio.ensure_future(connection.request(INFO, max_fds=1))
        await turn()
        server.say(message(1, INFO), [fd])
        # Its reply comes in the same turn: the descriptor is nobody's, and closed.
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        os.close(fd)
        late = asyncio.ensure_future(connection.request(INFO))
        await turn()
        late.cancel()
        await turn()
        server.say(message(2, INFO) + message(3, RESET))
        await connection.request(RESET)

    connected(server, body)


def test_the_servers_commands(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        server.say(message(9, READ, DmaRead(0, 4).encode(), flags=0) + message(8, 99, flags=0))
        server.say(message(7, READ, DmaRead(0, 4).encode(), flags=0x10))
        await turn()
        assert [(heard.header.message_id, heard.header.error) for heard in server.heard()] == [
            (9, 0),
            (8, errno.ENOSYS),
        ]
        assert (connection.commands.statistics.served, connection.commands.statistics.refused) == (2, 1)

    with GuestMemory(4096) as memory:
        space = GuestAddressSpace()
        space.add(GuestMapping(0, 4096, memory, 0, True, True, True))
        connected(server, body, dma=space)


def test_a_twin_socket(server: ScriptedServer) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        text = b'{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true,"fd_index":0}}}\0'
        server.say(message(0, Command.VERSION, b"\0\0\0\0" + text), [theirs.fileno()])
        theirs.close()
        with ours, GuestMemory(4096) as memory:
            space = GuestAddressSpace()
            space.add(GuestMapping(0, 4096, memory, 0, True, True, True))
            offer = replace(OFFER, twin_socket=True)
            connection = await AsyncConnection.open(server.channel, offer=offer, dma=space)
            assert connection.has_twin
            ours.sendall(message(9, READ, DmaRead(0, 4).encode(), flags=0))
            await turn()
            assert ours.recv(100)[16:] == DmaReadReply(0, bytes(4)).encode()
            ours.sendall(message(9, READ))
            await turn()
            assert connection.is_closed
            with pytest.raises(ConnectionClosedError) as caught:
                await connection.request(RESET)
            assert isinstance(caught.value.__cause__, FramingError)

    asyncio.run(run())


def test_a_server_that_does_not_read(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        with pytest.raises(CommandTimeoutError, match=r"has not read for 0\.05 seconds; \d+ bytes wait"):
            await connection.send_posted(Command.REGION_WRITE, bytes(1 << 20))
        # It reads again, and everything goes.
        waiting = asyncio.ensure_future(connection.send_posted(RESET, b""))
        while not waiting.done():
            server.heard()
            await asyncio.sleep(0)
        await waiting

    connected(server, body, timeout=0.05)


def test_nothing_is_taken_of_a_server_that_does_not_read(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        server.socket.setblocking(False)
        asked = message(9, READ, DmaRead(0, 1 << 20).encode(), flags=0)
        for _ in range(50):
            server.say(asked)
        for _ in range(100):
            await turn()
        assert 4 << 20 <= connection._stream.unsent < 6 << 20
        answered = 0
        while answered < 50:
            answered += len(server.heard())
            await turn()

    with GuestMemory(1 << 20) as memory:
        space = GuestAddressSpace()
        space.add(GuestMapping(0, 1 << 20, memory, 0, True, True, True))
        connected(server, body, dma=space)


def test_descriptors_over_tcp() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
            with theirs:
                theirs.sendall(message(0, Command.VERSION, b"\0\0\0\0"))
                connection = await AsyncConnection.open(ours)
                assert connection.agreement.client.max_msg_fds == 0
                with pytest.raises(LocalProtocolError, match="DMA_MAP goes with 1 file descriptors"):
                    await connection.request(Command.DMA_MAP, fds=[0])
                theirs.sendall(message(1, RESET))
                await connection.request(RESET)
                connection.close()

    asyncio.run(run())


def test_replies_are_awaited(server: ScriptedServer) -> None:
    async def body(connection: AsyncConnection) -> None:
        with pytest.raises(StateError, match="DEVICE_RESET has no reply yet: await it"):
            connection._pending.expect(50, RESET, "DEVICE_RESET", 0).result()
        connection._pending.abandoned.update(range(1 << 16))
        with pytest.raises(ConnectionClosedError, match="there is no id left"):
            await connection.request(RESET)

    connected(server, body)
