"""DEVICE_FEATURE, and the log of dirty pages it keeps."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import FEATURE_OPERATIONS, Feature, FeatureFlags, bitmap_size
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Unmet
from vfio_user.testing.conformance.facts import Facts

__all__ = ["DIRTY", "FEATURE", "feature_request"]

FEATURE = Family("feature", "vfio-user, VFIO_USER_DEVICE_FEATURE")
DIRTY = Family("dirty_log", "vfio-user, VFIO_USER_DEVICE_FEATURE: VFIO_DEVICE_FEATURE_DMA_LOGGING")

_GET, _SET, _PROBE = (int(flag) for flag in (FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE))
_BASE = 0x5000_0000
_PAGE = 0x1000
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY)


def feature_request(feature: int, operation: int, data: bytes = b"", argsz: int | None = None) -> bytes:
    """A request with room for its own length, unless another is given."""
    return struct.pack("<II", 8 + len(data) if argsz is None else argsz, operation | feature) + data


def _refuses(family: Family, name: str, why: str, payload: bytes, *, advised: bool = False) -> None:
    def make(facts: Facts) -> bytes:
        facts.need_migration()
        return payload

    family.refuses(name, why, Command.DEVICE_FEATURE, make, errnos=_REFUSALS, advised=advised)


# What there is.


def _probed(feature: Feature) -> None:
    def run(bench: Bench) -> str:
        bench.facts.need_migration()
        request = feature_request(feature, _PROBE)
        if bench.succeeds(Command.DEVICE_FEATURE, request, len(request)) != request:
            raise Unmet("another payload")
        return "the request's payload"

    def with_operation(bench: Bench) -> str:
        bench.facts.need_migration()
        request = feature_request(feature, _PROBE | int(FEATURE_OPERATIONS[feature]))
        if bench.succeeds(Command.DEVICE_FEATURE, request, len(request)) != request:
            raise Unmet("another payload")
        return "the request's payload"

    FEATURE.add(f"probe[{feature.name}]", "a device that migrates has it: the request's payload", run)
    operations = FEATURE_OPERATIONS[feature].name
    FEATURE.add(f"probe-{operations}[{feature.name}]", "it can be got or set: the request's payload", with_operation)
    for operation, name in ((_GET, "GET"), (_SET, "SET")):
        if not operation & FEATURE_OPERATIONS[feature]:
            _refuses(
                FEATURE,
                f"probe-{name}[{feature.name}]",
                "that cannot be done with it",
                feature_request(feature, _PROBE | operation),
            )
            _refuses(
                FEATURE,
                f"{name}[{feature.name}]",
                "that cannot be done with it",
                feature_request(feature, operation, bytes(24), argsz=4096),
            )


for _feature in Feature:
    _probed(_feature)


@FEATURE.check("migration", "GET: argsz 16, and flags with STOP_COPY among them")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    reply = bench.succeeds(Command.DEVICE_FEATURE, feature_request(Feature.MIGRATION, _GET, argsz=16), 16)
    argsz, flags, support = struct.unpack("<IIQ", reply)
    if argsz != 16 or flags != _GET | Feature.MIGRATION or not support & 1 or support & ~7:
        raise Unmet(f"argsz {argsz}, flags {flags:#x}, {support:#x}")
    return f"{support:#x}"


@FEATURE.check("state", "GET: argsz 16, and a state there is")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    reply = bench.succeeds(Command.DEVICE_FEATURE, feature_request(Feature.MIG_DEVICE_STATE, _GET, argsz=16), 16)
    argsz, flags, state, _ = struct.unpack("<IIII", reply)
    if argsz != 16 or flags != _GET | Feature.MIG_DEVICE_STATE or state > 7:
        raise Unmet(f"argsz {argsz}, flags {flags:#x}, state {state}")
    return f"state {state}"


@FEATURE.check("runs-at-first", "a device nobody migrates is in RUNNING (2)")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    reply = bench.succeeds(Command.DEVICE_FEATURE, feature_request(Feature.MIG_DEVICE_STATE, _GET, argsz=16), 16)
    if reply[8] != 2:
        raise Unmet(f"state {reply[8]}")
    return "it is"


@FEATURE.check("much-room", "argsz over what is needed: no more bytes than there are")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    reply = bench.succeeds(Command.DEVICE_FEATURE, feature_request(Feature.MIGRATION, _GET, argsz=4096))
    if len(reply) != 16:
        raise Unmet(f"{len(reply)} bytes")
    return "16 bytes"


for _name, _why, _payload in (
    ("short[4]", "a payload under 8 bytes", bytes(4)),
    ("short[7]", "a payload under 8 bytes", feature_request(1, _GET, argsz=16)[:7]),
    ("no-operation", "neither get, set nor probe", feature_request(Feature.MIGRATION, 0, argsz=16)),
    ("get-and-set", "get and set at once", feature_request(Feature.MIG_DEVICE_STATE, _GET | _SET, bytes(8))),
    ("unknown-operation", "an operation there is not", feature_request(Feature.MIGRATION, _GET | 1 << 20, argsz=16)),
    ("migration-no-room", "no room for the reply", feature_request(Feature.MIGRATION, _GET, argsz=8)),
    ("migration-15", "a byte of room too few", feature_request(Feature.MIGRATION, _GET, argsz=15)),
    ("state-no-room", "no room for the reply", feature_request(Feature.MIG_DEVICE_STATE, _GET, argsz=8)),
    ("state-short", "no state to set", feature_request(Feature.MIG_DEVICE_STATE, _SET)),
    (
        "set-no-room",
        "argsz under the length of the request",
        feature_request(Feature.MIG_DEVICE_STATE, _SET, struct.pack("<II", 2, 0), argsz=8),
    ),
):
    _refuses(FEATURE, _name, _why, _payload)
for _number in (0, 3, 4, 5, 9, 99, 0xFFFF):
    _refuses(FEATURE, f"unknown[{_number}]", "there is no such feature", feature_request(_number, _PROBE))
for _number in (0, 5, 7, 8, 0xFFFF_FFFF):
    _refuses(
        FEATURE,
        f"state[{_number:#x}]",
        "no state to go to",
        feature_request(Feature.MIG_DEVICE_STATE, _SET, struct.pack("<II", _number, 0)),
    )
for _feature in Feature:

    def _without(facts: Facts, number: int = _feature) -> bytes:
        if facts.migration is not None:
            raise DoesNotApply("the device has migration")
        return feature_request(number, _PROBE)

    FEATURE.refuses(
        f"absent[{_feature.name}]",
        "a device that does not migrate has none",
        Command.DEVICE_FEATURE,
        _without,
        errnos=_REFUSALS,
    )


# Dirty pages.


def _start(page_size: int = _PAGE, ranges: bytes = b"", count: int = 0) -> bytes:
    return feature_request(Feature.DMA_LOGGING_START, _SET, struct.pack("<QII", page_size, count, 0) + ranges)


_STOP = feature_request(Feature.DMA_LOGGING_STOP, _SET)


def _report(iova: int = _BASE, length: int = 4 * _PAGE, page_size: int = _PAGE, argsz: int = 4096) -> bytes:
    return feature_request(Feature.DMA_LOGGING_REPORT, _GET, struct.pack("<QQQ", iova, length, page_size), argsz=argsz)


@contextmanager
def _logging(bench: Bench) -> Iterator[None]:
    """Four mapped pages, whose writes are logged."""
    bench.facts.need_migration()
    with bench.mapped(_BASE, 4 * _PAGE, fds=[bench.memory(4 * _PAGE)]):
        bench.succeeds(Command.DEVICE_FEATURE, _start())
        try:
            yield
        finally:
            if not bench.peer.is_out_of_step:
                bench.ask(Command.DEVICE_FEATURE, _STOP)


@DIRTY.check("start", "SET: the request's payload")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    reply = bench.ask(Command.DEVICE_FEATURE, _start())
    bench.ask(Command.DEVICE_FEATURE, _STOP)
    if bench.success(reply) != _start():
        raise Unmet("another payload")
    return "the request's payload"


@DIRTY.check("start-ranges", "ranges to log may be listed")
def _(bench: Bench) -> str:
    bench.facts.need_migration()
    request = _start(ranges=struct.pack("<QQQQ", _BASE, _PAGE, _BASE + 2 * _PAGE, _PAGE), count=2)
    reply = bench.ask(Command.DEVICE_FEATURE, request)
    bench.ask(Command.DEVICE_FEATURE, _STOP)
    bench.success(reply, len(request))
    return "the request's payload"


@DIRTY.check("start-twice", "again with the same pages: no error")
def _(bench: Bench) -> str:
    with _logging(bench):
        bench.succeeds(Command.DEVICE_FEATURE, _start())
    return "a success"


@DIRTY.check("start-twice-otherwise", "again with other pages: refused")
def _(bench: Bench) -> str:
    with _logging(bench):
        return bench.refuses(Command.DEVICE_FEATURE, _start(2 * _PAGE), _REFUSALS)


@DIRTY.check("stop", "SET: the request's payload")
def _(bench: Bench) -> str:
    with _logging(bench):
        if bench.succeeds(Command.DEVICE_FEATURE, _STOP) != _STOP:
            raise Unmet("another payload")
    return "the request's payload"


@DIRTY.check("report", "GET: the range, and a bitmap of a bit a page in words of 64 bits")
def _(bench: Bench) -> str:
    with _logging(bench):
        size = 8 + 24 + bitmap_size(4 * _PAGE, _PAGE)
        reply = bench.succeeds(Command.DEVICE_FEATURE, _report(), size)
        if reply[8:32] != _report()[8:32] or struct.unpack_from("<I", reply)[0] != size:
            raise Unmet(f"argsz {struct.unpack_from('<I', reply)[0]}, range {reply[8:32].hex()}")
    return f"{size} bytes"


@DIRTY.check("report-no-others", "no bit is set beyond the pages of the range")
def _(bench: Bench) -> str:
    with _logging(bench):
        bits = int.from_bytes(bench.succeeds(Command.DEVICE_FEATURE, _report())[32:], "little")
        if bits >> 4:
            raise Unmet(f"{bits:#x}")
    return f"{bits:#x}"


@DIRTY.check("report-clears", "what was reported is clean: the second report has no page")
def _(bench: Bench) -> str:
    with _logging(bench):
        bench.succeeds(Command.DEVICE_FEATURE, _report())
        bits = int.from_bytes(bench.succeeds(Command.DEVICE_FEATURE, _report())[32:], "little")
        if bits:
            raise Unmet(f"{bits:#x}")
    return "none"


@DIRTY.check("report-exact-room", "argsz just enough: a success")
def _(bench: Bench) -> str:
    with _logging(bench):
        bench.succeeds(Command.DEVICE_FEATURE, _report(argsz=40), 40)
    return "40 bytes"


def _bad_report(
    name: str, why: str, payload: bytes, errnos: tuple[int, ...] = _REFUSALS, *, advised: bool = False
) -> None:
    def run(bench: Bench) -> str:
        with _logging(bench):
            return bench.refuses(Command.DEVICE_FEATURE, payload, errnos)

    DIRTY.add(f"report[{name}]", f"refused: {why}", run, errnos=errnos, advised=advised)


_bad_report("no-room", "argsz has no room for the bitmap", _report(argsz=39))
_bad_report("no-room-at-all", "argsz has room for nothing", _report(argsz=8))
_bad_report("page-0", "pages of 0 bytes", _report(page_size=0))
_bad_report("page-3000", "pages of no power of two", _report(page_size=3000))
_bad_report("page-too-large", "a page larger than the range", _report(page_size=8 * _PAGE))
_bad_report(
    "not-mapped", "nothing is mapped there", _report(iova=0x7_0000_0000), (errno.ENOENT, errno.EINVAL, errno.ENOTSUP)
)
_bad_report(
    "inside",
    "the range does not begin where a mapping does",
    _report(iova=_BASE + _PAGE, length=_PAGE),
    (errno.ENOTSUP, errno.EINVAL),
    advised=True,
)
_bad_report("short", "the range is missing", feature_request(Feature.DMA_LOGGING_REPORT, _GET, bytes(16), argsz=4096))
_refuses(DIRTY, "report-before-start", "nothing is logged", _report())
_refuses(DIRTY, "start-page-0", "pages of 0 bytes", _start(0))
_refuses(DIRTY, "start-page-3000", "pages of no power of two", _start(3000), advised=True)
_refuses(DIRTY, "start-short", "no page size", feature_request(Feature.DMA_LOGGING_START, _SET, bytes(8)))
_refuses(DIRTY, "start-ranges-missing", "fewer ranges than counted", _start(count=2))


@DIRTY.check("report-after-stop", "refused: nothing is logged any more")
def _(bench: Bench) -> str:
    with _logging(bench):
        bench.succeeds(Command.DEVICE_FEATURE, _STOP)
        return bench.refuses(Command.DEVICE_FEATURE, _report(), _REFUSALS)
