"""Capabilities of a PCI function, one module each; declare them as class attributes of a device.

The reference is ``docs/pci.md``. Any other capability is a subclass of ``Capability`` or ``ExtendedCapability`` with
its registers declared in the register language.
"""

from vfio_user.pci.capabilities.base import AnyCapability, Capability, CapabilityHost, ExtendedCapability
from vfio_user.pci.capabilities.express import LINK_SPEEDS, PciExpress, PortType
from vfio_user.pci.capabilities.msi import Msi
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.pci.capabilities.power_management import PowerManagement, PowerState

__all__ = [
    "LINK_SPEEDS",
    "AnyCapability",
    "Capability",
    "CapabilityHost",
    "ExtendedCapability",
    "Msi",
    "MsiX",
    "PciExpress",
    "PortType",
    "PowerManagement",
    "PowerState",
]
