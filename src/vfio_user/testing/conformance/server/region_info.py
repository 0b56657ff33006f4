"""DEVICE_GET_REGION_INFO, with its capabilities and its descriptor, and DEVICE_GET_REGION_IO_FDS."""

from __future__ import annotations

import mmap
import struct

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import Command, RegionFlags, RegionIndex
from vfio_user.protocol.region import MappableArea, RegionInfo
from vfio_user.protocol.region_io_fds import IoEventFd, RegionIoFds
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Unmet
from vfio_user.testing.conformance.facts import Facts, RegionFacts, index_name
from vfio_user.testing.conformance.peer import Message

__all__ = ["IO_FDS", "REGION_INFO"]

REGION_INFO = Family("region_info", "vfio-user, VFIO_USER_DEVICE_GET_REGION_INFO")
IO_FDS = Family("io_fds", "vfio-user, VFIO_USER_DEVICE_GET_REGION_IO_FDS")

_QEMU = "practice (QEMU's client requires it)"


def _request(index: int, argsz: int = 32) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def _ask(bench: Bench, index: int, argsz: int = 32) -> Message:
    message = bench.ask(Command.DEVICE_GET_REGION_INFO, _request(index, argsz))
    bench.success(message)
    if len(message.payload) < 32:
        raise Unmet(f"a payload of {len(message.payload)} bytes")
    return message


def _whole(bench: Bench, index: int) -> tuple[RegionInfo, Message]:
    """The description with everything in it."""
    message = _ask(bench, index, max(bench.facts.regions[index].argsz, 32) if index in bench.facts.regions else 32)
    try:
        return RegionInfo.decode(message.payload), message
    except RemoteProtocolError as exc:
        raise Unmet(str(exc)) from exc


def _regions(bench: Bench) -> list[RegionFacts]:
    found = [region for region in bench.facts.regions.values() if region.size]
    if not found:
        raise DoesNotApply("the device has no regions")
    return found


def _mappable(facts: Facts) -> RegionFacts:
    """A region with areas that can be mapped."""
    for region in facts.regions.values():
        # The migration region's window has contents while the device moves, and else cannot be read.
        if region.size and region.flags & RegionFlags.MMAP and region.index != RegionIndex.MIGRATION:
            return region
    raise DoesNotApply("no region can be mapped")


def _with_capabilities(facts: Facts) -> RegionFacts:
    for region in facts.regions.values():
        if region.argsz > 32:
            return region
    raise DoesNotApply("no region has capabilities")


def _about_each(index: RegionIndex) -> None:
    name = index.name

    def answered(bench: Bench) -> str:
        payload = _ask(bench, index).payload
        _, _, at, _, size, _ = struct.unpack_from("<IIIIQQ", payload)
        if at != index:
            raise Unmet(f"it was answered for {index_name(RegionIndex, at)}")
        return f"{size:#x} bytes"

    def argsz(bench: Bench) -> str:
        _, message = _whole(bench, index)
        (found,) = struct.unpack_from("<I", message.payload)
        if found != len(message.payload):
            raise Unmet(f"argsz {found} in a payload of {len(message.payload)} bytes")
        return f"{found}"

    def flags(bench: Bench) -> str:
        info, _ = _whole(bench, index)
        if int(info.flags) & ~0xF:
            raise Unmet(f"flags {int(info.flags):#x}")
        if not info.size and info.flags:
            raise Unmet(f"flags {int(info.flags):#x}, and 0 bytes")
        if info.size and not info.flags & 3:
            raise Unmet(f"{info.size:#x} bytes that can be neither read nor written")
        return f"flags {int(info.flags):#x}"

    def descriptor(bench: Bench) -> str:
        info, message = _whole(bench, index)
        if bool(info.flags & RegionFlags.MMAP) != bool(message.fds) or len(message.fds) > 1:
            raise Unmet(f"flags {int(info.flags):#x}, and {len(message.fds)} descriptors")
        return f"{len(message.fds)}"

    REGION_INFO.add(f"answered[{name}]", "about that index; absent regions have size 0, and are no error", answered)
    REGION_INFO.add(f"argsz[{name}]", "argsz is the length of the whole payload", argsz)
    REGION_INFO.add(
        f"flags[{name}]", "known flags; none for a region that is not there, READ or WRITE for others", flags
    )
    REGION_INFO.add(f"descriptor[{name}]", "one with flag MMAP, none without", descriptor)


for _index in list(RegionIndex)[:9]:
    _about_each(_index)


def _power_of_two(index: RegionIndex) -> None:
    def run(bench: Bench) -> str:
        bench.facts.region(index)
        size = _whole(bench, index)[0].size
        if size & (size - 1) or size < 4:
            raise Unmet(f"{size:#x} bytes")
        return f"{size:#x} bytes"

    REGION_INFO.add(
        f"power-of-two[{index.name}]",
        "a BAR has a power of two of bytes",
        run,
        clause="PCI 3.0, 6.2.5.1; QEMU aborts otherwise",
    )


for _index in list(RegionIndex)[:7]:
    _power_of_two(_index)


@REGION_INFO.check(
    "config-size",
    "configuration space has 256 or 4096 bytes, and can be read and written",
    clause="vfio-user, VFIO_USER_DEVICE_GET_REGION_INFO; PCI 3.0, 6.1",
)
def _(bench: Bench) -> str:
    info, _ = _whole(bench, RegionIndex.CONFIG)
    if info.size not in (256, 4096) or info.flags & 3 != 3:
        raise Unmet(f"{info.size} bytes, flags {int(info.flags):#x}")
    return f"{info.size} bytes"


@REGION_INFO.check("config-is-not-mapped", "configuration space cannot be mapped: it has side effects", advised=True)
def _(bench: Bench) -> str:
    info, _ = _whole(bench, RegionIndex.CONFIG)
    if info.flags & RegionFlags.MMAP:
        raise Unmet("flag MMAP")
    return "it cannot"


@REGION_INFO.check("twice", "the same answer twice")
def _(bench: Bench) -> str:
    for region in _regions(bench):
        if _whole(bench, region.index)[1].payload != _whole(bench, region.index)[1].payload:
            raise Unmet(f"{index_name(RegionIndex, region.index)} differs")
    return "the same"


@REGION_INFO.check("fds-are-new", "each reply brings a descriptor of its own, which stays valid")
def _(bench: Bench) -> str:
    bench.facts.need_fds()
    region = _mappable(bench.facts)
    first, second = (_whole(bench, region.index)[1].fds for _ in range(2))
    if not first or not second:
        raise Unmet("no descriptor came")
    return "two came"


@REGION_INFO.check("short-room", "argsz 32 where capabilities need more: 32 bytes, and argsz says how much")
def _(bench: Bench) -> str:
    region = _with_capabilities(bench.facts)
    message = _ask(bench, region.index, 32)
    (argsz,) = struct.unpack_from("<I", message.payload)
    if len(message.payload) != 32 or argsz <= 32:
        raise Unmet(f"{len(message.payload)} bytes, argsz {argsz}")
    return f"32 bytes, argsz {argsz}"


@REGION_INFO.check(
    "short-room-no-fd",
    "a reply cut short brings no descriptor, or the client has it twice",
    advised=True,
    clause="practice (libvfio-user)",
)
def _(bench: Bench) -> str:
    message = _ask(bench, _with_capabilities(bench.facts).index, 32)
    if message.fds:
        raise Unmet(f"{len(message.fds)} came")
    return "none"


@REGION_INFO.check(
    "short-room-no-caps",
    "a reply cut short has no flag CAPS and no offset of them",
    advised=True,
    clause="practice (libvfio-user)",
)
def _(bench: Bench) -> str:
    _, flags, _, cap_offset, _, _ = struct.unpack_from(
        "<IIIIQQ", _ask(bench, _with_capabilities(bench.facts).index, 32).payload
    )
    if flags & RegionFlags.CAPS or cap_offset:
        raise Unmet(f"flags {flags:#x}, cap_offset {cap_offset}")
    return "neither"


@REGION_INFO.check("one-byte-short", "argsz one byte under what is needed: 32 bytes")
def _(bench: Bench) -> str:
    region = _with_capabilities(bench.facts)
    size = len(_ask(bench, region.index, region.argsz - 1).payload)
    if size != 32:
        raise Unmet(f"{size} bytes")
    return "32 bytes"


@REGION_INFO.check("much-room", "argsz over what is needed: all of it, no more")
def _(bench: Bench) -> str:
    region = _with_capabilities(bench.facts)
    size = len(_ask(bench, region.index, region.argsz + 4096).payload)
    if size != region.argsz:
        raise Unmet(f"{size} bytes, and {region.argsz} are needed")
    return f"{size} bytes"


@REGION_INFO.check("caps-in-place", "flag CAPS, and cap_offset inside the payload, behind the structure")
def _(bench: Bench) -> str:
    region = _with_capabilities(bench.facts)
    _, message = _whole(bench, region.index)
    _, flags, _, cap_offset, _, _ = struct.unpack_from("<IIIIQQ", message.payload)
    if not flags & RegionFlags.CAPS or not 32 <= cap_offset <= len(message.payload) - 8:
        raise Unmet(f"flags {flags:#x}, cap_offset {cap_offset}")
    return f"at {cap_offset}"


@REGION_INFO.check("caps-chain", "capabilities follow one another, inside the payload, to the end")
def _(bench: Bench) -> str:
    payload = _whole(bench, _with_capabilities(bench.facts).index)[1].payload
    at, count, last = struct.unpack_from("<I", payload, 12)[0], 0, 31
    while at:
        if not last < at <= len(payload) - 8:
            raise Unmet(f"a capability at {at}, after {last}, of {len(payload)} bytes")
        last, count = at, count + 1
        _, version, at = struct.unpack_from("<HHI", payload, at)
        if version != 1:
            raise Unmet(f"version {version}")
    return f"{count} capabilities"


def _areas(bench: Bench, least: int = 1) -> list[tuple[RegionInfo, tuple[MappableArea, ...]]]:
    """Regions with that many areas at least."""
    _mappable(bench.facts)
    described = [
        _whole(bench, region.index)[0] for region in bench.facts.regions.values() if region.flags & RegionFlags.MMAP
    ]
    found = [(info, info.areas) for info in described if len(info.areas) >= least]
    if not found:
        raise DoesNotApply(f"no region lists {least} or more areas")
    return found


@REGION_INFO.check("areas-inside", "each area is inside its region")
def _(bench: Bench) -> str:
    found = _areas(bench)
    for info, areas in found:
        for area in areas:
            if area.offset + area.size > info.size:
                raise Unmet(f"[{area.offset:#x}, {area.offset + area.size:#x}) of {info.size:#x} bytes")
    return f"of {len(found)} regions"


@REGION_INFO.check("areas-are-pages", "each area begins and ends on a page, and is not empty")
def _(bench: Bench) -> str:
    found = _areas(bench)
    for _, areas in found:
        for area in areas:
            if not area.size or area.offset % mmap.PAGESIZE or area.size % mmap.PAGESIZE:
                raise Unmet(f"[{area.offset:#x}, {area.offset + area.size:#x})")
    return f"of {len(found)} regions"


@REGION_INFO.check("areas-apart", "areas of a region do not overlap: QEMU gives up otherwise", clause=_QEMU)
def _(bench: Bench) -> str:
    found = _areas(bench, 2)
    for _, areas in found:
        end = 0
        for area in sorted(areas):
            if area.offset < end:
                raise Unmet(f"one begins at {area.offset:#x}, before {end:#x}")
            end = area.offset + area.size
    return f"of {len(found)} regions"


@REGION_INFO.check("can-be-mapped", "the descriptor can be mapped at offset + area, and shows what REGION_READ does")
def _(bench: Bench) -> str:
    bench.facts.need_fds()
    region = _mappable(bench.facts)
    info, message = _whole(bench, region.index)
    area = info.areas[0] if info.areas else MappableArea(0, info.size)
    if not message.fds:
        raise Unmet("no descriptor came")
    size = min(area.size, mmap.PAGESIZE)
    try:
        with mmap.mmap(message.fds[0], size, prot=mmap.PROT_READ, offset=info.fd_offset + area.offset) as view:
            for _ in range(3):  # a device may be at work in there
                seen = view[:]
                read = bench.succeeds(Command.REGION_READ, struct.pack("<QII", area.offset, region.index, size))[16:]
                if seen == read:
                    return f"{size} bytes are the same"
    except (OSError, ValueError) as exc:
        raise Unmet(f"it cannot be mapped: {exc}") from exc
    raise Unmet(f"{size} bytes differ")


def _long(length: int, what: str) -> None:
    def run(bench: Bench) -> str:
        payload = _request(RegionIndex.CONFIG, length).ljust(length, b"\0")
        reply = bench.succeeds(Command.DEVICE_GET_REGION_INFO, payload)
        if len(reply) < 32 or struct.unpack_from("<I", reply, 8)[0] != RegionIndex.CONFIG:
            raise Unmet(f"{len(reply)} bytes about something else")
        return f"{len(reply)} bytes"

    REGION_INFO.add(f"accepts[{length}-bytes]", f"a payload of {length} bytes, as {what} sends: answered", run)


_long(64, "libvfio-user's client")
_long(4064, "SPDK")
for _argsz in (0, 31):
    REGION_INFO.refuses(f"argsz-{_argsz}", "argsz under 32", Command.DEVICE_GET_REGION_INFO, _request(0, _argsz))
for _length in (8, 16, 31):
    REGION_INFO.refuses(
        f"short[{_length}]", "a payload under 32 bytes", Command.DEVICE_GET_REGION_INFO, _request(0)[:_length]
    )
REGION_INFO.refuses(
    "no-such-index",
    "one index beyond the last",
    Command.DEVICE_GET_REGION_INFO,
    lambda facts: _request(facts.num_regions),
)
for _beyond in (100, 0x7FFF_FFFF, 0xFFFF_FFFF):
    REGION_INFO.refuses(
        f"no-such-index[{_beyond:#x}]", "there is no such index", Command.DEVICE_GET_REGION_INFO, _request(_beyond)
    )


# Descriptors for accesses without messages.


def _io_request(index: int, argsz: int = 16, flags: int = 0, count: int = 0) -> bytes:
    return struct.pack("<IIII", argsz, flags, index, count)


def _io_fds(bench: Bench, index: int, argsz: int) -> tuple[RegionIoFds, Message]:
    message = bench.ask(Command.DEVICE_GET_REGION_IO_FDS, _io_request(index, argsz))
    bench.success(message)
    try:
        return RegionIoFds.decode(message.payload), message
    except RemoteProtocolError as exc:
        raise Unmet(str(exc)) from exc


def _region_with_io_fds(bench: Bench) -> tuple[int, RegionIoFds]:
    for region in _regions(bench):
        message = bench.ask(Command.DEVICE_GET_REGION_IO_FDS, _io_request(region.index))
        if not message.is_error and len(message.payload) >= 16:
            count = struct.unpack_from("<I", message.payload, 12)[0]
            if count:
                return region.index, RegionIoFds.decode(message.payload[:16])
    raise DoesNotApply("no region offers any")


@IO_FDS.check("answered", "a region that can be accessed: a head of 16 bytes, with its argsz and index")
def _(bench: Bench) -> str:
    region = _regions(bench)[0]
    info, _ = _io_fds(bench, region.index, 16)
    if info.index != region.index or info.argsz < 16:
        raise Unmet(f"argsz {info.argsz} for {index_name(RegionIndex, info.index)}")
    return f"{info.count} of them"


@IO_FDS.check("short-room", "argsz 16 where there are some: the head alone, argsz says how much, no descriptor")
def _(bench: Bench) -> str:
    index, info = _region_with_io_fds(bench)
    _, message = _io_fds(bench, index, 16)
    if len(message.payload) != 16 or message.fds or info.argsz <= 16:
        raise Unmet(f"{message}, argsz {info.argsz}")
    return f"argsz {info.argsz}"


@IO_FDS.check("whole", "with room: every entry, in 40 or 48 bytes each")
def _(bench: Bench) -> str:
    index, head = _region_with_io_fds(bench)
    info, message = _io_fds(bench, index, head.argsz)
    if len(info.entries) != head.count or len(message.payload) != head.argsz:
        raise Unmet(f"{len(info.entries)} of {head.count} entries in {len(message.payload)} bytes")
    return f"{head.count} entries"


@IO_FDS.check("descriptors", "each entry's fd_index is that of a descriptor that came")
def _(bench: Bench) -> str:
    bench.facts.need_fds()
    index, head = _region_with_io_fds(bench)
    info, message = _io_fds(bench, index, head.argsz)
    for entry in info.entries:
        if entry.fd_index >= len(message.fds):
            raise Unmet(f"fd_index {entry.fd_index}, and {len(message.fds)} came")
    return f"{len(message.fds)} descriptors"


@IO_FDS.check("inside", "each entry is inside the region")
def _(bench: Bench) -> str:
    index, head = _region_with_io_fds(bench)
    size = bench.facts.region(index).size
    for entry in _io_fds(bench, index, head.argsz)[0].entries:
        if entry.offset + entry.size > size:
            raise Unmet(f"[{entry.offset:#x}, {entry.offset + entry.size:#x}) of {size:#x} bytes")
    return "they are"


@IO_FDS.check("eventfds-work", "adding one to an ioeventfd is taken, and the connection goes on")
def _(bench: Bench) -> str:
    bench.facts.need_fds()
    index, head = _region_with_io_fds(bench)
    info, message = _io_fds(bench, index, head.argsz)
    for entry in info.entries:
        if not isinstance(entry, IoEventFd) or entry.fd_index >= len(message.fds):
            raise Unmet(f"{entry}")
    return bench.goes_on()


for _name, _payload, _why in (
    ("argsz-0", _io_request(7, 0), "argsz under 16"),
    ("argsz-15", _io_request(7, 15), "argsz under 16"),
    ("flags", _io_request(7, flags=1), "flags of a request are 0"),
    ("count", _io_request(7, count=1), "count of a request is 0"),
    ("short[8]", _io_request(7)[:8], "a payload under 16 bytes"),
    ("short[15]", _io_request(7)[:15], "a payload under 16 bytes"),
    ("no-such-index[0xffff]", _io_request(0xFFFF), "there is no such region"),
):
    IO_FDS.refuses(_name, _why, Command.DEVICE_GET_REGION_IO_FDS, _payload)
IO_FDS.refuses(
    "argsz-huge",
    "more room than any reply needs",
    Command.DEVICE_GET_REGION_IO_FDS,
    _io_request(7, 0xFFFF_FFFF),
    advised=True,
    clause="practice (libvfio-user)",
)
IO_FDS.refuses(
    "no-such-index",
    "one index beyond the last",
    Command.DEVICE_GET_REGION_IO_FDS,
    lambda facts: _io_request(facts.num_regions),
)
IO_FDS.refuses(
    "absent-region",
    "the region is not there",
    Command.DEVICE_GET_REGION_IO_FDS,
    lambda facts: _io_request(facts.absent_region()),
    advised=True,
    clause="practice (libvfio-user)",
)
