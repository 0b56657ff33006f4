"""Python source of a block: executed, it makes a class of the same layout; formatted and linted as code of ours is."""

from __future__ import annotations

import enum
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.source import ROOT
from vfio_user.pci.registers import (
    LOG_ONCE,
    RC,
    REJECT,
    RO,
    RSVDZ,
    RW,
    RW1C,
    RW1S,
    W1P,
    WO,
    Access,
    Alias,
    Field,
    ReadEffect,
    Register,
    RegisterBlock,
    RegisterFile,
    ResetKind,
    WriteEffect,
    on_write,
)
from vfio_user.pci.registers.interchange import from_svd, from_systemrdl, to_python

E1000 = ROOT / "examples" / "registers" / "e1000.rdl"


def executed(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "generated.py", "exec"), namespace)
    return namespace


def layout(block: type[RegisterBlock]) -> list[object]:
    """Everything that decides what a client and a device see, and what documents say."""
    rules = [block.byteorder, block.partial_access, block.spanning_access, block.unaligned_access]
    sizes = None if block.access_sizes is None else sorted(block.access_sizes)
    said = [block.unmodelled_access, block.state_version, block.size, sizes, (block.__doc__ or "").split()]
    return [*rules, *said, list(block.layout.registers), [register(item) for item in block.describe()]]


def register(item: Any) -> list[object]:
    it = item.register
    fields = [
        (
            field.name,
            field.mask,
            field.access or it.access,
            field.reset or 0,
            field.values,
            field.sticky,
            field.doc,
            None if field.enumeration is None else dict(field.enumeration.__members__),
        )
        for field in it.fields
    ]
    access = None if fields else it.access
    own = [it.attribute, it.width, access, it.resets, it.sizes, it.partial, it.reserved, it.sticky, it.doc]
    return [item.name, item.offset, item.dimensions, item.alias_of, item.when, *own, fields]


class Speed(enum.IntEnum):
    """How fast: 3 "bits"."""

    SLOW = 0
    FAST = 5


class Colour(enum.IntEnum):
    RED = 1


W0C_RS = Access("(write: 0 clears, read: sets)", WriteEffect.ZERO_CLEARS, ReadEffect.SETS)
FROZEN = Access("2 frozen", WriteEffect.IGNORED, constant=True)


class Channel(RegisterBlock):
    """One \\of "them"."""

    byteorder = "big"
    control = Register(0x0, width=16, access=WO)


Other = type("Channel", (RegisterBlock,), {"data": Register(0, count=3)})


class Everything(RegisterBlock):
    """A block with all there is.

    And a second paragraph, which is long enough to need folding when it stands in a class body, because it goes on and
    on until it no longer fits.
    """

    size = 0x400
    access_sizes = (4, 2)
    partial_access = REJECT
    unmodelled_access = LOG_ONCE
    state_version = 3

    reset_ = Register(0x0, width=8, reset={ResetKind.POWER_ON: 1, ResetKind.FLR: 2}, sticky=[ResetKind.DEVICE])
    page = Register(
        0x4, fields=[Field("number", (7, 4)), Field("done", 31, access=RW1C, reset=1, sticky=[ResetKind.FLR])]
    )
    status = Register(
        0x8,
        access=RO,
        reset=0x105,
        reserved=RSVDZ,
        sizes={4},
        partial=REJECT,
        doc="long: " + "'word' \"quoted\" \\ and\n " * 12,
        fields=[
            Field("speed", (2, 0), values=Speed, reset=Speed.FAST, doc="it's"),
            Field("hue", 3, values=Colour),
            Field("mode", (5, 4), values={0: "off", 2: 'a "quoted" word'}, access=W0C_RS),
            Field("flags", (9, 6), access=W1P, doc='"x"'),
            Field("frozen", 10, access=FROZEN),
        ],
    )
    status_set = Alias(status, 0xC, access=RW1S, doc="sets")
    status_too = Alias(status, 0x10)
    one = Register(0x14, when={"page.number": (1, 3)})
    two = Register(0x14, when={"page.number": 2}, access=RC)
    counts = Register(0x20, width=64, count=4, stride=0x10, access=W0C_RS)
    channels = RegisterFile(Channel, 0x100, count=2, stride=0x10, doc="rows")
    other: RegisterFile[RegisterBlock] = RegisterFile(Other, 0x200)
    again = RegisterFile(Channel, 0x300, when={"page.number": 4})

    @on_write("one")
    def act(self) -> None: ...


def test_everything_comes_back() -> None:
    exported = to_python(Everything)
    made = executed(exported.text)
    assert layout(made["Everything"]) == layout(Everything)
    assert made["Speed"].FAST == 5
    assert [note.where for note in exported.notes] == ["Channel", "one"]
    assert "called 'Channel2'" in exported.notes[0].what
    assert "hook act" in exported.notes[1].what


def test_an_imported_controller_comes_back_and_behaves() -> None:
    pytest.importorskip("systemrdl")
    imported = from_systemrdl(E1000)
    exported = to_python(imported.block)
    made = executed(exported.text)["E1000"]
    assert exported.notes == ()
    assert layout(made) == layout(imported.block)
    nic = made()
    nic.write(0x00D0, 4, 0x84)
    nic.write(0x00D8, 4, 0x04)
    assert nic.read(0x00D0, 4) == 0x80
    assert exported.text == to_python(made).text.replace("ReceiveAddress, imported", "receive_address, imported")


SVD = """<?xml version="1.0"?>
<device><peripherals><peripheral><name>TIMER0</name><description>Counts "down"</description>
<registers>
<register><name>CTRL</name><addressOffset>0x0</addressOffset><size>16</size><resetValue>0x21</resetValue>
<fields><field><name>EN</name><bitOffset>0</bitOffset><bitWidth>1</bitWidth></field>
<field><name>class</name><bitRange>[7:4]</bitRange><access>read-only</access></field></fields></register>
<register><dim>3</dim><dimIncrement>8</dimIncrement><name>CH[%s]</name><addressOffset>0x10</addressOffset>
<modifiedWriteValues>zeroToSet</modifiedWriteValues><readAction>clear</readAction></register>
</registers></peripheral></peripherals></device>
"""


def test_an_imported_svd_peripheral_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "chip.svd"
    file.write_text(SVD)
    block = from_svd(file).block
    made = executed(to_python(block).text)
    assert layout(made["TIMER0"]) == layout(block)
    assert made["TIMER0"]().ctrl.class_ == 2


def test_several_blocks_make_one_module() -> None:
    made = executed(to_python(Channel, Everything).text)
    assert layout(made["Channel"]) == layout(Channel)
    assert layout(made["Everything"]) == layout(Everything)
    assert made["Everything"].layout.files["channels"].block is made["Channel"]


def test_an_empty_block() -> None:
    empty = type("Empty", (RegisterBlock,), {"__doc__": None})
    assert executed(to_python(empty).text)["Empty"].size == 0


def test_no_word_of_a_description_becomes_code() -> None:
    hostile = 'x"""\nimport os; boom()\n"""\\'
    block: type[RegisterBlock] = type(
        "Hostile",
        (RegisterBlock,),
        {"__doc__": hostile, "a": Register(0x0, doc=hostile * 9, fields=[Field("f", 0, values={0: hostile})])},
    )
    made = executed(to_python(block).text)["Hostile"]
    assert made.layout.registers["a"].doc == hostile * 9
    assert made.layout.registers["a"].fields[0].values == {0: hostile}
    assert made.__doc__.split() == hostile.split()


def test_source_says_no_more_than_the_description() -> None:
    class Terse(RegisterBlock):
        """Little to say."""

        data = Register(0x0, access=RW, reset=0, fields=[Field("low", (7, 0), access=RO, reset=0)], stride=None)
        page = Register(
            0x4, doc="a short one", reset={ResetKind.POWER_ON: 1, ResetKind.FLR: 2}, sticky=[ResetKind.DEVICE]
        )

    assert to_python(Terse).text == (
        '"""The registers of Terse."""\n'
        "\n"
        "from vfio_user.pci.registers import RO, Field, Register, RegisterBlock, ResetKind\n"
        "\n"
        "\n"
        "class Terse(RegisterBlock):\n"
        '    """Little to say."""\n'
        "\n"
        '    data = Register(0x0000, access=RO, fields=[Field("low", (7, 0))])\n'
        "    page = Register(\n"
        "        0x0004, reset={ResetKind.POWER_ON: 0x1, ResetKind.FLR: 0x2}, sticky=[ResetKind.DEVICE], "
        'doc="a short one"\n'
        "    )\n"
    )


@pytest.mark.parametrize("doc", ['ends in a "quote"', "a\\nbackslash", "one at its end\\", 'both \\ "here"'])
def test_docstrings_come_back(doc: str) -> None:
    block: type[RegisterBlock] = type("Documented", (RegisterBlock,), {"__doc__": doc})
    assert executed(to_python(block).text)["Documented"].__doc__.strip() == doc


def test_it_is_written_as_formatters_and_linters_want_it(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("there is no ruff beside this Python")
    file = tmp_path / "registers.py"
    config = ["--no-cache", "--config", str(ROOT / "pyproject.toml")]
    source = to_python(Everything).text
    if (text := _e1000()) is not None:
        (tmp_path / "e1000.py").write_text(text)
    file.write_text(source)
    for words in (["format", "--check"], ["check"]):
        done = subprocess.run([ruff, *words, *config, tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{source}"


def _e1000() -> str | None:
    try:
        return to_python(from_systemrdl(E1000).block).text
    except ValueError:
        return None


ACCESSES = st.sampled_from([RW, RO, WO, RW1C, W1P, W0C_RS])


@st.composite
def blocks(draw: st.DrawFn) -> type[RegisterBlock]:
    body: dict[str, Any] = {}
    offset = 0
    for number in range(draw(st.integers(1, 4))):
        width = draw(st.sampled_from([8, 16, 32, 64]))
        fields, bit = [], 0
        while draw(st.booleans()) and bit < width:
            top = draw(st.integers(bit, width - 1))
            access = draw(st.none() | ACCESSES)
            reset = draw(st.none() | st.integers(0, 2 ** (top - bit + 1) - 1))
            doc = draw(st.text("a'\"\\ \n\té☃", max_size=100))
            fields.append(Field(f"f{bit}", (top, bit), access=access, reset=reset, doc=doc))
            bit = top + 1
        reset = None if any(field.reset is not None for field in fields) else draw(st.integers(0, 2**width - 1))
        count = draw(st.none() | st.integers(1, 3))
        made: Any = Register
        body[f"r{number}"] = item = made(
            offset, width=width, access=draw(ACCESSES), reset=reset, fields=fields, count=count
        )
        offset = item.end + draw(st.integers(0, 5))
    return type("Drawn", (RegisterBlock,), body)


@settings(deadline=None, max_examples=60)
@given(blocks())
def test_any_block_comes_back(block: type[RegisterBlock]) -> None:
    made = executed(to_python(block).text)["Drawn"]
    assert layout(made)[:-1] == [*layout(block)[:8], ["Drawn."], *layout(block)[9:-1]]
    assert layout(made)[-1] == layout(block)[-1]
