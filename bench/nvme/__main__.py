"""Measures the NVMe controller, from a driver's doorbell to its completion: ``make bench-nvme``.

A load generator in C, which polls, has one core, and the controller the other. It writes the whole medium first, each
page with its number, and checks that in every page it reads. Every figure is the best of several short runs: on a
machine that does other things too, the best run says what the code can do, and the others what the machine did.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.nvme.guest import measure_in_guest
from bench.peers import running

_HERE = Path(__file__).resolve().parent

KIB = 1024


@dataclass(frozen=True)
class Load:
    """What the generator does.

    Attributes:
        opcode: read or write.
        size: bytes of a command.
        depth: commands outstanding.
    """

    opcode: str
    size: int
    depth: int

    def __str__(self) -> str:
        return f"{self.opcode} {self.size // KIB} KiB QD{self.depth}"


@dataclass(frozen=True)
class Setup:
    """What is measured.

    Attributes:
        name: in the table.
        image: see ``open_backend``; FILE stands for a file made for it.
        engine: vector or scalar.
        doorbells: mapped, shadow or trapped.
        loads: with the target of each: commands a second, or None.
    """

    name: str
    image: str
    engine: str
    doorbells: str
    loads: dict[Load, int | None]


@dataclass(frozen=True)
class Figures:
    """The best of some runs.

    Attributes:
        rate: commands a second.
        p50: the median latency in microseconds; the least of any run. The depth by it is the rate of the undisturbed
            half of the time.
        p99: likewise.
        cpu: the server's processor time for one command in microseconds, with its looking for work.
        messages: that the generator sent, in a thousand commands.
    """

    rate: float
    p50: float
    p99: float
    cpu: float
    messages: float


def random_reads(*targets: int | None) -> dict[Load, int | None]:
    return {Load("read", 4 * KIB, depth): target for depth, target in zip((1, 8, 32, 128), targets, strict=True)}


LARGE = Load("read", 128 * KIB, 8)

SETUPS = [
    Setup(
        "memory",
        "memory:{size}M",
        "vector",
        "mapped",
        {
            **random_reads(60_000, 150_000, 400_000, 1_000_000),
            Load("write", 4 * KIB, 32): None,
            LARGE: 8_000_000_000 // LARGE.size,
        },
    ),
    Setup("memory, no NumPy", "memory:{size}M", "scalar", "mapped", {**random_reads(None, None, 100_000, None)}),
    Setup(
        "mapped file",
        "file:{file}?mapped=on",
        "vector",
        "mapped",
        {**random_reads(None, None, None, None), LARGE: None},
    ),
    Setup("file", "file:{file}", "scalar", "mapped", {**random_reads(None, None, None, None), LARGE: None}),
    Setup("memory, shadow doorbells", "memory:{size}M", "vector", "shadow", random_reads(None, None, None, None)),
    Setup("memory, trapped doorbells", "memory:{size}M", "vector", "trapped", random_reads(None, None, None, None)),
]


@contextmanager
def serving(setup: Setup, folder: Path, size: int, cpu: int, *, profile: bool) -> Iterator[list[str]]:
    """Serves the controller; yields the beginning of the generator's command."""
    address = folder / "nvme.sock"
    image = setup.image.format(size=size, file=folder / "disk.img")
    if "disk.img" in image:
        with (folder / "disk.img").open("wb") as file:
            file.truncate(size << 20)
    command = [sys.executable, "-m", "bench.nvme.serve", str(address), image, setup.engine, setup.doorbells]
    with running([*command, *(["profile"] if profile else [])], address, cpu) as server:
        doorbells = "written" if setup.doorbells == "trapped" else setup.doorbells
        yield [str(folder / "load"), str(address), str(server.pid), doorbells]
    address.unlink(missing_ok=True)


def generate(command: list[str], cpu: int, *arguments: object) -> list[float]:
    done = subprocess.run(
        ["taskset", "-c", str(cpu), *command, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"the generator failed: {done.stderr.strip()}")
    return [float(word) for word in done.stdout.split()]


def measure(command: list[str], load: Load, cpu: int, runs: int, seconds: float) -> Figures:
    best: Figures | None = None
    least = float("inf")
    for _ in range(runs):
        rate, p50, p99, cost, messages = generate(command, cpu, load.opcode, load.size, load.depth, seconds)
        least = min(least, p50 / 1e3)
        if best is None or rate > best.rate:
            best = Figures(rate, p50 / 1e3, p99 / 1e3, cost / 1e3, messages / max(rate * seconds, 1) * 1e3)
    assert best is not None
    return replace(best, p50=least)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.nvme", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure, of which the best counts")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--size", type=int, default=256, help="MiB of the medium")
    parser.add_argument("--only", default="", help="setups whose name contains this; guest: Linux alone")
    parser.add_argument("--depth", type=int, help="of random reads; all of them if left out")
    parser.add_argument("--profile", action="store_true", help="where the controller spends its time; slows it down")
    parser.add_argument("--cpus", default="0,1", help="of the generator and of the controller")
    options = parser.parse_args()
    ours, theirs = map(int, options.cpus.split(","))
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        parser.exit(1, "the load generator is C: install gcc or clang\n")
    with tempfile.TemporaryDirectory(prefix="vfio-user-bench-") as name:
        folder = Path(name)
        subprocess.run([compiler, "-O2", "-Wall", "-o", str(folder / "load"), str(_HERE / "load.c")], check=True)
        columns = (
            ("commands/s", 11),
            ("target", 10),
            ("GB/s", 6),
            ("p50 us", 8),
            ("p99 us", 8),
            ("by p50", 10),
            ("CPU us", 7),
        )
        if options.only != "guest":
            print(" " * 47, *(f"{title:>{width}}" for title, width in columns), "messages/1000")
        for setup in SETUPS:
            if options.only not in setup.name:
                continue
            with serving(setup, folder, options.size, theirs, profile=options.profile) as command:
                generate(command, ours, "fill")
                for load, target in setup.loads.items():
                    if options.depth not in (None, load.depth):
                        continue
                    figures = measure(command, load, ours, options.runs, options.seconds)
                    mark = "" if target is None else "  reached" if figures.rate >= target else "  missed"
                    wanted = "" if target is None else f"{target:,}"
                    print(
                        f"{setup.name:26} {load!s:20} {figures.rate:11,.0f} {wanted:>10} "
                        f"{figures.rate * load.size / 1e9:6.1f} {figures.p50:8.1f} {figures.p99:8.1f} "
                        f"{load.depth / figures.p50 * 1e6:10,.0f} "
                        f"{figures.cpu:7.2f} {figures.messages:8.0f}{mark}",
                        flush=True,
                    )
                (share,) = generate(command, ours, "idle", 1)
                print(f"{setup.name:26} {'idle':20} {share / 1e4:10.2f}% of a core (target: less than 1 %)", flush=True)
    if options.only in "guest" and not options.profile and options.depth is None:
        measure_in_guest(max(options.seconds, 1), min(options.runs, 2), theirs)


if __name__ == "__main__":
    main()
