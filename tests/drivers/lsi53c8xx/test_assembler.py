"""The assembler: what it makes is what ``hardware.lsi53c8xx.scripts`` reads."""

from __future__ import annotations

import struct

from vfio_user.drivers.lsi53c8xx.assembler import ALWAYS, Script, if_data, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.scripts import (
    Addressing,
    BlockMove,
    BusOperation,
    BusOperationKind,
    LoadStore,
    MemoryMove,
    Operator,
    RegisterMove,
    RegisterOperation,
    TransferControl,
    decode,
)


def first_word(script: Script) -> int:
    return int(struct.unpack_from("<I", script.code)[0])


def test_block_moves() -> None:
    for name, addressing in (("move", Addressing.DIRECT), ("move_indirect", Addressing.INDIRECT)):
        script = Script(0x1000)
        assert getattr(script, name)(Phase.DATA_IN, 0x1234, 0x5678) == 0x1000
        assert script.here == 0x1008
        assert script.words[1] == 0x5678
        assert decode(first_word(script)) == BlockMove(Phase.DATA_IN, 0x1234, addressing, is_plain=True)
    script = Script(0)
    script.move_table(Phase.STATUS, -8)
    move = decode(first_word(script))
    assert isinstance(move, BlockMove)
    assert (move.phase, move.addressing, script.words[1]) == (Phase.STATUS, Addressing.TABLE, 0xFF_FFF8)


def test_the_bus() -> None:
    script = Script(0)
    script.select(5, otherwise=0x80)
    select = decode(first_word(script))
    assert isinstance(select, BusOperation)
    assert (select.kind, select.destination, select.attention, select.table) == (
        BusOperationKind.SELECT,
        5,
        True,
        False,
    )
    for make, kind in (
        (Script.wait_disconnect, BusOperationKind.WAIT_DISCONNECT),
        (Script.wait_reselect, BusOperationKind.WAIT_RESELECT),
    ):
        script = Script(0)
        make(script)
        found = decode(first_word(script))
        assert isinstance(found, BusOperation)
        assert found.kind is kind
    script = Script(0)
    script.clear(ack=True, carry=True)
    clear = decode(first_word(script))
    assert isinstance(clear, BusOperation)
    assert (clear.kind, clear.acknowledge, clear.carry, clear.attention) == (BusOperationKind.CLEAR, True, True, False)


def test_registers_and_memory() -> None:
    script = Script(0)
    script.register(RegisterOperation.MODIFY, Operator.AND, 0x85, 0x7F)
    register = decode(first_word(script))
    assert isinstance(register, RegisterMove)
    assert (register.operation, register.operator, register.register, register.data) == (
        RegisterOperation.MODIFY,
        Operator.AND,
        0x85,
        0x7F,
    )
    script = Script(0)
    script.memory_move(12, 1, 2)
    move = decode(first_word(script))
    assert isinstance(move, MemoryMove)
    assert (move.count, script.words[1:]) == (12, [1, 2])
    script = Script(0)
    script.store(0x34, 4, 0x28, relative=True)
    store = decode(first_word(script))
    assert isinstance(store, LoadStore)
    assert (store.register, store.count, store.relative, store.is_load) == (0x34, 4, True, False)


def test_transfers() -> None:
    script = Script(0)
    script.jump(0x40, if_phase(Phase.MESSAGE_IN, wait=True))
    jump = decode(first_word(script))
    assert isinstance(jump, TransferControl)
    assert (jump.phase, jump.wait, jump.data, jump.if_true) == (Phase.MESSAGE_IN, True, None, True)
    script = Script(0)
    script.interrupt(7, if_data(0x20, mask=3, true=False))
    interrupt = decode(first_word(script))
    assert isinstance(interrupt, TransferControl)
    assert (interrupt.phase, interrupt.data, interrupt.mask, interrupt.if_true) == (None, 0x20, 3, False)
    script = Script(0)
    script.jump(0)
    assert first_word(script) & ALWAYS
