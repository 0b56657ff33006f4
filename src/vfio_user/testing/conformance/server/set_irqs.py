"""DEVICE_SET_IRQS: its shapes, its ranges, and that the eventfds it connects are those that fire."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vfio_user.protocol.constants import Command, IrqIndex
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Unmet
from vfio_user.testing.conformance.facts import Facts

__all__ = ["SET_IRQS"]

SET_IRQS = Family("set_irqs", "vfio-user, VFIO_USER_DEVICE_SET_IRQS")

_NONE, _BOOL, _EVENTFD = 0x01, 0x02, 0x04
_MASK, _UNMASK, _TRIGGER = 0x08, 0x10, 0x20


def _request(
    index: int, flags: int, start: int = 0, count: int = 0, data: bytes = b"", argsz: int | None = None
) -> bytes:
    return struct.pack("<IIIII", 20 + len(data) if argsz is None else argsz, flags, index, start, count) + data


def _set(
    bench: Bench, index: int, flags: int, start: int = 0, count: int = 0, data: bytes = b"", *, fds: Sequence[int] = ()
) -> None:
    """A SET_IRQS that is to succeed, with a header alone."""
    bench.succeeds(Command.DEVICE_SET_IRQS, _request(index, flags, start, count, data), 0, fds=fds)


@contextmanager
def _connected(bench: Bench, index: int, count: int, start: int = 0) -> Iterator[list[int]]:
    """Eventfds of that many vectors, for as long as the ``with`` lasts."""
    fds = bench.eventfds(count)
    _set(bench, index, _EVENTFD | _TRIGGER, start, count, fds=fds)
    try:
        yield fds
    finally:
        if not bench.peer.is_out_of_step:
            bench.ask(Command.DEVICE_SET_IRQS, _request(index, _NONE | _TRIGGER))


def _fired(fd: int) -> int:
    """How often it fired since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def _wait_for(bench: Bench, fd: int) -> int:
    """The same, but it may take as long as a reply."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(min(bench.peer.timeout, 0.5 if bench.peer.wire.pause else 0.0) * 1000)
    return _fired(fd)


# What it has to do.


def _each(index: IrqIndex) -> None:
    def off(bench: Bench) -> str:
        if not bench.facts.irqs.get(index) or not bench.facts.irqs[index].count:
            raise DoesNotApply(f"the device has no {index.name}")
        _set(bench, index, _NONE | _TRIGGER)
        return "a header alone"

    def on(bench: Bench) -> str:
        if not bench.facts.irqs.get(index) or not bench.facts.irqs[index].count:
            raise DoesNotApply(f"the device has no {index.name}")
        with _connected(bench, index, 1):
            pass
        return "a header alone"

    def without(bench: Bench) -> str:
        if not bench.facts.irqs.get(index) or not bench.facts.irqs[index].count:
            raise DoesNotApply(f"the device has no {index.name}")
        _set(bench, index, _EVENTFD | _TRIGGER, 0, 1)
        _set(bench, index, _NONE | _TRIGGER)
        return "a header alone"

    SET_IRQS.add(f"off[{index.name}]", "NONE|TRIGGER of no vectors turns the index off: a header alone", off)
    SET_IRQS.add(f"connect[{index.name}]", "EVENTFD|TRIGGER with a descriptor: a header alone", on)
    SET_IRQS.add(
        f"no-descriptor[{index.name}]", "EVENTFD|TRIGGER without: the vector has no eventfd, no error", without
    )


for _index in IrqIndex:
    _each(_index)


@SET_IRQS.check("fires[NONE]", "NONE|TRIGGER of a vector fires its eventfd")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        _set(bench, irq.index, _NONE | _TRIGGER, 0, 1)
        if _wait_for(bench, fd) != 1:
            raise Unmet("it did not fire once")
    return "it fired once"


@SET_IRQS.check("fires[BOOL-1]", "BOOL|TRIGGER with a byte of 1 fires the eventfd")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        _set(bench, irq.index, _BOOL | _TRIGGER, 0, 1, b"\1")
        if _wait_for(bench, fd) != 1:
            raise Unmet("it did not fire once")
    return "it fired once"


@SET_IRQS.check("fires[BOOL-0]", "BOOL|TRIGGER with a byte of 0 does not fire the eventfd")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        _set(bench, irq.index, _BOOL | _TRIGGER, 0, 1, b"\0")
        bench.goes_on()
        if _fired(fd):
            raise Unmet("it fired")
    return "it did not fire"


@SET_IRQS.check("fires[its-own]", "each vector fires its own eventfd, and no other")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors(2)
    with _connected(bench, irq.index, 2) as fds:
        for at in (1, 0):
            _set(bench, irq.index, _NONE | _TRIGGER, at, 1)
            counts = [_wait_for(bench, fds[at]), _fired(fds[1 - at])]
            if counts != [1, 0]:
                raise Unmet(f"vector {at} fired its own {counts[0]} times, the other's {counts[1]}")
    return "each its own"


@SET_IRQS.check("fires[start]", "vectors are counted from start: descriptors given from 1 on are those of 1 and 2")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors(3)
    with _connected(bench, irq.index, 2, start=1) as fds:
        _set(bench, irq.index, _NONE | _TRIGGER, 2, 1)
        counts = [_wait_for(bench, fds[1]), _fired(fds[0])]
        if counts != [1, 0]:
            raise Unmet(f"vector 2 fired its own {counts[0]} times, that of 1 {counts[1]}")
    return "they are"


@SET_IRQS.check("fires[BOOL-some]", "BOOL|TRIGGER fires the vectors whose byte is not 0")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors(3)
    with _connected(bench, irq.index, 3) as fds:
        _set(bench, irq.index, _BOOL | _TRIGGER, 0, 3, b"\1\0\1")
        counts = [_wait_for(bench, fds[2]), _fired(fds[1]), _fired(fds[0])]
        if counts != [1, 0, 1]:
            raise Unmet(f"they fired {counts[::-1]} times")
    return "the first and the third"


@SET_IRQS.check("fires[all]", "NONE|TRIGGER of a range fires every vector of it")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors(2)
    with _connected(bench, irq.index, 2) as fds:
        _set(bench, irq.index, _NONE | _TRIGGER, 0, 2)
        counts = [_wait_for(bench, fd) for fd in fds]
        if counts != [1, 1]:
            raise Unmet(f"they fired {counts} times")
    return "both"


@SET_IRQS.check("replaced", "a vector given another eventfd fires that one, and the old one no more")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (old,):
        (new,) = bench.eventfds(1)
        _set(bench, irq.index, _EVENTFD | _TRIGGER, 0, 1, fds=[new])
        _set(bench, irq.index, _NONE | _TRIGGER, 0, 1)
        counts = [_wait_for(bench, new), _fired(old)]
        if counts != [1, 0]:
            raise Unmet(f"the new one fired {counts[0]} times, the old one {counts[1]}")
    return "the new one"


@SET_IRQS.check("taken-back", "a vector whose eventfd was taken back does not fire it")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        _set(bench, irq.index, _EVENTFD | _TRIGGER, 0, 1)
        bench.ask(Command.DEVICE_SET_IRQS, _request(irq.index, _NONE | _TRIGGER, 0, 1))
        bench.goes_on()
        if _fired(fd):
            raise Unmet("it fired")
    return "it did not fire"


@SET_IRQS.check("turned-off", "when the index is turned off, no vector fires its eventfd any more")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        _set(bench, irq.index, _NONE | _TRIGGER)
        bench.ask(Command.DEVICE_SET_IRQS, _request(irq.index, _NONE | _TRIGGER, 0, 1))
        bench.goes_on()
        if _fired(fd):
            raise Unmet("it fired")
    return "it did not fire"


@SET_IRQS.check("only-once", "one SET_IRQS is one signal, however many went before")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        for _ in range(3):
            _set(bench, irq.index, _NONE | _TRIGGER, 0, 1)
        count = _wait_for(bench, fd)
        if count != 3:
            raise Unmet(f"3 gave {count}")
    return "3 gave 3"


@SET_IRQS.check("all-vectors", "every vector of the index can be given an eventfd, as many a message as max_msg_fds")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    limit = bench.facts.capabilities.get("max_msg_fds", 1)
    step = limit if isinstance(limit, int) and 0 < limit <= 253 else 1
    fds = bench.eventfds(min(irq.count, 128))
    for start in range(0, len(fds), step):
        part = fds[start : start + step]
        _set(bench, irq.index, _EVENTFD | _TRIGGER, start, len(part), fds=part)
    _set(bench, irq.index, _NONE | _TRIGGER, len(fds) - 1, 1)
    count = _wait_for(bench, fds[-1])
    _set(bench, irq.index, _NONE | _TRIGGER)
    if count != 1:
        raise Unmet(f"the last one fired {count} times")
    return f"{len(fds)} vectors"


def _masking(flags: int, name: str) -> None:
    def run(bench: Bench) -> str:
        irq = bench.facts.irqs.get(IrqIndex.INTX)
        if irq is None or not irq.count or not irq.flags & 2:
            raise DoesNotApply("the device has no INTx that can be masked")
        data = b"\1" if flags & _BOOL else b""
        _set(bench, IrqIndex.INTX, flags, 0, 1, data)
        _set(bench, IrqIndex.INTX, _NONE | _UNMASK, 0, 1)
        return "a header alone"

    SET_IRQS.add(f"intx[{name}]", "INTx can be masked and unmasked, as its flags say: a header alone", run)


_masking(_NONE | _MASK, "NONE-MASK")
_masking(_NONE | _UNMASK, "NONE-UNMASK")
_masking(_BOOL | _MASK, "BOOL-MASK")
_masking(_BOOL | _UNMASK, "BOOL-UNMASK")


@SET_IRQS.check(
    "intx[EVENTFD-UNMASK]",
    "INTx can be given an eventfd to be unmasked by, as KVM has it",
    clause="practice (QEMU with KVM)",
)
def _(bench: Bench) -> str:
    irq = bench.facts.irqs.get(IrqIndex.INTX)
    if irq is None or not irq.count or not irq.flags & 2:
        raise DoesNotApply("the device has no INTx that can be masked")
    _set(bench, IrqIndex.INTX, _EVENTFD | _UNMASK, 0, 1, fds=bench.eventfds(1))
    _set(bench, IrqIndex.INTX, _NONE | _TRIGGER)
    return "a header alone"


@SET_IRQS.check(
    "argsz-is-only-a-minimum", "argsz over what there is: accepted", advised=True, clause="practice (libvfio-user)"
)
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    bench.succeeds(Command.DEVICE_SET_IRQS, _request(irq.index, _NONE | _TRIGGER, argsz=4096), 0)
    return "a header alone"


# What has to be refused.


def _shape(
    name: str,
    why: str,
    make: Callable[[Facts, int, int], bytes],
    *,
    fds: int = 0,
    advised: bool = False,
    least: int = 1,
) -> None:
    """A refusal about an index with vectors; ``make`` gets it and their number."""

    def payload(facts: Facts) -> bytes:
        irq = facts.vectors(least)
        return make(facts, irq.index, irq.count)

    SET_IRQS.refuses(name, why, Command.DEVICE_SET_IRQS, payload, fds=fds, advised=advised)


for _length in (4, 12, 19):
    SET_IRQS.refuses(
        f"short[{_length}]",
        "a payload under 20 bytes",
        Command.DEVICE_SET_IRQS,
        _request(0, _NONE | _TRIGGER)[:_length],
    )
for _argsz in (0, 19):
    SET_IRQS.refuses(
        f"argsz-{_argsz}", "argsz under 20", Command.DEVICE_SET_IRQS, _request(0, _NONE | _TRIGGER, argsz=_argsz)
    )
SET_IRQS.refuses(
    "no-such-index",
    "one index beyond the last",
    Command.DEVICE_SET_IRQS,
    lambda facts: _request(facts.num_irqs, _NONE | _TRIGGER, 0, 1),
)
for _beyond in (100, 0xFFFF_FFFF):
    SET_IRQS.refuses(
        f"no-such-index[{_beyond:#x}]",
        "there is no such index",
        Command.DEVICE_SET_IRQS,
        _request(_beyond, _NONE | _TRIGGER, 0, 1),
    )


def _bad_flags(flags: int, why: str, *, advised: bool = False) -> None:
    _shape(f"flags[{flags:#04x}]", why, lambda _facts, index, _count: _request(index, flags, 0, 1), advised=advised)


for _flags, _why in (
    (0x00, "no kind of data and no action"),
    (0x01, "no action"),
    (0x02, "no action"),
    (0x04, "no action"),
    (0x20, "no kind of data"),
    (0x08, "no kind of data"),
    (0x19, "two actions"),
    (0x29, "two actions"),
    (0x31, "two actions"),
    (0x39, "three actions"),
    (0x23, "two kinds of data"),
    (0x25, "two kinds of data"),
    (0x26, "two kinds of data"),
    (0x27, "three kinds of data"),
    (0x3F, "everything at once"),
):
    _bad_flags(_flags, _why)
for _flags in (0x61, 0x121, 0x8000_0021):
    _bad_flags(_flags, "a flag there is not", advised=True)
_shape(
    "start-beyond",
    "the first vector is beyond the last",
    lambda _, index, count: _request(index, _NONE | _TRIGGER, count, 1),
)
_shape(
    "start-far-beyond",
    "the first vector is far beyond the last",
    lambda _, index, _count: _request(index, _NONE | _TRIGGER, 0x7FFF_FFFF, 1),
)
_shape(
    "count-beyond",
    "one vector more than there is",
    lambda _, index, count: _request(index, _NONE | _TRIGGER, 0, count + 1),
)
_shape(
    "count-huge",
    "four thousand million vectors",
    lambda _, index, _count: _request(index, _NONE | _TRIGGER, 0, 0xFFFF_FFFF),
)
_shape(
    "range-crosses-end",
    "the range crosses the last vector",
    lambda _, index, count: _request(index, _NONE | _TRIGGER, count - 1, 2),
)
_shape(
    "range-wraps",
    "start and count together exceed 32 bits",
    lambda _, index, _count: _request(index, _NONE | _TRIGGER, 1, 0xFFFF_FFFF),
)
_shape(
    "descriptors-beyond",
    "the range crosses the last vector",
    lambda _, index, count: _request(index, _EVENTFD | _TRIGGER, count - 1, 2),
    fds=2,
)
_shape(
    "none-of-some",
    "no vectors, but a first one",
    lambda _, index, _count: _request(index, _NONE | _TRIGGER, 1, 0),
    least=2,
)
_shape("none-masked", "no vectors to mask", lambda _, index, _count: _request(index, _NONE | _MASK, 0, 0))
_shape("none-unmasked", "no vectors to unmask", lambda _, index, _count: _request(index, _NONE | _UNMASK, 0, 0))
_shape("none-connected", "no vectors to connect", lambda _, index, _count: _request(index, _EVENTFD | _TRIGGER, 0, 0))
_shape("none-of-bool", "no vectors to fire", lambda _, index, _count: _request(index, _BOOL | _TRIGGER, 0, 0))
_shape("bool-missing", "BOOL without its byte", lambda _, index, _count: _request(index, _BOOL | _TRIGGER, 0, 1))
_shape(
    "bool-short",
    "BOOL with a byte too few",
    lambda _, index, _count: _request(index, _BOOL | _TRIGGER, 0, 2, b"\0"),
    least=2,
)
_shape(
    "bool-long", "BOOL with a byte too many", lambda _, index, _count: _request(index, _BOOL | _TRIGGER, 0, 1, b"\0\0")
)
_shape(
    "fds-with-none", "descriptors with NONE", lambda _, index, _count: _request(index, _NONE | _TRIGGER, 0, 1), fds=1
)
_shape(
    "fds-with-bool",
    "descriptors with BOOL",
    lambda _, index, _count: _request(index, _BOOL | _TRIGGER, 0, 1, b"\0"),
    fds=1,
)
_shape(
    "fds-too-many",
    "two descriptors for one vector",
    lambda _, index, _count: _request(index, _EVENTFD | _TRIGGER, 0, 1),
    fds=2,
)
_shape(
    "fds-too-few",
    "one descriptor for two vectors",
    lambda _, index, _count: _request(index, _EVENTFD | _TRIGGER, 0, 2),
    fds=1,
    least=2,
)
for _name, _at in (("ERR", 3), ("REQ", 4)):
    SET_IRQS.refuses(
        f"mask[{_name}]",
        f"{_name} cannot be masked",
        Command.DEVICE_SET_IRQS,
        _request(_at, _NONE | _MASK, 0, 1),
        advised=True,
    )
    SET_IRQS.refuses(
        f"two[{_name}]",
        f"{_name} has one vector",
        Command.DEVICE_SET_IRQS,
        _request(_at, _EVENTFD | _TRIGGER, 0, 2),
        fds=2,
    )


@SET_IRQS.check("refused-changes-nothing", "a refused SET_IRQS leaves the eventfds that were there")
def _(bench: Bench) -> str:
    irq = bench.facts.vectors()
    with _connected(bench, irq.index, 1) as (fd,):
        bench.refuses(
            Command.DEVICE_SET_IRQS, _request(irq.index, _EVENTFD | _TRIGGER, 0, 1), (), fds=bench.eventfds(2)
        )
        _set(bench, irq.index, _NONE | _TRIGGER, 0, 1)
        if _wait_for(bench, fd) != 1:
            raise Unmet("the eventfd does not fire any more")
    return "it fires still"
