"""DEVICE_FEATURE, and the data of the five features there are: migration, its state, and the log of dirty pages.

A message of it is a head, which says what is to be done with which feature, and the feature's data behind it. ``GET``
asks for data (which may itself need some, as a report of dirty pages does), ``SET`` brings it, and ``PROBE`` only asks
whether the feature can be got, set, or had at all.

Spec: "VFIO_USER_DEVICE_FEATURE"; ``struct vfio_device_feature`` and ``VFIO_DEVICE_FEATURE_*`` of ``linux/vfio.h``. In
0.9.1 there is no such command.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import ClassVar

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.payload import Bytes, unpack_head

__all__ = [
    "FEATURE_OPERATIONS",
    "DeviceFeature",
    "DirtyReport",
    "DmaLoggingStart",
    "Feature",
    "FeatureFlags",
    "MigrationFlags",
    "MigrationStateData",
    "MigrationSupport",
    "bitmap_size",
]

_HEAD = struct.Struct("<II")
_SUPPORT = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_START = struct.Struct("<QII")
_RANGE = struct.Struct("<QQ")
_REPORT = struct.Struct("<QQQ")


class Feature(IntEnum):
    """Spec: ``VFIO_DEVICE_FEATURE_*`` of ``linux/vfio.h``; the numbers between are of no use over a socket."""

    #: Which kinds of migration the device can.
    MIGRATION = 1
    #: The state its migration is in.
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    #: The pages of one range that were written since the last report of it.
    DMA_LOGGING_REPORT = 8


class FeatureFlags(IntFlag):
    """What is asked for. Spec: ``VFIO_DEVICE_FEATURE_*`` of ``linux/vfio.h``; the low half is the feature's number."""

    GET = 1 << 16
    SET = 1 << 17
    #: Nothing is got or set; the reply only says whether it could be.
    PROBE = 1 << 18

    FEATURE_MASK = 0xFFFF


class MigrationFlags(IntFlag):
    """Kinds of migration. Spec: ``VFIO_MIGRATION_*`` of ``linux/vfio.h``."""

    #: The device is saved while it is stopped; without it there is no migration at all.
    STOP_COPY = 1 << 0
    #: It can be kept from reaching other devices, and still run.
    P2P = 1 << 1
    #: Saving can begin while it runs.
    PRE_COPY = 1 << 2


# Plain integers: the complement of an IntFlag has only the bits that have names.
_FEATURE_MASK = FeatureFlags.FEATURE_MASK.value
_GET_AND_SET = FeatureFlags.GET.value | FeatureFlags.SET.value
_OPERATIONS = _GET_AND_SET | FeatureFlags.PROBE.value

#: What can be done with each feature, apart from probing it.
FEATURE_OPERATIONS: Mapping[int, FeatureFlags] = {
    Feature.MIGRATION: FeatureFlags.GET,
    Feature.MIG_DEVICE_STATE: FeatureFlags.GET | FeatureFlags.SET,
    Feature.DMA_LOGGING_START: FeatureFlags.SET,
    Feature.DMA_LOGGING_STOP: FeatureFlags.SET,
    Feature.DMA_LOGGING_REPORT: FeatureFlags.GET,
}


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """The head of a request, and of its reply; the feature's data follows.

    Attributes:
        feature: a ``Feature``, or a number that is none.
        operation: ``GET`` or ``SET``; or ``PROBE``, alone or with what is asked about.
        argsz: bytes of payload, head included: a request's are those the client has room for in the reply.
    """

    feature: int
    operation: FeatureFlags
    argsz: int

    #: Bytes of the head, and so the offset of the data.
    SIZE: ClassVar[int] = _HEAD.size

    @classmethod
    def decode(cls, payload: Bytes) -> DeviceFeature:
        """Reads the head of a request or a reply.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes; there is no operation, an unknown one, or both ``GET``
                and ``SET`` without ``PROBE``.
        """
        argsz, flags = unpack_head(_HEAD, payload, "DEVICE_FEATURE")
        operation = flags & ~_FEATURE_MASK
        if not operation or operation & ~_OPERATIONS or operation == _GET_AND_SET:
            raise RemoteProtocolError(
                f"DEVICE_FEATURE: flags {flags:#x} have to say get (0x10000), set (0x20000), or probe (0x40000) with "
                "any of those"
            )
        return cls(flags & _FEATURE_MASK, FeatureFlags(operation), argsz)

    def encode(self) -> bytes:
        """Returns the head; the data goes behind it."""
        return _HEAD.pack(self.argsz, self.operation | self.feature)

    def check_supported(self) -> None:
        """Checks that there is such a feature, and that what is asked for can be done with it.

        Raises:
            RemoteProtocolError: there is not, or it cannot.
        """
        possible = FEATURE_OPERATIONS.get(self.feature)
        if possible is None:
            raise RemoteProtocolError(f"DEVICE_FEATURE: {self.feature} is no feature known here")
        if self.operation & ~(possible | FeatureFlags.PROBE):
            raise RemoteProtocolError(
                f"DEVICE_FEATURE: {Feature(self.feature).name} is there to {possible.name or 'get and set'}, "
                f"flags {self.operation:#x} ask for more"
            )


@dataclass(frozen=True, slots=True)
class MigrationSupport:
    """The data of ``MIGRATION``.

    Attributes:
        flags: what the device can.
    """

    flags: MigrationFlags

    SIZE: ClassVar[int] = _SUPPORT.size

    @classmethod
    def decode(cls, data: Bytes) -> MigrationSupport:
        """Reads the data.

        Raises:
            RemoteProtocolError: it is under 8 bytes.
        """
        return cls(MigrationFlags(*unpack_head(_SUPPORT, data, "feature MIGRATION")))

    def encode(self) -> bytes:
        """Returns the data."""
        return _SUPPORT.pack(self.flags)


@dataclass(frozen=True, slots=True)
class MigrationStateData:
    """The data of ``MIG_DEVICE_STATE``.

    Attributes:
        state: the state to go to, or the one the device is in.
        data_fd: without a meaning here: the data goes in MIG_DATA_READ and MIG_DATA_WRITE.
    """

    state: MigrationState
    data_fd: int = 0

    SIZE: ClassVar[int] = _STATE.size

    @classmethod
    def decode(cls, data: Bytes) -> MigrationStateData:
        """Reads the data.

        Raises:
            RemoteProtocolError: it is under 8 bytes, or the state is none of the eight.
        """
        state, data_fd = unpack_head(_STATE, data, "feature MIG_DEVICE_STATE")
        if state not in _STATES:
            raise RemoteProtocolError(f"feature MIG_DEVICE_STATE: {state} is no migration state")
        return cls(MigrationState(state), data_fd)

    def encode(self) -> bytes:
        """Returns the data."""
        return _STATE.pack(self.state, self.data_fd)


@dataclass(frozen=True, slots=True)
class DmaLoggingStart:
    """The data of ``DMA_LOGGING_START``.

    Attributes:
        page_size: bytes of a page of the log.
        ranges: (IOVA, bytes) of what is to be logged; none for everything.
    """

    page_size: int
    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def decode(cls, data: Bytes) -> DmaLoggingStart:
        """Reads the data.

        Raises:
            RemoteProtocolError: it is under 16 bytes, or holds fewer ranges than it counts.
        """
        page_size, count, _reserved = unpack_head(_START, data, "feature DMA_LOGGING_START")
        listed = data[_START.size :]
        if len(listed) < count * _RANGE.size:
            raise RemoteProtocolError(
                f"feature DMA_LOGGING_START: {len(listed)} bytes came for {count} ranges of {_RANGE.size}"
            )
        return cls(page_size, tuple(_RANGE.iter_unpack(listed[: count * _RANGE.size])))

    def encode(self) -> bytes:
        """Returns the data."""
        return _START.pack(self.page_size, len(self.ranges), 0) + b"".join(_RANGE.pack(*entry) for entry in self.ranges)


@dataclass(frozen=True, slots=True)
class DirtyReport:
    """The data of ``DMA_LOGGING_REPORT``; in the reply the bitmap follows, ``bitmap_size`` bytes.

    Attributes:
        iova: where the range, and bit 0, begins.
        length: bytes of the range.
        page_size: bytes a bit stands for.
    """

    iova: int
    length: int
    page_size: int

    SIZE: ClassVar[int] = _REPORT.size

    @classmethod
    def decode(cls, data: Bytes) -> DirtyReport:
        """Reads the data.

        Raises:
            RemoteProtocolError: it is under 24 bytes.
        """
        return cls(*unpack_head(_REPORT, data, "feature DMA_LOGGING_REPORT"))

    def encode(self) -> bytes:
        """Returns the data, without a bitmap."""
        return _REPORT.pack(self.iova, self.length, self.page_size)


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of the bitmap of a range: one bit a page, in whole little-endian words of 64 bits.

    Bit i of word w is page 64 * w + i. (The specification prints another formula; every peer does this.)

    Args:
        length: bytes of the range.
        page_size: bytes of a page, 1 or more.
    """
    pages = -(-length // page_size)
    return -(-pages // 64) * 8


_STATES = frozenset(MigrationState)
