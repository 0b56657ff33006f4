"""TCP ports and VM sockets to listen on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest

from tests.support.fds import no_leaks
from tests.support.network import needs_ipv6
from vfio_user.errors import ConnectError
from vfio_user.transport.address import TcpAddress, VsockAddress
from vfio_user.transport.connect import connect
from vfio_user.transport.port_listener import PortListener


@pytest.fixture
def vsock() -> None:
    """Skips where the kernel has no VM sockets."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError as exc:
        pytest.skip(f"this kernel has no AF_VSOCK: {exc.strerror}")


def exchange(listener: PortListener, client: socket.socket) -> None:
    channel = listener.accept()
    assert isinstance(channel, socket.socket)
    client.sendall(b"hello")
    assert channel.recv(10) == b"hello"
    channel.sendall(b"there")
    assert client.recv(10) == b"there"
    channel.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", pytest.param("::1", marks=needs_ipv6)])
def test_any_free_port_and_which_it_was(host: str) -> None:
    listener = PortListener(TcpAddress(host, 0))
    address = listener.address
    assert isinstance(address, TcpAddress)
    assert address.host == "127.0.0.1" if host == "127.0.0.1" else address.is_loopback
    assert address.port > 0
    assert listener.fileno() >= 0
    for _ in range(2):
        assert listener.accept() is None
        with connect(address) as client:
            exchange(listener, client)
    listener.close()
    assert listener.exhausted
    assert listener.fileno() == -1
    assert listener.accept() is None
    listener.close()
    with pytest.raises(ConnectError, match=rf"cannot connect to {str(address).replace('[', '.')[:4]}.*refused"):
        connect(address)


def test_a_port_a_server_has_just_left_can_be_taken() -> None:
    first = PortListener(TcpAddress("127.0.0.1", 0))
    address = first.address
    assert isinstance(address, TcpAddress)
    with connect(address) as client:
        channel = first.accept()
        assert channel is not None
        channel.close()  # the server hangs up first, so its end lingers in TIME_WAIT
        first.close()
        assert client.recv(1) == b""
    second = PortListener(address)
    assert second.address == address
    second.close()


def test_a_port_in_use() -> None:
    first = PortListener(TcpAddress("127.0.0.1", 0))
    why = rf"cannot listen on {first.address}: Address already in use. Give an address of this machine and a free port"
    assert isinstance(first.address, TcpAddress)
    with no_leaks(), pytest.raises(ConnectError, match=why):
        PortListener(first.address)
    first.close()


def test_a_host_that_is_not_this_machine() -> None:
    why = "cannot listen on tcp:192.0.2.1:0: Cannot assign requested address. Give an address of this machine and"
    with no_leaks(), pytest.raises(ConnectError, match=why):
        PortListener(TcpAddress("192.0.2.1", 0))


def test_a_host_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with (
        no_leaks(),
        pytest.raises(ConnectError, match=r"cannot listen on tcp:nowhere:0: Name or service not known. Gi"),
    ):
        PortListener(TcpAddress("nowhere", 0))
    with (
        no_leaks(),
        pytest.raises(ConnectError, match=r"cannot connect to tcp:nowhere:1: Name or service not known. I"),
    ):
        connect(TcpAddress("nowhere", 1))


def test_the_first_address_of_a_host_that_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listener = PortListener(TcpAddress("both", 0))
    assert isinstance(listener.address, TcpAddress)
    assert listener.address.host == "127.0.0.1"
    listener.close()
    with no_leaks():
        found[:] = found[:1]
        with pytest.raises(ConnectError, match="tcp:both:0: Cannot assign requested address"):
            PortListener(TcpAddress("both", 0))
        found.clear()
        with pytest.raises(ConnectError, match="tcp:both:0: the name stands for no address"):
            PortListener(TcpAddress("both", 0))


@needs_ipv6
def test_ipv6_does_not_take_ipv4_along() -> None:
    listener = PortListener(TcpAddress("::", 0))
    assert isinstance(listener.address, TcpAddress)
    with pytest.raises(ConnectError, match="Connection refused"):
        connect(TcpAddress("127.0.0.1", listener.address.port))
    listener.close()


def test_listening_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(self: socket.socket, backlog: int) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket.socket, "listen", listen)
    with no_leaks(), pytest.raises(ConnectError, match="Address already in use"):
        PortListener(TcpAddress("127.0.0.1", 0))


# VM sockets.


@pytest.mark.usefixtures("vsock")
def test_a_vm_socket_listens_whatever_the_cid() -> None:
    listener = PortListener(VsockAddress(None, 0))
    assert isinstance(listener.address, VsockAddress)
    assert listener.address.cid is None
    assert listener.address.port > 0
    assert listener.accept() is None
    with no_leaks(), pytest.raises(ConnectError, match=r"vsock:\d+: Address already in use.*the module vhost_vsock"):
        PortListener(listener.address)
    listener.close()


@pytest.mark.usefixtures("vsock")
def test_a_cid_that_is_not_this_machines() -> None:
    with no_leaks(), pytest.raises(ConnectError, match="cannot listen on vsock:77777:5000: Cannot assign requested"):
        PortListener(VsockAddress(77777, 5000))


def test_a_kernel_without_vm_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., socket.socket] = socket.socket

    def without(family: int, kind: int) -> socket.socket:
        if family == socket.AF_VSOCK:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without)
    with pytest.raises(ConnectError, match=r"vsock:5000: Address family not supported .* module vhost_vsock"):
        PortListener(VsockAddress(None, 5000))
    with pytest.raises(ConnectError, match="make a socket to connect to vsock:1:5000 with: Address family not supp"):
        connect(VsockAddress(1, 5000))


@pytest.mark.usefixtures("vsock")
def test_through_the_loopback_of_vm_sockets() -> None:
    listener = PortListener(VsockAddress(None, 0))
    assert isinstance(listener.address, VsockAddress)
    try:
        client = connect(VsockAddress(1, listener.address.port), timeout=0.5)
    except ConnectError as exc:
        listener.close()
        pytest.skip(f"this kernel has no vsock_loopback, so nothing here can connect: {exc}")
    with client:
        exchange(listener, client)
    listener.close()
