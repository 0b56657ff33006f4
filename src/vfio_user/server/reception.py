"""The receiving half of a session: takes messages out of the connection, in order, and puts replies into it.

A client that does not read its replies is not read from either: ``_outbox`` holds the rest of one reply, and nothing
more is taken from the client until that has gone.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from vfio_user.errors import ConnectionClosedError, FramingError, RemoteProtocolError
from vfio_user.protocol.constants import HEADER_SIZE
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, error_reply
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, send_some

if TYPE_CHECKING:
    from vfio_user.server.device import Device
    from vfio_user.server.loop import EventLoop
    from vfio_user.server.message_dma import ClientMemory
    from vfio_user.server.quiesce import Quiescence

__all__ = ["Reception", "SessionStatistics"]

# Plain integers: the socket module's flags are enumerations, whose operators take longer than a system call.
_POLL = RECEIVE_FLAGS | int(socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)


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


class Reception(ABC):
    """See the module.

    Args:
        device: the device the client drives.
        channel: the connection; closed with this.
        max_message_size: bytes of the largest message.

    Attributes:
        client_memory: the client's memory, by messages; it holds what comes while device code waits for it.
        quiescence: keeps commands back until the device is quiet.
        on_pending: called when something is to be served though nothing was received: call ``serve``.
        on_wait: makes the client work that a device waits for, where it lives on this thread; says whether it did.
        statistics: counts.

    Raises (from ``receive``, ``receive_blocking`` and ``flush``):
        ConnectionClosedError: the client is gone, or was sent away because of what it sent. ``close`` the session.

    Threading: session thread.
    """

    client_memory: ClientMemory
    quiescence: Quiescence

    def __init__(self, device: Device, channel: Channel, max_message_size: int) -> None:
        self.device = device
        self.statistics = SessionStatistics()
        self.on_pending: Callable[[], None] | None = None
        self.on_wait: Callable[[], bool] | None = None
        self._channel = channel
        self._frames = FrameBuffer(max_message_size)
        self._whole_buffer = [memoryview(self._frames.buffer)]
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._receptions = 0
        self._closed = False
        #: Carries out what was received: until a version is agreed on, and with an observer, all of it ordinarily.
        self._consume: Callable[[int], bool] = self.consume_ordinarily

    @abstractmethod
    def carry_out(self, header: Header, payload: bytes, fds: list[int]) -> None:
        """Carries out one message, and replies if a reply is wanted.

        Ownership: descriptors left in ``fds`` are the caller's to close.
        """

    @property
    def thread_id(self) -> int | None:
        """The thread it runs on; for the watchdog."""
        return self.device.loop.thread_id

    @property
    def turns(self) -> int:
        """Goes up with everything its thread begins: receptions, and the loop's timers and calls; for the watchdog."""
        return self._receptions + self.device.loop.turns

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
        return bool(self._outbox) or self.quiescence.kept is not None

    @property
    def is_full(self) -> bool:
        """So much waits for the device to be quiet that nothing more is received."""
        return self.quiescence.kept is not None and not self.quiescence.is_due and self.client_memory.is_full

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
        if self._outbox:
            return False
        if self.quiescence.kept is not None:
            if self.quiescence.is_due:
                self._finish_quiet()
                return True
            if self.client_memory.is_full:
                return False
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
        """Receives and carries out while no other descriptor is to be waited for, in one system call a reception.

        Between two of them it does what was put off, and while there is a timer, waits no longer than that.
        The channel must be a socket with a receive timeout (SO_RCVTIMEO): when it passes, the loop is asked again. See
        the class for what it raises.
        """
        receive = self._channel.recvmsg_into
        memory = self.client_memory
        memory.in_reception = True
        room = self._room()
        whole = self._whole_buffer
        while not self._outbox:
            how = RECEIVE_FLAGS
            if not loop.is_simple:
                memory.in_reception = False
                if not loop.settle() or self._is_interrupted:
                    break
                memory.in_reception = True
                room = self._room()
                wait = loop.next_timeout()
                if wait is not None:
                    if wait and not loop.wait_for(self._channel.fileno(), wait):
                        continue
                    how = _POLL
            try:
                count, ancdata, flags, _ = receive(room, ANCILLARY_SIZE, how)
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

    @property
    def _is_interrupted(self) -> bool:
        """What was done between two receptions has left something that comes before the next one."""
        memory = self.client_memory
        held = bool(memory.held or memory.ended is not None)
        return held or bool(self._outbox) or self._closed or self.quiescence.kept is not None

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
        if memory.depth or self.quiescence.kept is not None:
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

    # Message by message.

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
