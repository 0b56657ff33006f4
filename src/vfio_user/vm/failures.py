"""What goes wrong in a running guest, as exceptions; members of the `VmError` family.

::

    VmError
    ├─ VmTimeoutError (TimeoutError)  a machine or its guest did not do in time what was waited for
    └─ GuestCommandError              a command in the guest failed, and was not expected to
"""

from __future__ import annotations

from vfio_user.errors import VmError

__all__ = ["GuestCommandError", "VmTimeoutError"]


class VmTimeoutError(VmError, TimeoutError):
    """The machine or its guest did not do in time what was waited for; the text ends with the console's last lines."""


class GuestCommandError(VmError):
    """A command in the guest ended with a status other than 0.

    Attributes:
        command: what was run.
        returncode: its exit status.
        output: what it wrote, standard error included.
    """

    def __init__(self, command: str, returncode: int, output: str) -> None:
        super().__init__(
            f"guest command {command!r} ended with status {returncode}:\n{output.strip() or '(no output)'}"
        )
        self.command = command
        self.returncode = returncode
        self.output = output
