"""Saving and loading: a round trip through JSON, and every file that is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from vfio_user.errors import InvalidAccess
from vfio_user.pci.registers import RW1S, Alias, Register, RegisterBlock, RegisterFile


class Channel(RegisterBlock):
    control = Register(0x0, reset=1)


class Block(RegisterBlock):
    state_version = 2
    mask = Register(0x0)
    mask_set = Alias(mask, 0x4, access=RW1S)
    rows = Register(0x8, count=2)
    byte = Register(0x10, width=8)
    channels = RegisterFile(Channel, 0x20, count=2)
    single = RegisterFile(Channel, 0x30)

    def upgrade_state(self, version: int, registers: dict[str, Any]) -> dict[str, Any]:
        """Version 1 had one row."""
        if version == 1:
            registers["rows"] = [registers.pop("row"), 0]
            return registers
        return super().upgrade_state(version, registers)


def make() -> Block:
    block = Block(size=0x100)
    block.place(0x80, Channel(), "placed")
    return block


STATE: dict[str, Any] = {
    "block": "Block",
    "version": 2,
    "registers": {"mask": 5, "rows": [6, 7], "byte": 8},
    "blocks": {
        "channels": [
            {"block": "Channel", "version": 1, "registers": {"control": 9}},
            {"block": "Channel", "version": 1, "registers": {"control": 10}},
        ],
        "single": [{"block": "Channel", "version": 1, "registers": {"control": 11}}],
        "placed": [{"block": "Channel", "version": 1, "registers": {"control": 12}}],
    },
}


def test_a_state_survives_json_and_another_process() -> None:
    block = make()
    block.load_state(json.loads(json.dumps(STATE)))
    assert block.read_bytes(0, 0x11) == bytes.fromhex("05000000 05000000 06000000 07000000 08")
    assert [c.control for c in block.channels] == [9, 10]
    assert (block.single.control, block.read(0x80, 4)) == (11, 12)
    assert json.loads(json.dumps(block.save_state())) == STATE


def test_an_older_state_is_upgraded() -> None:
    old = copy.deepcopy(STATE)
    old["version"] = 1
    old["registers"] = {"mask": 5, "row": 6, "byte": 8}
    block = make()
    block.load_state(old)
    assert list(block.rows) == [6, 0]
    assert "row" in old["registers"]


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ([], 5, "saved state of Block: not a saved register block: it has no 'block', 'version' and 'registers'"),
        ([], {"block": "Block"}, "saved state of Block: not a saved register block: it has no 'block', 'version' and"),
        (["block"], "Other", "saved state of Block: it was saved by 'Other'"),
        (["version"], 3, "saved state of Block: version 3, this class reads 2; override upgrade_state to r"),
        (["registers"], [], "saved state of Block: its registers are no mapping of names to values"),
        (["registers"], {"mask": 1, "byte": 2},
         "saved state of Block, version 2: register 'rows' is missing; if the class has gained it, ra"),
        (["registers", "maks"], 1, "saved state of Block: there is no register 'maks': did you mean 'mask'?"),
        (["registers", "byte"], 256, "saved state of Block: 'byte' = 256 is no 8-bit value"),
        (["registers", "byte"], -1, "saved state of Block: 'byte' = -1 is no 8-bit value"),
        (["registers", "byte"], "1", "saved state of Block: 'byte' = '1' is no 8-bit value"),
        (["registers", "byte"], True, "saved state of Block: 'byte' = True is no 8-bit value"),
        (["registers", "rows"], [1], "saved state of Block: 'rows' needs 2 values"),
        (["registers", "rows"], 1, "saved state of Block: 'rows' needs 2 values"),
        (["blocks"], {}, "saved state of Block: it has the blocks [], not ['channels', 'placed', 'single']"),
        (["blocks"], 5, "saved state of Block: its blocks are no mapping of names to states"),
        (["blocks", "channels"], [], "saved state of Block: 'channels' needs 2 blocks"),
        (["blocks", "channels"], 1, "saved state of Block: 'channels' needs 2 blocks"),
        (["blocks", "channels", 1, "version"], 7, "saved state of Channel: version 7, this class reads 1; override"),
        (["blocks", "channels", 1, "registers"], {}, "saved state of Channel (channels[1]), version 1: regi"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(path: list[str | int], value: object, text: str) -> None:
    state: Any = copy.deepcopy(STATE)
    if path:
        at = state
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value
    else:
        state = value
    block = make()
    before = block.save_state()
    with pytest.raises(InvalidAccess) as caught:
        block.load_state(state)
    assert text in str(caught.value)
    assert block.save_state() == before
