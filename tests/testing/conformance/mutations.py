"""For every check, the servers that break its rule, and nothing but its rule where that is possible."""

from __future__ import annotations

import errno
import fnmatch
import json
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import replace

from tests.testing.conformance.mutant import ERROR, NO_REPLY, REPLY, Exchange, MutantWire, Mutation
from vfio_user.protocol.constants import Command
from vfio_user.testing.conformance.check import Check

When = Callable[[Exchange], bool]


def _always(_exchange: Exchange) -> bool:
    return True


def on_success(
    name: str, change: Callable[[Exchange], None], when: When = _always, *, version: bool = False
) -> Mutation:
    """Changes replies that are successes."""

    def reply(_wire: MutantWire, exchange: Exchange) -> None:
        if not exchange.is_error and when(exchange):
            change(exchange)

    return Mutation(name, reply=reply, version=version)


def on_error(name: str, change: Callable[[Exchange], None]) -> Mutation:
    def reply(_wire: MutantWire, exchange: Exchange) -> None:
        if exchange.is_error:
            change(exchange)

    return Mutation(name, reply=reply, version=True)


def of(command: int) -> When:
    return lambda exchange: exchange.command == command


def patch(
    offset: int, form: str, value: int | Callable[[int], int], when: When = _always, *, version: bool = False
) -> Mutation:
    """Another number in the payload of a success."""

    def change(exchange: Exchange) -> None:
        if len(exchange.payload) >= offset + struct.calcsize(form):
            (old,) = struct.unpack_from(form, exchange.payload, offset)
            new = value(old) if callable(value) else value
            payload = bytearray(exchange.payload)
            struct.pack_into(form, payload, offset, new)
            exchange.payload = bytes(payload)

    return on_success(f"{form} at {offset} is {value}", change, when, version=version)


def resized(by: int, when: When = _always, *, version: bool = False) -> Mutation:
    def change(exchange: Exchange) -> None:
        payload = exchange.payload
        exchange.payload = payload + bytes(by) if by > 0 else payload[: len(payload) + by]

    return on_success(f"{by:+} bytes of payload", change, when, version=version)


def fails(when: When = _always, *, version: bool = False) -> Mutation:
    return on_success("refuses what is right", lambda exchange: exchange.become_error(errno.EIO), when, version=version)


def _with_fd(exchange: Exchange) -> None:
    exchange.fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _no_fds(exchange: Exchange) -> None:
    for fd in exchange.fds:
        os.close(fd)
    exchange.fds.clear()


EXTRA_FD = on_success("an extra descriptor", _with_fd)
NO_FD = on_success("no descriptor", _no_fds)
ACCEPTS = on_error("accepts what is wrong", lambda exchange: exchange.become_success())
WRONG_ERRNO = on_error("another errno", lambda exchange: exchange.become_error(errno.EBADF))
NO_ERRNO = on_error("errno 0", lambda exchange: exchange.become_error(0))
PADDED_ERROR = on_error("an error with a payload", lambda exchange: setattr(exchange, "payload", bytes(8)))
DEAF = Mutation("serves one client", deaf=True)


def _answer_posted(wire: MutantWire, exchange: Exchange) -> None:
    if exchange.flags & NO_REPLY:
        wire.inject(Exchange(exchange.message_id, exchange.command, REPLY, 0, b""))


ANSWERS_POSTED = Mutation("answers what wants no reply", request=_answer_posted)


def _refuse_fds(wire: MutantWire, exchange: Exchange) -> bool:
    if exchange.fds:
        wire.inject(Exchange(exchange.message_id, exchange.command, REPLY | ERROR, errno.EINVAL, b""))
    return bool(exchange.fds)


def _keep_fds(wire: MutantWire, exchange: Exchange) -> None:
    wire.keep(exchange.fds)


def _strip_fds(_wire: MutantWire, exchange: Exchange) -> None:
    exchange.fds.clear()


KEEPS_FDS = Mutation("keeps descriptors", request=_keep_fds)
LOSES_FDS = Mutation("loses descriptors", request=_strip_fds)


def _after_error(wire: MutantWire, exchange: Exchange) -> None:
    if exchange.is_error:
        wire.state["over"] = 1
    elif wire.state.get("over"):
        exchange.become_error(errno.EIO)


BROKEN_AFTER_ERROR = Mutation("fails after an error", reply=_after_error, version=True)


def _over_after_error(wire: MutantWire, exchange: Exchange) -> None:
    if exchange.is_error:
        wire.hung_up = True


HANGS_UP_AFTER_ERROR = Mutation("hangs up after an error", reply=_over_after_error, version=True)


def _bad_header(_wire: MutantWire, data: bytes) -> bool:
    size, flags = struct.unpack_from("<II", data, 4)
    return bool(size != len(data) or flags & 0xF > 1)


SILENT_ON_BAD_HEADER = Mutation("says nothing to a bad header", chunk=_bad_header)


def _answer_replies(wire: MutantWire, exchange: Exchange) -> bool:
    if exchange.flags & REPLY:
        wire.inject(Exchange(exchange.message_id, exchange.command, REPLY, 0, b""))
    return bool(exchange.flags & REPLY)


def _swallow_repeated_id(wire: MutantWire, exchange: Exchange) -> bool:
    seen = wire.state.setdefault(f"id {exchange.message_id}", 0)
    wire.state[f"id {exchange.message_id}"] = 1
    return bool(seen)


def _refuse_error_field(wire: MutantWire, exchange: Exchange) -> bool:
    if exchange.error:
        wire.inject(Exchange(exchange.message_id, exchange.command, REPLY | ERROR, errno.EINVAL, b""))
    return bool(exchange.error)


def _only_whole(_wire: MutantWire, data: bytes) -> bool:
    return len(data) < 16 or bool(struct.unpack_from("<I", data, 4)[0] != len(data))


ONLY_WHOLE_MESSAGES = Mutation("one reception is one message", chunk=_only_whole)


def fabricated(
    when: Callable[[Exchange, int], bool], payload: Callable[[Exchange], bytes] = lambda _exchange: b""
) -> Mutation:
    """Says that a command was carried out, and does nothing; ``when`` gets how often that command came before."""

    def request(wire: MutantWire, exchange: Exchange) -> bool:
        count = wire.state.get(str(exchange.command), 0)
        wire.state[str(exchange.command)] = count + 1
        if when(exchange, count):
            if not exchange.flags & NO_REPLY:
                wire.inject(Exchange(exchange.message_id, exchange.command, REPLY, 0, payload(exchange)))
            return True
        return False

    return Mutation("claims to have done it", request=request)


def claims(command: int, size: int | None = None, *, nth: int | None = None) -> Mutation:
    """The same, of one command, whose reply repeats so many bytes of the request; of its nth, or of all."""
    return fabricated(
        lambda exchange, count: exchange.command == command and nth in (None, count),
        lambda exchange: exchange.payload[: 0 if size is None else size],
    )


def refused_request(when: Callable[[Exchange, int], bool]) -> Mutation:
    """Refuses a command it should carry out."""

    def request(wire: MutantWire, exchange: Exchange) -> bool:
        count = wire.state.get(str(exchange.command), 0)
        wire.state[str(exchange.command)] = count + 1
        if when(exchange, count):
            wire.inject(Exchange(exchange.message_id, exchange.command, REPLY | ERROR, errno.EIO, b""))
            return True
        return False

    return Mutation("refuses what is right", request=request)


def altered(command: int, change: Callable[[bytes], bytes]) -> Mutation:
    """Carries out another command than was asked for."""

    def request(_wire: MutantWire, exchange: Exchange) -> None:
        if exchange.command == command:
            exchange.payload = change(exchange.payload)

    return Mutation("does something else", request=request)


def _set_word(at: int, value: int | Callable[[int], int]) -> Callable[[bytes], bytes]:
    def change(payload: bytes) -> bytes:
        if len(payload) < at + 4:
            return payload
        (old,) = struct.unpack_from("<I", payload, at)
        return payload[:at] + struct.pack("<I", value(old) if callable(value) else value) + payload[at + 4 :]

    return change


def _flags_are(wanted: int) -> Callable[[Exchange, int], bool]:
    return lambda exchange, _: exchange.command == Command.DEVICE_SET_IRQS and exchange.payload[4] == wanted


def json_with(**changes: object) -> Mutation:
    """Other capabilities in the reply to VERSION."""

    def change(exchange: Exchange) -> None:
        found = json.loads(exchange.payload[4:].rstrip(b"\0") or b'{"capabilities":{}}')
        found["capabilities"].update(changes)
        exchange.payload = exchange.payload[:4] + json.dumps(found).encode() + b"\0"

    return on_success(f"capabilities {changes}", change, of(Command.VERSION), version=True)


def text_is(change: Callable[[bytes], bytes]) -> Mutation:
    def apply(exchange: Exchange) -> None:
        exchange.payload = exchange.payload[:4] + change(exchange.payload[4:])

    return on_success("another text", apply, of(Command.VERSION), version=True)


def counting(change: Callable[[int, Exchange], None], when: When) -> Mutation:
    """Answers differently the more often it is asked."""

    def reply(wire: MutantWire, exchange: Exchange) -> None:
        if when(exchange) and not exchange.is_error:
            wire.state["n"] = wire.state.get("n", 0) + 1
            change(wire.state["n"], exchange)

    return Mutation("answers differently each time", reply=reply)


def _last_byte(number: int, exchange: Exchange) -> None:
    if exchange.payload:
        exchange.payload = exchange.payload[:-1] + bytes([(exchange.payload[-1] + number) & 0xFF])


def _third_word(number: int, exchange: Exchange) -> None:
    exchange.payload = exchange.payload[:8] + struct.pack("<I", 8 + number) + exchange.payload[12:]


_INFO, _REGION, _IRQ, _SET = (
    of(number)
    for number in (
        Command.DEVICE_GET_INFO,
        Command.DEVICE_GET_REGION_INFO,
        Command.DEVICE_GET_IRQ_INFO,
        Command.DEVICE_SET_IRQS,
    )
)
_MAP, _UNMAP, _READ, _WRITE = (
    of(number) for number in (Command.DMA_MAP, Command.DMA_UNMAP, Command.REGION_READ, Command.REGION_WRITE)
)
_MULTI, _FEATURE, _MIG_READ, _MIG_WRITE = (
    of(number)
    for number in (Command.REGION_WRITE_MULTI, Command.DEVICE_FEATURE, Command.MIG_DATA_READ, Command.MIG_DATA_WRITE)
)
_VERSION, _RESET, _IO_FDS, _DIRTY = (
    of(number)
    for number in (Command.VERSION, Command.DEVICE_RESET, Command.DEVICE_GET_REGION_IO_FDS, Command.DIRTY_PAGES)
)


def _areas(change: Callable[[int, int, int], tuple[int, int]]) -> Mutation:
    """Other areas in a sparse mmap capability: ``change`` gets number, offset and size."""

    def apply(exchange: Exchange) -> None:
        payload = bytearray(exchange.payload)
        if len(payload) <= 48:
            return
        (count,) = struct.unpack_from("<I", payload, 40)
        for number in range(count):
            offset, size = struct.unpack_from("<QQ", payload, 48 + 16 * number)
            struct.pack_into("<QQ", payload, 48 + 16 * number, *change(number, offset, size))
        exchange.payload = bytes(payload)

    return on_success("other areas", apply, _REGION)


def _posted_writes_late(wire: MutantWire, exchange: Exchange) -> bool:
    return exchange.command in (Command.REGION_WRITE, Command.REGION_WRITE_MULTI) and bool(exchange.flags & NO_REPLY)


def _first_posted_only(wire: MutantWire, exchange: Exchange) -> bool:
    if exchange.command == Command.REGION_WRITE and exchange.flags & NO_REPLY:
        wire.state["posted"] = wire.state.get("posted", 0) + 1
        return wire.state["posted"] > 1
    return False


def _state_is(value: int) -> Mutation:
    """The state that is told is another."""

    def apply(exchange: Exchange) -> None:
        if len(exchange.payload) == 16 and exchange.payload[4:8] == struct.pack("<I", 0x10002):
            exchange.payload = exchange.payload[:8] + struct.pack("<II", value, 0)

    return on_success(f"it says state {value}", apply, _FEATURE)


def _unmap_everything(wire: MutantWire, exchange: Exchange) -> None:
    """The first time; after that what is asked for."""
    if exchange.command == Command.DMA_UNMAP and not wire.state.get("unmapped"):
        wire.state["unmapped"] = 1
        exchange.payload = struct.pack("<IIQQ", 24, 2, 0, 0)


def _unless_first_of(command: int) -> Callable[[Exchange, int], bool]:
    return lambda exchange, count: exchange.command == command and count > 0


def _bitmap(change: Callable[[bytes], bytes]) -> Mutation:
    def apply(exchange: Exchange) -> None:
        if exchange.payload[4:8] == struct.pack("<I", 0x10008):
            exchange.payload = exchange.payload[:32] + change(exchange.payload[32:])

    return on_success("another bitmap", apply, _FEATURE)


def _echo(command: int) -> Mutation:
    """What is repeated of the request is something else."""
    return on_success(
        "another payload", lambda exchange: setattr(exchange, "payload", exchange.payload[:-1] + b"\x77"), of(command)
    )


def _region_payload(offset: int, form: str, value: int | Callable[[int], int]) -> Mutation:
    return patch(offset, form, value, _REGION)


def _never_ends(exchange: Exchange) -> None:
    if not exchange.request:
        return
    (size,) = struct.unpack_from("<I", exchange.request, 20)
    exchange.payload = struct.pack("<II", 8 + size, size) + bytes(size)


def _caps_loop(exchange: Exchange) -> None:
    if len(exchange.payload) > 40:
        exchange.payload = exchange.payload[:36] + struct.pack("<I", 32) + exchange.payload[40:]


def _bad_argsz(exchange: Exchange) -> None:
    if exchange.payload:
        exchange.payload = struct.pack("<I", len(exchange.payload) + 1) + exchange.payload[4:]


def _size_of_read(exchange: Exchange) -> None:
    exchange.payload = exchange.payload[:16] + bytes(max(len(exchange.payload) - 17, 0))


def _wrong_data(exchange: Exchange) -> None:
    if len(exchange.payload) == 17:
        exchange.payload = exchange.payload[:16] + bytes([exchange.payload[16] ^ 0x80])


def _sizing_ones(exchange: Exchange) -> None:
    # All ones read back as they were written: a register with no mask.
    if len(exchange.payload) == 20:
        exchange.payload = exchange.payload[:16] + b"\xff" * 4


def _map_writable(wire: MutantWire, exchange: Exchange) -> None:
    """Somebody maps the memory, and does not let go of it."""

    if exchange.command == Command.DMA_MAP and exchange.fds:
        LEFT_MAPPED.append(mmap.mmap(exchange.fds[0], 4096))


#: What ``_map_writable`` mapped; whoever runs it closes them.
LEFT_MAPPED: list[mmap.mmap] = []


def _cut_second_saving(wire: MutantWire, exchange: Exchange) -> None:
    """When the state is saved the second time, it ends too early."""
    if exchange.command == Command.DEVICE_FEATURE and exchange.payload[8:12] == struct.pack("<I", 3):
        wire.state["savings"] = wire.state.get("savings", 0) + 1
    if exchange.command == Command.MIG_DATA_READ and not exchange.is_error and wire.state.get("savings", 0) > 1:
        exchange.payload = struct.pack("<II", 8, 0)


def _device_state_is(value: int) -> Mutation:
    """The migration region's device_state reads so."""

    def apply(exchange: Exchange) -> None:
        if exchange.request[16:32] == struct.pack("<QII", 0, 9, 4):
            exchange.payload = exchange.payload[:16] + struct.pack("<I", value)

    return on_success(f"device_state reads {value}", apply, _READ)


def _register_is(offset: int, value: int | Callable[[int, int], int]) -> Mutation:
    """A register of the migration region reads so; a function gets how often it was read, and what it is."""

    def reply(wire: MutantWire, exchange: Exchange) -> None:
        if exchange.command == Command.REGION_READ and exchange.request[16:32] == struct.pack("<QII", offset, 9, 8):
            count = wire.state["reads"] = wire.state.get("reads", 0) + 1
            if not exchange.is_error:
                (old,) = struct.unpack_from("<Q", exchange.payload, 16)
                new = value(count, old) if callable(value) else value
                exchange.payload = exchange.payload[:16] + struct.pack("<Q", new)

    return Mutation(f"register {offset} reads {value}", reply=reply)


def _no_type(exchange: Exchange) -> None:
    exchange.payload = exchange.payload[:-8] + struct.pack("<II", 3, 2)


def _ends_early(wire: MutantWire, exchange: Exchange) -> None:
    """The second saving has nothing to say."""
    is_pending = exchange.request[16:32] == struct.pack("<QII", 8, 9, 8)
    if exchange.command == Command.REGION_WRITE and exchange.request[32:] == struct.pack("<I", 4):
        wire.state["resumed"] = 1
    if is_pending and wire.state.get("resumed") and not exchange.is_error:
        exchange.payload = exchange.payload[:16] + bytes(8)


_SET_HEADER = [resized(4, _SET), fails(_SET)]
_FIRE = Command.DEVICE_SET_IRQS

#: Names of checks, and the mutations under which they fail; the first name that fits counts.
RULES: list[tuple[str, list[Mutation]]] = [
    (
        "header.reply-flags*",
        [
            on_success("flag No_reply", lambda exchange: setattr(exchange, "flags", REPLY | NO_REPLY)),
            on_success("another command", lambda exchange: setattr(exchange, "command", exchange.command + 1)),
            on_success("type command", lambda exchange: setattr(exchange, "flags", 0)),
        ],
    ),
    ("header.refusal-form*", [PADDED_ERROR, NO_ERRNO, ACCEPTS]),
    ("header.id-is-repeated-in-refusal", [on_error("another id", lambda e: setattr(e, "message_id", 1))]),
    ("header.id-is-repeated*", [on_success("another id", lambda e: setattr(e, "message_id", e.message_id ^ 2))]),
    ("header.id-may-be-the-same", [Mutation("an id may come once", request=_swallow_repeated_id)]),
    ("header.error-field-is-0", [on_success("an errno in a success", lambda e: setattr(e, "error", 5))]),
    ("header.error-field-of-a-command", [Mutation("looks at it", request=_refuse_error_field)]),
    ("header.unknown-command-is-skipped", [BROKEN_AFTER_ERROR, HANGS_UP_AFTER_ERROR]),
    ("header.size*", [SILENT_ON_BAD_HEADER, DEAF]),
    ("header.type*", [SILENT_ON_BAD_HEADER, DEAF]),
    ("header.reply-to-nothing*", [Mutation("answers replies", request=_answer_replies)]),
    ("header.no-reply*", [ANSWERS_POSTED]),
    ("header.unwanted-fds*", [Mutation("refuses descriptors", request=_refuse_fds)]),
    ("header.fd-is-closed*", [KEEPS_FDS]),
    ("stream.split*", [ONLY_WHOLE_MESSAGES]),
    ("stream.byte-by-byte", [ONLY_WHOLE_MESSAGES]),
    ("stream.glued*", [ONLY_WHOLE_MESSAGES, Mutation("replies change places", swap=True)]),
    ("stream.pipelined", [Mutation("replies change places", swap=True)]),
    ("stream.fds-belong*", [LOSES_FDS]),
    ("stream.*", [DEAF]),
    ("version.answer-to*", [patch(0, "<H", 1, _VERSION, version=True), fails(_VERSION, version=True)]),
    ("version.reply-ends-in-nul", [text_is(lambda text: text.rstrip(b"\0"))]),
    ("version.reply-is-json", [text_is(lambda text: text.replace(b"}", b"")), text_is(lambda _: b"[1]\0")]),
    ("version.reply-has-one-nul", [text_is(lambda text: text + b"\0")]),
    ("version.reply-has-text", [text_is(lambda _: b"")]),
    ("version.reply-fits", [text_is(lambda text: b" " * 300 + text)]),
    ("version.reply-brings-no-fd", [on_success("a descriptor", _with_fd, _VERSION, version=True)]),
    (
        "version.reply[[]max_msg_fds]",
        [json_with(max_msg_fds=17), json_with(max_msg_fds="8"), json_with(max_msg_fds=True)],
    ),
    ("version.reply[[]max_data*", [json_with(max_data_xfer_size=1024), json_with(max_data_xfer_size=1 << 30)]),
    ("version.reply[[]max_dma*", [json_with(max_dma_maps=65536), json_with(max_dma_maps=1.0)]),
    ("version.reply[[]pgsizes]", [json_with(pgsizes=0x1800), json_with(pgsizes=0)]),
    ("version.reply[[]write_multiple]", [json_with(write_multiple=1)]),
    ("version.not-proposed[[]pgsizes]", [json_with(pgsizes=4096)]),
    ("version.not-proposed[[]max_dma_maps]", [json_with(max_dma_maps=65535)]),
    ("version.not-proposed[[]write_multiple]", [json_with(write_multiple=True)]),
    ("version.not-proposed[[]migration]", [json_with(migration={"pgsize": 4096})]),
    ("version.not-proposed[[]twin_socket]", [json_with(twin_socket={"supported": True})]),
    (
        "version.twin-socket",
        [
            on_success("no descriptor", _no_fds, _VERSION, version=True),
            json_with(twin_socket={"supported": True, "fd_index": 1}),
            json_with(twin_socket={"supported": True}),
        ],
    ),
    (
        "version.twin-socket-declined",
        [
            json_with(twin_socket={"supported": True, "fd_index": 0}),
            on_success("a descriptor", _with_fd, _VERSION, version=True),
        ],
    ),
    ("version.accepts*", [fails(_VERSION, version=True), fails(_INFO)]),
    ("version.refused-is-closed", [Mutation("never hangs up", open=True)]),
    ("version.refused-and-next", [DEAF]),
    ("version.not-twice-goes-on", [BROKEN_AFTER_ERROR, HANGS_UP_AFTER_ERROR]),
    (
        "version.not-twice",
        [
            replace(fabricated(_unless_first_of(Command.VERSION), lambda e: e.payload), version=True),
            Mutation(
                "another errno", reply=lambda _w, e: e.become_error(errno.EBADF) if e.is_error else None, version=True
            ),
        ],
    ),
    ("info.size", [resized(4, _INFO), resized(-4, _INFO)]),
    ("info.argsz", [patch(0, "<I", 32, _INFO)]),
    ("info.pci", [patch(4, "<I", 1, _INFO)]),
    ("info.flags", [patch(4, "<I", 7, _INFO)]),
    ("info.num_regions", [patch(8, "<I", 8, _INFO), patch(8, "<I", 101, _INFO)]),
    ("info.num_regions-exact", [patch(8, "<I", 11, _INFO)]),
    ("info.num_irqs", [patch(12, "<I", 4, _INFO), patch(12, "<I", 51, _INFO)]),
    ("info.twice", [counting(_third_word, _INFO)]),
    ("info.accepts*", [fails(_INFO), resized(16, _INFO)]),
    ("region_info.answered*", [fails(_REGION), _region_payload(8, "<I", 77), resized(-40, _REGION)]),
    ("region_info.argsz*", [on_success("another argsz", _bad_argsz, _REGION)]),
    ("region_info.flags*", [_region_payload(4, "<I", lambda flags: flags | 0x40)]),
    ("region_info.descriptor*", [EXTRA_FD, _region_payload(4, "<I", lambda flags: flags ^ 4)]),
    ("region_info.power-of-two*", [_region_payload(16, "<Q", lambda size: size + 0x800), _region_payload(16, "<Q", 2)]),
    ("region_info.config-size", [_region_payload(16, "<Q", 512), _region_payload(4, "<I", 1)]),
    ("region_info.config-is-not-mapped", [_region_payload(4, "<I", 7)]),
    ("region_info.twice", [counting(_last_byte, _REGION)]),
    ("region_info.fds-are-new", [NO_FD]),
    ("region_info.short-room", [resized(32, _REGION), _region_payload(0, "<I", 32)]),
    ("region_info.short-room-no-fd", [EXTRA_FD]),
    (
        "region_info.short-room-no-caps",
        [_region_payload(4, "<I", lambda flags: flags | 8), _region_payload(12, "<I", 32)],
    ),
    ("region_info.one-byte-short", [resized(32, _REGION)]),
    ("region_info.much-room", [resized(16, _REGION)]),
    ("region_info.caps-in-place", [_region_payload(4, "<I", lambda flags: flags & ~8), _region_payload(12, "<I", 8)]),
    ("region_info.caps-chain", [on_success("a loop", _caps_loop, _REGION), _region_payload(34, "<H", 2)]),
    ("region_info.areas-inside", [_areas(lambda _n, offset, size: (offset + (1 << 40), size))]),
    (
        "region_info.areas-are-pages",
        [_areas(lambda _n, offset, size: (offset, size - 1)), _areas(lambda _n, offset, _s: (offset, 0))],
    ),
    ("region_info.areas-apart", [_areas(lambda _n, _offset, size: (0, size))]),
    (
        "region_info.can-be-mapped",
        [
            NO_FD,
            on_success("other data", lambda e: setattr(e, "payload", e.payload[:-1] + b"\x77"), _READ),
        ],
    ),
    ("region_info.accepts*", [fails(_REGION), _region_payload(8, "<I", 1)]),
    ("io_fds.answered", [patch(8, "<I", 5, _IO_FDS), patch(0, "<I", 8, _IO_FDS), fails(_IO_FDS)]),
    ("io_fds.short-room", [resized(40, _IO_FDS), EXTRA_FD]),
    ("io_fds.whole", [resized(-40, lambda e: _IO_FDS(e) and len(e.payload) > 16), resized(8, _IO_FDS)]),
    ("io_fds.descriptors", [NO_FD, patch(32, "<I", 9, _IO_FDS)]),
    ("io_fds.inside", [patch(16, "<Q", 1 << 40, _IO_FDS)]),
    ("io_fds.eventfds-work", [NO_FD, fails(_INFO)]),
    ("irq_info.answered*", [fails(_IRQ), patch(8, "<I", 9, _IRQ), resized(4, _IRQ)]),
    ("irq_info.argsz*", [patch(0, "<I", 20, _IRQ)]),
    ("irq_info.flags*", [patch(4, "<I", 0x11, _IRQ)]),
    ("irq_info.count*", [patch(12, "<I", 5000, _IRQ)]),
    ("irq_info.msi*", [patch(12, "<I", lambda count: count + 1, _IRQ)]),
    ("irq_info.intx-pin", [patch(12, "<I", lambda count: 1 - count, _IRQ)]),
    ("irq_info.accepts*", [fails(_IRQ), resized(8, _IRQ)]),
    ("set_irqs.off*", _SET_HEADER),
    ("set_irqs.connect*", _SET_HEADER),
    ("set_irqs.no-descriptor*", _SET_HEADER),
    ("set_irqs.fires[[]NONE]", [fabricated(_flags_are(0x21))]),
    ("set_irqs.fires[[]BOOL-1]", [fabricated(_flags_are(0x22))]),
    ("set_irqs.fires[[]BOOL-0]", [altered(_FIRE, lambda p: p[:20] + b"\1" * (len(p) - 20))]),
    ("set_irqs.fires[[]its-own]", [altered(_FIRE, lambda p: _set_word(12, 0)(p) if p[4] == 0x21 else p)]),
    ("set_irqs.fires[[]start]", [altered(_FIRE, lambda p: _set_word(12, 0)(p) if p[4] == 0x24 else p)]),
    ("set_irqs.fires[[]BOOL-some]", [altered(_FIRE, lambda p: p[:20] + b"\1" * (len(p) - 20))]),
    ("set_irqs.fires[[]all]", [altered(_FIRE, lambda p: _set_word(16, min(p[16], 1))(p) if p[4] == 0x21 else p)]),
    ("set_irqs.replaced", [fabricated(lambda e, count: e.command == _FIRE and count == 1)]),
    ("set_irqs.taken-back", [fabricated(lambda e, count: e.command == _FIRE and count == 1)]),
    ("set_irqs.turned-off", [fabricated(lambda e, count: e.command == _FIRE and count == 1)]),
    ("set_irqs.only-once", [fabricated(lambda e, count: e.command == _FIRE and count == 2)]),
    ("set_irqs.all-vectors", [fabricated(_flags_are(0x21)), fails(_SET)]),
    ("set_irqs.intx*", _SET_HEADER),
    ("set_irqs.argsz-is-only-a-minimum", _SET_HEADER),
    (
        "set_irqs.refused-changes-nothing",
        [
            fabricated(lambda e, count: e.command == _FIRE and count == 2),
            ACCEPTS,
        ],
    ),
    ("dma_map.reply", [resized(32, _MAP), fails(_MAP)]),
    ("dma_map.accepts*", [fails(_MAP), resized(8, _MAP), claims(Command.DMA_MAP)]),
    ("dma_map.same-again", [refused_request(_unless_first_of(Command.DMA_MAP))]),
    ("dma_map.same-again-is-one", [claims(Command.DMA_UNMAP, 24, nth=1)]),
    ("dma_map.neighbours", [refused_request(_unless_first_of(Command.DMA_MAP))]),
    ("dma_map.pieces-of-one-file", [refused_request(_unless_first_of(Command.DMA_MAP))]),
    ("dma_map.many", [refused_request(lambda e, count: e.command == Command.DMA_MAP and count >= 64)]),
    ("dma_map.file-too-short", [ACCEPTS, NO_ERRNO]),
    ("dma_map.not-memory", [ACCEPTS, NO_ERRNO]),
    ("dma_map.overlap*", [ACCEPTS, WRONG_ERRNO]),
    ("dma_map.refused-changes-nothing", [ACCEPTS, refused_request(lambda e, _: e.command == Command.DMA_UNMAP)]),
    (
        "dma_map.refused-maps-nothing",
        [ACCEPTS, refused_request(lambda e, count: e.command == Command.DMA_MAP and count == 2)],
    ),
    ("dma_unmap.reply", [resized(-24, _UNMAP), patch(8, "<Q", 0, _UNMAP), fails(_UNMAP)]),
    ("dma_unmap.is-gone", [claims(Command.DMA_UNMAP, 24), ACCEPTS]),
    ("dma_unmap.can-be-mapped-again", [claims(Command.DMA_UNMAP, 24)]),
    ("dma_unmap.others-stay", [Mutation("unmaps everything", request=_unmap_everything)]),
    ("dma_unmap.memory-is-let-go", [claims(Command.DMA_UNMAP, 24)]),
    (
        "dma_unmap.gone-client-lets-go",
        [Mutation("another client's memory stays", request=_map_writable)],
    ),
    ("dma_unmap.gone-client-leaves-nothing", [claims(Command.DMA_UNMAP, 24)]),
    ("dma_unmap.all", [claims(Command.DMA_UNMAP, 24), fails(_UNMAP), resized(-24, _UNMAP)]),
    ("dma_unmap.all-of-nothing", [fails(_UNMAP)]),
    ("dma_unmap.accepts*", [fails(_UNMAP), resized(16, _UNMAP)]),
    (
        "dma_unmap.refused-changes-nothing",
        [
            ACCEPTS,
            refused_request(lambda e, count: e.command == Command.DMA_UNMAP and count == 1),
        ],
    ),
    ("region_read.config-whole", [fails(_READ), on_success("short", _size_of_read, _READ)]),
    ("region_read.config*", [fails(_READ), on_success("short", _size_of_read, _READ), patch(0, "<Q", 0x99, _READ)]),
    ("region_read.vendor-id", [patch(16, "<H", 0xFFFF, _READ)]),
    ("region_read.nothing*", [fails(_READ), resized(4, lambda e: e.command == Command.REGION_READ)]),
    ("region_read.refused-goes-on", [BROKEN_AFTER_ERROR]),
    ("region_read.*", [counting(_last_byte, _READ)]),
    ("region_write.reply", [resized(-16, _WRITE), resized(1, _WRITE), fails(_WRITE), patch(0, "<Q", 1, _WRITE)]),
    ("region_write.takes-effect", [claims(Command.REGION_WRITE, 16), on_success("other data", _wrong_data, _READ)]),
    (
        "region_write.neighbours",
        [counting(_last_byte, lambda e: e.command == Command.REGION_READ and len(e.payload) == 19)],
    ),
    ("region_write.read-only", [fails(_WRITE), counting(_last_byte, _READ)]),
    ("region_write.nothing", [fails(_WRITE)]),
    ("region_write.posted-then-read", [Mutation("loses posted writes", request=_posted_writes_late)]),
    ("region_write.posted-in-order", [Mutation("does the first alone", request=_first_posted_only)]),
    ("region_write.posted*", [ANSWERS_POSTED]),
    ("region_write.pipelined", [claims(Command.REGION_WRITE, 16, nth=1)]),
    ("region_write.sizing*", [on_success("no mask", _sizing_ones, _READ), claims(Command.REGION_WRITE, 16)]),
    ("region_write.absent-bars", [on_success("no mask", _sizing_ones, _READ)]),
    ("write_multi.writes*", [patch(0, "<Q", 77, _MULTI), claims(Command.REGION_WRITE_MULTI, 8), fails(_MULTI)]),
    ("write_multi.none", [patch(0, "<Q", 1, _MULTI), fails(_MULTI)]),
    ("write_multi.posted", [ANSWERS_POSTED, Mutation("loses posted writes", request=_posted_writes_late)]),
    ("write_multi.second-bad*", [patch(0, "<Q", 3, _MULTI), fails(_MULTI), claims(Command.REGION_WRITE_MULTI, 8)]),
    ("write_multi.not-offered", [on_error("done", lambda e: e.become_success(bytes(8)))]),
    ("reset.no-reply", [ANSWERS_POSTED]),
    ("reset.goes-on", [counting(_third_word, _INFO), fails(_RESET)]),
    ("reset.keeps-mappings", [refused_request(lambda e, _: e.command == Command.DMA_UNMAP)]),
    ("reset.keeps-eventfds", [fabricated(lambda e, count: e.command == _FIRE and count == 0)]),
    ("reset.resets-command", [claims(Command.DEVICE_RESET)]),
    ("reset.*", [fails(_RESET), resized(4, _RESET)]),
    ("feature.probe*", [fails(_FEATURE), _echo(Command.DEVICE_FEATURE), resized(4, _FEATURE)]),
    ("feature.migration", [patch(8, "<Q", 0, _FEATURE), patch(0, "<I", 8, _FEATURE), fails(_FEATURE)]),
    ("feature.state", [patch(8, "<I", 8, _FEATURE), patch(4, "<I", 1, _FEATURE), fails(_FEATURE)]),
    ("feature.runs-at-first", [_state_is(1)]),
    ("feature.much-room", [resized(100, _FEATURE)]),
    ("dirty_log.start", [fails(_FEATURE), _echo(Command.DEVICE_FEATURE)]),
    ("dirty_log.start-twice-otherwise", [ACCEPTS, WRONG_ERRNO]),
    ("dirty_log.start*", [fails(_FEATURE)]),
    ("dirty_log.stop", [_echo(Command.DEVICE_FEATURE), fails(_FEATURE)]),
    ("dirty_log.report", [_bitmap(lambda bits: bits + bytes(8)), patch(8, "<Q", 0, _FEATURE), fails(_FEATURE)]),
    ("dirty_log.report-no-others", [_bitmap(lambda bits: b"\xff" * len(bits))]),
    ("dirty_log.report-clears", [_bitmap(lambda bits: b"\x01" + bits[1:])]),
    ("dirty_log.report-exact-room", [fails(_FEATURE), _bitmap(lambda bits: bits + bytes(8))]),
    ("dirty_log.report-after-stop", [ACCEPTS, WRONG_ERRNO]),
    ("migration.data_fd-is-repeated", [_echo(Command.DEVICE_FEATURE)]),
    ("migration.refused-changes-nothing", [ACCEPTS, _state_is(2)]),
    ("migration.gone-client", [_state_is(1)]),
    ("migration.REGION_READ-in-STOP", [fails(_READ)]),
    ("migration.STOP_COPY-to-PRE_COPY", [ACCEPTS, WRONG_ERRNO, _state_is(6)]),
    ("migration.*-to-*", [fails(_FEATURE), _echo(Command.DEVICE_FEATURE), _state_is(0)]),
    (
        "migration_region.type",
        [patch(4, "<I", 1, _REGION), on_success("another type", _no_type, _REGION), fails(_REGION)],
    ),
    ("migration_region.runs-at-first", [_device_state_is(0)]),
    ("migration_region.pending_bytes", [_register_is(8, lambda count, old: old - count)]),
    ("migration_region.data_offset", [_register_is(16, 16), _register_is(24, 1 << 40)]),
    ("migration_region.save", [_register_is(8, 77)]),
    ("migration_region.round-trip", [Mutation("ends early", reply=_ends_early)]),
    ("migration_region.RUNNING-to-RUNNING", [_device_state_is(6), fails(_WRITE)]),
    ("migration_region.*-to-*", [_device_state_is(6), fails(_WRITE), claims(Command.REGION_WRITE, 16)]),
    ("dirty_pages.start-and-stop", [fails(_DIRTY), resized(4, _DIRTY)]),
    ("dirty_pages.bitmap", [fails(_DIRTY), resized(8, _DIRTY), patch(8, "<Q", 0, _DIRTY)]),
    ("dirty_pages.bitmap-clears", [patch(40, "<Q", 1, _DIRTY)]),
    ("dirty_pages.bitmap-room", [fails(_DIRTY), resized(8, _DIRTY), patch(0, "<I", 40, _DIRTY)]),
    ("mig_data.read", [fails(_MIG_READ), patch(4, "<I", 9000, _MIG_READ), patch(0, "<I", 0, _MIG_READ)]),
    ("mig_data.read-to-the-end", [on_success("no end", _never_ends, _MIG_READ)]),
    ("mig_data.read-nothing", [fails(_MIG_READ), patch(4, "<I", 1, _MIG_READ)]),
    ("mig_data.read-in-small-pieces", [Mutation("the pieces are cut", reply=_cut_second_saving)]),
    ("mig_data.read-in-PRE_COPY", [fails(_MIG_READ)]),
    (
        "mig_data.round-trip",
        [fails(_MIG_WRITE), Mutation("the pieces are cut", reply=_cut_second_saving)],
    ),
    ("mig_data.round-trip-registers", [claims(Command.MIG_DATA_WRITE), on_success("other data", _wrong_data, _READ)]),
    ("mig_data.write", [resized(8, _MIG_WRITE), fails(_MIG_WRITE)]),
    ("mig_data.rubbish", [ACCEPTS, NO_ERRNO]),
]


def mutations_of(check: Check) -> list[Mutation]:
    """Those that break its rule.

    Raises:
        LookupError: nobody has said which do.
    """
    if check.errnos:
        wrong = [WRONG_ERRNO] if -1 not in check.errnos else [NO_ERRNO]
        return [ACCEPTS, *wrong]
    for pattern, mutations in RULES:
        if mutations and fnmatch.fnmatchcase(check.name, pattern):
            return mutations
    raise LookupError(f"no mutation is known that breaks {check.name}: enter one in RULES")
