"""The process that is killed in ``test_killed``: forks one for each number it reads, and tells how that one ended.

    python -m tests.robustness.mortal server|client SOCKET

Numbers come on standard input, statuses go to standard output, four bytes each. A process of its own, because it is
small, which makes forking cheap, and has no threads, which makes it right.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import IrqIndex
from vfio_user.regions import CallbackRegion, MemoryRegion, SharedMemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Session

NUMBER = struct.Struct("<i")


class Mortal(socket.socket):
    """A socket that kills this process when it has sent ``left`` bytes; for ever alive with None."""

    left: int | None = None
    sent = 0

    def send(self, data: Any, flags: int = 0) -> int:
        return self._count(super().send(memoryview(data)[: self.left], flags))

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        data = b"".join(map(bytes, buffers))
        return self._count(super().sendmsg([data[: self.left]], ancdata, flags))

    def _count(self, sent: int) -> int:
        self.sent += sent
        if self.left is not None:
            self.allow(self.left - sent)
        return sent

    def allow(self, left: int) -> None:
        """May send so many bytes more."""
        self.left = left
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Card(Device):
    """Memory to map, memory not to, a register that writes to guest memory and interrupts."""

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.MSIX: 4})
        self.set_region(0, SharedMemoryRegion(0x1000))
        self.set_region(1, MemoryRegion(256))
        self.set_region(2, CallbackRegion(16, write=self.work))

    def work(self, offset: int, size: int, iova: int) -> None:
        self.dma.write(iova, b"done")
        self.interrupts.trigger(IrqIndex.MSIX, 1)


def session(client: VfioUserClient) -> None:
    """What a client does; it fails at once when something is wrong."""
    assert client.get_info().num_regions == 9
    assert client.region(0).size == 0x1000
    assert client.irq_info(IrqIndex.MSIX).count == 4
    vectors = client.irq(IrqIndex.MSIX).enable(2)
    buffer = client.dma_alloc(16)
    client.region(1).write32(0, 0x12345678)
    client.region(1).write32(4, 1, posted=True)
    assert client.region(1).read64(0) == 0x1_1234_5678
    client.write_multi([(1, 8, b"ab"), (1, 10, b"cd")])
    assert client.region_read(1, 8, 4) == b"abcd"
    client.region(2).write64(0, buffer.iova)
    assert buffer[:4] == b"done"
    assert vectors[1].wait(5.0) == 1
    client.reset()
    client.irq(IrqIndex.MSIX).disable()
    client.dma_unmap_all()


def be_server(path: str) -> Callable[[int], None]:
    """A server on a socket; each process serves one client, and dies after so many bytes, or not if that is below 0."""
    listener = Mortal(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(left: int) -> None:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        channel = Mortal(fileno=fd)
        device, loop = Card(), EventLoop()
        device.attach(loop)
        ours = Session(device, channel)
        device.connected()
        if left >= 0:
            channel.allow(left)
        with contextlib.suppress(ConnectionClosedError):
            while True:
                ours.receive_blocking(loop)
                loop.run_once(0)
        os._exit(channel.sent >> 8)  # an exit status has eight bits

    return serve


def be_client(path: str) -> Callable[[int], None]:
    """A client that dies after so many bytes, or not if that is below 0."""

    def drive(left: int) -> None:
        channel = Mortal(socket.AF_UNIX)
        channel.connect(path)
        if left >= 0:
            channel.allow(left)
        with VfioUserClient(Connection(channel)) as client:
            session(client)
        os._exit(channel.sent >> 8)

    return drive


def main() -> None:
    """See the module."""
    work = {"server": be_server, "client": be_client}[sys.argv[1]](sys.argv[2])
    os.write(1, NUMBER.pack(0))  # ready
    while data := os.read(0, NUMBER.size):
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                work(NUMBER.unpack(data)[0])
            os._exit(99)
        os.write(1, NUMBER.pack(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
