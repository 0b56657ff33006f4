"""One client's connection to one device: receives messages, has them carried out in order, sends the replies.

The message path
----------------

Nearly every message of a running driver is a REGION_READ or REGION_WRITE of 1, 2, 4 or 8 bytes, and a client waits for
each read. So ``_consume`` takes those out of the receive buffer itself: one ``unpack_from`` for header and payload, one
list look-up, the region's method, one ``pack``, one ``send``, and no object made on the way. Posted writes come in
runs, which are cut up by one ``iter_unpack``. Whatever is not of that plain form - another command, an odd size, a bad
index, a message with descriptors - takes the ordinary way through ``_execute`` and ``server.commands``, where every
refusal gets its errno. The plain form is checked as strictly; it just never has to say what is wrong.

A client that does not read its replies is not read from either: ``_outbox`` holds the rest of one reply, and nothing
more is taken from the client until that has gone.

With an ``Observer`` every message takes the ordinary way; without one, observing costs nothing.
"""

from __future__ import annotations

import errno
import logging
import operator
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

from vfio_user.errors import (
    ConnectionClosedError,
    DeviceError,
    FramingError,
    RemoteProtocolError,
    VersionError,
)
from vfio_user.protocol.constants import HEADER_SIZE, Command, HeaderFlags
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, command_name, error_reply, reply_header
from vfio_user.protocol.region import ACCESS_MESSAGE, INTEGER_ACCESS_MESSAGE
from vfio_user.protocol.version import Agreement, Capabilities
from vfio_user.server.commands import COMMANDS, Reply, placeholder_reply
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, SEND_FLAGS, Channel, ancillary_fds, send_some

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.loop import EventLoop

__all__ = ["OFFER", "Observer", "Session", "SessionStatistics"]

log = logging.getLogger("vfio_user.server")

#: What a server here can take. 16 descriptors a message is QEMU's limit for this number.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True)

#: Problems of one session that are logged as warnings; the rest are for debugging, as a bad client could fill a disk.
_MAX_WARNINGS = 20

_READ = int(Command.REGION_READ)
_WRITE = int(Command.REGION_WRITE)
_NO_REPLY = HeaderFlags.NO_REPLY.value
_REPLY = HeaderFlags.REPLY.value
_POLL = RECEIVE_FLAGS | socket.MSG_DONTWAIT

_READ_SIZE = ACCESS_MESSAGE.size
_WRITE4_SIZE = INTEGER_ACCESS_MESSAGE[4].size

#: Packs a read's reply, by the bytes read; None where an access is no single integer.
_PACK_READ_REPLY = [INTEGER_ACCESS_MESSAGE[n].pack if n in INTEGER_ACCESS_MESSAGE else None for n in range(9)]
#: Unpacks a write, by the bytes written; 4 has its own way.
_UNPACK_WRITE = [INTEGER_ACCESS_MESSAGE[n].unpack_from if n in INTEGER_ACCESS_MESSAGE else None for n in range(9)]


class Observer(Protocol):
    """Is shown every message of a session, for tracing."""

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        """A command came, with that many descriptors; it is about to be carried out."""

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
        """The reply that goes back, that long after the command was looked at."""

    def closed(self) -> None:
        """The connection ended."""


class SessionStatistics:
    """Counts of one session; read them at any time.

    Attributes:
        receptions: times bytes were received.
        dropped_errors: commands that failed and wanted no reply.
        errors: error replies sent.
    """

    __slots__ = ("dropped_errors", "errors", "receptions")

    def __init__(self) -> None:
        self.receptions = 0
        self.dropped_errors = 0
        self.errors = 0


class Session:
    """See the module.

    Args:
        device: the device the client drives.
        channel: the connection; closed with the session.
        peer: how to call the client in the log.
        observer: is shown every message.
        strict: exceptions of device code that are not DeviceError end the session and are raised; for tests.

    Attributes:
        offer: what this server can take.
        agreement: what was negotiated; None until VERSION has been answered.
        statistics: counts.

    Raises (from ``receive``, ``receive_blocking`` and ``flush``):
        ConnectionClosedError: the client is gone, or was sent away because of what it sent. ``close`` the session.

    Threading: session thread.
    """

    def __init__(
        self,
        device: Device,
        channel: Channel,
        *,
        peer: str = "client",
        observer: Observer | None = None,
        strict: bool = False,
    ) -> None:
        self.device = device
        self.peer = peer
        self.offer = OFFER
        self.agreement: Agreement | None = None
        self.statistics = SessionStatistics()
        #: The client takes no notice of errors and waits for a full reply: see ``commands.placeholder_reply``.
        self.ignores_errors = False
        self._channel = channel
        self._observer = observer
        self._strict = strict
        self._frames = FrameBuffer(OFFER.max_data_xfer_size + _READ_SIZE)
        self._whole_buffer = [memoryview(self._frames.buffer)]
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._warnings = 0
        self._closed = False
        regions = [device.region(index) for index in range(device.num_regions)]
        # (size, read, write) by region index: what the message path needs, and nothing else. A region that refuses a
        # direction has size 0 for it here, so that such an access takes the ordinary way to its errno.
        self._readers = [(region.size if region.readable else 0, region.read) for region in regions]
        self._writers = [(region.size if region.writable else 0, region.write) for region in regions]

    @property
    def turns(self) -> int:
        """Goes up with everything the session's thread begins; for the watchdog."""
        return self.statistics.receptions + self.device.loop.turns

    @property
    def thread_id(self) -> int | None:
        """The thread it runs on; for the watchdog."""
        return self.device.loop.thread_id

    # The shell.

    @property
    def wants_to_write(self) -> bool:
        """Part of a reply waits until the client reads; nothing is taken from it before that."""
        return bool(self._outbox)

    def receive(self) -> bool:
        """Takes what the client has sent, without waiting, and carries it out; see the class for what it raises.

        Returns:
            Something was there.
        """
        if self._outbox:
            return False
        try:
            count, ancdata, flags, _ = self._channel.recvmsg_into(self._room(), ANCILLARY_SIZE, _POLL)
        except BlockingIOError:
            return False
        except OSError as exc:
            raise ConnectionClosedError(f"the connection broke: {exc.strerror}") from exc
        self._received(count, ancdata, flags)
        return True

    def receive_blocking(self, loop: EventLoop) -> None:
        """Receives and carries out while nothing else is to be waited for, in one system call a reception.

        The channel must be a socket with a receive timeout (SO_RCVTIMEO): when it passes, the loop is asked again. See
        the class for what it raises.
        """
        frames = self._frames
        receive = self._channel.recvmsg_into
        statistics = self.statistics
        while loop.is_simple and not self._outbox:
            try:
                count, ancdata, flags, _ = receive(
                    self._room() if frames.end else self._whole_buffer, ANCILLARY_SIZE, RECEIVE_FLAGS
                )
            except BlockingIOError:
                continue
            except OSError as exc:
                raise ConnectionClosedError(f"the connection broke: {exc.strerror}") from exc
            if ancdata or not count:
                self._received(count, ancdata, flags)
            else:
                statistics.receptions += 1
                frames.end += count
                self._consume()

    def flush(self) -> None:
        """Sends what waits, as far as the client reads it, and when all is sent goes on with what had come before."""
        while self._outbox:
            view, fds = self._outbox[0]
            sent = send_some(self._channel, [view], fds)
            if not sent:
                return
            if sent < len(view):
                self._outbox[0] = (view[sent:], ())
            else:
                self._outbox.popleft()
        self._consume()

    def close(self) -> None:
        """Closes the connection, and every descriptor that came over it and nobody took. Idempotent."""
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self._frames.close()
            self._channel.close()
            if self._observer is not None:
                self._observer.closed()

    def _room(self) -> list[memoryview]:
        """Where the next reception goes."""
        return [memoryview(self._frames.buffer)[self._frames.end :]]

    def _received(self, count: int, ancdata: list[tuple[int, int, bytes]], flags: int) -> None:
        self.statistics.receptions += 1
        try:
            fds = ancillary_fds(ancdata, flags)
            if not count:
                close_fds(fds)
                raise ConnectionClosedError("the client closed the connection")
            self._frames.received(count, fds)
        except FramingError as exc:
            self._send_away(self._frames.peek_header(), exc)
        self._consume()

    # The message path.

    def _consume(self) -> None:
        """Carries out every message that is whole, until the client must read first."""
        frames = self._frames
        if self.agreement is None or self._observer is not None or frames.has_fds:
            while not self._outbox and self._consume_one():
                pass
            frames.compact()
            return
        buffer = frames.buffer
        readers, writers = self._readers, self._writers
        regions = len(readers)
        send = self._channel.send
        unpack = ACCESS_MESSAGE.unpack_from
        unpack_write4 = INTEGER_ACCESS_MESSAGE[4].unpack_from
        at, end = frames.start, frames.end
        while True:
            left = end - at
            if left >= _WRITE4_SIZE:
                message_id, command, size, flags, _, offset, index, count, value = unpack_write4(buffer, at)
            elif left >= _READ_SIZE:
                message_id, command, size, flags, _, offset, index, count = unpack(buffer, at)
                value = 0
            else:
                count = 9
                index = size = command = flags = offset = message_id = value = 0
            reply: bytes | None = None
            if count > 8 or index >= regions or size > left:
                plain = False
            elif command == _READ:
                limit, read = readers[index]
                pack = _PACK_READ_REPLY[count]
                plain = pack is not None and size == _READ_SIZE and not flags and offset + count <= limit
                if plain:
                    try:
                        reply = pack(  # type: ignore[misc]  # not None: plain
                            message_id, _READ, _READ_SIZE + count, _REPLY, 0, offset, index, count, read(offset, count)
                        )
                    except Exception as exc:
                        reply = self._failure(
                            Header(message_id, command, size, flags, 0), exc, buffer[at + 16 : at + size]
                        )
            elif command == _WRITE:
                limit, write = writers[index]
                plain = size == _READ_SIZE + count and offset + count <= limit and flags in (0, _NO_REPLY)
                if plain and count != 4:
                    unpack_write = _UNPACK_WRITE[count]
                    plain = unpack_write is not None
                    if plain:
                        value = unpack_write(buffer, at)[8]  # type: ignore[misc]  # not None: plain
                if plain:
                    try:
                        write(offset, count, value)
                        if not flags:
                            reply = ACCESS_MESSAGE.pack(message_id, _WRITE, _READ_SIZE, _REPLY, 0, offset, index, count)
                    except Exception as exc:
                        reply = self._failure(
                            Header(message_id, command, size, flags, 0), exc, buffer[at + 16 : at + size]
                        )
                    if flags and left > 2 * _WRITE4_SIZE:
                        at = self._consume_posted_run(at + size, end)
                        continue
            else:
                plain = False
            if plain:
                at += size
                if reply is not None:
                    try:
                        sent = send(reply, SEND_FLAGS)
                    except BlockingIOError:
                        sent = 0
                    except OSError as exc:
                        raise ConnectionClosedError(f"the client is gone: {exc.strerror}") from exc
                    if sent != len(reply):
                        self._outbox.append((memoryview(reply)[sent:], ()))
                        frames.start = at
                        break
                if at != end:
                    continue
                frames.start = frames.end = 0
                return
            frames.start = at
            if self._outbox or not self._consume_one() or self._outbox:
                break
            at = frames.start
        frames.compact()

    def _consume_posted_run(self, at: int, end: int) -> int:
        """Carries out the posted 4-byte writes that begin at ``at``, up to the first message that is none.

        Returns:
            Where that one begins.
        """
        writers = self._writers
        regions = len(writers)
        number = (end - at) // _WRITE4_SIZE
        run = INTEGER_ACCESS_MESSAGE[4].iter_unpack(memoryview(self._frames.buffer)[at : at + number * _WRITE4_SIZE])
        header = (0, 0, 0, 0, 0)
        try:
            for message_id, command, size, flags, _, offset, index, count, value in run:
                if command != _WRITE or size != _WRITE4_SIZE or flags != _NO_REPLY or count != 4 or index >= regions:
                    break
                limit, write = writers[index]
                if offset + 4 > limit:
                    break
                header = (message_id, command, size, flags, 0)
                write(offset, 4, value)
            else:
                return at + number * _WRITE4_SIZE
        except Exception as exc:
            self._failure(Header(*header), exc, b"")
            return at + (number - operator.length_hint(run)) * _WRITE4_SIZE
        return at + (number - operator.length_hint(run) - 1) * _WRITE4_SIZE

    # The ordinary way.

    def _consume_one(self) -> bool:
        """Carries out the next message, whatever it is.

        Returns:
            There was a whole one.
        """
        frames = self._frames
        try:
            header = frames.next_message()
        except FramingError as exc:
            self._send_away(frames.peek_header(), exc)
        if header is None:
            return False
        began = frames.start + HEADER_SIZE
        payload = bytes(memoryview(frames.buffer)[began : began - HEADER_SIZE + header.message_size])
        fds = frames.take_fds()
        frames.consume(header.message_size)
        try:
            self._carry_out(header, payload, fds)
        finally:
            close_fds(fds)
        return True

    def _carry_out(self, header: Header, payload: bytes, fds: list[int]) -> None:
        observer = self._observer
        if observer is not None:
            observer.command(header, payload, len(fds))
        started = time.monotonic() if observer is not None else 0.0
        fatal: RemoteProtocolError | None = None
        if header.is_reply:
            # Nothing was asked, so there is nothing this could answer. Answering it could go on for ever.
            self._warn("dropped a reply to nothing: %s", header)
            return
        try:
            reply = self._execute(header, payload, fds)
            message = reply_header(header.message_id, header.command, len(reply.payload)) + reply.payload
            reply_fds = reply.fds
        except (FramingError, VersionError) as exc:
            fatal = exc
            message, reply_fds = error_reply(header.message_id, header.command, exc.errno_hint), ()
            self.statistics.errors += 1
        except Exception as exc:
            failure = self._failure(header, exc, payload)
            if failure is None:
                return
            message, reply_fds = failure, ()
        if not header.no_reply or fatal is not None:
            if observer is not None:
                observer.reply(
                    Header.decode(message), message[HEADER_SIZE:], len(reply_fds), time.monotonic() - started
                )
            self._send(message, reply_fds)
        if fatal is not None:
            raise ConnectionClosedError(f"the client was sent away: {fatal}") from fatal

    def _execute(self, header: Header, payload: bytes, fds: list[int]) -> Reply:
        """Checks what any command must be, and has it carried out."""
        if not header.is_command:
            raise FramingError(f"the header's type is neither command nor reply: flags {header.flags:#x}")
        if self.agreement is None:
            if header.command != Command.VERSION:
                raise VersionError(f"the first message is {command_name(header.command)}; it must be VERSION")
        elif header.command == Command.VERSION:
            raise RemoteProtocolError("VERSION was negotiated already, and cannot be again")
        command = COMMANDS.get(header.command)
        if command is None:
            raise RemoteProtocolError(f"{command_name(header.command)} is no command this server carries out")
        if not payload and header.command != Command.DEVICE_RESET:
            raise RemoteProtocolError(f"{command_name(header.command)} came without its payload")
        return command(self, payload, fds)

    def _failure(self, header: Header, exc: Exception, payload: bytes | bytearray) -> bytes | None:
        """Logs why a command failed, and returns the reply that says so, if one is wanted."""
        name = command_name(header.command)
        if isinstance(exc, ConnectionClosedError):
            raise exc
        if isinstance(exc, DeviceError):
            error = exc.reply_errno
            self._warn("%s refused: %s", name, exc)
        elif isinstance(exc, RemoteProtocolError):
            error = exc.errno_hint
            self._warn("refused: %s", exc)
        else:
            if self._strict:
                raise exc
            error = errno.EIO
            log.error("%s: %s failed in the device's code; the client gets EIO", self.peer, name, exc_info=exc)
        if header.no_reply:
            self.statistics.dropped_errors += 1
            return None
        self.statistics.errors += 1
        if self.ignores_errors:
            return placeholder_reply(header, payload) or error_reply(header.message_id, header.command, error)
        return error_reply(header.message_id, header.command, error)

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one whole message with one system call, or keeps what the client has no room for."""
        sent = 0 if self._outbox else send_some(self._channel, [message], fds)
        if sent < len(message):
            self._outbox.append((memoryview(message)[sent:], () if sent else fds))

    def _send_away(self, header: Header | None, exc: RemoteProtocolError) -> NoReturn:
        """Answers a message that cannot be read on from, and ends the session."""
        self.statistics.errors += 1
        if header is not None:
            self._send(error_reply(header.message_id, header.command, exc.errno_hint))
        raise ConnectionClosedError(f"the client was sent away: {exc}") from exc

    def _warn(self, text: str, *args: object) -> None:
        """Logs what the client did wrong: the first times for people, then for debugging only."""
        self._warnings += 1
        level = logging.WARNING if self._warnings <= _MAX_WARNINGS else logging.DEBUG
        log.log(level, "%s: " + text, self.peer, *args)
        if self._warnings == _MAX_WARNINGS:
            log.warning("%s: further warnings about this client are logged as debug messages", self.peer)
