"""A client's connection to one device: sends commands, matches replies to them, serves the server's own commands.

Theory of operation
-------------------

A command goes out with an id; its ``PendingReply`` waits under that id until the reply comes, the connection breaks, or
its time is over. Replies may come in any order. One whose id nobody waits for - late, or to a posted write, which some
servers answer all the same - is taken off the stream by its size and dropped: a command that timed out costs its own
answer and nothing else. Its id is not used again before that late reply has come.

Whenever this end waits - for a reply, for room to send, for an interrupt - it also carries out what the server asks
for: DMA_READ and DMA_WRITE, from the memory it was given. A server may need those before it can answer, and a client
that does not look would wait for ever.

Nothing the server sends is trusted. A reply that is wrong in itself raises RemoteProtocolError where it was waited for,
and the connection goes on; a stream that cannot be cut into messages any more ends it. Descriptors nobody asked for are
closed, and so are those of replies that are refused.

Spec: "Header", "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import NoReturn, Self

from vfio_user.client.access_path import access_path
from vfio_user.client.pending import PendingReply, Reply
from vfio_user.client.server_commands import DmaTarget, answer
from vfio_user.errors import (
    CommandTimeoutError,
    ConnectionClosedError,
    FramingError,
    ProtocolError,
    VfioUserError,
)
from vfio_user.protocol.constants import HEADER_SIZE, Command
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, command_header, command_name
from vfio_user.protocol.region import ACCESS_MESSAGE
from vfio_user.protocol.version import Agreement, Capabilities, VersionMessage, conclude, propose
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, carries_fds, send_some

__all__ = ["OFFER", "Connection", "ConnectionStatistics"]

log = logging.getLogger("vfio_user.client")

#: What a client here can take. 16 descriptors a message is what QEMU says.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True)

#: Seconds a server has for an answer; QEMU's default.
_TIMEOUT = 5.0

#: Bytes of replies a server may leave unread before nothing more is taken from it.
_MAX_UNSENT = 4 << 20

#: A VERSION reply, in bytes; longer than any a peer sends, and no room for a flood.
_MAX_VERSION_REPLY = 4096

#: Seconds to sleep at once; poll(2) counts milliseconds in a C int.
_LONGEST_POLL = 86400.0

_POLL = RECEIVE_FLAGS | socket.MSG_DONTWAIT


class ConnectionStatistics:
    """Counts of one connection.

    Attributes:
        dropped_replies: replies nobody waited for: late ones, or such to posted writes.
        served: commands of the server that were carried out.
        refused: commands of the server that were answered with an error.
    """

    __slots__ = ("dropped_replies", "refused", "served")

    def __init__(self) -> None:
        self.dropped_replies = 0
        self.served = 0
        self.refused = 0


class Connection:
    """See the module. Negotiates the version when it is made.

    Args:
        channel: a connected socket, or another channel; closed with this, and when this cannot be made.
        timeout: seconds a command has, unless it says otherwise.
        offer: what this client can take.
        minor: the newest minor version to propose. QEMU proposes 0, and so does this.
        dma: the memory the server's DMA_READ and DMA_WRITE reach; None refuses them. May be set later.
        pump: for a channel whose other end lives on this thread: ``pump(seconds)`` lets the other end work for up to
            that long and returns how much time passed, in its own time.

    Attributes:
        agreement: what was negotiated.
        server_version: the server's side of that in its own words, those nobody knows included.
        read: ``read(region, offset, size) -> int``: REGION_READ of 1, 2, 4 or 8 bytes.
        write: ``write(region, offset, size, value)``: REGION_WRITE of 1, 2, 4 or 8 bytes, waiting until it is done.
        post: ``post(region, offset, size, value)``: the same without waiting for it, nor hearing whether it failed.
        statistics: counts.

    Raises:
        VersionError: the server's version or capabilities cannot be used.
        CommandError: the server refused the version.
        CommandTimeoutError, ConnectionClosedError: the server did not answer, or hung up.

    ``read``, ``write`` and ``post`` raise what ``PendingReply.result`` does.

    Ownership: ``close`` it, or use it in a ``with`` statement.

    Threading: one thread at a time.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        timeout: float = _TIMEOUT,
        offer: Capabilities = OFFER,
        minor: int = 0,
        dma: DmaTarget | None = None,
        pump: Callable[[float], float] | None = None,
    ) -> None:
        self.dma = dma
        self.offer = offer
        self.statistics = ConnectionStatistics()
        self._channel = channel
        self._pump = pump
        self._frames = FrameBuffer(offer.max_data_xfer_size + ACCESS_MESSAGE.size)
        self._view = memoryview(self._frames.buffer)
        self._pending: dict[int, PendingReply] = {}
        self._abandoned: set[int] = set()
        self._ids = itertools.cycle(range(1 << 16))
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self._unsent = 0
        self._failure: VfioUserError | None = None
        self._poll = select.poll()
        if isinstance(channel, socket.socket):
            channel.setblocking(True)
            self._poll.register(channel, select.POLLIN)
        self.timeout = timeout
        self.read, self.write, self.post = access_path(
            self, self._frames, channel, self._ids, (self._pending, self._outbox, self._abandoned), pump
        )
        try:
            proposed = offer if carries_fds(channel) else replace(offer, max_msg_fds=0)
            self.agreement = self._negotiate(propose(proposed, minor=minor))
        except BaseException:
            self.close()
            raise

    def _negotiate(self, proposal: VersionMessage) -> Agreement:
        reply = self.request(Command.VERSION, proposal.encode(), max_payload=_MAX_VERSION_REPLY)
        self.server_version = VersionMessage.decode(reply.payload)
        return conclude(proposal, self.server_version)

    @property
    def carries_fds(self) -> bool:
        """Descriptors can be sent over it: it is a UNIX socket, or within this process."""
        return carries_fds(self._channel)

    @property
    def timeout(self) -> float:
        """Seconds a command has, unless it says otherwise."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        if not 0 < seconds <= _LONGEST_POLL:
            raise ValueError(f"a timeout of {seconds} seconds; a server gets more than 0, and at most a day")
        self._timeout = seconds
        if isinstance(self._channel, socket.socket) and self._channel.fileno() >= 0:
            # The wait for a reply is the receive call itself: polling first would cost another system call.
            whole, fraction = divmod(seconds, 1)
            limit = struct.pack("@ll", int(whole), max(1, int(fraction * 1e6)))
            self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    # Commands.

    def request(
        self,
        command: int,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        max_payload: int = 0,
        max_fds: int = 0,
        timeout: float | None = None,
        request: str = "",
    ) -> Reply:
        """Sends a command and waits for its reply; see ``submit`` and ``PendingReply.result``."""
        pending = self.submit(command, payload, fds=fds, max_payload=max_payload, max_fds=max_fds, request=request)
        return pending.result(timeout)

    def submit(
        self,
        command: int,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        max_payload: int = 0,
        max_fds: int = 0,
        request: str = "",
    ) -> PendingReply:
        """Sends a command and does not wait; several may be under way.

        Args:
            command: its number.
            payload: what follows the header.
            fds: descriptors that go along; they stay the caller's, who may close them at once.
            max_payload: bytes the reply's payload may have; more is an error of the server's.
            max_fds: descriptors the reply may bring.
            request: the command in words, for errors.

        Raises:
            ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        message_id = self.fresh_id()
        pending = self.expect(message_id, command, request or command_name(command), max_payload, max_fds)
        self._send(command_header(message_id, command, len(payload)) + payload, fds)
        return pending

    def send_posted(self, command: int, payload: bytes) -> None:
        """Sends a command that is never answered; waits only until it has gone.

        Raises:
            CommandTimeoutError: the server does not read.
            ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        self._send(command_header(self.fresh_id(), command, len(payload), no_reply=True) + payload)
        self.drain()
        if self._pump is not None:
            self._pump(0.0)

    # What the access path needs of the rest.

    def check_open(self) -> None:
        """Raises ConnectionClosedError when the connection has ended."""
        if self._failure is not None:
            raise ConnectionClosedError(f"the connection has ended: {self._failure}") from self._failure

    def fresh_id(self) -> int:
        """An id no reply can come for yet.

        Raises:
            ConnectionClosedError: every id waits for a reply; the connection is ended.
        """
        if len(self._pending) + len(self._abandoned) >= 1 << 16:
            self._lost(ConnectionClosedError("65536 commands have had no reply: there is no id left for another"))
        return next(number for number in self._ids if number not in self._pending and number not in self._abandoned)

    def expect(self, message_id: int, command: int, request: str, max_payload: int, max_fds: int = 0) -> PendingReply:
        """A reply is to come."""
        pending = PendingReply(self, message_id, command, request, max_payload, max_fds)
        self._pending[message_id] = pending
        return pending

    def received(self, count: int, ancdata: list[tuple[int, int, bytes]], flags: int) -> None:
        """Handles what came: replies go where they are waited for, commands are carried out.

        Raises:
            RemoteProtocolError, ConnectionClosedError: the connection has ended.
        """
        try:
            fds = ancillary_fds(ancdata, flags)
            if not count:
                close_fds(fds)
                raise ConnectionClosedError("the server closed the connection")
            self._frames.received(count, fds)
            self._dispatch()
        except (ProtocolError, ConnectionClosedError) as exc:
            self._lost(exc)

    def keep(self, message: bytes, sent: int, fds: Sequence[int] = ()) -> None:
        """Keeps what the server has no room for; it goes when it reads again."""
        rest = memoryview(message)[sent:]
        self._outbox.append((rest, [] if sent else [os.dup(fd) for fd in fds]))
        self._unsent += len(rest)

    def wait_for(self, pending: PendingReply, timeout: float | None = None, passed: float = 0.0) -> None:
        """Works until that reply has come, or fails it when its time is over: ``timeout``, of which some has passed."""
        given = self._timeout if timeout is None else timeout
        left = given - passed
        while not pending.is_done:
            try:
                # One look even when no time is left: what has come by now has come in time.
                left -= self._turn(max(left, 0.0))
            except BaseException:
                # Ctrl-C, or the device's own failure in a test: nobody will take that reply any more.
                self._abandon(pending)
                raise
            if left <= 0 and not pending.is_done:
                self._abandon(pending)
                pending.fail(
                    CommandTimeoutError(f"the server did not answer {pending.request} within {given:g} seconds")
                )

    def _abandon(self, pending: PendingReply) -> None:
        """A reply may still come, and is to be dropped."""
        if self._pending.pop(pending.message_id, None) is not None:
            self._abandoned.add(pending.message_id)

    def drain(self) -> None:
        """Works until everything has been sent.

        Raises:
            CommandTimeoutError: the server does not read.
            ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        left = self._timeout
        while self._outbox:
            if left <= 0:
                raise CommandTimeoutError(
                    f"the server has not read for {self._timeout:g} seconds; {self._unsent} bytes wait to be sent"
                )
            left -= self._turn(left)

    # Waiting.

    def process(self, timeout: float = 0.0) -> None:
        """Carries out what the server asks for, waiting up to ``timeout`` seconds for something to come.

        Raises:
            RemoteProtocolError, ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        self._turn(timeout)

    def serve(self) -> bool:
        """Handles what has come already; waits for nothing, and lets nobody else work.

        This is what the other end of a connection within one thread calls, while it waits for this one.

        Returns:
            Something had come.

        Raises:
            RemoteProtocolError, ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        self._flush()
        return self._receive()

    def wait_readable(self, fd: int, timeout: float | None = None) -> bool:
        """Waits until ``fd`` - an eventfd of an interrupt - is readable, carrying out what the server asks for.

        Args:
            fd: any descriptor that can be polled.
            timeout: seconds; None for the connection's.

        Returns:
            It is; False when the time is over.

        Raises:
            RemoteProtocolError, ConnectionClosedError: the connection has ended, and ``fd`` is not readable.
        """
        left = self._timeout if timeout is None else timeout
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(0):
            # One look at the server even with no time: an interrupt may be the next thing it does.
            self.check_open()
            left -= self._turn(max(left, 0.0), fd)
            if left <= 0:
                return bool(poll.poll(0))
        return True

    def fileno(self) -> int:
        """Readable when ``process`` has something to do."""
        return self._channel.fileno()

    def _turn(self, timeout: float, fd: int | None = None) -> float:
        """Sends and receives what can be; if there is nothing, waits for it, or for ``fd``.

        Returns:
            Seconds that passed.
        """
        started = time.monotonic()
        self._flush()
        if self._receive():
            # A server that never stops talking must not stop the clock.
            return time.monotonic() - started if self._pump is None else 0.0
        if self._pump is not None:
            passed = self._pump(timeout)
            self._flush()
            self._receive()
            return passed
        events = select.POLLIN if self._unsent < _MAX_UNSENT else 0
        if self._outbox:
            events |= select.POLLOUT
        self._poll.modify(self._channel.fileno(), events)
        if fd is not None:
            self._poll.register(fd, select.POLLIN)
        try:
            self._poll.poll(min(timeout, _LONGEST_POLL) * 1000)
        finally:
            if fd is not None:
                self._poll.unregister(fd)
        self._flush()
        self._receive()
        return time.monotonic() - started

    # Bytes.

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one whole message with one system call, or keeps what the server has no room for."""
        try:
            sent = 0 if self._outbox else send_some(self._channel, [message], fds)
        except ConnectionClosedError as exc:
            self._lost(exc)
        if sent < len(message):
            self.keep(message, sent, fds)

    def _flush(self) -> None:
        while self._outbox:
            view, fds = self._outbox[0]
            try:
                sent = send_some(self._channel, [view], fds)
            except ConnectionClosedError as exc:
                self._lost(exc)
            if not sent:
                return
            self._unsent -= sent
            close_fds(fds)
            if sent < len(view):
                self._outbox[0] = (view[sent:], [])
            else:
                self._outbox.popleft()

    def _receive(self) -> bool:
        """Takes what the server has sent, without waiting, and handles it; False if there was nothing."""
        if self._frames.end:
            self._resume()
        if self._unsent >= _MAX_UNSENT:
            return False
        try:
            count, ancdata, flags, _ = self._channel.recvmsg_into(
                [self._view[self._frames.end :]], ANCILLARY_SIZE, _POLL
            )
        except BlockingIOError:
            return False
        except OSError as exc:
            self._lost(ConnectionClosedError(f"the connection broke: {exc.strerror}"))
        self.received(count, ancdata, flags)
        return True

    # Messages.

    def _resume(self) -> None:
        """Goes on with messages that were left because too much waited to be sent."""
        try:
            self._dispatch()
        except (ProtocolError, ConnectionClosedError) as exc:
            self._lost(exc)

    def _dispatch(self) -> None:
        frames = self._frames
        # What a server asks for and does not read is not made any longer: a thousand requests fit in a few kilobytes,
        # their answers in a gigabyte.
        while self._unsent < _MAX_UNSENT and (header := frames.next_message()) is not None:
            began = frames.start + HEADER_SIZE
            payload = bytes(self._view[began : began - HEADER_SIZE + header.message_size])
            fds = frames.take_fds()
            frames.consume(header.message_size)
            try:
                self._handle(header, payload, fds)
            finally:
                close_fds(fds)
        frames.compact()

    def _handle(self, header: Header, payload: bytes, fds: list[int]) -> None:
        pending = self._pending.get(header.message_id)
        # rust-vmm's server, before 2026-04-21, sent its error replies as commands with the error flag.
        disguised = header.is_command and header.is_error and not payload and pending is not None
        if header.is_reply or disguised:
            if pending is None:
                self._abandoned.discard(header.message_id)
                self.statistics.dropped_replies += 1
                log.debug("dropped a reply nobody waits for: %s", header)
                return
            del self._pending[header.message_id]
            pending.complete(header, payload, fds)
        elif header.is_command:
            self._serve(header, payload, fds)
        else:
            raise FramingError(f"the header's type is neither command nor reply: flags {header.flags:#x}")

    def _serve(self, header: Header, payload: bytes, fds: list[int]) -> None:
        """Carries out a command of the server's."""
        message = answer(header, payload, fds, self.dma, self.offer.max_data_xfer_size)
        if Header.decode(message).is_error:
            self.statistics.refused += 1
        else:
            self.statistics.served += 1
        if not header.no_reply:
            self._send(message)

    # The end.

    @property
    def is_closed(self) -> bool:
        """No command can be sent any more."""
        return self._failure is not None

    def _lost(self, exc: VfioUserError) -> NoReturn:
        self._end(exc)
        raise exc

    def _end(self, exc: VfioUserError) -> None:
        if self._failure is not None:
            return
        self._failure = exc
        for pending in self._pending.values():
            failure = ConnectionClosedError(f"the connection ended before {pending.request} was answered: {exc}")
            failure.__cause__ = exc
            pending.fail(failure)
        self._pending.clear()
        for _, fds in self._outbox:
            close_fds(fds)
        self._outbox.clear()
        self._unsent = 0
        self._frames.close()
        self._channel.close()

    def close(self) -> None:
        """Closes the connection; what is pending fails. Idempotent."""
        self._end(ConnectionClosedError("it was closed by this program"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
