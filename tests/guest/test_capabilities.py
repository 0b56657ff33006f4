"""Every capability as Linux and pciutils in a guest see it, next to what the device declares.

What the device declares is decoded by the guest's own ``lspci``, from a dump of the device's configuration space; what
the guest sees, by the same program from the hardware. Whatever differs is QEMU's doing and stands in ``DIFFERENCES``,
which ``docs/pci.md`` retells: when a QEMU hides more, or less, a test here says so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.guest.capability_devices import VITAL_PRODUCT_DATA, Everything, HiddenFirst, Integrated
from tests.guest.devices import MiB
from tests.guest.support import VmFactory, wait_for
from tests.support.fds import no_leaks
from vfio_user import PciDevice, Server
from vfio_user.pci import AnyCapability, Capability, CorrectableError, UncorrectableError, format_lspci
from vfio_user.vm import Guest, GuestKit, GuestPciDevice, VfioUserDevice

pytestmark = [pytest.mark.guest]

#: An IOMMU with which Linux 6.1 turns on ATS, PASID and page requests. QEMU runs vfio devices in caching mode alone.
IOMMU = "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on,scalable-mode=on,fsts=on,svm=on,pasid-bits=20"

#: Of a capability that the guest does not see at all.
HIDDEN = ("hidden",)

_EXTENDED = (
    *("aer", "ari", "serial", "acs", "ats", "sriov", "pasid", "pri", "ltr"),
    *("l1ss", "dpc", "ptm", "rebar", "tph", "vsec", "other_vsec", "dvsec"),
)

#: For each device, the capabilities that are not seen as declared: HIDDEN, or the lines declared (-) and seen (+).
DIFFERENCES: dict[str, dict[str, tuple[str, ...]]] = {
    "behind a root port": {
        "ari": HIDDEN,
        "sriov": HIDDEN,
        # The sizes that are not in use. The choice is QEMU's: it maps the BAR before the guest can ask for another.
        "rebar": (
            "- BAR 0: current size: 8MB, supported: 1MB 2MB 8MB",
            "- BAR 2: current size: 1MB, supported: 1MB 4MB",
            "+ BAR 0: current size: 8MB, supported: 8MB",
            "+ BAR 2: current size: 1MB, supported: 1MB",
        ),
    },
    # What is behind a port has a link, so QEMU makes an endpoint of it, with a link of its own invention.
    "integrated, behind a root port": {
        "express": (
            "- Express (v2) Root Complex Integrated Endpoint, MSI 00",
            "- DevCap: MaxPayload 256 bytes, PhantFunc 0",
            "- ExtTag+ RBE+ FLReset+",
            "+ Express (v2) Endpoint, MSI 00",
            "+ DevCap: MaxPayload 256 bytes, PhantFunc 0, Latency L0s <64ns, L1 <1us",
            "+ ExtTag+ AttnBtn- AttnInd- PwrInd- RBE+ FLReset+ SlotPowerLimit 0W",
            "+ LnkCap: Port #0, Speed 2.5GT/s, Width x1, ASPM not supported",
            "+ ClockPM- Surprise- LLActRep- BwNot- ASPMOptComp-",
            "+ LnkCtl: ASPM Disabled; RCB 64 bytes, Disabled- CommClk-",
            "+ ExtSynch- ClockPM- AutWidDis- BWInt- AutBWInt-",
            "+ LnkSta: Speed unknown (downgraded), Width x0 (downgraded)",
            "+ TrErr- Train- SlotClk- DLActive- BWMgmt- ABWMgmt-",
            "- FRS-",
            "+ FRS- TPHComp- ExtTPHComp-",
            "+ LnkCtl2: Target Link Speed: 2.5GT/s, EnterCompliance- SpeedDis-",
            "+ Transmit Margin: Normal Operating Range, EnterModifiedCompliance- ComplianceSOS-",
            "+ Compliance Preset/De-emphasis: -6dB de-emphasis, 0dB preshoot",
            "+ LnkSta2: Current De-emphasis Level: -6dB, EqualizationComplete- EqualizationPhase1-",
            "+ EqualizationPhase2- EqualizationPhase3- LinkEqualizationRequest-",
            "+ Retimer- 2Retimers- CrosslinkRes: unsupported",
        ),
    },
    # And what is on the root bus has none.
    "on the root bus": {
        "express": (
            "- Express (v2) Endpoint, MSI 00",
            "- DevCap: MaxPayload 256 bytes, PhantFunc 0, Latency L0s <64ns, L1 <1us",
            "- ExtTag+ AttnBtn- AttnInd- PwrInd- RBE+ FLReset+ SlotPowerLimit 0W",
            "+ Express (v2) Root Complex Integrated Endpoint, MSI 00",
            "+ DevCap: MaxPayload 256 bytes, PhantFunc 0",
            "+ ExtTag+ RBE+ FLReset+",
            "- LnkCap: Port #0, Speed 8GT/s, Width x4, ASPM L1, Exit Latency L1 <1us",
            "- ClockPM- Surprise- LLActRep- BwNot- ASPMOptComp+",
            "- LnkCtl: ASPM Disabled; RCB 64 bytes, Disabled- CommClk-",
            "- ExtSynch- ClockPM- AutWidDis- BWInt- AutBWInt-",
            "- LnkSta: Speed 8GT/s, Width x4",
            "- TrErr- Train- SlotClk- DLActive- BWMgmt- ABWMgmt-",
            "- FRS- TPHComp- ExtTPHComp-",
            "+ FRS-",
            "- LnkSta2: Current De-emphasis Level: -6dB, EqualizationComplete- EqualizationPhase1-",
            "- EqualizationPhase2- EqualizationPhase3- LinkEqualizationRequest-",
            "- Retimer- 2Retimers- CrosslinkRes: unsupported",
        ),
        # It is the first of the extended ones: a header that says nothing has to stay, to lead to the others.
        "ari": (
            "- Alternative Routing-ID Interpretation (ARI)",
            "- ARICap: MFVC- ACS-, Next Function: 0",
            "- ARICtl: MFVC- ACS-, Function Group: 0",
            "+ Null",
        ),
        "sriov": HIDDEN,
    },
    "integrated, on the root bus": {},
    "on a conventional bus": dict.fromkeys(("express", *_EXTENDED), HIDDEN),
    # Where no bus is PCI Express, the capability is left to drivers that look for it all the same.
    "in a pc": dict.fromkeys(_EXTENDED, HIDDEN),
}


class Scenario:
    """A running guest, and the devices in it by the place they are in."""

    def __init__(self, guest: Guest, devices: dict[str, PciDevice]) -> None:
        self.guest = guest
        self.devices = devices
        self.everything = next(device for device in devices.values() if isinstance(device, Everything))

    def seen(self, device: PciDevice) -> GuestPciDevice:
        assert device.vendor_id is not None
        assert device.device_id is not None
        return self.guest.pci_device(device.vendor_id, device.device_id)

    @cached_property
    def slot(self) -> str:
        """The guest's address of the device that has everything."""
        return self.seen(self.everything).address

    def declared(self, device: PciDevice) -> dict[str, list[str]]:
        """The device's own configuration space, in the words of the guest's lspci."""
        address = self.seen(device).address
        config = device.function.config
        self.guest.write_file("/tmp/dump", format_lspci(config.read_bytes(0, config.size), address=address))
        return sections(device, self.guest.run("lspci -vvv -D -F /tmp/dump 2>/dev/null").stdout)

    def shown(self, device: PciDevice) -> dict[str, list[str]]:
        """What lspci says of the device in the guest."""
        return sections(device, self.guest.run(f"lspci -vvv -D -s {self.seen(device).address} 2>/dev/null").stdout)

    def setpci(self, *operations: str) -> list[int]:
        """What setpci reads from the device that has everything."""
        return [
            int(word, 16) for word in self.guest.run(f"setpci -s {self.slot} {' '.join(operations)}").stdout.split()
        ]


def sections(device: PciDevice, text: str) -> dict[str, list[str]]:
    """The lines of lspci about each capability, by the name it was declared as; "header" has those before the first."""
    names = {capability.offset: name for name, capability in device.function.capabilities.items()}
    found: dict[str, list[str]] = {"header": []}
    for line in text.strip().splitlines():
        heading = re.match(r"\s+Capabilities: \[([0-9a-f]+)[^]]*\] (.*)", line)
        if heading:
            found[names.get(int(heading[1], 16), f"at 0x{heading[1]}")] = [heading[2]]
        else:
            next(reversed(found.values())).append(" ".join(line.split()))
    # What lspci knows from elsewhere.
    elsewhere = re.compile(r"Physical Slot:|IOMMU group:|Interrupt: pin A routed|Kernel ")
    found["header"] = [re.sub(r" \[size=\w+\]$", "", line) for line in found["header"] if not elsewhere.match(line)]
    return found


def difference(declared: list[str], seen: list[str] | None) -> tuple[str, ...]:
    """The lines of a section that are not the same: all declared ones of a stretch that differs, then all seen ones."""
    if seen is None:
        return HIDDEN
    lines: list[str] = []
    for tag, start, end, seen_start, seen_end in difflib.SequenceMatcher(a=declared, b=seen).get_opcodes():
        if tag != "equal":
            lines += [f"- {line}" for line in declared[start:end]]
            lines += [f"+ {line}" for line in seen[seen_start:seen_end]]
    return tuple(lines)


@contextmanager
def running(
    kit: GuestKit,
    folder: Path,
    machine: str,
    devices: dict[str, tuple[PciDevice, str]],
    others: Sequence[str] = (),
    **command: Any,
) -> Iterator[Scenario]:
    """Serves devices, each with the bus to plug it into, and boots a machine with them and with others of QEMU's."""
    with no_leaks(), ExitStack() as stack:
        plugged = []
        for number, (device, bus) in enumerate(devices.values()):
            socket = folder / f"{number}.sock"
            stack.enter_context(Server(device, socket, strict=True).start())
            plugged.append(VfioUserDevice(socket, bus=bus, addr="01.0" if bus == "bridge" else None))
        factory = stack.enter_context(VmFactory(kit, folder))
        vm = factory(machine, devices=[*others, *plugged], packages=["pciutils"], **command)
        yield Scenario(vm.guest, {place: device for place, (device, _) in devices.items()})


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    with running(
        guest_kit,
        tmp_path_factory.mktemp("capabilities"),
        "q35",
        {
            "behind a root port": (Everything(), "port0"),
            "integrated, behind a root port": (Integrated(), "port1"),
            "on the root bus": (HiddenFirst(), "pcie.0"),
            "integrated, on the root bus": (Integrated(0x1277), "pcie.0"),
            "on a conventional bus": (Everything(0xCAFD), "bridge"),
        },
        others=[IOMMU, "i82801b11-bridge,id=bridge"],
        root_ports=("port0", "port1"),
        append=("intel_iommu=on,sm_on",),
    ) as scenario:
        yield scenario


def test_lspci_decodes_what_the_class_says(scenario: Scenario) -> None:
    declared = {name: "\n".join(lines) for name, lines in scenario.declared(scenario.everything).items()}
    for name, texts in {
        "header": ("(rev 17)", "Subsystem: Red Hat, Inc. Device 1100", "Region 0: Memory at", "(64-bit, prefetchable)"),
        "pm": ("version 3", "D1+ D2+ AuxCurrent=160mA PME(D0+,D1+,D2-,D3hot+,D3cold+)", "Status: D0 NoSoftRst+"),
        "msi": ("Count=1/8 Maskable+ 64bit+", "Masking: 00000000"),
        "vpd": ("Vital Product Data",),
        "msix": ("Count=5 Masked-", "Vector table: BAR=3 offset=00000000"),
        "express": (
            "Express (v2) Endpoint, MSI 03",
            "MaxPayload 1024 bytes",
            "Speed 16GT/s, Width x8, ASPM L0s L1",
            "ExtFmt+ EETLPPrefix+, MaxEETLPPrefixes 1",
            "AtomicOpsCap: 32bit+ 64bit+ 128bitCAS-",
        ),
        "vendor": ("Vendor Specific Information: Len=0b",),
        "other_vendor": ("Vendor Specific Information: Len=10",),
        "subsystem": ("Subsystem: Red Hat, Inc. Device 1100",),
        "aer": ("UESvrt: DLP+ SDES+ TLP- FCP+", "ECRCGenCap+", "ECRCChkCap+"),
        "ari": ("Next Function: 2",),
        "serial": ("Device Serial Number 01-23-45-67-89-ab-cd-ef",),
        "acs": ("SrcValid- TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd- EgressCtrl+ DirectTrans+",),
        "ats": ("Invalidate Queue Depth: 07",),
        "sriov": ("Initial VFs: 8, Total VFs: 8", "Device ID: caff", "Region 0: Memory at 0000000000000000 (64-bit"),
        "pasid": ("Exec+ Priv+, Max PASID Width: 10",),
        "pri": ("Page Request Capacity: 00000040",),
        "ltr": ("Latency Tolerance Reporting",),
        "l1ss": ("PortCommonModeRestoreTime=30us PortTPowerOnTime=90us",),
        "dpc": ("INT Msg #4, RPExt- PoisonedTLP+ SwTrigger+",),
        "ptm": ("Requester:+ Responder:- Root:-", "PTMClockGranularity: 4ns"),
        "rebar": ("BAR 0: current size: 8MB, supported: 1MB 2MB 8MB", "BAR 2: current size: 1MB, supported: 1MB 4MB"),
        "tph": ("Interrupt vector mode", "Extended requester", "Steering table in TPH capability structure"),
        "vsec": ("ID=0042 Rev=3 Len=014",),
        "other_vsec": ("ID=0043 Rev=0 Len=048",),
        "dvsec": ("Vendor=1af4 ID=0007 Rev=2 Len=20",),
    }.items():
        text = declared.pop(name)
        assert [part for part in texts if part not in text] == [], f"{name}: {text}"
    assert declared == {}


@pytest.mark.parametrize("place", [place for place in DIFFERENCES if place != "in a pc"])
def test_lspci_shows_what_is_declared_but_for_what_qemu_changes(scenario: Scenario, place: str) -> None:
    device = scenario.devices[place]
    declared, seen = scenario.declared(device), scenario.shown(device)
    assert set(declared) == {"header", *device.function.capabilities}
    assert set(seen) <= set(declared)
    size = scenario.guest.run(f"stat -c %s {scenario.seen(device).path}/config")
    assert int(str(size)) == (4096 if set(seen) & set(_EXTENDED) else 256)
    if "vpd" in seen:
        del declared["vpd"], seen["vpd"]  # a dump has no data to go with it: see the test below
    assert {
        name: difference(lines, seen.get(name)) for name, lines in declared.items() if lines != seen.get(name)
    } == DIFFERENCES[place]


def test_a_pc_shows_no_extended_capability(guest_kit: GuestKit, tmp_path: Path) -> None:
    with running(guest_kit, tmp_path, "pc", {"in a pc": (Everything(), "pci.0")}) as scenario:
        test_lspci_shows_what_is_declared_but_for_what_qemu_changes(scenario, "in a pc")


def test_setpci_reads_what_is_declared(scenario: Scenario) -> None:
    """Every word of every capability, found by its id: contents and tables that lspci does not decode included."""
    device = scenario.everything
    operations: list[str] = []
    declared: dict[tuple[str, int], int] = {}
    instances: dict[str, int] = {}
    for name, capability in device.function.capabilities.items():
        kind = "CAP" if isinstance(capability, Capability) else "ECAP"
        place = f"{kind}{capability.cap_id:0{len(kind) * 2 - 4}x}"
        if DIFFERENCES["behind a root port"].get(name) == HIDDEN:
            told = scenario.guest.run(f"setpci -s {scenario.slot} {place}.l", check=False)
            assert "there are no capabilities with that id" in told.stdout
            continue
        instance = instances[place] = instances.get(place, -1) + 1
        for at in range(0, capability.size, 4):
            operations.append(f"{place}+{at:x}.l@{instance}")
            declared[name, at] = device.function.config.read(capability.offset + at, 4)
    seen = dict(zip(declared, scenario.setpci(*operations), strict=True))
    assert {word: value for word, value in seen.items() if value != declared[word]} == {
        # The links lead past what is hidden,
        ("aer", 0): device.serial.offset << 20 | declared["aer", 0] & 0xF_FFFF,
        ("ats", 0): device.pasid.offset << 20 | declared["ats", 0] & 0xF_FFFF,
        # and a resizable BAR is offered with the size it has.
        ("rebar", 4): 0x80,
        ("rebar", 12): 0x10,
    }


def test_setpci_writes_what_software_may_write(scenario: Scenario) -> None:
    device = scenario.everything
    #: As setpci calls it: the capability, the register's offset in it, what is written, and what is kept of that.
    writes: dict[str, tuple[AnyCapability, int, int, int]] = {
        "CAP09+4.l": (device.vendor, 0x4, 0x1122_3344, 0x1122_3344),
        "CAP_EXP+8.w": (device.express, 0x8, 0x7FFF, 0x791F),  # bit 15 would be a reset
        "ECAP_AER+14.l": (device.aer, 0x14, 0x20C1, 0x20C1),
        "ECAP_ACS+8.l": (device.acs, 0x8, 0x89AB_CDEF, 0x89AB_CDEF),
        "ECAP_LTR+4.l": (device.ltr, 0x4, 0xFC04_0803, 0x1C04_0803),
        "ECAP_L1PM+8.l": (device.l1ss, 0x8, 0x6064_FF05, 0x6064_0005),  # CommonModeRestoreTime is for ports
        "ECAP_DPC+6.w": (device.dpc, 0x6, 0x001F, 0x001F),
        "ECAP_PTM+8.l": (device.ptm, 0x8, 0xFFFF_FFFF, 0x0000_FF01),
        "ECAP_TPH+8.l": (device.tph, 0x8, 0xFFFF_FF01, 0x0000_0301),
        "ECAP_TPH+c.l": (device.tph, 0xC, 0x5678_1234, 0x5678_1234),
        "ECAP_DSN+4.l": (device.serial, 0x4, 0, 0x89AB_CDEF),
    }
    before = scenario.setpci(*writes)
    scenario.setpci(*(f"{register}={written:x}" for register, (_, _, written, _) in writes.items()))
    try:
        for register, (capability, offset, _, kept) in writes.items():
            at, size = capability.offset + offset, 2 if register.endswith("w") else 4
            assert (register, hex(device.function.config.read(at, size))) == (register, hex(kept))
        assert scenario.setpci(*writes) == [kept for _, _, _, kept in writes.values()]
        test_lspci_shows_what_is_declared_but_for_what_qemu_changes(scenario, "behind a root port")
    finally:
        scenario.setpci(*(f"{register}={value:x}" for register, value in zip(writes, before, strict=True)))


def test_an_injected_error_shows_and_can_be_cleared(scenario: Scenario) -> None:
    device, guest = scenario.everything, scenario.guest
    sent: list[str | None] = []

    def inject(error: UncorrectableError | CorrectableError, header: tuple[int, ...] = ()) -> str | None:
        number = len(sent)
        device.call_soon(lambda: sent.append(device.aer.inject(error, header)))
        wait_for(lambda: len(sent) > number)
        return sent[number]

    (control,) = scenario.setpci("CAP_EXP+8.w")
    scenario.setpci("CAP_EXP+8.w=0:7", "COMMAND=0:100")
    assert inject(CorrectableError.BAD_DLLP) is None  # nobody asked to be told
    scenario.setpci("CAP_EXP+8.w=7:7", "COMMAND=100:100")
    assert inject(CorrectableError.BAD_TLP) == "ERR_COR"
    assert inject(UncorrectableError.COMPLETION_TIMEOUT, (0xDEAD_BEEF, 2, 3, 4)) == "ERR_NONFATAL"
    assert inject(UncorrectableError.MALFORMED_TLP, (5, 6, 7, 8)) == "ERR_FATAL"
    seen = scenario.shown(device)
    for name, line in (
        ("header", "<TAbort- <MAbort- >SERR+ <PERR-"),
        ("express", "DevSta: CorrErr+ NonFatalErr+ FatalErr+ UnsupReq- AuxPwr- TransPend-"),
        ("aer", "UESta: DLP- SDES- TLP- FCP- CmpltTO+ CmpltAbrt- UnxCmplt- RxOF- MalfTLP+ ECRC- UnsupReq- ACSViol-"),
        ("aer", "CESta: RxErr- BadTLP+ BadDLLP+ Rollover- Timeout- AdvNonFatalErr-"),
        ("aer", "AERCap: First Error Pointer: 0e, ECRCGenCap+ ECRCGenEn- ECRCChkCap+ ECRCChkEn-"),
        ("aer", "HeaderLog: deadbeef 00000002 00000003 00000004"),
    ):
        assert line in "\n".join(seen[name])
    # Ones written clear, zeros leave alone; a bit that is not set stays so.
    status = ("ECAP_AER+4.l", "ECAP_AER+10.l", "CAP_EXP+a.w", "STATUS")
    assert scenario.setpci(*status) == [0x0004_4000, 0x00C0, 0x0007, 0x4010]
    scenario.setpci("ECAP_AER+4.l=00040000", "ECAP_AER+10.l=40", "CAP_EXP+a.w=2", "STATUS=0")
    assert scenario.setpci(*status) == [0x0000_4000, 0x0080, 0x0005, 0x4010]
    scenario.setpci("ECAP_AER+4.l=ffffffff", "ECAP_AER+10.l=ffffffff", "CAP_EXP+a.w=ffff", "STATUS=ffff")
    assert scenario.setpci(*status) == [0, 0, 0, 0x0010]
    assert int(device.aer.uncorrectable_status) == int(device.express.device_status) == 0
    scenario.setpci(f"CAP_EXP+8.w={control:x}")
    # QEMU has no way to send the messages on: the root port, and so Linux, hears nothing.
    assert "AER: enabled" in guest.dmesg()
    assert not re.search(rf"AER: .*(error|{scenario.slot})", guest.dmesg(), re.IGNORECASE)


def test_linux_turns_on_what_an_iommu_needs(scenario: Scenario) -> None:
    device = scenario.everything
    assert (device.ats.enabled, device.pasid.enabled, device.pri.enabled) == (True, True, True)
    assert device.ats.control.smallest_translation_unit == 0
    assert (device.pasid.control.execute, device.pasid.control.privileged) == (1, 1)
    assert int(device.pri.outstanding_allocation) == 64
    assert device.acs.control.request_redirect
    assert device.acs.control.completion_redirect
    # Beside it, the same without the capabilities in sight: they stay as they were made.
    other = scenario.devices["on a conventional bus"]
    assert isinstance(other, Everything)
    assert (other.ats.enabled, other.pasid.enabled, other.pri.enabled) == (False, False, False)


def test_a_resizable_bar_keeps_the_size_it_has(scenario: Scenario) -> None:
    device, guest = scenario.everything, scenario.guest
    folder = scenario.seen(device).path
    assert guest.run(f"cat {folder}/resource0_resize {folder}/resource2_resize").stdout.split() == [
        f"{8:016x}",
        f"{1:016x}",
    ]
    assert "Invalid argument" in guest.run(f"echo 1 >{folder}/resource0_resize", check=False).stdout
    guest.run(f"echo 3 >{folder}/resource0_resize")
    first, _, second, *_ = scenario.seen(device).resources
    assert first is not None
    assert first.size == device.rebar.current_size(0) == 8 * MiB
    assert device.function.bar_address(0) == first.start
    # QEMU takes a BAR's size from the region behind it, whatever size the device begins with.
    assert second is not None
    assert (second.size, device.rebar.current_size(2)) == (4 * MiB, 1 * MiB)


def test_vital_product_data(scenario: Scenario) -> None:
    device, guest = scenario.everything, scenario.guest
    vpd = f"{scenario.seen(device).path}/vpd"
    assert guest.read_file(vpd) == VITAL_PRODUCT_DATA
    assert scenario.shown(device)["vpd"] == [
        "Vital Product Data",
        "Product Name: Card with every capability",
        "Read-only fields:",
        "[PN] Part number: VU-0001",
        "[EC] Engineering changes: A-17",
        "[SN] Serial number: 0123456789",
        f"[V0] Vendor specific: {'0123456789' * 20}",
        "[RV] Reserved: checksum good, 0 byte(s) reserved",
        "Read/write fields:",
        "[YA] Asset tag: asset tag",
        "[Y0] System specific: free",
        "End",
    ]
    # The kernel writes words of four bytes; of those the device takes what it declared writable.
    tag = VITAL_PRODUCT_DATA.index(b"asset tag")
    start, end = tag & ~3, tag + len(b"asset tag") + 3 & ~3
    guest.run(f"head -c {end - start} /dev/zero | tr '\\0' x | dd of={vpd} bs=4 seek={start // 4} conv=notrunc")
    changed = VITAL_PRODUCT_DATA.replace(b"asset tag", b"xxxxxxxxx")
    assert guest.read_file(vpd) == changed
    assert bytes(device.vpd.memory[: len(changed)]) == changed
    device.vpd.memory[tag : tag + 9] = b"asset tag"


def test_linux_has_nothing_to_complain_about(scenario: Scenario) -> None:
    messages = scenario.guest.run("dmesg -r").stdout.splitlines()
    ours = [line for line in messages if re.search(r"pci|aer|dpc|dmar|iommu|vpd|resource", line, re.IGNORECASE)]
    assert any(line.endswith(f"pci {scenario.slot}: PME# supported from D0 D1 D3hot D3cold") for line in ours)
    assert [line for line in ours if int(line[1 : line.index(">")]) % 8 <= 4] == []
