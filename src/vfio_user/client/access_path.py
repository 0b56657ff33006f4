"""The access path: register accesses of a driver, at the speed of the socket.

``access_path`` makes the three functions a driver spends its time in. When nothing else is under way - no other reply
is to come, nothing waits to be sent, no message is half received - an access is one ``pack``, one ``send``, one
``recvmsg_into`` and one ``unpack_from``, and no object is made for it. Everything else that can happen (another
message comes first, the reply comes in pieces or late, the server refuses, its socket is full) is handed to the
connection, which knows every case; the plain reply is checked here as strictly as there. With the other end on the
same thread, everything goes that ordinary way.

They are closures, as everything they need is fixed for the life of a connection.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sized
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.errors import LocalProtocolError, RemoteProtocolError
from vfio_user.protocol.constants import Command, HeaderFlags, RegionIndex
from vfio_user.protocol.framing import FrameBuffer
from vfio_user.protocol.region import ACCESS, ACCESS_MESSAGE, INTEGER_ACCESS_MESSAGE
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, SEND_FLAGS, Channel

if TYPE_CHECKING:
    from vfio_user.client.connection import Connection

__all__ = ["AccessPath", "access_path", "describe_access", "region_name"]

_READ = int(Command.REGION_READ)
_WRITE = int(Command.REGION_WRITE)
_NO_REPLY = HeaderFlags.NO_REPLY.value
_REPLY = HeaderFlags.REPLY.value
_CTRUNC = int(socket.MSG_CTRUNC)

#: Bytes of a read, of a write's reply, and of a write up to its data.
_ACCESS_SIZE = ACCESS_MESSAGE.size


#: What a reception brought: bytes, control data, flags.
_Received = tuple[int, list[tuple[int, int, bytes]], int]


class AccessPath(NamedTuple):
    """The functions; ``Connection`` describes them."""

    read: Callable[[int, int, int], int]
    write: Callable[[int, int, int, int], None]
    post: Callable[[int, int, int, int], None]


def access_path(
    connection: Connection,
    frames: FrameBuffer,
    channel: Channel,
    ids: Iterator[int],
    under_way: tuple[Sized, Sized, Sized],
    pump: Callable[[float], float] | None,
    *,
    waits: bool,
) -> AccessPath:
    """Makes the functions.

    Args:
        connection: does what is not plain.
        frames: its receive buffer.
        channel: where messages go, and come from.
        ids: message ids, without end.
        under_way: replies to come, messages to be sent, and ids that must not be used: empty nearly always.
        pump: see ``Connection``.
        waits: the server's commands may come over another socket: a reply cannot be waited for by receiving it.
    """
    send = channel.send
    receive = channel.recvmsg_into
    buffer = frames.buffer
    room = [memoryview(buffer)]
    pending, outbox, abandoned = under_way
    pack_read = ACCESS_MESSAGE.pack
    unpack_write_reply = ACCESS_MESSAGE.unpack_from
    pack_write = {size: form.pack for size, form in INTEGER_ACCESS_MESSAGE.items()}
    unpack_read_reply = {size: form.unpack_from for size, form in INTEGER_ACCESS_MESSAGE.items()}

    def transmit(message: bytes) -> int:
        """Sends, the socket being empty; the rest of what does not fit goes by the connection."""
        try:
            sent = send(message, SEND_FLAGS)
        except OSError:
            sent = 0  # Full, or gone: the connection will find out which.
        if sent != len(message):
            connection.keep(message, sent)
        return sent

    def read(region: int, offset: int, size: int) -> int:
        if pending or outbox or abandoned or frames.end:
            return read_ordinarily(region, offset, size)
        message_id = next(ids)
        try:
            message = pack_read(message_id, _READ, _ACCESS_SIZE, 0, 0, offset, region, size)
            unpack = unpack_read_reply[size]
        except (struct.error, KeyError):
            raise _impossible(region, offset, size) from None
        if transmit(message) == _ACCESS_SIZE:
            try:
                count, ancdata, flags, _ = receive(room, ANCILLARY_SIZE, RECEIVE_FLAGS)
            except OSError:
                pass  # Time is over, or the connection broke.
            else:
                if count == _ACCESS_SIZE + size and not ancdata and not flags & _CTRUNC:
                    reply_id, command, length, kind, _, at, index, length_read, value = unpack(buffer)
                    if (
                        reply_id == message_id
                        and command == _READ
                        and length == count
                        and kind == _REPLY
                        and at == offset
                        and index == region
                        and length_read == size
                    ):
                        return value  # type: ignore[no-any-return]
                return finish_read(region, offset, size, message_id, (count, ancdata, flags))
        return finish_read(region, offset, size, message_id, None)

    def write(region: int, offset: int, size: int, value: int) -> None:
        if pending or outbox or abandoned or frames.end:
            write_ordinarily(region, offset, size, value)
            return
        message_id = next(ids)
        try:
            message = pack_write[size](message_id, _WRITE, _ACCESS_SIZE + size, 0, 0, offset, region, size, value)
        except (struct.error, KeyError):
            raise _impossible(region, offset, size, value) from None
        if transmit(message) == _ACCESS_SIZE + size:
            try:
                count, ancdata, flags, _ = receive(room, ANCILLARY_SIZE, RECEIVE_FLAGS)
            except OSError:
                pass
            else:
                if count == _ACCESS_SIZE and not ancdata and not flags & _CTRUNC:
                    # What a successful reply repeats of the request means nothing, and peers do not look at it either.
                    reply_id, command, length, kind, *_ = unpack_write_reply(buffer)
                    if reply_id == message_id and command == _WRITE and length == count and kind == _REPLY:
                        return
                finish_write(region, offset, size, message_id, (count, ancdata, flags))
                return
        finish_write(region, offset, size, message_id, None)

    def post(region: int, offset: int, size: int, value: int) -> None:
        try:
            message = pack_write[size](
                connection.fresh_id() if pending or abandoned else next(ids),
                _WRITE,
                _ACCESS_SIZE + size,
                _NO_REPLY,
                0,
                offset,
                region,
                size,
                value,
            )
        except (struct.error, KeyError):
            raise _impossible(region, offset, size, value) from None
        if outbox:
            connection.drain()
        if transmit(message) != len(message):
            connection.drain()
        if pump is not None:
            pump(0.0)

    # The ordinary way.

    def read_ordinarily(region: int, offset: int, size: int) -> int:
        connection.check_open()
        if size not in unpack_read_reply:
            raise _impossible(region, offset, size)
        try:
            payload = ACCESS.pack(offset, region, size)
        except struct.error:
            raise _impossible(region, offset, size) from None
        what = describe_access("REGION_READ", region, offset, size)
        reply = connection.request(_READ, payload, max_payload=ACCESS.size + size, request=what)
        return _value(reply.payload, region, offset, size, what)

    def write_ordinarily(region: int, offset: int, size: int, value: int) -> None:
        connection.check_open()
        try:
            message = pack_write[size](0, _WRITE, _ACCESS_SIZE + size, 0, 0, offset, region, size, value)
        except (struct.error, KeyError):
            raise _impossible(region, offset, size, value) from None
        what = describe_access("REGION_WRITE", region, offset, size)
        payload = message[_ACCESS_SIZE - ACCESS.size :]
        connection.request(_WRITE, payload, max_payload=len(payload), request=what)

    def finish_read(region: int, offset: int, size: int, message_id: int, came: _Received | None) -> int:
        """Goes on with a read that was sent and whose reply is not the plain one."""
        what = describe_access("REGION_READ", region, offset, size)
        payload = finish(message_id, _READ, what, ACCESS.size + size, came)
        return _value(payload, region, offset, size, what)

    def finish_write(region: int, offset: int, size: int, message_id: int, came: _Received | None) -> None:
        finish(message_id, _WRITE, describe_access("REGION_WRITE", region, offset, size), ACCESS.size + size, came)

    def finish(message_id: int, command: int, what: str, max_payload: int, came: _Received | None) -> bytes:
        connection.check_open()
        expected = connection.expect(message_id, command, what, max_payload)
        if came is not None:
            connection.received(*came)
        elif not outbox:
            # The receive call has waited all the time there was.
            connection.wait_for(expected, passed=connection.timeout)
        return expected.result().payload

    if pump is not None or waits:
        # The other end may ask for memory while it carries the access out: its reply must be waited for from the start.
        return AccessPath(read_ordinarily, write_ordinarily, post)
    return AccessPath(read, write, post)


def region_name(index: int) -> str:
    """``BAR0``, ``CONFIG``; a number that is no region stays one."""
    try:
        return RegionIndex(index).name
    except ValueError:
        return f"region {index}"


def describe_access(what: str, region: int, offset: int, size: int) -> str:
    """An access in words, for errors."""
    return f"{what} of {size} bytes at {offset:#x} of {region_name(region)}"


def _value(payload: bytes, region: int, offset: int, size: int, what: str) -> int:
    """The value a read's reply carries.

    Raises:
        RemoteProtocolError: it is about another place, or has fewer bytes than were asked for.
    """
    if payload[: ACCESS.size] != ACCESS.pack(offset, region, size) or len(payload) != ACCESS.size + size:
        raise RemoteProtocolError(
            f"the reply to {what} has {len(payload)} bytes of payload for another access; it must repeat the request "
            f"and bring {size} bytes"
        )
    return int.from_bytes(payload[ACCESS.size :], "little")


def _impossible(region: int, offset: int, size: int, value: int = 0) -> LocalProtocolError:
    """What is wrong with an access that cannot be put into a message."""
    if size not in INTEGER_ACCESS_MESSAGE:
        return LocalProtocolError(
            f"an access of {size} bytes of {region_name(region)}: an integer has 1, 2, 4 or 8; use region_read or "
            "region_write for other lengths"
        )
    if not 0 <= value < 1 << 8 * size:
        return LocalProtocolError(f"{value:#x} does not fit the {size} bytes at {offset:#x} of {region_name(region)}")
    return LocalProtocolError(f"offset {offset:#x} of region {region}: the one has 64 bits, the other 32")
