"""Many devices in one process, with nobody connected: what each costs in memory and time to start.

    python -m bench.idle COUNT threads|loop

prints what the process with so many has used, one JSON object; ``measure`` runs that, next to one device.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, process_time

from bench.peers import ROOT
from bench.report import Figure
from bench.startup import peak_memory
from vfio_user.devices.edu import Edu
from vfio_user.server.loop import EventLoop
from vfio_user.server.server import Server

__all__ = ["measure"]

MANY = 256

#: KiB of one idle device more, at most: its registers, its configuration space, a listening socket, a thread.
MEMORY_TARGET = 200.0

#: Milliseconds one device more takes to listen, at most.
START_TARGET = 2.0


def measure(rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Starts processes with many devices and with one.

    Returns:
        Figures, and all samples.
    """
    say(f"{MANY} idle devices in one process: {rounds} rounds")
    figures: list[Figure] = []
    samples: dict[str, object] = {}
    for how in ("threads", "loop"):
        many = [_run(MANY, how) for _ in range(rounds)]
        one = [_run(1, how) for _ in range(rounds)]
        samples[how] = {"many": many, "one": one}
        more = {
            key: statistics.median(a[key] - b[key] for a, b in zip(many, one, strict=True)) / (MANY - 1)
            for key in ("memory", "start", "idle")
        }
        whole = statistics.median(each["memory"] for each in many)
        threads = f"{many[0]['threads']:.0f} threads"
        name = f"an idle device more ({how})"
        note = f"{MANY} have {whole:.1f} MiB, {threads}"
        figures.append(Figure(f"{name}: memory", more["memory"] * 1024, "KiB", MEMORY_TARGET, note))
        figures.append(Figure(f"{name}: start", more["start"] * 1e3, "ms", START_TARGET))
        figures.append(Figure(f"{name}: CPU time a second", more["idle"] * 1e6, "us"))
    return figures, {"idle": samples}


def _run(count: int, how: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.idle", str(count), how]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(count: int, how: str) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = perf_counter()
        loop = EventLoop() if how == "loop" else None
        for number in range(count):
            server = stack.enter_context(Server(Edu(), Path(folder) / f"{number}.sock", loop=loop))
            if loop is None:
                server.start()
        start = perf_counter() - started
        used, began = process_time(), perf_counter()
        if loop is None:
            threading.Event().wait(0.5)
        else:
            loop.run_once(0.5)
        idle = (process_time() - used) / (perf_counter() - began)
        about = {"memory": peak_memory(os.getpid()), "threads": threading.active_count(), "start": start, "idle": idle}
        print(json.dumps(about))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
