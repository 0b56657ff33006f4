"""Runs: made of a program, they do what its instructions do one by one; and they end when the program is written to."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from tests.devices.lsi53c8xx.board import DATA, MEMORY, MEMORY_SIZE, RAM, REGISTERS, TABLE, Board, disk
from tests.devices.lsi53c8xx.conftest import BoardMaker
from vfio_user.devices.lsi53c8xx import processor as processor_module
from vfio_user.devices.lsi53c8xx import runs as runs_module
from vfio_user.devices.lsi53c8xx.block_moves import BlockMover
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.lsi53c8xx.run_writer import plain_word
from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.drivers.lsi53c8xx.assembler import ALWAYS, CARRY, RELATIVE, WAIT, Script, if_data, if_phase
from vfio_user.hardware.lsi53c8xx.interrupts import Phase

SIR = 0x04
DSA, SCRATCHA, SCRATCHB, TEMP, ISTAT0, SCNTL2, SFBR = 0x10, 0x34, 0x5C, 0x1C, 0x14, 0x02, 0x08
MMRS, MMWS, SFS, DRS = 0xA0, 0xA4, 0xA8, 0xAC


def run_at_once(board: Board) -> None:
    """Every address has its run as soon as it is reached."""
    board.device.processor.runs._often = 1


def run_never(board: Board) -> None:
    board.device.processor.runs._often = 1 << 60


def put(board: Board, script: Script) -> None:
    board.device.region(2).write_bytes(script.base - RAM, script.code)


def start(board: Board, script: Script, *, turns: int = 10) -> int:
    put(board, script)
    board.start(script.base)
    board.turn(turns)
    return board.dstat()


def lengths(board: Board) -> dict[int, int]:
    return {address - RAM: run.length for address, run in board.device.processor.runs.by_address.items()}


@pytest.fixture
def script() -> Script:
    return Script(RAM)


@pytest.fixture(autouse=True)
def at_once(board: Board) -> None:
    run_at_once(board)


# ---- What a run is made of ----


def test_a_run_goes_across_jumps_and_calls_and_ends_where_a_return_goes_nobody_knows(
    board: Board, script: Script
) -> None:
    script.load(SCRATCHA, 4, RAM + 0x100)
    script.jump(RAM + 0x20)
    script.emit(0, 0, 0, 0)
    script.call(RAM + 0x40)
    script.interrupt(7)
    script.emit(0, 0, 0, 0)
    script.register(7, 2, SCRATCHA, 0x80)
    script.give_back()
    board.device.region(2).write(0x100, 4, 0x0102_0304)
    assert start(board, script) == SIR
    assert board.code == 7
    assert int(board.registers.scratcha) == 0x0102_0384
    assert lengths(board) == {0: 5, 0x28: 0}
    assert board.registers.read(TEMP, 4) == RAM + 0x28
    assert board.registers.read(0x2C, 4) == RAM + 0x30


def test_a_loop_is_a_run_that_ends_where_it_began(board: Board, script: Script) -> None:
    script.register(5, 0, SCRATCHA, 3)
    loop = script.register(6, 2, SCRATCHA)
    script.register(6, 3, SCRATCHA, 1)
    script.jump(RAM + 0x28, if_data(2))
    script.jump(loop)
    script.interrupt(9)
    assert start(board, script) == SIR
    assert board.code == 9
    assert lengths(board)[0] == 5
    assert board.registers.read(SFBR, 1) == 2


def test_programs_elsewhere_have_no_runs(board: Board) -> None:
    board.script.register(6, 2, SCRATCHA)
    board.script.register(6, 2, SCRATCHA)
    board.script.interrupt(1)
    assert board.run() == SIR
    assert not lengths(board)


def test_what_is_reached_seldom_has_none(make_board: BoardMaker, script: Script) -> None:
    board = make_board()
    for _ in range(4):
        script.register(6, 2, SCRATCHA)
    script.interrupt(1)
    for _ in range(runs_module._OFTEN - 1):
        assert start(board, script) == SIR
        assert not lengths(board)
    assert start(board, script) == SIR
    assert lengths(board) == {0: 5}


def test_there_are_only_so_many(board: Board, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_MOST_RUNS", 3)
    for _ in range(8):
        script.memory_move(4, DATA, DATA + 8)
    script.interrupt(1)
    assert start(board, script) == SIR
    assert len(lengths(board)) == 3


def test_making_runs_counts_as_work(board: Board, script: Script) -> None:
    for _ in range(8):
        script.memory_move(4, DATA, DATA + 8)
    script.interrupt(1)
    put(board, script)
    board.start(RAM)
    board.turn(1)
    assert 1 <= len(lengths(board)) <= processor_module.SLICE // processor_module._RUN_COST
    assert board.device.processor.is_running
    board.turn()
    assert board.dstat() == SIR


@pytest.mark.parametrize("register", [SCRATCHA, SCRATCHB, DSA, TEMP, 0x60, 0x9C])
def test_plain_words(board: Board, register: int) -> None:
    processor = board.device.processor
    slot = plain_word(processor, register)
    assert slot is not None
    board.registers.write(register, 4, 0x1234_5678)
    assert processor.values[slot] == 0x1234_5678
    assert plain_word(processor, register + 1) is None


@pytest.mark.parametrize("register", [0x00, ISTAT0, 0x24, 0x2C, 0x30, 0xA0])
def test_words_that_are_more(board: Board, register: int) -> None:
    assert plain_word(board.device.processor, register) is None


# ---- When the program changes ----


def counting(script: Script) -> None:
    """Three instructions of a run, and an interrupt whose code shows which program it was."""
    script.register(6, 2, SCRATCHA)
    script.register(6, 0, 0, 0)
    script.register(5, 0, SCRATCHB, 1)
    script.interrupt(1)


def test_the_driver_writes_another_program(board: Board, script: Script) -> None:
    counting(script)
    for _ in range(3):
        assert start(board, script) == SIR
    assert board.registers.read(SCRATCHB, 1) == 1
    other = Script(RAM)
    other.register(6, 2, SCRATCHA)
    other.register(6, 0, 0, 0)
    other.register(5, 0, SCRATCHB, 2)
    other.interrupt(2)
    assert start(board, other) == SIR
    assert board.registers.read(SCRATCHB, 1) == 2
    assert board.device.processor.runs._often == 2


def test_data_beside_the_program_ends_no_run(board: Board, script: Script) -> None:
    counting(script)
    start(board, script)
    [run] = (run for run in board.device.processor.runs.by_address.values() if run.length)
    board.device.region(2).write(0x100, 4, 77)
    board.start(RAM)
    board.turn()
    assert not run.ended
    assert board.device.processor.runs.by_address[RAM] is run


def test_the_ram_moves(board: Board, script: Script) -> None:
    counting(script)
    start(board, script)
    board.device.function.config.write(0x18, 4, RAM + 0x1_0000)
    board.start(RAM + 0x1_0000)
    board.turn()
    assert (board.dstat(), board.code) == (SIR, 1)
    assert set(lengths(board)) == {0x1_0000}


@pytest.mark.parametrize("how", ["store", "store from memory", "memory move", "bytes", "block move"])
def test_the_program_writes_over_what_comes_next(board: Board, script: Script, how: str) -> None:
    """An instruction of the very run that is being carried out becomes another one."""
    new = Script(RAM)
    new.register(5, 0, SCRATCHB, 0x22)
    board.write(DATA, new.code)
    board.registers.write(DSA, 4, DATA)
    target = RAM + 0x40
    script.load(SCRATCHA, 4, DATA)
    if how == "store":
        script.store(SCRATCHA, 4, target)
    elif how == "store from memory":
        script.load(DSA, 4, RAM + 0x80)
        script.store(SCRATCHA, 4, 0, relative=True)
        board.device.region(2).write(0x80, 4, target)
    elif how == "memory move":
        script.memory_move(4, DATA, target)
    elif how == "bytes":
        script.store(SCRATCHA, 2, target)
        script.store(SCRATCHA + 2, 2, target + 2)
    else:
        script.select(0)
        board.write(DATA + 0x40, bytes.fromhex("000000000000"))
        board.write(DATA + 0x50, b"\xc0")
        script.move(Phase.MESSAGE_OUT, 1, DATA + 0x50)
        script.move(Phase.COMMAND, 6, DATA + 0x40)
        script.move(Phase.STATUS, 1, target + 1)
    script.jump(target)
    while script.here < target:
        script.emit(0)
    script.register(5, 0, SCRATCHB, 0x11)
    script.register(6, 2, SCRATCHB)
    script.interrupt(3)
    assert start(board, script) == SIR
    # (The block move writes the status, CHECK CONDITION, over the data the instruction moves.)
    assert board.registers.read(SCRATCHB, 1) == (0x02 if how == "block move" else 0x22)


def test_a_word_that_is_patched_again_and_again_is_left_out(board: Board, script: Script) -> None:
    script.load(SCRATCHA, 4, RAM + 0x100)
    script.store(SCRATCHA, 4, RAM + 0x2C)
    script.register(6, 2, SCRATCHA)
    script.register(6, 2, SCRATCHA)
    script.register(6, 2, SCRATCHA)
    script.interrupt(0)
    put(board, script)
    for number in range(10):
        board.device.region(2).write(0x100, 4, number)
        # (As it would be if a driver patched it; the code is in the second word of the interrupt.)
        board.start(RAM)
        board.turn()
        assert (board.dstat(), board.code) == (SIR, number)
    patched = Script(RAM + 0x200)
    patched.load(SCRATCHA, 4, RAM + 0x100)
    patched.store(SCRATCHA, 4, RAM + 0x21C)
    patched.register(6, 2, SCRATCHA)
    patched.load(SCRATCHB, 4, 0)
    patched.register(6, 2, SCRATCHB)
    patched.interrupt(5)
    put(board, patched)
    for number in range(1, 10):
        board.device.region(2).write(0x100, 4, RAM + 0x300 + 4 * number)
        board.device.region(2).write(0x300 + 4 * number, 4, 1000 + number)
        board.start(RAM + 0x200)
        board.turn()
        assert board.dstat() == SIR
        assert int(board.registers.scratchb) == 1000 + number
    assert lengths(board)[0x200] == 3


def test_a_driver_that_changes_its_program_all_the_time_is_given_up_on(board: Board) -> None:
    runs = board.device.processor.runs
    for number in range(1, 6):
        script = Script(RAM)
        counting(script)
        script.words[-1] = number
        script.words[4] ^= number << 8
        for _ in range(2 * runs._often):
            assert start(board, script) == SIR
            assert board.code == number
    assert runs._often == 16


# ---- What is not simple, this time ----


def test_what_faults_is_left_to_the_processor(board: Board, script: Script) -> None:
    script.register(6, 2, SCRATCHA)
    script.register(6, 2, SCRATCHA)
    at = script.load(SCRATCHA, 4, MEMORY - 4)
    script.interrupt(1)
    for _ in range(3):
        put(board, script)
        board.start(RAM)
        board.turn()
        assert board.dstat() == 0x20
        assert board.registers.read(0x2C, 4) == at + 8
        assert board.code == MEMORY - 4


def test_a_run_that_is_stopped_on_its_way(board: Board, script: Script) -> None:
    """As when the driver aborts while the device waits for a client that maps nothing."""
    script.register(6, 2, SCRATCHA)
    script.register(6, 2, SCRATCHA)
    script.jump(RAM)
    put(board, script)
    processor = board.device.processor
    board.start(RAM)
    board.turn(1)
    [run] = processor.runs.by_address.values()

    def stopped() -> None:
        processor.stop()

    processor.runs.by_address[RAM] = run._replace(function=stopped)
    board.turn(1)
    assert not processor.is_running


@pytest.mark.parametrize("selector", [MMRS, MMWS, DRS])
def test_addresses_have_a_high_half(board: Board, script: Script, selector: int) -> None:
    """Nothing is there at 4 GiB and above: whoever goes there faults, and nobody else."""
    board.registers.write(DSA, 4, DATA)
    script.load(SCRATCHA, 4, RAM + 0x100)
    script.load(SCRATCHB, 4, RAM + 0x100)
    script.store(SCRATCHA, 4, RAM + 0x104)
    script.store(SCRATCHA, 4, DATA)
    script.load(SCRATCHA, 4, 0, relative=True)
    script.interrupt(1)
    put(board, script)
    for high, ends in ((0, SIR), (1, 0x20), (0, SIR)):
        board.registers.write(selector, 4, high)
        board.start(RAM)
        board.turn()
        assert board.dstat() == ends
        if high:
            assert board.registers.read(0x2C, 4) == RAM + {MMRS: 0x08, MMWS: 0x18, DRS: 0x28}[selector]


@pytest.mark.parametrize("condition", range(8))
def test_conditions_of_several_parts(make_board: BoardMaker, condition: int) -> None:
    """Each of phase, data and carry as said or not: all have to be, or none."""
    phase, data, carry = bool(condition & 1), bool(condition & 2), bool(condition & 4)
    codes = []
    for prepare in (run_never, run_at_once):
        board = make_board()
        prepare(board)
        script = Script(RAM)
        script.register(6, 0, SFBR, 1)
        script.register(5, 0, SCRATCHA, 3 if data else 2)
        script.register(6, 2, SCRATCHA)
        script.set(carry=True) if carry else script.clear(carry=True)
        parts = if_phase(Phase.DATA_OUT if phase else Phase.STATUS) & ~ALWAYS | if_data(3) & ~ALWAYS | CARRY
        script.jump(RAM + 0x100, parts | ALWAYS)
        script.jump(RAM + 0x200, parts)
        script.interrupt(0)
        for place, code in ((0x100, 1), (0x200, 2)):
            end = Script(RAM + place)
            end.interrupt(code)
            put(board, end)
        assert start(board, script) == SIR
        codes.append(board.code)
    assert codes == [1 if condition == 7 else 2 if condition == 0 else 0] * 2


# ---- Moves of data ----


def is_endless(board: Board) -> bool:
    """It runs on. Where a slice ends is no matter of what the program does, so that there is nothing to compare."""
    return board.device.processor.is_running and board.device.processor.waiting is Waiting.NOTHING


def goes_on(board: Board) -> bool:
    """The same of one that may just be waiting for the target where a slice ends: it does more if it gets another."""
    before = list(board.registers.stored_values)
    board.turn(1)
    return is_endless(board) or before != list(board.registers.stored_values)


SOURCE = DATA + 0x1000
READ, WRITE = 0x28, 0x2A


def moving(operation: int, number: int, *, offset: int = 0) -> Script:
    """A program that reads or writes three blocks by ``number`` table moves."""
    script = Script(RAM)
    script.select(0)
    script.move(Phase.MESSAGE_OUT, 1, DATA)
    script.move(Phase.COMMAND, 10, DATA + 0x40)
    for index in range(number):
        script.move_table(Phase.DATA_IN if operation == READ else Phase.DATA_OUT, offset + 8 * index)
    script.move(Phase.STATUS, 1, DATA + 0x80)
    script.move(Phase.MESSAGE_IN, 1, DATA + 0x81)
    script.clear(ack=True)
    script.wait_disconnect()
    script.interrupt(0xE4D)
    return script


def prepared(board: Board, operation: int, entries: list[tuple[int, int]]) -> None:
    board.make_ready()
    board.write(DATA, b"\xc0")
    board.write(DATA + 0x40, struct.pack(">BBIBHB", operation, 0, 0, 0, 3, 0))
    board.write(SOURCE, bytes(range(256)) * 6)
    board.write(TABLE, b"".join(struct.pack("<II", *entry) for entry in entries))
    board.registers.write(DSA, 4, TABLE)


@pytest.mark.parametrize("mode", [0x00, 0x06], ids=["32 bits", "40 bits, as Linux has it"])
@pytest.mark.parametrize("operation", [READ, WRITE])
def test_moves_in_a_row_are_one(board: Board, operation: int, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    several = BlockMover.several

    def counted(self: BlockMover, first: int, second: int, number: int) -> int:
        done.append(several(self, first, second, number))
        return done[-1]

    monkeypatch.setattr(BlockMover, "several", counted)
    entries = [(256, SOURCE + 512 * index) for index in range(6)]
    prepared(board, operation, entries)
    board.registers.write(0x57, 1, mode)
    assert start(board, moving(operation, 6)) == SIR
    assert board.code == 0xE4D
    assert done == [6]
    assert board.registers.read(0xD0, 4) == TABLE + 40
    contents = board.device.bus.targets[0].luns[0].backend.contents  # type: ignore[attr-defined]
    if operation == READ:
        assert board.read(SOURCE + 512 * 5, 256) == bytes([2]) * 256
    else:
        assert bytes(contents[:1536]) == b"".join(board.read(address, length) for length, address in entries)


def test_moves_in_a_row_to_the_chips_own_ram(make_board: BoardMaker) -> None:
    """It may have an address where memory is, too: then that is the RAM's."""
    found = []
    for prepare in (run_never, run_at_once):
        board = make_board()
        prepared(board, READ, [(256, SOURCE), (256, SOURCE + 256), (256, MEMORY + 0x8_0400), (768, SOURCE + 512)])
        board.device.function.config.write(0x18, 4, MEMORY + 0x8_0000)
        prepare(board)
        put(board, moving(READ, 4))
        board.start(MEMORY + 0x8_0000)
        board.turn()
        assert board.dstat() == SIR
        found.append(shown(board))
    assert found[0] == found[1]
    assert found[0]["ram"][0x400:0x500] == bytes([1]) * 256  # type: ignore[index]


@given(
    operation=st.sampled_from([READ, WRITE]),
    entries=st.lists(
        st.tuples(
            st.one_of(st.sampled_from([1, 100, 256, 512]), st.sampled_from([0, 1024, 1536, 2048, 0x0200_0100])),
            st.one_of(
                st.integers(0, 8).map(lambda index: SOURCE + 256 * index),
                st.sampled_from([TABLE + 16, RAM + 0x100, RAM + 0x20, RAM - 4, REGISTERS, MEMORY - 4, 0xFFFF_FFFC]),
                st.just(MEMORY + MEMORY_SIZE - 100),
            ),
        ),
        min_size=2,
        max_size=8,
    ),
    number=st.integers(2, 10),
    modes=st.sampled_from(
        [{}, {}, {0x57: 0x06}, {0x57: 0x06, 0xB0: 1}, {0x57: 0x02}, {0x57: 0x01}, {DRS: 1}, {0xB0: 1}, {0x56: 0xC0}]
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_moves_in_a_row_do_what_they_do_one_by_one(
    operation: int, entries: list[tuple[int, int]], number: int, modes: dict[int, int]
) -> None:
    boards = []
    try:
        for prepare in (run_never, run_at_once):
            board = Board(Lsi53c895a(targets={0: disk(4)}))
            boards.append(board)
            run_never(board)
            prepared(board, operation, entries)
            prepare(board)
            for register, value in modes.items():
                board.registers.write(register, 4 if register >= MMRS else 1, value)
            start(board, moving(operation, number))
        if any(is_endless(board) for board in boards):
            return
        wanted, found = map(shown, boards)
        for name in wanted:
            assert found[name] == wanted[name], name
    finally:
        for board in boards:
            board.close()


@pytest.mark.parametrize("offset", [0x7F_FFF8 - 8, 0xFF_FFF0])
def test_offsets_have_a_sign(make_board: BoardMaker, offset: int) -> None:
    """Entries follow each other only as long as it stays the same."""
    codes = []
    for prepare in (run_never, run_at_once):
        board = make_board()
        prepared(board, READ, [(256, SOURCE)] * 6)
        board.write(TABLE - 16, struct.pack("<4I", 256, SOURCE, 256, SOURCE))
        prepare(board)
        assert start(board, moving(READ, 6, offset=offset)) in (0x20, SIR)
        codes.append((board.code, board.registers.read(0x2C, 4), board.registers.read(0xD0, 4)))
    assert codes[0] == codes[1]


# ---- Any program ----

REGISTERS_TO_USE = st.sampled_from(
    [
        *(SCRATCHA, SCRATCHA + 1, SCRATCHB + 3, DSA, DSA + 1, TEMP, ISTAT0, SCNTL2, SFBR),
        *(0x03, 0x18, 0x1A, 0x20, 0x22, 0x24, 0x27, 0x2C, 0x30, 0x38, 0x3B, 0x60, MMRS, MMWS, SFS, DRS),
    ]
)
TARGETS = st.integers(0, 23).map(lambda index: RAM + 8 * index)
PLACES = st.one_of(
    TARGETS,
    TARGETS.map(lambda address: address + 4),
    st.integers(0, 15).map(lambda index: RAM + 0x100 + 4 * index),
    st.integers(0, 15).map(lambda index: DATA + 4 * index),
    st.sampled_from([REGISTERS + SCRATCHA, REGISTERS + DSA, REGISTERS + 0x2C, MEMORY - 4, MEMORY + MEMORY_SIZE - 4]),
    st.sampled_from([RAM + 0x1FFC, RAM + 2, DATA + 1]),
)
OFFSETS = st.sampled_from([0, 4, 8, 0x40, -4, -8, 2])
CONDITIONS = st.one_of(
    st.just(ALWAYS),
    st.just(0),
    st.builds(if_data, st.integers(0, 3), mask=st.sampled_from([0, 0xFC]), true=st.booleans()),
    st.builds(if_phase, st.sampled_from(Phase), true=st.booleans(), wait=st.booleans()),
    st.sampled_from([CARRY, CARRY | ALWAYS, WAIT, WAIT | ALWAYS, CARRY | ALWAYS | 0x0004_0001]),
)
#: A method of ``Script``, and its arguments.
Emit = tuple[str, tuple[Any, ...], dict[str, Any]]


def emits(method: str, *arguments: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]) -> Any:
    return st.tuples(st.just(method), st.tuples(*arguments), st.fixed_dictionaries(options))


def relative_jump(kind: int, condition: int, offset: int) -> Emit:
    return "emit", (0x8000_0000 | kind << 27 | condition | RELATIVE, offset & 0xFF_FFFF), {}


COMPLEX = st.one_of(
    emits(
        "register",
        st.sampled_from([5, 6, 7]),
        st.integers(0, 7),
        REGISTERS_TO_USE,
        st.sampled_from([0, 1, 2, 0x80]),
        use_sfbr=st.booleans(),
    ),
    emits("load", st.sampled_from([SCRATCHA, SCRATCHB, DSA, TEMP, 0x60, MMRS, 0x2C]), st.just(4), PLACES),
    emits("store", st.sampled_from([SCRATCHA, SCRATCHB, DSA, TEMP, ISTAT0 + 8]), st.just(4), PLACES),
    emits("load", st.sampled_from([SCRATCHA, SCRATCHB, DSA]), st.just(4), OFFSETS, relative=st.just(True)),
    emits("store", st.sampled_from([SCRATCHA, SCRATCHB, DSA]), st.just(4), OFFSETS, relative=st.just(True)),
    emits("load", st.sampled_from([SCRATCHA, SCRATCHA + 2]), st.integers(1, 2), PLACES),
    emits("store", st.sampled_from([SCRATCHA, SCRATCHA + 2]), st.integers(1, 2), PLACES),
    emits("jump", TARGETS, CONDITIONS),
    emits("call", TARGETS, CONDITIONS),
    emits("give_back", CONDITIONS),
    emits("interrupt", st.integers(0, 9), CONDITIONS),
    emits("interrupt_on_the_fly", CONDITIONS),
    st.builds(relative_jump, st.integers(0, 3), CONDITIONS, st.sampled_from([0, 8, 16, -8, -24, 4])),
    emits("memory_move", st.sampled_from([4, 8, 1]), PLACES, PLACES),
    emits("set", ack=st.booleans(), atn=st.booleans(), carry=st.booleans()),
    emits("clear", ack=st.booleans(), atn=st.booleans(), carry=st.booleans()),
    emits("select", st.integers(0, 1), otherwise=TARGETS),
    emits("select_table", st.sampled_from([0, 4])),
    emits("wait_reselect", otherwise=TARGETS),
    emits("wait_disconnect"),
    emits("move", st.sampled_from(Phase), st.sampled_from([1, 6, 36]), PLACES),
    emits("move_table", st.sampled_from(Phase), st.sampled_from([0, 8])),
)
SIMPLE = st.one_of(
    emits(
        "register",
        st.sampled_from([5, 6, 7]),
        st.sampled_from([0, 2, 3, 4]),
        st.sampled_from([SCRATCHA, SCRATCHA + 1, SCRATCHB + 3, ISTAT0, SCNTL2, SFBR]),
        st.sampled_from([0, 1, 2, 0x80]),
        use_sfbr=st.booleans(),
    ),
    emits("load", st.sampled_from([SCRATCHA, SCRATCHB]), st.just(4), st.integers(0, 15).map(lambda n: RAM + 8 * n)),
    emits(
        "store", st.sampled_from([SCRATCHA, SCRATCHB]), st.just(4), st.integers(0, 15).map(lambda n: RAM + 0x100 + n)
    ),
    emits(
        "load", st.sampled_from([SCRATCHA, SCRATCHB]), st.just(4), st.sampled_from([0, 4, 0x40]), relative=st.just(True)
    ),
    emits("store", st.sampled_from([SCRATCHA, SCRATCHB]), st.just(4), st.sampled_from([4, 8]), relative=st.just(True)),
    st.builds(relative_jump, st.integers(0, 1), CONDITIONS, st.sampled_from([0, 8, 16, 24])),
    emits("interrupt_on_the_fly", CONDITIONS),
)
#: Mostly what programs consist of, so that not every one ends at its second instruction.
INSTRUCTIONS = st.one_of(SIMPLE, SIMPLE, SIMPLE, COMPLEX)
TALK: list[Emit] = [
    ("select", (0,), {}),
    ("move", (Phase.MESSAGE_OUT, 1, DATA), {}),
    ("move", (Phase.COMMAND, 6, DATA + 0x40), {}),
    ("emit", (0x8000_0000 | RELATIVE | if_phase(Phase.STATUS, wait=True), 8), {}),
    ("move", (Phase.DATA_IN, 36, DATA + 0x100), {}),
    ("move", (Phase.STATUS, 1, DATA + 0x80), {}),
    ("move", (Phase.MESSAGE_IN, 1, DATA + 0x81), {}),
]


def shown(board: Board) -> dict[str, object]:
    """Everything a driver, or another program, could find out."""
    device = board.device
    return {
        "registers": {
            name: board.registers.stored_values[register.slot : register.slot + register.elements]
            for name, register in type(board.registers).layout.registers.items()
        },
        "ram": bytes(device.bar2.memory),  # type: ignore[attr-defined]
        "memory": board.read(MEMORY, MEMORY_SIZE),
        "chip": device.chip_state,
        "line": device.interrupts.intx_level,
        "disk": bytes(device.bus.targets[0].luns[0].backend.contents),  # type: ignore[attr-defined]
    }


@given(
    program=st.lists(INSTRUCTIONS, min_size=3, max_size=24),
    talks=st.booleans(),
    dsa=st.sampled_from([DATA, TABLE, RAM, RAM + 0x100, REGISTERS, MEMORY + 2]),
    values=st.lists(st.sampled_from([0, 1, 2, 0x80, RAM, RAM + 8, DATA, 0x8008_0000]), min_size=3, max_size=3),
)
@example(
    program=[("select", (0,), {"otherwise": RAM}), ("select", (0,), {"otherwise": RAM + 8})],
    talks=True,
    dsa=DATA,
    values=[0, 0, 0],
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_run_does_what_its_instructions_do_one_by_one(
    program: list[Emit], talks: bool, dsa: int, values: list[int]
) -> None:
    script = Script(RAM)
    for method, arguments, options in [*TALK, *program] if talks else program:
        getattr(script, method)(*arguments, **options)
    script.interrupt(0xE4D)
    boards = []
    endless = False
    try:
        for prepare in (run_never, run_at_once):
            board = Board(Lsi53c895a(targets={0: disk(4)}))
            boards.append(board)
            prepare(board)
            put(board, script)
            board.write(DATA, b"\xc0" + bytes(63) + bytes.fromhex("120000002400") + bytes(64))
            board.write(TABLE, struct.pack("<4I", 0x0000_0006, DATA + 0x40, 1, DATA))
            board.registers.write(DSA, 4, dsa)
            for register, value in zip((SCRATCHA, SCRATCHB, TEMP), values, strict=True):
                board.registers.write(register, 4, value)
            for _ in range(3):
                board.start(RAM)
                board.turn(8)
                endless = endless or goes_on(board)
                board.dstat()
                board.sist()
        one_by_one, in_runs = boards
        length = sum(run.length for run in in_runs.device.processor.runs.by_address.values())
        event(f"instructions in runs: {length // 4 * 4}")
        if endless:
            event("endless")
            return
        for name, wanted in shown(one_by_one).items():
            assert shown(in_runs)[name] == wanted, name
    finally:
        for board in boards:
            board.close()
