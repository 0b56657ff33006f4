"""Every exception this package raises, in one family.

::

    VfioUserError
    ├─ ProtocolError                 abstract: bytes, or our use of them, are illegal
    │  ├─ LocalProtocolError         we built or sent something illegal
    │  └─ RemoteProtocolError        the peer's bytes are illegal
    │     ├─ FramingError            ... and where the next message begins is lost
    │     └─ VersionError            ... and the two ends cannot agree on a version
    ├─ StateError                    a call made at the wrong time
    ├─ AddressError (ValueError)     the text of an address means nothing
    ├─ ConnectError                  a socket could not be made, bound or connected
    ├─ ConnectionClosedError         the peer is gone
    ├─ CommandError (OSError)        a client: the server refused a command
    ├─ CommandTimeoutError (TimeoutError)    a client: the server did not answer in time
    ├─ InterruptTimeoutError (TimeoutError)  a client: the device did not interrupt in time
    ├─ MigrationError                a client: a device did not move, and why
    ├─ DeviceError (OSError)         the one error device code raises; errno goes on the wire
    │  ├─ InvalidAccess              EINVAL
    │  ├─ ReadOnly                   EPERM
    │  ├─ Unsupported                ENOTSUP
    │  ├─ Busy                       EBUSY
    │  ├─ DmaNotMapped               ENOENT
    │  ├─ DmaExists                  EEXIST
    │  ├─ DmaAccess                  EACCES
    │  └─ DmaLimit                   ENOSPC or EINVAL
    ├─ DefinitionError (ValueError)  a device class is declared wrong
    │  └─ RegisterDefinitionError    ... in its registers
    ├─ DeviceNotFoundError           no device answers to that name
    ├─ DeviceOptionError (ValueError)  a device has no such option, or it cannot take that value
    └─ VmError                       QEMU or the guest kit
       ├─ VmUnavailableError         something is missing on this machine; says what and how to get it
       ├─ VmLaunchError              QEMU did not start; carries command, exit code and output
       ├─ VmTimeoutError (TimeoutError)  a machine or its guest did not do in time what was waited for
       └─ GuestCommandError          a command in the guest failed, and was not expected to

Whatever else leaves this package is a bug in it, except what device code raises itself: a handler's own
exception is answered with EIO, logged with its traceback, and the session goes on.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "AddressError",
    "Busy",
    "CommandError",
    "CommandTimeoutError",
    "ConnectError",
    "ConnectionClosedError",
    "DefinitionError",
    "DeviceError",
    "DeviceNotFoundError",
    "DeviceOptionError",
    "DmaAccess",
    "DmaExists",
    "DmaLimit",
    "DmaNotMapped",
    "FramingError",
    "GuestCommandError",
    "InterruptTimeoutError",
    "InvalidAccess",
    "LocalProtocolError",
    "MigrationError",
    "ProtocolError",
    "ReadOnly",
    "RegisterDefinitionError",
    "RemoteProtocolError",
    "StateError",
    "Unsupported",
    "VersionError",
    "VfioUserError",
    "VmError",
    "VmLaunchError",
    "VmTimeoutError",
    "VmUnavailableError",
]


class VfioUserError(Exception):
    """The root of the family: catch this to catch whatever the package reports on purpose."""


class ProtocolError(VfioUserError):
    """The stream, or a use of it, breaks the protocol. Abstract: raise one of its subclasses.

    Attributes:
        errno_hint: the errno to answer the offending command with (EINVAL unless the specification or the
            practice of real peers names another).
    """

    def __init__(self, message: str, *, errno_hint: int = errno.EINVAL) -> None:
        if type(self) is ProtocolError:
            raise TypeError("ProtocolError is abstract: raise LocalProtocolError or RemoteProtocolError")
        super().__init__(message)
        self.errno_hint = errno_hint


class LocalProtocolError(ProtocolError):
    """We were about to send something the protocol forbids. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids. Its command is answered with ``errno_hint``."""


class FramingError(RemoteProtocolError):
    """The peer's stream cannot be cut into messages any more: answer, then close the connection."""


class VersionError(RemoteProtocolError):
    """The peer's VERSION cannot be agreed with: answer, then close the connection."""


class StateError(VfioUserError):
    """A call made at a time that does not allow it; the text names the state and the one it needs."""


class AddressError(VfioUserError, ValueError):
    """The text of a socket address has no meaning."""


class ConnectError(VfioUserError):
    """A socket could not be created, bound, listened on or connected; ``__cause__`` is the OS error."""


class ConnectionClosedError(VfioUserError):
    """The peer closed the connection, or the connection broke."""


class CommandError(VfioUserError, OSError):
    """A command of a client failed: the server's reply carried an errno.

    Args:
        errno_: what the reply carried. What is no errno counts as EIO: 0, which some servers send, or over 4095.
        command: the number of the command.
        request: the command in words, as "REGION_READ of 4 bytes at 0x10 of BAR0".

    Attributes:
        errno: 1 to 4095.
        command: as given.
        request: as given.
    """

    def __init__(self, errno_: int, command: int, request: str) -> None:
        number = errno_ if 1 <= errno_ <= 4095 else errno.EIO
        super().__init__(number, f"the server refused {request}: {os.strerror(number)}")
        self.command = command
        self.request = request


class CommandTimeoutError(VfioUserError, TimeoutError):
    """The server did not answer a command in time. The connection stays usable, unless the text says otherwise."""


class InterruptTimeoutError(VfioUserError, TimeoutError):
    """A client waited for an interrupt that did not come in time."""


class MigrationError(VfioUserError):
    """A device did not move from one server to another; ``__cause__`` is why.

    Attributes:
        step: what was being done, in a word or two.
        source_runs: the device works on where it was, as if nothing had happened.
    """

    def __init__(self, message: str, *, step: str, source_runs: bool) -> None:
        super().__init__(message)
        self.step = step
        self.source_runs = source_runs


class DeviceError(VfioUserError, OSError):
    """What device code raises to refuse a request: the errno travels to the client.

    Args:
        errno_: the errno of the reply, 1 to 4095.
        message: what happened, for the log; it never leaves this process. Defaults to the errno's text.

    Raises:
        ValueError: ``errno_`` is not in 1..4095. QEMU takes an error reply with errno 0 for a success.
    """

    def __init__(self, errno_: int, message: str | None = None) -> None:
        if not 1 <= errno_ <= 4095:
            raise ValueError(f"errno {errno_} cannot be sent: an error reply carries 1 to 4095")
        super().__init__(errno_, message or os.strerror(errno_))

    @property
    def reply_errno(self) -> int:
        """The errno of the reply (``errno`` itself is optional in OSError's typing)."""
        number = self.errno
        assert number is not None
        return number


class _FixedErrno(DeviceError):
    """A DeviceError whose class says the errno."""

    _errno: int

    def __init__(self, message: str | None = None) -> None:
        super().__init__(self._errno, message)


class InvalidAccess(_FixedErrno):
    """The request makes no sense here: a bad offset, width, index or value (EINVAL)."""

    _errno = errno.EINVAL


class ReadOnly(_FixedErrno):
    """A write to something that only reads (EPERM)."""

    _errno = errno.EPERM


class Unsupported(_FixedErrno):
    """The device does not have that feature (ENOTSUP)."""

    _errno = errno.ENOTSUP


class Busy(_FixedErrno):
    """Not now (EBUSY)."""

    _errno = errno.EBUSY


class DmaNotMapped(_FixedErrno):
    """The client has not mapped (all of) that IOVA range (ENOENT)."""

    _errno = errno.ENOENT


class DmaExists(_FixedErrno):
    """The client maps an IOVA range that overlaps one it mapped before (EEXIST)."""

    _errno = errno.EEXIST


class DmaAccess(_FixedErrno):
    """The mapping exists but does not allow that: a write to a read-only one, a view of one without memory (EACCES)."""

    _errno = errno.EACCES


class DmaLimit(DeviceError):
    """The client maps more than the device allows: ENOSPC for size, EINVAL for the number of mappings."""


class DefinitionError(VfioUserError, ValueError):
    """A device class is declared wrong; the text names the value, the rule and the way out."""


class RegisterDefinitionError(DefinitionError):
    """A register, a field or a hook is declared wrong; both sides of a clash are named."""


class DeviceNotFoundError(VfioUserError):
    """No device answers to that name; the text offers the nearest one."""


class DeviceOptionError(VfioUserError, ValueError):
    """A device has no such option, needs one that is missing, or cannot take that value."""


class VmError(VfioUserError):
    """Something about the virtual machine, rather than the device, failed."""


class VmUnavailableError(VmError):
    """This machine lacks something a guest needs; the text says what, and how to get it."""


class VmLaunchError(VmError):
    """QEMU did not start, or ended before it was expected to.

    Attributes:
        command: the command line, as a list.
        exit_code: QEMU's exit status, None while it still runs.
        output: what it printed.
    """

    def __init__(self, message: str, *, command: list[str], exit_code: int | None, output: str) -> None:
        super().__init__(message)
        self.command = command
        self.exit_code = exit_code
        self.output = output


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
