"""How long a server takes from exec to listening, and how much memory it has used by then."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers import ROOT, connect
from bench.report import Figure

__all__ = ["measure", "peak_memory"]

#: Milliseconds until a server listens, at most.
START_TARGET = 120.0

#: MiB of an idle server, at most.
MEMORY_TARGET = 30.0

#: Seconds between two attempts to connect: what a start is measured to.
_POLL = 0.0005

_TIMEOUT = 10.0


def measure(rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Starts a server, and the bare interpreter, in turn.

    Returns:
        Figures, and all samples.
    """
    say(f"cold start and memory: {rounds} rounds")
    starts, bare, peaks = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            interpreter = _time_interpreter()
            start, peak = _start_server(Path(folder) / f"{number}.sock")
            if number:  # the first one may have compiled modules, and read them from disk
                bare.append(interpreter)
                starts.append(start)
                peaks.append(peak)
    ratio = statistics.median(server / interpreter for server, interpreter in zip(starts, bare, strict=True))
    figures = [
        Figure("from exec to listening", statistics.median(starts), "ms", START_TARGET, "vfio-user serve edu"),
        Figure("  against the bare interpreter", ratio, "x", None, f"python -c pass: {statistics.median(bare):.1f} ms"),
        Figure("peak memory of an idle server", statistics.median(peaks), "MiB", MEMORY_TARGET, "VmHWM"),
    ]
    return figures, {"startup": {"server_ms": starts, "interpreter_ms": bare, "peak_mib": peaks}}


def _time_interpreter() -> float:
    """Milliseconds Python takes to start, do nothing and end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - started) * 1e3


def _start_server(address: Path) -> tuple[float, float]:
    """Starts a server and ends it.

    Returns:
        Milliseconds until a client could connect, and the most memory it has had by then, in MiB.

    Raises:
        RuntimeError: it ended by itself.
        TimeoutError: it does not listen.
    """
    command = [sys.executable, "-m", "vfio_user", "serve", "edu", "--socket-path", str(address)]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while not connect(address):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
            if time.perf_counter() - started > _TIMEOUT:
                raise TimeoutError(f"{' '.join(command)} did not listen in {_TIMEOUT:.0f} s")
            time.sleep(_POLL)
        return (time.perf_counter() - started) * 1e3, peak_memory(process.pid)
    finally:
        process.terminate()
        process.wait()


def peak_memory(pid: int) -> float:
    """The most memory a process has had resident, in MiB. Spec: proc(5), VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status has no VmHWM")
