"""Runs the command line: in this process, where only its text matters, and as a program, where the process does."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vfio_user.protocol.header import Header, command_header
from vfio_user.protocol.version import VersionMessage

LAMP = """
from vfio_user.pci.registers import Field, Register, RegisterBlock
from vfio_user.server.device import Device

class Registers(RegisterBlock):
    identity = Register(0x0, reset=0x1A)
    status = Register(0x4, fields=[Field("lit", 0), Field("hot", 7)])

class Lamp(Device):
    '''Shines.'''
    def __init__(self, *, size: int = 0x1000) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"size {size} is odd")
        self.set_region(0, Registers(size=size))
"""


@dataclass
class Outcome:
    status: int
    stdout: str
    stderr: str


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "vfio_user", *words]


@contextmanager
def serving(*words: str, cwd: Path, pass_fds: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """``vfio-user serve`` as a program, until the end of the ``with`` at the latest."""
    process = subprocess.Popen(
        program("serve", *words),
        cwd=cwd,
        pass_fds=pass_fds,
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


def agree(connection: socket.socket) -> VersionMessage:
    """Does what a client does first, and returns the server's answer."""
    payload = VersionMessage(0, 0, {}).encode()
    connection.sendall(command_header(1, 1, len(payload)) + payload)
    header = Header.decode(receive(connection, 16))
    return VersionMessage.decode(receive(connection, header.message_size - 16))


def receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        assert more, f"the server closed the connection after {data!r}"
        data += more
    return data
