"""Keeps what a guest writes on its console, and lets one wait for a line of it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["Console"]


class Console:
    """Reads a console on a thread of its own until the other end closes it.

    Args:
        stream: the console; owned from here on.
        log: the file everything is written to, byte for byte.
        on_line: called on the console's thread with each complete line, without its end.

    Threading: any thread.
    """

    def __init__(self, stream: socket.socket, log: Path, on_line: Callable[[str], None] | None = None) -> None:
        self._stream = stream
        self._log = log
        self._on_line = on_line
        self._content = bytearray()
        self._ended = False
        self._changed = threading.Condition()  # around an RLock: `text` is read while waiting
        self._thread = threading.Thread(target=self._pump, name="vfio-user-console", daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        """All it has written so far."""
        with self._changed:
            return self._content.decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = 15) -> str:
        """The last lines."""
        return "\n".join(self.text.splitlines()[-lines:])

    def write(self, content: bytes) -> None:
        """Types something into the console.

        Raises:
            OSError: the machine has ended.
        """
        self._stream.sendall(content)

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float) -> re.Match[str] | None:
        """Waits until the text holds a pattern, and returns where; None when it never will, or not in time.

        Args:
            pattern: a regular expression, searched in the whole text.
            timeout: seconds.
        """
        compiled = re.compile(pattern)
        found: re.Match[str] | None = None

        def is_there() -> bool:
            nonlocal found
            found = compiled.search(self.text)
            return found is not None or self._ended

        with self._changed:
            self._changed.wait_for(is_there, timeout)
        return found

    def join(self, timeout: float | None = None) -> None:
        """Waits until everything written has been read, after the machine has ended."""
        self._thread.join(timeout)

    def close(self) -> None:
        """Ends the thread and frees the stream."""
        with suppress(OSError):  # the other end was first
            self._stream.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stream.close()

    def _pump(self) -> None:
        partial = b""
        with self._log.open("wb", buffering=0) as log:
            while True:
                try:
                    chunk = self._stream.recv(65536)
                except OSError:
                    chunk = b""
                if not chunk:
                    break
                log.write(chunk)
                with self._changed:
                    self._content += chunk
                    self._changed.notify_all()
                *lines, partial = (partial + chunk).split(b"\n")
                if self._on_line is not None:
                    for line in lines:
                        self._on_line(line.decode(errors="replace").rstrip("\r"))
        with self._changed:
            self._ended = True
            self._changed.notify_all()
