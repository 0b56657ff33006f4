"""The raw end of a connection: writes any message, right or wrong, and reads what comes back.

It shares nothing with the package's client, which would refuse to send most of what an examination is about. Whatever
the server asks for meanwhile (DMA_READ, DMA_WRITE) is refused with ENODEV, as QEMU does for memory it does not have.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vfio_user.errors import FramingError
from vfio_user.protocol.constants import HEADER_SIZE, HeaderFlags
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import HEADER, Header, error_reply
from vfio_user.testing.conformance.check import Unmet
from vfio_user.testing.conformance.endpoint import HungUp, Wire

__all__ = ["Message", "Peer", "errno_name"]

#: Bytes of the largest message a server may send here: 1 MiB of data, and room for one that sends more than it should.
_MAX_MESSAGE = (1 << 20) + 65536


def errno_name(number: int) -> str:
    """``EINVAL``, or the number of what has no name."""
    return errno.errorcode.get(number, f"errno {number}")


@dataclass(frozen=True, slots=True)
class Message:
    """What came.

    Attributes:
        header: as it was.
        payload: what followed.
        fds: descriptors that came along; the peer's to close.
    """

    header: Header
    payload: bytes
    fds: list[int] = field(default_factory=list)

    @property
    def is_error(self) -> bool:
        """An error reply."""
        return self.header.is_error

    def __str__(self) -> str:
        """What a report says was seen."""
        if self.header.is_reply and self.is_error:
            return errno_name(self.header.error)
        kind = "success" if self.header.is_reply else str(self.header)
        extent = f", {len(self.payload)} bytes" if self.payload else ", a header alone"
        return kind + extent + (f", {len(self.fds)} fds" if self.fds else "")


class Peer:
    """See the module.

    Args:
        wire: the connection; closed with this.
        timeout: seconds a reply may take.

    Attributes:
        is_out_of_step: a reply did not come, so a later one may be taken for another: better not used any more.
        server_commands: headers of what the server asked for.
    """

    def __init__(self, wire: Wire, timeout: float) -> None:
        self.wire = wire
        self.timeout = timeout
        self.is_out_of_step = False
        self.server_commands: list[Header] = []
        self._frames = FrameBuffer(_MAX_MESSAGE)
        self._id = 0x100
        self._came: deque[Message] = deque()
        self._owned: list[int] = []

    # Out.

    def next_id(self) -> int:
        """An id not used lately."""
        self._id = self._id % 0xFFFF + 1
        return self._id

    def send(
        self,
        command: int,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        flags: int = 0,
        message_id: int | None = None,
        size: int | None = None,
        error: int = 0,
    ) -> int:
        """Sends one message, its header as ordinary or as wrong as it is told to be; returns its id."""
        number = self.next_id() if message_id is None else message_id
        total = HEADER_SIZE + len(payload) if size is None else size
        self.send_bytes(HEADER.pack(number, command, total, flags, error) + payload, fds)
        return number

    def post(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> None:
        """Sends a command that is not to be answered."""
        self.send(command, payload, fds=fds, flags=HeaderFlags.NO_REPLY)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends bytes as they are."""
        try:
            self.wire.send(data, fds)
        except HungUp as exc:
            self.is_out_of_step = True
            raise Unmet("the server had closed the connection") from exc

    def trickle(self, pieces: Sequence[bytes]) -> None:
        """Sends bytes in pieces, each of which the server sees by itself."""
        for piece in pieces:
            self.send_bytes(piece)
            time.sleep(self.wire.pause)

    # In.

    def receive(self, timeout: float | None = None) -> Message:
        """The next message that is not a command of the server's.

        Raises:
            Unmet: none came in time, the server hung up, or what came is no message.
        """
        limit = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        while not self._came:
            try:
                chunk = self.wire.receive(deadline - time.monotonic())
            except HungUp as exc:
                self.is_out_of_step = True
                raise Unmet("the server closed the connection") from exc
            if chunk is None:
                self.is_out_of_step = True
                raise Unmet("no reply" + (f" within {self.timeout:g} s" if self.timeout else ""))
            self._take(*chunk)
            self._check_time(deadline)
        return self._came.popleft()

    def reply_to(self, number: int) -> Message:
        """The reply with that id; others are dropped, as they answer what was given up before.

        Raises:
            Unmet: as ``receive``.
        """
        deadline = time.monotonic() + self.timeout
        while (message := self.receive(max(deadline - time.monotonic(), 0.0))).header.message_id != number:
            self._check_time(deadline)
        return message

    def ask(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> Message:
        """Sends a command, and waits for what answers it.

        Raises:
            Unmet: nothing did.
        """
        return self.reply_to(self.send(command, payload, fds=fds))

    def is_closed(self) -> bool:
        """The server hangs up, now or within the time a reply may take; what it says before that is dropped."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                chunk = self.wire.receive(deadline - time.monotonic())
            except HungUp:
                return True
            if chunk is None:
                return False
            close_fds(chunk[1])
            self._check_time(deadline)

    def _check_time(self, deadline: float) -> None:
        """A server that never stops talking must not stop the clock. (One on this thread stops by itself.)"""
        if self.timeout and not self._came and time.monotonic() > deadline:
            self.is_out_of_step = True
            raise Unmet(f"no end of other messages within {self.timeout:g} s")

    def _take(self, data: bytes, fds: list[int]) -> None:
        frames = self._frames
        self._owned += fds
        try:
            while data:
                room = len(frames.buffer) - frames.end
                part, data = data[:room], data[room:]
                frames.buffer[frames.end : frames.end + len(part)] = part
                frames.received(len(part), fds)
                fds = []
                while (header := frames.next_message()) is not None:
                    began = frames.start + HEADER_SIZE
                    payload = bytes(memoryview(frames.buffer)[began : frames.start + header.message_size])
                    message = Message(header, payload, frames.take_fds())
                    frames.consume(header.message_size)
                    self._dispatch(message)
                frames.compact()
        except FramingError as exc:
            self.is_out_of_step = True
            raise Unmet(f"no message: {exc}") from exc

    def _dispatch(self, message: Message) -> None:
        header = message.header
        if header.is_command and not header.is_error:
            self.server_commands.append(header)
            if not header.no_reply:
                self.send_bytes(error_reply(header.message_id, header.command, errno.ENODEV))
        else:
            self._came.append(message)

    # The end.

    def forget_fds(self) -> None:
        """Closes every descriptor that came so far."""
        close_fds(self._owned)
        self._owned.clear()

    def close(self) -> None:
        """Hangs up. Idempotent."""
        self.forget_fds()
        # Its descriptors were closed with the others.
        self._frames = FrameBuffer(HEADER_SIZE)
        self.wire.close()
