"""One client's connection to one device: receives messages, has them carried out in order, sends the replies.

What drivers do all day, register accesses, is carried out by ``server.message_path``; this module has the rest: the
shell that receives, and the ordinary way of every other message, with every check and every errno.

A client that does not read its replies is not read from either: ``_outbox`` holds the rest of one reply, and nothing
more is taken from the client until that has gone.

With an ``Observer`` every message goes the ordinary way; without one, observing costs nothing.
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, Protocol

from vfio_user.errors import (
    ConnectionClosedError,
    DeviceError,
    DmaNotMapped,
    FramingError,
    RemoteProtocolError,
    VersionError,
)
from vfio_user.protocol.constants import DEFAULT_PAGE_SIZES, HEADER_SIZE, Command, RegionIndex
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, command_name, error_reply, reply_header
from vfio_user.protocol.region import ACCESS_MESSAGE
from vfio_user.protocol.version import Agreement, Capabilities
from vfio_user.server.commands import COMMANDS, Limits, Reply, placeholder_reply
from vfio_user.server.message_dma import ClientMemory
from vfio_user.server.message_path import message_path
from vfio_user.server.quiesce import MAY_NEED_QUIET, Quiescence
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, carries_fds, send_some

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.loop import EventLoop

__all__ = ["OFFER", "Observer", "Session", "SessionStatistics"]

log = logging.getLogger("vfio_user.server")

#: What a server here can take. 16 descriptors a message is QEMU's limit for this number.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True, twin_socket=True)

#: Problems of one session that are logged as warnings; the rest are for debugging, as a bad client could fill a disk.
_MAX_WARNINGS = 20

# Plain integers: the socket module's flags are enumerations, whose operators take longer than a system call.
_POLL = RECEIVE_FLAGS | int(socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)


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
        dropped_errors: commands that failed and wanted no reply.
        errors: error replies sent.
    """

    __slots__ = ("dropped_errors", "errors")

    def __init__(self) -> None:
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
        client_memory: the client's memory, by messages.
        quiescence: keeps commands back until the device is quiet.
        on_pending: called when something is to be served though nothing was received: call ``serve``.
        on_wait: makes the client work that a device waits for, where it lives on this thread; says whether it did.
        offer: what this server can take; no descriptors where the channel carries none.
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
        # QEMU reads a ROM with one message, and not at all if that is more than it was told a message may carry.
        largest = max(OFFER.max_data_xfer_size, device.region(RegionIndex.ROM).size)
        self.offer = replace(OFFER, max_data_xfer_size=largest)
        if device.migration_protocol == "v1":
            self.offer = replace(self.offer, migration_pgsize=DEFAULT_PAGE_SIZES)
        if not carries_fds(channel):
            self.offer = replace(self.offer, max_msg_fds=0, twin_socket=False)
        self.agreement: Agreement | None = None
        self.statistics = SessionStatistics()
        self._receptions = 0
        #: The client takes no notice of errors and waits for a full reply: see ``commands.placeholder_reply``.
        self.ignores_errors = False
        self._channel = channel
        self._observer = observer
        self._strict = strict
        self._frames = FrameBuffer(self.offer.max_data_xfer_size + ACCESS_MESSAGE.size)
        self._whole_buffer = [memoryview(self._frames.buffer)]
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self.client_memory = ClientMemory(self, self._frames)
        self.quiescence = Quiescence(self)
        self.on_pending: Callable[[], None] | None = None
        self.on_wait: Callable[[], bool] | None = None
        self._warnings = 0
        self._closed = False
        #: Register accesses are refused now, as the device's state is being saved.
        self.is_restricted = False
        #: Carries out what was received: until a version is agreed on, and with an observer, all of it ordinarily.
        self._consume: Callable[[int], bool] = self.consume_ordinarily
        self._consume_otherwise: Callable[[int], bool] = self.consume_ordinarily

    @property
    def thread_id(self) -> int | None:
        """The thread it runs on; for the watchdog."""
        return self.device.loop.thread_id

    @property
    def turns(self) -> int:
        """Goes up with everything its thread begins: receptions, and the loop's timers and calls; for the watchdog."""
        return self._receptions + self.device.loop.turns

    # The shell.

    @property
    def wants_to_write(self) -> bool:
        """Part of a reply waits until the client reads; nothing is taken from it before that."""
        return bool(self._outbox)

    def fileno(self) -> int:
        """The connection's descriptor; -1 when it has none."""
        return self._channel.fileno()

    def serve(self) -> bool:
        """Flushes or receives, whichever is due. While device code waits for DMA, the end of the connection waits, too.

        Returns:
            Something was there.
        """
        memory = self.client_memory
        if memory.ended is not None:
            if memory.depth:
                return False
            raise memory.ended
        try:
            if self._outbox:
                self.flush()
                return not self._outbox
            return self.receive()
        except ConnectionClosedError as exc:
            if not memory.depth:
                raise
            memory.ended = exc
            return True

    @property
    def is_held_back(self) -> bool:
        """Nothing more of the client's is carried out now: it must read first, or the device is to be quiet."""
        return bool(self._outbox) or self.quiescence.is_waiting

    @property
    def is_full(self) -> bool:
        """So much waits for the device to be quiet that nothing more is received."""
        return self.quiescence.is_waiting and not self.quiescence.is_due and self.client_memory.is_full

    def resume_soon(self) -> None:
        """Something was left undone by device code that waited."""
        if self.on_pending is not None:
            self.device.loop.call_soon(self.on_pending)

    def go_on_soon(self) -> None:
        """The device is quiet: what was kept back is carried out."""
        if not self._closed and self.on_pending is not None:
            self.on_pending()

    def let_client_work(self) -> bool:
        """Makes a client on this thread do something; False when there is none, or it had nothing to do."""
        return self.on_wait is not None and self.on_wait()

    def receive(self) -> bool:
        """Takes what the client has sent, without waiting, and carries it out; see the class for what it raises.

        Returns:
            Something was there.
        """
        if self._outbox or self.is_full:
            return False
        if self.quiescence.is_due:
            self._finish_quiet()
            return True
        try:
            count, ancdata, flags, _ = self._channel.recvmsg_into(self._room(), ANCILLARY_SIZE, _POLL)
        except BlockingIOError:
            memory = self.client_memory
            if not memory.depth:
                memory.carry_out_held()
            return False
        except OSError as exc:
            raise ConnectionClosedError(f"the connection broke: {exc.strerror}") from exc
        self._received(count, ancdata, flags)
        return True

    def _finish_quiet(self) -> None:
        """Carries out the command that was kept back, and what came after it."""
        try:
            self.quiescence.finish()
        finally:
            self.device.end_quiet()  # also where its time was over, and it was not carried out
        self._go_on(0)

    def receive_blocking(self, loop: EventLoop) -> None:
        """Receives and carries out while nothing else is to be waited for, in one system call a reception.

        The channel must be a socket with a receive timeout (SO_RCVTIMEO): when it passes, the loop is asked again. See
        the class for what it raises.
        """
        receive = self._channel.recvmsg_into
        memory = self.client_memory
        memory.in_reception = True
        room = self._room()
        whole = self._whole_buffer
        while loop.is_simple and not self._outbox:
            try:
                count, ancdata, flags, _ = receive(room, ANCILLARY_SIZE, RECEIVE_FLAGS)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise ConnectionClosedError(f"the connection broke: {exc.strerror}") from exc
            if count and not ancdata and not flags & _CTRUNC:
                self._receptions += 1
                memory.client_waits = True
                room = whole if self._consume(count) else self._room()
                memory.client_waits = False
            else:
                self._received(count, ancdata, flags)
                memory.in_reception = True
                room = self._room()
        memory.in_reception = False

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
        self._go_on(0)

    def close(self) -> None:
        """Closes the connection, and every descriptor that came over it and nobody took. Idempotent."""
        if not self._closed:
            self._closed = True
            self._outbox.clear()
            self.quiescence.close()
            self.client_memory.close()
            if self.device.dma.messenger is self.client_memory:
                self.device.dma.messenger = None
            self._frames.close()
            self._channel.close()
            if self._observer is not None:
                self._observer.closed()

    def _room(self) -> list[memoryview]:
        """Where the next reception goes."""
        end = self._frames.end
        return [self._whole_buffer[0][end:]] if end else self._whole_buffer

    def _received(self, count: int, ancdata: list[tuple[int, int, bytes]], flags: int) -> None:
        self._receptions += 1
        frames = self._frames
        try:
            fds = ancillary_fds(ancdata, flags)
        except FramingError as exc:
            frames.end += count
            self._send_away(frames.peek_header(), exc)
        if not count:
            close_fds(fds)
            raise ConnectionClosedError("the client closed the connection")
        if fds:
            try:
                frames.received(count, fds)
            except FramingError as exc:
                self._send_away(frames.peek_header(), exc)
            count = 0
        self._go_on(count, ordinarily=bool(fds))

    def _go_on(self, count: int, *, ordinarily: bool = False) -> None:
        """Carries out what can be, ``count`` more bytes having come; or while device code waits, leaves that to it."""
        memory = self.client_memory
        if memory.depth or self.quiescence.is_waiting:
            self._frames.end += count
            memory.hold()
            return
        memory.client_waits = memory.in_reception = True
        try:
            if memory.held:
                # What came counts first: device code may wait for DMA in there, and then more is received behind it.
                self._frames.end += count
                count = 0
                if not memory.carry_out_held():
                    return
            if ordinarily:
                self.consume_ordinarily(count)
            else:
                self._consume(count)
        finally:
            memory.client_waits = memory.in_reception = False

    # The ordinary way.

    def consume_ordinarily(self, count: int) -> bool:
        """Carries out every message that is whole, ``count`` bytes having come; see ``message_path``."""
        self._frames.end += count
        while not self.is_held_back and self.consume_one():
            pass
        self._frames.compact()
        return not self._frames.end and not self.is_held_back

    def consume_one(self) -> bool:
        """Carries out the next message, whatever it is.

        Returns:
            There was a whole one.
        """
        taken = self.next_message()
        if taken is None:
            return False
        header, payload, fds = taken
        try:
            self.carry_out(header, payload, fds)
        finally:
            close_fds(fds)
        memory = self.client_memory
        if memory.held or memory.ended is not None:
            memory.carry_out_held()
        return True

    def next_message(self) -> tuple[Header, bytes, list[int]] | None:
        """Takes the next message out of the buffer, if it is whole: its header, payload and descriptors.

        Ownership: the descriptors are the caller's.
        """
        frames = self._frames
        try:
            header = frames.next_message()
        except FramingError as exc:
            self._send_away(frames.peek_header(), exc)
        if header is None:
            return None
        began = frames.start + HEADER_SIZE
        payload = bytes(memoryview(frames.buffer)[began : began - HEADER_SIZE + header.message_size])
        fds = frames.take_fds()
        frames.consume(header.message_size)
        return header, payload, fds

    def carry_out(self, header: Header, payload: bytes, fds: list[int]) -> None:
        """Carries out one message, and replies if a reply is wanted.

        Ownership: descriptors left in ``fds`` are the caller's to close.
        """
        observer = self._observer
        if observer is not None:
            observer.command(header, payload, len(fds))
        if header.is_reply:
            self.reply_came(header, payload)
        else:
            self.answer(header, payload, fds, time.monotonic())

    def answer(
        self, header: Header, payload: bytes, fds: list[int], began: float, *, failure: Exception | None = None
    ) -> None:
        """Carries out one command, and replies if a reply is wanted; unless it is kept back.

        Args:
            header: the command's.
            payload: what follows it.
            fds: what came along; see ``carry_out``.
            began: when it came.
            failure: why it is not carried out after all.
        """
        observer = self._observer
        fatal: RemoteProtocolError | None = None
        memory = self.client_memory
        before = memory.client_waits
        memory.client_waits = not memory.goes_on(header)
        try:
            if failure is not None:
                raise failure
            reply = self._execute(header, payload, fds, began)
            if reply is None:
                return
            message = reply_header(header.message_id, header.command, len(reply.payload)) + reply.payload
            reply_fds = reply.fds
        except (FramingError, VersionError) as exc:
            fatal = exc
            message, reply_fds = error_reply(header.message_id, header.command, exc.errno_hint), ()
            self.statistics.errors += 1
        except Exception as exc:
            refusal = self.failure(header, exc, payload)
            if refusal is None:
                return
            message, reply_fds = refusal, ()
        finally:
            memory.client_waits = before
        if not header.no_reply or fatal is not None:
            if observer is not None:
                observer.reply(Header.decode(message), message[HEADER_SIZE:], len(reply_fds), time.monotonic() - began)
            self.send(message, reply_fds)
        if fatal is not None:
            raise ConnectionClosedError(f"the client was sent away: {fatal}") from fatal

    def reply_came(self, header: Header, payload: bytes) -> None:
        """The client replied to something; to what, its id says."""
        if not self.client_memory.deliver(header, payload):
            # There is nothing this could answer, any more or ever. Answering it could go on for ever.
            self._warn("dropped a reply to nothing: %s", header)

    def agreed(self, agreement: Agreement) -> tuple[int, ...]:
        """The version is negotiated: from now on, commands are carried out.

        Returns:
            Descriptors for the reply: the client's end of the twin socket, if that was agreed on.
        """
        if not self.offer.max_msg_fds:
            # Whatever the client says it takes: nothing can bring it a descriptor.
            agreement = replace(agreement, client=replace(agreement.client, max_msg_fds=0))
        self.agreement = agreement
        self.device.dma.messenger = self.client_memory
        if self._observer is None:
            # Not the migration region: what is written there can be such that other accesses are refused.
            number = min(self.device.num_regions, RegionIndex.MIGRATION)
            regions = [self.device.region(index) for index in range(number)]
            self._consume = message_path(self, self._frames, self._channel, regions)
        return self.client_memory.open_twin() if agreement.server.twin_socket else ()

    @property
    def limits(self) -> Limits:
        """How much one message may carry; once the version is negotiated."""
        assert self.agreement is not None
        client, server = self.agreement.client, self.agreement.server
        page_size = server.migration_pgsize or DEFAULT_PAGE_SIZES
        return Limits(client.max_data_xfer_size, self.offer.max_data_xfer_size, page_size)

    def restrict(self, restricted: bool) -> None:
        """Says whether register accesses are refused from now on: then all messages go the ordinary way, to be told."""
        if restricted != self.is_restricted:
            self.is_restricted = restricted
            self._consume, self._consume_otherwise = self._consume_otherwise, self._consume

    def _execute(self, header: Header, payload: bytes, fds: list[int], began: float) -> Reply | None:
        """Checks what any command must be, and has it carried out; None when it is kept back."""
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
        if not payload and header.command not in (Command.DEVICE_RESET, Command.VERSION):
            raise RemoteProtocolError(f"{command_name(header.command)} came without its payload")
        if self.device.migration is not None:
            self.device.migration.check_command(header.command, payload)
        if header.command in MAY_NEED_QUIET and self.quiescence.keeps(header, payload, fds, began):
            return None
        try:
            return command(self, payload, fds)
        finally:
            migration = self.device.migration
            if migration is not None:
                self.restrict(migration.refuses_accesses)
            if self.device.is_quiet:
                self.device.end_quiet()

    def failure(self, header: Header, exc: Exception, payload: bytes | bytearray) -> bytes | None:
        """Logs why a command failed, and returns the reply that says so, if one is wanted."""
        name = command_name(header.command)
        if isinstance(exc, ConnectionClosedError):
            raise exc
        if isinstance(exc, DeviceError):
            error = exc.reply_errno
            if header.command == Command.DMA_UNMAP and isinstance(exc, DmaNotMapped):
                # QEMU clears whole address spaces that way when a guest sets up its IOMMU: nothing is wrong.
                log.debug("%s: %s", self.peer, exc)
            else:
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

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one whole message with one system call, or keeps what the client has no room for."""
        sent = 0 if self._outbox else send_some(self._channel, [message], fds)
        if sent < len(message):
            self.keep(message, sent, fds)

    def keep(self, message: bytes, sent: int, fds: Sequence[int] = ()) -> None:
        """Keeps what the client has no room for; it goes when it reads again."""
        self._outbox.append((memoryview(message)[sent:], () if sent else fds))

    def _send_away(self, header: Header | None, exc: RemoteProtocolError) -> NoReturn:
        """Answers a message that cannot be read on from, and ends the session."""
        self.statistics.errors += 1
        if header is not None:
            self.send(error_reply(header.message_id, header.command, exc.errno_hint))
        raise ConnectionClosedError(f"the client was sent away: {exc}") from exc

    def _warn(self, text: str, *args: object) -> None:
        """Logs what the client did wrong: the first times for people, then for debugging only."""
        self._warnings += 1
        level = logging.WARNING if self._warnings <= _MAX_WARNINGS else logging.DEBUG
        log.log(level, "%s: " + text, self.peer, *args)
        if self._warnings == _MAX_WARNINGS:
            log.warning("%s: further warnings about this client are logged as debug messages", self.peer)
