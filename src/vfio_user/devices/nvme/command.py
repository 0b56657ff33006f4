"""One command on its way through the controller."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vfio_user.errors import DeviceError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.status import DO_NOT_RETRY, Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.jobs import Job
    from vfio_user.devices.nvme.queues import SubmissionQueue

__all__ = ["NO_LOCATION", "Command", "CommandFailed", "status_of"]

#: Parameter error location: no field of the command is to blame.
NO_LOCATION = 0xFFFF

_UNREACHABLE = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN}


class CommandFailed(Exception):
    """The command ends with a status other than success.

    Args:
        status: which.
        location: byte (7:0) and bit (10:8) of the command that is to blame.
        retry: the same command may succeed later.
        lba: the first block that is to blame.
        dw0: dword 0 of the completion.
    """

    def __init__(
        self, status: Status, *, location: int = NO_LOCATION, retry: bool = False, lba: int = 0, dw0: int = 0
    ) -> None:
        super().__init__(status.name)
        self.status = status
        self.location = location
        self.retry = retry
        self.lba = lba
        self.dw0 = dw0

    @property
    def field(self) -> int:
        """The status field of the completion, without phase tag."""
        return self.status if self.retry else self.status | DO_NOT_RETRY


def status_of(error: BaseException, *, write: bool) -> CommandFailed:
    """What a failure of guest memory or of a backend means to the host.

    Args:
        error: what was raised.
        write: while something was written to the backend.
    """
    if isinstance(error, CommandFailed):
        return error
    if isinstance(error, DeviceError):
        return CommandFailed(Status.DATA_TRANSFER_ERROR)
    if not isinstance(error, OSError):
        return CommandFailed(Status.INTERNAL_ERROR)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CommandFailed(Status.CAPACITY_EXCEEDED)
    if error.errno == errno.EROFS:
        return CommandFailed(Status.NAMESPACE_WRITE_PROTECTED)
    if error.errno in (errno.EPERM, errno.EACCES):
        return CommandFailed(Status.ACCESS_DENIED)
    if error.errno in _UNREACHABLE:
        # A server of the data that has gone may come back: the host is to try again.
        return CommandFailed(Status.INTERNAL_ERROR, retry=True)
    return CommandFailed(Status.WRITE_FAULT if write else Status.UNRECOVERED_READ_ERROR)


class Command:
    """A command that was fetched and is not complete.

    Attributes:
        queue: where it came from.
        entry: the copy of it that is worked from; the guest cannot change it any more.
        cancelled: nobody waits for it any more: it was aborted, or its queue is gone.
        job: what carries it out, where that takes time.
        first: with the second command of a fused operation, the first, which ends with it.
    """

    __slots__ = ("cancelled", "entry", "first", "job", "queue")

    def __init__(self, queue: SubmissionQueue, entry: SubmissionEntry, first: SubmissionEntry | None = None) -> None:
        self.queue = queue
        self.entry = entry
        self.first = first
        self.cancelled = False
        self.job: Job | None = None

    def __repr__(self) -> str:
        return f"<command {self.entry.cid:#x} of queue {self.queue.qid}, opcode {self.entry.opcode:#x}>"
