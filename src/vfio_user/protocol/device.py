"""DEVICE_GET_INFO. (DEVICE_RESET has no payload in either direction.)

Spec: "VFIO_USER_DEVICE_GET_INFO", "VFIO_USER_DEVICE_RESET".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.protocol.constants import DeviceFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["DeviceInfo", "DeviceInfoRequest"]

_FORM = struct.Struct("<IIII")


@dataclass(frozen=True, slots=True)
class DeviceInfoRequest:
    """A client asks what the device is.

    Attributes:
        argsz: bytes of reply payload the client has room for. (The rust client counts the header in: 32.)
    """

    argsz: int = _FORM.size

    @classmethod
    def decode(cls, payload: Bytes) -> DeviceInfoRequest:
        """Reads a request; fields that must be zero are ignored, as clients leave rubbish there.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 16 bytes.
        """
        argsz, *_ = unpack_head(_FORM, payload, "DEVICE_GET_INFO")
        check_argsz(argsz, _FORM.size, "DEVICE_GET_INFO")
        return cls(argsz)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _FORM.pack(self.argsz, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What the device is: the reply.

    Attributes:
        flags: what it can do.
        num_regions: region indexes that may be asked about, present or not.
        num_irqs: interrupt indexes that may be asked about.
    """

    flags: DeviceFlags
    num_regions: int
    num_irqs: int

    @classmethod
    def decode(cls, payload: Bytes) -> DeviceInfo:
        """Reads a reply.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes.
        """
        _, flags, num_regions, num_irqs = unpack_head(_FORM, payload, "DEVICE_GET_INFO reply")
        return cls(DeviceFlags(flags), num_regions, num_irqs)

    def encode(self) -> bytes:
        """Returns the payload: exactly 16 bytes, since QEMU and SPDK read no more."""
        return _FORM.pack(_FORM.size, self.flags, self.num_regions, self.num_irqs)
