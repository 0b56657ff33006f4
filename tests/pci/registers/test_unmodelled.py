"""Accesses that meet no register: what is answered, remembered, logged and printed."""

from __future__ import annotations

import logging

import pytest

from vfio_user.errors import InvalidAccess
from vfio_user.pci.registers import IGNORE, LOG_ALL, LOG_ONCE, RAISE, RO, Register, RegisterBlock, RegisterFile
from vfio_user.pci.registers import unmodelled as module


class Inner(RegisterBlock):
    size = 0x10
    unmodelled_access = RAISE
    a = Register(0x0)


class Block(RegisterBlock):
    a = Register(0x0)
    inner = RegisterFile(Inner, 0x10)


def test_the_report_is_a_list_to_work_off() -> None:
    block = Block(size=0x1000)
    assert block.unmodelled.report() == "Block: every access met a register"
    block.write(0x40, 4, 0xABC)
    block.write(0x40, 4, 0xDEF)
    block.read(0x40, 2)
    for _ in range(3):
        block.read(0x24, 4)
    block.read(0x100, 8)
    block.read(0x104, 4)
    block.read(0x204, 1)
    assert block.unmodelled.report() == (
        "Block: 6 kinds of access met no register, oldest first\n"
        "  0x0040 write 4 bytes, 2 times, first value 0xabc\n"
        "  0x0040 read  2 bytes, 1 times\n"
        "  0x0024 read  4 bytes, 3 times\n"
        "  0x0100 read  8 bytes, 1 times\n"
        "  0x0104 read  4 bytes, 1 times\n"
        "  0x0204 read  1 bytes, 1 times\n"
        "to paste:\n"
        "    unknown_40 = Register(0x40)  # 1 reads, 2 writes\n"
        "    unknown_24 = Register(0x24, access=RO)  # 3 reads, 0 writes\n"
        "    unknown_100 = Register(0x100, width=64, access=RO)  # 1 reads, 0 writes\n"
        "    unknown_204 = Register(0x204, width=8, access=RO)  # 1 reads, 0 writes"
    )
    block.unmodelled.clear()
    assert len(block.unmodelled) == 0


def test_the_pasted_declarations_are_declarations() -> None:
    block = Block(size=0x1000)
    block.read(0x41, 1)
    block.write(0x48, 8, 1)
    text = "\n    ".join(["class Pasted(RegisterBlock):", *block.unmodelled.declarations()])
    namespace: dict[str, type[RegisterBlock]] = {}
    exec(text, {"Register": Register, "RegisterBlock": RegisterBlock, "RO": RO}, namespace)
    assert [item.offset for item in namespace["Pasted"].layout.declarations.values()] == [0x41, 0x48]


def test_the_outermost_block_decides_and_counts_in_its_own_offsets() -> None:
    block = Block(size=0x1000)
    assert block.read(0x18, 4) == 0
    assert [access.offset for access in block.unmodelled] == [0x18]
    assert len(block.inner.unmodelled) == 0
    with pytest.raises(InvalidAccess, match="Inner: read of 4 bytes at 0x8, where there is no register"):
        block.inner.read(0x8, 4)


@pytest.mark.parametrize(("policy", "lines"), [(IGNORE, 0), (LOG_ONCE, 2), (LOG_ALL, 4)])
def test_policies_that_log(policy: module.Unmodelled, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    block = Block(size=0x1000)
    block.unmodelled.policy = policy
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert block.read(0x40, 4) == 0
            block.write(0x40, 4, 7)
    assert len(caplog.messages) == lines
    if lines:
        assert caplog.messages[:2] == [
            "Block: read of 4 bytes at 0x40, where there is no register",
            "Block: write of 4 bytes, 0x7, at 0x40, where there is no register",
        ]


def test_the_policy_that_refuses_counts_too() -> None:
    block = Block(size=0x1000)
    block.unmodelled.policy = RAISE
    with pytest.raises(InvalidAccess, match="Block: write of 4 bytes, 0x7, at 0x40, where there is no register"):
        block.write(0x40, 4, 7)
    with pytest.raises(InvalidAccess, match="Block: read of 1 bytes at 0x43, where there is no register"):
        block.read(0x43, 1)
    assert [access.count for access in block.unmodelled] == [1, 1]


def test_a_client_that_sweeps_a_large_region_does_not_fill_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 3)
    block = RegisterBlock(size=1 << 20)
    for offset in range(0, 0x28, 4):
        block.read(offset, 4)
    assert (len(block.unmodelled), block.unmodelled.dropped) == (3, 7)
    assert "and 7 more accesses, which were too many to remember" in block.unmodelled.report()
