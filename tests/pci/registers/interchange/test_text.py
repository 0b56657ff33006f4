"""Register maps as text of 80 columns and as JSON: everything a description has is in them."""

from __future__ import annotations

import json

import pytest

from tests.support.source import ROOT
from vfio_user.hardware.edu import EduRegisters
from vfio_user.pci.registers import (
    RW1C,
    RW1S,
    Access,
    Alias,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
    ResetKind,
    WriteEffect,
    on_read,
    on_write,
)
from vfio_user.pci.registers.interchange import from_systemrdl, to_json, to_text

W0T = Access("toggles where zero", WriteEffect.ZERO_TOGGLES)


class Channel(RegisterBlock):
    control = Register(0x0, fields=[Field("run", 0)])

    @on_read("control.run")
    def look(self) -> None: ...


class Example(RegisterBlock):
    """A block.

    Args:
        size: not a word about registers.
    """

    byteorder = "big"

    status = Register(
        0x0,
        fields=[
            Field("mode", (5, 4), values={0: "off", 2: "on"}, reset=2, doc="how it runs"),
            Field("done", 31, access=RW1C, sticky=[ResetKind.FLR]),
            Field("odd", 6, access=W0T),
        ],
        doc="what happened",
    )
    status_set = Alias(status, 0x4, access=RW1S)
    page = Register(0x8, width=8, reset={ResetKind.POWER_ON: 1, ResetKind.FLR: 2}, sticky=[ResetKind.DEVICE])
    one = Register(0xC, when={"page": (1, 3)}, access=W0T)
    channels = RegisterFile(Channel, 0x10, count=4, stride=8)

    @on_write("page")
    def turn(self) -> None: ...

    @on_write("channels.control")
    def begin(self, channel: int) -> None: ...


TEXT = """\
Example: A block.
0x2c bytes, big-endian.

offset  bits  access    reset  register
0x1000  32    by field  0x20   status  what happened
        5:4   RW        0x2      mode  how it runs; 0 = off; 2 = on
        6     special   0x0      odd  toggles where zero
        31    RW1C      0x0      done  sticky over flr
0x1004  32    RW1S      0x20   status_set  alias of status
0x1008  8     RW        0x1    page
                                 0x2 after flr; sticky over device; on_write:
                                 turn
0x100c  32    special   0x0    one  while page = 1 or 3; toggles where zero
0x1010  32    RW        0x0    channels[4].control
                                 at 0x1010 + 0x8 * i; on_write: begin; on_read:
                                 look
        0     RW        0x0      run
"""


def test_text_has_all_of_it() -> None:
    exported = to_text(Example, base=0x1000)
    assert exported.text == TEXT
    assert exported.notes == ()


def test_what_does_not_fit_beside_a_name_stands_below_it() -> None:
    lines = to_text(EduRegisters).text.splitlines()
    at = lines.index("0x0004  32    RW      0x0        liveness")
    assert lines[at + 1] == "                                   reads back the complement of what was written"


def test_no_line_is_wider_than_a_terminal() -> None:
    pytest.importorskip("systemrdl")
    text = to_text(from_systemrdl(ROOT / "examples" / "registers" / "e1000.rdl").block).text
    assert max(map(len, text.splitlines())) <= 80
    name = "a_name_of_" * 6 + "64"
    wide: type[RegisterBlock] = type(
        "Wide",
        (RegisterBlock,),
        {name: Register(0xFFFF_FFF0, width=64, access=W0T, reset=2**64 - 1, doc="words " * 30)},
    )
    lines = to_text(wide).text.splitlines()
    assert max(map(len, lines)) <= 80
    assert f"    {name}" in lines


def test_json_has_all_of_it() -> None:
    about = json.loads(to_json(Example).text)
    assert (about["name"], about["doc"], about["size"], about["byteorder"]) == ("Example", "A block.", 0x2C, "big")
    status, status_set, page, one, channel = about["registers"]
    assert (status["name"], status["offset"], status["width"], status["doc"]) == ("status", 0, 32, "what happened")
    assert status["fields"][0] == {
        "name": "mode",
        "lsb": 4,
        "width": 2,
        "access": {"name": "RW", "write": "stores", "read": "none"},
        "reset": 2,
        "sticky": [],
        "values": {"0": "off", "2": "on"},
        "doc": "how it runs",
    }
    assert status["fields"][2]["sticky"] == ["flr"]
    assert status_set["alias_of"] == "status"
    assert (page["reset"]["power-on"], page["reset"]["flr"], page["sticky"]) == (1, 2, ["device"])
    assert page["hooks"] == [{"kind": "on_write", "path": "page", "method": "turn"}]
    assert one["hooks"] == []
    assert channel["hooks"] == [
        {"kind": "on_write", "path": "channels.control", "method": "begin"},
        {"kind": "on_read", "path": "control.run", "method": "look"},
    ]
    assert one["when"] == [{"selector": "page", "values": [1, 3]}]
    assert (channel["offset"], channel["arrays"]) == (0x10, [{"count": 4, "stride": 8}])
