"""The text that names an end point: ``unix:PATH``, ``fd:N``, or a bare path.

Spec: the backend program conventions of "vfio-user" know a socket path and an inherited descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vfio_user.errors import AddressError

__all__ = ["Address", "FdAddress", "UnixAddress", "parse_address"]

#: Bytes of ``sun_path``, the terminating NUL included (``linux/un.h``).
_SUN_PATH_SIZE = 108

#: The largest descriptor there can be: a C int.
_MAX_FD = 0x7FFF_FFFF


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


Address = UnixAddress | FdAddress


def parse_address(text: str | Path | Address) -> Address:
    """Reads an address.

    Args:
        text: ``unix:PATH``, ``fd:N``, a path (anything with no colon, or with a slash before the first), or an
            address already.

    Raises:
        AddressError: it is none of those.
    """
    if isinstance(text, UnixAddress | FdAddress):
        return text
    if isinstance(text, Path):
        return UnixAddress(text)
    scheme, colon, rest = text.partition(":")
    if not colon or "/" in scheme:
        scheme, rest = "unix", text
    if not rest:
        raise AddressError(f"the address {text!r} is empty; write unix:PATH or fd:N")
    if scheme == "unix":
        return UnixAddress(Path(rest))
    if scheme == "fd":
        # Ten digits hold every descriptor; Python refuses to read a number of thousands.
        if not (rest.isascii() and rest.isdigit() and len(rest) <= 10):
            raise AddressError(f"the address {text!r} names no descriptor; write fd:N with a number, as in fd:3")
        return FdAddress(int(rest))
    raise AddressError(f"the address {text!r} has the unknown scheme {scheme!r}; write unix:PATH or fd:N")
