"""One end is killed (SIGKILL) after each number of bytes it could have sent; the other must notice, clean up, go on.

The end that dies is a process of its own, with a socket that ends it when so many bytes have gone. What it would have
said is a whole session: version, descriptions, descriptors for memory and interrupts, accesses, DMA, a reset.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.robustness.mortal import NUMBER, Card, session
from vfio_user.client.device import VfioUserClient
from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import IrqIndex
from vfio_user.server.server import Server
from vfio_user.testing.leaks import leaked_since, open_files

ROOT = Path(__file__).parents[2]


class Mortals:
    """``mortal`` as a program: one process after the other, each killed when it has sent so many bytes."""

    def __init__(self, role: str, path: Path) -> None:
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.mortal", role, str(path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._requests, self.statuses = self._program.stdin.fileno(), self._program.stdout.fileno()
        assert self.status() == 0

    def start(self, number: int) -> None:
        """The next one; it is not killed if the number is below 0."""
        os.write(self._requests, NUMBER.pack(number))

    def status(self) -> int:
        """How it ended: minus the signal that killed it, or a 256th of the bytes it sent."""
        return os.waitstatus_to_exitcode(NUMBER.unpack(os.read(self.statuses, NUMBER.size))[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._program.__exit__(kind, exc, traceback)


def mapped_files() -> int:
    """Mappings of memory files this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:")


def survives(path: Path) -> bool:
    """Whether the server lived long enough for a whole session."""
    try:
        with VfioUserClient.connect(path, timeout=10.0) as client:
            session(client)
    except ConnectionClosedError:
        return False
    return True


def test_the_server_is_killed_after_any_number_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Mortals("server", path) as servers:
        before, mapped = open_files(), mapped_files()
        number = 0
        servers.start(number)
        while not survives(path):
            assert servers.status() == -signal.SIGKILL
            # The descriptors of a region are in the first half of what a server says.
            assert leaked_since(before) == []
            number += 1
            servers.start(number)
        assert servers.status() == -signal.SIGKILL  # its last word had just gone
        assert mapped_files() == mapped
        servers.start(-1)
        assert survives(path)
        assert servers.status() == number >> 8
    assert number > 300


def test_the_client_is_killed_after_any_number_of_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s"
    caplog.set_level(logging.INFO, "vfio_user.server")
    device = Card()
    with Server(device, path, strict=True) as server, Mortals("client", path) as clients:
        before, mapped = open_files(), mapped_files()
        number = 0
        while (status := one_client(server, clients, number, caplog)) == -signal.SIGKILL:
            assert len(device.dma) == 0
            assert not any(device.interrupts.trigger(IrqIndex.MSIX, vector) for vector in range(4))
            assert leaked_since(before) == []
            number += 1
            assert number < 2000, "it always dies"
        assert mapped_files() == mapped
        # The first that was allowed more than there is to say ended by itself; and so does one without a limit.
        assert status == number - 1 >> 8
        assert one_client(server, clients, -1, caplog) == status
    assert number > 500


def one_client(server: Server, clients: Mortals, number: int, caplog: pytest.LogCaptureFixture) -> int:
    """Serves one client until it is gone, which the log says, and returns how it ended."""
    caplog.clear()
    clients.start(number)
    status = None
    until = time.monotonic() + 20
    while status is None or not any(" left: " in message for message in caplog.messages):
        assert time.monotonic() < until, caplog.messages
        ready, _, _ = select.select([server.fileno(), *([clients.statuses] if status is None else [])], [], [], 20)
        if clients.statuses in ready:
            status = clients.status()
        server.process()
    return status
