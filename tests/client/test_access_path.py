"""The access path: every size, every way a reply can miss the plain form, and what goes over the wire."""

from __future__ import annotations

import contextlib
import errno
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.client.scripted import SHORT, ScriptedServer, access_reply, message, open_file, scripted
from vfio_user.client.access_path import describe_access, region_name
from vfio_user.client.connection import Connection
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    FramingError,
    LocalProtocolError,
    RemoteProtocolError,
)
from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.protocol.header import HEADER
from vfio_user.protocol.region import ACCESS
from vfio_user.transport.memory import memory_pair

READ, WRITE = Command.REGION_READ, Command.REGION_WRITE
SIZES = [1, 2, 4, 8]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("busy", [False, True], ids=["plain", "ordinary"])
class TestBothWays:
    """The plain way, and with another reply to come, which makes every access go the ordinary way."""

    @staticmethod
    def start(server: ScriptedServer, busy: bool) -> tuple[Connection, int]:
        connection = server.connect()
        if busy:
            connection.submit(Command.DEVICE_RESET)
            server.heard()
        return connection, 2 if busy else 1

    def test_read(self, server: ScriptedServer, size: int, busy: bool) -> None:
        connection, number = self.start(server, busy)
        with connection:
            data = bytes(range(0xF0, 0xF0 + size))
            server.say(access_reply(number, 7, 1 << 40, data))
            assert connection.read(7, 1 << 40, size) == int.from_bytes(data, "little")
            ((header, payload, fds),) = server.heard()
            assert header == (number, READ, 32, 0, 0)
            assert (payload, fds) == (ACCESS.pack(1 << 40, 7, size), 0)

    @pytest.mark.parametrize("reply", [16, 0], ids=["repeats the request", "a header alone"])
    def test_write(self, server: ScriptedServer, size: int, busy: bool, reply: int) -> None:
        connection, number = self.start(server, busy)
        with connection:
            server.say(message(number, WRITE, bytes(reply)))
            value = 256**size - 2
            connection.write(2, 0x10, size, value)
            ((header, payload, _),) = server.heard()
            assert header == (number, WRITE, 32 + size, 0, 0)
            assert payload == ACCESS.pack(0x10, 2, size) + value.to_bytes(size, "little")

    def test_post(self, server: ScriptedServer, size: int, busy: bool) -> None:
        connection, number = self.start(server, busy)
        with connection:
            connection.post(2, 0x10, size, 1)
            ((header, payload, _),) = server.heard()
            assert header == (number, WRITE, 32 + size, 0x10, 0)
            assert payload == ACCESS.pack(0x10, 2, size) + (1).to_bytes(size, "little")

    def test_refused(self, server: ScriptedServer, size: int, busy: bool) -> None:
        connection, number = self.start(server, busy)
        with connection:
            server.say(message(number, READ, flags=0x21, error=errno.EPERM))
            with pytest.raises(CommandError, match=f"REGION_READ of {size} bytes at 0x10 of BAR2") as caught:
                connection.read(2, 0x10, size)
            assert caught.value.errno == errno.EPERM
            server.say(message(number + 1, WRITE, flags=0x21, error=errno.EIO))
            with pytest.raises(CommandError, match="REGION_WRITE"):
                connection.write(2, 0x10, size, 0)

    def test_impossible(self, server: ScriptedServer, size: int, busy: bool) -> None:
        connection, _ = self.start(server, busy)
        with connection:
            for call in (connection.write, connection.post):
                with pytest.raises(LocalProtocolError, match=rf"does not fit the {size} bytes at 0x0 of BAR0"):
                    call(0, 0, size, 256**size)
                with pytest.raises(
                    LocalProtocolError, match="an access of 3 bytes of BAR0: an integer has 1, 2, 4 or 8"
                ):
                    call(0, 0, 3, 0)
                with pytest.raises(LocalProtocolError, match="the one has 64 bits"):
                    call(0, -1, size, 0)
            with pytest.raises(LocalProtocolError, match="the one has 64 bits"):
                connection.read(0, 1 << 64, size)
            with pytest.raises(LocalProtocolError, match="an access of 5 bytes of CONFIG"):
                connection.read(7, 0, 5)
            assert server.heard() == []


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        ACCESS.pack(0x10, 2, 4),
        ACCESS.pack(0x10, 2, 4) + b"abc",
        ACCESS.pack(0x10, 2, 3) + b"abc",
        ACCESS.pack(0x11, 2, 4) + b"abcd",
        ACCESS.pack(0x10, 3, 4) + b"abcd",
        ACCESS.pack(0x10, 2, 5) + b"abcd",
    ],
)
def test_a_reply_to_another_read(server: ScriptedServer, payload: bytes) -> None:
    with server.connect() as connection:
        server.say(message(1, READ, payload))
        with pytest.raises(RemoteProtocolError, match="for another access; it must repeat the request and bring 4"):
            connection.read(2, 0x10, 4)
        server.say(access_reply(2, 2, 0x10, b"abcd"))
        assert connection.read(2, 0x10, 4)


def test_a_refusal_that_brings_data_is_a_refusal(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(1, READ, ACCESS.pack(0x10, 2, 4) + b"abcd", flags=0x21, error=errno.EBUSY))
        with pytest.raises(CommandError) as caught:
            connection.read(2, 0x10, 4)
        assert caught.value.errno == errno.EBUSY
        server.say(message(2, WRITE, ACCESS.pack(0x10, 2, 4), flags=0x21, error=errno.EBUSY))
        with pytest.raises(CommandError):
            connection.write(2, 0x10, 4, 0)


def test_an_answer_to_another_write(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        connection.post(0, 0, 4, 0)
        server.say(message(1, WRITE, bytes(16)))
        with pytest.raises(CommandTimeoutError):
            connection.write(0, 0, 4, 0)
        connection.post(0, 0, 4, 0)
        server.say(access_reply(3, 0, 0, b"abcd"))
        with pytest.raises(CommandTimeoutError):
            connection.read(0, 0, 4)


def test_a_time_limit_is_waited_for_once(server: ScriptedServer) -> None:
    with server.connect(timeout=0.1) as connection:
        began = time.monotonic()
        with pytest.raises(CommandTimeoutError):
            connection.read(0, 0, 4)
        assert 0.1 <= time.monotonic() - began < 0.19


def test_a_reply_that_brings_too_much(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(access_reply(1, 0, 0, b"abcdefgh"))
        with pytest.raises(RemoteProtocolError, match="payload of 24 bytes; it has 20 at most"):
            connection.read(0, 0, 4)


def test_a_reply_with_a_descriptor(server: ScriptedServer) -> None:
    with server.connect() as connection, open_file() as fd:
        server.say(access_reply(1, 0, 0, b"abcd"), [fd])
        with pytest.raises(RemoteProtocolError, match="came with 1 file descriptors"):
            connection.read(0, 0, 4)
        server.say(message(2, WRITE, bytes(16)), [fd])
        with pytest.raises(RemoteProtocolError, match="came with 1 file descriptors"):
            connection.write(0, 0, 4, 0)


@pytest.mark.parametrize("flags", [0x11, 0x41, 0x8000_0001])
def test_a_reply_with_other_flags_is_a_reply_still(server: ScriptedServer, flags: int) -> None:
    with server.connect() as connection:
        server.say(message(1, READ, ACCESS.pack(0, 0, 4) + b"abcd", flags=flags))
        assert connection.read(0, 0, 4)


def test_what_comes_before_and_after_a_reply(server: ScriptedServer) -> None:
    with server.connect() as connection:
        unasked = message(0x1234, 0x99, b"unasked")
        server.say(unasked + access_reply(1, 0, 0, b"abcd") + unasked[:9])
        assert connection.read(0, 0, 4) == int.from_bytes(b"abcd", "little")
        server.say(unasked[9:] + message(2, WRITE, bytes(16)))
        connection.write(0, 0, 4, 0)
        server.say(access_reply(3, 0, 0, b"efgh"))
        assert connection.read(0, 0, 4) == int.from_bytes(b"efgh", "little")
        assert connection.statistics.dropped_replies == 2


def test_late_replies(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError, match=r"REGION_READ of 4 bytes at 0x0 of BAR0 within 0\.02 seconds"):
            connection.read(0, 0, 4)
        with pytest.raises(CommandTimeoutError, match="REGION_WRITE of 2 bytes"):
            connection.write(0, 0, 2, 0)
        server.say(access_reply(1, 0, 0, b"late") + message(2, WRITE, bytes(16)) + access_reply(3, 0, 0, b"abcd"))
        assert connection.read(0, 0, 4) == int.from_bytes(b"abcd", "little")
        assert connection.statistics.dropped_replies == 2


def test_answers_to_posted_writes(server: ScriptedServer) -> None:
    # rust-vmm's server, before 2026-04-22.
    with server.connect() as connection:
        for number in range(1, 4):
            connection.post(0, 0, 4, number)
            server.say(message(number, WRITE, bytes(16)))
        server.say(access_reply(4, 0, 0, b"abcd"))
        assert connection.read(0, 0, 4)
        assert connection.statistics.dropped_replies == 3


def test_a_stream_that_cannot_be_cut(server: ScriptedServer) -> None:
    with server.connect() as connection:
        server.say(message(1, READ, bytes(20), size=3))
        with pytest.raises(FramingError):
            connection.read(0, 0, 4)
        assert connection.is_closed


def post_for_ever(connection: Connection) -> None:
    number = 0
    while True:
        connection.post(0, 0, 8, number)
        number += 1


def test_a_socket_that_is_full(server: ScriptedServer) -> None:
    with server.connect(timeout=SHORT) as connection:
        with pytest.raises(CommandTimeoutError, match="has not read"):
            post_for_ever(connection)
        with pytest.raises(CommandTimeoutError, match="has not read"):
            connection.post(0, 0, 8, 0)
        with pytest.raises(CommandTimeoutError, match="did not answer REGION_READ"):
            connection.read(0, 0, 4)
        values = [heard.payload[16:] for heard in server.heard()]
        assert values == [value.to_bytes(8, "little") for value in range(len(values))]
        assert len(values) > 100


@given(chunk=st.integers(1, 60), values=st.lists(st.integers(0, 0xFFFF_FFFF), max_size=4))
def test_any_chunking(chunk: int, values: list[int]) -> None:
    ours, theirs = memory_pair()
    words = bytearray(message(0, Command.VERSION, b"\0\0\0\0"))
    commands, to_come = bytearray(), list(values)
    theirs.chunk = chunk

    def pump(_timeout: float) -> float:
        room = bytearray(256)
        with contextlib.suppress(BlockingIOError):
            commands.extend(room[: theirs.recvmsg_into([room])[0]])
        while len(commands) >= HEADER.size and len(commands) >= (size := HEADER.unpack_from(commands)[2]):
            number, command, *_ = HEADER.unpack_from(commands)
            if command == READ:
                words.extend(access_reply(number, 0, 0, to_come.pop(0).to_bytes(4, "little")))
            del commands[:size]
        if words:
            theirs.send(bytes(words[:chunk]))
            del words[:chunk]
        return 0.0001

    with Connection(ours, pump=pump) as connection:
        assert [connection.read(0, 0, 4) for _ in values] == values
    theirs.close()


def test_the_other_end_may_ask_for_memory_in_the_midst_of_an_access() -> None:
    ours, theirs = memory_pair()
    theirs.send(message(0, Command.VERSION, b"\0\0\0\0"))
    asked = 0

    def pump(_timeout: float) -> float:
        nonlocal asked
        asked += 1
        theirs.send(access_reply(asked, 0, 0, b"abcd") + message(9, Command.DMA_READ, bytes(16), flags=0))
        assert connection.serve()
        return 0.001

    with Connection(ours, pump=pump) as connection:
        assert connection.read(0, 0, 4) == int.from_bytes(b"abcd", "little")
        connection.post(0, 0, 4, 0)
        assert (connection.statistics.refused, connection.statistics.dropped_replies) == (2, 1)
    theirs.close()


def test_words() -> None:
    assert region_name(RegionIndex.ROM) == "ROM"
    assert region_name(77) == "region 77"
    assert describe_access("REGION_READ", 0, 0x20, 4) == "REGION_READ of 4 bytes at 0x20 of BAR0"


def test_the_fixture_closes_what_it_opened() -> None:
    with scripted() as server:
        pass
    assert server.channel_is_closed()
