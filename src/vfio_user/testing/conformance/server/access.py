"""What the checks of region accesses read and write.

What is read is configuration space, which every device has. What is written is its Interrupt Line register: eight bits
that are software's own and mean nothing to the device; they are put back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Unmet

__all__ = ["CONFIG", "INDEXES", "INTERRUPT_LINE", "access", "line", "line_is", "read", "write"]

CONFIG = RegionIndex.CONFIG
INTERRUPT_LINE = 0x3C

#: Region indexes whose end is tried.
INDEXES = list(RegionIndex)[:8]


def access(offset: int, count: int, region: int = CONFIG) -> bytes:
    """The payload of a read, and the beginning of a write's."""
    return struct.pack("<QII", offset, region, count)


def read(bench: Bench, offset: int, count: int, region: int = CONFIG) -> bytes:
    """Data of a read that is to succeed, in a reply that repeats the request."""
    request = access(offset, count, region)
    reply = bench.succeeds(Command.REGION_READ, request, 16 + count)
    if reply[:16] != request:
        raise Unmet(f"the reply is about {reply[:16].hex()}")
    return reply[16:]


def write(bench: Bench, offset: int, data: bytes, region: int = CONFIG) -> None:
    """A write that is to succeed."""
    request = access(offset, len(data), region)
    reply = bench.succeeds(Command.REGION_WRITE, request + data)
    if reply[:16] not in (b"", request):
        raise Unmet(f"the reply is about {reply[:16].hex()}")


@contextmanager
def line(bench: Bench) -> Iterator[int]:
    """The Interrupt Line register's value, which is put back."""
    bench.facts.region(CONFIG)
    (old,) = read(bench, INTERRUPT_LINE, 1)
    try:
        yield old
    finally:
        if not bench.peer.is_out_of_step:
            bench.ask(Command.REGION_WRITE, access(INTERRUPT_LINE, 1) + bytes([old]))


def line_is(bench: Bench, expected: int) -> str:
    """That the Interrupt Line register reads so.

    Raises:
        Unmet: it does not.
    """
    (found,) = read(bench, INTERRUPT_LINE, 1)
    if found != expected:
        raise Unmet(f"it reads {found:#x}, not {expected:#x}")
    return f"it reads {found:#x}"
