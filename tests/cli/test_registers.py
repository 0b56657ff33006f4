"""``vfio-user registers``: maps of devices and files, in every form, and what a form has no words for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Outcome
from tests.support.source import ROOT

Run = Callable[..., Outcome]

CARD = """
from vfio_user import Field, MemoryBar, MsiX, PciDevice, Register, RegisterBlock, on_write

class Fifo(RegisterBlock):
    data = Register(0x0)

class Control(RegisterBlock):
    '''What the driver sets.'''
    go = Register(0x0, fields=[Field("now", 0)])

    @on_write("go.now")
    def start(self): ...

class Card(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x1, 0xFF0000
    msix = MsiX(vectors=2, bar=0, table_offset=0x800, pba_offset=0xC00)
    bar0 = MemoryBar(size=0x1000, registers=Control)
    bar2 = MemoryBar(size=0x10, region=lambda card: Fifo(size=card.depth))

    def __init__(self, *, depth: int = 8):
        self.depth = depth
        super().__init__()
        self.bar0.place(0x100, Fifo(), "fifo")
"""


@pytest.fixture
def card(folder: Path) -> str:
    (folder / "card.py").write_text(CARD)
    return "card.py"


def test_a_shipped_device_fits_a_terminal(run: Run) -> None:
    outcome = run("registers", "edu", "--config")
    assert (outcome.status, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("BAR0: EduRegisters: The registers in BAR0.")
    assert "CONFIG 0x0 (header): Type0Header: The header registers of an endpoint." in lines
    assert any(line.startswith("0x0042  16    RW RO") for line in lines)


def test_without_config_there_is_none(run: Run) -> None:
    assert "CONFIG" not in run("registers", "edu").stdout


def test_blocks_in_every_bar_and_placed_at_run_time(run: Run, card: str) -> None:
    blocks = json.loads(run("registers", card, "--format=json", "--set", "depth=16").stdout)["blocks"]
    assert [(each["place"], each["offset"], each["name"]) for each in blocks] == [
        ("BAR0", 0, "Control"),
        ("BAR0 0x100 (fifo)", 0x100, "Fifo"),
        ("BAR2", 0, "Fifo"),
    ]
    text = run("registers", card).stdout
    assert "\n0x0100  32    RW      0x0    data\n" in text
    assert "on_write: start" in text


def test_a_c_header_has_each_block_once(run: Run, card: str) -> None:
    text = run("registers", card, "--format=c").stdout
    assert text.count("#ifndef FIFO_REGISTERS_H") == 1
    assert "#define CONTROL_GO_NOW_MASK 0x1u" in text


def test_markdown_says_where_a_block_stands(run: Run, card: str) -> None:
    outcome = run("registers", card, "--format=markdown")
    assert [line for line in outcome.stdout.splitlines() if line.startswith("# ")] == [
        "# BAR0: Control",
        "# BAR0 0x100 (fifo): Fifo",
        "# BAR2: Fifo",
    ]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.targets: list[str] = []
        self.pages = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pages += tag == "html"
        for name, value in attrs:
            if name == "href":
                self.links.append(str(value))
            elif name == "id":
                self.targets.append(str(value))


def test_html_is_one_page_whose_links_lead_somewhere(run: Run, card: str) -> None:
    page = _Page(run("registers", card, "--format=html").stdout)
    assert page.pages == 1
    assert page.links == ["#r0", "#r1", "#r2"]
    assert page.targets == ["r0", "r1", "r2"]


def test_python_source_is_a_module_of_all_blocks(run: Run, card: str) -> None:
    namespace: dict[str, Any] = {}
    exec(run("registers", card, "--format=python").stdout, namespace)
    assert namespace["Control"]().go.now == 0
    assert "Fifo" in namespace


def test_what_cannot_be_said_goes_to_standard_error(run: Run, card: str) -> None:
    outcome = run("registers", card, "--format=python")
    assert outcome.status == 0
    assert outcome.stderr.startswith("vfio-user: note: go.now: its on_write hook start (")
    outcome = run("registers", card, "--format=python", "--strict")
    assert outcome.status == 1
    assert outcome.stdout.startswith('"""The registers of')
    assert outcome.stderr.endswith("vfio-user: 1 note, and --strict\n")
    assert run("registers", "edu", "--format=python", "--strict").status == 0


def test_output_goes_to_a_file(run: Run, folder: Path) -> None:
    outcome = run("registers", "edu", "--format=c", "--output", "edu.h")
    assert (outcome.status, outcome.stdout) == (0, "")
    assert "#define EDUREGISTERS_LIVENESS 0x4" in (folder / "edu.h").read_text()
    outcome = run("registers", "edu", "--output", "nowhere/edu.h")
    assert outcome.status == 1
    assert outcome.stderr == "vfio-user: nowhere/edu.h: No such file or directory\n"


RDL = """
addrmap inner { reg { field {} v[8]; regwidth = 8; } b @ 0; };
addrmap outer {
    `include "word.rdl"
    external reg { field { onwrite = wuser; } u[32]; } custom @ 0x4; };
"""


@pytest.fixture
def rdl(folder: Path) -> str:
    pytest.importorskip("systemrdl")
    (folder / "parts").mkdir()
    (folder / "parts" / "word.rdl").write_text("reg { field {} v[32]; } word @ 0x0;\n")
    (folder / "map.rdl").write_text(RDL)
    return "map.rdl"


def test_systemrdl_and_what_registers_here_cannot_say(run: Run, rdl: str) -> None:
    outcome = run("registers", rdl, "--include", "parts")
    assert outcome.status == 0
    assert outcome.stdout.startswith("Outer: outer, imported.\n0x8 bytes")
    assert outcome.stderr == "vfio-user: note: outer.custom.u: onwrite=wuser: add a before_write hook\n"
    assert run("registers", rdl, "--include", "parts", "--strict").status == 1


def test_one_address_map_of_several(run: Run, rdl: str) -> None:
    outcome = run("registers", rdl, "--include=parts", "--block=inner", "--format=python")
    namespace: dict[str, Any] = {}
    exec(outcome.stdout, namespace)
    assert namespace["Inner"].layout.registers["b"].width == 8
    assert run("registers", rdl, "--include=parts", "--block=nonsense").status == 1


def test_a_wrong_description_shows_its_line(run: Run, folder: Path) -> None:
    pytest.importorskip("systemrdl")
    (folder / "wrong.rdl").write_text("addrmap wrong {\n    nonsense\n")
    outcome = run("registers", "wrong.rdl")
    assert outcome.status == 1
    assert "wrong.rdl:" in outcome.stderr


def test_without_the_compiler_it_says_how_to_get_it(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "map.rdl").write_text(RDL)
    monkeypatch.setitem(sys.modules, "systemrdl", None)
    outcome = run("registers", "map.rdl")
    assert outcome.status == 1
    assert outcome.stderr == ("vfio-user: reading SystemRDL needs systemrdl-compiler: pip install 'vfio-user[rdl]'\n")


def test_a_large_description_fits_a_terminal(run: Run) -> None:
    pytest.importorskip("systemrdl")
    outcome = run("registers", str(ROOT / "examples" / "registers" / "e1000.rdl"), "--strict")
    assert outcome.status == 0
    assert max(map(len, outcome.stdout.splitlines())) <= 80


SVD = """<device>
<peripheral><name>A</name><registers><register><name>X</name><addressOffset>0</addressOffset></register></registers>
<interrupt><name>IRQ</name></interrupt></peripheral>
<peripheral><name>B</name><registers><register><name>Y</name><addressOffset>4</addressOffset></register></registers>
</peripheral></device>
"""


def test_svd_gives_all_peripherals_or_the_one_asked_for(run: Run, folder: Path) -> None:
    (folder / "chip.svd").write_text(SVD)
    outcome = run("registers", "chip.svd", "--format=json")
    assert [each["name"] for each in json.loads(outcome.stdout)["blocks"]] == ["A", "B"]
    assert "interrupt IRQ: not a register" in outcome.stderr
    outcome = run("registers", "chip.svd", "--block=B")
    assert outcome.stdout.startswith("B: ")
    assert outcome.stderr == ""
    assert "no peripheral 'C'" in run("registers", "chip.svd", "--block=C").stderr


def test_sources_that_are_not_there(run: Run) -> None:
    assert run("registers", "missing.rdl") == Outcome(2, "", "vfio-user: there is no file missing.rdl\n")
    assert run("registers", "edd").status == 2


def test_a_device_without_registers(run: Run, folder: Path) -> None:
    (folder / "bare.py").write_text(
        "from vfio_user import MemoryBar, PciDevice\n"
        "class Bare(PciDevice):\n"
        "    vendor_id, device_id, class_code = 0x1234, 2, 0xFF0000\n"
        "    bar0 = MemoryBar(size=16)\n"
    )
    outcome = run("registers", "bare.py")
    assert outcome.status == 2
    assert "Bare has no register blocks" in outcome.stderr
    assert run("registers", "bare.py", "--config").status == 0


def test_a_device_that_is_no_pci_device(run: Run) -> None:
    assert run("registers", "lamp.py").stdout.startswith("BAR0: Registers: registers\n0x8 bytes")
