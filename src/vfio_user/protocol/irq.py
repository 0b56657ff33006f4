"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

Spec: "VFIO_USER_DEVICE_GET_IRQ_INFO", "VFIO_USER_DEVICE_SET_IRQS"; ``struct vfio_irq_set`` of ``linux/vfio.h``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import IrqInfoFlags, IrqSetFlags
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["IrqInfo", "IrqInfoRequest", "SetIrqs"]

_INFO = struct.Struct("<IIII")
_SET = struct.Struct("<IIIII")

_ONE_ACTION = (IrqSetFlags.ACTION_MASK, IrqSetFlags.ACTION_UNMASK, IrqSetFlags.ACTION_TRIGGER)
_ONE_DATA = (IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD)
#: An int on purpose: ``~`` of an IntFlag inverts its named bits alone, and every other would pass for known.
_KNOWN = int(IrqSetFlags.DATA_MASK | IrqSetFlags.ACTION_TYPE_MASK)


@dataclass(frozen=True, slots=True)
class IrqInfoRequest:
    """A client asks about one kind of interrupt.

    Attributes:
        index: an ``IrqIndex``, or a number that is none.
    """

    index: int

    @classmethod
    def decode(cls, payload: Bytes) -> IrqInfoRequest:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 16 bytes.
        """
        argsz, _, index, _ = unpack_head(_INFO, payload, "DEVICE_GET_IRQ_INFO")
        check_argsz(argsz, _INFO.size, "DEVICE_GET_IRQ_INFO")
        return cls(index)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _INFO.pack(_INFO.size, 0, self.index, 0)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """One kind of interrupt: the reply.

    Attributes:
        index: which.
        flags: how its vectors can be used.
        count: vectors; 0 for a kind the device does not have.
    """

    index: int
    flags: IrqInfoFlags
    count: int

    @classmethod
    def decode(cls, payload: Bytes) -> IrqInfo:
        """Reads a reply.

        Raises:
            RemoteProtocolError: the payload is under 16 bytes.
        """
        _, flags, index, count = unpack_head(_INFO, payload, "DEVICE_GET_IRQ_INFO reply")
        return cls(index, IrqInfoFlags(flags), count)

    def encode(self) -> bytes:
        """Returns the payload: exactly 16 bytes, since QEMU reads no more."""
        return _INFO.pack(_INFO.size, self.flags, self.index, self.count)


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """A client connects, disconnects, masks, unmasks or fires vectors.

    With ``DATA_EVENTFD`` the message carries ``count`` descriptors, or none to disconnect. ``DATA_NONE`` and
    ``ACTION_TRIGGER`` with ``start`` and ``count`` 0 disable the whole index.

    Attributes:
        flags: one of the DATA and one of the ACTION bits.
        index: an ``IrqIndex``, or a number that is none.
        start: first vector.
        count: vectors.
        bools: with ``DATA_BOOL``, a byte for each vector: non-zero to act on it; else None.
    """

    flags: IrqSetFlags
    index: int
    start: int
    count: int
    bools: bytes | None = None

    @classmethod
    def decode(cls, payload: Bytes) -> SetIrqs:
        """Reads a request; whether the device has those vectors is for the receiver to say.

        Raises:
            RemoteProtocolError: the payload or ``argsz`` is under 20 bytes; not exactly one action, or not exactly one
                kind of data, or an unknown bit in ``flags``; ``DATA_BOOL`` without exactly ``count`` bytes.
        """
        argsz, flags, index, start, count = unpack_head(_SET, payload, "DEVICE_SET_IRQS")
        check_argsz(argsz, _SET.size, "DEVICE_SET_IRQS")
        if flags & IrqSetFlags.ACTION_TYPE_MASK not in _ONE_ACTION:
            raise RemoteProtocolError(
                f"DEVICE_SET_IRQS: flags {flags:#x} must have exactly one action: 0x8 mask, 0x10 unmask, 0x20 trigger"
            )
        if flags & IrqSetFlags.DATA_MASK not in _ONE_DATA:
            raise RemoteProtocolError(
                f"DEVICE_SET_IRQS: flags {flags:#x} must have exactly one kind of data: 0x1 none, 0x2 bool, 0x4 eventfd"
            )
        if flags & ~_KNOWN:
            raise RemoteProtocolError(f"DEVICE_SET_IRQS: flags {flags:#x} has bits that mean nothing")
        bools = None
        if flags & IrqSetFlags.DATA_BOOL:
            bools = bytes(payload[_SET.size :])
            if len(bools) != count:
                raise RemoteProtocolError(f"DEVICE_SET_IRQS: {len(bools)} bytes of booleans came for {count} vectors")
        return cls(IrqSetFlags(flags), index, start, count, bools)

    def encode(self) -> bytes:
        """Returns the payload."""
        data = self.bools or b""
        return _SET.pack(_SET.size + len(data), self.flags, self.index, self.start, self.count) + data
