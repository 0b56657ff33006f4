"""Where a client's channel comes from: a server's address, or a connection this process was started with."""

from __future__ import annotations

import socket
from pathlib import Path

from vfio_user.errors import ConnectError
from vfio_user.transport.address import (
    Address,
    FdAddress,
    SystemdAddress,
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
)
from vfio_user.transport.stream_socket import inherited_socket, prepare
from vfio_user.transport.systemd import activated_fd

__all__ = ["connect"]


def connect(address: str | Path | Address, *, timeout: float = 5.0) -> socket.socket:
    """Connects to a server.

    Args:
        address: any of the forms of ``transport.address``; ``fd:N`` and ``systemd:`` are connected sockets this process
            was started with.
        timeout: seconds to wait for a place in the server's queue: most servers take one client at a time.

    Raises:
        AddressError: the address means nothing.
        ConnectError: nobody listens there, it names nobody to connect to, or the descriptor is no connection.

    Ownership: the socket is the caller's; with ``fd:N`` and ``systemd:`` the descriptor goes with it.
    """
    parsed = parse_address(address)
    if isinstance(parsed, SystemdAddress):
        return _inherited(activated_fd(parsed))
    if isinstance(parsed, FdAddress):
        return _inherited(parsed.fd)
    if isinstance(parsed, UnixAddress):
        return _connected(socket.AF_UNIX, str(parsed.path), str(parsed.path), timeout)
    if parsed.port == 0:
        raise ConnectError(f"cannot connect to {parsed}: port 0 is for listening on any; name the server's port")
    if isinstance(parsed, TcpAddress):
        return _connected_tcp(parsed, timeout)
    return _connected_vsock(parsed, timeout)


def _connected_tcp(address: TcpAddress, timeout: float) -> socket.socket:
    try:
        # Tries every address of the host, as long as each takes.
        channel = socket.create_connection((address.host, address.port), timeout)
    except OSError as exc:
        raise _failed(str(address), exc) from exc
    prepare(channel)
    return channel


def _connected_vsock(address: VsockAddress, timeout: float) -> socket.socket:
    if address.cid is None:
        raise ConnectError(
            f"cannot connect to {address}: it names no machine. "
            f"Write vsock:CID:{address.port}; CID 2 is the host, 1 this machine, 3 and up are guests"
        )
    return _connected(socket.AF_VSOCK, (address.cid, address.port), str(address), timeout)


def _connected(family: int, where: str | tuple[int, int], name: str, timeout: float) -> socket.socket:
    try:
        channel = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectError(f"cannot make a socket to connect to {name} with: {exc.strerror}") from exc
    try:
        channel.settimeout(timeout)
        channel.connect(where)
    except OSError as exc:
        channel.close()
        raise _failed(name, exc) from exc
    prepare(channel)
    return channel


def _failed(name: str, exc: OSError) -> ConnectError:
    if isinstance(exc, BlockingIOError):  # a UNIX socket's full queue: at once, whatever the timeout
        return ConnectError(f"cannot connect to {name}: its server is busy with another client, and more wait already")
    if isinstance(exc, TimeoutError):
        why = "nobody answers, or its server is busy with another client"
    else:
        why = exc.strerror or str(exc)
    return ConnectError(f"cannot connect to {name}: {why}. Is a server running there?")


def _inherited(fd: int) -> socket.socket:
    channel = inherited_socket(fd)
    try:
        channel.getpeername()
    except OSError as exc:
        channel.detach()
        raise ConnectError(f"descriptor {fd} is a socket, but not connected: {exc.strerror}") from exc
    prepare(channel)
    return channel
