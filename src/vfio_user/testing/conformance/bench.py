"""What a check works with: a connection, what is known of the peer, and things to send along.

A check that shares its connection with others leaves nothing behind on it: no mapping, no eventfd, no reply unread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Collection, Iterator, Sequence

from vfio_user.errors import ConnectError
from vfio_user.protocol.constants import Command, HeaderFlags
from vfio_user.testing.conformance.check import DoesNotApply, Unmet
from vfio_user.testing.conformance.endpoint import Endpoint
from vfio_user.testing.conformance.facts import Facts
from vfio_user.testing.conformance.peer import Message, Peer, errno_name

__all__ = ["GET_INFO", "PROPOSAL", "Bench", "version_payload"]

#: What the checks negotiate with, unless they are about that: what QEMU says.
PROPOSAL = {
    "pgsizes": 4096,
    "max_msg_fds": 16,
    "max_dma_maps": 65535,
    "max_data_xfer_size": 1 << 20,
    "migration": {"max_bitmap_size": 256 << 20, "pgsize": 4096},
    "write_multiple": True,
}

#: The payload of DEVICE_GET_INFO: the command with no effect at all, by which a check sees that a connection works.
GET_INFO = struct.pack("<IIII", 16, 0, 0, 0)

_SUCCESS = HeaderFlags.REPLY.value
_REFUSAL = (HeaderFlags.REPLY | HeaderFlags.ERROR).value


def version_payload(capabilities: object, *, major: int = 0, minor: int = 0) -> bytes:
    """A VERSION payload with these capabilities, whatever they are."""
    return struct.pack("<HH", major, minor) + json.dumps({"capabilities": capabilities}).encode() + b"\0"


class Bench:
    """See the module.

    Args:
        endpoint: where the peer is.
        timeout: seconds a reply may take.

    Attributes:
        facts: what is known of the peer.
        version_reply: how VERSION was answered on the connection in use.
        connections: how many were made.

    Ownership: ``close`` it.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.facts = Facts()
        self.connections = 0
        self._endpoint = endpoint
        self._timeout = timeout
        self._peer: Peer | None = None
        self._version_reply: Message | None = None
        self._fds: list[int] = []

    # Connections.

    @property
    def peer(self) -> Peer:
        """The connection in use; a new one, with a version agreed on, where there is none."""
        return self._peer or self.negotiated()

    @property
    def version_reply(self) -> Message:
        """See the class."""
        self.peer  # noqa: B018 - makes the connection
        assert self._version_reply is not None
        return self._version_reply

    def connect(self) -> Peer:
        """A new connection, on which nothing was said; the one before is closed.

        Raises:
            DoesNotApply: the server took one before, and takes no other.
            ConnectError: it takes none.
        """
        self.drop()
        try:
            wire = self._endpoint.connect(self._timeout)
        except ConnectError as exc:
            if not self.connections:
                raise
            raise DoesNotApply("the server takes one connection, and then no other") from exc
        self.connections += 1
        self._peer = Peer(wire, self._timeout)
        return self._peer

    def negotiated(self, payload: bytes | None = None) -> Peer:
        """A new connection, with a version agreed on.

        Raises:
            Unmet: the server does not agree.
        """
        peer = self.connect()
        reply = peer.ask(Command.VERSION, version_payload(PROPOSAL) if payload is None else payload)
        self._version_reply = reply
        if reply.is_error:
            raise Unmet(f"VERSION was refused: {reply}")
        return peer

    @property
    def can_start_anew(self) -> bool:
        """Another connection is better than this one, and can be had as far as is known."""
        return self._peer is None or self._peer.is_out_of_step or not self._endpoint.is_single

    def drop(self) -> None:
        """Hangs up; the next look at ``peer`` makes another connection."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    # Messages.

    def ask(self, command: int, payload: bytes = b"", *, fds: Sequence[int] = ()) -> Message:
        """Sends a command, and waits for what answers it."""
        return self.peer.ask(command, payload, fds=fds)

    def success(self, message: Message, size: int | None = None) -> bytes:
        """The payload of a reply, which is to be a success; of ``size`` bytes if that is given.

        Raises:
            Unmet: it is not.
        """
        if message.header.flags & 0x2F != _SUCCESS:
            raise Unmet(str(message))
        if size is not None and len(message.payload) != size:
            raise Unmet(f"{message}, instead of {size}")
        return message.payload

    def succeeds(
        self, command: int, payload: bytes = b"", size: int | None = None, *, fds: Sequence[int] = ()
    ) -> bytes:
        """``ask``, and ``success``."""
        return self.success(self.ask(command, payload, fds=fds), size)

    def refused(self, message: Message, errnos: Collection[int] = (errno.EINVAL,)) -> str:
        """That a reply is a refusal, in the only form it has, with one of these errnos; none given: with any.

        Raises:
            Unmet: it is not.
        """
        header = message.header
        if header.flags & 0x2F != _REFUSAL or message.payload:
            raise Unmet(str(message))
        if errnos and header.error not in errnos:
            raise Unmet(errno_name(header.error))
        if not header.error:
            raise Unmet("an error reply with errno 0, which QEMU takes for a success")
        return errno_name(header.error)

    def refuses(
        self, command: int, payload: bytes, errnos: Collection[int] = (errno.EINVAL,), *, fds: Sequence[int] = ()
    ) -> str:
        """``ask``, and ``refused``."""
        return self.refused(self.ask(command, payload, fds=fds), errnos)

    def goes_on(self) -> str:
        """That the connection works.

        Raises:
            Unmet: it does not.
        """
        message = self.ask(Command.DEVICE_GET_INFO, GET_INFO)
        if message.is_error:
            raise Unmet(f"afterwards DEVICE_GET_INFO got {message}")
        return "the connection goes on"

    # Things to send along.

    def memory(self, size: int, *, name: str = "conformance") -> int:
        """A new memfd of that many bytes, closed when the check is over.

        Raises:
            DoesNotApply: the connection carries no descriptors.
        """
        self.facts.need_fds()
        fd = self.own(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(fd, size)
        return fd

    def eventfds(self, count: int) -> list[int]:
        """New eventfds, closed when the check is over.

        Raises:
            DoesNotApply: the connection carries no descriptors.
        """
        self.facts.need_fds()
        return [self.own(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(count)]

    def pipe(self) -> tuple[int, int]:
        """Both ends of a pipe; the writing one is the caller's to close."""
        self.facts.need_fds()
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return self.own(reading), writing

    def own(self, fd: int) -> int:
        """Closes it when the check is over."""
        self._fds.append(fd)
        return fd

    @contextlib.contextmanager
    def mapped(
        self, iova: int, size: int, *, flags: int = 3, offset: int = 0, fds: Sequence[int] = ()
    ) -> Iterator[None]:
        """A DMA mapping for as long as the ``with`` lasts, if it lasts that long.

        Raises:
            Unmet: the server refuses it.
        """
        message = self.ask(Command.DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, iova, size), fds=fds)
        if message.is_error:
            raise Unmet(f"DMA_MAP of [{iova:#x}, {iova + size:#x}) got {message}")
        try:
            yield
        finally:
            # Where the check has taken it back, that is refused, and no matter.
            if self._peer is not None and not self._peer.is_out_of_step:
                with contextlib.suppress(Unmet):
                    self.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, iova, size))

    # The end.

    def tidy(self) -> None:
        """A check is over: closes what it sent along, and what it got."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._peer is not None:
            self._peer.forget_fds()

    def close(self) -> None:
        """Hangs up, and closes everything. Idempotent."""
        self.tidy()
        self.drop()
