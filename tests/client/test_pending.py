"""Commands under way: what a reply may be. (Connections prove it over the wire.)"""

from __future__ import annotations

import os

import pytest

from tests.client.scripted import ScriptedServer, message
from tests.support.fds import memory_file
from vfio_user.client.pending import PendingReplies, PendingReply, Reply
from vfio_user.errors import CommandError, ConnectionClosedError, RemoteProtocolError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header

COMMAND = Command.DEVICE_GET_REGION_INFO


def reply(payload: bytes = b"", *, flags: int = 1, error: int = 0, command: int = COMMAND) -> Header:
    return Header.decode(message(5, command, payload, flags=flags, error=error))


@pytest.fixture
def pending(server: ScriptedServer) -> PendingReply:
    return PendingReply(server.connect(), 5, COMMAND, "DEVICE_GET_REGION_INFO of BAR0", 4, 1)


def test_a_reply_as_it_should_be(pending: PendingReply) -> None:
    fds = [memory_file()]
    (fd,) = fds
    assert pending.is_done is False
    pending.complete(reply(b"abcd"), b"abcd", fds)
    assert (pending.is_done, fds) == (True, [])
    assert pending.result() == Reply(b"abcd", [fd])
    os.close(fd)


@pytest.mark.parametrize(
    ("header", "payload", "fds", "error", "why"),
    [
        (reply(flags=0x21, error=5), b"", 0, CommandError, "refused DEVICE_GET_REGION_INFO of BAR0: Input/output"),
        (reply(command=4), b"", 0, RemoteProtocolError, "was answered as DEVICE_GET_INFO"),
        (reply(b"abcde"), b"abcde", 0, RemoteProtocolError, "payload of 5 bytes; it has 4 at most"),
        (reply(), b"", 2, RemoteProtocolError, "came with 2 file descriptors; it has 1 at most"),
        (reply(flags=0x21), b"", 1, CommandError, "Input/output"),
    ],
)
def test_replies_as_they_should_not_be(
    pending: PendingReply, header: Header, payload: bytes, fds: int, error: type[Exception], why: str
) -> None:
    received = list(range(1000, 1000 + fds))
    pending.complete(header, payload, received)
    assert len(received) == fds, "descriptors of a refused reply are left for the connection to close"
    with pytest.raises(error, match=why):
        pending.result()


def test_no_reply_at_all(pending: PendingReply) -> None:
    pending.fail(ConnectionClosedError("gone"))
    with pytest.raises(ConnectionClosedError, match="gone"):
        pending.result()


def test_all_of_a_connection(server: ScriptedServer) -> None:
    done: list[str] = []
    replies = PendingReplies(server.connect())
    first = replies.expect(replies.fresh_id(), COMMAND, "the first", 0)
    second = replies.expect(replies.fresh_id(), COMMAND, "the second", 0)
    first.on_done, second.on_done = (lambda: done.append("first")), (lambda: done.append("second"))
    assert replies.reply_came(Header(0, COMMAND, 16, 1, 0), b"", [])
    assert (first.is_done, second.is_done, done) == (True, False, ["first"])
    assert not replies.reply_came(Header(0, COMMAND, 16, 1, 0), b"", [])
    # Given up: its id is used again when its reply has come, and not before.
    replies.abandon(second)
    replies.abandon(first)
    assert (replies.waiting, replies.abandoned) == ({}, {1})
    assert 1 not in {replies.fresh_id() for _ in range((1 << 16) - 1)}
    assert not replies.reply_came(Header(1, COMMAND, 16, 1, 0), b"", [])
    assert replies.fresh_id() in range(1 << 16)
    assert replies.abandoned == set()
    third = replies.expect(5, COMMAND, "the third", 0)
    replies.fail_all(ConnectionClosedError("over"))
    with pytest.raises(ConnectionClosedError, match="ended before the third was answered: over"):
        third.result()


@pytest.mark.parametrize(
    ("flags", "message_id", "payload", "taken"),
    [
        (0x01, 9, b"", True),
        (0x21, 9, b"", True),
        (0x20, 5, b"", True),
        (0x20, 5, b"x", False),
        (0x20, 9, b"", False),
        (0x00, 5, b"", False),
        (0x02, 5, b"", False),
    ],
)
def test_what_is_taken_for_a_reply(
    server: ScriptedServer, flags: int, message_id: int, payload: bytes, taken: bool
) -> None:
    replies = PendingReplies(server.connect())
    replies.expect(5, COMMAND, "a command", 0)
    assert replies.takes(Header(message_id, COMMAND, 16 + len(payload), flags, 0), payload) is taken


def test_no_id_is_left(server: ScriptedServer) -> None:
    replies = PendingReplies(server.connect())
    replies.abandoned.update(range(1 << 16))
    with pytest.raises(ConnectionClosedError, match="65536 commands have had no reply"):
        replies.fresh_id()
