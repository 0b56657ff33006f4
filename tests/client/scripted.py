"""A server that says what a test wrote down beforehand, to the byte.

Its words wait in the socket before the client asks, so one thread is enough and nothing is left to chance. A client's
ids are predictable: VERSION has 0, and each command after it the next.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tests.support.fds import memory_file
from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.protocol.constants import HEADER_SIZE, Command
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import HEADER, Header
from vfio_user.protocol.region import ACCESS
from vfio_user.transport.channel import ANCILLARY_SIZE, RECEIVE_FLAGS, ancillary_fds
from vfio_user.transport.memory import memory_pair

__all__ = ["Answering", "Heard", "ScriptedServer", "access_reply", "message", "open_file", "scripted"]

#: Seconds a client waits for what is not coming.
SHORT = 0.02


class Heard(NamedTuple):
    """A message of the client's."""

    header: Header
    payload: bytes
    fds: int


def message(
    message_id: int,
    command: int,
    payload: bytes = b"",
    *,
    flags: int = 1,
    error: int = 0,
    size: int | None = None,
) -> bytes:
    """The bytes of a message, a reply unless ``flags`` says otherwise."""
    announced = HEADER_SIZE + len(payload) if size is None else size
    return HEADER.pack(message_id, command, announced, flags, error) + payload


def access_reply(message_id: int, region: int, offset: int, data: bytes) -> bytes:
    """A reply to REGION_READ."""
    return message(message_id, Command.REGION_READ, ACCESS.pack(offset, region, len(data)) + data)


class ScriptedServer:
    """See the module."""

    def __init__(self) -> None:
        self.channel, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self._frames = FrameBuffer(2 << 20)

    def say(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends bytes, all of them now."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.socket.sendmsg([data], ancillary) == len(data)

    def say_version(self, text: bytes = b'{"capabilities":{"max_msg_fds":8,"write_multiple":true}}\0') -> None:
        """Answers VERSION."""
        self.say(message(0, Command.VERSION, b"\0\0\0\0" + text))

    def heard(self) -> list[Heard]:
        """What the client has sent since, as far as messages are whole."""
        frames, messages = self._frames, []
        view = memoryview(frames.buffer)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while True:
                count, ancillary, flags, _ = self.socket.recvmsg_into(
                    [view[frames.end :]], ANCILLARY_SIZE, RECEIVE_FLAGS
                )
                if not count:
                    break
                frames.received(count, ancillary_fds(ancillary, flags))
                while header := frames.next_message():
                    payload = bytes(view[frames.start + HEADER_SIZE : frames.start + header.message_size])
                    fds = frames.take_fds()
                    frames.consume(header.message_size)
                    close_fds(fds)
                    messages.append(Heard(header, payload, len(fds)))
                frames.compact()
        return messages

    def connect(self, *, timeout: float = 5.0, version: bytes | None = None, **options: Any) -> Connection:
        """A connection that has negotiated; the VERSION it sent has been taken."""
        if version is None:
            self.say_version()
        else:
            self.say_version(version)
        connection = Connection(self.channel, timeout=timeout, **options)
        (self.version,) = self.heard()
        return connection

    def client(self, *, timeout: float = 5.0, version: bytes | None = None, **options: Any) -> VfioUserClient:
        """A client over such a connection."""
        return VfioUserClient(self.connect(timeout=timeout, version=version), **options)

    def channel_is_closed(self) -> bool:
        """The client closed its end."""
        return self.channel.fileno() == -1

    def close(self) -> None:
        """Hangs up."""
        self._frames.close()
        self.socket.close()


class Answering:
    """A server in this process that answers each command by a function of the test's.

    Attributes:
        answers: by command: takes what came, returns a payload, a payload and descriptors, or an errno. A command
            without one succeeds with nothing.
        heard: every command, VERSION excepted.
    """

    def __init__(self, version: bytes = b"") -> None:
        self.channel, self._ours = memory_pair()
        self._frames = FrameBuffer(2 << 20)
        self.answers: dict[int, Callable[[Heard], bytes | tuple[bytes, list[int]] | int]] = {}
        self.heard: list[Heard] = []
        self._version = b"\0\0\0\0" + version

    def pump(self, timeout: float) -> float:
        """Answers what has come; without anything to do, time passes."""
        view = memoryview(self._frames.buffer)
        try:
            count, ancillary, flags, _ = self._ours.recvmsg_into([view[self._frames.end :]])
        except BlockingIOError:
            return timeout
        self._frames.received(count, ancillary_fds(ancillary, flags))
        while header := self._frames.next_message():
            payload = bytes(view[self._frames.start + HEADER_SIZE : self._frames.start + header.message_size])
            fds = self._frames.take_fds()
            self._frames.consume(header.message_size)
            self._answer(Heard(header, payload, len(fds)))
            close_fds(fds)
        self._frames.compact()
        return 0.0

    def _answer(self, heard: Heard) -> None:
        header = heard.header
        if header.command == Command.VERSION:
            self._ours.send(message(header.message_id, header.command, self._version))
            return
        self.heard.append(heard)
        answering = self.answers.get(header.command)
        answer = b"" if answering is None else answering(heard)
        if header.no_reply:
            return
        if isinstance(answer, int):
            self._ours.send(message(header.message_id, header.command, flags=0x21, error=answer))
            return
        payload, fds = (answer, []) if isinstance(answer, bytes) else answer
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._ours.sendmsg([message(header.message_id, header.command, payload)], ancillary)

    def client(self, **options: Any) -> VfioUserClient:
        """A client of it."""
        return VfioUserClient(Connection(self.channel, pump=self.pump), **options)

    def commands(self) -> list[int]:
        """What was asked since it was last asked for."""
        commands = [heard.header.command for heard in self.heard]
        self.heard.clear()
        return commands

    def close(self) -> None:
        """Hangs up, on both sides."""
        self._frames.close()
        self._ours.close()
        self.channel.close()


@contextlib.contextmanager
def scripted() -> Iterator[ScriptedServer]:
    """One, closed at the end on both sides."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.close()
        server.channel.close()


@contextlib.contextmanager
def open_file() -> Iterator[int]:
    """A descriptor to send, closed at the end."""
    fd = memory_file()
    try:
        yield fd
    finally:
        os.close(fd)
