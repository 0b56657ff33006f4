"""The register maps, against the offsets drivers use."""

from __future__ import annotations

import pytest

from vfio_user.hardware.lsi53c8xx.registers import Lsi53c810Registers, Lsi53c895aRegisters

#: As the manual's register address map prints them.
OFFSETS = {
    "scntl0": 0x00, "scid": 0x04, "sfbr": 0x08, "dstat": 0x0C, "sstat2": 0x0F, "dsa": 0x10, "istat0": 0x14,
    "ctest0": 0x18, "ctest3": 0x1B, "temp": 0x1C, "dfifo": 0x20, "ctest6": 0x23, "dbc": 0x24, "dnad": 0x28,
    "dsp": 0x2C, "dsps": 0x30, "scratcha": 0x34, "dmode": 0x38, "dien": 0x39, "sbr": 0x3A, "dcntl": 0x3B,
    "adder": 0x3C, "sien": 0x40, "sist": 0x42, "slpar": 0x44, "swide": 0x45, "macntl": 0x46, "gpcntl": 0x47,
    "stime0": 0x48, "stime1": 0x49, "respid": 0x4A, "stest0": 0x4C, "stest3": 0x4F, "sidl": 0x50, "sodl": 0x54,
    "sbdl": 0x58, "scratchb": 0x5C,
}  # fmt: skip
OFFSETS_895A = {
    "istat1": 0x15, "mbox0": 0x16, "mbox1": 0x17, "stest4": 0x52, "ccntl0": 0x56, "ccntl1": 0x57, "scratch": 0x60,
    "mmrs": 0xA0, "mmws": 0xA4, "sfs": 0xA8, "drs": 0xAC, "sbms": 0xB0, "dbms": 0xB4, "dnad64": 0xB8, "pmjad1": 0xC0,
    "pmjad2": 0xC4, "rbc": 0xC8, "ua": 0xCC, "esa": 0xD0, "ia": 0xD4, "sbc": 0xD8, "csbc": 0xDC,
}  # fmt: skip


@pytest.mark.parametrize(
    ("block", "offsets"),
    [(Lsi53c810Registers, OFFSETS), (Lsi53c895aRegisters, OFFSETS | OFFSETS_895A)],
)
def test_offsets(block: type[Lsi53c810Registers], offsets: dict[str, int]) -> None:
    registers = block.layout.registers
    assert {name: registers[name].offset for name in offsets} == offsets


def test_sizes() -> None:
    assert Lsi53c810Registers.size == 0x60
    assert Lsi53c895aRegisters.size == 0xE0
    assert Lsi53c895aRegisters.layout.registers["scratch"].elements == 16


def test_every_register_says_what_it_is() -> None:
    assert [name for name, each in Lsi53c895aRegisters.layout.registers.items() if not each.doc] == []
