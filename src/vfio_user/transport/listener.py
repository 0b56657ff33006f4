"""Where connections come from: a UNIX socket file, or a descriptor this process was started with, or a port.

Spec: "Backend program conventions": ``--socket-path`` and ``--fd``.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vfio_user.errors import ConnectError
from vfio_user.transport.address import Address, FdAddress, SystemdAddress, UnixAddress, exposure
from vfio_user.transport.channel import Channel
from vfio_user.transport.port_listener import PortListener
from vfio_user.transport.stream_socket import accept, inherited_socket, listening_address, prepare
from vfio_user.transport.systemd import activated_fd

__all__ = ["FdListener", "Listener", "UnixListener", "listen"]

log = logging.getLogger("vfio_user.transport")

#: Clients that may wait while one is served. libvfio-user allows none; one lets a client that reconnects at once in.
_BACKLOG = 1

#: Seconds to wait for the lock on a directory. Ours is held for a moment; another's (somebody's ``flock DIR ...``,
#: which may even be what started us) may be held for ever, and must not stop us.
_LOCK_PATIENCE = 1.0


class Listener(Protocol):
    """A source of connections."""

    def accept(self) -> Channel | None:
        """The next connection, if one waits; never blocks."""

    def fileno(self) -> int:
        """Readable when a connection waits; -1 when there is nothing to wait for."""

    @property
    def address(self) -> Address:
        """Where clients connect, as far as it is known; else the descriptor it was made of."""

    @property
    def exhausted(self) -> bool:
        """No connection will ever come again."""

    def close(self) -> None:
        """Stops listening. Connections made go on. Idempotent."""


def listen(address: Address, *, mode: int | None = None, group: str | int | None = None) -> Listener:
    """Listens at an address.

    Args:
        address: where.
        mode: permission bits of a socket file; None leaves them to the umask.
        group: name or number of a socket file's group; None leaves it.

    Raises:
        ConnectError: it cannot be done; the text says why and what to do.
    """
    if isinstance(address, UnixAddress):
        return UnixListener(address, mode=mode, group=group)
    if mode is not None or group is not None:
        raise ConnectError(f"{address} has neither mode nor group: only a socket file this process makes has them")
    listener: Listener
    if isinstance(address, FdAddress):
        listener = FdListener(address.fd)
    elif isinstance(address, SystemdAddress):
        listener = FdListener(activated_fd(address))
    else:
        listener = PortListener(address)
    if warning := exposure(listener.address):
        log.warning("%s", warning)
    return listener


class UnixListener:
    """Listens on a socket file, which it creates, and removes again on ``close``.

    A file left behind by a server that died is replaced; one that a server listens on is not, nor is anything that is
    no socket. Nobody can connect before mode and group are set, as it only then starts to listen.

    Raises:
        ConnectError: the path is in use, cannot be created there, or its mode or group cannot be set.
    """

    def __init__(self, address: UnixAddress, *, mode: int | None = None, group: str | int | None = None) -> None:
        self.address: Address = address
        self.path = address.path
        self.exhausted = False
        self._identity: tuple[int, int] | None = None
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            raise ConnectError(f"cannot make a socket to listen on {self.path}: {exc.strerror}") from exc
        try:
            with _locked(self.path.parent):
                _remove_stale(self.path)
                self._socket.bind(str(self.path))
                made = self.path.lstat()
                self._identity = made.st_dev, made.st_ino
                if group is not None:
                    os.chown(self.path, -1, _group_id(group))
                if mode is not None:
                    self.path.chmod(mode)
                self._socket.listen(_BACKLOG)
        except OSError as exc:
            self.close()
            raise ConnectError(f"cannot listen on {self.path}: {exc.strerror or exc}") from exc
        except ConnectError:
            self.close()
            raise

    def accept(self) -> Channel | None:
        """See ``Listener.accept``."""
        return None if self.exhausted else accept(self._socket)

    def fileno(self) -> int:
        """See ``Listener.fileno``."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stops listening and removes the socket file, unless another has taken its place."""
        self.exhausted = True
        self._socket.close()
        if self._identity is not None:
            with contextlib.suppress(OSError):
                found = self.path.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    self.path.unlink()
            self._identity = None


class FdListener:
    """Takes connections from an inherited descriptor: a listening socket, or one connection that is there already.

    Attributes:
        address: where the listening socket is reached, if its name says it; else the descriptor.

    Raises:
        ConnectError: the descriptor is not open, or no stream socket.
    """

    def __init__(self, fd: int) -> None:
        inherited = inherited_socket(fd)
        self._socket: socket.socket | None = inherited
        self._listening = bool(inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self.address: Address = (listening_address(inherited) if self._listening else None) or FdAddress(fd)
        if self._listening:
            inherited.setblocking(False)
        else:
            prepare(inherited)

    @property
    def exhausted(self) -> bool:
        """See ``Listener.exhausted``: one connection is all a connected descriptor gives."""
        return self._socket is None

    def accept(self) -> Channel | None:
        """See ``Listener.accept``."""
        if self._socket is None:
            return None
        if not self._listening:
            connection, self._socket = self._socket, None
            return connection
        return accept(self._socket)

    def fileno(self) -> int:
        """See ``Listener.fileno``."""
        return self._socket.fileno() if self._socket is not None and self._listening else -1

    def close(self) -> None:
        """Closes the descriptor, unless it became a connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps other servers from looking for a stale file in that directory while we replace one.

    Without it, two servers started at once could both find the file stale, and the second would remove the first's.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while not _try_lock(fd) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """Locks a file unless another has; a file system without locks has nothing to wait for."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _remove_stale(path: Path) -> None:
    """Removes a socket file nobody listens on.

    Raises:
        ConnectError: somebody does, or it is no socket.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConnectError(f"{path} exists and is no socket; it stays. Choose another path, or remove it yourself")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return  # its server has just removed it
        except BlockingIOError:
            pass  # its queue of waiting clients is full: very much alive
    raise ConnectError(f"{path} is in use: a server listens on it. Stop that one, or choose another path")


def _group_id(group: str | int) -> int:
    """The number of a group."""
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConnectError(f"there is no group {group!r} on this machine") from None
