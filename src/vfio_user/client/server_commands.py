"""What a server asks of its client: DMA_READ and DMA_WRITE, for memory it cannot map itself.

The errnos are QEMU's, so that a device meets here what it will meet there. Anything may come from a server; the worst
it gets is an error reply.

Spec: "VFIO_USER_DMA_READ", "VFIO_USER_DMA_WRITE".
"""

from __future__ import annotations

import errno
import logging
from typing import Protocol

from vfio_user.errors import DeviceError, RemoteProtocolError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.dma import DmaRead, DmaReadReply, DmaWrite, DmaWriteReply
from vfio_user.protocol.header import Header, command_name, error_reply, reply_header

__all__ = ["ConnectionStatistics", "DmaTarget", "ServerCommands"]

log = logging.getLogger("vfio_user.client")


class DmaTarget(Protocol):
    """The client's memory, as a server's messages reach it; ``GuestMemory`` mappings are kept in one."""

    def read(self, iova: int, count: int, /) -> bytes:
        """Exactly ``count`` bytes.

        Raises:
            DeviceError: the device may not read there; its errno is the reply.
        """

    def write(self, iova: int, data: bytes, /) -> None:
        """Stores ``data``.

        Raises:
            DeviceError: the device may not write there; its errno is the reply.
        """


class ConnectionStatistics:
    """Counts of one connection.

    Attributes:
        dropped_replies: replies nobody waited for: late ones, or such to posted writes.
        served: commands of the server that were carried out.
        refused: commands of the server that were answered with an error.
    """

    __slots__ = ("dropped_replies", "refused", "served")

    def __init__(self) -> None:
        self.dropped_replies = 0
        self.served = 0
        self.refused = 0


class ServerCommands:
    """Carries out the commands of one server.

    Args:
        dma: the memory; None when the client has given the device none.
        limit: bytes of one transfer, as agreed on.

    Attributes:
        dma: as given; may be changed.
        statistics: counts.
    """

    def __init__(self, dma: DmaTarget | None, limit: int) -> None:
        self.dma = dma
        self.statistics = ConnectionStatistics()
        self._limit = limit

    def carry_out(self, header: Header, payload: bytes, fds: list[int]) -> bytes | None:
        """Carries out a command of the server's.

        Args:
            header: the command's.
            payload: what followed it.
            fds: descriptors that came with it; no command of a server has any. They stay the caller's.

        Returns:
            The reply; None where none is wanted.
        """
        name = command_name(header.command)
        try:
            if fds:
                raise RemoteProtocolError(f"{name} came with {len(fds)} file descriptors; it carries none")
            result = _carry_out(header.command, payload, self.dma, self._limit)
        except (DeviceError, RemoteProtocolError) as exc:
            number = exc.reply_errno if isinstance(exc, DeviceError) else exc.errno_hint
            log.debug("refused %s: %s", header, exc)
        except Exception:
            number = errno.EIO
            log.exception("%s of the server failed in this program; it gets EIO", name)
        else:
            self.statistics.served += 1
            reply = reply_header(header.message_id, header.command, len(result)) + result
            return None if header.no_reply else reply
        self.statistics.refused += 1
        return None if header.no_reply else error_reply(header.message_id, header.command, number)


def _carry_out(command: int, payload: bytes, dma: DmaTarget | None, limit: int) -> bytes:
    if command == Command.DMA_READ:
        read = DmaRead.decode(payload)
        data = _target(dma, read.iova, read.count, limit).read(read.iova, read.count)
        return DmaReadReply(read.iova, data).encode()
    if command == Command.DMA_WRITE:
        write = DmaWrite.decode(payload)
        _target(dma, write.iova, len(write.data), limit).write(write.iova, write.data)
        return DmaWriteReply(write.iova, len(write.data)).encode()
    raise RemoteProtocolError(f"{command_name(command)} is no command a client carries out", errno_hint=errno.ENOSYS)


def _target(dma: DmaTarget | None, iova: int, count: int, limit: int) -> DmaTarget:
    if count > limit:
        raise RemoteProtocolError(
            f"a transfer of {count} bytes; at most {limit} were agreed on", errno_hint=errno.E2BIG
        )
    if dma is None:
        raise DeviceError(errno.ENODEV, f"no memory is mapped, at {iova:#x} or elsewhere")
    return dma
