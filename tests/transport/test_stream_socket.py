"""Options of connections, where a listening socket is reached, and who the peer is."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.support.fds import close_all, memory_file, no_leaks
from tests.support.network import needs_ipv6
from vfio_user.errors import ConnectError
from vfio_user.transport import stream_socket
from vfio_user.transport.address import TcpAddress, UnixAddress
from vfio_user.transport.memory import memory_pair
from vfio_user.transport.stream_socket import accept, describe_peer, inherited_socket, listening_address, prepare


@pytest.fixture(params=["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def tcp(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A listening, non-blocking TCP socket."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server((request.param, 0), family=family) as listening:
        listening.setblocking(False)
        yield listening


def test_a_tcp_connection_is_prompt_and_watchful(tcp: socket.socket) -> None:
    assert accept(tcp) is None
    with socket.create_connection(tcp.getsockname()[:2]) as client:
        connection = accept(tcp)
        assert connection is not None
        with connection:
            assert connection.getblocking()
            assert not connection.get_inheritable()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            # A machine that lost power keeps others out for a minute, not for the two hours of the kernel.
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [connection.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3]
            host, port = client.getsockname()[:2]
            assert describe_peer(connection) == f"client ({TcpAddress(host, port)})"
            assert listening_address(tcp) == TcpAddress(*tcp.getsockname()[:2])


class Failing:
    """A listening socket whose ``accept`` fails."""

    def __init__(self, number: int) -> None:
        self.number = number

    def accept(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "name", ["EAGAIN", "EMFILE", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "EHOSTUNREACH", "ENETDOWN"]
)
def test_one_connection_that_cannot_be_had_is_not_the_end(name: str) -> None:
    assert accept(cast("socket.socket", Failing(getattr(errno, name)))) is None


@pytest.mark.parametrize("name", ["EBADF", "EINVAL", "ENOTSOCK", "EOPNOTSUPP"])
def test_a_socket_that_cannot_accept_is(name: str) -> None:
    with pytest.raises(OSError, match=os.strerror(getattr(errno, name))):
        accept(cast("socket.socket", Failing(getattr(errno, name))))


def test_a_connection_that_is_gone_before_it_is_prepared(tcp: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_connection: socket.socket) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(stream_socket, "prepare", fail)
    with socket.create_connection(tcp.getsockname()[:2]) as client:
        assert accept(tcp) is None
        assert client.recv(1) == b""


def test_a_unix_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.set_inheritable(True)
        prepare(ours)
        assert ours.getblocking()
        assert not ours.get_inheritable()
        assert describe_peer(ours) == f"client (pid {os.getpid()}, uid {os.getuid()})"


def test_peers_nobody_knows() -> None:
    one, other = memory_pair()
    assert describe_peer(one) == "client"
    one.close()
    other.close()
    with socket.socket(socket.AF_INET) as alone:
        assert describe_peer(alone) == "client"


def test_where_a_unix_socket_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: list[tuple[str | bytes, UnixAddress | None]] = [
        (f"{tmp_path}/s", UnixAddress(tmp_path / "s")),
        ("relative", None),
        (b"\0abstract-vfio-user-test", None),
    ]
    for name, address in names:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(name)
            assert listening_address(listening) == address


def test_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    with ours, inherited_socket(theirs.detach()) as inherited:
        assert not inherited.get_inheritable()
        ours.sendall(b"hello")
        assert inherited.recv(10) == b"hello"


def test_what_cannot_be_inherited_stays_the_callers() -> None:
    datagrams = [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
    file = memory_file()
    with no_leaks():
        with pytest.raises(ConnectError, match=rf"descriptor {datagrams[0]} is a socket, but not a stream one"):
            inherited_socket(datagrams[0])
        with pytest.raises(ConnectError, match=rf"descriptor {file} is no socket .*: Socket operation on non-socket"):
            inherited_socket(file)
    close_all([*datagrams, file])
