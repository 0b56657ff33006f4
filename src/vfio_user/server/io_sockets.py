"""The sockets through which a client accesses parts of a region, instead of by messages (ioregionfd).

A client that asks with DEVICE_GET_REGION_IO_FDS gets one for each part the region names in ``ioregionfds``; what comes
through it does the same as a message would, on the device's thread, and is in no order with messages. They are closed
with the connection, and the next client gets new ones.

A command that means nothing ends its socket: nobody could say where the next one begins. An access that is refused
reads as all ones, as on a bus where nothing answers.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vfio_user.errors import DeviceError, RemoteProtocolError
from vfio_user.protocol.io_region import IO_REGION_SIZE, IoRegionCommand, encode_io_region_reply
from vfio_user.regions import IoRange, Region

if TYPE_CHECKING:
    from vfio_user.server.loop import Watch

__all__ = ["IoSockets"]

log = logging.getLogger("vfio_user.server")

#: Commands taken in one go; what is left is taken when everybody else has had a turn.
_BATCH = 64

#: Batches answered at most before a device is stopped: more than a socket holds, so that a client cannot put that off.
_MAX_BATCHES = 64


class IoSockets:
    """The sockets of one device; it has none until a client asks.

    Args:
        watch: ``Device.watch``.

    Threading: session thread.
    """

    def __init__(self, watch: Callable[[int, Callable[[], None]], Watch]) -> None:
        self._watch = watch
        self._open: dict[tuple[int, IoRange], _IoSocket] = {}

    def client_fds(self, index: int, region: Region, ranges: Iterable[IoRange]) -> tuple[int, ...]:
        """The client's end of a socket for each range, served from here on; the same as before where it had one.

        Ownership: they stay the device's, and are open until ``clear``.

        Raises:
            OSError: too many descriptors are open.
        """
        fds = []
        for part in ranges:
            if (index, part) not in self._open:
                self._open[index, part] = _IoSocket(self._watch, region, part)
            fds.append(self._open[index, part].client.fileno())
        return tuple(fds)

    def answer(self) -> None:
        """Carries out now what has come: the device is about to be stopped, and what is in a socket does not move."""
        for each in self._open.values():
            each.answer()

    def clear(self) -> None:
        """Closes all of them: the client is gone."""
        for each in self._open.values():
            each.close()
        self._open.clear()


class _IoSocket:
    """One of them."""

    def __init__(self, watch: Callable[[int, Callable[[], None]], Watch], region: Region, part: IoRange) -> None:
        self._region = region
        self._part = part
        self._begun = b""
        self._has_ended = False
        self._own, self.client = socket.socketpair()
        self._own.setblocking(False)
        try:
            self._watching = watch(self._own.fileno(), self._serve)
        except BaseException:
            self._own.close()
            self.client.close()
            raise

    def answer(self) -> None:
        for _ in range(_MAX_BATCHES):
            if self._has_ended or not self._serve_batch():
                return

    def _serve(self) -> None:
        self._serve_batch()

    def _serve_batch(self) -> bool:
        """Carries out one batch; False if there is none."""
        try:
            received = self._own.recv(_BATCH * IO_REGION_SIZE)
        except BlockingIOError:
            return False
        if not received:
            self._end("the client hung up")
            return False
        received = self._begun + received
        whole = len(received) // IO_REGION_SIZE * IO_REGION_SIZE
        self._begun = received[whole:]
        try:
            for at in range(0, whole, IO_REGION_SIZE):
                command = IoRegionCommand.decode(received[at : at + IO_REGION_SIZE])
                value = self._carry_out(command)
                if command.wants_reply or not command.is_write:
                    self._own.sendall(encode_io_region_reply(value))
        except (OSError, RemoteProtocolError) as exc:
            self._end(str(exc))  # it speaks something else, or does not read its replies
        return True

    def _end(self, why: str) -> None:
        self._has_ended = True
        log.warning("%s: its socket is closed: %s", self._part, why)
        self._watching.close()
        with contextlib.suppress(OSError):
            self._own.shutdown(socket.SHUT_RDWR)

    def _carry_out(self, command: IoRegionCommand) -> int:
        ones = (1 << 8 * command.size) - 1
        part, region = self._part, self._region
        if command.offset + command.size > part.size:
            log.warning("%s: an access of %d bytes at %#x of it", part, command.size, command.offset)
            return ones
        try:
            if not (region.writable if command.is_write else region.readable):
                return ones
            if command.is_write:
                region.write(part.offset + command.offset, command.size, command.data)
                return 0
            return region.read(part.offset + command.offset, command.size)
        except DeviceError as exc:
            log.warning("%s: %s", part, exc)
        except Exception:
            log.exception("%s: an access failed in the device's code", part)
        return ones

    def close(self) -> None:
        self._watching.close()
        self._own.close()
        self.client.close()
