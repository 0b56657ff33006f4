"""PCI devices in Python: for unmodified QEMU guests, and for pytest.

This module has what a device author needs; everything is found in its own package, too:

==============  =========================================================================
``server``      ``PciDevice``, and what serves it to a client
``pci``         registers, BARs, capabilities, configuration space
``memory``      the client's memory: DMA
``interrupts``  eventfds, masks, levels
``protocol``    the messages
``transport``   the sockets
``devices``     devices that come with the package
``vm``          QEMU, kernels and guests
==============  =========================================================================

Importing any of it pulls in the standard library alone; and this package by itself next to nothing, as pytest does at
every start, for its fixtures.
"""

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names
from vfio_user._version import __version__

if TYPE_CHECKING:
    from vfio_user.errors import DeviceError, VfioUserError
    from vfio_user.pci import (
        RC,
        RO,
        RW,
        RW1C,
        RW1S,
        W1P,
        WO,
        Field,
        IoBar,
        MemoryBar,
        Msi,
        MsiX,
        PciExpress,
        PowerManagement,
        Register,
        RegisterBlock,
        RegisterFile,
        ResetKind,
        on_change,
        on_read,
        on_write,
    )
    from vfio_user.regions import CallbackRegion, MemoryRegion, Region, SharedMemoryRegion
    from vfio_user.server.device import Device
    from vfio_user.server.pci_device import PciDevice
    from vfio_user.server.quiesce import Quiesce, QuiesceReason
    from vfio_user.server.server import Server, run_servers

__all__ = [
    "RC",
    "RO",
    "RW",
    "RW1C",
    "RW1S",
    "W1P",
    "WO",
    "CallbackRegion",
    "Device",
    "DeviceError",
    "Field",
    "IoBar",
    "MemoryBar",
    "MemoryRegion",
    "Msi",
    "MsiX",
    "PciDevice",
    "PciExpress",
    "PowerManagement",
    "Quiesce",
    "QuiesceReason",
    "Region",
    "Register",
    "RegisterBlock",
    "RegisterFile",
    "ResetKind",
    "Server",
    "SharedMemoryRegion",
    "VfioUserError",
    "__version__",
    "on_change",
    "on_read",
    "on_write",
    "run_servers",
]

__getattr__ = lazy_names(
    __name__,
    {
        "errors": ["DeviceError", "VfioUserError"],
        "pci": [
            "RC",
            "RO",
            "RW",
            "RW1C",
            "RW1S",
            "W1P",
            "WO",
            "Field",
            "IoBar",
            "MemoryBar",
            "Msi",
            "MsiX",
            "PciExpress",
            "PowerManagement",
            "Register",
            "RegisterBlock",
            "RegisterFile",
            "ResetKind",
            "on_change",
            "on_read",
            "on_write",
        ],
        "regions": ["CallbackRegion", "MemoryRegion", "Region", "SharedMemoryRegion"],
        "server.device": ["Device"],
        "server.pci_device": ["PciDevice"],
        "server.quiesce": ["Quiesce", "QuiesceReason"],
        "server.server": ["Server", "run_servers"],
    },
    modules=("devices", "errors", "interrupts", "memory", "pci", "protocol", "regions", "server", "transport", "vm"),
)
