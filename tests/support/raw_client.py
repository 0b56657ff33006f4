"""A client that knows nothing but bytes: what a test says is what goes over the wire.

It reads exactly one message at a time, the header first, so it never depends on how the server cuts its sends. It works
over any ``Channel``: a real socket to a server on another thread, or one end of a ``memory_pair`` whose other end is
driven by ``pump``, on the same thread and without a kernel::

    with memory_session(device) as client:
        client.negotiate()
        assert client.read(RegionIndex.BAR0, 0x10, 4) == 0
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from vfio_user.errors import ConnectionClosedError
from vfio_user.protocol.constants import HEADER_SIZE, Command, IrqSetFlags
from vfio_user.protocol.dma import DmaMap, DmaUnmap
from vfio_user.protocol.header import Header, command_header
from vfio_user.protocol.irq import SetIrqs
from vfio_user.protocol.region import ACCESS
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Observer, Session
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, send_some
from vfio_user.transport.memory import memory_pair

__all__ = ["Message", "NoMessage", "RawClient", "access", "connect", "memory_session", "message"]

#: Turns of ``pump`` without a byte after which there is nothing to wait for.
_PATIENCE = 8

#: Seconds a real socket is waited for; only a test that fails waits so long.
_TIMEOUT = 10.0


class NoMessage(AssertionError):
    """The server had nothing to say."""


class Message(NamedTuple):
    """One message, with the descriptors that came with it."""

    header: Header
    payload: bytes
    fds: list[int]

    @property
    def error(self) -> int:
        """The errno of an error reply, which is a header and nothing else; 0 for a success."""
        if not self.header.is_error:
            return 0
        assert self.header.flags == 0x21, f"an error reply has flags 0x21, not {self.header.flags:#x}"
        assert not self.payload, f"an error reply is a header alone; {len(self.payload)} bytes came with it"
        assert not self.fds
        return self.header.error


class RawClient:
    """See the module.

    Args:
        channel: the connection; closed by ``close``.
        pump: makes the other end work, where that is this thread's to do; None where another thread does.
    """

    def __init__(self, channel: Channel, pump: Callable[[], object] | None = None) -> None:
        self.channel = channel
        self._pump = pump
        self._ids = itertools.count(1)
        self._waiting = b""  # the first byte of the next message, looked at already
        self._waiting_fds: list[int] = []
        if isinstance(channel, socket.socket):
            channel.settimeout(_TIMEOUT if pump is None else 0.0)

    # Bytes.

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends bytes as they are, all of them; descriptors go with the first."""
        view = memoryview(data)
        while view:
            sent = send_some(self.channel, [view], fds)
            if sent:
                view, fds = view[sent:], ()
            else:
                self._let_the_other_end_work()

    def _receive_exactly(self, count: int) -> tuple[bytes, list[int]]:
        buffer = bytearray(count)
        view = memoryview(buffer)
        view[: len(self._waiting)] = self._waiting
        view = view[len(self._waiting) :]
        fds, self._waiting, self._waiting_fds = self._waiting_fds, b"", []
        idle = 0
        flags = RECEIVE_FLAGS if self._pump is None else RECEIVE_FLAGS | socket.MSG_DONTWAIT
        while view:
            try:
                got, ancdata, result, _ = self.channel.recvmsg_into([view], ANCILLARY_SIZE, flags)
            except BlockingIOError:
                idle += 1
                if idle > _PATIENCE:
                    raise NoMessage(f"{count - len(view)} of {count} bytes came, and no more") from None
                self._let_the_other_end_work()
                continue
            except ConnectionResetError:
                got, ancdata, result = 0, [], 0
            fds += ancillary_fds(ancdata, result)
            if not got:
                raise EOFError(f"the server closed the connection after {count - len(view)} of {count} bytes")
            idle = 0
            view = view[got:]
        return bytes(buffer), fds

    def _let_the_other_end_work(self) -> None:
        if self._pump is not None:
            self._pump()

    # Messages.

    def command(
        self,
        command: int,
        payload: bytes = b"",
        *,
        fds: Sequence[int] = (),
        no_reply: bool = False,
        message_id: int | None = None,
    ) -> int:
        """Sends a command and returns its id."""
        number = next(self._ids) & 0xFFFF if message_id is None else message_id
        self.send(message(command, payload, message_id=number, no_reply=no_reply), fds)
        return number

    def receive(self) -> Message:
        """The next message.

        Raises:
            NoMessage: there is none (with ``pump``), nor will there be.
            EOFError: the server closed the connection.
        """
        data, fds = self._receive_exactly(HEADER_SIZE)
        header = Header.decode(data)
        payload, more = self._receive_exactly(header.message_size - HEADER_SIZE)
        assert not more, "descriptors came with a payload instead of with the header"
        return Message(header, payload, fds)

    def request(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Sends a command and returns its reply, whose header has been checked against it."""
        number = self.command(command, payload, fds=fds)
        reply = self.receive()
        assert reply.header.is_reply
        assert (reply.header.message_id, reply.header.command) == (number, command)
        return reply

    def is_silent(self) -> bool:
        """Whether the server, having done what there was to do, has said nothing; for clients with ``pump``.

        What it has said is kept for ``receive``.

        Raises:
            EOFError: the server closed the connection.
        """
        if not self._waiting:
            try:
                self._waiting, self._waiting_fds = self._receive_exactly(1)
            except NoMessage:
                return True
        return False

    def is_cut_off(self) -> bool:
        """Whether the server has closed the connection."""
        try:
            self._receive_exactly(1)
        except EOFError:
            return True
        except NoMessage:
            pass
        return False

    # What tests do all the time.

    def negotiate(self, capabilities: dict[str, Any] | None = None, *, minor: int = 0) -> Message:
        """VERSION, which must succeed."""
        text = json.dumps({"capabilities": {"max_msg_fds": 16} if capabilities is None else capabilities})
        reply = self.request(Command.VERSION, struct.pack("<HH", 0, minor) + text.encode() + b"\0")
        assert not reply.error
        return reply

    def read(self, region: int, offset: int, size: int = 4) -> int:
        """An integer out of a region; the read must succeed."""
        reply = self.request(Command.REGION_READ, ACCESS.pack(offset, region, size))
        assert reply.error == 0, f"REGION_READ failed with errno {reply.error}"
        assert reply.payload[: ACCESS.size] == ACCESS.pack(offset, region, size)
        assert len(reply.payload) == ACCESS.size + size
        return int.from_bytes(reply.payload[ACCESS.size :], "little")

    def write(self, region: int, offset: int, value: int, size: int = 4, *, posted: bool = False) -> None:
        """An integer into a region; the write must succeed, unless it is posted and nobody knows."""
        data = access(offset, region, value.to_bytes(size, "little"))
        if posted:
            self.command(Command.REGION_WRITE, data, no_reply=True)
            return
        reply = self.request(Command.REGION_WRITE, data)
        assert reply.error == 0, f"REGION_WRITE failed with errno {reply.error}"
        assert reply.payload == data[: ACCESS.size]

    def read_error(self, region: int, offset: int, size: int = 4) -> int:
        """The errno a read is refused with; 0 if it is not."""
        return self.request(Command.REGION_READ, ACCESS.pack(offset, region, size)).error

    def write_error(self, region: int, offset: int, value: int, size: int = 4) -> int:
        """The errno a write is refused with; 0 if it is not."""
        return self.request(Command.REGION_WRITE, access(offset, region, value.to_bytes(size, "little"))).error

    def map_memory(self, iova: int, size: int, fd: int | None, *, offset: int = 0, flags: int = 3) -> int:
        """DMA_MAP; returns its errno."""
        request = DmaMap(flags, offset, iova, size)  # type: ignore[arg-type]
        return self.request(Command.DMA_MAP, request.encode(), () if fd is None else (fd,)).error

    def unmap_memory(self, iova: int, size: int, *, flags: int = 0) -> int:
        """DMA_UNMAP; returns its errno."""
        return self.request(Command.DMA_UNMAP, DmaUnmap(flags, iova, size).encode()).error  # type: ignore[arg-type]

    def set_eventfds(self, index: int, fds: Sequence[int], *, start: int = 0, count: int | None = None) -> int:
        """SET_IRQS that connects eventfds, or with none and a ``count`` disconnects; returns its errno."""
        flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER
        request = SetIrqs(flags, index, start, len(fds) if count is None else count)
        return self.request(Command.DEVICE_SET_IRQS, request.encode(), fds).error

    def close(self) -> None:
        """Closes the connection. Idempotent."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def message(
    command: int,
    payload: bytes = b"",
    *,
    message_id: int = 1,
    no_reply: bool = False,
    size: int | None = None,
    flags: int | None = None,
) -> bytes:
    """The bytes of a command; ``size`` and ``flags`` replace what the header would truthfully say."""
    header = Header.decode(command_header(message_id, command, len(payload), no_reply=no_reply))
    if size is not None:
        header = header._replace(message_size=size)
    if flags is not None:
        header = header._replace(flags=flags)
    return header.encode() + payload


def access(offset: int, region: int, data: bytes, count: int | None = None) -> bytes:
    """The payload of a REGION_WRITE."""
    return ACCESS.pack(offset, region, len(data) if count is None else count) + data


def connect(path: Path | str, pump: Callable[[], object] | None = None) -> RawClient:
    """A client on a server's socket."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        channel.connect(str(path))
    except BaseException:
        channel.close()
        raise
    return RawClient(channel, pump)


@contextlib.contextmanager
def memory_session(
    device: Device,
    *,
    observer: Observer | None = None,
    strict: bool = True,
    chunk: int | None = None,
    loop: EventLoop | None = None,
) -> Iterator[RawClient]:
    """A client of a device in this process, without a server, a socket or a thread; negotiate first.

    Work the device puts off is done between messages. When the session ends, the device is told, as a server would.
    """
    ours, theirs = memory_pair()
    theirs.chunk = chunk
    loop = loop or EventLoop()
    device.attach(loop)
    session = Session(device, theirs, observer=observer, strict=strict)
    ended = False

    def end() -> None:
        nonlocal ended
        if not ended:
            ended = True
            session.close()
            device.disconnected()

    def pump() -> None:
        if not ended:
            try:
                while session.receive():
                    loop.run_once(0)
                loop.run_once(0)
            except ConnectionClosedError:
                end()

    device.connected()
    client = RawClient(ours, pump)
    try:
        yield client
    finally:
        client.close()
        end()
        device.detach()
        loop.close()
