"""A connection on an asyncio event loop: commands are awaited, and the server's own are answered as they come.

``client.connection`` is the same for programs that block; what both do is in ``stream``, ``pending``, ``negotiation``
and ``server_commands``.

Spec: "Header", "VFIO_USER_VERSION", "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Sequence
from typing import Self

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
    StateError,
    VfioUserError,
)
from vfio_user.protocol.constants import Command
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.header import Header, command_header, command_name
from vfio_user.protocol.region import ACCESS_MESSAGE
from vfio_user.protocol.version import Agreement, Capabilities
from vfio_user.transport.channel import carries_fds

__all__ = ["AsyncConnection"]

log = logging.getLogger("vfio_user.client")


class AsyncConnection:
    """One connection. Make it with ``open``.

    Args:
        channel: a connected socket; closed with this.
        timeout: seconds a command has, unless it says otherwise.
        offer: what this client can take. A twin socket costs nothing here.
        dma: the memory the server's DMA_READ and DMA_WRITE reach; None refuses them.

    Attributes:
        agreement: what was negotiated.
        offer: as given.
        timeout: as given; may be changed.
        has_twin: the server's commands come over a socket of their own.

    Ownership: ``close`` it.

    Threading: the event loop's.
    """

    agreement: Agreement

    def __init__(
        self,
        channel: socket.socket,
        *,
        timeout: float = 5.0,
        offer: Capabilities = OFFER,
        dma: DmaTarget | None = None,
    ) -> None:
        channel.setblocking(False)
        self.timeout = timeout
        self.offer = offer
        self.has_twin = False
        self.commands = ServerCommands(dma, offer.max_data_xfer_size)
        self._loop = asyncio.get_running_loop()
        self._pending = PendingReplies(self)
        self._failure: VfioUserError | None = None
        self._size = offer.max_data_xfer_size + ACCESS_MESSAGE.size
        self._stream = MessageStream(channel, self._size, self._handle)
        self._channel = channel
        #: What each stream waits for, as ``select.poll`` has it.
        self._watched: dict[MessageStream, int] = {}
        self._sent = asyncio.Event()
        self._watch(self._stream)

    @classmethod
    async def open(
        cls,
        channel: socket.socket,
        *,
        timeout: float = 5.0,
        offer: Capabilities = OFFER,
        minor: int = 0,
        dma: DmaTarget | None = None,
    ) -> Self:
        """Makes a connection and negotiates the version; see the class, and ``Connection`` for what it raises."""
        connection = cls(channel, timeout=timeout, offer=offer, dma=dma)
        try:
            request = proposal(offer, channel, minor=minor)
            reply = await connection.request(
                Command.VERSION,
                request.encode(),
                max_payload=MAX_VERSION_REPLY,
                max_fds=int("twin_socket" in (request.capabilities or {})),
            )
            connection.agreement, _, twin = settle(request, reply)
            if twin is not None:
                connection._add_twin(twin)
        except BaseException:
            connection.close()
            raise
        return connection

    def _add_twin(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        stream = MessageStream(channel, self._size, lambda *message: self._handle_twin(stream, *message))
        self._watch(stream)
        self.has_twin = True

    @property
    def carries_fds(self) -> bool:
        """Descriptors can be sent over it."""
        return carries_fds(self._channel)

    @property
    def is_closed(self) -> bool:
        """No command can be sent any more."""
        return self._failure is not None

    # Commands.

    async def request(
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
        """Sends a command and waits for its reply; see ``Connection.submit`` and ``PendingReply.result``."""
        what = request or command_name(command)
        if fds and not self.carries_fds:
            raise LocalProtocolError(
                f"{what} goes with {len(fds)} file descriptors, which only UNIX sockets carry. Connect by unix:PATH, "
                "or do without: DMA by messages, no mapped memory, no eventfds"
            )
        self._check_open()
        pending = self._pending.expect(self._fresh_id(), command, what, max_payload, max_fds)
        answered: asyncio.Future[None] = self._loop.create_future()
        pending.on_done = lambda: None if answered.done() else answered.set_result(None)
        self._send(self._stream, command_header(pending.message_id, command, len(payload)) + payload, fds)
        given = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(given):
                await answered
        except BaseException as exc:
            self._pending.abandon(pending)
            if pending.is_done:
                # It came in the very moment this task was cancelled; nobody else will take its descriptors.
                with contextlib.suppress(VfioUserError):
                    close_fds(pending.result().fds)
            if isinstance(exc, TimeoutError):
                raise CommandTimeoutError(f"the server did not answer {what} within {given:g} seconds") from None
            raise
        return pending.result()

    async def send_posted(self, command: int, payload: bytes) -> None:
        """Sends a command that is never answered; waits only while the server does not read.

        Raises:
            CommandTimeoutError: it does not read.
            ConnectionClosedError: the connection has ended.
        """
        self._check_open()
        self._send(self._stream, command_header(self._fresh_id(), command, len(payload), no_reply=True) + payload)
        try:
            async with asyncio.timeout(self.timeout):
                while self._stream.outbox:
                    self._sent.clear()
                    await self._sent.wait()
        except TimeoutError:
            raise CommandTimeoutError(
                f"the server has not read for {self.timeout:g} seconds; {self._stream.unsent} bytes wait"
            ) from None
        self._check_open()

    def wait_for(self, pending: PendingReply, timeout: float | None = None) -> None:
        """Replies are awaited here, not waited for.

        Raises:
            StateError: always.
        """
        raise StateError(f"{pending.request} has no reply yet: await it")

    def _fresh_id(self) -> int:
        try:
            return self._pending.fresh_id()
        except ConnectionClosedError as exc:
            self._end(exc)
            raise

    def _check_open(self) -> None:
        if self._failure is not None:
            raise ConnectionClosedError(f"the connection has ended: {self._failure}") from self._failure

    # Bytes, and messages.

    def _send(self, stream: MessageStream, message: bytes, fds: Sequence[int] = ()) -> None:
        try:
            stream.send(message, fds)
        except ConnectionClosedError as exc:
            self._end(exc)
            raise
        self._watch(stream)

    def _watch(self, stream: MessageStream) -> None:
        """Waits for what that stream waits for now."""
        wanted, fd = stream.events, stream.channel.fileno()
        changed = wanted ^ self._watched.get(stream, 0)
        self._watched[stream] = wanted
        for event, add, remove in (
            (select.POLLIN, self._loop.add_reader, self._loop.remove_reader),
            (select.POLLOUT, self._loop.add_writer, self._loop.remove_writer),
        ):
            if changed & event and wanted & event:
                add(fd, self._ready, stream)
            elif changed & event:
                remove(fd)

    def _ready(self, stream: MessageStream) -> None:
        if self._failure is not None:
            return  # called for both of its events, and the first ended it
        try:
            stream.flush()
            stream.receive()
        except (ProtocolError, ConnectionClosedError) as exc:
            self._end(exc)
            return
        self._watch(stream)
        if not self._stream.outbox:
            self._sent.set()

    def _handle(self, header: Header, payload: bytes, fds: list[int]) -> None:
        if self._pending.takes(header, payload):
            if not self._pending.reply_came(header, payload, fds):
                self.commands.statistics.dropped_replies += 1
                log.debug("dropped a reply nobody waits for: %s", header)
        elif header.is_command:
            self._serve(self._stream, header, payload, fds)
        else:
            raise FramingError(f"the header's type is neither command nor reply: flags {header.flags:#x}")

    def _handle_twin(self, stream: MessageStream, header: Header, payload: bytes, fds: list[int]) -> None:
        if not header.is_command:
            raise FramingError(f"over the twin socket come commands alone, and this is none: {header}")
        self._serve(stream, header, payload, fds)

    def _serve(self, stream: MessageStream, header: Header, payload: bytes, fds: list[int]) -> None:
        message = self.commands.carry_out(header, payload, fds)
        if message is not None:
            stream.send(message)

    # The end.

    def _end(self, exc: VfioUserError) -> None:
        if self._failure is not None:
            return
        self._failure = exc
        for stream in self._watched:
            fd = stream.channel.fileno()
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            stream.close()
        self._watched.clear()
        self._pending.fail_all(exc)
        self._sent.set()

    def close(self) -> None:
        """Closes the connection; what is pending fails. Idempotent."""
        self._end(ConnectionClosedError("it was closed by this program"))
