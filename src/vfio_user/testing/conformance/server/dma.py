"""DMA_MAP and DMA_UNMAP: what may be mapped, and that what is taken back is given up."""

from __future__ import annotations

import errno
import fcntl
import struct
import time

from vfio_user.protocol.constants import Command
from vfio_user.testing.conformance.bench import Bench
from vfio_user.testing.conformance.check import Family, Risk, Unmet

__all__ = ["MAP", "UNMAP"]

MAP = Family("dma_map", "vfio-user, VFIO_USER_DMA_MAP")
UNMAP = Family("dma_unmap", "vfio-user, VFIO_USER_DMA_UNMAP")

_PRACTICE = "practice (libvfio-user)"

#: Where the checks map: beyond what any device of ours or theirs minds.
_BASE = 0x4000_0000
_PAGE = 0x1000

_EXISTS = (errno.EEXIST, errno.EINVAL)
_NOT_THERE = (errno.ENOENT, errno.EINVAL)


def _map(iova: int = _BASE, size: int = _PAGE, flags: int = 3, offset: int = 0, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, iova, size)


def _unmap(iova: int = _BASE, size: int = _PAGE, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, iova, size)


# Mapping.


@MAP.check("reply", "a header alone")
def _(bench: Bench) -> str:
    message = bench.ask(Command.DMA_MAP, _map())
    bench.ask(Command.DMA_UNMAP, _unmap())
    bench.success(message, 0)
    return "a header alone"


def _accepts(
    name: str,
    what: str,
    payload: bytes,
    unmap: bytes,
    *,
    memory: int = 0,
    advised: bool = False,
    clause: str = "",
    risk: Risk | None = None,
) -> None:
    def run(bench: Bench) -> str:
        fds = [bench.memory(memory)] if memory else []
        message = bench.ask(Command.DMA_MAP, payload, fds=fds)
        try:
            bench.success(message, 0)
        finally:
            taken_back = bench.ask(Command.DMA_UNMAP, unmap)
        if taken_back.is_error:
            raise Unmet(f"it was mapped, but DMA_UNMAP got {taken_back}")
        return "mapped, and taken back"

    MAP.add(
        f"accepts[{name}]", f"{what}: mapped, and can be taken back", run, advised=advised, clause=clause, risk=risk
    )


_accepts("no-fd", "no descriptor: memory that only messages reach", _map(), _unmap())
_accepts("fd", "a descriptor, to read and write", _map(), _unmap(), memory=_PAGE)
_accepts("fd-read", "a descriptor, to read", _map(flags=1), _unmap(), memory=_PAGE)
_accepts("fd-write", "a descriptor, to write", _map(flags=2), _unmap(), memory=_PAGE)
_accepts("no-fd-read", "no descriptor, to read", _map(flags=1), _unmap())
_accepts("offset", "a descriptor, from its second page on", _map(offset=_PAGE), _unmap(), memory=2 * _PAGE)
_accepts("several-pages", "a descriptor of 16 pages", _map(size=16 * _PAGE), _unmap(size=16 * _PAGE), memory=16 * _PAGE)
_accepts("high", "an address over 4 GiB", _map(iova=1 << 40), _unmap(iova=1 << 40), memory=_PAGE)
_accepts("zero", "address 0, as QEMU maps a machine's memory", _map(iova=0), _unmap(iova=0), memory=_PAGE)
_accepts("long", "a payload longer than it need be", _map() + bytes(32), _unmap())
_accepts(
    "mmap",
    "access by mmap, said so",
    _map(flags=7),
    _unmap(),
    memory=_PAGE,
    advised=True,
    clause="vfio-user (2026), VFIO_USER_DMA_MAP",
)
_accepts(
    "file-io",
    "access by file I/O, said so",
    _map(flags=0xB),
    _unmap(),
    memory=_PAGE,
    advised=True,
    clause="vfio-user (2026), VFIO_USER_DMA_MAP",
)
_accepts(
    "top", "the last page there can be", _map(iova=(1 << 64) - _PAGE), _unmap(iova=(1 << 64) - _PAGE), advised=True
)


@MAP.check("same-again", "exactly the same again: no error, as QEMU may repeat one", advised=True, clause=_PRACTICE)
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    with bench.mapped(_BASE, _PAGE, fds=[memory]):
        bench.succeeds(Command.DMA_MAP, _map(), 0, fds=[memory])
    return "a success"


@MAP.check("same-again-is-one", "mapped twice the same, it is taken back once", advised=True, clause=_PRACTICE)
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    with bench.mapped(_BASE, _PAGE, fds=[memory]):
        if bench.ask(Command.DMA_MAP, _map(), fds=[memory]).is_error:
            return "it cannot be mapped twice"
        bench.succeeds(Command.DMA_UNMAP, _unmap())
        return bench.refuses(Command.DMA_UNMAP, _unmap(), _NOT_THERE)


@MAP.check("neighbours", "ranges that touch do not overlap")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, _PAGE), bench.mapped(_BASE + _PAGE, _PAGE), bench.mapped(_BASE - _PAGE, _PAGE):
        return "three in a row"


@MAP.check("pieces-of-one-file", "slices of one memory, in any order", clause="practice (QEMU)")
def _(bench: Bench) -> str:
    memory = bench.memory(3 * _PAGE)
    with (
        bench.mapped(_BASE, _PAGE, offset=2 * _PAGE, fds=[memory]),
        bench.mapped(_BASE + _PAGE, _PAGE, offset=0, fds=[memory]),
        bench.mapped(_BASE + 2 * _PAGE, _PAGE, offset=_PAGE, flags=1, fds=[memory]),
    ):
        return "three slices"


@MAP.check("many", "200 mappings at once", risk=Risk.HUGE)
def _(bench: Bench) -> str:
    count = min(200, bench.facts.capabilities.get("max_dma_maps", 65535))
    done = 0
    try:
        for number in range(count):
            bench.succeeds(Command.DMA_MAP, _map(_BASE + number * _PAGE), 0)
            done += 1
    finally:
        for number in range(done):
            bench.ask(Command.DMA_UNMAP, _unmap(_BASE + number * _PAGE))
    return f"{count} mappings"


for _length in (4, 16, 31):
    MAP.refuses(f"short[{_length}]", "a payload under 32 bytes", Command.DMA_MAP, _map()[:_length])
for _argsz in (0, 31):
    MAP.refuses(f"argsz-{_argsz}", "argsz under 32", Command.DMA_MAP, _map(argsz=_argsz))
MAP.refuses(
    "mmap-without-fd",
    "access by mmap, and no descriptor",
    Command.DMA_MAP,
    _map(flags=7),
    clause="vfio-user (2026), VFIO_USER_DMA_MAP",
)
MAP.refuses(
    "file-io-without-fd",
    "access by file I/O, and no descriptor",
    Command.DMA_MAP,
    _map(flags=0xB),
    clause="vfio-user (2026), VFIO_USER_DMA_MAP",
)
for _flags in (0x13, 0x103, 0x8000_0003):
    MAP.refuses(
        f"flags[{_flags:#x}]",
        "a flag there is not",
        Command.DMA_MAP,
        _map(flags=_flags),
        advised=True,
        clause=_PRACTICE,
    )
MAP.refuses(
    "both-modes",
    "access by mmap and by file I/O",
    Command.DMA_MAP,
    _map(flags=0xF),
    fds=1,
    advised=True,
    clause=_PRACTICE,
)
MAP.refuses("no-bytes", "a range of 0 bytes", Command.DMA_MAP, _map(size=0), advised=True)
MAP.refuses(
    "wraps",
    "the range goes beyond 64 bits of address",
    Command.DMA_MAP,
    _map(iova=(1 << 64) - _PAGE, size=2 * _PAGE),
    advised=True,
)
MAP.refuses(
    "too-large",
    "more than 8 TiB",
    Command.DMA_MAP,
    _map(iova=0, size=(8 << 40) + _PAGE),
    errnos=(errno.ENOSPC, errno.EINVAL, errno.ENOMEM),
    risk=Risk.HUGE,
    advised=True,
    clause=_PRACTICE,
)


@MAP.check(
    "file-too-short", "the range goes beyond the end of the file: refused, as touching it would be fatal", advised=True
)
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    message = bench.ask(Command.DMA_MAP, _map(size=2 * _PAGE), fds=[memory])
    if not message.is_error:
        bench.ask(Command.DMA_UNMAP, _unmap(size=2 * _PAGE))
    return bench.refused(message, ())


@MAP.check("not-memory", "a descriptor of no memory is refused")
def _(bench: Bench) -> str:
    message = bench.ask(Command.DMA_MAP, _map(flags=7), fds=bench.eventfds(1))
    if not message.is_error:
        bench.ask(Command.DMA_UNMAP, _unmap())
    return bench.refused(message, ())


def _overlaps(name: str, iova: int, size: int) -> None:
    def run(bench: Bench) -> str:
        with bench.mapped(_BASE, 4 * _PAGE):
            message = bench.ask(Command.DMA_MAP, _map(iova, size))
            if not message.is_error:
                bench.ask(Command.DMA_UNMAP, _unmap(iova, size))
            return bench.refused(message, _EXISTS)

    MAP.add(f"overlap[{name}]", "EEXIST or EINVAL: a mapping is there", run, errnos=_EXISTS)


for _name, _iova, _size in (
    ("start", _BASE - _PAGE, 2 * _PAGE),
    ("end", _BASE + 3 * _PAGE, 2 * _PAGE),
    ("inside", _BASE + _PAGE, _PAGE),
    ("around", _BASE - _PAGE, 6 * _PAGE),
    ("first-page", _BASE, _PAGE),
    ("last-page", _BASE + 3 * _PAGE, _PAGE),
    ("longer", _BASE, 5 * _PAGE),
):
    _overlaps(_name, _iova, _size)


@MAP.check("overlap[other-offset]", "EEXIST or EINVAL: the same range, of other memory")
def _(bench: Bench) -> str:
    memory = bench.memory(2 * _PAGE)
    with bench.mapped(_BASE, _PAGE, fds=[memory]):
        return bench.refuses(Command.DMA_MAP, _map(offset=_PAGE), _EXISTS, fds=[memory])


@MAP.check("overlap[other-flags]", "EEXIST or EINVAL: the same range, with other rights")
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    with bench.mapped(_BASE, _PAGE, fds=[memory]):
        return bench.refuses(Command.DMA_MAP, _map(flags=1), _EXISTS, fds=[memory])


@MAP.check("refused-changes-nothing", "a refused DMA_MAP leaves what was mapped")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, 2 * _PAGE):
        bench.refuses(Command.DMA_MAP, _map(_BASE + _PAGE), _EXISTS)
        message = bench.ask(Command.DMA_UNMAP, _unmap(size=2 * _PAGE))
        if message.is_error:
            raise Unmet(f"DMA_UNMAP of the one before got {message}")
    return "the one before could be taken back"


@MAP.check("refused-maps-nothing", "a refused DMA_MAP maps nothing: the range beside it is free")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, _PAGE):
        bench.refuses(Command.DMA_MAP, _map(_BASE, 2 * _PAGE), _EXISTS)
        with bench.mapped(_BASE + _PAGE, _PAGE):
            return "it could be mapped"


# Taking back.


@UNMAP.check("reply", "the request's 24 bytes: the rust client waits for them")
def _(bench: Bench) -> str:
    bench.succeeds(Command.DMA_MAP, _map())
    reply = bench.succeeds(Command.DMA_UNMAP, _unmap(), 24)
    if reply[8:] != _unmap()[8:]:
        raise Unmet(f"another range: {reply[8:].hex()}")
    return "24 bytes"


@UNMAP.check("is-gone", "what was taken back is not there any more")
def _(bench: Bench) -> str:
    bench.succeeds(Command.DMA_MAP, _map())
    bench.succeeds(Command.DMA_UNMAP, _unmap())
    return bench.refuses(Command.DMA_UNMAP, _unmap(), _NOT_THERE)


@UNMAP.check("can-be-mapped-again", "what was taken back can be mapped again, as other memory")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, _PAGE, fds=[bench.memory(_PAGE)]):
        bench.succeeds(Command.DMA_UNMAP, _unmap())
        bench.succeeds(Command.DMA_MAP, _map(), fds=[bench.memory(_PAGE)])
    return "mapped"


@UNMAP.check("others-stay", "taking one back leaves its neighbours")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, _PAGE), bench.mapped(_BASE + _PAGE, _PAGE):
        bench.succeeds(Command.DMA_UNMAP, _unmap())
        bench.succeeds(Command.DMA_UNMAP, _unmap(_BASE + _PAGE))
    return "the neighbour was there"


def _is_let_go(memory: int, timeout: float) -> bool:
    """Nobody maps it for writing any more: only then the kernel seals it against that."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


@UNMAP.check("memory-is-let-go", "by its reply the server has unmapped the memory itself")
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    bench.succeeds(Command.DMA_MAP, _map(), fds=[memory])
    bench.succeeds(Command.DMA_UNMAP, _unmap())
    if not _is_let_go(memory, 0.0):
        raise Unmet("it is mapped for writing still")
    return "it could be sealed against writing"


@UNMAP.check(
    "gone-client-lets-go",
    "when a client has gone, its memory is mapped no more",
    own_connection=True,
    clause="vfio-user, Client disconnection",
)
def _(bench: Bench) -> str:
    bench.peer  # noqa: B018 - makes a connection
    memory = bench.memory(_PAGE)
    bench.succeeds(Command.DMA_MAP, _map(), fds=[memory])
    bench.drop()
    if not _is_let_go(memory, 2.0 if bench.facts.carries_fds else 0.0):
        raise Unmet("it is mapped for writing still")
    return "it could be sealed against writing"


@UNMAP.check(
    "gone-client-leaves-nothing",
    "a new client finds nothing mapped",
    own_connection=True,
    clause="vfio-user, Client disconnection",
)
def _(bench: Bench) -> str:
    bench.peer  # noqa: B018 - makes a connection
    bench.succeeds(Command.DMA_MAP, _map())
    bench.negotiated()
    return bench.refuses(Command.DMA_UNMAP, _unmap(), _NOT_THERE)


@UNMAP.check("all", "flag 2: everything at once, and the request's 24 bytes", clause="practice (libvfio-user, QEMU)")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, _PAGE), bench.mapped(_BASE + 4 * _PAGE, _PAGE):
        bench.succeeds(Command.DMA_UNMAP, _unmap(0, 0, 2), 24)
        for iova in (_BASE, _BASE + 4 * _PAGE):
            message = bench.ask(Command.DMA_UNMAP, _unmap(iova))
            if not message.is_error:
                raise Unmet(f"[{iova:#x}, {iova + _PAGE:#x}) was there still")
    return "nothing was left"


@UNMAP.check("all-of-nothing", "flag 2 where nothing is mapped: no error", clause="practice (libvfio-user, QEMU)")
def _(bench: Bench) -> str:
    bench.succeeds(Command.DMA_UNMAP, _unmap(0, 0, 2))
    bench.succeeds(Command.DMA_UNMAP, _unmap(0, 0, 2))
    return "a success"


@UNMAP.check("accepts[long]", "a payload longer than it need be: carried out")
def _(bench: Bench) -> str:
    bench.succeeds(Command.DMA_MAP, _map())
    bench.succeeds(Command.DMA_UNMAP, _unmap() + bytes(16), 24)
    return "24 bytes"


@UNMAP.check("accepts[fd]", "a descriptor, as SPDK sends: carried out", clause="practice (SPDK)")
def _(bench: Bench) -> str:
    memory = bench.memory(_PAGE)
    bench.succeeds(Command.DMA_MAP, _map(), fds=[memory])
    bench.succeeds(Command.DMA_UNMAP, _unmap(), 24, fds=[memory])
    return "24 bytes"


def _not_exactly(name: str, iova: int, size: int) -> None:
    def run(bench: Bench) -> str:
        with bench.mapped(_BASE, 4 * _PAGE):
            return bench.refuses(Command.DMA_UNMAP, _unmap(iova, size), _NOT_THERE)

    UNMAP.add(f"not-exactly[{name}]", "ENOENT or EINVAL: not exactly what was mapped", run, errnos=_NOT_THERE)


for _name, _iova, _size in (
    ("first-page", _BASE, _PAGE),
    ("last-page", _BASE + 3 * _PAGE, _PAGE),
    ("inside", _BASE + _PAGE, _PAGE),
    ("across-start", _BASE - _PAGE, 2 * _PAGE),
    ("across-end", _BASE + 3 * _PAGE, 2 * _PAGE),
):
    _not_exactly(_name, _iova, _size)


@UNMAP.check("refused-changes-nothing", "a refused DMA_UNMAP leaves the mapping")
def _(bench: Bench) -> str:
    with bench.mapped(_BASE, 2 * _PAGE):
        bench.refuses(Command.DMA_UNMAP, _unmap(), _NOT_THERE)
        bench.succeeds(Command.DMA_UNMAP, _unmap(size=2 * _PAGE))
    return "it was there"


UNMAP.refuses("unknown", "nothing is mapped there", Command.DMA_UNMAP, _unmap(0x7_0000_0000), errnos=_NOT_THERE)
for _length in (4, 16, 23):
    UNMAP.refuses(f"short[{_length}]", "a payload under 24 bytes", Command.DMA_UNMAP, _unmap()[:_length])
for _argsz in (0, 23):
    UNMAP.refuses(f"argsz-{_argsz}", "argsz under 24", Command.DMA_UNMAP, _unmap(argsz=_argsz))
UNMAP.refuses(
    "argsz-huge",
    "more room than any reply needs",
    Command.DMA_UNMAP,
    _unmap(argsz=0xFFFF_FFFF),
    advised=True,
    clause=_PRACTICE,
)
for _flags in (3, 4, 8, 0x8000_0000):
    UNMAP.refuses(
        f"flags[{_flags:#x}]",
        "no such flag, or two that exclude each other",
        Command.DMA_UNMAP,
        _unmap(flags=_flags),
        advised=_flags != 3,
        clause=_PRACTICE,
    )
UNMAP.refuses(
    "all-with-address", "everything, but from an address on", Command.DMA_UNMAP, _unmap(_BASE, 0, 2), clause=_PRACTICE
)
UNMAP.refuses("all-with-size", "everything, but of a size", Command.DMA_UNMAP, _unmap(0, _PAGE, 2), clause=_PRACTICE)


def _bitmap(name: str, why: str, payload: bytes) -> None:
    def run(bench: Bench) -> str:
        with bench.mapped(_BASE, _PAGE):
            message = bench.ask(Command.DMA_UNMAP, payload)
            if not message.is_error:
                raise Unmet(str(message))
            return bench.refused(message, (errno.EINVAL, errno.ENOTSUP))

    UNMAP.add(
        f"bitmap[{name}]",
        f"EINVAL: {why}",
        run,
        clause="vfio-user 0.9.1, VFIO_USER_DMA_UNMAP",
        errnos=(errno.EINVAL, errno.ENOTSUP),
    )


_bitmap("not-logging", "a dirty bitmap while none is kept", _unmap(flags=1, argsz=48) + struct.pack("<QQ", _PAGE, 8))
_bitmap("no-header", "a dirty bitmap, and not said which", _unmap(flags=1, argsz=48))
_bitmap("no-room", "a dirty bitmap, and no room for it", _unmap(flags=1, argsz=24) + struct.pack("<QQ", _PAGE, 8))
