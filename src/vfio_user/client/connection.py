"""A client's connection to one device: sends commands, matches replies to them, serves the server's own commands.

Theory of operation
-------------------

``pending`` knows which commands are under way, ``stream`` moves the bytes, ``server_commands`` carries out what the
server asks for; here is what binds them together, and waits.

Whenever this end waits - for a reply, for room to send, for an interrupt - it also carries out what the server asks
for: DMA_READ and DMA_WRITE, from the memory it was given. A server may need those before it can answer, and a client
that does not look would wait for ever. They come over the same stream, or over a second one, the *twin socket*, where
this end proposed it and the server has it: then neither direction ever stands in the other's way.

Nothing the server sends is trusted. A reply that is wrong in itself raises RemoteProtocolError where it was waited for,
and the connection goes on; a stream that cannot be cut into messages any more ends it. Descriptors nobody asked for are
closed, and so are those of replies that are refused.

Spec: "Header", "VFIO_USER_VERSION", "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

from vfio_user.client.access_path import access_path
from vfio_user.client.negotiation import MAX_VERSION_REPLY, OFFER, proposal, settle
from vfio_user.client.pending import PendingReplies, PendingReply, Reply
from vfio_user.client.server_commands import DmaTarget, ServerCommands
from vfio_user.client.stream import MessageStream
from vfio_user.errors import (
    CommandTimeoutError,
    ConnectionClosedError,
    FramingError,
    LocalProtocolError,
    ProtocolError,
    VfioUserError,
)
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header, command_header, command_name
from vfio_user.protocol.region import ACCESS_MESSAGE
from vfio_user.protocol.version import Capabilities, VersionMessage
from vfio_user.transport.channel import Channel, carries_fds

__all__ = ["Connection"]

log = logging.getLogger("vfio_user.client")

#: Seconds a server has for an answer; QEMU's default.
_TIMEOUT = 5.0

#: Seconds to sleep at once; poll(2) counts milliseconds in a C int.
_LONGEST_POLL = 86400.0


class Connection:
    """See the module. Negotiates the version when it is made.

    Args:
        channel: a connected socket, or another channel; closed with this, and when this cannot be made.
        timeout: seconds a command has, unless it says otherwise.
        offer: what this client can take; with ``twin_socket`` one is proposed. Accesses take twice as long then: this
            end, having one thread, has to look at two sockets.
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
        has_twin: the server's commands come over a socket of their own.

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
        self.offer = offer
        self._commands = ServerCommands(dma, offer.max_data_xfer_size)
        self.statistics = self._commands.statistics
        self._channel = channel
        self._pump = pump
        self._stream = MessageStream(channel, offer.max_data_xfer_size + ACCESS_MESSAGE.size, self._handle)
        self._twin: MessageStream | None = None
        self._pending = PendingReplies(self)
        self._failure: VfioUserError | None = None
        self._poll = select.poll()
        if isinstance(channel, socket.socket):
            channel.setblocking(True)
            self._poll.register(channel, select.POLLIN)
        self.timeout = timeout
        try:
            self._negotiate(proposal(offer, channel, minor=minor))
        except BaseException:
            self.close()
            raise
        under_way = (self._pending.waiting, self._stream.outbox, self._pending.abandoned)
        self.read, self.write, self.post = access_path(
            self, self._stream.frames, channel, self._pending.ids, under_way, pump, waits=self.has_twin
        )

    def _negotiate(self, request: VersionMessage) -> None:
        reply = self.request(
            Command.VERSION,
            request.encode(),
            max_payload=MAX_VERSION_REPLY,
            max_fds=int("twin_socket" in (request.capabilities or {})),
        )
        self.agreement, self.server_version, twin = settle(request, reply)
        if twin is not None:
            self._twin = MessageStream(twin, self._stream.frames.max_message_size, self._handle_twin)
            self._poll.register(twin, select.POLLIN)

    @property
    def dma(self) -> DmaTarget | None:
        """The memory the server's commands reach; None refuses them."""
        return self._commands.dma

    @dma.setter
    def dma(self, dma: DmaTarget | None) -> None:
        self._commands.dma = dma

    @property
    def has_twin(self) -> bool:
        """See the class."""
        return self._twin is not None

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
            LocalProtocolError: there are descriptors, and the connection carries none. Nothing has been sent.
        """
        self.check_open()
        if fds and not self.carries_fds:
            raise LocalProtocolError(
                f"{request or command_name(command)} goes with {len(fds)} file descriptors, which only UNIX sockets "
                "carry. Connect by unix:PATH, or do without: DMA by messages, no mapped memory, no eventfds"
            )
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
        try:
            return self._pending.fresh_id()
        except ConnectionClosedError as exc:
            self._lost(exc)

    def expect(self, message_id: int, command: int, request: str, max_payload: int, max_fds: int = 0) -> PendingReply:
        """A reply is to come."""
        return self._pending.expect(message_id, command, request, max_payload, max_fds)

    def received(self, count: int, ancdata: list[tuple[int, int, bytes]], flags: int) -> None:
        """Handles what came: replies go where they are waited for, commands are carried out.

        Raises:
            RemoteProtocolError, ConnectionClosedError: the connection has ended.
        """
        try:
            self._stream.received(count, ancdata, flags)
        except (ProtocolError, ConnectionClosedError) as exc:
            self._lost(exc)

    def keep(self, message: bytes, sent: int) -> None:
        """Keeps what the server has no room for; it goes when it reads again."""
        self._stream.keep(message, sent)

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
                self._pending.abandon(pending)
                raise
            if left <= 0 and not pending.is_done:
                self._pending.abandon(pending)
                pending.fail(
                    CommandTimeoutError(f"the server did not answer {pending.request} within {given:g} seconds")
                )

    def drain(self) -> None:
        """Works until everything has been sent.

        Raises:
            CommandTimeoutError: the server does not read.
            ConnectionClosedError: the connection has ended.
        """
        self.check_open()
        left = self._timeout
        while self._stream.outbox:
            if left <= 0:
                raise CommandTimeoutError(
                    f"the server has not read for {self._timeout:g} seconds; {self._stream.unsent} bytes wait"
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
        for stream in self._streams():
            self._poll.modify(stream.channel.fileno(), stream.events)
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

    # Bytes, and messages.

    def _streams(self) -> tuple[MessageStream, ...]:
        return (self._stream,) if self._twin is None else (self._stream, self._twin)

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            self._stream.send(message, fds)
        except ConnectionClosedError as exc:
            self._lost(exc)

    def _flush(self) -> None:
        try:
            for stream in self._streams():
                stream.flush()
        except ConnectionClosedError as exc:
            self._lost(exc)

    def _receive(self) -> bool:
        """Takes what the server has sent, without waiting, and handles it; False if there was nothing."""
        try:
            came = self._stream.receive()
            return came if self._twin is None else self._twin.receive() or came
        except (ProtocolError, ConnectionClosedError) as exc:
            self._lost(exc)

    def _handle(self, header: Header, payload: bytes, fds: list[int]) -> None:
        if self._pending.takes(header, payload):
            if not self._pending.reply_came(header, payload, fds):
                self.statistics.dropped_replies += 1
                log.debug("dropped a reply nobody waits for: %s", header)
        elif header.is_command:
            self._serve(self._stream, header, payload, fds)
        else:
            raise FramingError(f"the header's type is neither command nor reply: flags {header.flags:#x}")

    def _handle_twin(self, header: Header, payload: bytes, fds: list[int]) -> None:
        if not header.is_command:
            raise FramingError(f"over the twin socket come commands alone, and this is none: {header}")
        assert self._twin is not None
        self._serve(self._twin, header, payload, fds)

    def _serve(self, stream: MessageStream, header: Header, payload: bytes, fds: list[int]) -> None:
        """Carries out a command of the server's; the reply goes where it came from."""
        message = self._commands.carry_out(header, payload, fds)
        if message is not None:
            stream.send(message)

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
        self._pending.fail_all(exc)
        for stream in self._streams():
            stream.close()

    def close(self) -> None:
        """Closes the connection; what is pending fails. Idempotent."""
        self._end(ConnectionClosedError("it was closed by this program"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
