"""What carries one connection's bytes and descriptors, and the two operations every end does with it.

The seam is the socket's own vocabulary: a ``Channel`` is anything with these methods of ``socket.socket``. A real
socket fits as it is, so the message path pays for no wrapper; ``transport.memory`` offers the same without a kernel.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vfio_user.errors import ConnectionClosedError, FramingError, LocalProtocolError
from vfio_user.protocol.constants import MAX_FDS_PER_MESSAGE
from vfio_user.protocol.framing import close_fds

__all__ = ["ANCILLARY_SIZE", "RECEIVE_FLAGS", "SEND_FLAGS", "Channel", "ancillary_fds", "carries_fds", "send_some"]

#: Bytes of control data to make room for on every reception: all the descriptors one message can carry.
ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS_PER_MESSAGE * array.array("i").itemsize)

#: For every reception: descriptors must not leak into programs a device starts. Add MSG_DONTWAIT to poll.
RECEIVE_FLAGS = int(socket.MSG_CMSG_CLOEXEC)

#: For every send: a peer that does not read must not stop the thread that serves it.
SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Channel(Protocol):
    """A connected stream that may carry descriptors (see ``carries_fds``); ``socket.socket`` is one."""

    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = ..., flags: int = ..., /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """As ``socket.recvmsg_into``."""

    def sendmsg(self, buffers: Iterable[Any], ancdata: Iterable[Any] = ..., flags: int = ..., /) -> int:
        """As ``socket.sendmsg``."""

    def send(self, data: Any, flags: int = ..., /) -> int:
        """As ``socket.send``."""

    def fileno(self) -> int:
        """The descriptor to wait on; -1 when there is none."""

    def close(self) -> None:
        """Closes this end. Idempotent."""


def carries_fds(channel: Channel) -> bool:
    """Descriptors can be sent over it: over UNIX sockets, not over TCP or vsock.

    A channel that is no socket says so by an attribute of this name; without one, it carries them.
    """
    if isinstance(channel, socket.socket):
        return channel.family == socket.AF_UNIX
    return bool(getattr(channel, "carries_fds", True))


def ancillary_fds(ancdata: Iterable[tuple[int, int, bytes]], flags: int) -> list[int]:
    """The descriptors that came with one ``recvmsg``; they are now the caller's to close.

    Raises:
        FramingError: the control data was cut short (MSG_CTRUNC), so some descriptors are lost. Those that came are
            closed.
    """
    fds = array.array("i")
    for level, kind, data in ancdata:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    received = fds.tolist()
    if flags & socket.MSG_CTRUNC:
        close_fds(received)
        raise FramingError(
            "file descriptors were lost on reception (MSG_CTRUNC): "
            "too many came in one message, or this process has too many open"
        )
    return received


def send_some(channel: Channel, parts: Sequence[bytes | memoryview], fds: Sequence[int] = ()) -> int:
    """Sends as much of a message as fits now, descriptors with its first byte; never waits.

    Returns:
        Bytes sent; 0 when the peer must read first. Descriptors went if and only if it is not 0.

    Raises:
        ConnectionClosedError: the peer is gone.
        LocalProtocolError: there are descriptors, and the channel carries none. Nothing has been sent.

    Ownership: ``fds`` stay the caller's.
    """
    ancdata = []
    if fds:
        if not carries_fds(channel):  # TCP and vsock would send the message and drop them without a word
            raise LocalProtocolError(
                f"{len(fds)} file descriptors cannot be sent over this connection: only UNIX sockets carry them. "
                f"Connect by unix:PATH, or do without: DMA by messages, no mapped memory, no eventfds"
            )
        ancdata.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
    try:
        return channel.sendmsg(parts, ancdata, SEND_FLAGS)
    except BlockingIOError:
        return 0
    except OSError as exc:
        raise ConnectionClosedError(f"the peer is gone: {exc.strerror or exc}") from exc
