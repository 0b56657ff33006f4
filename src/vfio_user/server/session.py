"""One client's connection to one device: has its messages carried out, and replies.

``server.reception`` receives them. What drivers do all day, register accesses, is carried out by
``server.message_path``; this module has the ordinary way of every other message, with every check and every errno.

With an ``Observer`` every message goes the ordinary way; without one, observing costs nothing.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from vfio_user.errors import (
    ConnectionClosedError,
    DeviceError,
    DmaNotMapped,
    FramingError,
    RemoteProtocolError,
    VersionError,
)
from vfio_user.protocol.constants import DEFAULT_PAGE_SIZES, HEADER_SIZE, Command, RegionIndex
from vfio_user.protocol.header import Header, command_name, error_reply, reply_header
from vfio_user.protocol.region import ACCESS_MESSAGE
from vfio_user.protocol.version import Agreement, Capabilities
from vfio_user.server.commands import COMMANDS, Limits, Reply, placeholder_reply
from vfio_user.server.message_dma import ClientMemory
from vfio_user.server.message_path import message_path
from vfio_user.server.quiesce import MAY_NEED_QUIET, Quiescence
from vfio_user.server.reception import Reception, SessionStatistics
from vfio_user.transport.channel import Channel, carries_fds

if TYPE_CHECKING:
    from vfio_user.server.device import Device

__all__ = ["OFFER", "Observer", "Session", "SessionStatistics"]

log = logging.getLogger("vfio_user.server")

#: What a server here can take. 16 descriptors a message is QEMU's limit for this number.
OFFER = Capabilities(max_msg_fds=16, write_multiple=True, twin_socket=True)

#: Problems of one session that are logged as warnings; the rest are for debugging, as a bad client could fill a disk.
_MAX_WARNINGS = 20


class Observer(Protocol):
    """Is shown every message of a session, for tracing.

    Inherit it: what an observer does not care about then does nothing.
    """

    def command(self, header: Header, payload: bytes, fds: int) -> None:
        """A command came, with that many descriptors; it is about to be carried out."""
        return

    def reply(self, header: Header, payload: bytes, fds: int, seconds: float) -> None:
        """The reply that goes back, that long after the command was looked at."""
        return

    def own_command(self, header: Header, payload: bytes) -> None:
        """A command of the server's, DMA_READ or DMA_WRITE, goes to the client."""
        return

    def own_reply(self, header: Header, payload: bytes, seconds: float | None) -> None:
        """The client's reply came, that long after the command; None for one that answers nothing (any more)."""
        return

    def closed(self) -> None:
        """The connection ended."""
        return


class Session(Reception):
    """See the module.

    Args:
        device: the device the client drives.
        channel: the connection; closed with the session.
        peer: how to call the client in the log.
        observer: is shown every message.
        strict: exceptions of device code that are not DeviceError end the session and are raised; for tests.

    Attributes:
        observer: as given.
        offer: what this server can take; no descriptors where the channel carries none.
        agreement: what was negotiated; None until VERSION has been answered.

    Threading: session thread.
    """

    def __init__(
        self,
        device: Device,
        channel: Channel,
        *,
        peer: str = "client",
        observer: Observer | None = None,
        strict: bool = False,
    ) -> None:
        # QEMU reads a ROM with one message, and not at all if that is more than it was told a message may carry.
        largest = max(OFFER.max_data_xfer_size, device.region(RegionIndex.ROM).size)
        super().__init__(device, channel, largest + ACCESS_MESSAGE.size)
        self.peer = peer
        self.offer = replace(OFFER, max_data_xfer_size=largest)
        if device.migration_protocol == "v1":
            self.offer = replace(self.offer, migration_pgsize=DEFAULT_PAGE_SIZES)
        if not carries_fds(channel):
            self.offer = replace(self.offer, max_msg_fds=0, twin_socket=False)
        self.agreement: Agreement | None = None
        #: The client takes no notice of errors and waits for a full reply: see ``commands.placeholder_reply``.
        self.ignores_errors = False
        self.observer = observer
        self._strict = strict
        self.client_memory = ClientMemory(self, self._frames)
        self.quiescence = Quiescence(self)
        self._warnings = 0
        #: Register accesses are refused now, as the device's state is being saved.
        self.is_restricted = False
        self._consume_otherwise: Callable[[int], bool] = self.consume_ordinarily

    def close(self) -> None:
        """See ``Reception.close``."""
        if not self._closed:
            super().close()
            if self.observer is not None:
                self.observer.closed()

    def carry_out(self, header: Header, payload: bytes, fds: list[int]) -> None:
        """Carries out one message, and replies if a reply is wanted.

        Ownership: descriptors left in ``fds`` are the caller's to close.
        """
        if header.is_reply:
            self.reply_came(header, payload)
            return
        if self.observer is not None:
            self.observer.command(header, payload, len(fds))
        self.answer(header, payload, fds, time.monotonic())

    def answer(
        self, header: Header, payload: bytes, fds: list[int], began: float, *, failure: Exception | None = None
    ) -> None:
        """Carries out one command, and replies if a reply is wanted; unless it is kept back.

        Args:
            header: the command's.
            payload: what follows it.
            fds: what came along; see ``carry_out``.
            began: when it came.
            failure: why it is not carried out after all.
        """
        observer = self.observer
        fatal: RemoteProtocolError | None = None
        memory = self.client_memory
        before = memory.client_waits
        memory.client_waits = not memory.goes_on(header)
        try:
            if failure is not None:
                raise failure
            reply = self._execute(header, payload, fds, began)
            if reply is None:
                return
            message = reply_header(header.message_id, header.command, len(reply.payload)) + reply.payload
            reply_fds = reply.fds
        except (FramingError, VersionError) as exc:
            fatal = exc
            message, reply_fds = error_reply(header.message_id, header.command, exc.errno_hint), ()
            self.statistics.errors += 1
        except Exception as exc:
            refusal = self.failure(header, exc, payload)
            if refusal is None:
                return
            message, reply_fds = refusal, ()
        finally:
            memory.client_waits = before
        if not header.no_reply or fatal is not None:
            if observer is not None:
                observer.reply(Header.decode(message), message[HEADER_SIZE:], len(reply_fds), time.monotonic() - began)
            self.send(message, reply_fds)
        if fatal is not None:
            raise ConnectionClosedError(f"the client was sent away: {fatal}") from fatal

    def reply_came(self, header: Header, payload: bytes) -> None:
        """The client replied to something; to what, its id says."""
        seconds = self.client_memory.deliver(header, payload)
        if self.observer is not None:
            self.observer.own_reply(header, payload, seconds)
        if seconds is None:
            # There is nothing this could answer, any more or ever. Answering it could go on for ever.
            self._warn("dropped a reply to nothing: %s", header)

    def agreed(self, agreement: Agreement) -> tuple[int, ...]:
        """The version is negotiated: from now on, commands are carried out.

        Returns:
            Descriptors for the reply: the client's end of the twin socket, if that was agreed on.
        """
        if not self.offer.max_msg_fds:
            # Whatever the client says it takes: nothing can bring it a descriptor.
            agreement = replace(agreement, client=replace(agreement.client, max_msg_fds=0))
        self.agreement = agreement
        self.device.dma.messenger = self.client_memory
        if self.observer is None:
            # Not the migration region: what is written there can be such that other accesses are refused.
            number = min(self.device.num_regions, RegionIndex.MIGRATION)
            regions = [self.device.region(index) for index in range(number)]
            self._consume = message_path(self, self._frames, self._channel, regions)
        return self.client_memory.open_twin() if agreement.server.twin_socket else ()

    @property
    def limits(self) -> Limits:
        """How much one message may carry; once the version is negotiated."""
        assert self.agreement is not None
        client, server = self.agreement.client, self.agreement.server
        page_size = server.migration_pgsize or DEFAULT_PAGE_SIZES
        return Limits(client.max_data_xfer_size, self.offer.max_data_xfer_size, page_size)

    def restrict(self, restricted: bool) -> None:
        """Says whether register accesses are refused from now on: then all messages go the ordinary way, to be told."""
        if restricted != self.is_restricted:
            self.is_restricted = restricted
            self._consume, self._consume_otherwise = self._consume_otherwise, self._consume

    def _execute(self, header: Header, payload: bytes, fds: list[int], began: float) -> Reply | None:
        """Checks what any command must be, and has it carried out; None when it is kept back."""
        if not header.is_command:
            raise FramingError(f"the header's type is neither command nor reply: flags {header.flags:#x}")
        if self.agreement is None:
            if header.command != Command.VERSION:
                raise VersionError(f"the first message is {command_name(header.command)}; it must be VERSION")
        elif header.command == Command.VERSION:
            raise RemoteProtocolError("VERSION was negotiated already, and cannot be again")
        command = COMMANDS.get(header.command)
        if command is None:
            raise RemoteProtocolError(f"{command_name(header.command)} is no command this server carries out")
        if not payload and header.command not in (Command.DEVICE_RESET, Command.VERSION):
            raise RemoteProtocolError(f"{command_name(header.command)} came without its payload")
        if self.device.migration is not None:
            self.device.migration.check_command(header.command, payload)
        if header.command in MAY_NEED_QUIET and self.quiescence.keeps(header, payload, fds, began):
            return None
        try:
            return command(self, payload, fds)
        finally:
            migration = self.device.migration
            if migration is not None:
                self.restrict(migration.refuses_accesses)
            if self.device.is_quiet:
                self.device.end_quiet()

    def failure(self, header: Header, exc: Exception, payload: bytes | bytearray) -> bytes | None:
        """Logs why a command failed, and returns the reply that says so, if one is wanted."""
        name = command_name(header.command)
        if isinstance(exc, ConnectionClosedError):
            raise exc
        if isinstance(exc, DeviceError):
            error = exc.reply_errno
            if header.command == Command.DMA_UNMAP and isinstance(exc, DmaNotMapped):
                # QEMU clears whole address spaces that way when a guest sets up its IOMMU: nothing is wrong.
                log.debug("%s: %s", self.peer, exc)
            else:
                self._warn("%s refused: %s", name, exc)
        elif isinstance(exc, RemoteProtocolError):
            error = exc.errno_hint
            self._warn("refused: %s", exc)
        else:
            if self._strict:
                raise exc
            error = errno.EIO
            log.error("%s: %s failed in the device's code; the client gets EIO", self.peer, name, exc_info=exc)
        if header.no_reply:
            self.statistics.dropped_errors += 1
            return None
        self.statistics.errors += 1
        if self.ignores_errors:
            return placeholder_reply(header, payload) or error_reply(header.message_id, header.command, error)
        return error_reply(header.message_id, header.command, error)

    def _warn(self, text: str, *args: object) -> None:
        """Logs what the client did wrong: the first times for people, then for debugging only."""
        self._warnings += 1
        level = logging.WARNING if self._warnings <= _MAX_WARNINGS else logging.DEBUG
        log.log(level, "%s: " + text, self.peer, *args)
        if self._warnings == _MAX_WARNINGS:
            log.warning("%s: further warnings about this client are logged as debug messages", self.peer)
