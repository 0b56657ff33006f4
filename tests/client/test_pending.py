"""Commands under way: what a reply may be. (Connections prove it over the wire.)"""

from __future__ import annotations

import os

import pytest

from tests.client.scripted import ScriptedServer, message
from tests.support.fds import memory_file
from vfio_user.client.pending import PendingReply, Reply
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
