"""Connecting to every kind of address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.support.fds import close_all, memory_file, no_leaks
from tests.support.network import needs_ipv6
from vfio_user.errors import AddressError, ConnectError
from vfio_user.transport.address import Address, FdAddress, TcpAddress, UnixAddress, VsockAddress
from vfio_user.transport.connect import connect
from vfio_user.transport.listener import listen


@pytest.mark.parametrize("kind", ["unix", "tcp", pytest.param("ipv6", marks=needs_ipv6)])
def test_what_listen_listens_on(tmp_path: Path, kind: str) -> None:
    addresses: dict[str, Address] = {
        "unix": UnixAddress(tmp_path / "s"),
        "tcp": TcpAddress("127.0.0.1", 0),
        "ipv6": TcpAddress("::1", 0),
    }
    listener = listen(addresses[kind])
    # As text, as users give it.
    with connect(str(listener.address), timeout=2) as client:
        channel = listener.accept()
        assert isinstance(channel, socket.socket)
        assert client.gettimeout() is None
        assert not client.get_inheritable()
        if kind != "unix":
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        client.sendall(b"hello")
        assert channel.recv(10) == b"hello"
        channel.close()
    listener.close()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/nowhere/edu.sock", "cannot connect to /nowhere/edu.sock: No such file or directory. Is a server running"),
        ("tcp:0", "cannot connect to tcp:127.0.0.1:0: port 0 is for listening on any; name the server's port"),
        ("vsock:2:0", "cannot connect to vsock:2:0: port 0 is for listening on any"),
        ("vsock:5000", r"cannot connect to vsock:5000: it names no machine. Write vsock:CID:5000; CID 2 is the host"),
        ("systemd:", "systemd passed no sockets"),
    ],
)
def test_nobody_there(address: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with no_leaks(), pytest.raises(ConnectError, match=why):
        connect(address)


def test_a_port_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with no_leaks(), pytest.raises(ConnectError, match=f"tcp:127.0.0.1:{port}: Connection refused. Is a server runn"):
        connect(f"tcp:{port}")


def test_an_address_that_means_nothing() -> None:
    with pytest.raises(AddressError, match="unknown scheme 'udp'"):
        connect("udp:1")


def test_a_unix_server_whose_queue_is_full(tmp_path: Path) -> None:
    listener = listen(UnixAddress(tmp_path / "s"))
    waiting = [connect(tmp_path / "s") for _ in range(2)]
    with (
        no_leaks(),
        pytest.raises(ConnectError, match=r"/s: its server is busy with another client, and more wait already$"),
    ):
        connect(tmp_path / "s", timeout=0.01)
    for client in waiting:
        client.close()
    listener.close()


def test_a_tcp_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_connection(where: tuple[str, int], timeout: float) -> socket.socket:
        assert (where, timeout) == (("192.0.2.1", 1), 7.0)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(ConnectError, match=r"tcp:192.0.2.1:1: nobody answers, or its server is busy with another"):
        connect("tcp:192.0.2.1:1", timeout=7.0)


def test_an_inherited_connection() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    theirs.set_inheritable(True)
    with ours, connect(f"fd:{theirs.detach()}") as client:
        assert client.getblocking()
        assert not client.get_inheritable()
        client.sendall(b"hello")
        assert ours.recv(10) == b"hello"


def test_what_is_no_connection_stays_the_callers() -> None:
    lone, file = socket.socket(socket.AF_UNIX).detach(), memory_file()
    datagrams = [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
    with no_leaks():
        with pytest.raises(
            ConnectError, match=rf"descriptor {lone} is a socket, but not connected: Transport endpoint"
        ):
            connect(FdAddress(lone))
        with pytest.raises(ConnectError, match=rf"descriptor {file} is no socket this process was started with"):
            connect(FdAddress(file))
        with pytest.raises(ConnectError, match=rf"descriptor {datagrams[0]} is a socket, but not a stream one"):
            connect(FdAddress(datagrams[0]))
    close_all([lone, file, *datagrams])


def test_a_socket_systemd_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    # Descriptors from 3 on are pytest's own here: as many nameless ones as it takes to come to this one.
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", str(fd - 2))
    monkeypatch.setenv("LISTEN_FDNAMES", ":".join([*["other"] * (fd - 3), "ours"]))
    with ours, connect("systemd:ours") as client:
        assert client.fileno() == fd
        client.sendall(b"hello")
        assert ours.recv(10) == b"hello"


def test_out_of_reach_by_vsock() -> None:
    # With or without VM sockets, and whatever listens: nobody is CID 0.
    with no_leaks(), pytest.raises(ConnectError, match="vsock:0:1"):
        connect(VsockAddress(0, 1), timeout=0.2)
