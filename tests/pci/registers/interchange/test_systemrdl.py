"""Importing SystemRDL: a controller of 120 registers works like the real one; what does not fit is noted."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from vfio_user.errors import RegisterDefinitionError
from vfio_user.pci.registers.interchange import Imported, from_systemrdl

pytest.importorskip("systemrdl")

E1000 = Path(__file__).parents[4] / "examples" / "registers" / "e1000.rdl"


@pytest.fixture(scope="module")
def e1000() -> Imported:
    return from_systemrdl(E1000)


def test_a_real_controller_comes_in_whole(e1000: Imported) -> None:
    descriptions = e1000.block.describe()
    assert e1000.notes == ()
    assert len(descriptions) == 120
    assert sum(1 for item in descriptions for _ in item.elements()) == 698
    assert e1000.block.__name__ == "E1000"
    assert e1000.block.__doc__ == "8254x: Gigabit Ethernet controller, memory BAR 0."
    assert e1000.block.size == 0x9C00
    assert e1000.block.layout.declarations["ctrl"].location.file == str(E1000)
    assert E1000.read_text().splitlines()[e1000.block.layout.declarations["ctrl"].location.line - 1].strip() == (
        "} CTRL @ 0x0000;"
    )


def test_its_side_effects_are_those_of_the_data_sheet(e1000: Imported) -> None:
    nic: Any = e1000.block()
    assert nic.read(0x0000, 4) == 0x209
    nic.write(0x0000, 4, 1 << 26)
    assert nic.ctrl == 0
    nic.write(0x00D0, 4, 0x84)
    nic.write(0x00D8, 4, 0x04)
    assert (nic.read(0x00D0, 4), nic.imc.rxt0) == (0x80, 1)
    nic.icr.lsc = 1
    assert [nic.read(0x00C0, 4), nic.read(0x00C0, 4)] == [4, 0]
    nic.write(0x00C8, 4, 4)
    assert (nic.ics.lsc, nic.read(0x00C8, 4)) == (1, 0)
    nic.gprc = 0xFFFF_FFFE
    nic.gprc += 5
    assert [nic.read(0x4074, 4), nic.read(0x4074, 4)] == [0xFFFF_FFFF, 0]
    nic.write(0x547C, 4, 1 << 31)
    assert nic.ra[15].high.av == 1
    nic.wus.mag = 1
    nic.write(0x5810, 4, 2)
    assert nic.wus == 0
    nic.write(0x0008, 4, 0xFFFF)
    assert str(nic.status).startswith("0x80 (fd=0 lu=0 function_id=0 txoff=0 tbimode=0 speed=mbps1000")
    assert nic.eecd.fwe == 1


FEATURES = """
enum colour { red = 2'd0; green = 2'd3; };
property checked { component = field; type = boolean; };
addrmap inner { bigendian; reg { field {} v[16]; regwidth = 16; } half @ 0x2; };
addrmap features {
    reg { field { onwrite = wzc; onread = rset; } a[3:0] = 5; field { onwrite = wclr; } b[7:4];
          field { onwrite = wset; } c[8:8]; field { onwrite = wzs; } d[9:9]; field { onwrite = wzt; } e[10:10];
          field { onwrite = wot; } f[11:11]; field { sw = w; } g[12:12]; field { encode = colour; } imag[14:13];
          field {} h[15:15]; } effects @ 0x0;
    reg { field { sw = rw1; } once[0:0]; field { level intr; } irq[1:1]; field { counter; hw = r; } up[7:2];
          field { counter; decrvalue = 1; hw = r; } down[9:8]; field { swmod; hw = r; } told[10:10]; } hardware @ 0x4;
    external reg { field { onwrite = wuser; onread = ruser; } u[32]; } custom @ 0x38;
    reg { regwidth = 128; field {} wide[128]; } huge @ 0x10;
    reg { regwidth = 64; accesswidth = 32; field {} v[64] = 64'h1_0000_0000; } pair @ 0x20;
    reg { field {} v[32]; } grid[2][3] @ 0x40;
    external mem { mementries = 16; memwidth = 32; } buffer @ 0x80;
    inner big @ 0x100;
    inner row[2] @ 0x140 += 8;
    reg { shared; name = "Shared"; desc = "by  all"; field { hw = r; } s[4] = 3; field { hw = r; } t[4]; t->reset = s; }
        common @ 0x180;
    reg { field {} v[32]; } control_ @ 0x190;
    reg { field {} v[32]; } CONTROL_ @ 0x194;
    reg p { field { sw = rw; } x[1:0]; field { sw = rw; } y[3:2]; };
    reg q { field { sw = rw; onwrite = woset; } x[1:0]; field { sw = r; } y[3:2]; };
    p primary @ 0x30;
    alias primary q other @ 0x34;
};
"""


def test_every_effect_and_what_becomes_of_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "features.rdl"
    file.write_text(FEATURES)
    imported = from_systemrdl(file)
    block: Any = imported.block()
    names = {field.name: str(field.access) for field in imported.block.layout.registers["effects"].fields}
    assert names == {
        "a": "(write: 0 clears, read: sets)",
        "b": "(write: any write clears, read: none)",
        "c": "(write: any write sets, read: none)",
        "d": "W0S",
        "e": "(write: 0 toggles, read: none)",
        "f": "RW1T",
        "g": "WO",
        "imag_": "RW",
        "h": "RW",
    }
    assert str(block.effects) == "0x5 (a=5 b=0 c=0 d=0 e=0 f=0 g=0 imag_=red h=0)"
    assert (block.pair, block.read(0x24, 4)) == (1 << 32, 1)
    block.grid[4] = 9
    assert block.read(0x50, 4) == 9
    block.big.half = 0x1122
    assert block.read(0x102, 2) == 0x2211
    block.row[1].half = 0x3344
    assert block.read(0x14A, 2) == 0x4433
    assert imported.block.layout.registers["common"].doc == "Shared: by all"
    block.write(0x194, 4, 5)
    assert (block.control, block.control_2) == (0, 5)
    block.write(0x34, 4, 3)
    assert (block.primary.x, block.other.x) == (3, 3)
    block.hardware.up = 63
    block.hardware.up += 2
    assert block.hardware.up == 1
    assert sorted(str(note) for note in imported.notes) == [
        f"CONTROL_ ({file}:22): called 'control_2': another one has its name",
        "features.buffer: a mem: place a MemoryRegion at 0x80",
        "features.common.t: its reset value is another component's: 0 here; set it from device code",
        "features.common: shared: each map has a register of its own here",
        "features.custom.u: onread=ruser: add an on_read hook",
        "features.custom.u: onwrite=wuser: add a before_write hook",
        "features.grid[][]: an array of 2 by 3 is one row of 6 here, the last index running fastest",
        "features.hardware.down: counts down: store the new value from device code",
        "features.hardware.irq: intr: set its bits from device code, and raise the interrupt there",
        "features.hardware.once: sw=rw1: later writes are not refused here; add a before_write hook",
        "features.hardware.told: swmod: add an on_write hook",
        "features.huge: left out: 128 bits are more than the 64 of a register",
        "features.other: an alias whose fields differ in access: it has that of its register here",
        "features.pair: accesswidth 32: accesses of any size are taken; set sizes= to refuse some",
    ]


def test_a_wrong_description_is_reported_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "wrong.rdl"
    file.write_text("addrmap wrong {\n    reg { field {} a[40]; } word @ 0x0;\n};\n")
    with pytest.raises(RegisterDefinitionError, match=r"wrong\.rdl:2: ") as caught:
        from_systemrdl([file])
    assert "40" in str(caught.value) or "exceed" in str(caught.value)
    file.write_text("addrmap wrong {\n    nonsense\n")
    with pytest.raises(RegisterDefinitionError, match=r"wrong\.rdl:2: "):
        from_systemrdl(file)


def test_without_the_compiler_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RegisterDefinitionError, match=r"needs systemrdl-compiler: pip install 'vfio-user\[rdl\]'"):
        from_systemrdl(E1000)
