from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from vfio_user.vm.qmp_handshake import negotiate

_GREETING = b'{"QMP": {"version": {}}}\r\n'


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_nothing_past_the_answer_is_taken(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(_GREETING + b'{"event": "RESUME"}\r\n{"return": {}}\r\n{"event": "next"}\r\n')
    assert negotiate(ours, 10)
    assert ours.recv(100) == b'{"event": "next"}\r\n'
    assert theirs.recv(100) == b'{"execute": "qmp_capabilities"}\n'


def test_greeting_alone_is_no_start(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(_GREETING)
    with pytest.raises(TimeoutError):
        negotiate(ours, 0.01)
    theirs.close()
    assert not negotiate(ours, 10)


def test_nonsense(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.sendall(b"what?\n")
    assert not negotiate(ours, 10)
