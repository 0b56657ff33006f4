"""Listens on a TCP port or on one of a VM socket."""

from __future__ import annotations

import socket
from typing import Any

from vfio_user.errors import ConnectError
from vfio_user.transport.address import Address, TcpAddress, VsockAddress
from vfio_user.transport.channel import Channel
from vfio_user.transport.stream_socket import accept, listening_address

__all__ = ["PortListener"]

#: Clients that may wait while one is served; see ``listener``.
_BACKLOG = 1


class PortListener:
    """Listens on a port.

    Args:
        address: where. Port 0 takes any that is free.

    Attributes:
        address: where clients connect: the host's number instead of its name, and the port there is.
        exhausted: it was closed.

    Raises:
        ConnectError: the port is in use, the host is not this machine, or it takes privileges or kernel modules this
            process does not have.

    Ownership: ``close`` it.
    """

    def __init__(self, address: TcpAddress | VsockAddress) -> None:
        self.exhausted = False
        try:
            self._socket = _bound_tcp(address) if isinstance(address, TcpAddress) else _bound_vsock(address)
        except OSError as exc:
            raise ConnectError(f"cannot listen on {address}: {exc.strerror or exc}{_way_out(address)}") from exc
        try:
            self._socket.listen(_BACKLOG)
        except OSError as exc:  # two may bind to a port (SO_REUSEADDR), and one listens
            self._socket.close()
            raise ConnectError(f"cannot listen on {address}: {exc.strerror or exc}{_way_out(address)}") from exc
        self.address: Address = listening_address(self._socket) or address

    def accept(self) -> Channel | None:
        """See ``Listener.accept``."""
        return None if self.exhausted else accept(self._socket)

    def fileno(self) -> int:
        """See ``Listener.fileno``."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stops listening."""
        self.exhausted = True
        self._socket.close()


def _bound_tcp(address: TcpAddress) -> socket.socket:
    """A socket bound to the first of the host's addresses this machine has."""
    failure = OSError("the name stands for no address")
    for family, _, _, _, where in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            return _bound_to(family, where)
        except OSError as exc:  # localhost may be ::1 first, where there is no IPv6
            failure = exc
    raise failure


def _bound_to(family: int, where: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A port a server has just left is not taken; the kernel would keep it for a minute.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # [::] is IPv6 alone on every machine, whatever its sysctl says.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(where)
    except BaseException:
        bound.close()
        raise
    return bound


def _bound_vsock(address: VsockAddress) -> socket.socket:
    bound = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        cid = socket.VMADDR_CID_ANY if address.cid is None else address.cid
        bound.bind((cid, address.port or socket.VMADDR_PORT_ANY))
    except BaseException:
        bound.close()
        raise
    return bound


def _way_out(address: TcpAddress | VsockAddress) -> str:
    if isinstance(address, TcpAddress):
        return ". Give an address of this machine and a free port, or port 0 for any"
    return ". Give a CID of this machine and a free port, or port 0 for any; a host needs the module vhost_vsock"
