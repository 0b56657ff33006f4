"""Commands under way: what was asked, what the reply may be, and the reply; and all of them, by their ids.

A command goes out with an id; its ``PendingReply`` waits under that id until the reply comes, the connection breaks, or
its time is over. Replies may come in any order. One whose id nobody waits for - late, or to a posted write, which some
servers answer all the same - is dropped: a command that timed out costs its own answer and nothing else. Its id is not
used again before that late reply has come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from vfio_user.errors import CommandError, ConnectionClosedError, RemoteProtocolError, VfioUserError
from vfio_user.protocol.header import Header, command_name

__all__ = ["PendingReplies", "PendingReply", "Reply", "Waiter"]

#: How many ids there are.
_IDS = 1 << 16


class Reply(NamedTuple):
    """A successful reply.

    Attributes:
        payload: what followed the header.
        fds: descriptors that came with it; they are the receiver's to close.
    """

    payload: bytes
    fds: list[int]


class Waiter(Protocol):
    """What can wait for a reply."""

    def wait_for(self, pending: PendingReply, timeout: float | None = None, /) -> None:
        """Works until that reply has come, or fails it when its time is over; None: the time commands have."""


class PendingReply:
    """A command that was sent; ``result`` waits for its reply.

    Attributes:
        command: its number.
        request: it in words.
        is_done: the reply has come, or never will.
        on_done: called when it is done; None for nothing.
    """

    __slots__ = (
        "_failure",
        "_max_fds",
        "_max_payload",
        "_reply",
        "_waiter",
        "command",
        "message_id",
        "on_done",
        "request",
    )

    def __init__(
        self, waiter: Waiter, message_id: int, command: int, request: str, max_payload: int, max_fds: int
    ) -> None:
        self.message_id = message_id
        self.command = command
        self.request = request
        self.on_done: Callable[[], None] | None = None
        self._waiter = waiter
        self._max_payload = max_payload
        self._max_fds = max_fds
        self._reply: Reply | None = None
        self._failure: VfioUserError | None = None

    @property
    def is_done(self) -> bool:
        """See the class."""
        return self._reply is not None or self._failure is not None

    def result(self, timeout: float | None = None) -> Reply:
        """Waits for the reply; can be called once.

        Args:
            timeout: seconds; None for the connection's.

        Raises:
            CommandError: the server refused.
            CommandTimeoutError: no reply in time. The server may still carry the command out.
            RemoteProtocolError: the reply is larger than it can be, brings descriptors it should not, or answers
                another command.
            ConnectionClosedError: the connection ended first.

        Ownership: descriptors of the reply are now the caller's.
        """
        if not self.is_done:
            self._waiter.wait_for(self, timeout)
        if self._failure is not None:
            raise self._failure
        assert self._reply is not None
        return self._reply

    def complete(self, header: Header, payload: bytes, fds: list[int]) -> None:
        """Takes the reply; descriptors it does not take stay in ``fds``."""
        if header.is_error:
            self._failure = CommandError(header.error, self.command, self.request)
        elif header.command != self.command:
            self._failure = RemoteProtocolError(f"{self.request} was answered as {command_name(header.command)}")
        elif len(payload) > self._max_payload:
            self._failure = RemoteProtocolError(
                f"the reply to {self.request} has a payload of {len(payload)} bytes; it has {self._max_payload} at most"
            )
        elif len(fds) > self._max_fds:
            self._failure = RemoteProtocolError(
                f"the reply to {self.request} came with {len(fds)} file descriptors; it has {self._max_fds} at most"
            )
        else:
            self._reply = Reply(payload, fds.copy())
            fds.clear()
        if self.on_done is not None:
            self.on_done()

    def fail(self, exc: VfioUserError) -> None:
        """There will be no reply."""
        self._failure = exc
        if self.on_done is not None:
            self.on_done()


class PendingReplies:
    """The commands of one connection that are under way; see the module.

    Args:
        waiter: waits for their replies.

    Attributes:
        ids: without end, each in its turn: for whoever knows that nothing is under way.
        waiting: by id; empty nearly always.
        abandoned: ids of those given up, whose replies may still come.
    """

    def __init__(self, waiter: Waiter) -> None:
        self.ids: Iterator[int] = itertools.cycle(range(_IDS))
        self.waiting: dict[int, PendingReply] = {}
        self.abandoned: set[int] = set()
        self._waiter = waiter

    def fresh_id(self) -> int:
        """An id no reply can come for yet.

        Raises:
            ConnectionClosedError: every id waits for a reply: that server is of no more use.
        """
        if len(self.waiting) + len(self.abandoned) >= _IDS:
            raise ConnectionClosedError(f"{_IDS} commands have had no reply: there is no id left for another")
        return next(number for number in self.ids if number not in self.waiting and number not in self.abandoned)

    def expect(self, message_id: int, command: int, request: str, max_payload: int, max_fds: int = 0) -> PendingReply:
        """A reply is to come; see ``Connection.submit`` for what it may be."""
        pending = PendingReply(self._waiter, message_id, command, request, max_payload, max_fds)
        self.waiting[message_id] = pending
        return pending

    def takes(self, header: Header, payload: bytes) -> bool:
        """The message is to be taken for a reply.

        It says so; or it is an error reply of rust-vmm's server before 2026-04-21, which sent those as commands.
        """
        return header.is_reply or (
            header.is_command and header.is_error and not payload and header.message_id in self.waiting
        )

    def reply_came(self, header: Header, payload: bytes, fds: list[int]) -> bool:
        """Gives a reply to who waits for it, with the descriptors it takes; False when nobody does."""
        pending = self.waiting.pop(header.message_id, None)
        if pending is None:
            self.abandoned.discard(header.message_id)
            return False
        pending.complete(header, payload, fds)
        return True

    def abandon(self, pending: PendingReply) -> None:
        """A reply may still come, and is to be dropped."""
        if self.waiting.pop(pending.message_id, None) is not None:
            self.abandoned.add(pending.message_id)

    def fail_all(self, exc: VfioUserError) -> None:
        """No reply will come any more."""
        while self.waiting:
            _, pending = self.waiting.popitem()
            failure = ConnectionClosedError(f"the connection ended before {pending.request} was answered: {exc}")
            failure.__cause__ = exc
            pending.fail(failure)
