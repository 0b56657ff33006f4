"""Drives a device from the other side of the socket, as a virtual machine would: for tests, drivers and tools.

==================  ==================================================================================
``pci_function``    ``PciFunction``: BARs, capabilities, interrupts, DMA - what a driver works with
``device``          ``VfioUserClient``: a method for each command
``live_migration``  ``migrate``: moves a running device from one server to another
``migration``       ``Migration``: the states, the data and the dirty pages that takes
``aio``             ``AsyncClient``: the same for asyncio
``connection``      ``Connection``: messages, replies, time limits, the server's own commands
==================  ==================================================================================

Nothing here knows of the server's half: it works with any server that speaks vfio-user.
"""

from vfio_user.client.bar import Bar
from vfio_user.client.config_space import ConfigSpace, FoundCapability
from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import DmaBuffer, GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.client.io_fds import IoFds
from vfio_user.client.irq import Irq, IrqVector
from vfio_user.client.live_migration import LiveMigration, MigrationLimits, MigrationReport, migrate
from vfio_user.client.message_interrupts import Msi, MsiX
from vfio_user.client.migration import Migration, find_migration
from vfio_user.client.pci_function import PciFunction
from vfio_user.client.region import DeviceRegion
from vfio_user.client.register_view import view_registers

__all__ = [
    "Bar",
    "ConfigSpace",
    "Connection",
    "DeviceRegion",
    "DmaBuffer",
    "FoundCapability",
    "GuestAddressSpace",
    "GuestMapping",
    "GuestMemory",
    "IoFds",
    "Irq",
    "IrqVector",
    "LiveMigration",
    "Migration",
    "MigrationLimits",
    "MigrationReport",
    "Msi",
    "MsiX",
    "PciFunction",
    "VfioUserClient",
    "find_migration",
    "migrate",
    "view_registers",
]
