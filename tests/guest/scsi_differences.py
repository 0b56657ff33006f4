"""Where QEMU's SCSI units and ours answer the same command differently, and why. ``docs/scsi.md`` shows it as a table.

``test_lsi_transcript`` finds exactly these differences; ``tests/docs/test_scsi_page.py`` finds exactly this table.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DIFFERENCES", "Difference", "table"]

_UNKNOWN = "ILLEGAL REQUEST, INVALID OPERATION CODE"
_FIELD = "ILLEGAL REQUEST, INVALID FIELD IN CDB"
_RANGE = "ILLEGAL REQUEST, LBA OUT OF RANGE"
_STOPPED = "NOT READY, NOT READY INITIALIZING COMMAND REQUIRED"


class Difference(NamedTuple):
    """One difference.

    Attributes:
        kind: of the unit: ``disk`` or ``disc``; ``scan`` for what Linux says as it looks for one.
        commands: that show it.
        theirs: what QEMU's says, and ours does not.
        ours: the reverse.
        reason: the clause ours follows, and what QEMU does.
    """

    kind: str
    commands: tuple[str, ...]
    theirs: str
    ours: str
    reason: str


DIFFERENCES = (
    # Identity.
    Difference(
        "disk",
        ("inquiry",),
        "byte 4: 7b, byte 7: 12, byte 56: 00, byte 59: 00 00 00 00 00",
        "byte 4: 45, byte 7: 32, byte 56: 0c, byte 59: a0 04 60 04 c0",
        "SPC-4 6.6.2: ADDITIONAL LENGTH counts what there is, QEMU's what was asked for; a wide bus, dual transfers "
        "(SPI-4), and the version descriptors of SAM-5, SPC-4 and SBC-3, of which QEMU has none",
    ),
    Difference(
        "disc",
        ("inquiry",),
        "byte 4: 7b, byte 7: 12, byte 56: 00, byte 59: 00 00 00 00 00",
        "byte 4: 45, byte 7: 32, byte 56: 0c, byte 59: a0 04 60 04 e0",
        "likewise, with the descriptor of MMC-6",
    ),
    Difference(
        "disk",
        ("inquiry, 5 bytes",),
        "byte 4: 1f",
        "byte 4: 45",
        "SPC-4 4.3.5.6: ADDITIONAL LENGTH does not depend on the allocation length",
    ),
    Difference(
        "disk",
        ("inquiry, page 83",),
        "designator 0",
        "designator 1",
        "SPC-4 7.8.6.1: a unit has a name that is unique everywhere, here of type T10; QEMU's is vendor specific",
    ),
    Difference("disc", ("inquiry, page 83",), "designator 0", "designator 1", "likewise"),
    Difference(
        "disk",
        ("inquiry, page B0",),
        "byte 4: 01, byte 7: 00, byte 9: 3f ff ff, byte 20: 00 20 00 00, byte 41: 3f ff ff",
        "byte 4: 00, byte 7: 01, byte 9: 00 00 00, byte 20: ff ff ff ff, byte 41: 00 00 00",
        "SBC-3 6.5.3: no limits where there are none; a WRITE SAME of 0 blocks goes to the end, QEMU's refuses it",
    ),
    Difference(
        "disk",
        ("inquiry, page B0, 4096",),
        "byte 4: 01, byte 7: 00, byte 9: 07 ff ff, byte 20: 00 04 00 00, byte 41: 07 ff ff",
        "byte 4: 00, byte 7: 01, byte 9: 00 00 00, byte 20: ff ff ff ff, byte 41: 00 00 00",
        "likewise",
    ),
    Difference(
        "disk",
        ("inquiry, page B2",),
        "byte 5: e0",
        "byte 5: e4",
        "SBC-3 6.5.4, LBPRZ: what is unmapped reads as zeros, and says so; QEMU promises nothing",
    ),
    Difference(
        "disk",
        ("read capacity (16)", "read capacity (16), 4096"),
        "byte 14: 80",
        "byte 14: c0",
        "SBC-3 5.16.2, LBPRZ: likewise",
    ),
    Difference(
        "disc",
        ("read capacity (16)",),
        "byte 14: 80",
        "byte 14: 00",
        "SBC-3 5.16.2, LBPME: nothing can be unmapped on a disc; QEMU says of each unit that it can",
    ),
    # Logical units.
    Difference(
        "disk",
        ("report luns, well known",),
        "byte 3: 08",
        "byte 3: 00",
        "SPC-4 6.33, SELECT REPORT 01h: there are no well known logical units; QEMU lists LUN 0",
    ),
    Difference(
        "scan",
        ("a logical unit that is not there",),
        "INQUIRY result too short (5), using 36",
        "INQUIRY pass 2 length 74",
        "SPC-4 6.6.2: standard INQUIRY data has 36 bytes at least, of whatever qualifier; QEMU sends 5",
    ),
    # Modes.
    Difference(
        "disk",
        ("mode sense (6), all", "mode sense (10), all"),
        "page 01 byte 2: 80, page 04, page 05",
        "page 01 byte 2: c0, page 02, page 0a, page 1c",
        "SPC-4 7.5, SBC-3 6.4: geometry (04h, 05h) is obsolete, and would be invented; control and others are there. "
        "What fails to be read is reallocated as well as what fails to be written",
    ),
    Difference(
        "disk",
        ("mode sense (6), control",),
        _FIELD,
        "GOOD",
        "SPC-4 7.5.8: D_SENSE and SWP can be set; QEMU has no such page",
    ),
    Difference(
        "disk",
        ("mode sense (10), long addresses",),
        "block descriptor byte 2: 40, block descriptor byte 6: 02, block descriptor byte 14: 00, header byte 2: 00, "
        "header byte 5: 08",
        "block descriptor byte 2: 00, block descriptor byte 6: 40, block descriptor byte 14: 02, header byte 2: 01, "
        "header byte 5: 10",
        "SPC-4 7.5.5: LLBAA asks for the long descriptor; QEMU has the short one only",
    ),
    Difference(
        "disc",
        ("mode sense (10), all",),
        "page 01 byte 2: 80 20, page 08, page 0e, page 2a byte 2: 3b, page 2a byte 4: 7f ff 2d, page 2a byte 8: 22 60, "
        "page 2a byte 14: 0b 00, page 2a byte 18: 0b, page 2a byte 20: 0b",
        "page 01 byte 2: 00 05, page 0a, page 1c, page 2a byte 2: 0b, page 2a byte 4: 50 00 29, page 2a byte 8: 21 13, "
        "page 2a byte 14: 21 13, page 2a byte 18: 00, page 2a byte 20: 00",
        "MMC-6 7.2: no sound is played (0Eh), nothing is written that could be cached (08h); of the capabilities (2Ah) "
        "those that are there",
    ),
    Difference(
        "disc",
        ("mode sense (10), capabilities",),
        "page 2a byte 2: 3b, page 2a byte 4: 7f ff 2d, page 2a byte 8: 22 60, page 2a byte 14: 0b 00, "
        "page 2a byte 18: 0b, page 2a byte 20: 0b",
        "page 2a byte 2: 0b, page 2a byte 4: 50 00 29, page 2a byte 8: 21 13, page 2a byte 14: 21 13, "
        "page 2a byte 18: 00, page 2a byte 20: 00",
        "likewise",
    ),
    # More commands.
    Difference(
        "disk",
        (
            "log sense",
            "synchronize cache (16)",
            "send diagnostic, self test",
            "persistent reserve in, keys",
            "persistent reserve in, capabilities",
            "report supported operation codes",
        ),
        _UNKNOWN,
        "GOOD",
        "SPC-4 clause 6, SBC-3 clause 5: commands QEMU does not have",
    ),
    Difference(
        "disc",
        ("log sense", "persistent reserve in", "read track information", "set cd speed"),
        _UNKNOWN,
        "GOOD",
        "SPC-4 clause 6, MMC-6 clause 6: commands QEMU does not have",
    ),
    Difference(
        "disk",
        ("send diagnostic, page",),
        _UNKNOWN,
        _FIELD,
        "SPC-4 6.43: the command is there, SELF-TEST CODE other than 0 is not",
    ),
    Difference("disk", ("verify (10), compared",), _FIELD, "GOOD", "SBC-3 5.30, BYTCHK 01b: compares; QEMU's does not"),
    Difference(
        "disk",
        ("verify (10), miscompare",),
        _FIELD,
        "MISCOMPARE, MISCOMPARE DURING VERIFY",
        "SBC-3 5.30: and tells what is not the same",
    ),
    Difference(
        "disk",
        ("read toc",),
        "GOOD",
        _UNKNOWN,
        "MMC-6 6.26 is not of disks; QEMU's disk makes a table of contents up",
    ),
    Difference(
        "disc",
        ("write (10)", "write same", "unmap"),
        "DATA PROTECT, WRITE PROTECTED",
        _UNKNOWN,
        "MMC-6 table 4: drives that only read have no such commands; QEMU's drive is a disk that is write protected",
    ),
    Difference("disc", ("synchronize cache",), "GOOD", _UNKNOWN, "likewise"),
    # What is checked.
    Difference(
        "disk",
        ("verify (10), beyond the end", "synchronize cache (10), beyond the end"),
        "GOOD",
        _RANGE,
        "SBC-3 5.24, 5.30: blocks that are not there; QEMU does not look",
    ),
    Difference(
        "disk",
        ("start stop unit, eject what stays in", "start stop unit, power condition", "naca"),
        "GOOD",
        _FIELD,
        "SBC-3 5.25 (LOEJ, POWER CONDITION), SAM-5 5.2 (NACA): what is not supported is refused; QEMU ignores it",
    ),
    Difference(
        "disk", ("format unit, read-only",), "GOOD", "DATA PROTECT, WRITE PROTECTED", "SBC-3 4.12; QEMU does not look"
    ),
    Difference(
        "disk",
        ("test unit ready, stopped", "read (10), stopped"),
        "GOOD",
        _STOPPED,
        "SBC-3 5.25, START 0: a stopped unit is not ready; QEMU's goes on",
    ),
    Difference("disc", ("test unit ready, stopped",), "GOOD", _STOPPED, "likewise"),
    # Discs.
    Difference(
        "disc",
        ("read toc", "read toc, msf"),
        "byte 13: 16",
        "byte 13: 14",
        "MMC-6 table 490: CONTROL of a data track is 4, in the lead-out, too; QEMU's says that it may be copied there",
    ),
    Difference("disc", ("read toc, lead-out",), "byte 5: 16", "byte 5: 14", "likewise"),
    Difference(
        "disc",
        ("read toc, sessions",),
        "byte 5: 00 00",
        "byte 5: 14 01",
        "MMC-6 6.26.2.5: ADR, CONTROL and number of the last session's first track; QEMU leaves them 0",
    ),
    Difference(
        "disc",
        ("read disc information",),
        "byte 16: 00 00 00 00 00 00 00 00",
        "byte 16: ff ff ff ff ff ff ff ff",
        "MMC-6 6.22.3.1: a finished disc has no next lead-in and lead-out, which is all ones",
    ),
    Difference(
        "disc",
        ("get configuration",),
        "feature 0001 byte 8: 01",
        "feature 0001 byte 8: 00, feature 0002, feature 0010, feature 001d, feature 001e, feature 001f",
        "MMC-6 5.3: the features the profiles CD-ROM and DVD-ROM are made of, which QEMU leaves out; no device busy "
        "events, which QEMU announces and does not have",
    ),
    Difference(
        "disc",
        ("get configuration, current",),
        "feature 0001 byte 8: 01",
        "feature 0001 byte 8: 00, feature 0002, feature 0010, feature 001d, feature 001e",
        "likewise",
    ),
    Difference(
        "disc",
        ("get configuration, open",),
        "feature 0001 byte 8: 01",
        "feature 0001 byte 8: 00, feature 0002",
        "likewise",
    ),
    Difference(
        "disc",
        ("get configuration, core alone",),
        "feature 0000, feature 0001 byte 8: 01, feature 0003",
        "feature 0001 byte 8: 00",
        "MMC-6 6.5.1.1, RT 10b: one feature; QEMU ignores RT",
    ),
    Difference("disc", ("get configuration, invalid",), "GOOD", _FIELD, "MMC-6 6.5.1.1: RT 11b is reserved"),
    Difference(
        "disc",
        ("get event status, media", "get event status, media again"),
        "byte 1: 04",
        "byte 1: 06",
        "MMC-6 6.6.2.1: the length counts what follows it, the rest of the header included",
    ),
    Difference(
        "disc",
        ("get event status, no class", "get event status, another class"),
        "byte 1: 00",
        "byte 1: 02",
        "likewise",
    ),
    Difference(
        "disc",
        ("get event status, open",),
        "byte 1: 04, byte 4: 00",
        "byte 1: 06, byte 4: 03",
        "MMC-6 6.6.3.5: likewise, and the disc went; QEMU tells of no ejecting by command",
    ),
    Difference(
        "disc",
        ("get event status, loaded",),
        "byte 1: 04, byte 4: 00",
        "byte 1: 06, byte 4: 02",
        "MMC-6 6.6.3.5: likewise, and a disc came",
    ),
    Difference(
        "disc",
        ("test unit ready, open", "read capacity (10), open", "read toc, open", "read (10), open"),
        "NOT READY, MEDIUM NOT PRESENT",
        "NOT READY, MEDIUM NOT PRESENT TRAY OPEN",
        "MMC-6 annex F: which of the two it is",
    ),
    Difference(
        "disc",
        ("test unit ready, loaded",),
        "GOOD",
        "UNIT ATTENTION, MEDIUM MAY HAVE CHANGED",
        "SPC-4 5.14, MMC-6 4.1.6: the tray was open, so the disc may be another one",
    ),
)


def table() -> str:
    """The differences, for the page."""
    lines = ["| unit | command | QEMU | here | why |", "|---|---|---|---|---|"]
    for each in DIFFERENCES:
        commands = "; ".join(each.commands)
        lines.append(f"| {each.kind} | {commands} | {each.theirs} | {each.ours} | {each.reason} |")
    return "\n".join(lines) + "\n"
