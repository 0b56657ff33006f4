"""Measures the NVMe controller, from a driver's doorbell to its completion: ``make bench-nvme``.

A load generator in C, which polls, has one core, and the controller the other. It writes the whole medium first, each
page with its number, and checks that in every page it reads. Every figure is the best of several short runs: on a
machine that does other things too, the best run says what the code can do, and the others what the machine did.

Before each run the same load goes to a device of fifty lines of C (``floor.c``), on the same two cores: what this
machine can do at this moment. It trusts what it is given, and is no controller; the ratio to it is what can be compared
between machines, and between moments. A second device, which copies nothing, shows how far the generator goes.
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
from statistics import median

from bench.nvme.guest import measure_in_guest
from bench.peers import running

_HERE = Path(__file__).resolve().parent

KIB = 1024

#: How nearly as quick as memory a file that is mapped is to be.
_ALIKE = 0.8


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
        like: the setup it is to be nearly as quick as.
    """

    name: str
    image: str
    engine: str
    doorbells: str
    loads: dict[Load, int | None]
    like: str = ""


@dataclass(frozen=True)
class Figures:
    """The best of some runs.

    Attributes:
        rate: commands a second.
        floor: those of the C device, the best run.
        ratio: to the floor, the median of the runs.
        p50: the median latency in microseconds; the least of any run. The depth by it is the rate of the undisturbed
            half of the time.
        p99: likewise.
        cpu: the server's processor time for one command in microseconds, with its looking for work.
        messages: that the generator sent, in a thousand commands.
    """

    rate: float
    floor: float
    ratio: float
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
        like="memory",
    ),
    Setup(
        "file",
        "file:{file}",
        "scalar",
        "mapped",
        {**random_reads(None, None, None, None), Load("write", 4 * KIB, 32): None, LARGE: None},
    ),
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


def measure(command: list[str], load: Load, floor: Floor, runs: int, seconds: float) -> Figures:
    best: Figures | None = None
    least = float("inf")
    floors, ratios = [], []
    for _ in range(runs):
        floors.append(floor.rate(load, seconds / 2))
        rate, p50, p99, cost, messages = generate(command, floor.ours, load.opcode, load.size, load.depth, seconds)
        ratios.append(rate / floors[-1])
        least = min(least, p50 / 1e3)
        if best is None or rate > best.rate:
            best = Figures(rate, 0, 0, p50 / 1e3, p99 / 1e3, cost / 1e3, messages / max(rate * seconds, 1) * 1e3)
    assert best is not None
    return replace(best, p50=least, floor=max(floors), ratio=median(ratios))


@dataclass(frozen=True)
class Floor:
    """The device in C.

    Attributes:
        program: the generator, which has it.
        medium: bytes.
        ours: the generator's processor.
        theirs: the device's.
    """

    program: str
    medium: int
    ours: int
    theirs: int

    def rate(self, load: Load, seconds: float, *, copies: bool = True) -> float:
        """Commands a second."""
        medium = self.medium if copies else 0
        command = [self.program, "floor", str(self.theirs), str(medium)]
        return generate(command, self.ours, load.opcode, load.size, load.depth, seconds)[0]


COLUMNS = (
    "commands/s", "target", "floor", "ratio", "GB/s", "p50 us", "p99 us", "by p50", "CPU us", "messages/1000",
)  # fmt: skip
WIDTHS = (11, 10, 10, 5, 6, 8, 8, 10, 7, 5)


def _mark(reached: bool) -> str:
    return "reached" if reached else "missed"


def print_row(name: str, load: object, *cells: str) -> None:
    widths = (*WIDTHS[: len(cells)], *(0 for _ in cells[len(WIDTHS) :]))
    print(
        f"{name:26} {load!s:20}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True
    )


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
        sources = [str(_HERE / name) for name in ("load.c", "floor.c")]
        subprocess.run([compiler, "-O2", "-Wall", "-pthread", "-o", str(folder / "load"), *sources], check=True)
        floor = Floor(str(folder / "load"), options.size << 20, ours, theirs)
        if options.only != "guest":
            print_row("", "", *COLUMNS)
        for name, copies in (("C, copies nothing", False), ("C (the floor)", True)):
            if options.only in ("", "floor"):
                for load in SETUPS[0].loads:
                    rate = max(floor.rate(load, options.seconds, copies=copies) for _ in range(options.runs))
                    moved = f"{rate * load.size / 1e9:.1f}" if copies else ""
                    print_row(name, load, f"{rate:,.0f}", "", "", "", moved)
        rates: dict[tuple[str, Load], float] = {}
        for setup in SETUPS:
            if options.only not in setup.name:
                continue
            with serving(setup, folder, options.size, theirs, profile=options.profile) as command:
                generate(command, ours, "fill")
                for load, target in setup.loads.items():
                    if options.depth not in (None, load.depth):
                        continue
                    figures = measure(command, load, floor, options.runs, options.seconds)
                    rates[setup.name, load] = figures.rate
                    mark = "" if target is None else _mark(figures.rate >= target)
                    if setup.like and (memory := rates.get((setup.like, load))):
                        share = figures.rate / memory
                        mark = f"{share:.2f} of {setup.like} (target {_ALIKE}: {_mark(share >= _ALIKE)})"
                    print_row(
                        setup.name,
                        load,
                        f"{figures.rate:,.0f}",
                        "" if target is None else f"{target:,}",
                        f"{figures.floor:,.0f}",
                        f"{figures.ratio:.2f}",
                        f"{figures.rate * load.size / 1e9:.1f}",
                        f"{figures.p50:.1f}",
                        f"{figures.p99:.1f}",
                        f"{load.depth / figures.p50 * 1e6:,.0f}",
                        f"{figures.cpu:.2f}",
                        f"{figures.messages:.0f}",
                        mark,
                    )
                share = min(generate(command, ours, "idle", 1)[0] for _ in range(min(options.runs, 3)))
                print_row(setup.name, "idle", f"{share / 1e4:.2f}%", "1.00%", *[""] * 8, _mark(share <= 10_000))
    if options.only in "guest" and not options.profile and options.depth is None:
        measure_in_guest(max(options.seconds, 1), min(options.runs, 2), theirs)


if __name__ == "__main__":
    main()
