"""What DMA costs: mapping, looking up, and copying.

    python bench/dma.py [--largest 1000000]

Prints one line a figure: the best of several runs, since everything else on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import struct
import time
import timeit
from collections.abc import Callable

from vfio_user.memory import Dma
from vfio_user.protocol.constants import DmaMapFlags

RW = DmaMapFlags.READ | DmaMapFlags.WRITE
MIB = 1 << 20
PAGE = 4096


def best(action: Callable[[], object], number: int, repeat: int = 5) -> float:
    """Seconds of one call."""
    return min(timeit.repeat(action, number=number, repeat=repeat)) / number


def show(name: str, seconds: float, note: str = "") -> None:
    print(f"{name:<52}{seconds * 1e6:10.3f} us  {note}")


def rates(count: int) -> None:
    """Maps and unmaps page by page on top of ``count`` mappings, as a virtual IOMMU does, in random order."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 64 * MIB)
    flags = int(RW)
    order = list(range(count))
    random.Random(1).shuffle(order)
    dma = Dma(max_maps=count + 1000)
    started = time.perf_counter()
    for page in order:
        dma.map(page * 2 * PAGE, PAGE, flags, page % 16384 * PAGE, os.dup(fd))
    show(f"map, filling up to {count:,}", (time.perf_counter() - started) / count)
    gc.collect()
    started = time.perf_counter()
    rounds = 2000
    for _ in range(rounds):
        at = (2 * random.randrange(count) + 1) * PAGE
        dma.map(at, PAGE, flags, 0, os.dup(fd))
        dma.unmap(at, PAGE)
    seconds = (time.perf_counter() - started) / rounds
    show(
        f"map and unmap at {count:,}",
        seconds,
        f"{1 / seconds:,.0f} a second, with dup and close of the descriptor",
    )
    addresses = [page * 2 * PAGE + 64 for page in random.Random(2).choices(order, k=20_000)]
    started = time.perf_counter()
    for address in addresses:
        dma.lookup(address)
    show(f"look-up at {count:,}, at random", (time.perf_counter() - started) / len(addresses))
    started = time.perf_counter()
    for address in addresses:
        dma.read(address, 64)
    show(f"read of 64 bytes at {count:,}, at random", (time.perf_counter() - started) / len(addresses))
    started = time.perf_counter()
    dma.clear()
    show(f"clear of {count:,}, each", (time.perf_counter() - started) / count)
    os.close(fd)


def accesses() -> None:
    fd = os.memfd_create("bench")
    os.ftruncate(fd, 64 * MIB)
    dma = Dma()
    dma.map(0, 32 * MIB, RW, 0, os.dup(fd))
    dma.map(32 * MIB, 32 * MIB, RW, 32 * MIB, os.dup(fd))
    dma.map(64 * MIB, 32 * MIB, RW | DmaMapFlags.ACCESS_FILE_IO, 0, fd)
    data, entry = bytes(64), struct.Struct("<IIQQQQQIIIIII")
    dma.write(0, bytes(64 * MIB))
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
        show(name, best(action, 20_000))
    plain, target = bytearray(MIB), bytearray(MIB)
    whole = memoryview(target)
    source = memoryview(plain)

    def copy() -> None:
        whole[:] = source

    floor = best(copy, 200, 15)
    show("plain copy of 1 MiB", floor, f"{MIB / floor / 1e9:.1f} GB/s")
    for name, action in {
        "read_into of 1 MiB": lambda: dma.read_into(MIB, target),
        "write of 1 MiB": lambda: dma.write(MIB, plain),
    }.items():
        seconds = best(action, 200, 15)
        show(name, seconds, f"{floor / seconds:.2f} of a plain copy")
    floor = best(lambda: bytes(source), 200, 15)
    seconds = best(lambda: dma.read(MIB, MIB), 200, 15)
    show("read of 1 MiB", seconds, f"{floor / seconds:.2f} of bytes() of as much memory")
    dma.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="the most mappings to try")
    largest: int = parser.parse_args().largest
    accesses()
    for count in (10, 10_000, 1_000_000):
        if count <= largest:
            rates(count)


if __name__ == "__main__":
    main()
