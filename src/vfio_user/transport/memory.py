"""A connection inside one process: what goes in at one end comes out at the other, descriptors included.

For tests, and for driving a device without any socket. The reader decides how it is cut: ``chunk`` limits what one
reception returns. As the kernel does, a reception ends with the message that carried descriptors.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Iterable
from typing import Any

__all__ = ["MemoryChannel", "memory_pair"]


class MemoryChannel:
    """One end of ``memory_pair``; a ``Channel``.

    Attributes:
        chunk: most bytes one reception returns; None for as many as there are room for.
        carries_fds: descriptors can be sent from this end; False makes it the likes of TCP.

    Ownership: descriptors are duplicated when sent; those never received are closed with the receiving end.

    Threading: one thread for both ends.
    """

    def __init__(self) -> None:
        self.chunk: int | None = None
        self.carries_fds = True
        self._incoming: deque[tuple[bytes, list[int]]] = deque()
        self._peer: MemoryChannel | None = None
        self._closed = False

    def recvmsg_into(
        self, buffers: Iterable[Any], _ancbufsize: int = 0, _flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """As ``socket.recvmsg_into`` with MSG_DONTWAIT.

        Raises:
            BlockingIOError: nothing is there to receive.
            OSError: this end is closed.
        """
        self._check_open()
        (view,) = (memoryview(buffer) for buffer in buffers)
        room = len(view) if self.chunk is None else min(len(view), self.chunk)
        if not self._incoming:
            if self._peer is None or self._peer._closed:
                return 0, [], 0, None
            raise BlockingIOError("nothing to receive")
        count = 0
        ancdata: list[tuple[int, int, bytes]] = []
        while self._incoming and count < room and not ancdata:
            data, fds = self._incoming.popleft()
            taken = min(len(data), room - count)
            view[count : count + taken] = data[:taken]
            count += taken
            if taken < len(data):
                self._incoming.appendleft((data[taken:], []))
            if fds:
                ancdata.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes()))
        return count, ancdata, 0, None

    def sendmsg(self, buffers: Iterable[Any], ancdata: Iterable[Any] = (), _flags: int = 0, /) -> int:
        """As ``socket.sendmsg``; everything is taken at once.

        Raises:
            BrokenPipeError: the other end is closed.
            OSError: this end is closed.
        """
        self._check_open()
        if self._peer is None or self._peer._closed:
            raise BrokenPipeError(errno.EPIPE, "the other end is closed")
        data = b"".join(bytes(buffer) for buffer in buffers)
        if not data:
            return 0  # a stream has no empty segments, and descriptors travel with a byte or not at all
        fds = [os.dup(fd) for _, _, numbers in ancdata for fd in array.array("i", bytes(numbers))]
        self._peer._incoming.append((data, fds))
        return len(data)

    def send(self, data: Any, _flags: int = 0, /) -> int:
        """As ``socket.send``; everything is taken at once.

        Raises:
            BrokenPipeError: the other end is closed.
            OSError: this end is closed.
        """
        return self.sendmsg([data])

    def fileno(self) -> int:
        """There is nothing to wait on."""
        return -1

    def close(self) -> None:
        """Closes this end, and the descriptors it never received. Idempotent."""
        self._closed = True
        for _, fds in self._incoming:
            for fd in fds:
                os.close(fd)
        self._incoming.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "this end is closed")


def memory_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Returns the two ends of a connection inside this process; close both."""
    one, other = MemoryChannel(), MemoryChannel()
    one._peer, other._peer = other, one
    return one, other
