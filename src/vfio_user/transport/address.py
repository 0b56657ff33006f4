"""The text that names an end point, the same wherever one is given.

====================  ======================================================================================
``unix:PATH``, PATH   a socket file
``fd:N``              a descriptor this process was started with
``systemd:``          the socket systemd passed, ``systemd:NAME`` the one of that name (``FileDescriptorName=``)
``tcp:HOST:PORT``     a TCP port; ``tcp:PORT`` is one of this machine, reached from it alone
``vsock:CID:PORT``    a port between a virtual machine and its host; ``vsock:PORT`` listens whatever the CID
====================  ======================================================================================

Only UNIX sockets carry file descriptors, so only there can memory be shared and interrupts be eventfds.

Spec: the backend program conventions of "vfio-user" know a socket path and an inherited descriptor.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from vfio_user.errors import AddressError

__all__ = [
    "Address",
    "FdAddress",
    "SystemdAddress",
    "TcpAddress",
    "UnixAddress",
    "VsockAddress",
    "exposure",
    "parse_address",
]

#: Bytes of ``sun_path``, the terminating NUL included (``linux/un.h``).
_SUN_PATH_SIZE = 108

#: The largest descriptor there can be: a C int.
_MAX_FD = 0x7FFF_FFFF

#: Where ``tcp:PORT`` is: a protocol without authentication stays on this machine unless somebody says otherwise.
_LOOPBACK = "127.0.0.1"

_MAX_TCP_PORT = 0xFFFF

#: The largest CID and port of ``linux/vm_sockets.h``; one more means "any" there.
_MAX_VSOCK = 0xFFFF_FFFE

#: A host's name or its IPv4 address: what DNS and /etc/hosts hold.
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")

#: The zone behind an IPv6 address, as in fe80::1%eth0: what a network interface can be called, but for brackets.
_ZONE = re.compile(r"[^\s/%\[\]\0]{1,15}")

#: What systemd allows in ``FileDescriptorName=``: ASCII, no control characters, no colon.
_FD_NAME = re.compile(r"[ -9;-~]{1,255}")

_FORMS = "write unix:PATH, fd:N, systemd:, tcp:HOST:PORT or vsock:CID:PORT"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket file.

    Attributes:
        path: where it is.

    Raises:
        AddressError: the path is empty, holds a NUL byte, or is longer than the 107 bytes a UNIX socket address has.
    """

    path: Path

    def __post_init__(self) -> None:
        """Refuses what could never be bound."""
        text = str(self.path)
        if text == ".":  # what pathlib makes of an empty path
            raise AddressError("the socket path is empty; write unix:PATH")
        size = len(text.encode("utf-8", "surrogateescape"))
        if "\0" in text:
            raise AddressError(f"the socket path {text!r} holds a NUL byte")
        if size >= _SUN_PATH_SIZE:
            raise AddressError(
                f"the socket path {text} has {size} bytes; a UNIX socket address holds {_SUN_PATH_SIZE - 1}. "
                f"Choose a shorter one, for instance in $XDG_RUNTIME_DIR or /tmp, or a relative one"
            )

    def __str__(self) -> str:
        """The text ``parse_address`` reads."""
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A descriptor this process was started with: a listening socket, or a connection.

    Attributes:
        fd: its number.

    Raises:
        AddressError: no descriptor has such a number.
    """

    fd: int

    def __post_init__(self) -> None:
        """Refuses what could never be open."""
        if not 0 <= self.fd <= _MAX_FD:
            raise AddressError(f"descriptor {self.fd} cannot be: a descriptor has a number from 0 to {_MAX_FD}")

    def __str__(self) -> str:
        """The text ``parse_address`` reads."""
        return f"fd:{self.fd}"


@dataclass(frozen=True, slots=True)
class SystemdAddress:
    """A socket systemd passed to this process; ``transport.systemd`` finds its descriptor.

    Attributes:
        name: its ``FileDescriptorName=``; None when only one was passed.

    Raises:
        AddressError: systemd allows no such name.
    """

    name: str | None = None

    def __post_init__(self) -> None:
        """Refuses names systemd does."""
        if self.name is not None and not _FD_NAME.fullmatch(self.name):
            raise AddressError(
                f"systemd passes no socket of the name {self.name!r}: "
                f"a name has 1 to 255 printable ASCII characters and no colon"
            )

    def __str__(self) -> str:
        """The text ``parse_address`` reads."""
        return f"systemd:{self.name or ''}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port.

    Attributes:
        host: a name, an IPv4 or an IPv6 address (without brackets).
        port: its number; 0 to listen on any that is free.

    Raises:
        AddressError: no host or port can be called that.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        """Refuses what no resolver could make sense of."""
        if ":" in self.host:
            if not _is_ipv6(self.host):
                raise AddressError(f"the host {self.host!r} is no IPv6 address; write one as in tcp:[::1]:PORT")
        elif not _HOST.fullmatch(self.host):
            raise AddressError(f"the host {self.host!r} is neither a name nor an IP address")
        if not 0 <= self.port <= _MAX_TCP_PORT:
            raise AddressError(f"TCP port {self.port} cannot be: a port has a number from 0 to {_MAX_TCP_PORT}")

    @property
    def is_loopback(self) -> bool:
        """Only this machine's own processes can connect. False for every name but localhost, whatever it stands for."""
        return self.host in ("localhost", "::1") or self.host.startswith(("127.", "::ffff:127."))

    def __str__(self) -> str:
        """The text ``parse_address`` reads."""
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A port of a VM socket.

    Attributes:
        cid: whose: 2 is the host, 1 this machine itself, 3 and up are guests; None to listen whatever this one's is.
        port: its number; 0 to listen on any that is free. Those below 1024 take privileges to listen on.

    Raises:
        AddressError: there is no such CID or port.
    """

    cid: int | None
    port: int

    def __post_init__(self) -> None:
        """Refuses numbers that mean "any", and those that do not fit."""
        if self.cid is not None and not 0 <= self.cid <= _MAX_VSOCK:
            raise AddressError(
                f"CID {self.cid} cannot be: it is a number from 0 to {_MAX_VSOCK}; write vsock:PORT for any"
            )
        if not 0 <= self.port <= _MAX_VSOCK:
            raise AddressError(f"vsock port {self.port} cannot be: a port has a number from 0 to {_MAX_VSOCK}")

    def __str__(self) -> str:
        """The text ``parse_address`` reads."""
        return f"vsock:{self.port}" if self.cid is None else f"vsock:{self.cid}:{self.port}"


Address = UnixAddress | FdAddress | SystemdAddress | TcpAddress | VsockAddress


def parse_address(text: str | Path | Address) -> Address:
    """Reads an address.

    Args:
        text: one of the forms in the table above, a path (anything with no colon, or with a slash before the first),
            or an address already.

    Raises:
        AddressError: it is none of those.
    """
    if isinstance(text, Address):
        return text
    if isinstance(text, Path):
        return UnixAddress(text)
    scheme, colon, rest = text.partition(":")
    if not colon or "/" in scheme:
        scheme, rest = "unix", text
    if scheme == "systemd":
        return SystemdAddress(rest or None)
    if not rest:
        raise AddressError(f"the address {text!r} is empty; {_FORMS}")
    if scheme == "unix":
        return UnixAddress(Path(rest))
    if scheme == "fd":
        if rest == "systemd":
            return SystemdAddress()
        return FdAddress(
            _number(rest, f"the address {text!r} names no descriptor; write fd:N with a number, as in fd:3")
        )
    if scheme == "tcp":
        return _parse_tcp(text, rest)
    if scheme == "vsock":
        return _parse_vsock(text, rest)
    raise AddressError(f"the address {text!r} has the unknown scheme {scheme!r}; {_FORMS}")


def exposure(address: Address) -> str | None:
    """What to tell whoever listens there, if others than this machine's processes can connect; None if they cannot.

    A socket file has permissions, and a VM socket connects a host with its own guests; a TCP port is open to everybody.
    """
    if isinstance(address, TcpAddress) and not address.is_loopback:
        return f"vfio-user has no authentication: whoever can reach {address} can drive the device"
    return None


def _parse_tcp(text: str, rest: str) -> TcpAddress:
    complaint = f"the address {text!r} names no TCP port; write tcp:PORT, tcp:HOST:PORT or tcp:[IPV6]:PORT"
    if rest.startswith("["):
        host, closed, port = rest[1:].partition("]")
        if not closed or not port.startswith(":"):
            raise AddressError(complaint)
        if not _is_ipv6(host):
            raise AddressError(f"the address {text!r} has brackets around {host!r}, which is no IPv6 address")
        return TcpAddress(host, _number(port[1:], complaint))
    host, colon, port = rest.rpartition(":")
    if ":" in host:
        raise AddressError(
            f"the address {text!r} has too many colons; an IPv6 address goes in brackets: tcp:[::1]:PORT"
        )
    if colon and not host:
        raise AddressError(f"the address {text!r} names no host; write tcp:PORT for this machine alone")
    return TcpAddress(host or _LOOPBACK, _number(port, complaint))


def _parse_vsock(text: str, rest: str) -> VsockAddress:
    complaint = (
        f"the address {text!r} names no VM socket; write vsock:CID:PORT or vsock:PORT with numbers, as in vsock:2:5000"
    )
    cid, colon, port = rest.rpartition(":")
    return VsockAddress(_number(cid, complaint) if colon else None, _number(port, complaint))


def _number(text: str, complaint: str) -> int:
    # Ten digits hold every number there is here; Python refuses to read one of thousands.
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise AddressError(complaint)
    return int(text)


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        return False
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):  # ValueError: a NUL byte, or text that cannot be encoded
        return False
    return True
