"""The client of ``c/client.c`` for a machine without a C compiler: same usage, same output.

Its own time is in every figure, so they tell how one version of the server compares with another, and no more.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence
from time import perf_counter_ns

_HEADER = struct.Struct("<HHIII")
_ACCESS = struct.Struct("<HHIIIQII")
_ACCESS_WITH_VALUE = struct.Struct("<HHIIIQIII")
_VERSION, _READ, _WRITE = 1, 9, 10
_NO_REPLY, _ERROR = 0x10, 0x20


class Client:
    """One connection, over which one register is accessed."""

    def __init__(self, path: str, region: int, offset: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._read = _ACCESS.pack(0, _READ, _ACCESS.size, 0, 0, offset, region, 4)
        write = (offset, region, 4, 0x1234_5678)
        self._write = _ACCESS_WITH_VALUE.pack(0, _WRITE, _ACCESS_WITH_VALUE.size, 0, 0, *write)
        self._posted = _ACCESS_WITH_VALUE.pack(0, _WRITE, _ACCESS_WITH_VALUE.size, _NO_REPLY, 0, *write)
        capabilities = struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'
        self.ask(_HEADER.pack(0, _VERSION, _HEADER.size + len(capabilities), 0, 0) + capabilities)

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def ask(self, message: bytes) -> None:
        """Sends a command and waits for its reply."""
        self._socket.sendall(message)
        _, command, size, flags, error = _HEADER.unpack(self._receive(_HEADER.size))
        if flags & _ERROR:
            raise OSError(error, f"the server refused command {command}")
        self._receive(size - _HEADER.size)

    def _receive(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) != size:
            raise ConnectionError("the server went away")
        return data

    def round_trips(self, *, write: bool, number: int) -> list[int]:
        """Nanoseconds of each round trip, in ascending order."""
        message = self._write if write else self._read
        times = []
        for _ in range(number):
            started = perf_counter_ns()
            self.ask(message)
            times.append(perf_counter_ns() - started)
        return sorted(times)

    def posted_writes(self, number: int) -> float:
        """Nanoseconds of one posted write, the server's work included."""
        started = perf_counter_ns()
        for _ in range(number):
            self._socket.sendall(self._posted)
        # Messages are carried out in order: when this read is answered, every write has been done.
        self.ask(self._read)
        return (perf_counter_ns() - started) / number


def main(arguments: Sequence[str]) -> None:
    """Measures, and prints what ``c/client.c`` prints."""
    path, region, offset, round_trips, posted_writes = arguments
    client = Client(path, int(region, 0), int(offset, 0))
    figures: list[float] = []
    for write in (False, True):
        times = client.round_trips(write=write, number=int(round_trips))
        figures += (times[len(times) // 2], times[len(times) - 1 - len(times) // 100])
    figures.append(client.posted_writes(int(posted_writes)))
    client.close()
    print(*figures)


if __name__ == "__main__":
    main(sys.argv[1:])
