"""The states of a device that moves, and MIG_DATA_READ and MIG_DATA_WRITE.

Each check begins in RUNNING and ends there. Where a server does not go back, its connection is given up.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.protocol.feature import Feature, FeatureFlags, MigrationFlags
from vfio_user.protocol.migration import MigrationState, next_state
from vfio_user.testing.conformance.bench import GET_INFO, Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.server.feature import feature_request

__all__ = ["DATA", "STATES"]

STATES = Family("migration", "vfio-user, VFIO_USER_DEVICE_FEATURE: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE")
DATA = Family("mig_data", "vfio-user, VFIO_USER_MIG_DATA_READ and VFIO_USER_MIG_DATA_WRITE")

_PRACTICE = "practice (libvfio-user)"
_GET, _SET = int(FeatureFlags.GET), int(FeatureFlags.SET)

_RUNNING = MigrationState.RUNNING
_STOP = MigrationState.STOP
_STOP_COPY = MigrationState.STOP_COPY
_RESUMING = MigrationState.RESUMING
_PRE_COPY = MigrationState.PRE_COPY

#: The way from RUNNING to each state, by steps every server knows.
_WAYS = {
    _RUNNING: [],
    _STOP: [_STOP],
    _STOP_COPY: [_STOP, _STOP_COPY],
    _RESUMING: [_STOP, _RESUMING],
    _PRE_COPY: [_PRE_COPY],
}

#: Bytes of state asked for at once, and how often, before a server that never ends is given up.
_CHUNK = 64 * 1024
_MOST_CHUNKS = 4096


def _state_request(state: int) -> bytes:
    return feature_request(Feature.MIG_DEVICE_STATE, _SET, struct.pack("<II", state, 0))


def _set(bench: Bench, state: MigrationState) -> None:
    message = bench.ask(Command.DEVICE_FEATURE, _state_request(state))
    if message.is_error:
        raise Unmet(f"going to {state.name} got {message}")


def _state(bench: Bench) -> int:
    request = feature_request(Feature.MIG_DEVICE_STATE, _GET, argsz=16)
    reply = bench.succeeds(Command.DEVICE_FEATURE, request, 16)
    return int(struct.unpack_from("<I", reply, 8)[0])


def _name(state: int) -> str:
    try:
        return MigrationState(state).name
    except ValueError:
        return f"state {state}"


@contextmanager
def _in(bench: Bench, state: MigrationState) -> Iterator[None]:
    """The device in that state; in RUNNING again afterwards."""
    flags = bench.facts.need_migration()
    if state == _PRE_COPY and not flags & MigrationFlags.PRE_COPY:
        raise DoesNotApply("the device has no PRE_COPY")
    try:
        for step in _WAYS[state]:
            _set(bench, step)
        yield
    finally:
        if not bench.peer.is_out_of_step and bench.ask(Command.DEVICE_FEATURE, _state_request(_RUNNING)).is_error:
            # It may be in ERROR, whose only way out is this.
            bench.ask(Command.DEVICE_RESET)


def _arc(old: MigrationState, new: MigrationState) -> None:
    leads = old == new or next_state(old, new) is not None

    def run(bench: Bench) -> str:
        with _in(bench, old):
            if new == _PRE_COPY and not bench.facts.need_migration() & MigrationFlags.PRE_COPY:
                raise DoesNotApply("the device has no PRE_COPY")
            request = _state_request(new)
            message = bench.ask(Command.DEVICE_FEATURE, request)
            if leads:
                if bench.success(message) != request:
                    raise Unmet("the reply has another payload")
            else:
                bench.refused(message)
            found = _state(bench)
            if found != (new if leads else old):
                raise Unmet(f"the device is in {_name(found)}")
            return f"it is in {_name(found)}"

    expected = "the request's payload, and the device is there" if leads else "EINVAL, and the device stays"
    STATES.add(f"{old.name}-to-{new.name}", expected, run, risk=Risk.MIGRATE)


for _old in _WAYS:
    for _new in _WAYS:
        _arc(_old, _new)


@STATES.check("data_fd-is-repeated", "the reply repeats the whole request, data_fd too", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    request = feature_request(Feature.MIG_DEVICE_STATE, _SET, struct.pack("<II", _RUNNING, 0xFFFF_FFFF))
    if bench.succeeds(Command.DEVICE_FEATURE, request) != request:
        raise Unmet("another payload")
    return "it does"


@STATES.check("refused-changes-nothing", "a state there is not: the device stays where it is", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _STOP):
        bench.refuses(Command.DEVICE_FEATURE, _state_request(77))
        found = _state(bench)
        if found != _STOP:
            raise Unmet(f"it is in {_name(found)}")
    return "it does"


@STATES.check(
    "gone-client",
    "when the client that stopped it has gone, the device runs for the next",
    risk=Risk.MIGRATE,
    own_connection=True,
    advised=True,
)
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    bench.peer  # noqa: B018 - makes a connection
    _set(bench, _STOP)
    bench.negotiated()
    found = _state(bench)
    if found != _RUNNING:
        _set(bench, _RUNNING)
        raise Unmet(f"it is in {_name(found)}")
    return "it runs"


def _held_back(state: MigrationState, command: Command, payload: bytes) -> None:
    def run(bench: Bench) -> str:
        with _in(bench, state):
            message = bench.ask(command, payload)
            if command == Command.DMA_MAP and not message.is_error:
                bench.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000))
            return bench.refused(message)

    STATES.add(
        f"{command.name}-in-{state.name}",
        "EINVAL: not in that state",
        run,
        risk=Risk.MIGRATE,
        advised=True,
        clause=_PRACTICE,
        errnos=(errno.EINVAL,),
    )


_MAP = struct.pack("<IIQQQ", 32, 3, 0, 0x4000_0000, 0x1000)
_READ_CONFIG = struct.pack("<QII", 0, RegionIndex.CONFIG, 4)
for _where in (_STOP, _STOP_COPY):
    _held_back(_where, Command.DMA_MAP, _MAP)
    _held_back(_where, Command.DEVICE_GET_INFO, GET_INFO)
    _held_back(_where, Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 0, 0, 0))
_held_back(_STOP_COPY, Command.REGION_READ, _READ_CONFIG)


@STATES.check(
    "REGION_READ-in-STOP", "a stopped device can be looked at", risk=Risk.MIGRATE, advised=True, clause=_PRACTICE
)
def _(bench: Bench) -> str:
    bench.facts.region(RegionIndex.CONFIG)
    with _in(bench, _STOP):
        return bench.succeeds(Command.REGION_READ, _READ_CONFIG, 20)[16:].hex()


# The data.


def _read_request(size: int, argsz: int | None = None) -> bytes:
    return struct.pack("<II", 8 + size if argsz is None else argsz, size)


def _write_request(data: bytes, size: int | None = None, argsz: int | None = None) -> bytes:
    count = len(data) if size is None else size
    return struct.pack("<II", 8 + count if argsz is None else argsz, count) + data


def _read(bench: Bench, size: int) -> bytes:
    """One reading: trusts ``size`` of the reply, as libvfio-user fills up to what was asked for."""
    reply = bench.succeeds(Command.MIG_DATA_READ, _read_request(size))
    if len(reply) < 8:
        raise Unmet(f"a payload of {len(reply)} bytes")
    argsz, count = struct.unpack_from("<II", reply)
    if count > size or len(reply) < 8 + count or argsz < 8 + count:
        raise Unmet(f"argsz {argsz}, size {count}, {len(reply)} bytes for the {size} asked for")
    return reply[8 : 8 + count]


def _read_all(bench: Bench, chunk: int = _CHUNK) -> bytes:
    limit = min(chunk, bench.facts.max_data_xfer_size)
    data = bytearray()
    for _ in range(_MOST_CHUNKS):
        piece = _read(bench, limit)
        data += piece
        if len(piece) < limit:
            return bytes(data)
    raise Unmet(f"no end after {len(data)} bytes")


def _write_all(bench: Bench, data: bytes, chunk: int = _CHUNK) -> None:
    for start in range(0, len(data), chunk):
        bench.succeeds(Command.MIG_DATA_WRITE, _write_request(data[start : start + chunk]), 0)


@DATA.check("read", "in STOP_COPY: argsz, size and as many bytes", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        return f"{len(_read(bench, 4096))} bytes of 4096"


@DATA.check(
    "read-to-the-end", "fewer bytes than were asked for are the last, after which there are none", risk=Risk.MIGRATE
)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        data = _read_all(bench)
        rest = _read(bench, 4096)
        if rest:
            raise Unmet(f"{len(rest)} more after {len(data)}")
    return f"{len(data)} bytes"


@DATA.check("read-nothing", "0 bytes: none", risk=Risk.MIGRATE, advised=True)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        _read(bench, 0)
    return "none"


@DATA.check("read-in-small-pieces", "whatever the size of the pieces, the state is the same", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        whole = _read_all(bench)
    chunk = max(64, len(whole) // 16 + 1)
    with _in(bench, _STOP_COPY):
        pieces = _read_all(bench, chunk)
    if len(whole) != len(pieces):
        raise Unmet(f"{len(whole)} bytes, and {len(pieces)} in pieces of {chunk}")
    return f"{len(whole)} bytes"


@DATA.check("read-in-PRE_COPY", "in PRE_COPY it can be read already", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _PRE_COPY):
        return f"{len(_read(bench, 4096))} bytes of 4096"


@DATA.check("round-trip", "what was saved can be loaded, and saved again it is the same", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        data = _read_all(bench)
        _set(bench, _STOP)
        _set(bench, _RESUMING)
        _write_all(bench, data)
        _set(bench, _STOP)
        _set(bench, _STOP_COPY)
        again = _read_all(bench)
    if len(data) != len(again):
        raise Unmet(f"{len(data)} bytes, then {len(again)}")
    return f"{len(data)} bytes"


@DATA.check(
    "round-trip-registers",
    "a register written, saved, changed and loaded has the value it was saved with",
    risk=Risk.MIGRATE,
)
def _(bench: Bench) -> str:
    bench.facts.region(RegionIndex.CONFIG)
    line = struct.pack("<QII", 0x3C, RegionIndex.CONFIG, 1)
    old = bench.succeeds(Command.REGION_READ, line, 17)[16]
    bench.succeeds(Command.REGION_WRITE, line + bytes([old ^ 0x5A]))
    with _in(bench, _STOP_COPY):
        data = _read_all(bench)
        _set(bench, _RUNNING)
        bench.succeeds(Command.REGION_WRITE, line + bytes([old]))
        _set(bench, _RESUMING)
        _write_all(bench, data)
        _set(bench, _RUNNING)
        found = bench.succeeds(Command.REGION_READ, line, 17)[16]
    bench.succeeds(Command.REGION_WRITE, line + bytes([old]))
    if found != old ^ 0x5A:
        raise Unmet(f"{found:#x}, not {old ^ 0x5A:#x}")
    return f"{found:#x}"


@DATA.check("write", "in RESUMING: a header alone", risk=Risk.MIGRATE)
def _(bench: Bench) -> str:
    with _in(bench, _STOP_COPY):
        data = _read_all(bench)
        _set(bench, _STOP)
        _set(bench, _RESUMING)
        bench.succeeds(Command.MIG_DATA_WRITE, _write_request(data[:16]), 0)
        _write_all(bench, data[16:])
    return "a header alone"


@DATA.check(
    "rubbish", "what is no state of the device is refused, when written or when put into effect", risk=Risk.MIGRATE
)
def _(bench: Bench) -> str:
    with _in(bench, _RESUMING):
        message = bench.ask(Command.MIG_DATA_WRITE, _write_request(b"\xde\xad\xbe\xef" * 64))
        if not message.is_error:
            message = bench.ask(Command.DEVICE_FEATURE, _state_request(_STOP))
        seen = bench.refused(message, ())
        bench.ask(Command.DEVICE_RESET)
    return seen


def _refuses(
    name: str, why: str, state: MigrationState, command: Command, payload: bytes, *, advised: bool = False
) -> None:
    def run(bench: Bench) -> str:
        with _in(bench, state):
            return bench.refuses(command, payload)

    DATA.add(f"{name}", f"EINVAL: {why}", run, risk=Risk.MIGRATE, advised=advised, errnos=(errno.EINVAL,))


_READ, _WRITE = Command.MIG_DATA_READ, Command.MIG_DATA_WRITE
for _where in (_RUNNING, _STOP, _RESUMING):
    _refuses(f"read-in-{_where.name}", "nothing is being saved", _where, _READ, _read_request(64))
for _where in (_RUNNING, _STOP, _STOP_COPY, _PRE_COPY):
    _refuses(f"write-in-{_where.name}", "nothing is being loaded", _where, _WRITE, _write_request(bytes(64)))
_refuses("read-short", "a payload under 8 bytes", _STOP_COPY, _READ, bytes(7))
_refuses("read-no-room", "argsz has no room for the bytes", _STOP_COPY, _READ, _read_request(64, argsz=71))
_refuses("read-argsz-0", "argsz has room for nothing", _STOP_COPY, _READ, _read_request(64, argsz=0))
_refuses(
    "read-huge", "more bytes than the client's max_data_xfer_size", _STOP_COPY, _READ, _read_request((1 << 20) + 1)
)
_refuses("read-wraps", "argsz and size exceed 32 bits", _STOP_COPY, _READ, _read_request(0xFFFF_FFFF, argsz=7))
_refuses("write-short", "a payload under 8 bytes", _RESUMING, _WRITE, bytes(7))
_refuses("write-argsz", "argsz under 8 and the bytes", _RESUMING, _WRITE, _write_request(bytes(64), argsz=71))
_refuses("write-data-short", "fewer bytes than counted", _RESUMING, _WRITE, _write_request(bytes(63), size=64))
_refuses(
    "write-count-huge",
    "four thousand million bytes, of which 4 came",
    _RESUMING,
    _WRITE,
    _write_request(bytes(4), size=0xFFFF_FFF0, argsz=0xFFFF_FFF8),
)


def _without(name: str, command: Command, payload: bytes) -> None:
    def make(facts: Facts) -> bytes:
        if facts.migration is not None:
            raise DoesNotApply("the device has migration")
        return payload

    DATA.refuses(
        f"absent[{name}]",
        "a device that does not migrate has none",
        command,
        make,
        errnos=(errno.EINVAL, errno.ENOTSUP),
    )


_without("read", _READ, _read_request(64))
_without("write", _WRITE, _write_request(bytes(64)))
