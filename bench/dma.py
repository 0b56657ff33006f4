"""What DMA costs: copying, mapping, looking up.

Copies are compared with copies of as much plain memory, round by round; mapping with duplicating and closing a
descriptor, which every DMA_MAP does; a look-up with a bisection of as many addresses.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import struct
import timeit
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from bench.report import Figure
from vfio_user.memory import Dma
from vfio_user.protocol.constants import DmaMapFlags

__all__ = ["measure"]

RW = int(DmaMapFlags.READ | DmaMapFlags.WRITE)
MIB = 1 << 20
PAGE = 4096

#: A copy from or to mapped memory takes at most so many times what one of plain memory does: 0.9 of its speed.
COPY_TARGET = 1 / 0.9

#: A look-up takes at most so many times a bisection of as many addresses, however many there are.
LOOKUP_TARGET = 3.0

COUNTS = (10, 10_000, 1_000_000)


@dataclass
class Paired:
    """Two things timed in turn, so that what else the machine does falls on both.

    Attributes:
        floor: seconds of one of the floor, a round.
        ours: of what is measured.
    """

    floor: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def round(self, floor: Callable[[], object], ours: Callable[[], object], number: int) -> None:
        """Times each, twice, and takes the better."""
        self.floor.append(min(timeit.repeat(floor, number=number, repeat=2)) / number)
        self.ours.append(min(timeit.repeat(ours, number=number, repeat=2)) / number)

    @property
    def ratio(self) -> float:
        """How many times the floor: the median of the rounds'."""
        return statistics.median(ours / floor for ours, floor in zip(self.ours, self.floor, strict=True))


def measure(
    rounds: int, say: Callable[[str], None], *, counts: tuple[int, ...] = COUNTS
) -> tuple[list[Figure], dict[str, object]]:
    """Measures all of it.

    Returns:
        Figures, and all samples.
    """
    say(f"DMA: {rounds} rounds; {', '.join(f'{count:,}' for count in counts)} mappings")
    samples: dict[str, object] = {}
    figures = [*_copies(rounds, samples), *_accesses(rounds)]
    for count in counts:
        figures += _rates(count, samples)
    return figures, {"dma": samples}


def _mapped(*, file_io: bool = False) -> Dma:
    """64 MiB at 0, in two halves of one file; with ``file_io`` as much again behind them."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 64 * MIB)
    dma = Dma()
    dma.map(0, 32 * MIB, RW, 0, os.dup(fd))
    dma.map(32 * MIB, 32 * MIB, RW, 32 * MIB, os.dup(fd))
    if file_io:
        dma.map(64 * MIB, 32 * MIB, RW | int(DmaMapFlags.ACCESS_FILE_IO), 0, os.dup(fd))
    os.close(fd)
    dma.write(0, bytes(64 * MIB))
    return dma


def _copies(rounds: int, samples: dict[str, object]) -> list[Figure]:
    dma = _mapped()
    figures = []
    for size, number in ((PAGE, 5000), (64 * 1024, 1000), (MIB, 100)):
        source, target = bytearray(size), bytearray(size)
        from_view, to_view = memoryview(source), memoryview(target)

        def copy(to_view: memoryview = to_view, from_view: memoryview = from_view) -> None:
            to_view[:] = from_view

        for name, ours in (
            ("read_into", lambda target=target: dma.read_into(MIB, target)),
            ("write", lambda source=source: dma.write(MIB, source)),
        ):
            paired = Paired()
            for _ in range(rounds):
                paired.round(copy, ours, number)
            samples[f"{name} of {size}"] = vars(paired)
            speed = size / statistics.median(paired.ours) / 1e9
            # Under a page, what is measured is the call.
            target_ratio = COPY_TARGET if size == MIB else None
            best = min(paired.ours) / min(paired.floor)
            note = f"{speed:.1f} GB/s; best round beside best round {best:.2f}x"
            figures.append(Figure(f"{name} of {size // 1024} KiB", paired.ratio, "x", target_ratio, note))
    dma.clear()
    return figures


def _accesses(rounds: int) -> list[Figure]:
    dma = _mapped(file_io=True)
    data, entry = bytes(64), struct.Struct("<IIQQQQQIIIIII")
    figures = []
    for name, action in {
        "read of 64 bytes": lambda: dma.read(4096, 64),
        "write of 64 bytes": lambda: dma.write(4096, data),
        "read_u32": lambda: dma.read_u32(4096),
        "write_u32": lambda: dma.write_u32(4096, 1),
        "read_struct of 72 bytes": lambda: dma.read_struct(4096, entry),
        "view of 4 KiB": lambda: dma.view(4096, 4096),
        "sgl of one segment": lambda: dma.sgl(4096, 4096),
        "sgl across two slices of a file": lambda: dma.sgl(32 * MIB - 2048, 4096),
        "read of 64 bytes across two slices": lambda: dma.read(32 * MIB - 32, 64),
        "read of 64 bytes by file I/O": lambda: dma.read(64 * MIB, 64),
    }.items():
        best = min(timeit.repeat(action, number=5000, repeat=rounds)) / 5000
        figures.append(Figure(name, best * 1e6, "us"))
    dma.clear()
    return figures


def _rates(count: int, samples: dict[str, object]) -> list[Figure]:
    """Maps and unmaps page by page on top of ``count`` mappings, as a virtual IOMMU does, in random order."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 64 * MIB)
    order = list(range(count))
    random.Random(1).shuffle(order)
    dma = Dma(max_maps=count + 1000)
    started = perf_counter()
    for page in order:
        dma.map(page * 2 * PAGE, PAGE, RW, page % 16384 * PAGE, os.dup(fd))
    filling = (perf_counter() - started) / count
    gc.collect()
    places = random.Random(3)

    def duplicate() -> None:
        os.close(os.dup(fd))

    def map_and_unmap() -> None:
        at = (2 * places.randrange(count) + 1) * PAGE
        dma.map(at, PAGE, RW, 0, os.dup(fd))
        dma.unmap(at, PAGE)

    changing = Paired()
    for _ in range(5):
        changing.round(duplicate, map_and_unmap, 500)
    addresses = [page * 2 * PAGE + 64 for page in random.Random(2).choices(order, k=20_000)]
    starts = [page * 2 * PAGE for page in range(count)]
    looking, reading = Paired(), Paired()

    def each(action: Callable[[int], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            for address in addresses:
                action(address)

        return all_of_them

    for _ in range(5):
        looking.round(each(lambda address: bisect_right(starts, address)), each(dma.lookup), 1)
        reading.round(each(dma.lookup), each(lambda address: dma.read(address, 64)), 1)
    started = perf_counter()
    dma.clear()
    clearing = (perf_counter() - started) / count
    os.close(fd)
    samples[f"rates at {count}"] = {"map and unmap": vars(changing), "look-up": vars(looking), "read": vars(reading)}
    change, lookup = statistics.median(changing.ours), statistics.median(looking.ours) / len(addresses)
    read = statistics.median(reading.ours) / len(addresses)
    return [
        Figure(f"map, filling up to {count:,}", filling * 1e6, "us"),
        Figure(
            f"map and unmap at {count:,}",
            changing.ratio,
            "x",
            None,
            f"of dup and close; {change * 1e6:.1f} us, {1 / change:,.0f} a second",
        ),
        Figure(
            f"look-up at {count:,}, at random",
            looking.ratio,
            "x",
            LOOKUP_TARGET,
            f"of a bisection; {lookup * 1e6:.2f} us",
        ),
        Figure(
            f"read of 64 bytes at {count:,}, at random", reading.ratio, "x", None, f"of look-up; {read * 1e6:.2f} us"
        ),
        Figure(f"clear of {count:,}, each", clearing * 1e6, "us"),
    ]
