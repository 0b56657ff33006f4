"""The stream: messages cut anywhere, glued together, and many at once."""

from __future__ import annotations

import struct

from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import command_header
from vfio_user.testing.conformance.bench import GET_INFO, Bench
from vfio_user.testing.conformance.check import Family, Risk, Unmet

__all__ = ["STREAM"]

STREAM = Family("stream", "vfio-user, Socket")

_COMMAND_SIZE = 32


def _get_info(number: int) -> bytes:
    return command_header(number, Command.DEVICE_GET_INFO, len(GET_INFO)) + GET_INFO


def _split_at(place: int) -> None:
    def run(bench: Bench) -> str:
        number = bench.peer.next_id()
        message = _get_info(number)
        bench.peer.trickle([message[:place], message[place:]])
        bench.success(bench.peer.reply_to(number))
        return "answered"

    where = "header" if place < 16 else "payload" if place > 16 else "border"
    STREAM.add(
        f"split-in-{where}[{place}]",
        f"a message that comes in two pieces, of {place} bytes and the rest, is one",
        run,
        risk=Risk.CLOSE,
        own_connection=True,
        clause="vfio-user, Socket: a stream has no message borders",
    )


for _place in range(1, _COMMAND_SIZE):
    _split_at(_place)


@STREAM.check("byte-by-byte", "a message that comes byte by byte is one", risk=Risk.CLOSE, own_connection=True)
def _(bench: Bench) -> str:
    number = bench.peer.next_id()
    message = _get_info(number)
    bench.peer.trickle([message[at : at + 1] for at in range(len(message))])
    bench.success(bench.peer.reply_to(number))
    return "answered"


def _glued(count: int) -> None:
    def run(bench: Bench) -> str:
        ids = [bench.peer.next_id() for _ in range(count)]
        bench.peer.send_bytes(b"".join(_get_info(number) for number in ids))
        for number in ids:
            message = bench.peer.receive()
            bench.success(message)
            if message.header.message_id != number:
                bench.peer.is_out_of_step = True
                raise Unmet(f"id {message.header.message_id:#x} came where {number:#x} was due")
        return f"{count} replies, in order"

    STREAM.add(f"glued[{count}]", "messages sent in one piece are all answered, in order", run)


for _count in (2, 16, 100):
    _glued(_count)


@STREAM.check("pipelined", "commands sent before replies are read are answered in their order")
def _(bench: Bench) -> str:
    sent = []
    for at in range(32):
        if at % 2:
            sent.append((bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO), False))
        else:
            wrong = struct.pack("<IIII", 16, 0, 0xFFFF, 0)
            sent.append((bench.peer.send(Command.DEVICE_GET_IRQ_INFO, wrong), True))
    for number, is_error in sent:
        message = bench.peer.receive()
        if message.header.message_id != number or message.is_error != is_error:
            bench.peer.is_out_of_step = True
            raise Unmet(f"{message.header} came out of its turn")
    return "32 replies, refusals among them, in order"


@STREAM.check("fds-belong-to-their-message", "descriptors of one message are not taken for those of its neighbours")
def _(bench: Bench) -> str:
    bench.facts.need_fds()
    memory = bench.memory(0x1000)
    plain, mapping, again = (bench.peer.next_id() for _ in range(3))
    map_ = struct.pack("<IIQQQ", 32, 0x7, 0, 0x4000_0000, 0x1000)
    bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, message_id=plain)
    bench.peer.send(Command.DMA_MAP, map_, fds=[memory], message_id=mapping)
    bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, message_id=again)
    replies = [bench.peer.reply_to(number) for number in (plain, mapping, again)]
    bench.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000))
    for reply in replies:
        bench.success(reply)
    return "the mapping had its descriptor"


@STREAM.check(
    "half-a-message-and-gone",
    "a client that hangs up in a message costs nobody else",
    risk=Risk.CLOSE,
    own_connection=True,
)
def _(bench: Bench) -> str:
    bench.peer.send_bytes(_get_info(1)[:20])
    bench.negotiated()
    return bench.goes_on()


@STREAM.check(
    "gone-without-reading",
    "a client that hangs up before its replies costs nobody else",
    risk=Risk.CLOSE,
    own_connection=True,
)
def _(bench: Bench) -> str:
    bench.peer.send_bytes(b"".join(_get_info(number) for number in range(64)))
    bench.negotiated()
    return bench.goes_on()


@STREAM.check(
    "silent-client", "a client that says nothing and goes costs nobody else", risk=Risk.CLOSE, own_connection=True
)
def _(bench: Bench) -> str:
    bench.connect()
    bench.negotiated()
    return bench.goes_on()


@STREAM.check("next-client", "when a client has gone, the next one is served", own_connection=True)
def _(bench: Bench) -> str:
    bench.peer  # noqa: B018 - makes a connection
    bench.negotiated()
    return bench.goes_on()
