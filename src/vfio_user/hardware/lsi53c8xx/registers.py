"""Registers of the 53C810 and the 53C895A. Names are the manuals', in lower case.

Most of the map is the same in the whole family. The later chip has 0x60 to 0xFF besides, and more meaning in some.

Ref: LSI53C895A Technical Manual, chapter 4, "Registers"; SYM53C810A Data Manual, chapter 5.
"""

from __future__ import annotations

from vfio_user.pci.registers import RC, RO, RW1C, W1P, Field, Register, RegisterBlock

__all__ = ["Lsi53c810Registers", "Lsi53c895aRegisters"]


class Lsi53c810Registers(RegisterBlock):
    """What every 53C8xx has: SCSI core, DMA core, the SCRIPTS processor's, timers, tests."""

    # SCSI core.
    scntl0 = Register(
        0x00,
        width=8,
        reset=0xC0,
        doc="SCSI control zero",
        fields=[
            Field("trg", 0, doc="target mode"),
            Field("aap", 1, doc="assert ATN on parity error"),
            Field("epc", 3, doc="enable parity checking"),
            Field("watn", 4, doc="select with ATN on a start sequence"),
            Field("start", 5, doc="start sequence"),
            Field("arb", (7, 6), reset=3, doc="arbitration mode"),
        ],
    )
    scntl1 = Register(
        0x01,
        width=8,
        doc="SCSI control one",
        fields=[
            Field("sst", 0, doc="start SCSI transfer"),
            Field("iarb", 1, doc="immediate arbitration"),
            Field("aesp", 2, doc="assert even parity"),
            Field("rst", 3, doc="assert RST on the bus"),
            Field("con", 4, doc="connected", access=RO),
            Field("dhp", 5, doc="do not halt on parity error"),
            Field("adb", 6, doc="assert SCSI data bus"),
            Field("exc", 7, doc="extra clock cycle of data setup"),
        ],
    )
    scntl2 = Register(
        0x02,
        width=8,
        doc="SCSI control two",
        fields=[
            Field("wsr", 0, access=RW1C, doc="a byte of a wide receive is left in SWIDE"),
            Field("vue0", 1),
            Field("vue1", 2),
            Field("wss", 3, access=RW1C, doc="a byte of a wide send is left"),
            Field("slphben", 4),
            Field("slpmd", 5),
            Field("chm", 6, doc="chained mode"),
            Field("sdu", 7, doc="a disconnect is unexpected"),
        ],
    )
    scntl3 = Register(
        0x03,
        width=8,
        doc="SCSI control three",
        fields=[
            Field("ccf", (2, 0), doc="clock conversion factor"),
            Field("ews", 3, doc="enable wide SCSI"),
            Field("scf", (6, 4), doc="synchronous clock conversion factor"),
            Field("ultra", 7),
        ],
    )
    scid = Register(
        0x04,
        width=8,
        doc="SCSI chip id",
        fields=[
            Field("enc", (3, 0), doc="own id"),
            Field("sre", 5, doc="enable response to selection"),
            Field("rre", 6, doc="enable response to reselection"),
        ],
    )
    sxfer = Register(0x05, width=8, doc="SCSI transfer: synchronous period and offset")
    sdid = Register(0x06, width=8, doc="SCSI destination id", fields=[Field("enc", (3, 0))])
    gpreg = Register(0x07, width=8, doc="general purpose pins")
    sfbr = Register(0x08, width=8, access=RO, doc="SCSI first byte received; SCRIPTS may write it")
    socl = Register(0x09, width=8, doc="SCSI output control latch")
    ssid = Register(0x0A, width=8, access=RO, doc="SCSI selector id", fields=[Field("enc", (3, 0)), Field("val", 7)])
    sbcl = Register(0x0B, width=8, access=RO, doc="SCSI bus control lines")

    # Status of both cores.
    dstat = Register(
        0x0C,
        width=8,
        access=RC,
        doc="DMA status; reading clears",
        fields=[
            Field("iid", 0, doc="illegal instruction detected"),
            Field("sir", 2, doc="SCRIPTS interrupt instruction"),
            Field("ssi", 3, doc="single step"),
            Field("abrt", 4, doc="aborted"),
            Field("bf", 5, doc="bus fault"),
            Field("mdpe", 6, doc="master data parity error"),
            Field("dfe", 7, access=RO, reset=1, doc="DMA FIFO empty"),
        ],
    )
    sstat0 = Register(
        0x0D,
        width=8,
        access=RO,
        doc="SCSI status zero",
        fields=[
            Field("sdp0", 0),
            Field("rst", 1, doc="RST is asserted"),
            Field("woa", 2, doc="won arbitration"),
            Field("loa", 3, doc="lost arbitration"),
            Field("aip", 4, doc="arbitration in progress"),
            Field("olf", 5),
            Field("orf", 6),
            Field("ilf", 7),
        ],
    )
    sstat1 = Register(
        0x0E,
        width=8,
        access=RO,
        doc="SCSI status one",
        fields=[Field("phase", (2, 0), doc="phase as latched"), Field("sdp0l", 3), Field("ff", (7, 4))],
    )
    sstat2 = Register(
        0x0F,
        width=8,
        access=RO,
        doc="SCSI status two",
        fields=[Field("ldsc", 1, reset=1, doc="last disconnect: the bus was free since")],
    )
    dsa = Register(0x10, doc="data structure address")
    istat0 = Register(
        0x14,
        width=8,
        doc="interrupt status zero; may be read and written while SCRIPTS run",
        fields=[
            Field("dip", 0, access=RO, doc="DMA interrupt pending: see dstat"),
            Field("sip", 1, access=RO, doc="SCSI interrupt pending: see sist"),
            Field("intf", 2, access=RW1C, doc="interrupt on the fly"),
            Field("con", 3, access=RO, doc="connected"),
            Field("sem", 4, doc="semaphore"),
            Field("sigp", 5, doc="signal process"),
            Field("srst", 6, doc="software reset"),
            Field("abrt", 7, doc="abort operation"),
        ],
    )
    ctest0 = Register(0x18, width=8, doc="chip test zero")
    ctest1 = Register(0x19, width=8, access=RO, reset=0xF0, doc="chip test one: bytes in the DMA FIFO")
    ctest2 = Register(
        0x1A,
        width=8,
        doc="chip test two; reading clears SIGP",
        fields=[
            Field("dack", 0, access=RO, reset=1),
            Field("dreq", 1, access=RO),
            Field("teop", 2, access=RO),
            Field("srtch", 3, doc="scratch A and B show the addresses of the BARs"),
            Field("cm", 4, access=RO, reset=1, doc="configured as memory"),
            Field("cio", 5, access=RO, reset=1, doc="configured as I/O"),
            Field("sigp", 6, access=RO, doc="SIGP of istat0"),
            Field("ddir", 7, access=RO, doc="data transfer direction"),
        ],
    )
    ctest3 = Register(
        0x1B,
        width=8,
        doc="chip test three",
        fields=[
            Field("wrie", 0, doc="write and invalidate enable"),
            Field("fm", 1, doc="fetch pin mode"),
            Field("clf", 2, access=W1P, doc="clear DMA FIFO"),
            Field("flf", 3, access=W1P, doc="flush DMA FIFO"),
            Field("v", (7, 4), access=RO, reset=1, doc="chip revision level"),
        ],
    )
    temp = Register(0x1C, doc="temporary: the address RETURN goes to")
    dfifo = Register(0x20, width=8, access=RO, doc="DMA FIFO byte offset counter")
    ctest4 = Register(0x21, width=8, doc="chip test four")
    ctest5 = Register(0x22, width=8, doc="chip test five")
    ctest6 = Register(0x23, width=8, doc="chip test six: DMA FIFO")
    dbc = Register(
        0x24,
        doc="DMA byte counter, and DMA command: the first word of the instruction",
        fields=[Field("count", (23, 0)), Field("dcmd", (31, 24))],
    )
    dnad = Register(0x28, doc="DMA next address")
    dsp = Register(
        0x2C,
        doc="DMA SCRIPTS pointer; writing starts the processor",
        fields=[Field("low", (23, 0)), Field("high", (31, 24))],
    )
    dsps = Register(0x30, doc="DMA SCRIPTS pointer save: the second word of the instruction")
    scratcha = Register(0x34, doc="scratch register A")
    dmode = Register(
        0x38,
        width=8,
        doc="DMA mode",
        fields=[
            Field("man", 0, doc="manual start: dcntl.std starts, not a write to dsp"),
            Field("bof", 1, doc="burst opcode fetch"),
            Field("ermp", 2, doc="enable read multiple"),
            Field("erl", 3, doc="enable read line"),
            Field("diom", 4, doc="destination is I/O memory"),
            Field("siom", 5, doc="source is I/O memory"),
            Field("bl", (7, 6), doc="burst length"),
        ],
    )
    dien = Register(0x39, width=8, doc="DMA interrupt enable: bits of dstat")
    sbr = Register(0x3A, width=8, doc="scratch byte")
    dcntl = Register(
        0x3B,
        width=8,
        doc="DMA control",
        fields=[
            Field("com", 0, doc="not compatible with the 53C700"),
            Field("irqd", 1, doc="IRQ disable"),
            Field("std", 2, access=W1P, doc="start DMA operation"),
            Field("irqm", 3, doc="IRQ mode"),
            Field("ssm", 4, doc="single-step mode"),
            Field("pfen", 5, doc="prefetch enable"),
            Field("pff", 6, access=W1P, doc="prefetch flush"),
            Field("clse", 7, doc="cache line size enable"),
        ],
    )
    adder = Register(0x3C, access=RO, doc="sum output of the internal adder")

    # Interrupts and timers.
    sien = Register(0x40, width=16, doc="SCSI interrupt enable: bits of sist")
    sist = Register(
        0x42,
        width=16,
        access=RC,
        doc="SCSI interrupt status; reading clears",
        fields=[
            Field("par", 0, doc="parity error"),
            Field("rst", 1, doc="SCSI reset"),
            Field("udc", 2, doc="unexpected disconnect"),
            Field("sge", 3, doc="SCSI gross error"),
            Field("rsl", 4, doc="reselected"),
            Field("sel", 5, doc="selected"),
            Field("cmp", 6, doc="function complete"),
            Field("ma", 7, doc="phase mismatch"),
            Field("hth", 8, doc="handshake-to-handshake timer expired"),
            Field("gen", 9, doc="general purpose timer expired"),
            Field("sto", 10, doc="selection or reselection timeout"),
            Field("sbmc", 12, doc="SCSI bus mode change"),
        ],
    )
    slpar = Register(0x44, width=8, doc="SCSI longitudinal parity")
    swide = Register(0x45, width=8, access=RO, doc="SCSI wide residue")
    macntl = Register(0x46, width=8, doc="memory access control")
    gpcntl = Register(0x47, width=8, reset=0x0F, doc="general purpose pin control")
    stime0 = Register(
        0x48, width=8, doc="SCSI timer zero", fields=[Field("sel", (3, 0), doc="selection"), Field("hth", (7, 4))]
    )
    stime1 = Register(
        0x49,
        width=8,
        doc="SCSI timer one",
        fields=[
            Field("gen", (3, 0), doc="general purpose timer; writing starts it"),
            Field("gensf", 4, doc="16 times as long"),
            Field("hthba", 5),
            Field("hthsf", 6, doc="16 times as long"),
        ],
    )
    respid = Register(0x4A, width=16, doc="response ids: bit i for id i")
    stest0 = Register(0x4C, width=8, access=RO, doc="SCSI test zero")
    stest1 = Register(
        0x4D,
        width=8,
        doc="SCSI test one",
        fields=[Field("qsel", 2, doc="clock quadrupler selected"), Field("qen", 3, doc="enabled"), Field("sclk", 7)],
    )
    stest2 = Register(0x4E, width=8, doc="SCSI test two")
    stest3 = Register(
        0x4F,
        width=8,
        doc="SCSI test three",
        fields=[
            Field("stw", 0),
            Field("csf", 1, access=W1P, doc="clear SCSI FIFO"),
            Field("dsi", 2),
            Field("s16", 3),
            Field("ttm", 4),
            Field("hsc", 5, doc="halt SCSI clock"),
            Field("str", 6),
            Field("te", 7, doc="TolerANT enable"),
        ],
    )
    sidl = Register(0x50, width=16, access=RO, doc="SCSI input data latch: the byte received last")
    sodl = Register(0x54, width=16, doc="SCSI output data latch")
    sbdl = Register(0x58, width=16, access=RO, doc="SCSI bus data lines")
    scratchb = Register(0x5C, doc="scratch register B")


class Lsi53c895aRegisters(Lsi53c810Registers):
    """The 53C895A: Ultra2, 64-bit addresses, phase mismatches handled by SCRIPTS, 16 more scratch registers."""

    istat1 = Register(
        0x15,
        width=8,
        doc="interrupt status one",
        fields=[
            Field("sirqd", 0, doc="disable the interrupt pin"),
            Field("srun", 1, access=RO, doc="SCRIPTS run"),
            Field("flsh", 2, access=RO, doc="the chip is flushing"),
        ],
    )
    mbox0 = Register(0x16, width=8, doc="mailbox zero")
    mbox1 = Register(0x17, width=8, doc="mailbox one")
    stest4 = Register(
        0x52,
        width=8,
        access=RO,
        doc="SCSI test four",
        fields=[
            Field("lock", 5, reset=1, doc="the clock quadrupler is locked"),
            Field("smode", (7, 6), reset=3, values={1: "HVD", 2: "SE", 3: "LVD"}, doc="mode of the bus"),
        ],
    )
    ccntl0 = Register(
        0x56,
        width=8,
        doc="chip control zero",
        fields=[
            Field("dpr", 0),
            Field("dils", 1, doc="disable internal load and store"),
            Field("disfc", 4, doc="disable automatic FIFO clear"),
            Field("enndj", 5, doc="enable jumps on phase mismatches outside data phases"),
            Field("pmjctl", 6, doc="the jump depends on the direction, not on scntl2.wsr"),
            Field("enpmj", 7, doc="enable phase mismatch jumps"),
        ],
    )
    ccntl1 = Register(
        0x57,
        width=8,
        doc="chip control one",
        fields=[
            Field("en64dbmv", 0, doc="direct block moves have a third word: the high half of the address"),
            Field("en64tibmv", 1, doc="table entries say where the high half of the address is"),
            Field("timod64", 2, doc="as the high byte of the count, rather than as the number of a register"),
            Field("ddac", 3, doc="disable dual address cycles"),
            Field("zmod", 7),
        ],
    )
    scratch = Register(0x60, count=16, doc="scratch registers C to R")
    mmrs = Register(0xA0, doc="memory move read selector: the high half of addresses, as in the following")
    mmws = Register(0xA4, doc="memory move write selector")
    sfs = Register(0xA8, doc="SCRIPTS fetch selector")
    drs = Register(0xAC, doc="DSA relative selector")
    sbms = Register(0xB0, doc="static block move selector")
    dbms = Register(0xB4, doc="dynamic block move selector: of the block move being carried out")
    dnad64 = Register(0xB8, doc="DMA next address, high half")
    pmjad1 = Register(0xC0, doc="phase mismatch jump address one: outbound")
    pmjad2 = Register(0xC4, doc="phase mismatch jump address two: inbound")
    rbc = Register(0xC8, doc="remaining byte count of the block move that met a phase mismatch, and its high byte")
    ua = Register(0xCC, doc="updated address of that block move")
    esa = Register(0xD0, doc="entry storage address: of its table entry")
    ia = Register(0xD4, doc="instruction address: of that block move")
    sbc = Register(0xD8, access=RO, doc="SCSI byte count: bytes it moved")
    csbc = Register(0xDC, doc="cumulative SCSI byte count: bytes of all data phases")
