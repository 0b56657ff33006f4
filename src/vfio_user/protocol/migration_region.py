"""The migration region: how the first migration protocol moves a device, by registers and a window.

Region 9 begins with four registers; behind them lies the window through which the data go.

======  =====  ====================  ==================================================================================
offset  bytes  register              meaning
======  =====  ====================  ==================================================================================
0       4      ``device_state``      what the device is to do; a write returns when it does it, or fails
8       8      ``pending_bytes``     what is left to read, as far as known; 0 when stopped says: all was read
16      8      ``data_offset``       where in the region the window is
24      8      ``data_size``         bytes in the window: the server says it while saving, the client while resuming
======  =====  ====================  ==================================================================================

Saving goes in rounds. To read ``pending_bytes`` begins one (and takes back nothing: it may be read again); if it is not
0, ``data_offset`` makes the server fill the window, ``data_size`` tells how far, and then the client reads that much.
A device in pre-copy that has nothing to say *now* has 0 bytes pending, and may have more later.

Resuming is the same in the other direction: ``data_offset``, then the data, then ``data_size``, which takes them in.

Spec: vfio-user 0.9.1 "VFIO device migration info";
``struct vfio_device_migration_info`` of ``linux/vfio.h`` before 5.18.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["MIGRATION_REGION_TYPE", "TRANSITIONS", "DeviceState", "MigrationRegister"]

#: Type and subtype in the region's type capability. Spec: ``VFIO_REGION_TYPE_MIGRATION``.
MIGRATION_REGION_TYPE = (3, 1)


class MigrationRegister(IntEnum):
    """Where the registers are, in bytes of the region."""

    DEVICE_STATE = 0
    #: Four bytes that mean nothing.
    RESERVED = 4
    PENDING_BYTES = 8
    DATA_OFFSET = 16
    DATA_SIZE = 24

    @property
    def width(self) -> int:
        """Bytes of an access; no other is possible."""
        return 4 if self < MigrationRegister.PENDING_BYTES else 8


class DeviceState(IntEnum):
    """What ``device_state`` says. The bits are running (1), saving (2) and resuming (4); 5 and 7 mean nothing."""

    STOPPED = 0
    RUNNING = 1
    STOP_AND_COPY = 2
    PRE_COPY = 3
    RESUMING = 4
    ERROR = 6


_S = DeviceState

#: Every state a client may write in each, its own aside, which changes nothing. The specification's table, and more
#: that clients do: to call a migration off in pre-copy (QEMU writes RUNNING, libvfio-user's client STOPPED), and to
#: declare a device broken. Out of ERROR only a reset leads.
TRANSITIONS = frozenset(
    {
        (_S.STOPPED, _S.RUNNING),
        (_S.RUNNING, _S.STOPPED),
        (_S.RUNNING, _S.STOP_AND_COPY),
        (_S.RUNNING, _S.PRE_COPY),
        (_S.RUNNING, _S.RESUMING),
        (_S.PRE_COPY, _S.STOP_AND_COPY),
        (_S.PRE_COPY, _S.RUNNING),
        (_S.PRE_COPY, _S.STOPPED),
        (_S.STOP_AND_COPY, _S.STOPPED),
        (_S.STOP_AND_COPY, _S.RUNNING),
        (_S.RESUMING, _S.RUNNING),
        (_S.RUNNING, _S.ERROR),
        (_S.PRE_COPY, _S.ERROR),
        (_S.STOP_AND_COPY, _S.ERROR),
        (_S.RESUMING, _S.ERROR),
    }
)
