"""Register accesses from a driver in Python to a device in Python: what a test, a driver or a tool has of it.

The server is on a core of its own where there are two. Beside it, the same accesses of a client with a twin socket,
which looks at two sockets.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

from bench.peers import running
from bench.report import Figure
from vfio_user.client.device import VfioUserClient
from vfio_user.protocol.constants import RegionIndex

__all__ = ["measure"]

_LIVENESS = 0x04


def measure(rounds: int, accesses: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Drives edu.

    Returns:
        Figures, and all samples, in microseconds.
    """
    say(f"driver and device in Python: {rounds} rounds of {accesses} accesses")
    cpus = sorted(os.sched_getaffinity(0))
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder) / "edu"
        command = (sys.executable, "-m", "vfio_user", "serve", "edu", "--socket-path", str(address))
        try:
            os.sched_setaffinity(0, {cpus[0]})
            with running(command, address, cpus[-1]):
                for _ in range(rounds):
                    for twin in (False, True):
                        with VfioUserClient.connect(address, twin_socket=twin) as client:
                            for name, sample in _drive(client, accesses).items():
                                samples.setdefault(f"{name}, twin socket" if twin else name, []).append(sample)
        finally:
            os.sched_setaffinity(0, cpus)
    figures = [
        Figure(f"Python client: {name}", statistics.median(all_), "us", None, f"best round {min(all_):.2f} us")
        for name, all_ in samples.items()
    ]
    return figures, {"client": samples}


def _drive(client: VfioUserClient, accesses: int) -> dict[str, float]:
    """Microseconds of one access: the median of those that are answered, the mean of those that are not."""
    bar0 = client.region(RegionIndex.BAR0)
    read = _median(lambda: bar0.read32(_LIVENESS), accesses)
    write = _median(lambda: bar0.write32(_LIVENESS, 5), accesses)
    started = perf_counter_ns()
    for _ in range(accesses):
        bar0.write32(_LIVENESS, 5, posted=True)
    bar0.read32(_LIVENESS)  # answered when every write has been done
    return {"read": read, "write": write, "posted write": (perf_counter_ns() - started) / accesses / 1e3}


def _median(access: Callable[[], object], number: int) -> float:
    times = []
    for _ in range(number):
        started = perf_counter_ns()
        access()
        times.append(perf_counter_ns() - started)
    return statistics.median(times) / 1e3
