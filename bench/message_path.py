"""Register accesses through the socket, next to the least any server could take for them.

A machine that does other things beside is noisy, and slower at one minute than at the next. So all servers run at the
same time, are driven in turn within each round, and a server is compared with the floor round by round: the figure is
the median of those ratios. Beside it stands what the best rounds of both say, which is nearer to a quiet machine.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.peers import Programs, Register, Sample, drive, programs, running
from bench.report import Figure, format_table

__all__ = ["Placement", "Target", "measure", "placements", "ratios"]

FLOOR = "C echo (the floor)"

#: What is accessed unless said otherwise: the second register of BAR 0, which for edu inverts what is written.
LIVENESS = Register(region=0, offset=4)

#: At most so many times the floor. A round trip is mostly the kernel's, and Python's part of it fits under this; on two
#: cores the floor's posted writes cost its server nothing but the reception, which Python cannot come near.
ROUND_TRIP_TARGET = 1.15
POSTED_TARGET_ONE_CORE = 1.1
POSTED_TARGET_TWO_CORES = 2.5


@dataclass(frozen=True)
class Target:
    """A server that is measured.

    Attributes:
        name: for people.
        command: starts it, with the socket's path appended.
        register: what is accessed.
    """

    name: str
    command: tuple[str, ...]
    register: Register = LIVENESS


@dataclass(frozen=True)
class Placement:
    """On which cores client and server run."""

    name: str
    client: int
    server: int


def placements() -> list[Placement]:
    """One core, and two where the machine has them."""
    cpus = sorted(os.sched_getaffinity(0))
    found = [Placement("one core", cpus[0], cpus[0])]
    if len(cpus) > 1:
        found.append(Placement("two cores", cpus[0], cpus[1]))
    return found


def targets(floor: tuple[str, ...] | None) -> list[Target]:
    """What is measured; the floor first, where there is one."""
    serve = (sys.executable, "-m", "bench.serve")
    found = [
        Target("memory region", (*serve, "memory")),
        Target("register block", (*serve, "registers")),
        Target("register with hooks", (*serve, "registers"), Register(0, 0xC)),
        Target("edu's liveness", (sys.executable, "-m", "vfio_user", "serve", "edu", "--socket-path")),
    ]
    return [Target(FLOOR, floor), *found] if floor else found


def measure(
    rounds: int, round_trips: int, posted_writes: int, say: Callable[[str], None]
) -> tuple[list[Figure], dict[str, object]]:
    """Measures every target in every placement.

    Returns:
        Figures, and all samples: by placement, by target, one a round.
    """
    figures: list[Figure] = []
    samples: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = programs(folder)
        for placement in placements():
            say(f"message path, 4-byte accesses, client and server on {placement.name}: {rounds} rounds")
            measured = _measure_placement(placement, found, folder, rounds, round_trips, posted_writes)
            say(_table(measured))
            figures += _figures(placement, measured)
            samples[placement.name] = {target: [asdict(one) for one in all_] for target, all_ in measured.items()}
    return figures, {"message_path": samples}


def _measure_placement(
    placement: Placement, found: Programs, folder: Path, rounds: int, round_trips: int, posted_writes: int
) -> dict[str, list[Sample]]:
    measured: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        started: list[tuple[Target, Path]] = []
        for number, target in enumerate(targets(found.floor)):
            address = folder / f"{placement.client}{placement.server}{number}.sock"
            stack.enter_context(running((*target.command, str(address)), address, placement.server))
            started.append((target, address))
            measured[target.name] = []
        for _ in range(rounds):
            for target, address in started:
                sample = drive(found.client, address, target.register, placement.client, round_trips, posted_writes)
                measured[target.name].append(sample)
    return measured


def ratios(measured: dict[str, list[Sample]], target: str) -> dict[str, float]:
    """How many times the floor a target takes, for each figure of a sample: the median of the rounds' ratios."""
    pairs = list(zip(measured[target], measured[FLOOR], strict=True))
    return {
        field.name: statistics.median(getattr(ours, field.name) / getattr(floor, field.name) for ours, floor in pairs)
        for field in fields(Sample)
    }


def _figures(placement: Placement, measured: dict[str, list[Sample]]) -> list[Figure]:
    figures = []
    one_core = placement.client == placement.server
    for target, samples in measured.items():
        for field, text in (("read_p50", "read"), ("write_p50", "write"), ("posted", "posted write")):
            median = statistics.median(getattr(sample, field) for sample in samples)
            name = f"{placement.name}, {target}: {text}"
            if target == FLOOR or FLOOR not in measured:
                figures.append(Figure(name, median / 1e3, "us"))
                continue
            limit: float | None = ROUND_TRIP_TARGET if one_core else None
            if field == "posted":
                limit = POSTED_TARGET_ONE_CORE if one_core else POSTED_TARGET_TWO_CORES
            best = min(getattr(sample, field) for sample in samples)
            best /= min(getattr(sample, field) for sample in measured[FLOOR])
            note = f"{median / 1e3:.2f} us; best round beside best round {best:.2f}x"
            figures.append(Figure(name, ratios(measured, target)[field], "x", limit, note))
    return figures


def _table(measured: dict[str, list[Sample]]) -> str:
    """A line for each target, in microseconds."""
    rows: list[Sequence[str]] = [("", "read p50", "p99", "write p50", "p99", "posted", "posted/s")]
    for target, samples in measured.items():
        medians = [statistics.median(getattr(sample, field.name) for sample in samples) for field in fields(Sample)]
        rows.append((target, *(f"{median / 1e3:.2f} us" for median in medians), f"{1e9 / medians[-1]:,.0f}"))
    return format_table(rows, right=frozenset(range(1, 7)))
