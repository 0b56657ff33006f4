"""The 16 bytes every message begins with, and the replies that are nothing but those.

Spec: "Header". Everything on the wire is little-endian: 0.9.1 says so, the current text says host order, and every
deployment there is runs on a little-endian host.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from vfio_user.errors import LocalProtocolError
from vfio_user.protocol.constants import HEADER_SIZE, Command, HeaderFlags, MessageType

__all__ = ["HEADER", "Header", "command_header", "command_name", "error_reply", "reply_header"]

#: message id u16, command u16, message size u32, flags u32, error u32.
HEADER = struct.Struct("<HHIII")

#: The largest errno of Linux (MAX_ERRNO of linux/err.h).
_MAX_ERRNO = 4095

_TYPE_MASK = HeaderFlags.TYPE_MASK.value
_REPLY = HeaderFlags.REPLY.value
_ERROR_REPLY = (HeaderFlags.REPLY | HeaderFlags.ERROR).value


class Header(NamedTuple):
    """A message header, as plain integers: an unknown command or flag must survive being looked at.

    Attributes:
        message_id: the sender's; a reply repeats it. Peers reuse ids freely (SPDK sends 0 every time).
        command: a ``Command``, or a number that is none.
        message_size: bytes of the whole message, this header included.
        flags: ``HeaderFlags``.
        error: errno of a reply whose ERROR flag is set; ignored otherwise.
    """

    message_id: int
    command: int
    message_size: int
    flags: int
    error: int

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Header:
        """Reads a header at ``offset``; validates nothing.

        Raises:
            struct.error: fewer than 16 bytes there.
        """
        return cls._make(HEADER.unpack_from(data, offset))

    def encode(self) -> bytes:
        """Returns the 16 bytes."""
        return HEADER.pack(*self)

    @property
    def is_command(self) -> bool:
        """The message asks for something."""
        return self.flags & _TYPE_MASK == MessageType.COMMAND

    @property
    def is_reply(self) -> bool:
        """The message answers something."""
        return self.flags & _TYPE_MASK == MessageType.REPLY

    @property
    def no_reply(self) -> bool:
        """The sender wants no reply, not even an error."""
        return bool(self.flags & HeaderFlags.NO_REPLY)

    @property
    def is_error(self) -> bool:
        """A reply that reports a failure; ``error`` may still be 0, which some peers send."""
        return bool(self.flags & HeaderFlags.ERROR)

    def __str__(self) -> str:
        """One line for logs; survives any content."""
        type_ = self.flags & _TYPE_MASK
        kind = ("command", "reply")[type_] if type_ <= MessageType.REPLY else f"type {type_}"
        parts = [f"{command_name(self.command)} {kind}", f"id={self.message_id}", f"size={self.message_size}"]
        if self.no_reply:
            parts.append("no_reply")
        if self.is_error:
            # strerror takes a C int; what a peer sends may be none.
            text = os.strerror(self.error) if self.error <= _MAX_ERRNO else "no errno"
            parts.append(f"error={self.error} ({text})")
        return " ".join(parts)


def command_name(command: int) -> str:
    """The command's name in the specification, or its number if it has none there."""
    try:
        return Command(command).name
    except ValueError:
        return f"command {command}"


def command_header(message_id: int, command: int, payload_size: int, *, no_reply: bool = False) -> bytes:
    """Returns the header of a command whose payload has that many bytes."""
    return HEADER.pack(message_id, command, HEADER_SIZE + payload_size, HeaderFlags.NO_REPLY if no_reply else 0, 0)


def reply_header(message_id: int, command: int, payload_size: int) -> bytes:
    """Returns the header of a successful reply whose payload has that many bytes."""
    return HEADER.pack(message_id, command, HEADER_SIZE + payload_size, _REPLY, 0)


def error_reply(message_id: int, command: int, error: int) -> bytes:
    """Returns a whole error reply: a header, nothing else.

    Raises:
        LocalProtocolError: ``error`` is not in 1..4095. Zero would be taken for success: QEMU returns the field as the
            result of the operation.
    """
    if not 1 <= error <= _MAX_ERRNO:
        raise LocalProtocolError(f"an error reply cannot carry errno {error}: it must be 1 to 4095")
    return HEADER.pack(message_id, command, HEADER_SIZE, _ERROR_REPLY, error)
