"""Accesses through a socket instead of by messages: what passes over an *ioregionfd*.

A command says where and how wide; a read is answered by its value, a write only if it asks for that. Both have 32
bytes. They were made for KVM, which never got them: this is the form of the last series of patches that was posted for
it (2021), and vfio-user has none of its own.

::

    command   u8 0 read or 1 write, u8 size exponent (bits 0-3) and "answer" (bit 4), 6 bytes of nothing,
              u64 user_data, u64 offset in the entry's range, u64 data
    reply     u64 data, 24 bytes of nothing

Spec: vfio-user "VFIO_USER_DEVICE_GET_REGION_IO_FDS", which refers to KVM's ``struct ioregionfd_cmd``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.payload import Bytes, unpack_head

__all__ = ["IO_REGION_SIZE", "IoRegionCommand", "decode_io_region_reply", "encode_io_region_reply"]

_COMMAND = struct.Struct("<BB6xQQQ")
_REPLY = struct.Struct("<Q24x")

#: Bytes of a command, and of a reply.
IO_REGION_SIZE = _COMMAND.size

_WRITE = 1
_ANSWER = 1 << 4


@dataclass(frozen=True, slots=True)
class IoRegionCommand:
    """One access.

    Attributes:
        is_write: it writes ``data``; else it reads.
        size: bytes: 1, 2, 4 or 8.
        offset: bytes into the range of the entry.
        data: what is written.
        wants_reply: who sent it waits for the reply; true of every read.
        user_data: the entry's.
    """

    is_write: bool
    size: int
    offset: int
    data: int = 0
    wants_reply: bool = True
    user_data: int = 0

    @classmethod
    def decode(cls, command: Bytes) -> IoRegionCommand:
        """Reads a command.

        Raises:
            RemoteProtocolError: it is under 32 bytes, or neither a read nor a write, or of more than 8 bytes.
        """
        number, how, user_data, offset, data = unpack_head(_COMMAND, command, "ioregionfd")
        exponent = how & 0xF
        if number > _WRITE or exponent > 3:
            raise RemoteProtocolError(
                f"ioregionfd: command {number} of 2**{exponent} bytes; 0 and 1, up to 2**3, exist"
            )
        size = 1 << exponent
        return cls(number == _WRITE, size, offset, data & (1 << 8 * size) - 1, bool(how & _ANSWER), user_data)

    def encode(self) -> bytes:
        """Returns the 32 bytes."""
        how = self.size.bit_length() - 1 | (_ANSWER if self.wants_reply else 0)
        return _COMMAND.pack(self.is_write, how, self.user_data, self.offset, self.data)


def encode_io_region_reply(data: int) -> bytes:
    """The reply: the value that was read, or anything."""
    return _REPLY.pack(data)


def decode_io_region_reply(reply: Bytes) -> int:
    """The value in a reply.

    Raises:
        RemoteProtocolError: it is under 32 bytes.
    """
    (data,) = unpack_head(_REPLY, reply, "ioregionfd reply")
    return int(data)
