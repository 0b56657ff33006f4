"""Connections: negotiation, replies in any order and shape, time limits, the server's commands, and hostile bytes."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.client.scripted import SHORT, ScriptedServer, access_reply, message, open_file, scripted
from tests.support.fds import no_leaks
from vfio_user.client.connection import Connection
from vfio_user.client.guest_memory import GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionClosedError,
    FramingError,
    LocalProtocolError,
    RemoteProtocolError,
    VersionError,
    VfioUserError,
)
from vfio_user.protocol.constants import Command
from vfio_user.protocol.version import Capabilities
from vfio_user.transport.memory import MemoryChannel, memory_pair

RESET = Command.DEVICE_RESET
INFO = Command.DEVICE_GET_INFO


# Negotiation.


def test_what_it_proposes_and_what_was_agreed(server: ScriptedServer) -> None:
    with server.connect() as connection:
        assert (server.version.header.message_id, server.version.header.command) == (0, Command.VERSION)
        assert server.version.payload == (
            b'\0\0\0\0{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"write_multiple":true}}\0'
        )
        assert connection.agreement.server == Capabilities(max_msg_fds=8, write_multiple=True)


@pytest.mark.parametrize(
    ("reply", "error", "why"),
    [
        (message(0, Command.VERSION, flags=0x21, error=errno.EINVAL), CommandError, "refused VERSION"),
        (message(0, Command.VERSION, b"\0\0\1\0"), VersionError, "answers 0.0 with 0.1"),
        (message(0, Command.VERSION, b"\0\0"), VersionError, "shorter than the 4"),
        (message(0, Command.VERSION, bytes(4097)), RemoteProtocolError, "4097 bytes; it has 4096 at most"),
        (message(0, Command.DEVICE_RESET), RemoteProtocolError, "VERSION was answered as DEVICE_RESET"),
        (message(0, Command.VERSION, size=15), FramingError, "15 bytes"),
        (message(1, Command.VERSION, b"\0\0\0\0"), CommandTimeoutError, "did not answer VERSION within 0.02 seconds"),
    ],
)
def test_versions_that_come_to_nothing(
    server: ScriptedServer, reply: bytes, error: type[VfioUserError], why: str
) -> None:
    server.say(reply)
    with pytest.raises(error, match=why):
        Connection(server.channel, timeout=SHORT)
    assert server.channel_is_closed()


def test_a_server_that_hangs_up_at_once(server: ScriptedServer) -> None:
    server.close()
    with pytest.raises(ConnectionClosedError):
        Connection(server.channel)
    assert server.channel_is_closed()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_time_limits_that_are_none(server: ScriptedServer, seconds: float) -> None:
    with server.connect() as connection, pytest.raises(ValueError, match="a server gets more than 0"):
        connection.timeout = seconds


# Replies.


def test_replies_in_another_order(server: ScriptedServer) -> None:
    with server.connect() as connection:
        first = connection.submit(INFO, bytes(16), max_payload=16)
        second = connection.submit(RESET)
        assert [heard.header.message_id for heard in server.heard()] == [1, 2]
        server.say(message(2, RESET) + message(1, INFO, b"x" * 16))
        assert [first.is_done, second.is_done] == [False, False]
        assert second.result().payload == b""
        assert first.is_done
        assert first.result().payload == b"x" * 16


@pytest.mark.parametrize(("sent", "number"), [(errno.EBUSY, errno.EBUSY), (0, errno.EIO)])
def test_a_refusal(server: ScriptedServer, sent: int, number: int) -> None:
    with server.connect() as connection:
        server.say(message(1, RESET, flags=0x21, error=sent))
        with pytest.raises(CommandError) as caught:
            connection.request(RESET)
        assert (caught.value.errno, caught.value.command, caught.value.request) == (number, RESET, "DEVICE_RESET")


def test_the_error_field_means_nothing_without_the_flag(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(1, RESET, error=errno.EBUSY))
        connection.request(RESET)


def test_an_error_reply_disguised_as_a_command(server: ScriptedServer) -> None:
    # rust-vmm's server, before 2026-04-21.
    with server.connect() as connection:
        server.say(message(1, RESET, flags=0x20, error=errno.EBUSY))
        with pytest.raises(CommandError, match="DEVICE_RESET"):
            connection.request(RESET)


def test_replies_nobody_waits_for(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(7, Command.REGION_WRITE, bytes(16)) + message(8, 99, bytes(5000)) + message(1, RESET))
        connection.request(RESET)
        assert connection.statistics.dropped_replies == 2


def test_a_reply_to_another_command(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(1, INFO, bytes(16)))
        with pytest.raises(RemoteProtocolError, match="DEVICE_RESET was answered as DEVICE_GET_INFO"):
            connection.request(RESET)
        server.say(message(2, RESET))
        connection.request(RESET)


def test_a_reply_that_is_too_large(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(1, INFO, bytes(17)))
        with pytest.raises(RemoteProtocolError, match="payload of 17 bytes; it has 16 at most"):
            connection.request(INFO, max_payload=16)
        server.say(message(2, RESET))
        connection.request(RESET)


def test_descriptors_nobody_asked_for(server: ScriptedServer) -> None:
    with server.connect() as connection, open_file() as fd:
        server.say(message(1, RESET), [fd, fd])
        with pytest.raises(RemoteProtocolError, match="came with 2 file descriptors; it has 0 at most"):
            connection.request(RESET)
        server.say(message(5, RESET), [fd])
        server.say(message(2, RESET))
        connection.request(RESET)


def test_descriptors_somebody_asked_for(server: ScriptedServer) -> None:
    with server.connect() as connection, open_file() as fd:
        server.say(message(1, INFO), [fd])
        (received,) = connection.request(INFO, max_fds=1).fds
        assert os.fstat(received).st_ino == os.fstat(fd).st_ino
        os.close(received)


def test_a_reply_byte_by_byte(server: ScriptedServer) -> None:
    ours, theirs = memory_pair()
    words = bytearray(message(0, Command.VERSION, b"\0\0\0\0") + message(1, INFO, b"0123456789abcdef"))

    def pump(_timeout: float) -> float:
        if words:
            theirs.send(bytes([words.pop(0)]))
        return 0.001

    with Connection(ours, pump=pump) as connection:
        assert connection.request(INFO, max_payload=16).payload == b"0123456789abcdef"
        assert not words
    theirs.close()


@pytest.mark.parametrize("length", range(32))
def test_a_server_that_hangs_up_in_the_middle(server: ScriptedServer, length: int) -> None:
    with server.connect() as connection:
        other = connection.submit(RESET)
        server.say(message(2, INFO, bytes(16))[:length])
        server.close()
        with pytest.raises(ConnectionClosedError, match=r"the server closed the connection|the peer is gone|broke"):
            connection.request(INFO, max_payload=16)
        assert connection.is_closed
        with pytest.raises(ConnectionClosedError, match="the connection ended before DEVICE_RESET was answered"):
            other.result()
        for attempt in (connection.process, lambda: connection.request(RESET), lambda: connection.read(0, 0, 4)):
            with pytest.raises(ConnectionClosedError, match="the connection has ended"):
                attempt()
        with pytest.raises(ConnectionClosedError):
            connection.post(0, 0, 4, 0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (message(1, RESET, size=15), "announces a message of 15 bytes"),
        (message(1, RESET, size=(1 << 20) + 33), "announces a message of 1048609 bytes"),
        (message(1, RESET, flags=2), "neither command nor reply: flags 0x2"),
    ],
)
def test_a_stream_that_cannot_be_cut(server: ScriptedServer, data: bytes, why: str) -> None:
    with server.connect() as connection:
        other = connection.submit(RESET)
        server.say(data)
        with pytest.raises(FramingError, match=why):
            connection.request(RESET)
        assert connection.is_closed
        with pytest.raises(ConnectionClosedError, match=f"before DEVICE_RESET was answered: .*{why}"):
            other.result()


# Time limits.


def test_a_late_reply_costs_its_own_command_only(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError, match=r"did not answer DEVICE_GET_INFO within 0.02 seconds"):
            connection.request(INFO, max_payload=16)
        with pytest.raises(CommandTimeoutError, match=r"DEVICE_RESET within 0.01 seconds"):
            connection.request(RESET, timeout=0.01)
        server.say(message(1, INFO, bytes(5000)) + message(2, RESET) + message(3, INFO, b"y" * 16))
        assert connection.request(INFO, max_payload=16).payload == b"y" * 16
        assert connection.statistics.dropped_replies == 2


def test_half_a_late_reply(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        late = message(1, INFO, b"x" * 16)
        server.say(late[:20])
        with pytest.raises(CommandTimeoutError):
            connection.request(INFO, max_payload=16)
        server.say(late[20:] + access_reply(2, 0, 0x10, b"abcd"))
        assert connection.read(0, 0x10, 4) == int.from_bytes(b"abcd", "little")


def test_a_late_reply_does_not_answer_another_with_its_id(server: ScriptedServer) -> None:
    with server.connect(timeout=0.002) as connection:
        with pytest.raises(CommandTimeoutError):
            connection.request(RESET)
        seen = {connection.fresh_id() for _ in range(1 << 16)}
        assert seen == set(range(1 << 16)) - {1}
        server.say(message(1, RESET))
        assert connection.serve()
        assert not connection.serve()
        assert {connection.fresh_id() for _ in range(1 << 16)} == set(range(1 << 16))


def test_a_server_that_answers_nothing_at_all(server: ScriptedServer) -> None:
    with server.connect() as connection:
        for _ in range((1 << 16) - 1):
            connection.expect(connection.fresh_id(), RESET, "DEVICE_RESET", 0)
        last = connection.fresh_id()
        connection.expect(last, RESET, "DEVICE_RESET", 0)
        with pytest.raises(ConnectionClosedError, match="65536 commands have had no reply"):
            connection.request(RESET)


class Chatterbox(MemoryChannel):
    """Has always something to say, and none of it was asked for."""

    words = message(0, Command.VERSION, b"\0\0\0\0")

    def sendmsg(self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), _flags: int = 0, /) -> int:
        return sum(map(len, buffers))

    def recvmsg_into(
        self, buffers: Iterable[Any], _ancbufsize: int = 0, _flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        (buffer,) = buffers
        words, self.words = self.words, message(9, RESET)
        buffer[: len(words)] = words
        return len(words), [], 0, None


def test_a_server_that_talks_and_does_not_answer() -> None:
    with Connection(Chatterbox(), timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError):
            connection.request(RESET)
        with pytest.raises(CommandTimeoutError):
            connection.read(0, 0, 4)


def test_a_channel_without_descriptors() -> None:
    ours, theirs = memory_pair()
    ours.carries_fds = False
    theirs.send(message(0, Command.VERSION, b"\0\0\0\0"))
    with Connection(ours, pump=lambda timeout: timeout) as connection:
        assert not connection.carries_fds
        assert connection.agreement.client.max_msg_fds == 0
        # Refused before anything is expected of the server.
        for _ in range(2):
            with pytest.raises(LocalProtocolError, match=r"DMA_MAP goes with 1 file descriptors, which only UNIX"):
                connection.submit(Command.DMA_MAP, fds=[0])
        theirs.send(message(1, RESET))
        connection.request(RESET)
    theirs.close()


def test_what_interrupts_a_wait_leaves_the_connection_usable() -> None:
    ours, theirs = memory_pair()
    theirs.send(message(0, Command.VERSION, b"\0\0\0\0"))

    def pump(_timeout: float) -> float:
        raise KeyboardInterrupt

    with Connection(ours, pump=pump) as connection:
        other = connection.submit(RESET)
        with pytest.raises(KeyboardInterrupt):
            connection.request(RESET)
        theirs.send(message(2, RESET) + message(1, RESET))
        assert other.result().payload == b""
        assert connection.statistics.dropped_replies == 1
    theirs.close()


# What does not fit.


def flood(connection: Connection, payload: bytes) -> None:
    """Sends until nothing goes any more."""
    while True:
        connection.send_posted(Command.REGION_WRITE, payload)


def test_a_server_that_does_not_read(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        payload = bytes(64 * 1024)
        with pytest.raises(CommandTimeoutError, match=r"has not read for 0.02 seconds; \d+ bytes wait"):
            flood(connection, payload)
        received = b""
        done = False
        while not done:
            with contextlib.suppress(BlockingIOError):
                while True:
                    received += server.socket.recv(1 << 20)
            try:
                connection.drain()
                done = True
            except CommandTimeoutError:
                pass
        with contextlib.suppress(BlockingIOError):
            received += server.socket.recv(1 << 20)
        size = 16 + len(payload)
        assert len(received) % size == 0, "a message was torn"
        assert {received[at + 8 : at + 12] for at in range(0, len(received), size)} == {struct.pack("<I", 0x10)}


def test_descriptors_that_wait_may_be_closed_by_their_owner(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError):
            flood(connection, bytes(64 * 1024))
        with open_file() as fd:
            pending = connection.submit(Command.DMA_MAP, bytes(32), fds=[fd])
        heard = server.heard()
        while not heard or heard[-1].header.command != Command.DMA_MAP:
            connection.process()
            heard = server.heard() or heard
        assert heard[-1].fds == 1
        server.say(message(pending.message_id, Command.DMA_MAP))
        pending.result()


def test_what_waits_is_closed_with_the_connection(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError):
            flood(connection, bytes(64 * 1024))
        with open_file() as fd:
            connection.submit(Command.DMA_MAP, bytes(32), fds=[fd])


def test_a_server_that_asks_and_does_not_read_the_answers(server: ScriptedServer) -> None:
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    memory = GuestMemory(1 << 20)
    space = GuestAddressSpace()
    space.add(GuestMapping(0, memory.size, memory, 0, True, True, False))
    with memory, server.connect(timeout=SHORT, dma=space) as connection:
        asks = message(0, Command.DMA_READ, struct.pack("<QQ", 0, 1 << 20), flags=0)
        for _ in range(100):
            server.say(asks)
        with pytest.raises(CommandTimeoutError):
            connection.request(RESET)
        assert connection._stream.unsent < 6 << 20, "answers nobody reads are made all the same"
        served = 0
        while served < 100:
            served += len([heard for heard in server.heard() if heard.header.command == Command.DMA_READ])
            connection.process()
        assert connection.statistics.served == 100


# The server's commands.


@contextlib.contextmanager
def with_memory(server: ScriptedServer) -> Iterator[tuple[Connection, GuestMemory]]:
    """A connection whose server can reach a page at 0x1000 and read one at 0x2000."""
    space = GuestAddressSpace()
    with GuestMemory(0x2000) as memory, server.connect(dma=space) as connection:
        space.add(GuestMapping(0x1000, 0x1000, memory, 0, True, True, False))
        space.add(GuestMapping(0x2000, 0x1000, memory, 0x1000, True, False, False))
        yield connection, memory


def asked(iova: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QQ", iova, count) + data


@pytest.mark.parametrize(
    ("command", "payload", "error", "answer"),
    [
        (Command.DMA_READ, asked(0x1FFE, 4), 0, asked(0x1FFE, 4, b"abcd")),
        (Command.DMA_READ, asked(0x1000, 0), 0, asked(0x1000, 0)),
        (Command.DMA_READ, asked(0x2FFE, 4), errno.ENODEV, b""),
        (Command.DMA_READ, asked(0xFFF, 1), errno.ENODEV, b""),
        (Command.DMA_READ, asked(0x1000, (1 << 20) + 1), errno.E2BIG, b""),
        (Command.DMA_READ, asked(0x1000, 1)[:15], errno.EINVAL, b""),
        (Command.DMA_WRITE, asked(0x1FFD, 2, b"xy"), 0, asked(0x1FFD, 2)),
        (Command.DMA_WRITE, asked(0x1FFD, 4, b"xyzw"), errno.ENODEV, b""),
        (Command.DMA_WRITE, asked(0x1000, 4, b"xy"), errno.E2BIG, b""),
        (Command.DMA_WRITE, asked(0x1000, 1, b"xy"), 0, asked(0x1000, 1)),
        (Command.DEVICE_RESET, b"", errno.ENOSYS, b""),
        (99, bytes(100), errno.ENOSYS, b""),
    ],
)
def test_commands_of_the_server_while_it_is_waited_for(
    server: ScriptedServer, command: int, payload: bytes, error: int, answer: bytes
) -> None:
    with with_memory(server) as (connection, memory):
        memory.view[0xFFE:0x1002] = b"abcd"
        server.say(message(0xBEEF, command, payload, flags=0) + access_reply(1, 0, 0, b"\x2a"))
        assert connection.read(0, 0, 1) == 42
        _, reply = server.heard()
        assert reply.header == (0xBEEF, command, 16 + len(answer), 0x21 if error else 1, error)
        assert reply.payload == answer
        if command == Command.DMA_WRITE:
            assert bytes(memory.view[0xFFD:0x1001]) == (b"xybc" if not error and payload[0] == 0xFD else b"\0abc")
        assert (connection.statistics.served, connection.statistics.refused) == ((0, 1) if error else (1, 0))


def test_a_server_that_wants_no_reply_gets_none(server: ScriptedServer) -> None:
    with with_memory(server) as (connection, memory):
        server.say(message(1, Command.DMA_WRITE, asked(0x1000, 2, b"xy"), flags=0x10))
        server.say(message(2, Command.DMA_WRITE, asked(0, 2, b"xy"), flags=0x10))
        connection.process(1)
        connection.process()
        assert server.heard() == []
        assert bytes(memory.view[:2]) == b"xy"


def test_a_command_of_the_server_with_descriptors(server: ScriptedServer) -> None:
    with with_memory(server) as (connection, _), open_file() as fd:
        server.say(message(1, Command.DMA_READ, asked(0x1000, 1), flags=0), [fd])
        connection.process(1)
        assert [heard.header.error for heard in server.heard()] == [errno.EINVAL]


def test_a_server_that_needs_memory_before_it_interrupts(server: ScriptedServer) -> None:
    with with_memory(server) as (connection, _):
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            server.say(message(1, Command.DMA_READ, asked(0x1000, 1), flags=0))
            assert not connection.wait_readable(fd, SHORT)
            assert connection.statistics.served == 1
            os.eventfd_write(fd, 1)
            assert connection.wait_readable(fd, 5)
            server.close()
            assert connection.wait_readable(fd, 0), "what has fired counts, whatever became of the server"
            os.eventfd_read(fd)
            with pytest.raises(ConnectionClosedError):
                connection.wait_readable(fd, 5)
        finally:
            os.close(fd)


# Anything at all.


headers = st.builds(
    message,
    st.integers(0, 6),
    st.integers(0, 20),
    st.binary(max_size=40),
    flags=st.sampled_from([0, 1, 0x10, 0x20, 0x21, 0x31, 2, 0xFFFF_FFFF]),
    error=st.sampled_from([0, 22, 0xFFFF_FFFF]),
    size=st.none() | st.integers(0, 64) | st.integers(0, 0xFFFF_FFFF),
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(st.tuples(st.binary(max_size=40) | headers, st.booleans()), max_size=6), negotiated=st.booleans())
def test_any_bytes_and_descriptors(parts: list[tuple[bytes, bool]], negotiated: bool) -> None:
    with no_leaks(), scripted() as server, open_file() as fd:
        if negotiated:
            server.say_version()
        for data, with_fd in parts:
            if data:
                server.say(data, [fd] if with_fd else [])
        server.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(VfioUserError), Connection(server.channel, timeout=SHORT) as connection:
            for attempt in range(3):
                with contextlib.suppress(CommandError, RemoteProtocolError):
                    if attempt == 1:
                        connection.read(0, 0, 4)
                    else:
                        connection.request(INFO, bytes(16), max_payload=16)
