"""Persistent reservations: types, service actions, parameter data. Spec: SPC-4 5.13, 6.15, 6.16."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from vfio_user.hardware.scsi.layout import Layout

__all__ = [
    "RESERVE_OUT",
    "OutAction",
    "Registrant",
    "ReservationType",
    "capabilities_data",
    "full_status_data",
    "keys_data",
    "reservation_data",
]

#: The parameter list of PERSISTENT RESERVE OUT. Spec: 6.16.3.
RESERVE_OUT = Layout(
    24, reservation_key=(0, 7, 64), action_key=(8, 7, 64), spec_i_pt=(20, 3), all_tg_pt=(20, 2), aptpl=(20, 0)
)


class OutAction(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE_EXISTING_KEY = 6


class ReservationType(IntEnum):
    """What others may not do, and who the others are. Spec: 6.15.3.4."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8

    @property
    def excludes_reads(self) -> bool:
        """Others may not read either."""
        return self in (3, 6, 8)

    @property
    def spares_registrants(self) -> bool:
        """Whoever is registered is none of the others."""
        return self >= 5

    @property
    def is_held_by_all(self) -> bool:
        """Whoever is registered holds the reservation."""
        return self >= 7


class Registrant(NamedTuple):
    """An initiator that registered a key."""

    initiator: int
    key: int
    holds: bool


def keys_data(generation: int, keys: Iterable[int]) -> bytes:
    """READ KEYS. Spec: 6.15.2."""
    packed = b"".join(struct.pack(">Q", key) for key in keys)
    return struct.pack(">II", generation, len(packed)) + packed


def reservation_data(generation: int, key: int, kind: ReservationType | None) -> bytes:
    """READ RESERVATION. Spec: 6.15.3."""
    if kind is None:
        return struct.pack(">II", generation, 0)
    return struct.pack(">IIQ5xB2x", generation, 16, key, kind)


def capabilities_data() -> bytes:
    """REPORT CAPABILITIES: every type, nothing that survives a loss of power. Spec: 6.15.4."""
    return struct.pack(">HBBBB2x", 8, 0, 0x80, 0xEA, 0x01)


def full_status_data(generation: int, registrants: Iterable[Registrant], kind: ReservationType | None) -> bytes:
    """READ FULL STATUS, with the transport ids of a parallel bus. Spec: 6.15.5, 7.6.4.3."""
    descriptors = b"".join(
        struct.pack(">Q4xBB4xHI", each.key, each.holds, kind if each.holds and kind else 0, 1, 24)
        + struct.pack(">BxHxxH16x", 0x01, each.initiator & 0xFFFF, 1)
        for each in registrants
    )
    return struct.pack(">II", generation, len(descriptors)) + descriptors
