"""Every instruction but block moves, in small programs: what it does to registers, memory and the bus."""

from __future__ import annotations

import pytest

from tests.devices.lsi53c8xx.board import DATA, INQUIRY, MEMORY, MEMORY_SIZE, PROGRAM, RAM, REGISTERS, TABLE, Board
from tests.devices.lsi53c8xx.conftest import BoardMaker
from vfio_user.devices.lsi53c8xx.controller import Lsi53c810
from vfio_user.drivers.lsi53c8xx.assembler import ALWAYS, CARRY, RELATIVE, Script, if_data, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase

IID, SIR, BUS_FAULT = 0x01, 0x04, 0x20
FROM_SFBR, TO_SFBR, MODIFY = 5, 6, 7
MOVE, SHL, OR, XOR, AND, SHR, ADD, ADC = range(8)
SCRATCHA, SCRATCHB, SCRATCHR, DSA, TEMP = 0x34, 0x5C, 0x9C, 0x10, 0x1C


def test_an_interrupt_stops_with_its_code(board: Board) -> None:
    board.script.interrupt(0x1234)
    assert board.run() == SIR
    assert board.code == 0x1234
    assert board.registers.dsp == PROGRAM + 8
    assert not board.device.processor.is_running


def test_an_interrupt_on_the_fly_goes_on(board: Board) -> None:
    board.script.interrupt_on_the_fly()
    board.script.interrupt(1)
    assert board.run() == SIR
    assert board.istat & 0x04
    assert board.device.interrupts.intx_level
    board.registers.write(0x14, 1, 0x04)
    assert not board.istat & 0x04
    assert not board.device.interrupts.intx_level


def test_jumps_calls_and_returns(board: Board) -> None:
    script = board.script
    script.call(PROGRAM + 0x100)
    script.interrupt(1)
    there = Script(PROGRAM + 0x100)
    there.jump(16, ALWAYS | RELATIVE)
    there.interrupt(2)
    there.interrupt(3)
    there.give_back()
    board.write(there.base, there.code)
    assert board.run() == SIR
    assert board.code == 1
    assert board.registers.temp == PROGRAM + 8


def test_a_relative_jump_goes_back_too(board: Board) -> None:
    script = board.script
    script.jump(8, ALWAYS | RELATIVE)
    script.interrupt(7)
    script.jump(-16, ALWAYS | RELATIVE)
    assert board.run() == SIR
    assert board.code == 7


def test_a_relative_call(board: Board) -> None:
    board.script.call(8, ALWAYS | RELATIVE)
    board.script.interrupt(1)
    board.script.give_back()
    assert (board.run(), board.code) == (SIR, 1)


def test_a_jump_with_nothing_to_compare_that_wants_false_is_none(board: Board) -> None:
    board.script.jump(0, 0)
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)


@pytest.mark.parametrize(
    ("sfbr", "condition", "jumps"),
    [
        (0x5A, if_data(0x5A), True),
        (0x5B, if_data(0x5A), False),
        (0x5B, if_data(0x5A, true=False), True),
        (0x5A, if_data(0x5A, true=False), False),
        (0x5B, if_data(0x5A, mask=0x01), True),
        (0x5B, if_data(0x50, mask=0x0F), True),
        (0x6B, if_data(0x50, mask=0x0F), False),
    ],
)
def test_data_is_compared_under_a_mask(board: Board, sfbr: int, condition: int, jumps: bool) -> None:
    board.registers.sfbr = sfbr
    board.script.interrupt(1, condition)
    board.script.interrupt(2)
    assert board.run() == SIR
    assert board.code == (1 if jumps else 2)


@pytest.mark.parametrize("sets", [True, False])
@pytest.mark.parametrize("true", [True, False])
def test_the_carry_is_compared(board: Board, sets: bool, true: bool) -> None:
    board.script.set(carry=True)
    if not sets:
        board.script.clear(carry=True)
    board.script.interrupt(1, CARRY | (ALWAYS if true else 0))
    board.script.interrupt(2)
    assert board.run() == SIR
    assert board.code == (1 if sets is true else 2)


@pytest.mark.parametrize(
    ("condition", "jumps"),
    [
        (if_phase(Phase.MESSAGE_OUT), True),
        (if_phase(Phase.COMMAND), False),
        (if_phase(Phase.COMMAND, true=False), True),
        (if_phase(Phase.MESSAGE_OUT, wait=True), True),
        (if_phase(Phase.MESSAGE_OUT, true=False, wait=True), False),
        (if_phase(Phase.MESSAGE_OUT) | if_data(0x77), True),
        (if_phase(Phase.MESSAGE_OUT) | if_data(0x76), False),
        (if_phase(Phase.DATA_IN, true=False) | if_data(0x77, true=False), False),
        (if_phase(Phase.DATA_IN, true=False) | if_data(0x76, true=False), True),
    ],
)
def test_the_phase_is_compared(board: Board, condition: int, jumps: bool) -> None:
    board.registers.sfbr = 0x77
    board.script.select(0)
    board.script.interrupt(1, condition)
    board.script.interrupt(2)
    assert board.run() == SIR
    assert board.code == (1 if jumps else 2)


@pytest.mark.parametrize(
    ("operator", "operand", "data", "carry", "result", "carried"),
    [
        (MOVE, 0x12, 0x34, 0, 0x34, 0),
        (SHL, 0x81, 0, 1, 0x03, 1),
        (SHL, 0x41, 0, 0, 0x82, 0),
        (SHR, 0x81, 0, 1, 0xC0, 1),
        (SHR, 0x42, 0, 0, 0x21, 0),
        (OR, 0x12, 0x21, 0, 0x33, 0),
        (XOR, 0x13, 0x21, 1, 0x32, 1),
        (AND, 0x13, 0x31, 0, 0x11, 0),
        (ADD, 0xF0, 0x21, 1, 0x11, 1),
        (ADD, 0x10, 0x21, 1, 0x31, 0),
        (ADC, 0xF0, 0x0F, 1, 0x00, 1),
        (ADC, 0x10, 0x0F, 0, 0x1F, 0),
    ],
)
def test_operators(board: Board, operator: int, operand: int, data: int, carry: int, result: int, carried: int) -> None:
    board.registers.scratcha = operand << 8
    board.device.processor.carry = carry
    board.script.register(MODIFY, operator, SCRATCHA + 1, data)
    board.script.interrupt(1)
    assert board.run() == SIR
    assert board.registers.scratcha == result << 8
    assert board.device.processor.carry == carried


def test_registers_from_and_to_sfbr(board: Board) -> None:
    board.registers.sfbr = 0x0F
    board.registers.scratchb = 0x55
    board.script.register(FROM_SFBR, OR, SCRATCHA + 3, 0x30)
    board.script.register(TO_SFBR, MOVE, SCRATCHB)
    board.script.register(MODIFY, ADD, SCRATCHB + 1, 0, use_sfbr=True)
    board.script.register(TO_SFBR, AND, SCRATCHB, 0xF0)
    board.script.register(MODIFY, MOVE, SCRATCHR + 3, 0x99)
    board.script.interrupt(1)
    assert board.run() == SIR
    registers = board.registers
    assert registers.scratcha == 0x3F00_0000
    assert registers.scratchb == 0x5555
    assert registers.sfbr == 0x50
    assert registers.read(SCRATCHR, 4) == 0x9900_0000


def test_sfbr_is_read_only_for_the_driver_alone(board: Board) -> None:
    board.registers.write(0x08, 1, 0x33)
    assert board.registers.sfbr == 0
    board.script.register(MODIFY, MOVE, 0x08, 0x44)
    board.script.register(MODIFY, ADD, 0x08, 0x01)
    board.script.interrupt(1)
    board.run()
    assert board.registers.sfbr == 0x45


def test_reading_a_register_has_its_effects(board: Board) -> None:
    board.registers.write(0x14, 1, 0x20)
    board.script.register(TO_SFBR, MOVE, 0x1A)
    board.script.interrupt(1)
    board.run()
    assert board.registers.sfbr & 0x40
    assert not board.istat & 0x20


def test_load_and_store(board: Board) -> None:
    board.write(TABLE, bytes.fromhex("00112233 44556677"))
    board.registers.dsa = TABLE + 8
    script = board.script
    script.load(SCRATCHA, 4, TABLE)
    script.load(SCRATCHB + 1, 2, -3 & 0xFF_FFFF, relative=True)
    script.load(0x08, 1, TABLE + 4)
    script.store(SCRATCHA + 2, 2, TABLE + 0x12)
    script.store(SCRATCHA, 4, 0x10, relative=True)
    script.store(SCRATCHA, 4, RAM + 0x100)
    script.load(SCRATCHR, 4, RAM + 0x100)
    script.interrupt(1)
    assert board.run() == SIR
    registers = board.registers
    assert registers.scratcha == 0x3322_1100
    assert registers.scratchb == 0x0066_5500
    assert registers.sfbr == 0x44
    assert registers.read(SCRATCHR, 4) == 0x3322_1100
    assert board.read(TABLE + 0x10, 4) == bytes.fromhex("0000 2233")
    assert board.read(TABLE + 0x18, 4) == bytes.fromhex("00112233")


@pytest.mark.parametrize(
    ("register", "count", "address"), [(SCRATCHA, 0, TABLE), (SCRATCHA, 5, TABLE), (SCRATCHA + 1, 4, TABLE + 1)]
)
def test_loads_within_a_word_only(board: Board, register: int, count: int, address: int) -> None:
    board.script.load(register, count, address)
    assert board.run() == IID


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("stores", [True, False])
def test_load_and_store_want_register_and_memory_aligned_alike(board: Board, count: int, stores: bool) -> None:
    if stores:
        board.script.store(SCRATCHA, count, TABLE + 1)
    else:
        board.script.load(SCRATCHA, count, TABLE + 1)
    assert board.run() == IID


def test_the_53c810_has_no_load_and_store(make_board: BoardMaker) -> None:
    board = make_board(chip=Lsi53c810)
    board.script.load(SCRATCHA, 4, TABLE)
    assert board.run() == IID


def test_memory_moves(board: Board) -> None:
    board.write(TABLE, bytes(range(64)))
    script = board.script
    script.memory_move(60, TABLE + 1, DATA + 5)
    script.memory_move(4, TABLE + 8, REGISTERS + SCRATCHA)
    script.memory_move(4, REGISTERS + SCRATCHA, RAM + 0x40)
    # Linux tries memory with this register, which keeps its value.
    board.registers.temp = 0x5555_AAAA
    script.memory_move(4, REGISTERS + TEMP, DATA + 0x60)
    script.interrupt(1)
    assert board.run() == SIR
    assert board.read(DATA + 5, 60) == bytes(range(1, 61))
    assert board.registers.scratcha == 0x0B0A_0908
    assert board.device.region(2).read(0x40, 4) == 0x0B0A_0908
    assert board.registers.temp == 0x5555_AAAA
    assert board.read(DATA + 0x60, 4) == bytes.fromhex("aaaa5555")


@pytest.mark.parametrize(("count", "source"), [(0, TABLE), (4, TABLE + 1)])
def test_memory_moves_that_are_illegal(board: Board, count: int, source: int) -> None:
    board.script.memory_move(count, source, DATA)
    assert board.run() == IID


def test_a_memory_move_to_nowhere_is_a_bus_fault(board: Board) -> None:
    board.script.memory_move(4, TABLE, MEMORY + MEMORY_SIZE)
    assert board.run() == BUS_FAULT
    assert not board.device.processor.is_running


def test_selectors_are_the_high_half_of_addresses(board: Board) -> None:
    board.registers.mmrs = 1
    board.script.load(SCRATCHA, 4, TABLE)
    assert board.run() == BUS_FAULT


def test_reserved_transfer_control_is_illegal(board: Board) -> None:
    board.script.emit(0xA000_0000, 0)
    assert board.run() == IID


def test_set_and_clear_show_in_the_output_latch(board: Board) -> None:
    board.script.set(ack=True, atn=True, target=True)
    board.script.interrupt(1)
    board.run()
    assert board.registers.socl == 0x48
    assert board.registers.scntl0.trg == 1
    board.script = Script(PROGRAM)
    board.script.clear(ack=True, target=True)
    board.script.interrupt(1)
    board.run()
    assert board.registers.socl == 0x08
    assert board.registers.scntl0.trg == 0


def test_select_by_table_takes_the_transfer_parameters(board: Board) -> None:
    board.write(TABLE + 0x10, bytes.fromhex("00 3f 00 95"))
    board.registers.dsa = TABLE
    board.registers.sdid = 5
    board.script.select_table(0x10)
    board.script.interrupt(1)
    assert board.run() == SIR
    registers = board.registers
    assert (registers.scntl3, registers.sxfer, registers.sdid) == (0x95, 0x3F, 0)
    assert registers.scntl1.con
    assert registers.istat0.con
    assert registers.scntl2.sdu
    assert not registers.sstat2.ldsc
    assert registers.read(0x0B, 1) == 0x80 | 0x20 | 0x08 | 6


def test_selecting_while_connected_takes_the_alternative(board: Board) -> None:
    board.script.select(0)
    board.script.select(0, otherwise=PROGRAM + 0x40)
    board.script.interrupt(1)
    away = Script(PROGRAM + 0x40)
    away.interrupt(2)
    board.write(away.base, away.code)
    assert (board.run(), board.code) == (SIR, 2)


def test_nobody_answers(board: Board) -> None:
    board.script.select(3)
    board.script.interrupt(1, if_phase(Phase.MESSAGE_OUT, wait=True))
    assert board.run() == 0
    # The instruction that needs the target has been fetched.
    assert board.registers.dsp == PROGRAM + 16
    assert board.istat & 0x02
    assert board.sist() == 0x0400
    assert not board.device.processor.is_running


def test_wait_reselect_ends_with_a_signal(board: Board) -> None:
    board.script.wait_reselect(otherwise=PROGRAM + 0x40)
    board.script.interrupt(1)
    away = Script(PROGRAM + 0x40)
    away.interrupt(2)
    board.write(away.base, away.code)
    assert board.run() == 0
    board.registers.write(0x14, 1, 0x20)
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 2)
    assert board.istat & 0x20


def test_a_signal_sent_before_is_not_lost(board: Board) -> None:
    board.registers.write(0x14, 1, 0x20)
    board.script.wait_reselect(otherwise=8, relative=True)
    board.script.interrupt(1)
    board.script.interrupt(2)
    assert (board.run(), board.code) == (SIR, 2)


def test_waiting_for_a_disconnect_without_a_connection_is_no_waiting(board: Board) -> None:
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)


def test_disconnect_of_a_target_frees_the_bus(board: Board) -> None:
    board.command(INQUIRY)
    board.script.register(MODIFY, AND, 0x02, 0x7F)
    board.script.set(target=True)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)
    assert not board.registers.scntl1.con
