"""REGION_WRITE_MULTI: several small writes in one message."""

from __future__ import annotations

import struct

from vfio_user.protocol.constants import Command, HeaderFlags
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.server.access import CONFIG, INTERRUPT_LINE, access, line, line_is

__all__ = ["MULTI"]

MULTI = Family("write_multi", "vfio-user, VFIO_USER_REGION_WRITE_MULTI")


def _entry(value: int, offset: int = INTERRUPT_LINE, count: int = 1, region: int = CONFIG) -> bytes:
    return struct.pack("<QIIQ", offset, region, count, value)


def _multi(*entries: bytes, number: int | None = None) -> bytes:
    return struct.pack("<Q", len(entries) if number is None else number) + b"".join(entries)


def _done(bench: Bench, payload: bytes) -> int:
    (done,) = struct.unpack("<Q", bench.succeeds(Command.REGION_WRITE_MULTI, payload, 8))
    return int(done)


def _several(count: int) -> None:
    def run(bench: Bench) -> str:
        bench.facts.need_write_multiple()
        with line(bench) as old:
            done = _done(bench, _multi(*(_entry((old + at + 1) & 0xFF) for at in range(count))))
            if done != count:
                raise Unmet(f"{done} done")
            return f"{done} done; {line_is(bench, (old + count) & 0xFF)}"

    MULTI.add(f"writes[{count}]", f"{count} writes are done in order, and counted", run, risk=Risk.WRITE)


for _count in (1, 2, 200):
    _several(_count)


@MULTI.check("none", "no writes: none done", advised=True)
def _(bench: Bench) -> str:
    bench.facts.need_write_multiple()
    done = _done(bench, _multi())
    if done:
        raise Unmet(f"{done} done")
    return "0 done"


@MULTI.check(
    "posted", "with flag No_reply it is done, and not answered", risk=Risk.WRITE, clause="practice (QEMU sends it so)"
)
def _(bench: Bench) -> str:
    bench.facts.need_write_multiple()
    with line(bench) as old:
        bench.peer.send(Command.REGION_WRITE_MULTI, _multi(_entry(old ^ 0x66)), flags=HeaderFlags.NO_REPLY)
        number = bench.peer.send(Command.REGION_READ, access(INTERRUPT_LINE, 1))
        message = bench.peer.receive()
        if message.header.message_id != number:
            bench.peer.is_out_of_step = True
            raise Unmet(f"it was answered: {message}")
        found = bench.success(message, 17)[16]
        if found != old ^ 0x66:
            raise Unmet(f"it reads {found:#x}, not {old ^ 0x66:#x}")
    return "done, and not answered"


def _stops(name: str, why: str, bad: bytes) -> None:
    def first(facts: Facts) -> bytes:
        facts.need_write_multiple()
        return _multi(bad, _entry(0))

    def second(bench: Bench) -> str:
        bench.facts.need_write_multiple()
        with line(bench) as old:
            done = _done(bench, _multi(_entry(old ^ 0x0F), bad, _entry(old ^ 0xF0)))
            if done != 1:
                raise Unmet(f"{done} done")
            return f"1 done; {line_is(bench, old ^ 0x0F)}"

    MULTI.refuses(f"first-bad[{name}]", f"{why}: nothing was done", Command.REGION_WRITE_MULTI, first)
    MULTI.add(
        f"second-bad[{name}]",
        f"{why}: those before it are done and counted, those after it not",
        second,
        risk=Risk.WRITE,
    )


_stops("region", "there is no such region", _entry(0, region=0xFFFF))
_stops("count", "more than 8 bytes", _entry(0, count=9))
_stops("offset", "an offset beyond the end", _entry(0, offset=1 << 32))
for _name, _payload, _why in (
    ("short[7]", bytes(7), "a payload under 8 bytes"),
    ("entry-missing", _multi(_entry(0), number=2), "fewer writes than counted"),
    ("entry-cut", _multi(_entry(0))[:-1], "the last write is cut"),
    ("entry-left-over", _multi(_entry(0), _entry(0), number=1), "more writes than counted"),
    ("byte-left-over", _multi(_entry(0)) + b"\0", "a byte more than counted"),
    ("201", _multi(*[_entry(0)] * 201), "more than 200 writes"),
    ("wraps", _multi(_entry(0), number=(1 << 64) - 1), "a number whose bytes exceed 64 bits"),
    ("wraps-to-fit", _multi(_entry(0), number=(1 << 61) + 1), "a number whose bytes, in 64 bits, are those of one"),
):

    def _bad(facts: Facts, payload: bytes = _payload) -> bytes:
        facts.need_write_multiple()
        return payload

    MULTI.refuses(_name, _why, Command.REGION_WRITE_MULTI, _bad)


@MULTI.check("not-offered", "a server that did not say write_multiple refuses it", own_connection=True, advised=True)
def _(bench: Bench) -> str:
    bench.peer  # noqa: B018 - makes a connection
    if bench.facts.capabilities.get("write_multiple") is True:
        raise DoesNotApply("the server said write_multiple")
    return bench.refuses(Command.REGION_WRITE_MULTI, _multi(_entry(0)), ())
