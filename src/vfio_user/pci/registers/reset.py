"""The kinds of reset a register can tell apart."""

from __future__ import annotations

import enum

__all__ = ["ResetKind"]


class ResetKind(enum.Enum):
    """Why registers take their reset values; the value is the word used in descriptions and in saved files.

    A register without reset values of its own for a kind takes the one for POWER_ON; sticky bits keep what they hold.
    """

    #: The device comes to life. Nothing is sticky over it.
    POWER_ON = "power-on"
    #: The client resets the device (VFIO_USER_DEVICE_RESET), or the bus it sits on is reset.
    DEVICE = "device"
    #: Function Level Reset. Spec: PCI Express Base 6.6.2.
    FLR = "flr"
    #: The function comes back from D3hot without No_Soft_Reset. Spec: PCI Power Management 5.4.1.
    D3_HOT = "d3hot"
    #: A bit of the device's own registers asked for it.
    SOFTWARE = "software"
