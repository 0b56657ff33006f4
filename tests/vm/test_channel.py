from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from vfio_user.vm.channel import Channel, ChannelClosedError, ChannelTimeoutError

_SOON = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        yield channel, theirs
    channel.close()


def _mark(channel: Channel, mark: bytes, seconds: float = _SOON) -> tuple[bytes, bytes]:
    return channel.read_mark(mark, time.monotonic() + seconds)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_marks_however_they_arrive(chunk: int) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # each piece is one receive
    channel = Channel(ours)
    stream = b"out\n\n<<7 0>>\n<<x>>\n\n<<7\n<<8 1>>\n\n<<8 2 words>>\n"
    with theirs:
        for start in range(0, len(stream), chunk):
            theirs.sendall(stream[start : start + chunk])
        assert _mark(channel, b"7") == (b"out\n", b"0")
        assert _mark(channel, b"8") == (b"<<x>>\n\n<<7", b"1")
        assert _mark(channel, b"8") == (b"", b"2 words")
    channel.close()


def test_what_is_not_taken_stays(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    theirs.sendall(b"some\n<<a 1>>\n")
    with pytest.raises(ChannelTimeoutError):
        _mark(channel, b"b", 0)
    theirs.close()
    with pytest.raises(ChannelClosedError):
        _mark(channel, b"b")
    assert _mark(channel, b"a") == (b"some", b"1")


def test_last_mark(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    assert channel.last_mark(b"exit") is None
    theirs.sendall(b"noise\n<<exit 1>>\nmore\n<<exit 2>>\n")
    assert channel.last_mark(b"exit") == b"2"
    channel.close()
    assert channel.last_mark(b"exit") == b"2"
    with pytest.raises(ChannelClosedError):
        _mark(channel, b"never")


def test_sending(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    channel.send(b"run\n")
    assert theirs.recv(10) == b"run\n"
    theirs.close()
    with pytest.raises(ChannelClosedError):
        channel.send(b"run\n")


def test_reset_is_an_end(ends: tuple[Channel, socket.socket]) -> None:
    channel, theirs = ends
    channel.send(b"what nobody reads")
    theirs.close()  # unread bytes make the end a reset
    with pytest.raises(ChannelClosedError):
        _mark(channel, b"a")
