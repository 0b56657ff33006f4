"""The header: what every reply's says, which commands are refused for theirs, and which are never answered."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from vfio_user.protocol.constants import Command, HeaderFlags
from vfio_user.testing.conformance.bench import GET_INFO, Bench
from vfio_user.testing.conformance.check import DoesNotApply, Family, Risk, Unmet
from vfio_user.testing.conformance.facts import Facts

__all__ = ["HEADER"]

HEADER = Family("header", "vfio-user, Header")

_REFUSALS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)

_INTX_OFF = struct.pack("<IIIII", 20, 0x21, 0, 0, 0)

#: A command of each kind that changes nothing: its payload for this server.
_HARMLESS: dict[Command, Callable[[Facts], bytes]] = {
    Command.DEVICE_GET_INFO: lambda _: GET_INFO,
    Command.DEVICE_GET_REGION_INFO: lambda _: struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0),
    Command.DEVICE_GET_IRQ_INFO: lambda _: struct.pack("<IIII", 16, 0, 0, 0),
    Command.DEVICE_SET_IRQS: lambda facts: struct.pack("<IIIII", 20, 0x21, facts.vectors().index, 0, 0),
    Command.REGION_READ: lambda facts: struct.pack("<QII", 0, facts.region(7).index, 4),
    Command.DMA_MAP: lambda _: struct.pack("<IIQQQ", 32, 3, 0, 0x4000_0000, 0x1000),
    Command.DMA_UNMAP: lambda _: struct.pack("<IIQQ", 24, 2, 0, 0),
}

#: The same, refused by every server: what is wrong with each is its argsz, index or length.
_WRONG: dict[Command, bytes] = {
    Command.DEVICE_GET_INFO: struct.pack("<IIII", 0, 0, 0, 0),
    Command.DEVICE_GET_REGION_INFO: struct.pack("<IIIIQQ", 32, 0, 0xFFFF, 0, 0, 0),
    Command.DEVICE_GET_IRQ_INFO: struct.pack("<IIII", 16, 0, 0xFFFF, 0),
    Command.DEVICE_SET_IRQS: struct.pack("<IIIII", 20, 0, 0, 0, 0),
    Command.REGION_READ: struct.pack("<QII", 0, 0xFFFF, 4),
    Command.REGION_WRITE: struct.pack("<QIII", 0, 0xFFFF, 4, 0),
    Command.DMA_MAP: struct.pack("<IIQQQ", 0, 3, 0, 0x4000_0000, 0x1000),
    Command.DMA_UNMAP: struct.pack("<IIQQ", 0, 0, 0, 0x1000),
}


def _well_formed(command: Command, payload: Callable[[Facts], bytes]) -> None:
    def run(bench: Bench) -> str:
        with_fds = bench.ask(command, payload(bench.facts))
        try:
            header = with_fds.header
            if header.command != command:
                raise Unmet(f"the reply's command is {header.command}")
            if header.flags != HeaderFlags.REPLY:
                raise Unmet(f"the reply's flags are {header.flags:#x}")
            return f"flags {header.flags:#x}, command {header.command}"
        finally:
            if command == Command.DMA_MAP:
                bench.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000))

    HEADER.add(f"reply-flags[{command.name}]", "its command, type reply, no other flag", run)


def _refusal_form(command: Command, payload: bytes) -> None:
    def run(bench: Bench) -> str:
        message = bench.ask(command, payload)
        if message.header.command != command:
            raise Unmet(f"the refusal's command is {message.header.command}")
        return bench.refused(message, ())

    HEADER.add(f"refusal-form[{command.name}]", "a header alone: flags 0x21, an errno that is not 0", run)


for _command, _payload in _HARMLESS.items():
    _well_formed(_command, _payload)
for _command, _bytes in _WRONG.items():
    _refusal_form(_command, _bytes)


def _id_is_repeated(number: int) -> None:
    def run(bench: Bench) -> str:
        bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, message_id=number)
        found = bench.peer.receive().header.message_id
        if found != number:
            raise Unmet(f"the reply has id {found:#x}")
        return f"id {found:#x}"

    HEADER.add(f"id-is-repeated[{number:#x}]", "the reply repeats the command's id", run)


for _number in (0, 1, 0x7FFF, 0x8000, 0xFFFF):
    _id_is_repeated(_number)


@HEADER.check("id-is-repeated-in-refusal", "an error reply repeats the command's id")
def _(bench: Bench) -> str:
    bench.peer.send(Command.DEVICE_GET_REGION_INFO, _WRONG[Command.DEVICE_GET_REGION_INFO], message_id=0xABC)
    message = bench.peer.receive()
    if message.header.message_id != 0xABC:
        raise Unmet(f"the reply has id {message.header.message_id:#x}")
    return str(message)


@HEADER.check("id-may-be-the-same", "ids are the client's: two commands in a row may have one", advised=True)
def _(bench: Bench) -> str:
    for _ in range(2):
        bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, message_id=0)
        bench.success(bench.peer.receive())
    return "both were answered"


@HEADER.check("error-field-is-0", "the error field of a success is 0", advised=True)
def _(bench: Bench) -> str:
    header = bench.ask(Command.DEVICE_GET_INFO, GET_INFO).header
    if header.error:
        raise Unmet(f"error is {header.error}")
    return "0"


@HEADER.check("error-field-of-a-command", "the error field of a command is reserved, and ignored", advised=True)
def _(bench: Bench) -> str:
    number = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, error=errno.EIO)
    bench.success(bench.peer.reply_to(number))
    return "the command was carried out"


# Commands there are not, and those that lack what they need.

for _number in (0, 19, 20, 99, 0x7FFF, 0xFFFF):
    HEADER.refuses(f"unknown-command[{_number}]", "there is no such command", _number, bytes(16), errnos=_REFUSALS)
for _command in (Command.DMA_READ, Command.DMA_WRITE):
    HEADER.refuses(
        f"servers-own-command[{_command.name}]", "only a server sends that", _command, bytes(16), errnos=_REFUSALS
    )
for _command in Command:
    if _command not in (Command.VERSION, Command.DEVICE_RESET):
        HEADER.refuses(f"without-payload[{_command.name}]", "the payload is missing", _command, b"", errnos=_REFUSALS)


@HEADER.check("unknown-command-is-skipped", "its payload is skipped, and the connection goes on")
def _(bench: Bench) -> str:
    bench.refuses(99, bytes(1000), _REFUSALS)
    return bench.goes_on()


# Headers over which a connection ends.


def _is_fatal(bench: Bench) -> str:
    """The server answers with an error, hangs up, or both; and a new client is served."""
    seen = "the connection was closed"
    try:
        message = bench.peer.receive()
    except Unmet as exc:
        if "closed" not in str(exc):
            raise
    else:
        seen = bench.refused(message, ())
    bench.negotiated()
    bench.goes_on()
    return seen


def _bad_size(size: int) -> None:
    def run(bench: Bench) -> str:
        bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, size=size)
        return _is_fatal(bench)

    HEADER.add(
        f"size[{size:#x}]",
        "an error reply, or the end of the connection; the next client is served",
        run,
        risk=Risk.CLOSE,
        own_connection=True,
    )


for _size in (0, 1, 8, 15, (1 << 20) + (1 << 16), 0x7FFF_FFFF, 0xFFFF_FFFF):
    _bad_size(_size)


def _bad_type(kind: int) -> None:
    def run(bench: Bench) -> str:
        bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO, flags=kind)
        return _is_fatal(bench)

    HEADER.add(
        f"type[{kind}]",
        "no such type: an error reply, or the end of the connection",
        run,
        risk=Risk.CLOSE,
        own_connection=True,
    )


for _kind in (2, 3, 7, 15):
    _bad_type(_kind)


def _reply_from_client(name: str, payload: bytes, flags: int) -> None:
    def run(bench: Bench) -> str:
        number = bench.peer.send(Command.DMA_READ, payload, flags=flags)
        probe = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO)
        try:
            message = bench.peer.receive()
            if message.header.message_id == number:
                bench.refused(message, ())
                message = bench.peer.receive()
        except Unmet as exc:
            if "closed" not in str(exc):
                raise
            bench.negotiated()
            bench.goes_on()
            return "the connection was closed"
        if message.header.message_id != probe:
            raise Unmet(f"a reply to nothing: {message}")
        bench.success(message)
        return "it was passed over"

    HEADER.add(
        f"reply-to-nothing[{name}]",
        "passed over, refused, or the end of the connection",
        run,
        risk=Risk.CLOSE,
        own_connection=True,
    )


_reply_from_client("header", b"", HeaderFlags.REPLY)
_reply_from_client("payload", bytes(32), HeaderFlags.REPLY)
_reply_from_client("error", b"", HeaderFlags.REPLY | HeaderFlags.ERROR)


# Commands that want no reply.


def _is_silent(name: str, command: int, payload: Callable[[Facts], bytes], what: str) -> None:
    def run(bench: Bench) -> str:
        posted = bench.peer.next_id()
        bench.peer.send(command, payload(bench.facts), flags=HeaderFlags.NO_REPLY, message_id=posted)
        probe = bench.peer.send(Command.DEVICE_GET_INFO, GET_INFO)
        first = bench.peer.receive()
        if command == Command.DMA_MAP:
            bench.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000))
        if first.header.message_id != probe:
            bench.peer.is_out_of_step = True
            raise Unmet(f"it was answered: {first}")
        return "nothing came before the next command's reply"

    HEADER.add(f"no-reply[{name}]", f"{what} is not answered, with flag No_reply", run)


for _command, _payload in _HARMLESS.items():
    _is_silent(_command.name, _command, _payload, "a success")
for _command, _bytes in _WRONG.items():
    _is_silent(f"{_command.name}-refused", _command, lambda _, wrong=_bytes: wrong, "not even a refusal")  # type: ignore[misc]
_is_silent("unknown", 99, lambda _: bytes(16), "not even an unknown command")


# Descriptors nobody asked for.


def _fds_are_passed_over(command: Command, payload: Callable[[Facts], bytes]) -> None:
    def run(bench: Bench) -> str:
        bench.success(bench.ask(command, payload(bench.facts), fds=bench.eventfds(2)))
        return "the command was carried out"

    HEADER.add(
        f"unwanted-fds[{command.name}]",
        "they are closed, and the command is carried out",
        run,
        clause="practice (libvfio-user; SPDK sends one with DMA_UNMAP)",
        advised=True,
    )


def _fds_are_closed(name: str, command: int, payload: Callable[[Facts], bytes]) -> None:
    def run(bench: Bench) -> str:
        reading, writing = bench.pipe()
        try:
            bench.ask(command, payload(bench.facts), fds=[writing])
        finally:
            os.close(writing)
        bench.goes_on()
        try:
            rest = os.read(reading, 1)
        except BlockingIOError:
            raise Unmet("it is still open in the server") from None
        if rest:
            raise Unmet("something was written to it")
        return "it was closed"

    HEADER.add(
        f"fd-is-closed[{name}]",
        "a descriptor that is not wanted is closed by the server",
        run,
        clause="vfio-user, File descriptor passing",
    )


for _command in (Command.DEVICE_GET_INFO, Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_IRQ_INFO,
                 Command.REGION_READ, Command.DMA_UNMAP):  # fmt: skip
    _fds_are_passed_over(_command, _HARMLESS[_command])
    _fds_are_closed(_command.name, _command, _HARMLESS[_command])
_fds_are_closed("unknown", 99, lambda _: bytes(16))
_fds_are_closed("DMA_MAP-refused", Command.DMA_MAP, lambda _: _WRONG[Command.DMA_MAP])
_fds_are_closed("DEVICE_SET_IRQS-refused", Command.DEVICE_SET_IRQS, lambda _: _WRONG[Command.DEVICE_SET_IRQS])


@HEADER.check(
    "fd-is-closed[two]", "of two with a DMA_MAP, the second is closed", clause="practice (libvfio-user)", advised=True
)
def _(bench: Bench) -> str:
    memory = bench.memory(0x1000)
    reading, writing = bench.pipe()
    try:
        message = bench.ask(
            Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x4000_0000, 0x1000), fds=[memory, writing]
        )
    finally:
        os.close(writing)
    if message.is_error:
        raise DoesNotApply(f"a DMA_MAP with two descriptors got {message}")
    bench.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x4000_0000, 0x1000))
    try:
        os.read(reading, 1)
    except BlockingIOError:
        raise Unmet("it is still open in the server") from None
    return "it was closed"
