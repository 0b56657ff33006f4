"""Devices of the tests about capabilities and ROMs: every capability there is, arranged so that clients must work."""

from __future__ import annotations

from tests.guest.devices import KiB, MiB
from vfio_user import MemoryBar, Msi, MsiX, PciDevice, PciExpress, PowerManagement
from vfio_user.pci import (
    AccessControlServices,
    AddressTranslationServices,
    AdvancedErrorReporting,
    AlternativeRoutingId,
    DesignatedVendorSpecific,
    DeviceSerialNumber,
    DownstreamPortContainment,
    L1PmSubstates,
    LatencyTolerance,
    PageRequest,
    Pasid,
    PortType,
    PrecisionTime,
    ResizableBar,
    SrIov,
    SteeringTable,
    SubsystemIds,
    TphRequester,
    VendorSpecific,
    VendorSpecificExtended,
    VitalProductData,
    build_vital_product_data,
)

VITAL_PRODUCT_DATA = build_vital_product_data(
    "Card with every capability",
    {"PN": "VU-0001", "EC": "A-17", "SN": "0123456789", "V0": "0123456789" * 20},
    {"YA": "asset tag", "Y0": "free"},
)
_TAG = VITAL_PRODUCT_DATA.index(b"asset tag")


class Everything(PciDevice):
    """Every capability there is. Hardly any register of them is 0, so that one that is lost is missed."""

    vendor_id, device_id, class_code, revision = 0x1234, 0xCAFE, 0xFF0000, 0x17
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100

    pm = PowerManagement(d1=True, d2=True, pme_from=["D0", "D1", "D3hot", "D3cold"], aux_current=3)
    msi = Msi(vectors=8, per_vector_masking=True)
    vpd = VitalProductData(VITAL_PRODUCT_DATA, writable=range(_TAG, _TAG + len("asset tag")))
    msix = MsiX(vectors=5)
    express = PciExpress(
        link_speed=16.0, link_width=8, max_payload=1024, aspm=3, ltr=True, atomic_completer=True, interrupt_message=3
    )
    vendor = VendorSpecific(b"contents", writable=True)
    other_vendor = VendorSpecific(bytes(range(0x10, 0x1D)))
    subsystem = SubsystemIds(0x1AF4, 0x1100)

    aer = AdvancedErrorReporting(ecrc_generation=True, ecrc_checking=True)
    ari = AlternativeRoutingId(next_function=2)
    serial = DeviceSerialNumber(0x0123_4567_89AB_CDEF)
    acs = AccessControlServices(
        request_redirect=True,
        completion_redirect=True,
        egress_control=True,
        direct_translated=True,
        egress_vector_size=40,
    )
    ats = AddressTranslationServices(invalidate_queue_depth=7, global_invalidate=True)
    sriov = SrIov(total_vfs=8, vf_device_id=0xCAFF, bars={0: MemoryBar(16 * KiB, width=64), 3: MemoryBar(4 * KiB)})
    pasid = Pasid(width=16, execute=True, privileged=True)
    pri = PageRequest(capacity=64, pasid_required=True)
    ltr = LatencyTolerance()
    l1ss = L1PmSubstates(common_mode_restore_time=30, power_on_scale=1, power_on_value=9)
    dpc = DownstreamPortContainment(interrupt_message=4, poisoned_egress_blocking=True)
    ptm = PrecisionTime(granularity=4)
    rebar = ResizableBar({0: [1 * MiB, 2 * MiB, 8 * MiB], 2: [1 * MiB, 4 * MiB]}, initial={2: 1 * MiB})
    tph = TphRequester(table=SteeringTable.CAPABILITY, entries=6, interrupt_vector_mode=True, extended=True)
    vsec = VendorSpecificExtended(0x42, b"any contents", revision=3)
    other_vsec = VendorSpecificExtended(0x43, bytes(64))
    dvsec = DesignatedVendorSpecific(0x1AF4, 7, b"designated", revision=2)

    bar0 = MemoryBar(8 * MiB, width=64, prefetchable=True)
    bar2 = MemoryBar(4 * MiB)

    def __init__(self, device_id: int = 0xCAFE) -> None:
        self.device_id = device_id
        super().__init__()


class HiddenFirst(PciDevice):
    """Its extended chain begins with what QEMU hides, and the chain has no other way in."""

    vendor_id, device_id, class_code = 0x1234, 0xF125, 0xFF0000
    express = PciExpress(link_speed=8.0, link_width=4, aspm=2)
    ari = AlternativeRoutingId()
    sriov = SrIov(total_vfs=4, vf_device_id=0xF126)
    serial = DeviceSerialNumber(0xFEDC_BA98_7654_3210)
    aer = AdvancedErrorReporting()


class Integrated(PciDevice):
    """An endpoint of the root complex: no link."""

    vendor_id, device_id, class_code = 0x1234, 0x1276, 0xFF0000
    express = PciExpress(port_type=PortType.ROOT_COMPLEX_INTEGRATED_ENDPOINT)
    serial = DeviceSerialNumber(1)

    def __init__(self, device_id: int = 0x1276) -> None:
        self.device_id = device_id
        super().__init__()


class WithRom(PciDevice):
    """Nothing but a ROM."""

    vendor_id, class_code = 0x1234, 0xFF0000

    def __init__(self, device_id: int, rom: bytes) -> None:
        self.device_id = device_id
        self.rom = rom
        super().__init__()
