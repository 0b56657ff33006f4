"""One stream of messages: what comes is cut into messages and handed on, what there is no room for is kept.

Nothing here waits, so the blocking client and the asyncio one share it.

Nothing the server sends is trusted. A stream that cannot be cut into messages any more is of no more use, and says so
by an exception. Descriptors nobody takes are closed. What a server asks for and does not read is not made any longer: a
thousand requests fit in a few kilobytes, their answers in a gigabyte.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence

from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import HEADER_SIZE
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, send_some

__all__ = ["MessageStream"]

#: Bytes of replies a server may leave unread before nothing more is taken from it.
_MAX_UNSENT = 4 << 20

_POLL = RECEIVE_FLAGS | socket.MSG_DONTWAIT


class MessageStream:
    """See the module.

    Args:
        channel: a connected socket, or another channel.
        max_message_size: bytes of the largest message that is taken, header included.
        handle: gets each message: its header, what follows it, and its descriptors; it takes from the list what it
            keeps.

    Attributes:
        channel: as given.
        frames: the receive buffer.
        outbox: what waits to be sent: bytes, and the descriptors that go with the first of them.
        unsent: bytes of it.

    ``send``, ``flush``, ``receive`` and ``received`` raise ConnectionClosedError (the server is gone) and
    RemoteProtocolError (what came is no message, or ``handle`` raised it); the stream is of no more use then.

    Ownership: ``close`` it, and the channel with it.
    """

    def __init__(
        self, channel: Channel, max_message_size: int, handle: Callable[[Header, bytes, list[int]], None]
    ) -> None:
        self.channel = channel
        self.frames = FrameBuffer(max_message_size)
        self.outbox: deque[tuple[memoryview, list[int]]] = deque()
        self.unsent = 0
        self._view = memoryview(self.frames.buffer)
        self._handle = handle

    @property
    def events(self) -> int:
        """What to wait for, as ``select.poll`` has it."""
        return (select.POLLOUT if self.outbox else 0) | (select.POLLIN if self.unsent < _MAX_UNSENT else 0)

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one whole message with one system call, or keeps what the server has no room for.

        Ownership: ``fds`` stay the caller's, who may close them at once.

        Raises:
            LocalProtocolError: there are descriptors, and the channel carries none. Nothing has been sent.
        """
        sent = 0 if self.outbox else send_some(self.channel, [message], fds)
        if sent < len(message):
            self.keep(message, sent, fds)

    def keep(self, message: bytes, sent: int, fds: Sequence[int] = ()) -> None:
        """Keeps what the server has no room for, all but the first ``sent`` bytes; ``flush`` sends it."""
        rest = memoryview(message)[sent:]
        self.outbox.append((rest, [] if sent else [os.dup(fd) for fd in fds]))
        self.unsent += len(rest)

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        while self.outbox:
            view, fds = self.outbox[0]
            sent = send_some(self.channel, [view], fds)
            if not sent:
                return
            self.unsent -= sent
            close_fds(fds)
            if sent < len(view):
                self.outbox[0] = (view[sent:], [])
            else:
                self.outbox.popleft()

    def receive(self) -> bool:
        """Takes what the server has sent, without waiting, and hands it on; False if there was nothing."""
        if self.frames.end:
            # Messages may have been left, because too much waited to be sent.
            self._dispatch()
        if self.unsent >= _MAX_UNSENT:
            return False
        try:
            count, ancdata, flags, _ = self.channel.recvmsg_into([self._view[self.frames.end :]], ANCILLARY_SIZE, _POLL)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise ConnectionClosedError(f"the connection broke: {exc.strerror}") from exc
        self.received(count, ancdata, flags)
        return True

    def received(self, count: int, ancdata: list[tuple[int, int, bytes]], flags: int) -> None:
        """Hands on what was received into ``frames``."""
        fds = ancillary_fds(ancdata, flags)
        if not count:
            close_fds(fds)
            raise ConnectionClosedError("the server closed the connection")
        self.frames.received(count, fds)
        self._dispatch()

    def _dispatch(self) -> None:
        frames = self.frames
        while self.unsent < _MAX_UNSENT and (header := frames.next_message()) is not None:
            began = frames.start + HEADER_SIZE
            payload = bytes(self._view[began : began - HEADER_SIZE + header.message_size])
            fds = frames.take_fds()
            frames.consume(header.message_size)
            try:
                self._handle(header, payload, fds)
            finally:
                close_fds(fds)
        frames.compact()

    def close(self) -> None:
        """Closes the channel, and every descriptor that waits to be sent or taken. Idempotent."""
        for _, fds in self.outbox:
            close_fds(fds)
        self.outbox.clear()
        self.unsent = 0
        self.frames.close()
        self.channel.close()
