"""The host's end of a guest's command channel: a byte stream, read up to marks, with deadlines."""

from __future__ import annotations

import re
import select
import socket
import time

__all__ = ["Channel", "ChannelClosedError", "ChannelTimeoutError"]


class ChannelClosedError(Exception):
    """The machine closed the channel: it has ended. Internal to this package."""


class ChannelTimeoutError(Exception):
    """What was waited for did not come in time. Internal to this package."""


class Channel:
    """A stream from and to the guest. What was read and not taken stays, whatever is raised.

    Args:
        stream: the socket; owned from here on.

    Threading: one thread at a time.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._ended = False

    def send(self, content: bytes) -> None:
        """Sends bytes.

        Raises:
            ChannelClosedError: the machine has ended.
        """
        try:
            self._stream.sendall(content)
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def read_mark(self, mark: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Takes everything up to and with the next line ``<<mark WORDS>>``.

        Args:
            mark: the first word of the line.
            deadline: when to give up, on the monotonic clock.

        Returns:
            What came before the line, and the line's further words.

        Raises:
            ChannelClosedError: the machine ended first.
            ChannelTimeoutError: the deadline passed first.
        """
        # The line end before a mark belongs to the mark, so that output is exactly what was written.
        opening = b"\n<<" + mark + b" "
        searched = 0
        while True:
            if (start := self._buffer.find(opening, searched)) >= 0:
                if (end := self._buffer.find(b">>\n", start)) >= 0:
                    before = bytes(self._buffer[:start])
                    words = bytes(self._buffer[start + len(opening) : end])
                    del self._buffer[: end + 3]
                    return before, words
                searched = start
            else:
                searched = max(0, len(self._buffer) - len(opening))
            self._receive(deadline)

    def last_mark(self, mark: bytes) -> bytes | None:
        """The words of the last line ``<<mark WORDS>>`` that was sent and not taken; waits for nothing."""
        try:
            while True:
                self._receive(time.monotonic())
        except (ChannelClosedError, ChannelTimeoutError):
            pass
        found = re.findall(rb"\n<<" + re.escape(mark) + rb" ([^\n]*)>>\n", self._buffer)
        return found[-1] if found else None

    def close(self) -> None:
        """Frees the stream; what was read stays."""
        self._ended = True
        self._stream.close()

    def _receive(self, deadline: float) -> None:
        if self._ended:
            raise ChannelClosedError("the machine has ended")
        poller = select.poll()
        poller.register(self._stream, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise ChannelTimeoutError
        try:
            chunk = self._stream.recv(65536)
        except OSError:
            chunk = b""
        if not chunk:
            self._ended = True
            raise ChannelClosedError("the machine has ended")
        self._buffer += chunk
