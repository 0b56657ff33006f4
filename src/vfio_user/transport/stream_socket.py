"""What every stream socket of ours needs, whatever its family: accepting, options, and whose it is.

Families differ in little: only UNIX sockets carry descriptors and know their peer's process, and only TCP holds small
messages back unless told not to, and never notices that a machine has gone.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from pathlib import Path

from vfio_user.errors import AddressError, ConnectError
from vfio_user.transport.address import Address, TcpAddress, UnixAddress, VsockAddress
from vfio_user.transport.channel import Channel

__all__ = ["accept", "describe_peer", "inherited_socket", "listening_address", "prepare"]

_TCP = (socket.AF_INET, socket.AF_INET6)

#: When a TCP peer counts as gone: silent for this many seconds, then for this many probes so many seconds apart. A
#: server takes one client at a time, so a client whose machine lost power would keep all others out for ever.
_KEEPALIVE_IDLE = 30
_KEEPALIVE_INTERVAL = 10
_KEEPALIVE_PROBES = 3

#: What accept(2) fails with for reasons of that one connection, or for lack of descriptors or memory: then the client
#: waits, and may be luckier later.
_FLEETING = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EPROTO, errno.EPERM),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET, errno.ENOPROTOOPT),
    }
)

#: What the kernel reports for "any" CID.
_CID_ANY = 0xFFFF_FFFF


def accept(listening: socket.socket) -> socket.socket | None:
    """The next connection of a non-blocking socket, prepared; None if none can be had now.

    Raises:
        OSError: the socket cannot accept at all.
    """
    try:
        connection, _ = listening.accept()
    except BlockingIOError:
        return None
    except OSError as exc:
        if exc.errno in _FLEETING:
            return None
        raise
    try:
        prepare(connection)
    except OSError:  # it is gone again
        connection.close()
        return None
    return connection


def prepare(connection: socket.socket) -> None:
    """Makes a connection one of ours: blocking, not inherited by other programs, and over TCP prompt and watchful."""
    connection.setblocking(True)
    connection.set_inheritable(False)
    if connection.family in _TCP:
        # A command and its reply are one small message each way: waiting for more to send costs 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


def listening_address(listening: socket.socket) -> Address | None:
    """Where a listening socket is reached; None where no address says it (a relative path, an abstract name)."""
    name = listening.getsockname()
    if listening.family in _TCP:
        return TcpAddress(name[0], name[1])
    if listening.family == socket.AF_VSOCK:
        return VsockAddress(None if name[0] == _CID_ANY else name[0], name[1])
    if isinstance(name, str) and name.startswith("/"):
        with contextlib.suppress(AddressError):  # 108 bytes without a NUL: Linux binds that, we do not
            return UnixAddress(Path(name))
    return None


def describe_peer(channel: Channel) -> str:
    """Who connected, for the log: the process, or whence, as far as the kernel tells."""
    if not isinstance(channel, socket.socket):
        return "client"
    with contextlib.suppress(OSError, AddressError):
        if channel.family == socket.AF_UNIX:
            pid, uid, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            # A peer of another PID namespace has no number here.
            return f"client (pid {pid}, uid {uid})" if pid else "client"
        name = channel.getpeername()
        if channel.family == socket.AF_VSOCK:
            return f"client ({VsockAddress(name[0], name[1])})"
        return f"client ({TcpAddress(name[0], name[1])})"
    return "client"


def inherited_socket(fd: int) -> socket.socket:
    """A stream socket this process was started with; descriptors it starts others with stay out of them.

    Raises:
        ConnectError: the descriptor is not open, or no stream socket. It stays the caller's then.
    """
    try:
        inherited = socket.socket(fileno=fd)
    except OSError as exc:
        raise ConnectError(f"descriptor {fd} is no socket this process was started with: {exc.strerror}") from exc
    if inherited.type != socket.SOCK_STREAM:
        inherited.detach()
        raise ConnectError(f"descriptor {fd} is a socket, but not a stream one")
    inherited.set_inheritable(False)
    return inherited
