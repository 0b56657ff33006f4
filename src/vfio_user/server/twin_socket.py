"""The second socket between a server and its client, over which the server's commands go.

A client that proposes one in VERSION gets one end with the reply; the other stays here. Nothing but DMA_READ and
DMA_WRITE goes out over it, and nothing but their replies comes in. The two directions then never share a stream, so a
client may read them on two threads.

Spec: "VFIO_USER_VERSION", capability ``twin_socket``.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from vfio_user.errors import ConnectionClosedError, FramingError
from vfio_user.protocol.constants import HEADER_SIZE
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, ancillary_fds, send_some

__all__ = ["TwinSocket"]


class TwinSocket:
    """The server's end.

    Args:
        max_message_size: bytes of the largest reply accepted, header included.

    Raises:
        OSError: this process has too many files open.

    Ownership: ``close`` it. The client's end is closed with it, or by ``client_has_its_end``.

    Threading: session thread.
    """

    def __init__(self, max_message_size: int) -> None:
        self._socket, self._client_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._frames = FrameBuffer(max_message_size)
        self._unsent = memoryview(b"")

    @property
    def client_fd(self) -> int:
        """The client's end, for the reply to VERSION."""
        return self._client_end.fileno()

    def client_has_its_end(self) -> None:
        """The reply has gone: from now on the client alone holds its end, and its closing is noticed. Idempotent."""
        self._client_end.close()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to wait for, as ``select.poll`` has it."""
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def send(self, message: bytes) -> None:
        """Sends a command, or keeps what there is no room for; ``flush`` sends that.

        Raises:
            ConnectionClosedError: the client closed its end.
        """
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + message)
        else:
            self._unsent = memoryview(message)
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room.

        Raises:
            ConnectionClosedError: the client closed its end.
        """
        while self._unsent:
            sent = send_some(self._socket, [self._unsent])
            if not sent:
                return
            self._unsent = self._unsent[sent:]

    def receive(self, deliver: Callable[[Header, bytes], None]) -> None:
        """Takes what has come, without waiting, and hands over each whole message.

        Raises:
            ConnectionClosedError: the client closed its end, or sent what cannot be cut into messages.
        """
        frames = self._frames
        try:
            room = memoryview(frames.buffer)[frames.end :]
            count, ancdata, flags, _ = self._socket.recvmsg_into(
                [room], ANCILLARY_SIZE, RECEIVE_FLAGS | socket.MSG_DONTWAIT
            )
            close_fds(ancillary_fds(ancdata, flags))
            if not count:
                raise ConnectionClosedError("the client closed the twin socket")
            frames.received(count)
            while (header := frames.next_message()) is not None:
                began = frames.start + HEADER_SIZE
                payload = bytes(frames.buffer[began : began - HEADER_SIZE + header.message_size])
                frames.consume(header.message_size)
                deliver(header, payload)
        except BlockingIOError:
            return
        except FramingError as exc:
            raise ConnectionClosedError(f"the twin socket is of no more use: {exc}") from exc
        except OSError as exc:
            raise ConnectionClosedError(f"the twin socket broke: {exc.strerror}") from exc
        frames.compact()

    def close(self) -> None:
        """Closes both ends. Idempotent."""
        self._socket.close()
        self._client_end.close()
        self._frames.close()
