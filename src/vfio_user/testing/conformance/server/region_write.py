"""REGION_WRITE: its shapes, that it takes effect, and in which order."""

from __future__ import annotations

import struct

from vfio_user.protocol.constants import Command, RegionFlags, RegionIndex
from vfio_user.testing.conformance.bench import GET_INFO, Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.server.access import (
    CONFIG,
    INDEXES,
    INTERRUPT_LINE,
    access,
    line,
    line_is,
    read,
    write,
)

__all__ = ["WRITE"]

WRITE = Family("region_write", "vfio-user, VFIO_USER_REGION_WRITE")

_BAR0 = 0x10
_ROM_BAR = 0x30


@WRITE.check("reply", "the request's 16 bytes", risk=Risk.WRITE)
def _(bench: Bench) -> str:
    with line(bench):
        request = access(INTERRUPT_LINE, 1)
        if bench.succeeds(Command.REGION_WRITE, request + b"\x0a", 16) != request:
            raise Unmet("16 others")
    return "16 bytes"


@WRITE.check("takes-effect", "what is written is read", risk=Risk.WRITE, clause="PCI 3.0, 6.2.4")
def _(bench: Bench) -> str:
    with line(bench) as old:
        for value in (old ^ 0x55, old ^ 0xAA):
            write(bench, INTERRUPT_LINE, bytes([value]))
            line_is(bench, value)
    return "it is"


@WRITE.check("neighbours", "a write of one byte leaves those beside it", risk=Risk.WRITE)
def _(bench: Bench) -> str:
    with line(bench) as old:
        before = read(bench, INTERRUPT_LINE + 1, 3)
        write(bench, INTERRUPT_LINE, bytes([old ^ 0xFF]))
        after = read(bench, INTERRUPT_LINE + 1, 3)
        if before != after:
            raise Unmet(f"{before.hex()}, then {after.hex()}")
    return "they are the same"


@WRITE.check(
    "read-only",
    "a write of the vendor id is no error, and has no effect",
    risk=Risk.WRITE,
    advised=True,
    clause="PCI 3.0, 6.1; practice (guests write anything)",
)
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    before = read(bench, 0, 4)
    write(bench, 0, bytes(byte ^ 0xFF for byte in before))
    after = read(bench, 0, 4)
    if before != after:
        raise Unmet(f"{before.hex()}, then {after.hex()}")
    return before.hex()


@WRITE.check("nothing", "0 bytes: a success, and no effect", advised=True, clause="practice (libvfio-user)")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    bench.succeeds(Command.REGION_WRITE, access(INTERRUPT_LINE, 0))
    return "a success"


@WRITE.check(
    "posted-then-read",
    "a read sees the write before it, posted or not",
    risk=Risk.WRITE,
    clause="vfio-user, Header: commands are carried out in order",
)
def _(bench: Bench) -> str:
    with line(bench) as old:
        bench.peer.post(Command.REGION_WRITE, access(INTERRUPT_LINE, 1) + bytes([old ^ 0x3C]))
        return line_is(bench, old ^ 0x3C)


@WRITE.check("posted-in-order", "of two posted writes the later one counts", risk=Risk.WRITE)
def _(bench: Bench) -> str:
    with line(bench) as old:
        for mask in (0x11, 0x22, 0x44):
            bench.peer.post(Command.REGION_WRITE, access(INTERRUPT_LINE, 1) + bytes([old ^ mask]))
        return line_is(bench, old ^ 0x44)


@WRITE.check("posted-is-silent", "a posted write is not answered", risk=Risk.WRITE)
def _(bench: Bench) -> str:
    with line(bench) as old:
        bench.peer.post(Command.REGION_WRITE, access(INTERRUPT_LINE, 1) + bytes([old]))
        probe = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO)
        first = bench.peer.receive()
        if first.header.message_id != probe:
            bench.peer.is_out_of_step = True
            raise Unmet(f"it was answered: {first}")
    return "nothing came"


@WRITE.check("posted-refused-is-silent", "not even a posted write that fails is answered")
def _(bench: Bench) -> str:
    bench.peer.post(Command.REGION_WRITE, access(0, 4, 0xFFFF) + bytes(4))
    probe = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO)
    first = bench.peer.receive()
    if first.header.message_id != probe:
        bench.peer.is_out_of_step = True
        raise Unmet(f"it was answered: {first}")
    return "nothing came"


@WRITE.check("pipelined", "writes and reads sent at once are carried out in turn", risk=Risk.WRITE)
def _(bench: Bench) -> str:
    with line(bench) as old:
        reads = []
        for mask in (0x01, 0x02, 0x04, 0x08):
            bench.peer.send(Command.REGION_WRITE, access(INTERRUPT_LINE, 1) + bytes([old ^ mask]))
            reads.append((bench.peer.send(Command.REGION_READ, access(INTERRUPT_LINE, 1)), old ^ mask))
        for number, value in reads:
            data = bench.success(bench.peer.reply_to(number), 17)[16:]
            if data[0] != value:
                raise Unmet(f"a read saw {data[0]:#x}, not {value:#x}")
    return "each read saw its write"


def _sizing(index: RegionIndex, register: int) -> None:
    def run(bench: Bench) -> str:
        size = bench.facts.region(index).size
        bench.facts.region(CONFIG)
        (old,) = struct.unpack("<I", read(bench, register, 4))
        is_64_bit = index != RegionIndex.ROM and old & 7 == 4
        if size >> 32 and not is_64_bit:
            raise Unmet(f"{size:#x} bytes behind 32 bits of address")
        ones = 0xFFFF_F800 if index == RegionIndex.ROM else 0xFFFF_FFFF
        flags = 0x7FF if index == RegionIndex.ROM else 3 if old & 1 else 0xF
        try:
            write(bench, register, bytes(4))
            (zeros,) = struct.unpack("<I", read(bench, register, 4))
            write(bench, register, struct.pack("<I", ones))
            (found,) = struct.unpack("<I", read(bench, register, 4))
        finally:
            bench.ask(Command.REGION_WRITE, access(register, 4) + struct.pack("<I", old))
        if zeros & ~flags:
            raise Unmet(f"zeros read back as {zeros:#x}")
        mask = found & ~flags
        # The smallest bit that can be set is the size, as far as it is in this half.
        if (mask and mask & -mask != size & 0xFFFF_FFFF) or (not mask and not size >> 32):
            raise Unmet(f"all ones read back as {found:#x}, and the region has {size:#x} bytes")
        return f"all ones read back as {found:#x}"

    WRITE.add(
        f"sizing[{index.name}]",
        "all ones written to its register read back as its size",
        run,
        risk=Risk.WRITE,
        clause="PCI 3.0, 6.2.5.1; cloud-hypervisor sizes BARs so",
    )


for _index in INDEXES[:6]:
    _sizing(_index, _BAR0 + 4 * _index)
_sizing(RegionIndex.ROM, _ROM_BAR)


@WRITE.check("absent-bars", "registers of BARs that are not there stay 0", risk=Risk.WRITE, clause="PCI 3.0, 6.2.5.1")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    upper, absent = False, 0
    for index in INDEXES[:6]:
        register = _BAR0 + 4 * index
        (value,) = struct.unpack("<I", read(bench, register, 4))
        is_upper, upper = upper, not upper and bench.facts.regions[index].size > 0 and value & 7 == 4
        if is_upper or bench.facts.regions[index].size:
            continue
        absent += 1
        write(bench, register, b"\xff" * 4)
        (found,) = struct.unpack("<I", read(bench, register, 4))
        if found:
            raise Unmet(f"{index.name}'s reads {found:#x}")
    if not absent:
        raise DoesNotApply("the device has every BAR")
    return f"{absent} do"


def _crosses_end(index: RegionIndex) -> None:
    WRITE.refuses(
        f"crosses-end[{index.name}]",
        "the write crosses the region's end",
        Command.REGION_WRITE,
        lambda facts: access(facts.region(index).size - 2, 4, index) + bytes(4),
    )


for _index in INDEXES:
    _crosses_end(_index)


def _to_read_only(facts: Facts) -> bytes:
    for region in facts.regions.values():
        if region.size and not region.flags & RegionFlags.WRITE:
            return access(0, 4, region.index) + bytes(4)
    raise DoesNotApply("no region can only be read")


WRITE.refuses("read-only-region", "the region cannot be written", Command.REGION_WRITE, _to_read_only, advised=True)
for _length in (4, 15):
    WRITE.refuses(f"short[{_length}]", "a payload under 16 bytes", Command.REGION_WRITE, access(0, 4)[:_length])
WRITE.refuses("no-data", "a count of 4, and no data", Command.REGION_WRITE, access(0, 4))
WRITE.refuses("data-short", "a count of 4, and 3 bytes", Command.REGION_WRITE, access(0, 4) + bytes(3))
WRITE.refuses("data-long", "a count of 4, and 5 bytes", Command.REGION_WRITE, access(0, 4) + bytes(5))
WRITE.refuses("data-for-nothing", "a count of 0, and a byte", Command.REGION_WRITE, access(0, 0) + b"\0")
WRITE.refuses(
    "count-huge",
    "four thousand million bytes, of which 4 came",
    Command.REGION_WRITE,
    access(0, 0xFFFF_FFFF) + bytes(4),
)
WRITE.refuses(
    "no-such-region",
    "one index beyond the last",
    Command.REGION_WRITE,
    lambda facts: access(0, 4, facts.num_regions) + bytes(4),
)
for _beyond in (100, 0xDEAD_BEEF):
    WRITE.refuses(
        f"no-such-region[{_beyond:#x}]",
        "there is no such region",
        Command.REGION_WRITE,
        access(0, 4, _beyond) + bytes(4),
    )
WRITE.refuses(
    "absent-region",
    "the region is not there",
    Command.REGION_WRITE,
    lambda facts: access(0, 4, facts.absent_region()) + bytes(4),
)
WRITE.refuses(
    "offset-wraps",
    "offset and count together exceed 64 bits",
    Command.REGION_WRITE,
    access((1 << 64) - 2, 4) + bytes(4),
)
WRITE.refuses(
    "offset-2^32", "an offset of 4 GiB, which is 0 in 32 bits", Command.REGION_WRITE, access(1 << 32, 4) + bytes(4)
)
