"""Accesses of a region that need no message: eventfds that are rung, and sockets of their own.

What KVM does for a virtual machine, this does for a driver here. An *ioeventfd* stands for writes to one place, perhaps
of one value: instead of the write, one is added to the eventfd. With a *shadow*, which is libvfio-user's, the value
goes into shared memory first. An *ioregionfd* is a socket through which a range is read and written. None of them is in
any order with messages.

Nothing a server sends is trusted: what is to be rung has to be an eventfd, and is made not to block; a shadow has to
lie in its file. (A server that truncates that file later can still kill its client: see ``client.region``.)

Spec: "VFIO_USER_DEVICE_GET_REGION_IO_FDS".
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vfio_user.client.region import DeviceRegion
from vfio_user.errors import CommandTimeoutError, ConnectionClosedError, RemoteProtocolError
from vfio_user.protocol.constants import IoEventFdFlags, IoRegionFdFlags
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.io_region import IO_REGION_SIZE, IoRegionCommand, decode_io_region_reply
from vfio_user.protocol.region_io_fds import IoEventFd, IoRegionFd, RegionIoFds

__all__ = ["IoFds", "IoRange", "Kick"]

_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Kick:
    """Writes that may be told by ringing.

    Attributes:
        offset: bytes into the region.
        size: bytes such a write has; 0 for any.
        value: the only one; None for any.
        fd: the eventfd.
        shadow: where the value goes first, 8 bytes; None where it goes nowhere.
    """

    offset: int
    size: int
    value: int | None
    fd: int
    shadow: memoryview | None = None

    def fits(self, offset: int, size: int, value: int) -> bool:
        """A write is one of these."""
        return offset == self.offset and self.size in (0, size) and self.value in (None, value)

    def ring(self, size: int, value: int) -> None:
        """Tells the device of a write."""
        if self.shadow is not None:
            self.shadow[:size] = value.to_bytes(size, "little")
        with contextlib.suppress(BlockingIOError):  # the counter is full: it has been told, and has not looked
            os.eventfd_write(self.fd, 1)


class IoRange:
    """A range that may be accessed through a socket.

    Attributes:
        offset: bytes into the region.
        end: where it ends.
    """

    def __init__(self, entry: IoRegionFd, channel: socket.socket, timeout: float) -> None:
        self.offset = entry.offset
        self.end = entry.offset + entry.size
        self._entry = entry
        self._channel = channel
        self._timeout = timeout
        self._posted = bool(entry.flags & IoRegionFdFlags.POSTED_WRITES)
        channel.settimeout(timeout)

    def read(self, offset: int, size: int) -> int:
        """Reads ``size`` bytes at ``offset`` of the region."""
        value = self._send(IoRegionCommand(False, size, offset - self.offset, user_data=self._entry.user_data))
        return value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes; waits until it is done, unless the server says that is not needed."""
        self._send(IoRegionCommand(True, size, offset - self.offset, value, not self._posted, self._entry.user_data))

    def _send(self, command: IoRegionCommand) -> int:
        what = f"an access of {command.size} bytes at {self.offset + command.offset:#x} by its socket"
        try:
            self._channel.sendall(command.encode())
            if not command.wants_reply:
                return 0
            reply = b""
            while len(reply) < IO_REGION_SIZE and (piece := self._channel.recv(IO_REGION_SIZE - len(reply))):
                reply += piece
        except TimeoutError:
            self.close()  # a late reply would be taken for another's
            raise CommandTimeoutError(
                f"the server did not answer {what} within {self._timeout:g} seconds; its socket is closed"
            ) from None
        except OSError as exc:
            raise ConnectionClosedError(f"{what} failed: {exc.strerror}") from exc
        if len(reply) != IO_REGION_SIZE:
            raise ConnectionClosedError(f"{what} was not answered: the server closed the socket")
        return decode_io_region_reply(reply)

    def close(self) -> None:
        """Closes the socket. Idempotent."""
        self._channel.close()


class IoFds:
    """What of one region needs no message. Get it from ``VfioUserClient.io_fds``.

    Args:
        found: what the server offers.
        fds: the descriptors that came with it; this object's from here on.
        region: which region.
        timeout: seconds an access through a socket may take.

    Attributes:
        kicks: what may be rung, as the server lists it.
        ranges: what has a socket.

    Raises:
        RemoteProtocolError: an entry lies outside the region, counts a descriptor that did not come, or one that is
            something else; a shadow lies outside its file.

    Ownership: ``close`` it, or use it in a ``with`` statement.
    """

    def __init__(self, found: RegionIoFds, fds: list[int], region: DeviceRegion, timeout: float) -> None:
        self.kicks: list[Kick] = []
        self.ranges: list[IoRange] = []
        self._region = region
        self._timeout = timeout
        self._fds = fds
        self._maps: dict[int, mmap.mmap] = {}
        try:
            for entry in found.entries:
                self._add(entry)
        except BaseException:
            self.close()
            raise

    def _add(self, entry: IoEventFd | IoRegionFd) -> None:
        what = f"{self._region.name}: the server's entry for {entry.size} bytes at {entry.offset:#x}"
        if entry.offset + entry.size > self._region.size:
            raise RemoteProtocolError(f"{what} leaves the region of {self._region.size:#x} bytes")
        fd = self._descriptor(entry.fd_index, what)
        if isinstance(entry, IoRegionFd):
            kind = _kind(fd)
            if not kind.startswith("socket:"):
                raise RemoteProtocolError(f"{what} comes with {kind}, which is no socket")
            # One descriptor may stand for several entries.
            self.ranges.append(IoRange(entry, socket.socket(fileno=os.dup(fd)), self._timeout))
            return
        if entry.size not in (0, *_SIZES):
            raise RemoteProtocolError(f"{what} is for writes of no size there is")
        if _kind(fd) != "anon_inode:[eventfd]":
            raise RemoteProtocolError(f"{what} comes with {_kind(fd)}, which is no eventfd")
        os.set_blocking(fd, False)
        shadow = None
        if entry.shadow is not None:
            memory = self._memory(self._descriptor(entry.shadow.fd_index, what), what)
            at = entry.shadow.offset
            if at + (entry.size or max(_SIZES)) > len(memory):
                raise RemoteProtocolError(f"{what} has a shadow at {at:#x} of a file of {len(memory):#x} bytes")
            shadow = memoryview(memory)[at : at + max(_SIZES)]
        value = entry.datamatch if entry.flags & IoEventFdFlags.DATAMATCH else None
        self.kicks.append(Kick(entry.offset, entry.size, value, fd, shadow))

    def _descriptor(self, index: int, what: str) -> int:
        if index >= len(self._fds):
            raise RemoteProtocolError(f"{what} counts descriptor {index} of the {len(self._fds)} that came")
        return self._fds[index]

    def _memory(self, fd: int, what: str) -> mmap.mmap:
        memory = self._maps.get(fd)
        if memory is None:
            try:
                memory = self._maps[fd] = mmap.mmap(fd, 0)
            except (OSError, ValueError) as exc:
                raise RemoteProtocolError(f"{what} has a shadow in {_kind(fd)}, which cannot be mapped: {exc}") from exc
        return memory

    def read(self, offset: int, size: int) -> int:
        """Reads ``size`` bytes (1, 2, 4 or 8) at ``offset`` of the region, by a socket if there is one."""
        part = self._range(offset, size)
        return self._region.read(offset, size) if part is None else part.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes: by ringing if the server offers that for this write, by a socket, or by a posted message."""
        for kick in self.kicks:
            if kick.fits(offset, size, value):
                kick.ring(size, value)
                return
        part = self._range(offset, size)
        if part is None:
            self._region.write(offset, size, value, posted=True)
        else:
            part.write(offset, size, value)

    def _range(self, offset: int, size: int) -> IoRange | None:
        return next((part for part in self.ranges if part.offset <= offset and offset + size <= part.end), None)

    def close(self) -> None:
        """Closes everything. Idempotent."""
        for part in self.ranges:
            part.close()
        for kick in self.kicks:
            if kick.shadow is not None:
                kick.shadow.release()
        for memory in self._maps.values():
            with contextlib.suppress(BufferError):
                memory.close()
        close_fds(self._fds)
        self.kicks, self.ranges, self._maps, self._fds = [], [], {}, []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _kind(fd: int) -> str:
    """What a descriptor is, as the kernel says it."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())
