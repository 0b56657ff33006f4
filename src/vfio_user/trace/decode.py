"""One message in words: a line, and its fields.

Pure functions of bytes. What a peer sends may be anything, so nothing here raises: a payload that cannot be read says
why instead. Offsets, addresses and masks are hexadecimal, counts decimal, ranges half-open.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from vfio_user.errors import ProtocolError
from vfio_user.protocol.constants import HEADER_SIZE, HeaderFlags
from vfio_user.protocol.header import Header, command_name
from vfio_user.trace.names import RegionNames
from vfio_user.trace.payloads import Fields, describe_payload
from vfio_user.trace.text import escape, show_data

__all__ = ["Decoded", "decode", "decode_message"]

_NO_NAMES = RegionNames()


@dataclass(frozen=True, slots=True)
class Decoded:
    """A message in words.

    Attributes:
        header: its header.
        summary: what it says, without its name: ``BAR0+0x4 liveness = 0x12345678``. May be empty.
        fields: name and value of all there is in it, the header's flags included.
        malformed: why its payload could not be read; empty when it could.
        fds: descriptors that came along.
    """

    header: Header
    summary: str
    fields: Fields
    malformed: str
    fds: int

    @property
    def is_failure(self) -> bool:
        """It reports an error, or is one."""
        return bool(self.malformed) or (self.header.is_reply and self.header.is_error)

    @property
    def line(self) -> str:
        """Id, name, what it says, and how many descriptors came along; no line end."""
        parts = [f"#{self.header.message_id}", command_name(self.header.command)]
        if self.malformed:
            parts.append(f"malformed: {self.malformed}")
        elif self.summary:
            parts.append(self.summary)
        text = " ".join(parts)
        return f"{text} ({self.fds} fd{'s' if self.fds != 1 else ''})" if self.fds else text


def decode_message(message: bytes, fds: int = 0, names: RegionNames = _NO_NAMES) -> Decoded:
    """Decodes a whole message, or what there is of one."""
    if len(message) < HEADER_SIZE:
        why = f"{len(message)} bytes are less than the {HEADER_SIZE} of a header"
        return Decoded(Header(0, 0, len(message), 0, 0), "", [("bytes", message.hex(" "))], why, fds)
    return decode(Header.decode(message), message[HEADER_SIZE:], fds, names)


def decode(header: Header, payload: bytes, fds: int = 0, names: RegionNames = _NO_NAMES) -> Decoded:
    """Decodes a message.

    Args:
        header: its header.
        payload: what followed it.
        fds: descriptors that came along.
        names: what knows the registers of the device.
    """
    fields = _header_fields(header)
    if header.is_reply and header.is_error:
        return Decoded(header, f"failed: {_errno_text(header.error)}", fields, "", fds)
    try:
        summary, more = describe_payload(header.command, payload, names, is_reply=header.is_reply)
    except (ProtocolError, struct.error) as exc:
        return Decoded(header, "", [*fields, ("payload", show_data(payload))], escape(str(exc)), fds)
    if header.no_reply:
        summary += ", posted" if summary else "posted"
    return Decoded(header, summary, fields + more, "", fds)


def _errno_text(error: int) -> str:
    name = errno.errorcode.get(error)
    return f"{name} ({os.strerror(error)})" if name else f"errno {error}"


def _header_fields(header: Header) -> Fields:
    names = ["command" if header.is_command else "reply" if header.is_reply else f"type {header.flags & 0xF}"]
    names += [
        name for flag, name in ((HeaderFlags.NO_REPLY, "no_reply"), (HeaderFlags.ERROR, "error")) if header.flags & flag
    ]
    unknown = header.flags & ~int(HeaderFlags.TYPE_MASK | HeaderFlags.NO_REPLY | HeaderFlags.ERROR)
    if unknown:
        names.append(f"{unknown:#x}")
    return [("message_size", str(header.message_size)), ("flags", "|".join(names))]
