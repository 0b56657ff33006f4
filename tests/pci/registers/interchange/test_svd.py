"""Importing CMSIS-SVD: inheritance, arrays, clusters and side effects; what does not fit is noted with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers.interchange import from_svd, svd_peripherals

DEVICE = """<?xml version="1.0" encoding="utf-8"?>
<device schemaVersion="1.3">
  <name>Chip</name>
  <size>32</size>
  <resetValue>0x0</resetValue>
  <peripherals>
    <peripheral>
      <name>TIMER0</name>
      <description>A timer\\nwith channels</description>
      <addressBlock><offset>0</offset><size>4k</size><usage>registers</usage></addressBlock>
      <addressBlock><offset>0</offset><size>0x2000</size><usage>buffer</usage></addressBlock>
      <interrupt><name>TIMER0</name><value>3</value></interrupt>
      <registers>
        <register>
          <name>CR</name><description>control</description><addressOffset>0x0</addressOffset>
          <resetValue>0x21</resetValue><resetMask>0xFFFFFFFF</resetMask>
          <fields>
            <field><name>EN</name><bitOffset>0b0</bitOffset></field>
            <field><name>MODE</name><bitRange>[5:4]</bitRange>
              <enumeratedValues>
                <enumeratedValue><name>once</name><value>0</value></enumeratedValue>
                <enumeratedValue><name>repeat</name><value>#10</value></enumeratedValue>
                <enumeratedValue><name>odd</name><value>#x1</value></enumeratedValue>
                <enumeratedValue><name>big</name><value>0x9</value></enumeratedValue>
                <enumeratedValue><name>other</name><isDefault>true</isDefault></enumeratedValue>
              </enumeratedValues>
            </field>
            <field><name>CH%s</name><dim>3</dim><dimIncrement>2</dimIncrement><dimIndex>A-C</dimIndex>
              <lsb>8</lsb><msb>9</msb></field>
            <field derivedFrom="EN"><name>DBG</name><bitOffset>31</bitOffset></field>
            <field><name>EN_AGAIN</name><bitOffset>0</bitOffset><bitWidth>1</bitWidth></field>
            <field><name>real</name><bitOffset>20</bitOffset><bitWidth>2</bitWidth></field>
          </fields>
        </register>
        <register>
          <name>SR</name><addressOffset>0x4</addressOffset><access>read-write</access>
          <modifiedWriteValues>oneToClear</modifiedWriteValues>
          <fields><field><name>RO</name><bitOffset>8</bitOffset><access>read-only</access></field>
          <field><name>DONE</name><bitOffset>0</bitOffset><modifiedWriteValues>oneToClear</modifiedWriteValues></field>
          <field><name>READ</name><bitOffset>1</bitOffset><access>read-only</access><readAction>clear</readAction></field>
          </fields>
        </register>
        <register><name>CNT</name><addressOffset>8</addressOffset><access>read-only</access><readAction>clear</readAction>
        </register>
        <register><name>KEY</name><addressOffset>0xC</addressOffset><access>write-only</access><size>16</size>
          <writeConstraint><range><minimum>1</minimum><maximum>2</maximum></range></writeConstraint></register>
        <register><name>LOCK</name><addressOffset>0xE</addressOffset><access>read-writeOnce</access><size>8</size>
          <readAction>modifyExternal</readAction></register>
        <register><name>CNT_ALT</name><addressOffset>8</addressOffset><alternateRegister>CNT</alternateRegister></register>
        <register><name>RX</name><addressOffset>0x10</addressOffset><access>read-only</access></register>
        <register><name>TX</name><addressOffset>0x10</addressOffset><access>write-only</access></register>
        <register><name>CC[%s]</name><addressOffset>0x20</addressOffset><dim>4</dim><dimIncrement>8</dimIncrement></register>
        <register derivedFrom="CC[%s]"><name>CD[%s]</name><addressOffset>0x24</addressOffset></register>
        <register><name>P%s</name><addressOffset>0x60</addressOffset><dim>2</dim><dimIncrement>4</dimIncrement>
          <dimIndex>A,B</dimIndex></register>
        <register><name>Q%s</name><addressOffset>0x70</addressOffset><dim>2</dim><dimIncrement>4</dimIncrement></register>
        <register><name>BAD</name><addressOffset>0x78</addressOffset><size>8</size>
          <fields><field><name>X</name><bitOffset>9</bitOffset></field></fields></register>
        <register><name>SMALL</name><addressOffset>0x7c</addressOffset><size>24</size><protection>s</protection></register>
        <register><name>WIDE</name><addressOffset>0x90</addressOffset><size>128</size></register>
        <register><name>reset</name><addressOffset>0x80</addressOffset></register>
        <register><name>Reset</name><addressOffset>0x84</addressOffset></register>
        <cluster><name>CH[%s]</name><description>one channel</description><addressOffset>0x100</addressOffset>
          <dim>2</dim><dimIncrement>0x20</dimIncrement><access>read-only</access>
          <register><name>VAL</name><addressOffset>4</addressOffset></register>
          <cluster><name>SUB</name><addressOffset>8</addressOffset>
            <register><name>DEEP</name><addressOffset>4</addressOffset><access>read-write</access></register></cluster>
        </cluster>
      </registers>
    </peripheral>
    <peripheral derivedFrom="TIMER0"><name>TIMER1</name><baseAddress>0x40001000</baseAddress></peripheral>
  </peripherals>
</device>
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chip.svd"
    path.write_text(DEVICE)
    return path


def test_a_peripheral_becomes_a_block(file: Path) -> None:
    assert svd_peripherals(file) == ["TIMER0", "TIMER1"]
    imported = from_svd(file, "TIMER0")
    block: Any = imported.block()
    assert (imported.block.__name__, imported.block.__doc__, block.size) == ("TIMER0", "A timer with channels", 0x1000)
    assert str(block.cr) == "0x21 (en=1 mode=repeat cha=0 chb=0 chc=0 real_=0 dbg=0)"
    block.cnt = 5
    assert [block.read(8, 4), block.read(8, 4)] == [5, 0]
    block.sr.done, block.sr.ro, block.sr.read = 1, 1, 1
    assert block.read(4, 4) == 0x103
    block.write(4, 4, 0xFFF)
    assert block.sr == 0x100
    block.rx = 7
    block.write(0x10, 4, 9)
    assert (block.read(0x10, 4), block.tx) == (7, 9)
    block.write(0x3C, 4, 3)
    assert (list(block.cc), block.cd[3]) == ([0, 0, 0, 0], 3)
    block.write(0x64, 4, 4)
    block.write(0x74, 4, 5)
    assert (block.pb, block.q[1]) == (4, 5)
    block.ch[1].val = 6
    block.write(0x124, 4, 1)
    block.write(0x12C, 4, 8)
    assert (block.read(0x124, 4), block.ch[1].sub.deep) == (6, 8)
    assert (imported.block.layout.declarations["reset"].offset, block.reset_2) == (0x80, 0)


def test_what_does_not_fit_is_noted_with_its_line(file: Path) -> None:
    lines = DEVICE.splitlines()

    def at(text: str) -> str:
        return f"{file}:{next(number for number, line in enumerate(lines, 1) if text in line)}"

    notes = sorted(str(note) for note in from_svd(file, "TIMER0").notes)
    assert notes == sorted(
        [
            f"{at('<interrupt>')}: interrupt TIMER0: not a register, left out",
            f"{at('>odd<')}: CR.MODE: odd = #x1 stands for several values, left out",
            f"{at('>big<')}: CR.MODE: big = 0x9 does not fit 2 bits, left out",
            f"{at('>other<')}: CR.MODE: the name of all other values, other, left out",
            "CR.EN_AGAIN: left out: another field has bits 0",
            f"{at('<writeConstraint>')}: KEY: writeConstraint: any value can be written; add a before_write hook",
            f"{at('>LOCK<')}: LOCK: read-writeOnce: later writes are not refused here; add a before_write hook",
            f"{at('>LOCK<')}: LOCK: readAction modifyExternal: add an on_read hook",
            f"{at('<alternateRegister>')}: CNT_ALT: alternateRegister: another register in its place",
            _banked(f"CNT_ALT ({at('>CNT_ALT<')})", f"cnt [0x8, 0xc) ({at('>CNT<')})"),
            f"{at('>BAD<')}: BAD left out: field 'x' ({at('>X<')}) has bits 9 of 8",
            f"{at('>WIDE<')}: WIDE left out: 128 bits are more than the 64 of a register",
            f"{at('>SMALL<')}: SMALL: 24 bits, made 32",
            f"{at('<protection>')}: SMALL: protection: every client may access it",
            f"Reset ({at('>Reset<')}): called 'reset_2': another one has its name",
        ]
    )


def _banked(late: str, early: str) -> str:
    return f"{late}: left out: {early} has these bytes; declare the bank (when=) by hand"


def test_a_derived_peripheral_has_the_registers_of_its_source(file: Path) -> None:
    imported = from_svd(file, "TIMER1")
    assert imported.block.__name__ == "TIMER1"
    assert [item.name for item in imported.block.describe()][:3] == ["cr", "sr", "cnt"]


@pytest.mark.parametrize(
    ("content", "peripheral", "text"),
    [
        ("<device", None, "not XML: unclosed token: line 1, column 0"),
        ("<svd/>", None, "not CMSIS-SVD: its root is <svd>, not <device>"),
        (DEVICE, None, "say which peripheral: TIMER0, TIMER1"),
        (DEVICE, "TIMER2", "no peripheral 'TIMER2': did you mean 'TIMER"),
        ('<!DOCTYPE d [<!ENTITY a "aaa">]><device/>', None, "it declares the XML entity 'a'; CMSIS-SVD has none"),
        (
            DEVICE.replace('derivedFrom="TIMER0"', 'derivedFrom="TIMER7"'),
            "TIMER1",
            "derivedFrom='TIMER7' leads nowhere",
        ),
        (DEVICE.replace("<addressOffset>0x4<", "<addressOffset>four<"), "TIMER0", "'four' is no number of CMSIS-SVD"),
    ],
)
def test_files_that_cannot_be_read(file: Path, content: str, peripheral: str | None, text: str) -> None:
    file.write_text(content)
    with pytest.raises(RegisterDefinitionError) as caught:
        from_svd(file, peripheral)
    assert text in str(caught.value)


def test_the_only_peripheral_needs_no_name(file: Path) -> None:
    start = DEVICE.index("    <peripheral derivedFrom")
    end = DEVICE.index("  </peripherals>")
    file.write_text(DEVICE[:start] + DEVICE[end:])
    assert from_svd(file).block.__name__ == "TIMER0"
