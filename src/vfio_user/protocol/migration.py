"""Migration: the states of a device that moves, and the commands its data moves by.

Theory of operation
-------------------

A device that is being moved exists twice. The client stops the *source*, takes its state as a string of bytes, and
puts these into the *destination*, a device of the same class that has not run yet. It drives both by setting a state:

=============  =====================================================================================================
``RUNNING``    The device works. Every device begins here.
``PRE_COPY``   It works, and what it would save already can be read: a rehearsal, so that the stop is short.
``STOP``       It does nothing on its own: no DMA, no interrupts, no timers. Its state stays as it is.
``STOP_COPY``  As ``STOP``, and its state can be read, with MIG_DATA_READ.
``RESUMING``   Its state is being replaced, with MIG_DATA_WRITE; leaving for ``STOP`` puts it into effect.
``ERROR``      A transition failed half way: nobody knows what state it is in. Only a reset leads out.
=============  =====================================================================================================

A device knows how to take single steps (*arcs*)::

    RESUMING <──> STOP <──> RUNNING <──> PRE_COPY
                   ^                        |
                   └──────> STOP_COPY <─────┘

A client names any state as its goal; the device takes the shortest way there, arc by arc, on which no state that saves
or restores is passed through. ``_NEXT`` is that rule worked out: for each state the first step towards each goal. A
goal with no way to it is refused, and the state stays. A goal that is the state already is reached by doing nothing.
One way is excepted, as it would throw away what was saved: from ``STOP_COPY`` back to ``PRE_COPY``.

The two states for devices that reach each other directly (``..._P2P``) have numbers, and no way to them.

Spec: "VFIO_USER_DEVICE_FEATURE", "VFIO_USER_MIG_DATA_READ", "VFIO_USER_MIG_DATA_WRITE"; ``enum vfio_device_mig_state``
of ``linux/vfio.h``, whose comment states the rule. (0.9.1 has another protocol: see ``dirty_pages``.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.payload import Bytes, check_argsz, unpack_head

__all__ = ["ARCS", "MigDataRead", "MigDataReadReply", "MigDataWrite", "MigrationState", "next_state"]

_DATA = struct.Struct("<II")


class MigrationState(IntEnum):
    """See the module. Spec: ``enum vfio_device_mig_state`` of ``linux/vfio.h``."""

    ERROR = 0
    STOP = 1
    RUNNING = 2
    STOP_COPY = 3
    RESUMING = 4
    RUNNING_P2P = 5
    PRE_COPY = 6
    PRE_COPY_P2P = 7


_STOP = MigrationState.STOP
_RUNNING = MigrationState.RUNNING
_STOP_COPY = MigrationState.STOP_COPY
_RESUMING = MigrationState.RESUMING
_PRE_COPY = MigrationState.PRE_COPY

#: The single steps a device can take: from, to.
ARCS = frozenset(
    {
        (_STOP, _RUNNING),
        (_RUNNING, _STOP),
        (_STOP, _STOP_COPY),
        (_STOP_COPY, _STOP),
        (_STOP, _RESUMING),
        (_RESUMING, _STOP),
        (_RUNNING, _PRE_COPY),
        (_PRE_COPY, _RUNNING),
        (_PRE_COPY, _STOP_COPY),
    }
)

#: From each state, the first step towards each goal; no entry where there is no way.
_NEXT: Mapping[MigrationState, Mapping[MigrationState, MigrationState]] = MappingProxyType(
    {
        _STOP: {_RUNNING: _RUNNING, _STOP_COPY: _STOP_COPY, _RESUMING: _RESUMING, _PRE_COPY: _RUNNING},
        _RUNNING: {_STOP: _STOP, _STOP_COPY: _STOP, _RESUMING: _STOP, _PRE_COPY: _PRE_COPY},
        _STOP_COPY: {_STOP: _STOP, _RUNNING: _STOP, _RESUMING: _STOP},
        _RESUMING: {_STOP: _STOP, _RUNNING: _STOP, _STOP_COPY: _STOP, _PRE_COPY: _STOP},
        _PRE_COPY: {_STOP: _RUNNING, _RUNNING: _RUNNING, _STOP_COPY: _STOP_COPY, _RESUMING: _RUNNING},
    }
)


def next_state(current: MigrationState, goal: MigrationState) -> MigrationState | None:
    """The first step from a state towards another.

    Args:
        current: where the device is; not the goal already.
        goal: where it is to go.

    Returns:
        The state to go to first; None when there is no way.
    """
    return _NEXT.get(current, {}).get(goal)


@dataclass(frozen=True, slots=True)
class MigDataRead:
    """The client asks for the next bytes of the device's state.

    Attributes:
        size: how many it takes; fewer in the reply say that these were the last.
    """

    size: int

    @classmethod
    def decode(cls, payload: Bytes) -> MigDataRead:
        """Reads a request.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes, or ``argsz`` leaves no room for so many bytes.
        """
        argsz, size = unpack_head(_DATA, payload, "MIG_DATA_READ")
        check_argsz(argsz, _DATA.size + size, "MIG_DATA_READ")
        return cls(size)

    def encode(self) -> bytes:
        """Returns the payload."""
        return _DATA.pack(_DATA.size + self.size, self.size)


@dataclass(frozen=True, slots=True)
class MigDataReadReply:
    """Bytes of the device's state.

    Attributes:
        data: the bytes.
    """

    data: bytes

    @classmethod
    def decode(cls, payload: Bytes) -> MigDataReadReply:
        """Reads a reply. What follows the bytes it counts is padding: libvfio-user fills up to the size asked for.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes, or holds fewer than it counts.
        """
        _argsz, size = unpack_head(_DATA, payload, "MIG_DATA_READ reply")
        return cls(_counted(payload, size, "MIG_DATA_READ reply"))

    def encode(self) -> bytes:
        """Returns the payload."""
        return _DATA.pack(_DATA.size + len(self.data), len(self.data)) + self.data


@dataclass(frozen=True, slots=True)
class MigDataWrite:
    """The client brings the next bytes of the state the device is to have. The reply is a header alone.

    Attributes:
        data: the bytes.
    """

    data: bytes

    @classmethod
    def decode(cls, payload: Bytes) -> MigDataWrite:
        """Reads a request; bytes beyond those it counts are dropped.

        Raises:
            RemoteProtocolError: the payload is under 8 bytes, or it or ``argsz`` is too small for what it counts.
        """
        argsz, size = unpack_head(_DATA, payload, "MIG_DATA_WRITE")
        check_argsz(argsz, _DATA.size + size, "MIG_DATA_WRITE")
        return cls(_counted(payload, size, "MIG_DATA_WRITE"))

    def encode(self) -> bytes:
        """Returns the payload."""
        return _DATA.pack(_DATA.size + len(self.data), len(self.data)) + self.data


def _counted(payload: Bytes, size: int, what: str) -> bytes:
    data = bytes(payload[_DATA.size : _DATA.size + size])
    if len(data) != size:
        raise RemoteProtocolError(f"{what}: {len(data)} bytes of data came for a size of {size}")
    return data
