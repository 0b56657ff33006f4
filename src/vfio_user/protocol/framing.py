"""Cuts a byte stream into messages, and keeps every file descriptor with the message it came with.

No I/O happens here. The shell receives into ``buffer``, tells ``received`` how many bytes and which descriptors came,
and walks the messages that are whole.

Theory of operation
-------------------

The buffer is one ``bytearray`` that never moves while messages are looked at. ``start`` and ``end`` delimit the bytes
that have come and not been consumed; a message is *whole* when all of it is in there. When the walk is over,
``compact`` moves an incomplete rest to the front.

Descriptors. On a UNIX stream, one ``recvmsg`` may return several messages, glued; but it never returns bytes past the
segment that carried descriptors, and never those of two such segments. A peer that sends each message with one
``sendmsg`` - all known ones do - has its descriptors on the first byte of a message. So among the messages that *begin*
in the bytes of one ``recvmsg``, the descriptors belong to the last. If none begins there (the peer split a message and
attached descriptors to its tail), they belong to the message those bytes continue.

That is decided when the bytes arrive, which takes a walk over their headers; only receptions that carried descriptors,
one in thousands, pay for it.

Bounds. A header announcing less than 16 bytes, or more than the buffer holds, is a FramingError: where the next message
begins is lost. Descriptors that wait for their message are bounded by the kernel's 253 a reception, and one reception
must add at least a byte; ``MAX_PENDING_FDS`` bounds what a peer can park here by trickling a message's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from vfio_user.errors import FramingError
from vfio_user.protocol.constants import HEADER_SIZE
from vfio_user.protocol.header import HEADER, Header

__all__ = ["MAX_PENDING_FDS", "FrameBuffer", "close_fds"]

#: Descriptors that may wait for one message to become whole. One SCM_RIGHTS message carries at most 253.
MAX_PENDING_FDS = 253


class FrameBuffer:
    """The receiving half of a connection.

    Args:
        max_message_size: bytes of the largest message accepted, header included.

    Attributes:
        buffer: receive into ``memoryview(buffer)[end:]``; never resized.
        start: index of the first byte not consumed. The shell's own loop may advance it.
        end: index past the last byte received.

    Ownership: descriptors handed to ``received`` belong to this object until ``take_fds`` gives them to the caller;
    ``close`` closes what nobody took.

    Threading: the thread that receives.
    """

    def __init__(self, max_message_size: int) -> None:
        self.max_message_size = max_message_size
        # Room for one largest message is enough to make progress; the rest lets one reception bring many small ones.
        self.buffer = bytearray(max_message_size + 64 * 1024)
        self.start = 0
        self.end = 0
        # Message start index -> its descriptors. Empty nearly always: the hot loop asks only for its truth.
        self._fds: dict[int, list[int]] = {}

    @property
    def has_fds(self) -> bool:
        """Some message in the buffer carries descriptors."""
        return bool(self._fds)

    def received(self, count: int, fds: Sequence[int] = ()) -> None:
        """Notes that ``count`` bytes were received at ``end``, with these descriptors.

        Raises:
            FramingError: a header announces an impossible size, or too many descriptors wait for one message. The
                descriptors are closed.
        """
        self.end += count
        if fds:
            try:
                owner = self._last_message_begun()
                waiting = self._fds.setdefault(owner, [])
                if len(waiting) + len(fds) > MAX_PENDING_FDS:
                    raise FramingError(
                        f"{len(waiting) + len(fds)} file descriptors wait for one message to become whole; "
                        f"the limit is {MAX_PENDING_FDS}"
                    )
            except FramingError:
                close_fds(fds)
                raise
            waiting.extend(fds)

    def _last_message_begun(self) -> int:
        """Where the last message begins of which any byte has come."""
        at = self.start
        while True:
            size = self._size_at(at)
            if size is None or at + size >= self.end:
                return at
            at += size

    def _size_at(self, at: int) -> int | None:
        """The announced size of the message at ``at``; None while its header is incomplete.

        Raises:
            FramingError: a size under 16 bytes or over the limit.
        """
        if self.end - at < HEADER_SIZE:
            return None
        size: int = HEADER.unpack_from(self.buffer, at)[2]
        if size < HEADER_SIZE or size > self.max_message_size:
            raise FramingError(
                f"a header announces a message of {size} bytes; a message has {HEADER_SIZE} to {self.max_message_size}"
            )
        return size

    def next_message(self) -> Header | None:
        """The header of the next message, if it is whole; ``start`` is where it begins. Call ``consume`` when done.

        Raises:
            FramingError: the stream cannot be cut any more.
        """
        size = self._size_at(self.start)
        if size is None or self.end - self.start < size:
            return None
        return Header.decode(self.buffer, self.start)

    def peek_header(self) -> Header | None:
        """The header at ``start``, whole message or not, valid or not; None when fewer than 16 bytes are there."""
        if self.end - self.start < HEADER_SIZE:
            return None
        return Header.decode(self.buffer, self.start)

    def take_fds(self) -> list[int]:
        """The descriptors of the message at ``start``; from now on they are the caller's to close."""
        return self._fds.pop(self.start, [])

    def consume(self, size: int) -> None:
        """Drops the message at ``start``, and closes its descriptors if nobody took them."""
        if self._fds:
            close_fds(self._fds.pop(self.start, ()))
        self.start += size

    def compact(self) -> None:
        """Moves what is left to the front, so that the whole buffer is free for the next reception."""
        start = self.start
        if start == self.end:
            self.start = self.end = 0
        elif start:
            left = self.end - start
            self.buffer[:left] = self.buffer[start : self.end]
            self.start, self.end = 0, left
            if self._fds:
                self._fds = {at - start: fds for at, fds in self._fds.items()}

    def close(self) -> None:
        """Closes every descriptor nobody took, and forgets the bytes. Idempotent."""
        for fds in self._fds.values():
            close_fds(fds)
        self._fds.clear()
        self.start = self.end = 0


def close_fds(fds: Sequence[int]) -> None:
    """Closes descriptors a peer sent and nobody wants."""
    for fd in fds:
        os.close(fd)
