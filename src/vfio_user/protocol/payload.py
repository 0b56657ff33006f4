"""What the payload codecs share: unpacking with a length check, and the ``argsz`` rule.

Spec: VFIO's structures begin with ``argsz``; in a request it is the room the client has for the reply's payload.
"""

from __future__ import annotations

import struct
from typing import Any

from vfio_user.errors import RemoteProtocolError

__all__ = ["Bytes", "check_argsz", "unpack_head"]

#: What a payload may be while it is decoded.
Bytes = bytes | bytearray | memoryview


def unpack_head(form: struct.Struct, payload: Bytes, what: str) -> tuple[Any, ...]:
    """Unpacks the fixed part at the start of a payload; what follows it is left alone.

    A payload longer than the structure is accepted: SPDK and libvfio-user's client pad their requests.

    Raises:
        RemoteProtocolError: the payload is shorter than that.
    """
    if len(payload) < form.size:
        raise RemoteProtocolError(f"{what}: a payload of {len(payload)} bytes is shorter than the {form.size} it needs")
    return form.unpack_from(payload)


def check_argsz(argsz: int, minimum: int, what: str) -> None:
    """Checks a request's ``argsz`` against the fixed part of the reply.

    Raises:
        RemoteProtocolError: it is smaller.
    """
    if argsz < minimum:
        raise RemoteProtocolError(f"{what}: argsz {argsz} is smaller than the fixed part of {minimum} bytes")
