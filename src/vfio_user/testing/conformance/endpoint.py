"""Where the server under examination is, and how its bytes are reached: by any socket, or in this process.

A ``Wire`` is one connection, of which nothing is known but that bytes and descriptors go in and come out: the kit
writes and reads every header itself, since it must be able to write wrong ones.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Protocol

from vfio_user.errors import ConnectError, ConnectionClosedError
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop
from vfio_user.server.session import Session
from vfio_user.transport.address import Address, FdAddress, SystemdAddress, parse_address
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, Channel, ancillary_fds, carries_fds, send_some
from vfio_user.transport.connect import connect
from vfio_user.transport.memory import memory_pair

__all__ = ["DeviceEndpoint", "Endpoint", "HungUp", "SocketEndpoint", "SocketWire", "Wire"]

#: Bytes one reception can bring.
_ROOM = 256 * 1024


class HungUp(Exception):
    """The other end closed the connection."""


class Wire(Protocol):
    """One connection.

    Attributes:
        carries_fds: descriptors can be sent over it.
        pause: seconds to wait between two sends that the other end is to see as two.
    """

    carries_fds: bool
    pause: float

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends all of it, descriptors with the first byte; they stay the caller's.

        Raises:
            HungUp: the other end is gone.
        """

    def receive(self, timeout: float) -> tuple[bytes, list[int]] | None:
        """What has come, waiting for it up to ``timeout`` seconds; None if nothing did.

        Raises:
            HungUp: the other end is gone.

        Ownership: the descriptors are the caller's.
        """

    def close(self) -> None:
        """Hangs up. Idempotent."""


class Endpoint(Protocol):
    """A server, to which connections are made one after another.

    Attributes:
        name: how to call it in a report.
        is_single: it is one connection, and no other can be made.
    """

    name: str
    is_single: bool

    def connect(self, timeout: float) -> Wire:
        """Makes a connection; the last one was closed.

        Raises:
            ConnectError: none can be made.
        """


class SocketWire:
    """A connected stream socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.carries_fds = carries_fds(connection)
        self.pause = 0.002
        self._socket = connection
        self._room = memoryview(bytearray(_ROOM))

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """See ``Wire``. A peer that does not read for ten seconds counts as gone."""
        left = memoryview(data)
        deadline = time.monotonic() + 10.0
        while left:
            try:
                sent = send_some(self._socket, [left], fds)
            except ConnectionClosedError as exc:
                raise HungUp(str(exc)) from exc
            if sent:
                left, fds = left[sent:], ()
            elif time.monotonic() > deadline:
                raise HungUp("the peer does not read")
            else:
                poll = select.poll()
                poll.register(self._socket, select.POLLOUT)
                poll.poll(100)

    def receive(self, timeout: float) -> tuple[bytes, list[int]] | None:
        """See ``Wire``."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(timeout, 0) * 1000):
            return None
        return _received(self._socket, self._room)

    def close(self) -> None:
        """See ``Wire``."""
        self._socket.close()


class SocketEndpoint:
    """A server that listens somewhere.

    Args:
        address: any form of ``transport.address``; ``fd:N`` is one connection, and no more can be made.
    """

    def __init__(self, address: str | Address) -> None:
        self._address = parse_address(address)
        self._used = False
        self.name = str(self._address)
        self.is_single = isinstance(self._address, FdAddress | SystemdAddress)

    def connect(self, timeout: float) -> SocketWire:
        """See ``Endpoint``. A server that is busy letting go of the last connection is given that long."""
        if self.is_single:
            if self._used:
                raise ConnectError(f"{self.name} is one connection, and it was used")
            self._used = True
            return SocketWire(connect(self._address))
        deadline = time.monotonic() + timeout
        while True:
            try:
                return SocketWire(connect(self._address, timeout=timeout))
            except ConnectError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


class DeviceEndpoint:
    """A device of this process, without a socket, and on the caller's thread: it never has to be waited for.

    Args:
        device: what is examined.

    Ownership: ``close`` it; the device can be used again afterwards.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.name = type(device).__name__
        self.is_single = False
        self._loop = EventLoop()
        device.attach(self._loop)
        self._wire: _DeviceWire | None = None

    def connect(self, timeout: float) -> Wire:
        """See ``Endpoint``."""
        if self._wire is not None:
            self._wire.close()
        self._wire = _DeviceWire(self.device, self._loop)
        return self._wire

    def close(self) -> None:
        """Hangs up, and lets go of the device. Idempotent."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
            self.device.detach()
            self._loop.close()


class _DeviceWire:
    """A connection to a device on this thread, which works when it is spoken to."""

    def __init__(self, device: Device, loop: EventLoop) -> None:
        self.carries_fds = True
        self.pause = 0.0
        self._device = device
        self._loop = loop
        self._ours, theirs = memory_pair()
        self._room = memoryview(bytearray(_ROOM))
        self._session: Session | None = Session(device, theirs, peer="conformance kit")
        device.connected()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """See ``Wire``."""
        try:
            send_some(self._ours, [data], fds)
        except ConnectionClosedError as exc:
            raise HungUp(str(exc)) from exc
        self._work()

    def receive(self, timeout: float) -> tuple[bytes, list[int]] | None:
        """See ``Wire``. What the device has not said by now it will not say: nothing is waited for."""
        self._work()
        return _received(self._ours, self._room)

    def close(self) -> None:
        """See ``Wire``."""
        self._ours.close()
        self._work()

    def _work(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            while session.serve():
                pass
        except ConnectionClosedError:
            self._session = None
            session.close()
            self._device.disconnected()
        self._loop.run_once(0.0)


def _received(channel: Channel, room: memoryview) -> tuple[bytes, list[int]] | None:
    """One reception."""
    try:
        count, ancdata, flags, _ = channel.recvmsg_into([room], ANCILLARY_SIZE, RECEIVE_FLAGS | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError as exc:
        raise HungUp(exc.strerror or str(exc)) from exc
    fds = ancillary_fds(ancdata, flags & ~socket.MSG_CTRUNC)
    if not count:
        raise HungUp("the connection was closed")
    return bytes(room[:count]), fds
