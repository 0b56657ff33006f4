"""The whole controller: as PCI shows it, its registers, resets, options, and a state that moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devices.lsi53c8xx.board import DATA, INQUIRY, PROGRAM, TEST_UNIT_READY, Board, disk
from tests.devices.lsi53c8xx.conftest import BoardMaker
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.lsi53c8xx.controller import Lsi53c8xx, Lsi53c810, Lsi53c895a
from vfio_user.devices.options import device_options, make_device
from vfio_user.devices.scsi.block_unit import BlockUnit
from vfio_user.drivers.lsi53c8xx.assembler import Script, if_data, if_phase
from vfio_user.errors import DefinitionError
from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.pci import ResetKind
from vfio_user.testing import DeviceUnderTest

SIR = 0x04
READ = bytes.fromhex("2800 00000001 00 0001 00")
SOFTWARE_RESET = 0x40


@pytest.mark.parametrize(
    ("chip", "device_id", "bars"),
    [
        (Lsi53c895a, 0x0012, {0: (256, True), 1: (1024, False), 2: (8192, False)}),
        (Lsi53c810, 0x0001, {0: (256, True), 1: (256, False)}),
    ],
)
def test_what_pci_shows(chip: type[Lsi53c8xx], device_id: int, bars: dict[int, tuple[int, bool]]) -> None:
    with DeviceUnderTest(chip()) as under_test:
        function = under_test.function
        assert (function.vendor_id, function.device_id, function.class_code) == (0x1000, device_id, 0x010000)
        config = under_test.device.region(7)
        for index in range(6):
            config.write(0x10 + 4 * index, 4, 0xFFFF_FFFF)
            value = config.read(0x10 + 4 * index, 4)
            if index in bars:
                size, is_io = bars[index]
                assert -(value & ~0xF) & 0xFFFF_FFFF == size
                assert bool(value & 1) is is_io
            else:
                assert value == 0
        assert config.read(0x3D, 1) == 1


@pytest.mark.parametrize("chip", [Lsi53c895a, Lsi53c810])
def test_both_bars_show_the_same_registers(chip: type[Lsi53c8xx]) -> None:
    with DeviceUnderTest(chip()) as under_test:
        io, memory = under_test.function.bar0, under_test.function.bar1
        io.write32(0x34, 0x1234_5678)
        assert memory.read32(0x34) == 0x1234_5678
        memory.write8(0x35, 0)
        assert io.read32(0x34) == 0x1234_0078


@pytest.mark.parametrize("chip", [Lsi53c895a, Lsi53c810])
def test_what_drivers_expect_after_a_reset(chip: type[Lsi53c8xx]) -> None:
    registers = chip().registers
    # DSTAT to SSTAT2 in one look, as Linux tries whether accesses arrive as they should.
    registers.write(0x0C, 4, 0xFFFF_FFFF)
    assert registers.read(0x0C, 4) & 0xE2F0_FFFD == 0x0200_0080
    assert registers.read(0x00, 1) == 0xC0
    assert registers.read(0x47, 1) == 0x0F
    if chip is Lsi53c895a:
        assert registers.read(0x52, 1) == 0xE0


def test_a_driver_through_a_session(make_board: BoardMaker) -> None:
    with DeviceUnderTest(Lsi53c895a(targets={0: disk()})) as under_test:
        function = under_test.function
        function.enable()
        function.set_master()
        interrupt = function.enable_intx()[0]
        with function.dma_alloc(0x1000) as memory:
            script = Script(memory.iova)
            script.register(7, 0, 0x34, 0x5A)
            script.interrupt(0x99)
            memory[: len(script.code)] = script.code
            function.bar1.write8(0x39, 0x7D)
            function.bar1.write32(0x2C, memory.iova)
            interrupt.wait(timeout=1.0)
            assert function.bar1.read8(0x14) & 0x01
            assert function.bar1.read8(0x0C) == 0x84
            assert function.bar1.read32(0x30) == 0x99
            assert function.bar1.read8(0x34) == 0x5A
            assert not under_test.device.interrupts.intx_level


def test_the_same_program_on_the_53c810(make_board: BoardMaker) -> None:
    board = make_board(chip=Lsi53c810)
    board.command(INQUIRY)
    board.script.move(Phase.DATA_IN, 36, DATA + 0x100)
    board.complete(7)
    assert (board.run(), board.code) == (SIR, 7)
    assert board.read(DATA + 0x108, 8) == b"vfiouser"
    board.script = Script(PROGRAM)
    board.command(INQUIRY).move(Phase.DATA_IN, 512, DATA + 0x100)
    assert board.run() == 0
    assert board.sist() == 0x80
    assert board.registers.dbc.count == 512 - 36


def test_signals_are_read_once(board: Board) -> None:
    board.registers.write(0x14, 1, 0x20)
    assert board.registers.read(0x1A, 1) & 0x40
    assert not board.registers.read(0x1A, 1) & 0x40
    assert not board.istat & 0x20


def test_the_semaphore_is_the_drivers(board: Board) -> None:
    board.registers.write(0x14, 1, 0x10)
    assert board.istat == 0x10


def test_an_enabled_timer_interrupts(board: Board) -> None:
    board.registers.write(0x40, 2, 0x0200)
    board.registers.write(0x49, 1, 0x08)
    board.advance(0.01)
    assert not board.istat & 0x02
    board.advance(0.2)
    assert board.istat & 0x02
    assert board.device.interrupts.intx_level
    assert board.sist() == 0x0200
    assert not board.device.interrupts.intx_level


def test_a_timer_that_is_not_enabled_is_polled(board: Board) -> None:
    board.registers.write(0x49, 1, 0x08)
    board.advance(0.2)
    assert not board.istat & 0x02
    assert board.sist() == 0x0200


def test_a_bus_reset(slow_board: Board) -> None:
    board = slow_board
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    assert board.run() == 0
    board.registers.write(0x40, 2, 0x0002)
    board.registers.write(0x01, 1, 0x08)
    assert board.device.interrupts.intx_level
    assert board.registers.read(0x0D, 1) == 0x02
    assert board.registers.read(0x0B, 1) == 0
    assert board.sist() == 0x0002
    assert not board.device.processor.is_running
    assert not board.registers.scntl1.con
    board.registers.write(0x01, 1, 0x00)
    assert board.registers.read(0x0D, 1) == 0
    assert board.sist() == 0
    # The targets have noticed.
    board.script = Script(PROGRAM)
    board.command(TEST_UNIT_READY)
    board.complete()
    assert board.run() == SIR
    assert board.read(DATA + 0x80, 1) == b"\x02"


def test_an_unexpected_disconnect(board: Board) -> None:
    board.write(DATA, b"\xc0\x0c")
    board.script.select(0)
    board.script.move(Phase.MESSAGE_OUT, 2, DATA)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert board.run() == 0
    assert board.sist() == 0x04
    assert not board.device.processor.is_running


def test_an_expected_one(board: Board) -> None:
    board.write(DATA, b"\xc0\x0c")
    board.script.select(0)
    board.script.register(7, 4, 0x02, 0x7F)
    board.script.move(Phase.MESSAGE_OUT, 2, DATA)
    board.script.wait_disconnect()
    board.script.interrupt(1)
    assert (board.run(), board.code) == (SIR, 1)
    assert board.sist() == 0


def test_a_software_reset(board: Board) -> None:
    board.script.select(0)
    board.script.interrupt(1)
    board.registers.write(0x39, 1, 0x7D)
    board.run()
    board.registers.write(0x49, 1, 0x08)
    board.registers.write(0x34, 4, 5)
    board.registers.write(0x14, 1, SOFTWARE_RESET)
    assert board.istat == SOFTWARE_RESET
    board.registers.write(0x14, 1, 0)
    assert board.istat == 0
    assert board.registers.scratcha == 0
    assert board.registers.read(0x0B, 1) == 0
    assert not board.registers.scntl1.con
    board.advance(1)
    assert board.sist() == 0


def test_a_reset_of_the_device_ends_what_is_disconnected(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ).move(Phase.MESSAGE_IN, 2, DATA + 0x90)
    board.script.clear(ack=True)
    board.script.wait_reselect()
    assert board.run() == 0
    tasks = [len(board.device.bus.targets[0].luns[0].tasks)]
    board.device.reset(ResetKind.DEVICE)
    tasks.append(len(board.device.bus.targets[0].luns[0].tasks))
    assert tasks == [1, 0]


def test_a_reset_of_the_device(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    board.command(READ, messages=b"\x80")
    board.script.interrupt(1, if_phase(Phase.DATA_IN, wait=True))
    board.run()
    board.device.reset(ResetKind.DEVICE)
    assert board.core.nexus is None
    assert not board.device.processor.is_running
    while storage.waiting:
        storage.step()
    board.turn()
    assert board.dstat() == 0


def test_commands_with_tags_through_disconnect_and_reselection(slow_board: Board, storage: Jobs) -> None:
    board = slow_board
    script = board.command(READ, messages=b"\xc0\x20\x44")
    script.move(Phase.MESSAGE_IN, 1, DATA + 0x90)
    script.clear(ack=True)
    script.move(Phase.MESSAGE_IN, 1, DATA + 0x91)
    script.interrupt(1, if_data(0x04, true=False))
    script.register(7, 4, 0x02, 0x7F)
    script.clear(ack=True)
    script.wait_disconnect()
    script.wait_reselect()
    script.move(Phase.MESSAGE_IN, 1, DATA + 0x92)
    script.clear(ack=True)
    script.move(Phase.MESSAGE_IN, 2, DATA + 0x94)
    script.clear(ack=True)
    script.move(Phase.DATA_IN, 512, DATA + 0x100)
    board.complete(0x600D)
    assert board.run() == 0
    assert not board.registers.scntl1.con
    storage.step()
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 0x600D)
    assert board.read(DATA + 0x90, 6) == b"\x02\x04\x80\x00\x20\x44"
    assert board.registers.sidl == 0
    assert board.registers.ssid == 0x80
    assert board.read(DATA + 0x100, 512) == b"\x01" * 512


# A state that moves.


def amid_a_program(board: Board, storage: Jobs) -> None:
    board.start()


def waiting_for_storage(board: Board, storage: Jobs) -> None:
    board.start()
    board.turn()


def before_it_is_looked_at(board: Board, storage: Jobs) -> None:
    board.start()
    board.turn()
    storage.step()


@pytest.mark.parametrize("reach", [amid_a_program, waiting_for_storage, before_it_is_looked_at])
@pytest.mark.parametrize("messages", [b"\x80", b"\xc0\x20\x44"])
def test_a_command_in_flight_moves(
    slow_board: Board, storage: Jobs, make_board: BoardMaker, reach: Callable[[Board, Jobs], None], messages: bytes
) -> None:
    board = slow_board
    script = board.command(READ, messages=messages)
    if len(messages) > 1:
        script.move(Phase.MESSAGE_IN, 2, DATA + 0x90)
        script.register(7, 4, 0x02, 0x7F)
        script.clear(ack=True)
        script.wait_disconnect()
        script.wait_reselect()
        script.move(Phase.MESSAGE_IN, 3, DATA + 0x92)
        script.clear(ack=True)
    script.move(Phase.DATA_IN, 512, DATA + 0x100)
    board.complete(0x600D)
    board.write(PROGRAM, script.code)
    reach(board, storage)
    others = Jobs()
    other = make_board({0: disk(storage=others)})
    other.write(PROGRAM, board.read(PROGRAM, 0x8000))
    other.write(DATA, board.read(DATA, 0x1000))
    other.device.load_state(board.device.save_state())
    other.turn()
    while others.waiting:
        others.step()
        other.turn()
    assert (other.dstat(), other.code) == (SIR, 0x600D)
    assert other.read(DATA + 0x100, 512) == b"\x01" * 512


def test_timers_and_stacked_interrupts_move(board: Board, make_board: BoardMaker) -> None:
    board.registers.write(0x49, 1, 0x08)
    board.script.interrupt(1)
    board.write(PROGRAM, board.script.code)
    board.start()
    board.turn()
    board.registers.write(0x01, 1, 0x08)
    other = make_board()
    other.device.load_state(board.device.save_state())
    assert other.dstat() == SIR
    assert other.sist() == 0x0002
    other.advance(1)
    assert other.sist() == 0x0200


def test_a_selection_of_nobody_moves(make_board: BoardMaker) -> None:
    board, other = make_board({}), make_board({})
    board.script.select(4)
    board.script.interrupt(1, if_phase(Phase.MESSAGE_OUT, wait=True))
    board.write(PROGRAM, board.script.code)
    board.start()
    board.turn(1)
    other.device.load_state(board.device.save_state())
    other.turn()
    assert other.sist() == 0x0400


def test_the_ram_moves(board: Board, make_board: BoardMaker) -> None:
    board.device.region(2).write(0x1000, 4, 0x1234)
    other = make_board()
    other.device.load_state(board.device.save_state())
    assert other.device.region(2).read(0x1000, 4) == 0x1234
    assert other.device.processor.memory.ram_words[0x400] == 0x1234


# Options.


def test_images_become_disks_and_drives(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(64 * 512))
    disc = tmp_path / "disc.iso"
    disc.write_bytes(bytes(64 * 2048))
    device = make_device(Lsi53c895a, {"disk0": str(image), "cdrom3": str(disc), "disk6": "memory:1M"})
    assert sorted(device.bus.targets) == [0, 3, 6]
    assert device.bus.targets[0].luns[0].device_type == 0
    assert device.bus.targets[3].luns[0].device_type == 5
    device.close()
    device.close()
    device.loop.close()


def test_there_is_an_option_for_each_id() -> None:
    names = [option.name for option in device_options(Lsi53c895a)]
    assert names == [f"disk{n}" for n in range(7)] + [f"cdrom{n}" for n in range(7)] + ["serial"]


def test_no_two_units_have_the_same_name() -> None:
    images = {"disk0": "memory:1M", "disk1": "memory:1M", "cdrom4": "memory:1M"}
    pages = set()
    for serial in ("A", "B"):
        device = make_device(Lsi53c895a, {**images, "serial": serial})
        for number, target in device.bus.targets.items():
            unit = target.luns[0]
            assert isinstance(unit, BlockUnit)
            assert unit.serial == f"{serial}-{number}"
            pages.add(unit.vpd_pages()[0x83])
        device.close()
        device.loop.close()
    assert len(pages) == 6


def test_an_id_is_taken_once() -> None:
    with pytest.raises(DefinitionError, match="SCSI id 2 is taken twice: give disk2 or cdrom2 another number"):
        make_device(Lsi53c895a, {"disk2": "memory:1M", "cdrom2": "memory:1M"})
    with pytest.raises(ValueError, match="SCSI id 1 is taken twice"):
        Lsi53c895a(targets={1: disk()}, disk1="memory:1M")
    with pytest.raises(ValueError, match="SCSI id 7 is the controller's own"):
        Lsi53c895a(targets={7: disk()})


def test_files_are_read_by_threads(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512) + b"\x01" * 512 + bytes(62 * 512))
    board = Board(Lsi53c895a(disk0=str(image)))
    board.make_ready()
    board.command(READ, messages=b"\x80")
    board.script.move(Phase.DATA_IN, 512, DATA + 0x100)
    board.complete(5)
    board.write(PROGRAM, board.script.code)
    board.start()
    while board.device.processor.is_running:
        board.device.loop.run_once(1.0)
    assert (board.dstat(), board.code) == (SIR, 5)
    assert board.read(DATA + 0x100, 512) == b"\x01" * 512
    board.close()
