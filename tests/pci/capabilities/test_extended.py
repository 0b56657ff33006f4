"""Every extended capability, bit by bit: what it shows, and what is left after software wrote ones everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from vfio_user.errors import DefinitionError
from vfio_user.pci import (
    RO,
    AccessControlServices,
    AddressTranslationServices,
    AdvancedErrorReporting,
    AlternativeRoutingId,
    ContainmentReason,
    DesignatedVendorSpecific,
    DeviceSerialNumber,
    DownstreamPortContainment,
    ExtendedCapability,
    FunctionEvents,
    IoBar,
    L1PmSubstates,
    LatencyTolerance,
    MemoryBar,
    PageRequest,
    Pasid,
    PciAttributes,
    PciExpress,
    PciFunction,
    PrecisionTime,
    Register,
    ResetKind,
    ResizableBar,
    SrIov,
    SteeringTable,
    TphRequester,
    VendorSpecificExtended,
    build_function,
)
from vfio_user.regions import MemoryRegion

MiB = 1 << 20


class Base(PciAttributes):
    vendor_id, device_id, class_code = 0x1234, 0x11E8, 0xFF0000
    express = PciExpress()
    bar0 = MemoryBar(4 * MiB)


def build(capability: ExtendedCapability, events: FunctionEvents | None = None) -> PciFunction:
    return build_function(type("Card", (Base,), {"capability": capability})(), events)


VF_IDS = "00000000 01000100 0000e911 53050000 01000000"
VF_REST = "00000000 00000000 00000000 00000000 00000000"

# fmt: off
CASES: list[tuple[ExtendedCapability, str, str]] = [
    (
        AdvancedErrorReporting(ecrc_generation=True),
        "01000200 00000000 00004004 30204600 00000000 00e00000 20000000 00000000 00000000 00000000 00000000",
        "01000200 00000000 30f0ff07 30f0ff07 00000000 c1f10000 60000000 00000000 00000000 00000000 00000000",
    ),
    (DeviceSerialNumber(0x0123_4567_89AB_CDEF), "03000100 efcdab89 67452301", "03000100 efcdab89 67452301"),
    (
        AccessControlServices(request_redirect=True, egress_control=True, egress_vector_size=40),
        "0d000100 24280000 00000000 00000000",
        "0d000100 24282400 ffffffff ff000000",
    ),
    (AddressTranslationServices(), "0f000100 20000000", "0f000100 20001f80"),
    (
        AddressTranslationServices(invalidate_queue_depth=5, page_aligned=False, global_invalidate=True),
        "0f000100 45000000",
        "0f000100 45001f80",
    ),
    (Pasid(width=16, execute=True), "1b000100 02100000", "1b000100 02100300"),
    (Pasid(privileged=True), "1b000100 04140000", "1b000100 04140500"),
    (PageRequest(capacity=64), "13000100 00000001 40000000 00000000", "13000100 01000000 40000000 ffffffff"),
    (AlternativeRoutingId(next_function=3), "0e000100 00030000", "0e000100 00030000"),
    (AlternativeRoutingId(acs_groups=True), "0e000100 02000000", "0e000100 02007200"),
    (LatencyTolerance(), "18000100 00000000", "18000100 ff1fff1f"),
    (
        L1PmSubstates(pcipm_l1_2=False, common_mode_restore_time=10, power_on_scale=1),
        "1e000100 1e0a2900 00000000 28000000",
        "1e000100 1e0a2900 0e00ffe3 fb000000",
    ),
    (
        DownstreamPortContainment(interrupt_message=2, software_trigger=False, poisoned_egress_blocking=True),
        "1d000100 42000000 00000000",
        "1d000100 42003f00 00000000",
    ),
    (PrecisionTime(granularity=4), "1f000100 01040000 00000000", "1f000100 01040000 01ff0000"),
    (
        PrecisionTime(requester=False, responder=True, root=True),
        "1f000100 06000000 00000000",
        "1f000100 06000000 03000000",
    ),
    (ResizableBar({0: [1 * MiB, 4 * MiB]}), "15000100 50000000 20020000", "15000100 50000000 20020000"),
    (TphRequester(), "17000100 01000000 00000000", "17000100 01000000 00010000"),
    (
        TphRequester(table=SteeringTable.CAPABILITY, entries=3, interrupt_vector_mode=True),
        "17000100 03020200 00000000 00000000 00000000",
        "17000100 03020200 00010000 ff00ff00 ff000000",
    ),
    (
        TphRequester(table=SteeringTable.MSIX_TABLE, entries=20, device_specific_mode=True, extended=True),
        "17000100 05051300 00000000",
        "17000100 05051300 00030000",
    ),
    (VendorSpecificExtended(0x42, b"\x01\x02\x03\x04", revision=1),
        "0b000100 4200c100 01020304",
        "0b000100 4200c100 01020304",
    ),
    (VendorSpecificExtended(0x42, b"\x01\x02\x03\x04", writable=True),
        "0b000100 4200c000 01020304",
        "0b000100 4200c000 ffffffff",
    ),
    (DesignatedVendorSpecific(0x1E98, 7, b"\x05\x06", revision=2),
        "23000100 981ec200 07000506",
        "23000100 981ec200 07000506",
    ),
    (
        SrIov(total_vfs=8, vf_device_id=0x11E9, bars={0: MemoryBar(16384, width=64)}),
        f"10000100 00000000 00000000 08000800 {VF_IDS} 04000000 00000000 {VF_REST}",
        f"10000100 00000000 19000000 08000800 {VF_IDS} 04c0ffff ffffffff {VF_REST}",
    ),
]
# fmt: on


@pytest.mark.parametrize(
    ("capability", "initial", "after_ones"),
    CASES,
    ids=lambda item: type(item).__name__ if not isinstance(item, str) else "",
)
def test_registers(capability: ExtendedCapability, initial: str, after_ones: str) -> None:
    function = build(capability)
    size = len(bytes.fromhex(initial))
    assert function.capabilities["capability"].size == size
    assert function.config.read_bytes(0x100, size).hex(" ", 4) == initial
    for offset in range(0x100, 0x100 + size, 2):
        function.config.write(offset, 2, 0xFFFF)
    assert function.config.read_bytes(0x100, size).hex(" ", 4) == after_ones
    assert function.config.read_bytes(0x100 + size, 16) == bytes(16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DeviceSerialNumber(1 << 64), "serial=0x10000000000000000; its field holds 0 to"),
        (lambda: AddressTranslationServices(invalidate_queue_depth=33), "invalidate_queue_depth=33; it is 1 to 32"),
        (lambda: Pasid(width=21), "width=21; a PASID has 0 to 20 bits"),
        (lambda: AlternativeRoutingId(next_function=256), "next_function=0x100"),
        (lambda: AccessControlServices(egress_control=True), "egress_vector_size=0; the vector has 1 to 256"),
        (lambda: AccessControlServices(egress_vector_size=8), "egress_control=False with egress_vector_size=8"),
        (lambda: L1PmSubstates(power_on_scale=3), "power_on_scale=0x3; its field holds 0 to 0x2"),
        (lambda: PrecisionTime(root=True), "root=True needs responder=True"),
        (lambda: DownstreamPortContainment(interrupt_message=32), "interrupt_message=0x20"),
        (lambda: TphRequester(entries=1), "entries=1; NONE has 0 to 0"),
        (lambda: TphRequester(table=SteeringTable.CAPABILITY, entries=65), "CAPABILITY has 1 to 64"),
        (lambda: VendorSpecificExtended(0x10000), "vsec_id=0x10000"),
        (lambda: DesignatedVendorSpecific(1, 2, revision=16), "revision=0x10"),
        (lambda: ResizableBar({}), "sizes is empty"),
        (lambda: ResizableBar({6: [MiB]}), r"sizes\[6\]"),
        (lambda: ResizableBar({0: []}), r"sizes\[0\] = \[\]"),
        (lambda: ResizableBar({0: [MiB // 2]}), "powers of two from 1 MiB"),
        (lambda: ResizableBar({0: [MiB]}, initial={0: 2 * MiB}), r"initial\[0\] = 0x200000 is none of its sizes"),
        (lambda: SrIov(total_vfs=0, vf_device_id=1), "total_vfs=0 offers nothing"),
        (lambda: SrIov(total_vfs=1, vf_device_id=1, supported_page_sizes=1), "supported_page_sizes=0x1 lacks"),
        (lambda: SrIov(total_vfs=1, vf_device_id=1, bars={0: MemoryBar(16)}), "memory BARs of 4096 bytes or more"),
        (lambda: SrIov(total_vfs=1, vf_device_id=1, bars={0: IoBar(16)}), "memory BARs of 4096 bytes or more"),
        (
            lambda: SrIov(total_vfs=1, vf_device_id=1, bars={0: MemoryBar(4096, width=64), 1: MemoryBar(4096)}),
            r"bars\[1\] is the upper half",
        ),
    ],
)
def test_what_registers_cannot_say_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        make()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({1: [MiB]}, "bar 1 is no memory BAR"), ({0: [MiB]}, "has 0x400000 bytes and its greatest size is 0x100000")],
)
def test_resizable_bars_must_be_declared_with_their_greatest_size(sizes: dict[int, list[int]], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        build(ResizableBar(sizes))


def test_a_device_with_pasids_says_it_has_the_prefixes_they_travel_in() -> None:
    function = build(Pasid())
    assert function.express is not None
    function.reset(ResetKind.DEVICE)
    capabilities = function.express.device_capabilities_2
    assert (capabilities.extended_fmt, capabilities.end_to_end_prefix, capabilities.max_end_to_end_prefixes) == (
        1,
        1,
        1,
    )
    other = build(PageRequest()).express
    assert other is not None
    assert not other.device_capabilities_2.end_to_end_prefix


def test_what_software_turns_on_is_told() -> None:
    for capability, offset, value in (
        (AddressTranslationServices(), 6, 0x8000),
        (Pasid(), 6, 1),
        (PageRequest(), 4, 1),
        (AccessControlServices(request_redirect=True), 6, 4),
        (AlternativeRoutingId(mfvc_groups=True), 6, 1),
        (PrecisionTime(), 8, 1),
        (TphRequester(), 8, 0x100),
        (L1PmSubstates(), 8, 1),
    ):
        seen: list[tuple[str, str]] = []
        function = build(capability, FunctionEvents(on_capability=lambda *what, seen=seen: seen.append(what)))
        function.config.write(0x100 + offset, 2, value)
        function.config.write(0x100 + offset, 2, value)
        assert [name for name, _ in seen] == ["capability"], type(capability).__name__


# -- single behaviours ------------------------------------------------------------------------------------------------


def test_page_requests_reset_only_while_off() -> None:
    function = build(PageRequest(pasid_required=True))
    pri = function.find(PageRequest)
    assert pri is not None
    pri.status.response_failure = 1
    function.config.write(0x104, 2, 3)
    assert function.config.read(0x104, 4) == 0x8001_0001
    function.config.write(0x104, 2, 0)
    assert function.config.read(0x104, 4) == 0x8101_0000
    function.config.write(0x104, 2, 2)
    assert function.config.read(0x104, 4) == 0x8100_0000


def test_resizable_bar_changes_what_the_bar_decodes() -> None:
    function = build(ResizableBar({0: [1 * MiB, 2 * MiB, 4 * MiB]}, initial={0: 2 * MiB}))
    rebar = function.find(ResizableBar)
    assert rebar is not None
    config = function.config

    def decoded() -> int:
        config.write(0x10, 4, 0xFFFF_FFFF)
        return -config.read(0x10, 4) & 0xFFFF_FFFF

    assert decoded() == rebar.current_size(0) == 2 * MiB
    config.write(0x108, 4, 2 << 8)
    assert config.read(0x10, 4) == 0
    assert decoded() == rebar.current_size(0) == 4 * MiB
    config.write(0x108, 4, 0 << 8)
    assert decoded() == MiB
    config.write(0x108, 4, 3 << 8)  # 8 MiB: not supported
    assert decoded() == MiB
    function.reset(ResetKind.DEVICE)
    assert decoded() == 2 * MiB


def test_resizable_bar_of_64_bits() -> None:
    class Card(Base):
        bar0 = MemoryBar(16 << 30, width=64, region=lambda device: MemoryRegion(16))
        rebar = ResizableBar({0: [MiB, 16 << 30]}, initial={0: MiB})

    config = build_function(Card()).config
    config.write(0x10, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert config.read(0x10, 8) == 0xFFFF_FFFF_FFF0_0004
    config.write(0x108, 4, 14 << 8)
    assert config.read(0x10, 8) == 4
    config.write(0x10, 8, 0xFFFF_FFFF_FFFF_FFFF)
    assert config.read(0x10, 8) == 0xFFFF_FFFC_0000_0004


def test_virtual_functions_are_counted_and_their_bars_sized() -> None:
    seen: list[str] = []
    function = build(
        SrIov(
            total_vfs=8, vf_device_id=1, bars={0: MemoryBar(16384), 2: MemoryBar(8 << 30, width=64, prefetchable=True)}
        ),
        FunctionEvents(on_capability=lambda _, register: seen.append(register)),
    )
    config = function.config
    sriov = function.find(SrIov)
    assert sriov is not None
    config.write(0x110, 2, 9)  # more than there are
    assert config.read(0x110, 2) == 0
    config.write(0x110, 2, 4)
    assert sriov.vfs_enabled == 0
    config.write(0x124, 4, 0xFEB0_0000)
    config.write(0x12C, 8, 0x12_0000_0000)
    config.write(0x108, 2, 9)
    assert (sriov.vfs_enabled, seen) == (4, ["num_vfs", "control"])
    config.write(0x110, 2, 2)  # not while they are enabled
    assert sriov.vfs_enabled == 4
    assert sriov.vf_bar_address(0, 3) == 0xFEB0_0000 + 3 * 16384
    assert sriov.vf_bar_address(2, 1) == 0x14_0000_0000
    assert config.read(0x12C, 4) == 0x0000_000C
    config.write(0x124, 4, 0xFFFF_FFFF)
    assert config.read(0x124, 4) == 0xFFFF_C000


def test_virtual_functions_bars_are_whole_system_pages() -> None:
    function = build(SrIov(total_vfs=8, vf_device_id=1, bars={0: MemoryBar(16384)}))
    sriov = function.find(SrIov)
    assert sriov is not None
    config = function.config
    for refused in (0, 0x4, 0x11, 0x1000):
        config.write(0x120, 4, refused)
        assert config.read(0x120, 4) == 1
    config.write(0x120, 4, 0x10)  # 64 KiB
    assert sriov.vf_bar_size(0) == 65536
    config.write(0x124, 4, 0xFFFF_FFFF)
    assert config.read(0x124, 4) == 0xFFFF_0000
    config.write(0x108, 2, 1)
    config.write(0x120, 4, 1)
    assert config.read(0x120, 4) == 0x10


def test_containment_by_software_and_by_the_device() -> None:
    function = build(DownstreamPortContainment())
    dpc = function.find(DownstreamPortContainment)
    assert dpc is not None
    assert dpc.trigger(ContainmentReason.FATAL_MESSAGE) is False  # off
    function.config.write(0x106, 2, 0x0009)
    assert dpc.trigger(ContainmentReason.FATAL_MESSAGE, source_id=0x0100) is True
    assert dpc.trigger(ContainmentReason.NONFATAL_MESSAGE) is False  # in effect already
    assert function.config.read(0x108, 4) == 0x0100_000D
    function.config.write(0x108, 2, 0x0009)
    assert function.config.read(0x108, 4) == 0x0100_0004
    function.config.write(0x106, 2, 0x0041)
    assert function.config.read(0x108, 4) == 0x0000_0027
    assert function.config.read(0x106, 2) == 0x0001


def test_classes_of_vendor_specific_capabilities_have_registers() -> None:
    class Doorbells(VendorSpecificExtended):
        vsec_id = 0x77
        offset_of_doorbells = Register(0x08, access=RO, reset=0x1000)
        kick = Register(0x0C)

    class Cxl(DesignatedVendorSpecific):
        dvsec_vendor_id, dvsec_id = 0x1E98, 0
        caps = Register(0x0A, width=16, access=RO, reset=0x1E)

    class Card(Base):
        doorbells = Doorbells()
        cxl = Cxl(revision=1)
        other = VendorSpecificExtended(1, bytes(3))

    device = Card()
    config = build_function(device).config
    assert config.read_bytes(0x100, 16).hex(" ", 4) == "0b000111 77000001 00100000 00000000"
    assert config.read_bytes(0x110, 12).hex(" ", 4) == "2300c111 981ec100 00001e00"
    assert config.read_bytes(0x11C, 12).hex(" ", 4) == "0b000100 0100b000 00000000"
    config.write(0x10C, 4, 5)
    assert device.doorbells.kick == 5
