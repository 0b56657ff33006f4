"""The controller's registers in BAR0. Spec: 3.1.3; NVMe over PCIe Transport 3.1 (doorbells)."""

from __future__ import annotations

import enum

from vfio_user.pci.registers import RO, RW1C, RW1S, WO, Alias, Field, Register, RegisterBlock, ResetKind

__all__ = [
    "DOORBELLS",
    "DOORBELLS_OFFSET",
    "SUBSYSTEM_RESET",
    "CommandSet",
    "NvmeRegisters",
    "ShutdownNotification",
    "ShutdownStatus",
    "completion_doorbell",
    "submission_doorbell",
]

#: Bytes into BAR0 where the doorbells begin, four bytes each: tail of submission queue y at 2y, head of completion
#: queue y at 2y + 1 (CAP.DSTRD is 0).
DOORBELLS_OFFSET = 0x1000
#: Doorbells there is room for: one page of them.
DOORBELLS = 0x1000 // 4

#: "NVMe": what is written to NSSR to reset the subsystem.
SUBSYSTEM_RESET = 0x4E56_4D65


class CommandSet(enum.IntEnum):
    """CC.CSS: the I/O command sets the host selects."""

    NVM = 0
    ALL_SUPPORTED = 6
    ADMIN_ONLY = 7


class ShutdownNotification(enum.IntEnum):
    """CC.SHN: the host is about to take the power away."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2
    RESERVED = 3


class ShutdownStatus(enum.IntEnum):
    """CSTS.SHST."""

    NORMAL_OPERATION = 0
    OCCURRING = 1
    COMPLETE = 2


class NvmeRegisters(RegisterBlock):
    """The registers, and one page of doorbells."""

    cap = Register(
        0x00,
        width=64,
        access=RO,
        doc="what the controller can do",
        fields=[
            Field("mqes", (15, 0), doc="entries of the longest I/O queue - 1"),
            Field("cqr", 16, doc="I/O queues must be physically contiguous"),
            Field("ams", (18, 17), doc="arbitration mechanisms besides round robin"),
            Field("to", (31, 24), doc="longest time to become ready, in 500 ms"),
            Field("dstrd", (35, 32), doc="doorbell stride is 4 << dstrd bytes"),
            Field("nssrs", 36, doc="has NSSR, the subsystem reset"),
            Field("css", (44, 37), doc="command sets: bit 0 NVM, bit 6 those of Identify 1Ch, bit 7 none"),
            Field("bps", 45, doc="boot partitions"),
            Field("cps", (47, 46), doc="controller power scope"),
            Field("mpsmin", (51, 48), doc="smallest memory page is 4096 << mpsmin bytes"),
            Field("mpsmax", (55, 52), doc="largest memory page is 4096 << mpsmax bytes"),
            Field("pmrs", 56, doc="persistent memory region"),
            Field("cmbs", 57, doc="controller memory buffer"),
            Field("nsss", 58, doc="subsystem shutdown"),
            Field("crms", (60, 59), doc="ready modes: bit 0 with media, bit 1 independent of media"),
        ],
    )
    vs = Register(
        0x08,
        access=RO,
        reset=0x0002_0000,
        doc="version",
        fields=[Field("major", (31, 16)), Field("minor", (15, 8)), Field("tertiary", (7, 0))],
    )
    intms = Register(0x0C, access=RW1S, doc="interrupt mask, a 1 sets; not with MSI-X")
    intmc = Alias(intms, 0x10, access=RW1C, doc="interrupt mask, a 1 clears; not with MSI-X")
    cc = Register(
        0x14,
        doc="configuration",
        fields=[
            Field("en", 0, doc="enable"),
            Field("css", (6, 4), values=CommandSet, doc="command set selected"),
            Field("mps", (10, 7), doc="memory page is 4096 << mps bytes"),
            Field("ams", (13, 11), doc="arbitration mechanism"),
            Field("shn", (15, 14), values=ShutdownNotification, doc="shutdown notification"),
            Field("iosqes", (19, 16), doc="I/O submission entries have 1 << iosqes bytes"),
            Field("iocqes", (23, 20), doc="I/O completion entries have 1 << iocqes bytes"),
            Field("crime", 24, access=RO, doc="ready independent of media"),
        ],
    )
    csts = Register(
        0x1C,
        access=RO,
        doc="status",
        fields=[
            Field("rdy", 0, doc="ready"),
            Field("cfs", 1, doc="fatal error; a reset clears it"),
            Field("shst", (3, 2), values=ShutdownStatus, doc="shutdown status"),
            Field(
                "nssro",
                4,
                access=RW1C,
                sticky=[ResetKind.DEVICE, ResetKind.FLR, ResetKind.SOFTWARE],
                doc="a subsystem reset occurred",
            ),
            Field("pp", 5, doc="processing paused"),
            Field("st", 6, doc="shst is of a subsystem shutdown"),
        ],
    )
    nssr = Register(0x20, access=WO, doc='subsystem reset: write "NVMe"')
    aqa = Register(
        0x24,
        doc="admin queue sizes",
        sticky=[ResetKind.SOFTWARE],
        fields=[
            Field("asqs", (11, 0), doc="entries of the admin submission queue - 1"),
            Field("acqs", (27, 16), doc="entries of the admin completion queue - 1"),
        ],
    )
    asq = Register(
        0x28,
        width=64,
        sticky=[ResetKind.SOFTWARE],
        doc="base address of the admin submission queue",
        fields=[Field("asqb", (63, 12), doc="in pages of 4096 bytes")],
    )
    acq = Register(
        0x30,
        width=64,
        sticky=[ResetKind.SOFTWARE],
        doc="base address of the admin completion queue",
        fields=[Field("acqb", (63, 12), doc="in pages of 4096 bytes")],
    )
    cmbloc = Register(0x38, access=RO, doc="controller memory buffer: there is none")
    cmbsz = Register(0x3C, access=RO, doc="controller memory buffer: there is none")
    bpinfo = Register(0x40, access=RO, doc="boot partitions: there are none")
    crto = Register(
        0x68,
        access=RO,
        doc="ready timeouts",
        fields=[
            Field("crwmt", (15, 0), doc="until ready with media, in 500 ms"),
            Field("crimt", (31, 16), doc="until ready independent of media, in 500 ms"),
        ],
    )
    pmrcap = Register(0xE00, access=RO, doc="persistent memory region: there is none")
    doorbells = Register(
        DOORBELLS_OFFSET, access=WO, count=DOORBELLS, doc="even: tails of submission queues; odd: heads of completion"
    )


def submission_doorbell(qid: int) -> int:
    """Which doorbell is the tail of a submission queue."""
    return 2 * qid


def completion_doorbell(qid: int) -> int:
    """Which doorbell is the head of a completion queue."""
    return 2 * qid + 1
