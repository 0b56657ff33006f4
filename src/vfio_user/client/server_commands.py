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

__all__ = ["DmaTarget", "answer"]

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


def answer(header: Header, payload: bytes, fds: list[int], dma: DmaTarget | None, limit: int) -> bytes:
    """Carries out a command of the server's, and returns the reply.

    Args:
        header: the command's.
        payload: what followed it.
        fds: descriptors that came with it; no command of a server has any. They stay the caller's.
        dma: the memory; None when the client has given the device none.
        limit: bytes of one transfer, as agreed on.
    """
    name = command_name(header.command)
    try:
        if fds:
            raise RemoteProtocolError(f"{name} came with {len(fds)} file descriptors; it carries none")
        result = _carry_out(header.command, payload, dma, limit)
    except (DeviceError, RemoteProtocolError) as exc:
        number = exc.reply_errno if isinstance(exc, DeviceError) else exc.errno_hint
        log.debug("refused %s: %s", header, exc)
        return error_reply(header.message_id, header.command, number)
    except Exception:
        log.exception("%s of the server failed in this program; it gets EIO", name)
        return error_reply(header.message_id, header.command, errno.EIO)
    return reply_header(header.message_id, header.command, len(result)) + result


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
