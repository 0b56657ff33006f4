"""Capabilities of a PCI function, one module each; declare them as class attributes of a device.

The reference is ``docs/pci.md``. Any other capability is a subclass of ``Capability`` or ``ExtendedCapability`` with
its registers declared in the register language.

Those few devices have are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names
from vfio_user.pci.capabilities.base import AnyCapability, Capability, CapabilityHost, ExtendedCapability
from vfio_user.pci.capabilities.express import LINK_SPEEDS, PciExpress, PortType
from vfio_user.pci.capabilities.msi import Msi
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.pci.capabilities.power_management import PowerManagement, PowerState

if TYPE_CHECKING:
    from vfio_user.pci.capabilities.address_translation import AddressTranslationServices, PageRequest, Pasid
    from vfio_user.pci.capabilities.advanced_error_reporting import (
        AdvancedErrorReporting,
        CorrectableError,
        UncorrectableError,
    )
    from vfio_user.pci.capabilities.identification import (
        DeviceSerialNumber,
        SubsystemIds,
        VitalProductData,
        build_vital_product_data,
    )
    from vfio_user.pci.capabilities.link import (
        ContainmentReason,
        DownstreamPortContainment,
        L1PmSubstates,
        LatencyTolerance,
        PrecisionTime,
    )
    from vfio_user.pci.capabilities.resizable_bar import ResizableBar
    from vfio_user.pci.capabilities.routing import AccessControlServices, AlternativeRoutingId
    from vfio_user.pci.capabilities.sr_iov import SrIov
    from vfio_user.pci.capabilities.tph import SteeringTable, TphRequester
    from vfio_user.pci.capabilities.vendor import DesignatedVendorSpecific, VendorSpecific, VendorSpecificExtended

__all__ = [
    "LINK_SPEEDS",
    "AccessControlServices",
    "AddressTranslationServices",
    "AdvancedErrorReporting",
    "AlternativeRoutingId",
    "AnyCapability",
    "Capability",
    "CapabilityHost",
    "ContainmentReason",
    "CorrectableError",
    "DesignatedVendorSpecific",
    "DeviceSerialNumber",
    "DownstreamPortContainment",
    "ExtendedCapability",
    "L1PmSubstates",
    "LatencyTolerance",
    "Msi",
    "MsiX",
    "PageRequest",
    "Pasid",
    "PciExpress",
    "PortType",
    "PowerManagement",
    "PowerState",
    "PrecisionTime",
    "ResizableBar",
    "SrIov",
    "SteeringTable",
    "SubsystemIds",
    "TphRequester",
    "UncorrectableError",
    "VendorSpecific",
    "VendorSpecificExtended",
    "VitalProductData",
    "build_vital_product_data",
]

__getattr__ = lazy_names(
    __name__,
    {
        "address_translation": ["AddressTranslationServices", "PageRequest", "Pasid"],
        "advanced_error_reporting": ["AdvancedErrorReporting", "CorrectableError", "UncorrectableError"],
        "identification": ["DeviceSerialNumber", "SubsystemIds", "VitalProductData", "build_vital_product_data"],
        "link": [
            "ContainmentReason",
            "DownstreamPortContainment",
            "L1PmSubstates",
            "LatencyTolerance",
            "PrecisionTime",
        ],
        "resizable_bar": ["ResizableBar"],
        "routing": ["AccessControlServices", "AlternativeRoutingId"],
        "sr_iov": ["SrIov"],
        "tph": ["SteeringTable", "TphRequester"],
        "vendor": ["DesignatedVendorSpecific", "VendorSpecific", "VendorSpecificExtended"],
    },
)
