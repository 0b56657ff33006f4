"""A command under way: what was asked, what the reply may be, and the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vfio_user.errors import CommandError, RemoteProtocolError, VfioUserError
from vfio_user.protocol.header import Header, command_name

if TYPE_CHECKING:
    from vfio_user.client.connection import Connection

__all__ = ["PendingReply", "Reply"]


class Reply(NamedTuple):
    """A successful reply.

    Attributes:
        payload: what followed the header.
        fds: descriptors that came with it; they are the receiver's to close.
    """

    payload: bytes
    fds: list[int]


class PendingReply:
    """A command that was sent; ``result`` waits for its reply.

    Attributes:
        command: its number.
        request: it in words.
        is_done: the reply has come, or never will.
    """

    __slots__ = ("_connection", "_failure", "_max_fds", "_max_payload", "_reply", "command", "message_id", "request")

    def __init__(
        self, connection: Connection, message_id: int, command: int, request: str, max_payload: int, max_fds: int
    ) -> None:
        self.message_id = message_id
        self.command = command
        self.request = request
        self._connection = connection
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
            self._connection.wait_for(self, timeout)
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

    def fail(self, exc: VfioUserError) -> None:
        """There will be no reply."""
        self._failure = exc
