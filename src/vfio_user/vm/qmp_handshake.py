"""The beginning of a QMP connection, by which one knows that QEMU runs.

QEMU greets as soon as the monitor exists, which is before it makes its devices. It answers a command only from its
main loop, which is after: so the answer to the first command, which QMP wants to be ``qmp_capabilities``, says that
all devices exist.

Spec: QEMU ``docs/interop/qmp-spec.rst``, "Capabilities Negotiation".
"""

from __future__ import annotations

import json
import select
import socket
import time

__all__ = ["negotiate"]


def negotiate(stream: socket.socket, timeout: float) -> bool:
    """Greets QEMU and waits until it answers; the connection is ready for commands then.

    Args:
        stream: the connection, of which nothing was read before. Not one byte is read past the answer.
        timeout: seconds.

    Returns:
        Whether QEMU runs; False when it closed the connection instead.

    Raises:
        TimeoutError: it did neither.
    """
    deadline = time.monotonic() + timeout
    try:
        stream.sendall(b'{"execute": "qmp_capabilities"}\n')
        while (line := _read_line(stream, deadline)) is not None:
            if "return" in json.loads(line):  # neither the greeting nor an event
                return True
    except (OSError, ValueError) as error:
        if isinstance(error, TimeoutError):
            raise
    return False


def _read_line(stream: socket.socket, deadline: float) -> bytes | None:
    """Takes one line, and nothing of what follows it; None at the end of the stream."""
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError
        there = stream.recv(65536, socket.MSG_PEEK)
        if not there:
            return None
        line += stream.recv(there.find(b"\n") + 1 or len(there))
    return line
