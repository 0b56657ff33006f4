"""Starts programs as systemd starts a service that has socket units, without systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.source import SRC

__all__ = ["activated"]

#: What systemd does between fork and exec: the sockets become descriptor 3 and up, and the environment says so.
_BETWEEN_FORK_AND_EXEC = """
import os, sys
fds = [int(word) for word in sys.argv[1].split(",")]
for number, fd in enumerate(fds):
    os.dup2(fd, 100 + number, inheritable=False)
    os.close(fd)
for number in range(len(fds)):
    os.dup2(100 + number, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@contextmanager
def activated(
    sockets: Sequence[socket.socket], names: str, *words: str, cwd: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The interpreter with those arguments, given these sockets under these names ("one:other")."""
    fds = [one.fileno() for one in sockets]
    process = subprocess.Popen(
        [sys.executable, "-c", _BETWEEN_FORK_AND_EXEC, ",".join(map(str, fds)), names, *words],
        pass_fds=fds,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
