"""A server with one thing wrong: a man in the middle of a connection to one that is right."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vfio_user.protocol.header import HEADER, Header
from vfio_user.testing.conformance.endpoint import Endpoint, HungUp, Wire

REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20


@dataclass
class Exchange:
    """A message on its way, and the command it answers; what is changed here goes on changed."""

    message_id: int
    command: int
    flags: int
    error: int
    payload: bytes
    fds: list[int] = field(default_factory=list)
    size: int | None = None
    request: bytes = b""
    dropped: bool = False

    @property
    def is_error(self) -> bool:
        return bool(self.flags & ERROR)

    def encode(self) -> bytes:
        size = 16 + len(self.payload) if self.size is None else self.size
        return HEADER.pack(self.message_id, self.command, size, self.flags, self.error) + self.payload

    def become_error(self, number: int = errno.EIO) -> None:
        self.flags, self.error, self.payload = REPLY | ERROR, number, b""

    def become_success(self, payload: bytes = b"") -> None:
        self.flags, self.error, self.payload = REPLY, 0, payload


@dataclass(frozen=True)
class Mutation:
    """What is wrong.

    Attributes:
        name: for a failing test.
        reply: changes a reply.
        request: sees a command before the server does, and changes it; True keeps it from the server.
        chunk: sees what the client sends, as it sends it; True keeps it from the server.
        version: VERSION is affected, too.
        deaf: the second client is not answered.
        open: the server never hangs up.
        swap: two replies change places.
    """

    name: str
    reply: Callable[[MutantWire, Exchange], None] | None = None
    request: Callable[[MutantWire, Exchange], bool | None] | None = None
    chunk: Callable[[MutantWire, bytes], bool | None] | None = None
    version: bool = False
    deaf: bool = False
    open: bool = False
    swap: bool = False


class MutantWire:
    """One connection to the server that is wrong. ``state`` is the mutation's to use."""

    def __init__(self, inner: Wire, mutation: Mutation) -> None:
        self.carries_fds, self.pause = inner.carries_fds, 0.0
        self.state: dict[str, int] = {}
        self.hung_up = False
        self._inner = inner
        self._mutation = mutation
        self._requests: dict[int, bytes] = {}
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._held: tuple[bytes, list[int]] | None = None
        self._kept: list[int] = []

    def keep(self, fds: Sequence[int]) -> None:
        self._kept += [os.dup(fd) for fd in fds]

    def inject(self, exchange: Exchange) -> None:
        self._out.append((exchange.encode(), []))

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._mutation.chunk is not None and self._mutation.chunk(self, data):
            return
        messages = list(whole_messages(data))
        if not messages or self._mutation.request is None:
            for message in messages:
                self._remember(message)
            self._inner.send(data, fds)
            return
        for message in messages:
            self._remember(message)
            header = Header.decode(message)
            exchange = Exchange(header.message_id, header.command, header.flags, header.error, message[16:], list(fds))
            if (header.command == 1 and not self._mutation.version) or not self._mutation.request(self, exchange):
                self._inner.send(exchange.encode(), exchange.fds)

    def _remember(self, message: bytes) -> None:
        self._requests[Header.decode(message).message_id] = message

    def receive(self, timeout: float) -> tuple[bytes, list[int]] | None:
        if self._out:
            return self._out.popleft()
        if self.hung_up:
            raise HungUp("the connection was closed")
        try:
            chunk = self._inner.receive(timeout)
        except HungUp:
            if self._mutation.open:
                return None
            raise
        if chunk is not None:
            data, fds = chunk
            messages = list(whole_messages(data))
            for number, message in enumerate(messages):
                self._answer(message, fds if number == len(messages) - 1 else [])
        elif self._held is not None:
            self._out.append(self._held)
            self._held = None
        return self._out.popleft() if self._out else None

    def _answer(self, message: bytes, fds: list[int]) -> None:
        header = Header.decode(message)
        exchange = Exchange(header.message_id, header.command, header.flags, header.error, message[16:], fds)
        exchange.request = self._requests.get(header.message_id, b"")
        if header.command != 1 or self._mutation.version:
            if self._mutation.reply is not None:
                self._mutation.reply(self, exchange)
            if self._mutation.swap and self._held is None:
                self._held = exchange.encode(), exchange.fds
                return
        if not exchange.dropped:
            self._out.append((exchange.encode(), exchange.fds))
        if self._held is not None:
            self._out.append(self._held)
            self._held = None

    def close(self) -> None:
        for fd in self._kept:
            os.close(fd)
        self._kept.clear()
        self._inner.close()


class MutantEndpoint:
    """Where the server that is wrong is found."""

    def __init__(self, inner: Endpoint, mutation: Mutation) -> None:
        self.name, self.is_single = mutation.name, False
        self._inner = inner
        self._mutation = mutation
        self._connections = 0
        self.last: MutantWire | None = None

    def connect(self, timeout: float) -> Wire:
        self._connections += 1
        mutation = self._mutation
        if mutation.deaf and self._connections > 1:
            mutation = Mutation("deaf", chunk=lambda _wire, _data: True)
        self.last = MutantWire(self._inner.connect(timeout), mutation)
        return self.last

    def close(self) -> None:
        if self.last is not None:
            self.last.close()


def whole_messages(data: bytes) -> list[bytes]:
    """The messages ``data`` is made of; none unless it is made of whole ones."""
    found, at = [], 0
    with contextlib.suppress(Exception):
        while at < len(data):
            size = Header.decode(data, at).message_size
            if not 16 <= size <= len(data) - at:
                return []
            found.append(data[at : at + size])
            at += size
        return found
    return []
