"""Prints every message of a server's sessions: what ``vfio-user serve -v`` shows.

A line begins with the seconds since the connection's first message and a sign: ``<`` received, ``>`` sent, ``!``
failed, ``=`` something about the connection. Replies end with the time the command took. Commands go both ways: the
server's own, DMA_READ and DMA_WRITE, are sent, and their replies received.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntEnum
from typing import TextIO

from vfio_user.protocol.header import Header
from vfio_user.trace.decode import Decoded, decode
from vfio_user.trace.names import RegionNames
from vfio_user.trace.text import hex_lines

__all__ = ["Detail", "TraceObserver", "duration_text"]

_INDENT = " " * 12

#: Several devices, each on its own thread, may trace to one stream: a message's lines stay together.
_WRITING = threading.Lock()


class Detail(IntEnum):
    """How much of a message is printed; each level has what those before it have."""

    LINES = 1
    FIELDS = 2
    BYTES = 3


class TraceObserver:
    """A ``server.session.Observer`` that prints.

    Args:
        stream: where to. When it cannot be written to any more, tracing ends, and the device goes on.
        detail: how much.
        names: what knows the registers of the device.
        label: put before each line, to tell devices apart that share a stream.
        clock: the time, in seconds.

    Threading: one session at a time; several observers may share a stream.
    """

    def __init__(
        self,
        stream: TextIO,
        detail: Detail = Detail.LINES,
        *,
        names: RegionNames | None = None,
        label: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream: TextIO | None = stream
        self._detail = detail
        self._names = names or RegionNames()
        self._label = f"{label}: " if label else ""
        self._clock = clock
        self._began: float | None = None

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        """See ``Observer.command``."""
        if self._began is None:
            self._began = self._clock()
        self._print("<", decode(header, payload, fds, self._names), header, payload)

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
        """See ``Observer.reply``."""
        self._print(">", decode(header, payload, fds, self._names), header, payload, f"  {duration_text(seconds)}")

    def own_command(self, header: Header, payload: bytes) -> None:
        """See ``Observer.own_command``."""
        self._print(">", decode(header, payload, 0, self._names), header, payload)

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None:
        """See ``Observer.own_reply``."""
        end = "  answers nothing: dropped" if seconds is None else f"  {duration_text(seconds)}"
        self._print("<", decode(header, payload, 0, self._names), header, payload, end)

    def closed(self) -> None:
        """See ``Observer.closed``."""
        self._write([self._line("=", "connection closed")])
        self._began = None

    def _print(self, sign: str, decoded: Decoded, header: Header, payload: bytes, end: str = "") -> None:
        lines = [self._line("!" if decoded.is_failure else sign, decoded.line + end)]
        if self._detail >= Detail.FIELDS:
            width = max(len(name) for name, _ in decoded.fields)
            lines += [f"{_INDENT}{name:<{width}}  {value}" for name, value in decoded.fields]
        if self._detail >= Detail.BYTES:
            lines += [_INDENT + line for line in hex_lines(header.encode() + payload)]
        self._write(lines)

    def _line(self, sign: str, text: str) -> str:
        elapsed = 0.0 if self._began is None else self._clock() - self._began
        return f"{elapsed:9.6f} {sign} {self._label}{text}"

    def _write(self, lines: list[str]) -> None:
        if self._stream is None:
            return
        try:
            with _WRITING:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()
        except (OSError, ValueError):  # the pipe's reader went away, or the stream was closed
            self._stream = None


def duration_text(seconds: float) -> str:
    """``23 us``, ``4.5 ms``, ``1.20 s``: three digits at most."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{1 if seconds < 0.09995 else 0}f} ms"
    return f"{seconds:.2f} s"
