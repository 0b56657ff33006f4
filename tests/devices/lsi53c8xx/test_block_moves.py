"""Block moves: bytes between bus and memory, by each way of addressing; and phases that are not what was expected."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.devices.lsi53c8xx.board import DATA, INQUIRY, MEMORY, MEMORY_SIZE, PROGRAM, RAM, TABLE, Board, disk
from tests.devices.lsi53c8xx.conftest import BoardMaker
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.lsi53c8xx.scsi_core import ScsiCore
from vfio_user.drivers.lsi53c8xx.assembler import Script, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase

SIR, IID, BUS_FAULT = 0x04, 0x01, 0x20
PHASE_MISMATCH = 0x80
READ = bytes.fromhex("2800 00000001 00 0002 00")  # blocks 1 and 2
WRITE = bytes.fromhex("2a00 00000005 00 0001 00")  # block 5
LUN0 = b"\xc0"


def read(board: Board) -> Script:
    board.make_ready()
    return board.command(READ)


def test_a_command_from_selection_to_bus_free(board: Board) -> None:
    board.command(INQUIRY)
    board.script.move(Phase.DATA_IN, 36, DATA + 0x100)
    board.complete(0xC0DE)
    assert board.run() == SIR
    assert board.code == 0xC0DE
    assert board.read(DATA + 0x100 + 8, 8) == b"vfiouser"
    assert board.read(DATA + 0x80, 2) == b"\x00\x00"
    assert not board.registers.scntl1.con
    assert board.sist() == 0


def test_direct(board: Board) -> None:
    read(board).move(Phase.DATA_IN, 0x400, DATA + 0x200)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x200, 0x400) == b"\x01" * 512 + b"\x02" * 512
    assert board.registers.sbc == 1
    assert board.registers.csbc == 0x400


def test_indirect(board: Board) -> None:
    board.write(TABLE, struct.pack("<I", DATA + 0x200))
    read(board).move_indirect(Phase.DATA_IN, 0x400, TABLE)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x200, 0x400) == b"\x01" * 512 + b"\x02" * 512


def test_table_indirect(board: Board) -> None:
    board.write(TABLE, struct.pack("<4I", 0x300, DATA + 0x200, 0x100, DATA + 0x800))
    script = read(board)
    board.registers.dsa = TABLE + 8
    script.move_table(Phase.DATA_IN, -8)
    script.move_table(Phase.DATA_IN, 0)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x200, 0x300) == b"\x01" * 512 + b"\x02" * 256
    assert board.read(DATA + 0x800, 0x100) == b"\x02" * 256
    assert board.registers.esa == TABLE + 8


def test_into_the_chips_own_ram(board: Board) -> None:
    read(board).move(Phase.DATA_IN, 0x400, RAM + 0x1000)
    board.complete()
    assert board.run() == SIR
    assert board.device.region(2).read_bytes(0x1000, 0x400) == b"\x01" * 512 + b"\x02" * 512


def test_out(board: Board) -> None:
    board.make_ready()
    board.write(DATA + 0x200, b"new!" * 128)
    board.command(WRITE).move(Phase.DATA_OUT, 0x200, DATA + 0x200)
    board.complete()
    assert board.run() == SIR
    board.script = Script(PROGRAM)
    board.command(bytes.fromhex("2800 00000005 00 0001 00")).move(Phase.DATA_IN, 0x200, DATA + 0x400)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x400, 0x200) == b"new!" * 128


def test_out_of_the_chips_own_ram(board: Board) -> None:
    board.make_ready()
    board.device.region(2).write_bytes(0x1000, b"RAM!" * 128)
    board.command(WRITE).move(Phase.DATA_OUT, 0x200, RAM + 0x1000)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x80, 1) == b"\x00"


@pytest.mark.parametrize("word", [0x0900_0000, 0x2900_0000])
def test_a_count_of_zero_is_illegal(board: Board, word: int) -> None:
    read(board).emit(word, DATA)
    assert board.run() == IID


def test_a_word_of_zeros_is_skipped(board: Board) -> None:
    board.script.emit(0, 0, 0)
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)


def test_a_count_of_zero_in_a_table_is_illegal(board: Board) -> None:
    board.write(TABLE, bytes(8))
    board.registers.dsa = TABLE
    read(board)
    board.registers.dsa = TABLE
    board.script.move_table(Phase.DATA_IN, 0)
    assert board.run() == IID


def test_unmapped_memory_is_a_bus_fault(board: Board) -> None:
    read(board).move(Phase.DATA_IN, 0x400, MEMORY + MEMORY_SIZE - 0x200)
    assert board.run() == BUS_FAULT
    assert not board.device.processor.is_running


def test_unmapped_memory_to_be_sent_is_one_too(board: Board) -> None:
    board.make_ready()
    board.command(WRITE).move(Phase.DATA_OUT, 0x200, 0x10)
    assert board.run() == BUS_FAULT


def test_fewer_bytes_than_expected_is_a_phase_mismatch(board: Board) -> None:
    read(board).move(Phase.DATA_IN, 0x1000, DATA)
    assert board.run() == 0
    assert board.sist() == PHASE_MISMATCH
    registers = board.registers
    assert registers.dbc.count == 0xC00
    assert registers.dnad == DATA + 0x400
    assert registers.read(0x0E, 1) & 7 == Phase.STATUS
    # A driver reckons what is left in the FIFO: nothing.
    assert registers.read(0x20, 1) == registers.dbc.count & 0xFF
    assert registers.read(0x22, 1) & 3 == registers.dbc.count >> 8 & 3


@pytest.mark.parametrize("by_direction", [True, False])
def test_a_phase_mismatch_jump(board: Board, by_direction: bool) -> None:
    board.write(TABLE, struct.pack("<2I", 0xAB00_1000, DATA))
    script = read(board)
    registers = board.registers
    registers.ccntl0 = 0x80 | (0x40 if by_direction else 0)
    registers.pmjad1, registers.pmjad2 = PROGRAM + 0x100, PROGRAM + 0x200
    registers.dsa = TABLE
    at = script.move_table(Phase.DATA_IN, 0)
    for address, code in ((PROGRAM + 0x100, 1), (PROGRAM + 0x200, 2)):
        there = Script(address)
        there.interrupt(code)
        board.write(there.base, there.code)
    assert board.run() == SIR
    assert board.code == (2 if by_direction else 1)
    assert registers.rbc == 0xAB00_0C00
    assert registers.ua == DATA + 0x400
    assert registers.ia == at
    assert registers.esa == TABLE
    assert registers.sbc == 0x400
    assert registers.csbc == 0x400


def test_the_jump_keeps_the_instruction_of_a_direct_move(board: Board) -> None:
    script = read(board)
    board.registers.ccntl0 = 0xC0
    board.registers.pmjad2 = PROGRAM + 0x200
    script.move(Phase.DATA_IN, 0x1000, DATA)
    there = Script(PROGRAM + 0x200)
    there.interrupt(2)
    board.write(there.base, there.code)
    assert board.run() == SIR
    assert board.registers.rbc == 0x0900_0C00


def test_outside_data_phases_the_jump_has_to_be_asked_for(board: Board) -> None:
    board.registers.ccntl0 = 0xC0
    board.registers.pmjad1 = PROGRAM + 0x200
    there = Script(PROGRAM + 0x200)
    there.interrupt(2)
    board.write(there.base, there.code)
    board.script.select(0)
    board.script.move(Phase.COMMAND, 6, DATA)
    assert board.run() == 0
    assert board.sist() == PHASE_MISMATCH
    board.registers.ccntl0 = 0xE0
    board.registers.write(0x01, 1, 0x08)
    board.registers.write(0x01, 1, 0x00)
    board.sist()
    assert (board.run(), board.code) == (SIR, 2)


@pytest.mark.parametrize(("high", "expected"), [(0, SIR), (7, BUS_FAULT)])
def test_64_bit_direct_moves_have_a_third_word(board: Board, high: int, expected: int) -> None:
    script = read(board)
    words = script.words
    # The moves before have one, too.
    script.words = [*words[:2], *words[2:4], 0, *words[4:6], 0]
    script.emit(0x0900_0400, DATA, high)
    board.registers.ccntl1 = 0x01
    script.interrupt(1, if_phase(Phase.STATUS, wait=True))
    assert board.run() == expected
    assert board.registers.dbms == high
    if not high:
        assert board.code == 1
        assert board.read(DATA, 4) == b"\x01" * 4


@pytest.mark.parametrize(
    ("ccntl1", "upper", "selector", "is_there"),
    [
        (0x06, 0x00, "", True),
        (0x06, 0x01, "", False),
        (0x02, 0x00, "scratch", False),
        (0x02, 0x01, "", True),
        (0x02, 0x14, "sbms", False),
        (0x02, 0x15, "", True),
        (0x00, 0x01, "", True),
    ],
)
def test_table_entries_say_where_the_high_half_is(
    board: Board, ccntl1: int, upper: int, selector: str, is_there: bool
) -> None:
    board.write(TABLE, struct.pack("<2I", upper << 24 | 0x400, DATA))
    script = read(board)
    registers = board.registers
    registers.dsa, registers.ccntl1 = TABLE, ccntl1
    script.move_table(Phase.DATA_IN, 0)
    script.interrupt(1)
    # Not before the rest of the program, which needs it to be 0.
    registers.scratch[0] = 5
    if selector == "sbms":
        script.words[-4:-4] = [0x7800_0000 | 0x30 << 16 | 5 << 8 | 0x80, 0]
    assert board.run() == (SIR if is_there else BUS_FAULT)


def test_a_table_entry_that_names_no_selector_is_illegal(board: Board) -> None:
    board.write(TABLE, struct.pack("<2I", 0x1600_0400, DATA))
    script = read(board)
    board.registers.dsa, board.registers.ccntl1 = TABLE, 0x02
    script.move_table(Phase.DATA_IN, 0)
    assert board.run() == IID


def test_the_first_byte_is_latched_and_the_last(board: Board) -> None:
    board.make_ready()
    board.write(DATA, b"\xc0\x20\x55")
    board.script.select(0)
    board.script.move(Phase.MESSAGE_OUT, 3, DATA)
    board.script.interrupt(1)
    assert board.run() == SIR
    assert board.registers.sfbr == 0xC0


def test_a_move_waits_for_the_target(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    # No disconnecting.
    board.command(READ, messages=b"\x80").move(Phase.DATA_IN, 0x400, DATA + 0x200)
    board.complete()
    assert board.run() == 0
    assert board.device.processor.waiting.value == "block move"
    storage.step()
    board.turn()
    assert board.dstat() == SIR
    assert board.read(DATA + 0x200, 0x400) == b"\x01" * 512 + b"\x02" * 512


def test_a_move_goes_on_where_it_was_after_a_bus_fault(board: Board) -> None:
    read(board).move(Phase.DATA_IN, 0x200, DATA)
    board.script.move(Phase.DATA_IN, 0x200, 0)
    assert board.run() == BUS_FAULT
    assert board.registers.dbc.count == 0x200
    assert board.registers.dnad == 0


def test_the_last_byte_of_a_message_stays_in_the_input_latch(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ, messages=b"\xc0\x20\x44")
    board.script.move(Phase.MESSAGE_IN, 2, DATA + 0x90)
    board.script.clear(ack=True)
    board.script.wait_disconnect()
    board.script.wait_reselect()
    board.script.move(Phase.MESSAGE_IN, 3, DATA + 0x92)
    board.script.interrupt(1)
    assert board.run() == 0
    storage.step()
    board.turn()
    assert board.dstat() == SIR
    # Linux finds the task by it.
    assert board.registers.read(0x50, 1) == 0x44
    assert board.registers.sfbr == 0x80


def test_a_message_may_be_shorter_than_the_move(slow_board: Board) -> None:
    board = slow_board
    board.command(READ)
    board.script.move(Phase.MESSAGE_IN, 4, DATA + 0x90)
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)
    assert board.read(DATA + 0x90, 4) == b"\x02\x04\x00\x00"


def test_a_move_ends_the_acknowledge_of_the_one_before(board: Board) -> None:
    board.write(DATA, b"\xc0\x01\x02\x03\x01")
    board.write(DATA + 0x40, INQUIRY)
    board.script.select(0)
    board.script.move(Phase.MESSAGE_OUT, 5, DATA)
    board.script.move(Phase.MESSAGE_IN, 4, DATA + 0x90)
    board.script.move(Phase.COMMAND, 6, DATA + 0x40)
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    assert (board.run(), board.code) == (SIR, 1)


def test_so_does_a_selection(board: Board) -> None:
    for address in (PROGRAM, PROGRAM + 0x200):
        board.script = Script(address)
        board.command(INQUIRY).move(Phase.DATA_IN, 36, DATA + 0x100)
        board.script.move(Phase.STATUS, 1, DATA + 0x80)
        board.script.move(Phase.MESSAGE_IN, 1, DATA + 0x81)
        board.script.interrupt(address)
        assert (board.run(at=address), board.code) == (SIR, address)


def test_the_address_of_an_instruction_of_three_words(board: Board) -> None:
    script = read(board)
    script.words = [*script.words[:4], 0, *script.words[4:], 0]
    board.registers.ccntl0, board.registers.ccntl1, board.registers.pmjad2 = 0xC0, 0x01, PROGRAM + 0x200
    at = script.emit(0x0900_1000, DATA, 0)
    there = Script(PROGRAM + 0x200)
    there.interrupt(2)
    board.write(there.base, there.code)
    assert (board.run(), board.code) == (SIR, 2)
    assert board.registers.ia == at


def test_tables_have_a_selector(board: Board) -> None:
    board.write(TABLE, struct.pack("<2I", 0x400, DATA))
    read(board).move_table(Phase.DATA_IN, 0)
    board.registers.dsa, board.registers.drs = TABLE, 1
    assert board.run() == BUS_FAULT


def test_bytes_take_their_share_of_a_slice(board: Board) -> None:
    board.make_ready()
    board.command(bytes.fromhex("2800 00000000 00 0040 00")).move(Phase.DATA_IN, 0x8000, DATA + 0x200)
    board.script.interrupt(1)
    assert board.run(turns=1) == SIR
    assert board.device.processor.charge == 8


def test_bytes_of_a_move_that_ends_in_a_mismatch_count_too(
    make_board: BoardMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program all of whose moves do must not keep the device for as long as it likes."""
    blocks = 1024
    board = make_board({0: disk(blocks)})
    board.make_ready()
    script = board.command(struct.pack(">BBIxHx", 0x28, 0, 0, blocks))
    script.move(Phase.DATA_IN, 0xFF_FFFF, DATA + 0x1000)
    after = script.here
    board.take_status()
    script.jump(PROGRAM)
    board.registers.ccntl0 = 0x80
    board.registers.pmjad1 = board.registers.pmjad2 = after
    moved: list[int] = []
    take = ScsiCore.take

    def counted(core: ScsiCore, length: int) -> Any:
        piece = take(core, length)
        moved.append(len(piece))
        return piece

    monkeypatch.setattr(ScsiCore, "take", counted)
    assert board.run(turns=1) == 0
    assert blocks * 512 < sum(moved) < 20 * blocks * 512
