"""DMA of a device by messages, for memory its client does not share: throughput, against the bare socket.

The client is ours, in another process. The floor is the same traffic without anything that thinks, between two
processes over a socket pair: a request of a header, and 64 KiB back, or 64 KiB there and a header back. (That much goes
in one message, as QEMU can take no more.)
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Self

from bench.report import Figure
from vfio_user.client.device import VfioUserClient
from vfio_user.errors import ConnectionClosedError
from vfio_user.server.device import Device
from vfio_user.server.server import Server

__all__ = ["measure"]

KIB = 1024
SIZES = (64 * KIB, 1024 * KIB)

#: Bytes of one message.
PIECE = 64 * KIB

#: At most so many times the bare socket. Python is at both ends: two messages to make and two to read.
TARGET = 5.0

_HEADER = 32
_IOVA = 0x100_0000


def measure(rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Reads and writes guest memory in turn with the bare socket.

    Returns:
        Figures, and all samples.
    """
    say(f"DMA by messages: {rounds} rounds")
    figures: list[Figure] = []
    samples: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, _Bare() as bare:
        device = Device()
        with Server(device, Path(folder) / "s") as server:
            child = _fork(lambda: _client(Path(folder) / "s"))
            while not len(device.dma):
                server.process()
            # Its thread is this one: the device may wait for messages here.
            for size in SIZES:
                data = bytes(size)
                for name, ours, floor in (
                    (
                        "read",
                        lambda size=size: device.dma.read(_IOVA, size),
                        lambda size=size: bare.read(size // PIECE),
                    ),
                    (
                        "write",
                        lambda data=data: device.dma.write(_IOVA, data),
                        lambda size=size: bare.write(size // PIECE),
                    ),
                ):
                    ratios, seconds = _paired(ours, floor, rounds, max(2, (8 << 20) // size))
                    samples[f"{name} of {size}"] = {"ratios": ratios, "seconds": seconds}
                    speed = size / statistics.median(seconds) / 1e9
                    note = f"of the bare socket; {speed:.2f} GB/s"
                    ratio = statistics.median(ratios)
                    figures.append(Figure(f"message DMA, {name} of {size // KIB} KiB", ratio, "x", TARGET, note))
        os.waitpid(child, 0)
    return figures, {"message_dma": samples}


def _paired(
    ours: Callable[[], object], floor: Callable[[], object], rounds: int, number: int
) -> tuple[list[float], list[float]]:
    """Ratios, and seconds of one of ours, by round."""
    ratios, seconds = [], []
    for _ in range(rounds):
        times = []
        for action in (floor, ours):
            started = perf_counter()
            for _ in range(number):
                action()
            times.append((perf_counter() - started) / number)
        ratios.append(times[1] / times[0])
        seconds.append(times[1])
    return ratios, seconds


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            work()
            status = 0
        os._exit(status)
    return child


def _client(path: Path) -> None:
    """Has memory, and serves it until the server is gone."""
    with VfioUserClient.connect(path, share_memory=False, memory_size=4 << 20, memory_iova=_IOVA) as client:
        client.dma_alloc(1)
        with suppress(ConnectionClosedError):
            while True:
                client.connection.process(10.0)


class _Bare:
    """The floor: a child that answers with as many bytes as it is asked for."""

    def __enter__(self) -> Self:
        self._socket, other = socket.socketpair()
        self._buffer = bytearray(PIECE + _HEADER)
        self._child = _fork(lambda: self._answer(other))
        other.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.waitpid(self._child, 0)

    def read(self, pieces: int) -> None:
        for _ in range(pieces):
            self._socket.sendall(PIECE.to_bytes(8, "little") + bytes(_HEADER - 8))
            self._receive(self._socket, self._buffer, _HEADER + PIECE)

    def write(self, pieces: int) -> None:
        for _ in range(pieces):
            self._socket.sendall(bytes(8) + PIECE.to_bytes(8, "little") + bytes(_HEADER - 16 + PIECE))
            self._receive(self._socket, self._buffer, _HEADER)

    @staticmethod
    def _receive(channel: socket.socket, buffer: bytearray, count: int) -> bool:
        view = memoryview(buffer)
        at = 0
        while at < count:
            got = channel.recv_into(view[at:count])
            if not got:
                return False
            at += got
        return True

    def _answer(self, channel: socket.socket) -> None:
        self._socket.close()
        buffer = bytearray(PIECE + _HEADER)
        while self._receive(channel, buffer, _HEADER):
            back, there = int.from_bytes(buffer[:8], "little"), int.from_bytes(buffer[8:16], "little")
            if there and not self._receive(channel, buffer, there):
                return
            channel.sendall(memoryview(buffer)[: _HEADER + back])
