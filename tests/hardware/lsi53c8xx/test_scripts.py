"""Decoding: each kind of instruction, and every word there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.scripts import (
    Addressing,
    BlockMove,
    BusOperation,
    BusOperationKind,
    Instruction,
    LoadStore,
    MemoryMove,
    Operator,
    RegisterMove,
    RegisterOperation,
    TransferControl,
    TransferKind,
    decode,
    sign_extend,
)


def bus(kind: BusOperationKind, destination: int = 0, **flags: bool) -> BusOperation:
    every = dict.fromkeys(("relative", "table", "attention", "carry", "target", "acknowledge"), False)
    return BusOperation(kind=kind, destination=destination, **(every | flags))


def transfer(kind: TransferKind, **changes: object) -> TransferControl:
    usual: dict[str, object] = {
        "relative": False,
        "on_the_fly": False,
        "if_true": True,
        "wait": False,
        "phase": None,
        "data": None,
        "mask": 0,
        "carry": False,
    }
    return TransferControl(kind=kind, **(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0x0900_0200, BlockMove(Phase.DATA_IN, 0x200, Addressing.DIRECT, True)),
        (0x0E00_0003, BlockMove(Phase.MESSAGE_OUT, 3, Addressing.DIRECT, True)),
        (0x2800_0001, BlockMove(Phase.DATA_OUT, 1, Addressing.INDIRECT, True)),
        (0x1100_0000, BlockMove(Phase.DATA_IN, 0, Addressing.TABLE, False)),
        (0x4105_0000, bus(BusOperationKind.SELECT, 5, attention=True)),
        (0x4700_0010, bus(BusOperationKind.SELECT, attention=True, table=True, relative=True)),
        (0x4800_0000, bus(BusOperationKind.WAIT_DISCONNECT)),
        (0x5000_0000, bus(BusOperationKind.WAIT_RESELECT)),
        (0x5800_0008, bus(BusOperationKind.SET, attention=True)),
        (0x6000_0440, bus(BusOperationKind.CLEAR, carry=True, acknowledge=True)),
        (0x6000_0200, bus(BusOperationKind.CLEAR, target=True)),
        (0x7834_5A00, RegisterMove(RegisterOperation.MODIFY, Operator.MOVE, 0x34, 0x5A, False)),
        (0x6A80_0080, RegisterMove(RegisterOperation.SFBR_TO_REGISTER, Operator.OR, 0x80, 0, True)),
        (0x7208_0000, RegisterMove(RegisterOperation.REGISTER_TO_SFBR, Operator.OR, 0x08, 0, False)),
        (0x8008_0000, transfer(TransferKind.JUMP)),
        (0x8B8B_0000, transfer(TransferKind.CALL, relative=True, phase=Phase.STATUS, wait=True)),
        (0x9004_1280, transfer(TransferKind.RETURN, if_true=False, data=0x80, mask=0x12)),
        (0x9808_0000, transfer(TransferKind.INTERRUPT)),
        (0x9818_0000, transfer(TransferKind.INTERRUPT, on_the_fly=True)),
        (0x8028_0000, transfer(TransferKind.JUMP, carry=True)),
        (0xA008_0000, None),
        (0xC000_1000, MemoryMove(0x1000)),
        (0xE134_0004, LoadStore(True, False, 0x34, 4)),
        (0xF0C9_0003, LoadStore(False, True, 0xC9, 3)),
        (0xE135_0004, None),
        (0xE134_0000, None),
        (0xE134_0005, None),
    ],
)
def test_decode(word: int, expected: Instruction | None) -> None:
    assert decode(word) == expected


@given(st.integers(0, 0xFFFF_FFFF))
def test_every_word_is_an_instruction_or_illegal(word: int) -> None:
    instruction = decode(word)
    if instruction is None:
        assert word >> 29 in (0b101, 0b111)


@pytest.mark.parametrize(
    ("word", "offset"), [(0, 0), (8, 8), (0xFF_FFF8, -8), (0x80_0000, -0x80_0000), (0x127F_FFFF, 0x7F_FFFF)]
)
def test_sign_extend(word: int, offset: int) -> None:
    assert sign_extend(word) == offset
