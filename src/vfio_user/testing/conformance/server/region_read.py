"""REGION_READ."""

from __future__ import annotations

from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Family, Unmet
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.server.access import CONFIG, INDEXES, access, read

__all__ = ["READ"]

READ = Family("region_read", "vfio-user, VFIO_USER_REGION_READ")


def _reads(offset: int, count: int) -> None:
    def run(bench: Bench) -> str:
        bench.facts.region(CONFIG)
        data = read(bench, offset, count)
        return data.hex() if count <= 16 else f"{count} bytes"

    READ.add(f"config[{offset:#x}+{count}]", f"the request's 16 bytes, and {count} of data", run)


for _offset, _count in (
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (1, 1),
    (2, 2),
    (3, 1),
    (4, 4),
    (0x34, 1),
    (0x3C, 4),
    (0xFC, 4),
    (0xFF, 1),
    (0, 16),
    (0, 64),
    (0, 256),
):
    _reads(_offset, _count)


@READ.check("config-whole", "all of configuration space in one message, as QEMU reads it", clause="practice (QEMU)")
def _(bench: Bench) -> str:
    size = bench.facts.region(CONFIG).size
    return f"{len(read(bench, 0, size))} bytes"


@READ.check("bytes-of-a-word", "four bytes one by one are those of a word read at once")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    word = read(bench, 0, 4)
    single = b"".join(read(bench, at, 1) for at in range(4))
    if word != single:
        raise Unmet(f"{word.hex()} and {single.hex()}")
    return word.hex()


@READ.check("halves-of-a-word", "two halves are those of a word read at once")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    word = read(bench, 8, 4)
    halves = read(bench, 8, 2) + read(bench, 10, 2)
    if word != halves:
        raise Unmet(f"{word.hex()} and {halves.hex()}")
    return word.hex()


@READ.check("odd-count", "three bytes from an odd offset are those of a longer read", advised=True)
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    odd, longer = read(bench, 1, 3), read(bench, 0, 8)[1:4]
    if odd != longer:
        raise Unmet(f"{odd.hex()} and {longer.hex()}")
    return odd.hex()


@READ.check("vendor-id", "the vendor id is that of a device that is there", clause="PCI 3.0, 6.1")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    vendor = int.from_bytes(read(bench, 0, 2), "little")
    if vendor == 0xFFFF:
        raise Unmet("0xffff")
    return f"{vendor:#06x}"


@READ.check(
    "little-endian",
    "data comes as it is in memory: the class code's highest byte at offset 0x0b",
    clause="PCI 3.0, 6.2.1",
)
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    word, high = read(bench, 8, 4), read(bench, 0xB, 1)
    if word[3:] != high:
        raise Unmet(f"{word.hex()} and {high.hex()}")
    return high.hex()


@READ.check("repeatable", "reading configuration space twice gives the same ids")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    first, second = read(bench, 0, 4), read(bench, 0, 4)
    if first != second:
        raise Unmet(f"{first.hex()}, then {second.hex()}")
    return first.hex()


@READ.check("nothing", "0 bytes: a success, with no data", advised=True, clause="practice (libvfio-user)")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    reply = bench.succeeds(Command.REGION_READ, access(0, 0))
    if len(reply) not in (0, 16):
        raise Unmet(f"{len(reply)} bytes of payload")
    return f"{len(reply)} bytes of payload"


@READ.check(
    "nothing-at-the-end",
    "0 bytes at the very end of a region: a success",
    advised=True,
    clause="practice (libvfio-user)",
)
def _(bench: Bench) -> str:
    size = bench.facts.region(CONFIG).size
    reply = bench.succeeds(Command.REGION_READ, access(size, 0))
    if len(reply) not in (0, 16):
        raise Unmet(f"{len(reply)} bytes of payload")
    return f"{len(reply)} bytes of payload"


def _end_of(index: RegionIndex) -> None:
    def across(facts: Facts) -> bytes:
        return access(facts.region(index).size - 2, 4, index)

    def beyond(facts: Facts) -> bytes:
        return access(facts.region(index).size, 1, index)

    READ.refuses(f"crosses-end[{index.name}]", "the read crosses the region's end", Command.REGION_READ, across)
    READ.refuses(f"beyond[{index.name}]", "the read begins at the region's end", Command.REGION_READ, beyond)


for _index in INDEXES:
    _end_of(_index)
for _length in (4, 8, 15):
    READ.refuses(f"short[{_length}]", "a payload under 16 bytes", Command.REGION_READ, access(0, 4)[:_length])
READ.refuses(
    "no-such-region", "one index beyond the last", Command.REGION_READ, lambda facts: access(0, 4, facts.num_regions)
)
for _beyond in (100, 0xDEAD_BEEF, 0xFFFF_FFFF):
    READ.refuses(f"no-such-region[{_beyond:#x}]", "there is no such region", Command.REGION_READ, access(0, 4, _beyond))
READ.refuses(
    "absent-region", "the region is not there", Command.REGION_READ, lambda facts: access(0, 4, facts.absent_region())
)
READ.refuses("offset-wraps", "offset and count together exceed 64 bits", Command.REGION_READ, access((1 << 64) - 1, 4))
READ.refuses("offset-far", "an offset far beyond the end", Command.REGION_READ, access(1 << 63, 4))
READ.refuses("offset-2^32", "an offset of 4 GiB, which is 0 in 32 bits", Command.REGION_READ, access(1 << 32, 4))
READ.refuses(
    "count-over-limit",
    "one byte more than max_data_xfer_size",
    Command.REGION_READ,
    lambda facts: access(0, facts.max_data_xfer_size + 1),
)
READ.refuses("count-huge", "four thousand million bytes", Command.REGION_READ, access(0, 0xFFFF_FFFF))
READ.refuses(
    "count-over-region",
    "more bytes than the region has",
    Command.REGION_READ,
    lambda facts: access(0, facts.region(CONFIG).size + 1),
)


@READ.check("refused-goes-on", "after a refused read the next one is carried out")
def _(bench: Bench) -> str:
    bench.facts.region(CONFIG)
    bench.refuses(Command.REGION_READ, access(0, 4, 0xFFFF))
    return read(bench, 0, 4).hex()
