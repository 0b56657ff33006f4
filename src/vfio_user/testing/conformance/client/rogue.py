"""The server a client is observed by: a real device behind it, a script between, and an eye on all that passes.

Whatever no line of the script is about goes through as it is: to the client this is a server like any other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vfio_user.errors import FramingError
from vfio_user.protocol.constants import HEADER_SIZE, Command
from vfio_user.protocol.dma import DmaRead, DmaWrite
from vfio_user.protocol.framing import FrameBuffer, close_fds
from vfio_user.protocol.header import Header, command_header, error_reply, reply_header
from vfio_user.testing.conformance.client.observation import Observation
from vfio_user.testing.conformance.client.script import Script, Step
from vfio_user.testing.conformance.endpoint import HungUp, Wire

__all__ = ["RogueServer"]

#: Seconds between two looks at the device, which may have something to say of its own.
_TICK = 0.01

_MAX_MESSAGE = (1 << 20) + 4096

#: An id no client is likely to wait with.
_STRAY_ID = 0xFADE


@dataclass(slots=True)
class _Reply:
    """A reply on its way; what is sent may be more than one piece, or none."""

    message: bytes
    fds: list[int]
    pieces: list[bytes] | None = None
    closes: bool = False
    delay: float = 0.0
    before: bytes = b""

    @property
    def header(self) -> Header:
        return Header.decode(self.message)

    @property
    def payload(self) -> bytes:
        return self.message[HEADER_SIZE:]

    def change(self, **fields: int) -> None:
        self.message = self.header._replace(**fields).encode() + self.payload

    def set_payload(self, payload: bytes) -> None:
        self.message = self.header._replace(message_size=HEADER_SIZE + len(payload)).encode() + payload


@dataclass(slots=True)
class RogueServer:
    """One client's server.

    Args:
        client: the connection to the client; closed at the end.
        device: a connection to a server that does everything right; closed at the end.
        observation: is shown everything.
        script: how to misbehave.

    Attributes:
        is_over: the connection has ended.

    Threading: the thread that calls ``run`` or ``turn``.
    """

    client: Wire
    device: Wire
    observation: Observation
    script: Script = field(default_factory=Script)
    is_over: bool = False
    _frames: FrameBuffer = field(default_factory=lambda: FrameBuffer(_MAX_MESSAGE))
    _steps: dict[int, list[Step]] = field(default_factory=dict)
    _later: list[tuple[float, _Reply]] = field(default_factory=list)
    #: Ids of what the script, not the device, asks the client.
    _own: set[int] = field(default_factory=set)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Serves until the client or the script ends it, or ``until`` says so."""
        try:
            while not self.is_over and not until():
                self.turn(_TICK)
        finally:
            self.close()

    def turn(self, timeout: float) -> None:
        """Takes what the client sends within that time, and what the device says to it."""
        try:
            chunk = self.client.receive(timeout)
            if chunk is not None:
                self._take(*chunk)
            self._pass_on()
        except HungUp:
            if not self.is_over:
                self.observation.ended(self._frames.end - self._frames.start)
            self.is_over = True

    def ask(self, header: Header, payload: bytes) -> None:
        """Notes that the script asks the client for something."""
        self._own.add(header.message_id)
        self.observation.asked(header, payload)

    def close(self) -> None:
        """Hangs up on both sides. Idempotent."""
        self.is_over = True
        self._frames.close()
        for _, reply in self._later:
            close_fds(reply.fds)
        self._later.clear()
        self.client.close()
        self.device.close()

    def _take(self, data: bytes, fds: list[int]) -> None:
        frames = self._frames
        try:
            while data:
                part, data = data[: len(frames.buffer) - frames.end], data[len(frames.buffer) - frames.end :]
                frames.buffer[frames.end : frames.end + len(part)] = part
                waiting = frames.end - frames.start
                if 0 < waiting < HEADER_SIZE:
                    self.observation.cut_header(waiting)
                taken, fds = fds, []
                frames.received(len(part), taken)
                while (header := frames.next_message()) is not None:
                    self._message(header)
                frames.compact()
        except FramingError:
            close_fds(fds)
            found = frames.peek_header()
            self.observation.bad_size(found.message_size if found else 0)
            self.is_over = True

    def _message(self, header: Header) -> None:
        # What the device says to it waits until all that came with it has been looked at: it was sent before.
        frames = self._frames
        message = bytes(memoryview(frames.buffer)[frames.start : frames.start + header.message_size])
        fds = frames.take_fds()
        frames.consume(header.message_size)
        try:
            self.observation.message(header, message[HEADER_SIZE:], len(fds))
            if header.is_command:
                self._steps[header.message_id] = self.script.due(header.command)
            elif header.message_id in self._own:
                self._own.discard(header.message_id)
                return
            self.device.send(message, fds)
        finally:
            close_fds(fds)

    def _pass_on(self) -> None:
        """Sends what the device has said, and what is due by now."""
        now = time.monotonic()
        due = [reply for when, reply in self._later if when <= now]
        self._later = [(when, reply) for when, reply in self._later if when > now]
        for reply in due:
            self._send(reply)
        while not self.is_over and (chunk := self.device.receive(0.0)) is not None:
            data, fds = chunk
            at = 0
            while at < len(data):
                size = Header.decode(data, at).message_size
                is_last = at + size >= len(data)
                self._from_device(data[at : at + size], fds if is_last else [])
                at += size

    def _from_device(self, message: bytes, fds: list[int]) -> None:
        header = Header.decode(message)
        if header.is_command:
            self.observation.asked(header, message[HEADER_SIZE:])
            self.client.send(message, fds)
            close_fds(fds)
            return
        reply = _Reply(message, fds)
        for step in self._steps.pop(header.message_id, []):
            _ACTIONS[step.action](self, reply, step)
        self.observation.answered(reply.header._replace(message_id=header.message_id), reply.payload)
        if reply.delay:
            self._later.append((time.monotonic() + reply.delay, reply))
        else:
            self._send(reply)

    def _send(self, reply: _Reply) -> None:
        fds: Sequence[int] = reply.fds
        try:
            if reply.before:
                self.client.send(reply.before)
            for piece in [reply.message] if reply.pieces is None else reply.pieces:
                self.client.send(piece, fds)
                fds = ()
                if reply.pieces and len(reply.pieces) > 1:
                    time.sleep(self.client.pause)
        finally:
            close_fds(reply.fds)
        if reply.closes:
            self.close()


# What can be done to a reply, by its name in a script.


def _late(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.delay = float(step.argument)


def _silent(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.pieces = []


def _twice(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.pieces = [reply.message, reply.message]


def _split(_server: RogueServer, reply: _Reply, step: Step) -> None:
    place = int(step.argument, 0)
    reply.pieces = [piece for piece in (reply.message[:place], reply.message[place:]) if piece]


def _byte_by_byte(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.pieces = [reply.message[at : at + 1] for at in range(len(reply.message))]


def _oversized(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.set_payload(reply.payload + bytes(int(step.argument, 0)))


def _truncated(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.set_payload(reply.payload[: -int(step.argument, 0) or None])


def _promise(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.change(message_size=len(reply.message) + int(step.argument, 0))


def _wrong_id(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.change(message_id=reply.header.message_id ^ 0x5555)


def _wrong_command(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.change(command=reply.header.command + 1)


def _error(_server: RogueServer, reply: _Reply, step: Step) -> None:
    header, number = reply.header, step.errno
    reply.message = error_reply(header.message_id, header.command, 1)
    reply.change(error=number)


def _as_command(server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.change(flags=reply.header.flags & ~0xF)
    server.ask(reply.header, reply.payload)


def _bad_type(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.change(flags=reply.header.flags | 0xF)


def _bad_size(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.change(message_size=int(step.argument, 0))


def _patch(_server: RogueServer, reply: _Reply, step: Step) -> None:
    offset, data = step.patch
    reply.set_payload(reply.payload[:offset] + data + reply.payload[offset + len(data) :])


def _text(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.set_payload(reply.payload[:4] + step.argument.encode() + b"\0")


def _fd(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))


def _no_fd(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    close_fds(reply.fds)
    reply.fds.clear()


def _stray(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.before += reply_header(_STRAY_ID, reply.header.command, 8) + bytes(8)


def _ask(server: RogueServer, reply: _Reply, step: Step) -> None:
    payload = {Command.DMA_READ: DmaRead(0, 4).encode(), Command.DMA_WRITE: DmaWrite(0, b"rude").encode()}
    body = payload.get(Command(step.command), b"") if step.command in set(Command) else b""
    message = command_header(_STRAY_ID, step.command, len(body)) + body
    server.ask(Header.decode(message), body)
    reply.before += message


def _garbage(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.before += b"\xff" * int(step.argument, 0)


def _close(_server: RogueServer, reply: _Reply, _step: Step) -> None:
    reply.pieces, reply.closes = [], True


def _close_at(_server: RogueServer, reply: _Reply, step: Step) -> None:
    reply.pieces, reply.closes = [reply.message[: int(step.argument, 0)]], True


_ACTIONS: dict[str, Callable[[RogueServer, _Reply, Step], None]] = {
    "late": _late,
    "silent": _silent,
    "twice": _twice,
    "split": _split,
    "byte-by-byte": _byte_by_byte,
    "oversized": _oversized,
    "truncated": _truncated,
    "promise": _promise,
    "wrong-id": _wrong_id,
    "wrong-command": _wrong_command,
    "error": _error,
    "as-command": _as_command,
    "bad-type": _bad_type,
    "bad-size": _bad_size,
    "patch": _patch,
    "text": _text,
    "fd": _fd,
    "no-fd": _no_fd,
    "stray": _stray,
    "ask": _ask,
    "garbage": _garbage,
    "close": _close,
    "close-at": _close_at,
}
