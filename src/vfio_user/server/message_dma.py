"""DMA by messages: the server asks the client for memory it did not share, with DMA_READ and DMA_WRITE.

Theory of operation
-------------------

The two directions of a connection are independent. A reply of the client's is matched by its id with the command of
ours it answers, wherever among the client's own commands it comes; one that answers nothing (it is late: we gave up) is
dropped by its size.

**While device code waits for a reply, its client is served.** It must be: QEMU answers no DMA message while one of its
processors waits for a register, and before it answers one that reaches the device's own BAR, it accesses that BAR
itself. But a handler that runs in the middle of another is a surprise, so it happens only where it has to. What the
client sends meanwhile is *held*, in the order it came. As long as that is posted writes, nothing happens; they are
carried out when the device's code has returned. As soon as a command is among it that the client waits for, all up to
it is carried out at once. Nothing is lost, and nothing overtakes anything.

**Where waiting would never end, it is refused at once.** While a client waits for the reply to a command, it (QEMU)
answers no DMA message, and that reply goes when the handler returns. So DMA by messages fails with EDEADLK there, for
every client alike. It works in posted writes, and in whatever was put off: ``call_soon``, ``call_later``, ``watch``.

Devices may share a thread, and the processor QEMU waits with may be waiting for another of them. So everything servers
have to do is done meanwhile, for every session of the loop; what devices have put off, is not.

A session whose connection ends while its device waits, ends when the device's code has returned: its device never sees
``on_disconnect`` in the middle of a transfer.

Spec: "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
"""

from __future__ import annotations

import errno
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vfio_user.errors import ConnectionClosedError, DeviceError, RemoteProtocolError, StateError
from vfio_user.protocol.constants import HEADER_SIZE, Command, HeaderFlags
from vfio_user.protocol.dma import DmaRead, DmaReadReply, DmaWrite, DmaWriteReply
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, command_header, command_name
from vfio_user.protocol.region import RegionAccess

if TYPE_CHECKING:
    from vfio_user.protocol.region import MultiWrite
    from vfio_user.server.session import Session
    from vfio_user.server.twin_socket import TwinSocket

__all__ = ["MAX_DEPTH", "MAX_TRANSFER", "REPLY_TIMEOUT", "ClientMemory"]

log = logging.getLogger("vfio_user.server")

#: Bytes of one message, at most. QEMU sends without waiting for room, and takes what it could not send for sent: a
#: reply over 212 KiB wrecks the stream, whatever was agreed on.
MAX_TRANSFER = 64 << 10

#: Seconds a client has to answer one message; as long as QEMU gives a server.
REPLY_TIMEOUT = 5.0

#: Transfers that may wait at once, each in a handler that ran while the one before waited.
MAX_DEPTH = 16

#: Posted writes, and bytes of them, held back at most while a transfer waits. With more, the oldest are carried out in
#: the midst of it.
_MAX_HELD = 4096
_MAX_HELD_BYTES = 4 << 20

#: Descriptors that came with what is held, at most, beside those of one reception: the process has a thousand or so.
_MAX_HELD_FDS = 128

#: Ids of messages given up on, not used again: a reply that comes after all must not be taken for another's.
_MAX_ABANDONED = 1024

_POSTED = (int(Command.REGION_WRITE), int(Command.REGION_WRITE_MULTI))


class _Pending:
    """A command of ours that waits for its reply."""

    __slots__ = ("began", "header", "payload")

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.header: Header | None = None
        self.payload = b""


class ClientMemory:
    """The ``MessageDma`` of one session: the client's memory, by messages.

    Args:
        session: sends the messages, and carries out what the client sends meanwhile.
        frames: the session's receive buffer.

    Attributes:
        client_waits: the code that runs was called for a command whose reply the client waits for.
        in_reception: the session carries out what it received: it goes on when the code that runs has returned.
        is_posted: whether the message path is carrying out a posted write now; ``client_waits`` says nothing then.
        take_posted: where in the buffer that write ends; the message path leaves what follows to the caller.
        posted_rest: what is left of a REGION_WRITE_MULTI, while one of its writes is carried out.
        twin: where commands go, if not over the session's own stream.
        timeout: see ``REPLY_TIMEOUT``.
        depth: transfers that wait for a reply; each but the first began in a handler that ran during another.
        held: commands that came meanwhile and have not been carried out.
        ended: why the session has to end as soon as the device's code has returned.

    Ownership: ``close`` it with the session.

    Threading: session thread.
    """

    def __init__(self, session: Session, frames: FrameBuffer) -> None:
        self.client_waits = False
        self.in_reception = False
        self.is_posted: Callable[[], bool] = lambda: False
        self.take_posted: Callable[[], int] = lambda: -1
        self.posted_rest: Iterator[MultiWrite] | None = None
        self.twin: TwinSocket | None = None
        self.timeout = REPLY_TIMEOUT
        self.ended: ConnectionClosedError | None = None
        self._session = session
        self._frames = frames
        self._pending: dict[int, _Pending] = {}
        self._abandoned: deque[int] = deque(maxlen=_MAX_ABANDONED)
        self._last_id = 0
        self.depth = 0
        self.held: deque[tuple[Header, bytes, list[int]]] = deque()
        self._held_bytes = self._held_fds = 0
        self._urgent = 0
        self._closed = False

    def open_twin(self) -> tuple[int, ...]:
        """Opens the twin socket; returns the client's end. Without (too many open files), the one stream is shared."""
        from vfio_user.server.twin_socket import TwinSocket  # few clients propose one

        try:
            self.twin = TwinSocket(MAX_TRANSFER + 2 * HEADER_SIZE)
        except OSError as exc:
            log.warning("no twin socket: %s; DMA messages go over the connection itself", exc.strerror)
            return ()
        return (self.twin.client_fd,)

    # What device code uses, through ``Dma``.

    @property
    def is_ready(self) -> bool:
        """A transfer made now would be carried out now, rather than refused."""
        return not (self._would_wait_for_ever or self._closed or self.ended is not None)

    @property
    def _would_wait_for_ever(self) -> bool:
        return (self.client_waits and not self.is_posted()) or self._session.quiescence.client_waits

    def read(self, iova: int, length: int, /) -> bytes:
        """Reads exactly ``length`` bytes.

        Raises:
            DeviceError: EDEADLK where the client would never answer (see the module); EBUSY when ``MAX_DEPTH``
                transfers wait already; the client's errno; EIO for an answer that makes no sense; ETIMEDOUT; ENOTCONN
                when the client is gone; ECANCELED when the server is to stop.
            StateError: this is not the device's thread.
        """
        parts = []
        done = 0
        while done < length:
            at, count = iova + done, min(self._limit, length - done)
            what = f"DMA_READ of {count} bytes at {at:#x}"
            payload = self._request(Command.DMA_READ, DmaRead(at, count).encode(), what)
            try:
                reply = DmaReadReply.decode(payload)
            except RemoteProtocolError as exc:
                raise DeviceError(errno.EIO, f"{what}: the client's reply makes no sense: {exc}") from exc
            self._check_progress(what, at, count, reply.iova, len(reply.data))
            parts.append(reply.data)
            done += len(reply.data)
        return b"".join(parts)

    def write(self, iova: int, data: memoryview, /) -> None:
        """Writes all of ``data``, bytes.

        Raises:
            DeviceError: see ``read``. What the messages before wrote stays written.
            StateError: see ``read``.
        """
        done = 0
        while done < len(data):
            at, part = iova + done, bytes(data[done : done + self._limit])
            what = f"DMA_WRITE of {len(part)} bytes at {at:#x}"
            payload = self._request(Command.DMA_WRITE, DmaWrite(at, part).encode(), what)
            try:
                reply = DmaWriteReply.decode(payload)
            except RemoteProtocolError as exc:
                raise DeviceError(errno.EIO, f"{what}: the client's reply makes no sense: {exc}") from exc
            written = len(part) if reply.count is None else reply.count
            self._check_progress(what, at, len(part), at if reply.iova is None else reply.iova, written)
            done += written

    @property
    def _limit(self) -> int:
        agreement = self._session.agreement
        return MAX_TRANSFER if agreement is None else min(MAX_TRANSFER, agreement.client.max_data_xfer_size)

    @staticmethod
    def _check_progress(what: str, iova: int, count: int, replied_iova: int, replied_count: int) -> None:
        """A client may transfer less than asked for; but it must be some of that, and there."""
        if replied_iova != iova or not 0 < replied_count <= count:
            raise DeviceError(
                errno.EIO, f"{what}: the client says it transferred {replied_count} bytes at {replied_iova:#x}"
            )

    # One command and its reply.

    def _request(self, command: int, payload: bytes, what: str) -> bytes:
        self._check_may_wait(what)
        message_id = self._new_id()
        pending = self._pending[message_id] = _Pending()
        self.depth += 1
        try:
            self._stop_at_this_message()
            header = command_header(message_id, command, len(payload))
            if self._session.observer is not None:
                self._session.observer.own_command(Header.decode(header), payload)
            self._send(header + payload)
            self._wait(pending, what)
        finally:
            self.depth -= 1
            del self._pending[message_id]
            if pending.header is None:
                self._abandoned.append(message_id)
            undone = self.held or self.ended is not None or self._session.wants_to_write
            if undone and not self.depth and not self.in_reception:
                # Code that was put off returns to nobody who would go on with it.
                self._session.resume_soon()
        reply = pending.header
        assert reply is not None
        if reply.command != command:
            raise DeviceError(errno.EIO, f"{what}: the client answers {command_name(reply.command)} instead")
        if reply.is_error:
            error = reply.error if 1 <= reply.error <= 4095 else errno.EIO
            raise DeviceError(error, f"{what}: the client refuses: {errno.errorcode.get(error, error)}")
        return pending.payload

    def _check_may_wait(self, what: str) -> None:
        loop = self._session.device.loop
        if loop.thread_id not in (None, threading.get_ident()):
            raise StateError(f"{what} on a thread that is not the device's: use call_soon")
        self._check_connected(what)
        if self._would_wait_for_ever:
            is_kept = self._session.quiescence.client_waits
            when = "while a command waits for the device to be quiet" if is_kept else "in a handler"
            raise DeviceError(
                errno.EDEADLK,
                f"{what} {when} whose reply the client waits for: a client like QEMU answers no DMA message "
                "before it has that reply, so neither would ever go on. Put the transfer off until the reply has gone "
                "(self.call_soon(self.transfer)), or share the guest's memory so that no message is needed (QEMU: "
                "-object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram)",
            )
        if self.depth >= MAX_DEPTH:
            raise DeviceError(
                errno.EBUSY, f"{what} while {MAX_DEPTH} transfers wait already: start transfers by call_soon"
            )

    def _check_connected(self, what: str) -> None:
        if self._closed or self.ended is not None:
            raise DeviceError(errno.ENOTCONN, f"{what}: the client is gone ({self.ended or 'disconnected'})")

    def _new_id(self) -> int:
        while True:
            self._last_id = self._last_id + 1 & 0xFFFF
            if self._last_id not in self._pending and self._last_id not in self._abandoned:
                return self._last_id

    def _send(self, message: bytes) -> None:
        try:
            if self.twin is None:
                self._session.send(message)
            else:
                self.twin.client_has_its_end()
                self.twin.send(message)
        except ConnectionClosedError as exc:
            self._end(exc)

    def _wait(self, pending: _Pending, what: str) -> None:
        """Serves the client until its reply is there.

        Raises:
            DeviceError: it will not come.
        """
        loop = self._session.device.loop
        deadline = loop.clock() + self.timeout
        while True:
            self._serve_held()
            if pending.header is not None:
                return
            self._check_connected(what)
            if loop.is_stopping:
                raise DeviceError(errno.ECANCELED, f"{what}: given up, as the server is to stop")
            left = deadline - loop.clock()
            if left <= 0 or not self._serve(left):
                raise DeviceError(
                    errno.ETIMEDOUT, f"{what}: the client has not answered within {self.timeout:g} seconds"
                )

    def _serve(self, timeout: float) -> bool:
        """Waits for something to do, and does it; False when nobody is there to wait for."""
        session, twin = self._session, self.twin
        fd = session.fileno()
        if fd < 0:
            return session.serve() or session.let_client_work()
        own = {fd: select.POLLOUT if session.wants_to_write else 0 if session.is_full else select.POLLIN}
        if twin is not None:
            own[twin.fileno()] = twin.events
        ready = session.device.loop.serve_once(timeout, own)
        if twin is not None and twin.fileno() in ready:
            try:
                twin.flush()
                twin.receive(self._deliver_from_twin)
            except ConnectionClosedError as exc:
                self._end(exc)
        if fd in ready:
            session.serve()
        return True

    def _end(self, exc: ConnectionClosedError) -> None:
        if self.ended is None:
            self.ended = exc

    # What the client sends meanwhile.

    def _stop_at_this_message(self) -> None:
        """Makes the buffer begin where the message being carried out ends, and takes all that is whole out of it."""
        if self.is_posted():
            self._frames.start = self.take_posted()
            self.client_waits = False
        rest = self.posted_rest
        if rest is not None:
            self.posted_rest = None
            first = [_as_posted_write(write) for write in rest]
            self.held.extendleft(reversed(first))
            self._held_bytes += sum(header.message_size for header, _, _ in first)
        self.hold()

    def hold(self) -> None:
        """Takes every whole message out of the buffer: replies to where they are waited for, commands to be held."""
        try:
            while (taken := self._session.next_message()) is not None:
                header, payload, fds = taken
                if header.is_reply:
                    close_fds(fds)
                    self._session.reply_came(header, payload)
                else:
                    self.held.append(taken)
                    self._held_bytes += header.message_size
                    self._held_fds += len(fds)
                    self._urgent += not header.no_reply
        except ConnectionClosedError as exc:
            self._end(exc)
        self._frames.compact()

    def deliver(self, header: Header, payload: bytes) -> float | None:
        """Hands a reply to whoever waits for it; returns how many seconds it took, None when nobody waits."""
        pending = self._pending.get(header.message_id)
        if pending is None or pending.header is not None:
            return None
        pending.header, pending.payload = header, payload
        return time.monotonic() - pending.began

    def _deliver_from_twin(self, header: Header, payload: bytes) -> None:
        if not header.is_reply:
            raise ConnectionClosedError(f"the client sent {command_name(header.command)} over the twin socket")
        self._session.reply_came(header, payload)

    @property
    def is_full(self) -> bool:
        """As much is held as may be."""
        return len(self.held) > _MAX_HELD or self._held_bytes > _MAX_HELD_BYTES or self._held_fds > _MAX_HELD_FDS

    def _serve_held(self) -> None:
        """Carries out what the client waits for, and all before it."""
        try:
            while self._urgent or self.is_full:
                if not self._carry_out_first():
                    break
        except ConnectionClosedError as exc:
            self._end(exc)

    def carry_out_held(self) -> bool:
        """Carries out all that is held; False when the client must read first.

        Raises:
            ConnectionClosedError: the session has ended meanwhile.
        """
        if self.ended is not None:
            raise self.ended
        while self.held:
            if not self._carry_out_first():
                return False
            if self.ended is not None:
                raise self.ended
        return True

    def _carry_out_first(self) -> bool:
        if self._session.is_held_back or self._closed or self.ended is not None:
            return False
        header, payload, fds = self.held.popleft()
        self._held_bytes -= header.message_size
        self._held_fds -= len(fds)
        self._urgent -= not header.no_reply
        try:
            self._session.carry_out(header, payload, fds)
        finally:
            close_fds(fds)
        return True

    @staticmethod
    def goes_on(header: Header) -> bool:
        """The client goes on without waiting for that command to be carried out."""
        return header.no_reply and header.command in _POSTED

    def close(self) -> None:
        """Closes the twin socket, and the descriptors of what is held. Idempotent."""
        self._closed = True
        for _, _, fds in self.held:
            close_fds(fds)
        self.held.clear()
        self._urgent = self._held_bytes = self._held_fds = 0
        if self.twin is not None:
            self.twin.close()


def _as_posted_write(write: MultiWrite) -> tuple[Header, bytes, list[int]]:
    """One write of a REGION_WRITE_MULTI, as the message it could have been."""
    payload = RegionAccess(write.offset, write.region, write.count).encode() + write.field[: write.count]
    size = HEADER_SIZE + len(payload)
    return Header(0, Command.REGION_WRITE, size, HeaderFlags.NO_REPLY, 0), payload, []
