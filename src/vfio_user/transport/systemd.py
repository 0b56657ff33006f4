"""Sockets systemd made before it started this program, so that a client may come before the server does.

systemd tells in three variables: LISTEN_PID, whom the sockets are for; LISTEN_FDS, how many there are, from descriptor
3 on; LISTEN_FDNAMES, what they are called, between colons.

Ref: sd_listen_fds(3), systemd.socket(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

from vfio_user.errors import ConnectError
from vfio_user.transport.address import SystemdAddress

__all__ = ["activated_fd"]

#: The first descriptor passed (``SD_LISTEN_FDS_START``).
_FIRST = 3

#: More sockets than any unit has; a number beyond is a mistake, not a reason to loop.
_MOST = 4096


def activated_fd(address: SystemdAddress, environment: Mapping[str, str] | None = None, pid: int | None = None) -> int:
    """The descriptor of the socket an address means.

    All descriptors that were passed are kept from programs this one starts.

    Args:
        address: which.
        environment: where the variables are; None for this process's.
        pid: who asks; None for this process.

    Raises:
        ConnectError: systemd passed this process no sockets, none of that name, or several that fit.

    Ownership: the descriptor is the caller's. Ask for each once.
    """
    names = _names(os.environ if environment is None else environment, os.getpid() if pid is None else pid)
    for fd in range(_FIRST, _FIRST + len(names)):
        with contextlib.suppress(OSError):  # not open: whoever is given that one will say so
            os.set_inheritable(fd, False)
    fitting = [number for number, name in enumerate(names) if address.name in (None, name)]
    if not fitting:
        raise ConnectError(f"systemd passed no socket of the name {address.name!r}, but {_listed(names)}")
    if len(fitting) > 1:
        way_out = "write systemd:NAME" if address.name is None else "give each its own FileDescriptorName="
        raise ConnectError(f"{len(fitting)} of the sockets systemd passed fit {address}: {_listed(names)}; {way_out}")
    return _FIRST + fitting[0]


def _names(environment: Mapping[str, str], pid: int) -> list[str]:
    """The names of the sockets that were passed to this process: at least one."""
    if "LISTEN_PID" not in environment or "LISTEN_FDS" not in environment:
        raise ConnectError(
            "systemd passed no sockets: LISTEN_PID and LISTEN_FDS are not set. Start this program from a service that "
            "has a .socket unit, or with systemd-socket-activate"
        )
    if (addressee := _number(environment, "LISTEN_PID")) != pid:
        raise ConnectError(
            f"systemd passed its sockets to process {addressee}, and this is process {pid}. "
            f"Let ExecStart= start this program itself; a shell script starts it with exec"
        )
    count = _number(environment, "LISTEN_FDS")
    if not 1 <= count <= _MOST:
        raise ConnectError(f"systemd passed {count} sockets (LISTEN_FDS); it takes 1 to {_MOST}")
    # systemd calls nameless ones so, too.
    names = environment["LISTEN_FDNAMES"].split(":") if "LISTEN_FDNAMES" in environment else ["unknown"] * count
    if len(names) != count:
        raise ConnectError(f"systemd passed {count} sockets (LISTEN_FDS) and {len(names)} names (LISTEN_FDNAMES)")
    return names


def _number(environment: Mapping[str, str], variable: str) -> int:
    text = environment[variable]
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise ConnectError(f"{variable} is {text!r}, which is no number")
    return int(text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
