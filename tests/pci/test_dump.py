"""Our configuration space as a walker reads it that shares no code with it. (As pciutils does: ``tests/guest``.)"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pci.walker import capabilities, extended_capabilities, size_bars
from vfio_user.pci import (
    AccessControlServices,
    AddressTranslationServices,
    AdvancedErrorReporting,
    AlternativeRoutingId,
    DesignatedVendorSpecific,
    DeviceSerialNumber,
    IoBar,
    L1PmSubstates,
    LatencyTolerance,
    MemoryBar,
    Msi,
    MsiX,
    PageRequest,
    Pasid,
    PciAttributes,
    PciExpress,
    PowerManagement,
    PrecisionTime,
    ResizableBar,
    SrIov,
    TphRequester,
    VendorSpecific,
    VendorSpecificExtended,
    build_function,
    format_lspci,
)


class Everything(PciAttributes):
    vendor_id, device_id, class_code, revision = 0x1AF4, 0x1110, 0x010802, 0x10
    subsystem_vendor_id, subsystem_id = 0x1AF4, 0x1100

    pm = PowerManagement(pme_from=["D0", "D3hot"], d1=True)
    msi = Msi(vectors=4, per_vector_masking=True)
    msix = MsiX(vectors=33)
    express = PciExpress(link_speed=8.0, link_width=4, max_payload=512)
    vendor = VendorSpecific(b"hello")
    aer = AdvancedErrorReporting()
    serial = DeviceSerialNumber(0x0123_4567_89AB_CDEF)
    acs = AccessControlServices(request_redirect=True)
    ats = AddressTranslationServices()
    pasid = Pasid(width=16)
    pri = PageRequest(capacity=64)
    ari = AlternativeRoutingId()
    ltr = LatencyTolerance()
    l1ss = L1PmSubstates()
    ptm = PrecisionTime(granularity=4)
    rebar = ResizableBar({0: [1 << 20, 16 << 20]})
    tph = TphRequester()
    vsec = VendorSpecificExtended(0x42, bytes(4))
    dvsec = DesignatedVendorSpecific(0x1E98, 7, bytes(2))
    sriov = SrIov(total_vfs=8, vf_device_id=0x1111, bars={0: MemoryBar(16384, width=64)})

    bar0 = MemoryBar(16 << 20, width=64, prefetchable=True)
    bar2 = IoBar(32)


def everything() -> bytes:
    config = build_function(Everything()).config
    config.write(0x10, 8, 0x12_3400_0000)
    config.write(0x18, 4, 0xC000)
    config.write(0x1C, 4, 0xFEB0_0000)
    config.write(0x04, 2, 0x07)
    return config.read_bytes(0, 4096)


def test_text_is_what_lspci_reads_back() -> None:
    text = format_lspci(bytes(range(64)), address="01:02.3", title="Card")
    assert text.splitlines()[:2] == ["01:02.3 Card", "00: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"]
    assert text.endswith("3a 3b 3c 3d 3e 3f\n\n")
    assert format_lspci(bytes(4096)).splitlines()[-2].startswith("ff0: 00")


def test_independent_walker_finds_everything() -> None:
    config = everything()
    assert [found.cap_id for found in capabilities(config)] == [0x01, 0x05, 0x11, 0x10, 0x09]
    assert [(found.cap_id, found.version) for found in extended_capabilities(config)] == [
        (0x01, 2),
        *(
            (cap_id, 1)
            for cap_id in (0x03, 0x0D, 0x0F, 0x1B, 0x13, 0x0E, 0x18, 0x1E, 0x1F, 0x15, 0x17, 0x0B, 0x23, 0x10)
        ),
    ]


@settings(max_examples=40)  # each builds everything
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 0x300), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)), max_size=60
    )
)
def test_no_write_breaks_the_chains_or_the_sizes(accesses: list[tuple[int, int, int]]) -> None:
    config = build_function(Everything()).config
    chains = capabilities(config.read_bytes(0, 4096)), extended_capabilities(config.read_bytes(0, 4096))
    for offset, size, value in accesses:
        config.write(offset, size, value % (1 << 8 * size))
        assert config.read(offset, size) == int.from_bytes(config.read_bytes(offset, size), "little")
    assert (capabilities(config.read_bytes(0, 4096)), extended_capabilities(config.read_bytes(0, 4096))) == chains
    sizes = [bar.size for bar in size_bars(config.read, config.write)]
    assert sizes in ([1 << 20, 32, 4096], [16 << 20, 32, 4096])  # the resizable one has two
