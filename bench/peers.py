"""The processes a measurement is made of: servers, and the client that drives them, each on the core it is told to use.

The client and the floor are C, compiled here where there is a compiler. Without one a client in Python stands in, and
there is no floor to compare with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

__all__ = ["Programs", "Register", "Sample", "connect", "drive", "programs", "running"]

ROOT = Path(__file__).resolve().parent.parent
_C = Path(__file__).resolve().parent / "c"

#: Seconds until a server that does not listen is given up.
_START_TIMEOUT = 10.0

#: Seconds until a client that does not come to an end is given up.
_CLIENT_TIMEOUT = 120.0


@dataclass(frozen=True)
class Programs:
    """What is run.

    Attributes:
        client: the command of the measuring client.
        floor: the command of the C server; None without a compiler.
    """

    client: tuple[str, ...]
    floor: tuple[str, ...] | None


@dataclass(frozen=True)
class Register:
    """Where a measured register is: a region's index, and bytes into it."""

    region: int
    offset: int


@dataclass(frozen=True)
class Sample:
    """What one run of the client measured; all in nanoseconds.

    Attributes:
        read_p50: the median round trip of a read.
        read_p99: the round trip 99 of 100 reads are faster than.
        write_p50: as for reads, of a write that is answered.
        write_p99: likewise.
        posted: one posted write, the server's work included.
    """

    read_p50: float
    read_p99: float
    write_p50: float
    write_p99: float
    posted: float


def programs(folder: Path) -> Programs:
    """Compiles the client and the floor into a folder, or falls back to the client in Python."""
    compiler = next(
        (path for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (path := shutil.which(name))), None
    )
    if compiler is None:
        print("no C compiler (cc, gcc, clang): a Python client measures, and there is no floor to compare with")
        return Programs((sys.executable, "-m", "bench.python_client"), None)
    for name in ("client", "floor"):
        subprocess.run([compiler, "-O2", "-Wall", "-o", str(folder / name), str(_C / f"{name}.c")], check=True)
    return Programs((str(folder / "client"),), (str(folder / "floor"),))


@contextlib.contextmanager
def running(
    command: Sequence[str], address: Path, cpu: int | None, stderr: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a server on one core (None: on any), waits until it listens at ``address``, and ends it in the end.

    Raises:
        TimeoutError: it does not listen.
        RuntimeError: it ended by itself.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        deadline = time.monotonic() + _START_TIMEOUT
        while not connect(address):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{' '.join(command)} did not listen at {address} in {_START_TIMEOUT:.0f} s")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        process.wait()


def connect(address: Path) -> bool:
    """Connects and hangs up: a server listens there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def drive(
    client: Sequence[str], address: Path, register: Register, cpu: int, round_trips: int, posted_writes: int
) -> Sample:
    """Runs the client on one core against the server at ``address``.

    Raises:
        RuntimeError: it failed; its words are in the text.
    """
    arguments = (str(address), register.region, register.offset, round_trips, posted_writes)
    done = subprocess.run(
        ["taskset", "-c", str(cpu), *client, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_CLIENT_TIMEOUT,
    )
    if done.returncode:
        raise RuntimeError(f"the client failed: {done.stderr.strip()}")
    return Sample(*map(float, done.stdout.split()))
