"""The first migration protocol: its region, and DIRTY_PAGES.

Each check begins in the running state and ends there.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.migration_region import MIGRATION_REGION_TYPE, TRANSITIONS, DeviceState, MigrationRegister
from vfio_user.protocol.region import RegionInfo
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.server.access import access

__all__ = ["DIRTY_PAGES", "MIGRATION_REGION"]

MIGRATION_REGION = Family("migration_region", "vfio-user 0.9.1, VFIO device migration info")
DIRTY_PAGES = Family("dirty_pages", "vfio-user 0.9.1, VFIO_USER_DIRTY_PAGES")

_PRACTICE = "practice (libvfio-user before 2023)"
_REGION = RegionIndex.MIGRATION
_REFUSALS = (errno.EINVAL, errno.ENOTSUP)
_BASE = 0x6000_0000
_PAGE = 0x1000

_S = DeviceState
_R = MigrationRegister

#: The states there are a way to from RUNNING, and back.
_STATES = (_S.STOPPED, _S.RUNNING, _S.STOP_AND_COPY, _S.PRE_COPY, _S.RESUMING)

#: Rounds of saving before a server that never ends is given up.
_MOST_ROUNDS = 4096


def _need_region(facts: Facts) -> None:
    region = facts.regions.get(_REGION)
    info = region.decoded if region is not None and region.size else None
    if info is None or info.region_type != MIGRATION_REGION_TYPE:
        raise DoesNotApply("the device has no migration region")


def _get(bench: Bench, register: MigrationRegister) -> int:
    reply = bench.succeeds(Command.REGION_READ, access(register, register.width, _REGION), 16 + register.width)
    return int.from_bytes(reply[16:], "little")


def _put_request(register: MigrationRegister, value: int, width: int = 0) -> bytes:
    width = width or register.width
    return access(register, width, _REGION) + value.to_bytes(width, "little")


def _put(bench: Bench, register: MigrationRegister, value: int) -> None:
    message = bench.ask(Command.REGION_WRITE, _put_request(register, value))
    if message.is_error:
        raise Unmet(f"{register.name.lower()} = {value} got {message}")


@contextmanager
def _in(bench: Bench, state: DeviceState) -> Iterator[None]:
    """The device in that state; in RUNNING again afterwards."""
    _need_region(bench.facts)
    try:
        if state != _S.RUNNING:
            _put(bench, _R.DEVICE_STATE, state)
            found = _get(bench, _R.DEVICE_STATE)
            if found != state:
                raise Unmet(f"told to go to {state.name}, the device is in state {found}")
        yield
    finally:
        if not bench.peer.is_out_of_step:
            request = _put_request(_R.DEVICE_STATE, _S.RUNNING)
            if bench.ask(Command.REGION_WRITE, request).is_error:
                bench.ask(Command.DEVICE_RESET)


@MIGRATION_REGION.check("type", "region 9 has the type capability 3, 1, and can be read and written")
def _(bench: Bench) -> str:
    region = bench.facts.regions.get(_REGION)
    if region is None or not region.size:
        raise DoesNotApply("the device has no region 9")
    request = struct.pack("<IIIIQQ", region.argsz, 0, _REGION, 0, 0, 0)
    payload = bench.succeeds(Command.DEVICE_GET_REGION_INFO, request)
    try:
        info = RegionInfo.decode(payload)
    except RemoteProtocolError as exc:
        raise Unmet(str(exc)) from exc
    if info.region_type != MIGRATION_REGION_TYPE or info.flags & 3 != 3:
        raise Unmet(f"flags {int(info.flags):#x}, type {info.region_type}")
    return "it has"


@MIGRATION_REGION.check("runs-at-first", "a device nobody migrates is in RUNNING (1)")
def _(bench: Bench) -> str:
    _need_region(bench.facts)
    state = _get(bench, _R.DEVICE_STATE)
    if state != _S.RUNNING:
        raise Unmet(f"{state}")
    return "it is"


def _transition(old: DeviceState, new: DeviceState) -> None:
    leads = old == new or (old, new) in TRANSITIONS

    def run(bench: Bench) -> str:
        with _in(bench, old):
            message = bench.ask(Command.REGION_WRITE, _put_request(_R.DEVICE_STATE, new))
            if leads:
                bench.success(message)
            else:
                bench.refused(message)
            found = _get(bench, _R.DEVICE_STATE)
            if found != (new if leads else old):
                raise Unmet(f"the device is in state {found}")
            return f"state {found}"

    expected = "the device is there when the write is answered" if leads else "EINVAL, and the device stays"
    clause = "" if old != new else _PRACTICE
    MIGRATION_REGION.add(f"{old.name}-to-{new.name}", expected, run, risk=Risk.MIGRATE, clause=clause)


for _old in _STATES:
    for _new in _STATES:
        _transition(_old, _new)


def _refuses(
    name: str, why: str, state: DeviceState, command: Command, payload: bytes, *, advised: bool = False
) -> None:
    def run(bench: Bench) -> str:
        with _in(bench, state):
            return bench.refuses(command, payload)

    MIGRATION_REGION.add(
        name, f"EINVAL: {why}", run, risk=Risk.MIGRATE, advised=advised, errnos=(errno.EINVAL,), clause=_PRACTICE
    )


for _value in (5, 7, 8, 0xFFFF_FFFF):
    _refuses(
        f"device_state[{_value:#x}]",
        "no state there is",
        _S.RUNNING,
        Command.REGION_WRITE,
        _put_request(_R.DEVICE_STATE, _value),
    )
for _register in (_R.DEVICE_STATE, _R.PENDING_BYTES, _R.DATA_OFFSET, _R.DATA_SIZE):
    for _width in {1, 2, 4, 8} - {_register.width}:
        _refuses(
            f"{_register.name.lower()}-width[{_width}]",
            "the register has another width",
            _S.STOP_AND_COPY,
            Command.REGION_READ,
            access(_register, _width, _REGION),
        )
for _register in (_R.PENDING_BYTES, _R.DATA_OFFSET):
    _refuses(
        f"{_register.name.lower()}-written",
        "it can only be read",
        _S.STOP_AND_COPY,
        Command.REGION_WRITE,
        _put_request(_register, 0),
    )
_refuses(
    "data_size-written",
    "it is the server's while saving",
    _S.STOP_AND_COPY,
    Command.REGION_WRITE,
    _put_request(_R.DATA_SIZE, 16),
)
for _register in (_R.DATA_OFFSET, _R.DATA_SIZE):
    _refuses(
        f"{_register.name.lower()}-first",
        "pending_bytes comes first",
        _S.STOP_AND_COPY,
        Command.REGION_READ,
        access(_register, 8, _REGION),
    )
    _refuses(
        f"{_register.name.lower()}-running",
        "nothing is being saved",
        _S.RUNNING,
        Command.REGION_READ,
        access(_register, 8, _REGION),
    )


def _save(bench: Bench) -> list[bytes]:
    """The device's state, as it comes."""
    chunks: list[bytes] = []
    for _ in range(_MOST_ROUNDS):
        if not _get(bench, _R.PENDING_BYTES):
            return chunks
        offset, size = _get(bench, _R.DATA_OFFSET), _get(bench, _R.DATA_SIZE)
        data = bytearray()
        while len(data) < size:
            count = min(size - len(data), bench.facts.max_data_xfer_size, 1 << 19)
            request = access(offset + len(data), count, _REGION)
            data += bench.succeeds(Command.REGION_READ, request, 16 + count)[16:]
        chunks.append(bytes(data))
    raise Unmet(f"no end after {sum(map(len, chunks))} bytes")


def _load(bench: Bench, chunks: list[bytes]) -> None:
    for chunk in chunks:
        offset = _get(bench, _R.DATA_OFFSET)
        for at in range(0, len(chunk), 1 << 19):
            part = chunk[at : at + (1 << 19)]
            bench.succeeds(Command.REGION_WRITE, access(offset + at, len(part), _REGION) + part)
        _put(bench, _R.DATA_SIZE, len(chunk))


@MIGRATION_REGION.check("pending_bytes", "reading it twice takes nothing away", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _S.STOP_AND_COPY):
        first, second = _get(bench, _R.PENDING_BYTES), _get(bench, _R.PENDING_BYTES)
        if first != second:
            raise Unmet(f"{first}, then {second}")
    return f"{first}"


@MIGRATION_REGION.check("data_offset", "the data lie behind the registers, inside the region", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _S.STOP_AND_COPY):
        if not _get(bench, _R.PENDING_BYTES):
            raise DoesNotApply("the device has no state")
        offset, size = _get(bench, _R.DATA_OFFSET), _get(bench, _R.DATA_SIZE)
        if offset < 32 or offset + size > bench.facts.regions[_REGION].size:
            raise Unmet(f"[{offset:#x}, {offset + size:#x})")
    return f"[{offset:#x}, {offset + size:#x})"


@MIGRATION_REGION.check("save", "round by round to the end, where pending_bytes is 0", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _S.STOP_AND_COPY):
        return f"{sum(map(len, _save(bench)))} bytes"


@MIGRATION_REGION.check("round-trip", "what was saved can be loaded, and saved again it is as long", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _S.STOP_AND_COPY):
        first = _save(bench)
        for state in (_S.RUNNING, _S.RESUMING):
            _put(bench, _R.DEVICE_STATE, state)
        _load(bench, first)
        for state in (_S.RUNNING, _S.STOP_AND_COPY):
            _put(bench, _R.DEVICE_STATE, state)
        second = _save(bench)
    sizes = [sum(map(len, chunks)) for chunks in (first, second)]
    if sizes[0] != sizes[1]:
        raise Unmet(f"{sizes[0]} bytes, then {sizes[1]}")
    return f"{sizes[0]} bytes"


# Dirty pages.


def _request(flags: int, argsz: int = 8) -> bytes:
    return struct.pack("<II", argsz, flags)


def _bitmap(
    iova: int = _BASE, length: int = 4 * _PAGE, page_size: int = _PAGE, size: int = 8, argsz: int = 48
) -> bytes:
    return _request(4, argsz) + struct.pack("<QQQQ", iova, length, page_size, size)


@contextmanager
def _logging(bench: Bench) -> Iterator[None]:
    """Four mapped pages, whose writes are logged."""
    _need_region(bench.facts)
    with bench.mapped(_BASE, 4 * _PAGE, fds=[bench.memory(4 * _PAGE)]):
        bench.succeeds(Command.DIRTY_PAGES, _request(1), 0)
        try:
            yield
        finally:
            if not bench.peer.is_out_of_step:
                bench.ask(Command.DIRTY_PAGES, _request(2))


@DIRTY_PAGES.check("start-and-stop", "START, then STOP: a header alone each")
def _(bench: Bench) -> str:
    _need_region(bench.facts)
    for flags in (1, 2):
        bench.succeeds(Command.DIRTY_PAGES, _request(flags), 0)
    return "a header alone"


@DIRTY_PAGES.check("bitmap", "GET_BITMAP: the request's 40 bytes, and the bitmap")
def _(bench: Bench) -> str:
    with _logging(bench):
        size = bitmap_size(4 * _PAGE, _PAGE)
        reply = bench.succeeds(Command.DIRTY_PAGES, _bitmap(), 40 + size)
        if reply[8:40] != _bitmap()[8:40]:
            raise Unmet(f"another range: {reply[8:40].hex()}")
    return f"{40 + size} bytes"


@DIRTY_PAGES.check("bitmap-clears", "what was told is clean: the second bitmap has no page")
def _(bench: Bench) -> str:
    with _logging(bench):
        bench.succeeds(Command.DIRTY_PAGES, _bitmap())
        bits = bench.succeeds(Command.DIRTY_PAGES, _bitmap())[40:]
        if any(bits):
            raise Unmet(bits.hex())
    return "none"


@DIRTY_PAGES.check(
    "bitmap-room", "argsz too small for the bitmap: cut, and argsz says how much", clause=_PRACTICE, advised=True
)
def _(bench: Bench) -> str:
    with _logging(bench):
        reply = bench.succeeds(Command.DIRTY_PAGES, _bitmap(argsz=40), 40)
        (argsz,) = struct.unpack_from("<I", reply)
        if argsz != 48:
            raise Unmet(f"argsz {argsz}")
    return "argsz 48"


def _refused(name: str, why: str, payload: bytes, *, logging: bool = False) -> None:
    def run(bench: Bench) -> str:
        if not logging:
            _need_region(bench.facts)
            return bench.refuses(Command.DIRTY_PAGES, payload, _REFUSALS)
        with _logging(bench):
            return bench.refuses(Command.DIRTY_PAGES, payload, (*_REFUSALS, errno.ENOENT))

    DIRTY_PAGES.add(name, f"refused: {why}", run, errnos=_REFUSALS)


_refused("short", "a payload under 8 bytes", bytes(7))
_refused("argsz-7", "argsz under 8", _request(1, 7))
for _flags in (0, 3, 5, 6, 7, 8):
    _refused(f"flags[{_flags}]", "none of the three flags, or several", _request(_flags))
_refused("bitmap-before-start", "nothing is logged", _bitmap())
_refused("bitmap-short", "the range is missing", _request(4, 48), logging=True)
_refused("bitmap-cut", "the size of the bitmap is missing", _bitmap()[:39], logging=True)
_refused("bitmap-size", "the bitmap of this range has another size", _bitmap(size=16, argsz=56), logging=True)
_refused("bitmap-page", "pages of another size than was agreed on", _bitmap(page_size=3000), logging=True)
_refused("bitmap-page-0", "pages of 0 bytes", _bitmap(page_size=0), logging=True)
_refused("bitmap-huge", "more room than any reply needs", _bitmap(argsz=0xFFFF_FFFF), logging=True)
_refused("bitmap-not-mapped", "nothing is mapped there", _bitmap(iova=0x7_0000_0000), logging=True)


def _absent(facts: Facts) -> bytes:
    region = facts.regions.get(_REGION)
    if region is not None and region.size:
        raise DoesNotApply("the device has a migration region")
    return _request(1)


DIRTY_PAGES.refuses(
    "absent", "a device without the first migration protocol", Command.DIRTY_PAGES, _absent, errnos=_REFUSALS
)
