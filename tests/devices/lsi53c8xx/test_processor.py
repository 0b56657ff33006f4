"""The SCRIPTS processor: started, stopped, stepped; what it does while it waits; and programs without end."""

from __future__ import annotations

import struct

import pytest

from tests.devices.lsi53c8xx.board import DATA, DSP, MEMORY, MEMORY_SIZE, PROGRAM, RAM, Board
from tests.devices.lsi53c8xx.conftest import BoardMaker
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.lsi53c8xx import processor as processor_module
from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.drivers.lsi53c8xx.assembler import Script, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase

IID, SIR, SSI, ABRT, BUS_FAULT = 0x01, 0x04, 0x08, 0x10, 0x20
READ = bytes.fromhex("2800 00000001 00 0002 00")


def test_a_program_in_the_chips_ram(board: Board) -> None:
    board.script = Script(RAM)
    board.script.jump(RAM + 0x1FF8)
    board.device.region(2).write_bytes(0, board.script.code)
    end = Script(RAM + 0x1FF8)
    end.interrupt(0x77)
    board.device.region(2).write_bytes(0x1FF8, end.code)
    board.start(RAM)
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 0x77)


def test_a_program_that_runs_out_of_the_ram_is_a_bus_fault(board: Board) -> None:
    board.start(RAM + 0x1FFC)
    board.turn()
    assert board.dstat() == BUS_FAULT


@pytest.mark.parametrize("address", [0, MEMORY + MEMORY_SIZE, 0xFFFF_FFFC])
def test_nothing_to_fetch_is_a_bus_fault(board: Board, address: int) -> None:
    board.start(address)
    board.turn()
    assert board.dstat() == BUS_FAULT
    assert board.istat & 0x03 == 0


def test_fetches_have_a_selector(board: Board) -> None:
    board.registers.sfs = 1
    board.script.interrupt(1)
    assert board.run() == BUS_FAULT


def test_no_bus_master_no_fetches(board: Board) -> None:
    board.script.interrupt(1)
    board.write(PROGRAM, board.script.code)
    board.device.function.config.write(0x04, 2, 0x3)
    board.start()
    board.turn()
    assert board.dstat() == BUS_FAULT


def test_the_last_byte_of_dsp_starts(board: Board) -> None:
    board.script.interrupt(5)
    board.write(PROGRAM, board.script.code)
    for index, byte in enumerate(struct.pack("<I", PROGRAM)):
        assert not board.device.processor.is_running
        board.registers.write(DSP + index, 1, byte)
    assert board.device.processor.is_running
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 5)


def test_in_manual_mode_std_starts(board: Board) -> None:
    board.script.interrupt(5)
    board.registers.write(0x38, 1, 0x01)
    assert board.run() == 0
    assert not board.device.processor.is_running
    board.registers.write(0x3B, 1, 0x04)
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 5)


def test_single_steps(board: Board) -> None:
    board.script.jump(PROGRAM + 8)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    board.registers.write(0x3B, 1, 0x10)
    assert board.run() == SSI
    for step in (2, 3):
        board.registers.write(0x3B, 1, 0x14)
        board.turn()
        assert board.registers.dsp == PROGRAM + 8 * step
        assert board.dstat() == (SSI if step == 2 else SIR)


def test_a_program_may_begin_to_step_itself(board: Board) -> None:
    board.script.register(7, 2, 0x3B, 0x10)
    board.script.jump(PROGRAM + 16)
    board.script.interrupt(1)
    assert board.run() == SSI
    assert board.registers.dsp == PROGRAM + 16


def test_after_an_interrupt_std_goes_on(board: Board) -> None:
    board.script.interrupt(1)
    board.script.interrupt(2)
    assert (board.run(), board.code) == (SIR, 1)
    board.registers.write(0x3B, 1, 0x04)
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 2)


def test_an_abort_stops_a_program_that_waits(board: Board) -> None:
    board.script.wait_reselect()
    assert board.run() == 0
    assert board.registers.read(0x15, 1) & 0x02
    board.registers.write(0x14, 1, 0x80)
    assert not board.registers.read(0x15, 1) & 0x02
    assert board.dstat() == ABRT
    board.registers.write(0x14, 1, 0x00)
    board.turn()
    assert board.dstat() == 0


def test_a_program_without_end_leaves_time_for_others(board: Board) -> None:
    board.script.jump(PROGRAM)
    seen: list[str] = []
    board.device.call_soon(seen.append, "other work")
    assert board.run(turns=1) == 0
    assert seen == ["other work"]
    assert board.device.processor.is_running
    board.turn(5)
    assert board.device.processor.is_running
    board.registers.write(0x14, 1, 0x80)
    board.turn()
    assert board.dstat() == ABRT
    assert not board.device.loop.has_work


def test_large_moves_take_their_share_of_a_slice(board: Board) -> None:
    board.script.memory_move(0x8000, MEMORY + 0x8000, MEMORY + 0x4_0000)
    board.script.jump(PROGRAM)
    board.write(PROGRAM, board.script.code)
    board.start()
    board.turn(1)
    # 8 instructions' worth each.
    assert board.device.processor.charge == processor_module.SLICE + 8


def test_what_is_decoded_does_not_fill_our_memory(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_module, "_DECODED_CAPACITY", 8)
    for value in range(100):
        board.script.register(7, 0, 0x34, value)
    board.script.interrupt(1)
    assert board.run() == SIR
    assert board.registers.scratcha == 99
    assert len(board.device.processor._decoded) <= 8


def test_a_program_that_changes_itself(board: Board) -> None:
    script = board.script
    script.memory_move(4, PROGRAM + 0x100, PROGRAM + 16)
    script.emit(0)
    script.interrupt(1)
    board.write(PROGRAM + 0x100, struct.pack("<I", 2))
    script.words[3] = 0x8000_0000
    script.words[4:] = [0xDEAD, 0x9808_0000, 3]
    board.write(PROGRAM, script.code)
    assert board.run() == SIR
    assert (board.code, board.read(PROGRAM + 16, 4)) == (3, struct.pack("<I", 2))


def test_waiting_for_a_phase_ends_when_storage_is_there(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    board.script.interrupt(2)
    assert board.run() == 0
    assert board.device.processor.waiting is Waiting.PHASE
    assert Waiting.PHASE.is_handshake
    assert not Waiting.RESELECT.is_handshake
    storage.step()
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 1)


def test_a_handshake_that_takes_too_long(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.registers.stime0.hth = 12
    board.registers.write(0x40, 2, 0x0100)
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    assert board.run() == 0
    board.advance(0.1)
    assert board.sist() == 0
    board.advance(2.0)
    assert board.sist() == 0x0100
    assert not board.device.processor.is_running


def test_a_handshake_in_time_stops_the_timer(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.registers.stime0.hth = 12
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    board.run()
    board.registers.stime0.hth = 0
    storage.step()
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 1)
    board.advance(5.0)
    assert board.sist() == 0


def test_reselection_without_a_program_interrupts_who_wants_it(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ)
    board.script.move(Phase.MESSAGE_IN, 2, DATA + 0x90)
    board.script.clear(ack=True)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)
    board.registers.write(0x40, 2, 0x0010)
    storage.step()
    board.turn()
    assert board.sist() == 0x0010
    assert board.registers.scntl1.con
    assert board.registers.ssid == 0x80
    # As in the 53C700: both ids.
    assert board.registers.sfbr == 0x81


def test_reselection_wins_over_selection(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.registers.dcntl.com = 1
    board.registers.sfbr = 0x33
    board.command(READ)
    board.script.move(Phase.MESSAGE_IN, 2, DATA + 0x90)
    board.script.clear(ack=True)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)
    storage.step()
    board.script = Script(PROGRAM)
    board.script.select(0, otherwise=PROGRAM + 0x40)
    away = Script(PROGRAM + 0x40)
    away.wait_reselect()
    away.interrupt(3, if_phase(Phase.MESSAGE_IN, wait=True))
    board.write(away.base, away.code)
    assert (board.run(), board.code) == (SIR, 3)
    assert board.registers.sfbr == 0x02  # the first byte of SAVE DATA POINTERS, and not the ids


def test_nobody_there_is_told_before_the_next_program(make_board: BoardMaker) -> None:
    board = make_board({})
    board.script.select(2)
    board.script.jump(PROGRAM + 16)
    board.script.jump(PROGRAM + 16)
    board.write(PROGRAM, board.script.code)
    board.start()
    board.turn()
    # The program never needs the target, so the timeout waits.
    assert board.sist() == 0
    assert board.device.processor.is_running


def test_a_selector_means_another_address_than_the_rams(board: Board) -> None:
    board.script = Script(RAM)
    board.script.interrupt(1)
    board.device.region(2).write_bytes(0, board.script.code)
    board.registers.sfs = 1
    board.start(RAM)
    board.turn()
    assert board.dstat() == BUS_FAULT


def test_the_ram_goes_where_its_bar_goes(board: Board) -> None:
    board.script.interrupt(1)
    assert board.run() == SIR
    board.device.region(2).write_bytes(0, board.script.code)
    board.device.function.config.write(0x18, 4, 0xFD00_0000)
    board.start(0xFD00_0000)
    board.turn()
    assert board.dstat() == SIR
    board.start(RAM)
    board.turn()
    assert board.dstat() == BUS_FAULT


def test_an_instruction_that_had_to_wait_is_a_step_too(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1)
    assert board.run() == SIR
    board.script.jump(PROGRAM, if_phase(Phase.DATA_IN, wait=True))
    board.write(PROGRAM, board.script.code)
    board.registers.write(0x3B, 1, 0x14)
    board.turn()
    assert board.dstat() == 0
    storage.step()
    board.turn()
    assert board.dstat() == SSI
    assert board.registers.dsp == PROGRAM


def test_many_interrupts_on_the_fly_of_a_slice_are_told_as_one(board: Board) -> None:
    """Before it has ended the driver would get no answer; at its end, it hears of everything."""
    told: list[tuple[bool, bytes]] = []
    show = board.device.interrupts.on_intx_level
    assert show is not None

    def shown(level: bool) -> None:
        told.append((level, board.read(DATA, 4)))
        show(level)

    board.device.interrupts.on_intx_level = shown
    for number in (1, 2, 3):
        board.script.register(7, 0, 0x34, number)
        board.script.store(0x34, 4, DATA)
        board.script.interrupt_on_the_fly()
    board.script.wait_reselect(otherwise=PROGRAM)
    assert board.run(turns=1) == 0
    assert told == [(True, bytes([3, 0, 0, 0]))]
    assert board.istat & 0x04
    board.registers.write(0x14, 1, 0x04)
    assert [level for level, _ in told] == [True, False]
