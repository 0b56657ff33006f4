"""What Identify returns: 4096 bytes of one of these. Spec: 5.17; NVM Command Set 4.1.5."""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterable

from vfio_user.hardware.nvme.structure import Number, Numbers, Raw, Structure, Text

__all__ = [
    "BROADCAST_NSID",
    "IDENTIFY_SIZE",
    "MAX_LIST",
    "AdminCommandSupport",
    "Cns",
    "CommandSetIdentifier",
    "IdentifyController",
    "IdentifyNamespace",
    "IdentifyNamespaceIndependent",
    "IdentifyNvmController",
    "IdentifyNvmNamespace",
    "LbaFormat",
    "NamespaceIdentifierType",
    "NvmCommandSupport",
    "controller_list",
    "namespace_descriptors",
    "namespace_list",
    "unpack_controller_list",
    "unpack_namespace_list",
]

#: Bytes of every answer to Identify.
IDENTIFY_SIZE = 4096
#: NSID for "all namespaces".
BROADCAST_NSID = 0xFFFF_FFFF
#: Namespace identifiers in one namespace list.
MAX_LIST = 1024


class Cns(enum.IntEnum):
    """CNS: what Identify is to return. Spec: figure 273."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACE_LIST = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NVM_SET_LIST = 0x04
    COMMAND_SET_NAMESPACE = 0x05
    COMMAND_SET_CONTROLLER = 0x06
    COMMAND_SET_ACTIVE_NAMESPACE_LIST = 0x07
    NAMESPACE_INDEPENDENT = 0x08
    ALLOCATED_NAMESPACE_LIST = 0x10
    ALLOCATED_NAMESPACE = 0x11
    NAMESPACE_CONTROLLER_LIST = 0x12
    CONTROLLER_LIST = 0x13
    PRIMARY_CONTROLLER_CAPABILITIES = 0x14
    SECONDARY_CONTROLLER_LIST = 0x15
    NAMESPACE_GRANULARITY_LIST = 0x16
    UUID_LIST = 0x17
    DOMAIN_LIST = 0x18
    ENDURANCE_GROUP_LIST = 0x19
    COMMAND_SET_ALLOCATED_NAMESPACE_LIST = 0x1A
    COMMAND_SET_ALLOCATED_NAMESPACE = 0x1B
    COMMAND_SETS = 0x1C


class CommandSetIdentifier(enum.IntEnum):
    """CSI: I/O command sets. Spec: figure 274."""

    NVM = 0
    KEY_VALUE = 1
    ZONED_NAMESPACE = 2


class NamespaceIdentifierType(enum.IntEnum):
    """NIDT of a namespace identification descriptor. Spec: figure 277."""

    EUI64 = 1
    NGUID = 2
    UUID = 3
    COMMAND_SET = 4


class AdminCommandSupport(enum.IntFlag):
    """OACS: optional admin commands."""

    SECURITY = 1 << 0
    FORMAT_NVM = 1 << 1
    FIRMWARE = 1 << 2
    NAMESPACE_MANAGEMENT = 1 << 3
    DEVICE_SELF_TEST = 1 << 4
    DIRECTIVES = 1 << 5
    MI_SEND_RECEIVE = 1 << 6
    VIRTUALIZATION_MANAGEMENT = 1 << 7
    DOORBELL_BUFFER_CONFIG = 1 << 8
    GET_LBA_STATUS = 1 << 9


class NvmCommandSupport(enum.IntFlag):
    """ONCS: optional NVM commands, and feature fields."""

    COMPARE = 1 << 0
    WRITE_UNCORRECTABLE = 1 << 1
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    FEATURE_SAVE_SELECT = 1 << 4
    RESERVATIONS = 1 << 5
    TIMESTAMP = 1 << 6
    VERIFY = 1 << 7
    COPY = 1 << 8


class IdentifyController(Structure):
    """CNS 01h. Spec: figure 275."""

    SIZE = IDENTIFY_SIZE
    vid = Number(0, 2, "PCI vendor")
    ssvid = Number(2, 2, "PCI subsystem vendor")
    sn = Text(4, 20, "serial number")
    mn = Text(24, 40, "model number")
    fr = Text(64, 8, "firmware revision")
    rab = Number(72, 1, "recommended arbitration burst, log2")
    ieee = Number(73, 3, "IEEE OUI")
    cmic = Number(76, 1, "multi-path I/O and namespace sharing")
    mdts = Number(77, 1, "longest data transfer, log2 of smallest memory pages; 0 for no limit")
    cntlid = Number(78, 2, "controller id")
    ver = Number(80, 4, "version, as the register")
    rtd3r = Number(84, 4, "RTD3 resume latency, microseconds")
    rtd3e = Number(88, 4, "RTD3 entry latency, microseconds")
    oaes = Number(92, 4, "optional asynchronous events")
    ctratt = Number(96, 4, "controller attributes")
    rrls = Number(100, 2, "read recovery levels")
    cntrltype = Number(111, 1, "1 for an I/O controller")
    fguid = Raw(112, 16, "FRU globally unique identifier")
    crdt = Numbers(128, 2, 3, "command retry delay times, 100 ms")
    nvmsr = Number(253, 1, "NVM subsystem report: bit 0 it is a storage device")
    vwci = Number(254, 1, "VPD write cycle information")
    mec = Number(255, 1, "management endpoint capabilities")
    oacs = Number(256, 2, "optional admin commands")
    acl = Number(258, 1, "abort command limit - 1")
    aerl = Number(259, 1, "asynchronous event request limit - 1")
    frmw = Number(260, 1, "firmware updates: slots, read-only slot, activation without reset")
    lpa = Number(261, 1, "log page attributes")
    elpe = Number(262, 1, "error log page entries - 1")
    npss = Number(263, 1, "power states - 1")
    avscc = Number(264, 1, "vendor specific command configuration")
    apsta = Number(265, 1, "autonomous power state transitions")
    wctemp = Number(266, 2, "warning temperature, kelvin")
    cctemp = Number(268, 2, "critical temperature, kelvin")
    mtfa = Number(270, 2, "maximum time for firmware activation, 100 ms")
    hmpre = Number(272, 4, "host memory buffer preferred size")
    hmmin = Number(276, 4, "host memory buffer minimum size")
    tnvmcap = Number(280, 16, "total capacity, bytes")
    unvmcap = Number(296, 16, "unallocated capacity, bytes")
    rpmbs = Number(312, 4, "replay protected memory block")
    edstt = Number(316, 2, "extended device self-test time, minutes")
    dsto = Number(318, 1, "device self-test options")
    fwug = Number(319, 1, "firmware update granularity, 4 KiB; FFh for none")
    kas = Number(320, 2, "keep alive granularity, 100 ms")
    hctma = Number(322, 2, "host controlled thermal management")
    mntmt = Number(324, 2, "minimum thermal management temperature")
    mxtmt = Number(326, 2, "maximum thermal management temperature")
    sanicap = Number(328, 4, "sanitize capabilities")
    nsetidmax = Number(338, 2, "largest NVM set identifier")
    endgidmax = Number(340, 2, "largest endurance group identifier")
    domainid = Number(356, 2, "domain identifier")
    megcap = Number(368, 16, "largest endurance group capacity")
    sqes = Number(512, 1, "submission entry sizes: required 3:0, largest 7:4")
    cqes = Number(513, 1, "completion entry sizes: required 3:0, largest 7:4")
    maxcmd = Number(514, 2, "outstanding commands; 0 for not reported")
    nn = Number(516, 4, "largest namespace identifier")
    oncs = Number(520, 2, "optional NVM commands")
    fuses = Number(522, 2, "fused operations")
    fna = Number(524, 1, "format NVM attributes")
    vwc = Number(525, 1, "volatile write cache")
    awun = Number(526, 2, "atomic write unit, normal, blocks - 1")
    awupf = Number(528, 2, "atomic write unit, power fail, blocks - 1")
    icsvscc = Number(530, 1, "vendor specific I/O command configuration")
    nwpc = Number(531, 1, "namespace write protection")
    acwu = Number(532, 2, "atomic compare and write unit, blocks - 1")
    cdfs = Number(534, 2, "copy descriptor formats")
    sgls = Number(536, 4, "SGL support")
    mnan = Number(540, 4, "maximum number of allowed namespaces")
    subnqn = Raw(768, 256, "subsystem NQN, UTF-8, ended by zero")
    psd0 = Raw(2048, 32, "power state 0")


class LbaFormat(Structure):
    """One LBA format of a namespace. Spec: NVM Command Set figure 98."""

    SIZE = 4
    ms = Number(0, 2, "metadata bytes of a block")
    lbads = Number(2, 1, "log2 of the bytes of a block")
    rp = Number(3, 1, "relative performance, 0 the best")


class IdentifyNamespace(Structure):
    """CNS 00h and 11h, NVM command set. Spec: NVM Command Set figure 97."""

    SIZE = IDENTIFY_SIZE
    nsze = Number(0, 8, "size, blocks")
    ncap = Number(8, 8, "capacity, blocks")
    nuse = Number(16, 8, "utilization, blocks")
    nsfeat = Number(24, 1, "features")
    nlbaf = Number(25, 1, "LBA formats - 1")
    flbas = Number(26, 1, "formatted LBA size: index of the LBA format")
    mc = Number(27, 1, "metadata capabilities")
    dpc = Number(28, 1, "protection capabilities")
    dps = Number(29, 1, "protection settings")
    nmic = Number(30, 1, "multi-path I/O and sharing")
    rescap = Number(31, 1, "reservation capabilities")
    fpi = Number(32, 1, "format progress indicator")
    dlfeat = Number(33, 1, "what deallocated blocks read as: 1 zeroes")
    nawun = Number(34, 2, "atomic write unit, normal")
    nawupf = Number(36, 2, "atomic write unit, power fail")
    nacwu = Number(38, 2, "atomic compare and write unit")
    nvmcap = Number(48, 16, "capacity, bytes")
    npwg = Number(64, 2, "preferred write granularity, blocks - 1")
    npwa = Number(66, 2, "preferred write alignment, blocks - 1")
    npdg = Number(68, 2, "preferred deallocate granularity, blocks - 1")
    npda = Number(70, 2, "preferred deallocate alignment, blocks - 1")
    nows = Number(72, 2, "optimal write size, blocks - 1")
    mssrl = Number(74, 2, "copy: blocks of one source range")
    mcl = Number(76, 4, "copy: blocks of one command")
    msrc = Number(80, 1, "copy: source ranges - 1")
    anagrpid = Number(92, 4, "ANA group")
    nsattr = Number(99, 1, "attributes")
    nvmsetid = Number(100, 2, "NVM set")
    endgid = Number(102, 2, "endurance group")
    nguid = Raw(104, 16, "globally unique identifier")
    eui64 = Raw(120, 8, "IEEE extended unique identifier")
    lbaf = Numbers(128, 4, 64, "LBA formats, each as an LbaFormat")


class IdentifyNvmNamespace(Structure):
    """CNS 05h and 1Bh, NVM command set. Spec: NVM Command Set figure 100."""

    SIZE = IDENTIFY_SIZE
    lbstm = Number(0, 8, "logical block storage tag mask")
    pic = Number(8, 1, "protection information capabilities")
    elbaf = Numbers(12, 4, 64, "extended LBA formats")


class IdentifyNvmController(Structure):
    """CNS 06h, NVM command set. Spec: NVM Command Set figure 102."""

    SIZE = IDENTIFY_SIZE
    vsl = Number(0, 1, "verify size limit, as mdts; 0 for none")
    wzsl = Number(1, 1, "write zeroes size limit, as mdts")
    wusl = Number(2, 1, "write uncorrectable size limit, as mdts")
    dmrl = Number(3, 1, "dataset management ranges")
    dmrsl = Number(4, 4, "dataset management: blocks of one range")
    dmsl = Number(8, 8, "dataset management: blocks of one command")


class IdentifyNamespaceIndependent(Structure):
    """CNS 08h. Spec: figure 280."""

    SIZE = IDENTIFY_SIZE
    nsfeat = Number(0, 1, "features")
    nmic = Number(1, 1, "multi-path I/O and sharing")
    rescap = Number(2, 1, "reservation capabilities")
    fpi = Number(3, 1, "format progress indicator")
    anagrpid = Number(4, 4, "ANA group")
    nsattr = Number(8, 1, "attributes")
    nvmsetid = Number(10, 2, "NVM set")
    endgid = Number(12, 2, "endurance group")
    nstat = Number(14, 1, "status: bit 0 ready")


def namespace_list(nsids: Iterable[int]) -> bytes:
    """A namespace list: the first 1024, ascending. Spec: 4.6.1."""
    some = sorted(nsids)[:MAX_LIST]
    return struct.pack(f"<{len(some)}I", *some).ljust(IDENTIFY_SIZE, b"\0")


def unpack_namespace_list(data: bytes) -> list[int]:
    """The identifiers in a namespace list, which ends with a zero or with the page."""
    found = []
    for (nsid,) in struct.iter_unpack("<I", data[: 4 * MAX_LIST]):
        if nsid == 0:
            break
        found.append(nsid)
    return found


def controller_list(cntlids: Iterable[int]) -> bytes:
    """A controller list. Spec: 4.6.2."""
    some = sorted(cntlids)[:2047]
    return struct.pack(f"<{len(some) + 1}H", len(some), *some).ljust(IDENTIFY_SIZE, b"\0")


def unpack_controller_list(data: bytes) -> list[int]:
    """The identifiers in a controller list.

    Raises:
        ValueError: it claims more than fit, or is not ascending.
    """
    (count,) = struct.unpack_from("<H", data)
    if 2 + 2 * count > len(data):
        raise ValueError(f"a controller list of {count} identifiers: no more than {len(data) // 2 - 1} fit")
    found = list(struct.unpack_from(f"<{count}H", data, 2))
    if any(one >= other for one, other in itertools.pairwise(found)):
        raise ValueError("a controller list is ascending, without repetitions")
    return found


def namespace_descriptors(descriptors: Iterable[tuple[NamespaceIdentifierType, bytes]]) -> bytes:
    """CNS 03h: the identifiers a namespace has. Spec: figure 277."""
    packed = b"".join(struct.pack("<BBxx", kind, len(value)) + value for kind, value in descriptors)
    return packed.ljust(IDENTIFY_SIZE, b"\0")
