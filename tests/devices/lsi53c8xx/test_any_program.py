"""SCRIPTS programs, however wrong: they end in an interrupt that says why, or run until stopped; others run on.

Programs are made of what goes wrong: words at random, code that writes into itself, jumps to where nothing is, moves
across the ends of memory, tables of garbage, commands of any bytes for the targets, registers set to anything.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.lsi53c8xx.board import (
    DATA,
    INQUIRY,
    MEMORY,
    MEMORY_SIZE,
    PROGRAM,
    RAM,
    REGISTERS,
    TABLE,
    Board,
    disk,
)
from vfio_user import Server
from vfio_user.backends import MemoryBackend
from vfio_user.client.pci_function import PciFunction
from vfio_user.devices.edu import Edu
from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a
from vfio_user.devices.scsi import CdRom, Target
from vfio_user.drivers.lsi53c8xx.assembler import Script
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, Phase, ScsiInterrupt
from vfio_user.hardware.scsi.codes import OperationCode
from vfio_user.server.loop import EventLoop

#: Programs of one run. ``PROGRAMS=20000 pytest ...`` for a long one.
PROGRAMS = int(os.environ.get("PROGRAMS", "200"))

END = MEMORY + MEMORY_SIZE
SIR = 0x04
SOFTWARE_RESET, ABORT = 0x40, 0x80

Words = Sequence[int]

any_word = st.integers(0, 0xFFFF_FFFF)
count = st.one_of(st.integers(0, 64), st.sampled_from([512, 4096, 0x1_0000, 0xFF_FFFF]))
in_program = st.integers(0, 63).map(lambda index: PROGRAM + 4 * index)
#: Where there is memory, where it begins and ends, where nothing is, and what is no word's address.
address = st.one_of(
    in_program,
    any_word,
    st.integers(-16, 16).map(lambda index: 4 * index & 0xFF_FFFF),
    st.builds(
        lambda edge, offset: edge + offset & 0xFFFF_FFFF,
        st.sampled_from([DATA, TABLE, MEMORY, END, RAM, RAM + 0x2000, REGISTERS, REGISTERS + 0x100, 0, 0xFFFF_FFFC]),
        st.sampled_from([0, 0, 4, -4, 1, -1, 0x2C, 0x14, -512]),
    ),
)


def assembled(make: object) -> Words:
    """The words of what a method of ``Script`` appends."""
    script = Script(0)
    make(script)  # type: ignore[operator]
    return script.words


at_random = st.tuples(any_word, address)
#: More often than chance would have it: bus and registers, transfers.
nearly_right = st.tuples(
    st.builds(lambda kind, rest: kind << 24 | rest, st.integers(0x40, 0x9F), st.integers(0, 0xFF_FFFF)), address
)
#: Code that changes code: by a memory move, from a register, by a load of DSA or DSP.
self_modifying = st.one_of(
    st.builds(lambda n, source, to: (0xC000_0000 | n, source, to), count, address, in_program),
    st.builds(
        lambda register, n, to: (0xE000_0000 | register << 16 | n, to),
        st.integers(0, 0xFF),
        st.integers(0, 7),
        in_program,
    ),
    st.builds(lambda n, source: (0xE110_0000 | n, source), st.integers(0, 7), address),
    st.builds(lambda source: (0xE12C_0004, source), address),
)
jumps = st.one_of(
    st.builds(lambda kind, to: (kind << 24 | 0x0008_0000, to), st.sampled_from([0x80, 0x88, 0x90]), address),
    st.builds(lambda kind, to: (kind << 24 | 0x0088_0000, to), st.sampled_from([0x80, 0x88]), address),
    st.builds(lambda condition, to: (0x8000_0000 | condition, to), st.integers(0, 0x07FF_FFFF), in_program),
)
moves = st.one_of(
    st.builds(lambda n, source, to: (0xC000_0000 | n, source, to), count, address, address),
    st.builds(
        lambda how, phase, n, at: (how << 28 | 0x0800_0000 | phase << 24 | n, at),
        st.sampled_from([0, 1, 2]),
        st.sampled_from([*Phase]),
        count,
        address,
    ),
    st.builds(
        lambda load, register, n, at: (0xE000_0000 | load << 24 | register << 16 | n, at),
        st.booleans(),
        st.integers(0, 0xFF),
        st.integers(0, 7),
        address,
    ),
)
#: Registers set to anything: DSA for tables of garbage, selectors, interrupt enables, modes, even a software reset.
registers = st.builds(
    lambda operation, operator, register, data: assembled(lambda s: s.register(operation, operator, register, data)),
    st.sampled_from([5, 6, 7]),
    st.integers(0, 7),
    st.one_of(st.integers(0, 0xFF), st.sampled_from([0x10, 0x11, 0x12, 0x13, 0x02, 0x14, 0x3B, 0x40, 0x56, 0x57])),
    st.integers(0, 0xFF),
)
#: Memory moves and stores where there is memory, of what is not code.
harmless = st.builds(
    lambda n, source, to: (0xC000_0000 | n, DATA + source, DATA + to),
    st.integers(1, 64),
    st.integers(0x400, 0x800),
    st.integers(0x400, 0x800),
)


def _command(script: Script, target: int, messages: int, length: int) -> None:
    script.select(target)
    script.move(Phase.MESSAGE_OUT, messages, DATA)
    script.move(Phase.COMMAND, length, DATA + 0x40)


#: Whatever stands at DATA, as messages and as a command; and what a target may do then.
commands = st.builds(
    lambda target, messages, length: assembled(lambda s: _command(s, target, messages, length)),
    st.sampled_from([0, 0, 4, 5]),
    st.sampled_from([1, 1, 1, 3, 8]),
    # What a command does not need is dropped.
    st.sampled_from([16, 16, 16, 6, 10, 12]),
)
answers = st.builds(
    lambda phase, n: assembled(lambda s: s.move(phase, n, DATA + 0x100)),
    st.sampled_from([Phase.DATA_IN, Phase.DATA_OUT, Phase.STATUS, Phase.MESSAGE_IN]),
    st.sampled_from([1, 36, 512, 4096]),
)
handshakes = st.sampled_from(
    [(0x6000_0040, 0), (0x6000_0008, 0), (0x5800_0008, 0), (0x4800_0000, 0), (0x5000_0000, PROGRAM)]
)

instructions = st.one_of(
    at_random, nearly_right, self_modifying, jumps, moves, registers, commands, answers, handshakes
)
programs = st.one_of(
    st.lists(instructions, min_size=1, max_size=24),
    # A command, and what may come of it.
    st.builds(
        lambda command, rest: [command, *rest],
        commands,
        st.lists(st.one_of(answers, handshakes, handshakes, instructions), max_size=16),
    ),
    # Round and round, as long as nothing stops it.
    st.builds(
        lambda parts: [*parts, (0x8008_0000, PROGRAM)],
        st.lists(st.one_of(registers, harmless, handshakes, self_modifying), min_size=1, max_size=8),
    ),
).map(lambda parts: [word for part in parts for word in part])
messages = st.one_of(
    st.sampled_from(
        [b"\xc0", b"\x80", b"\xc0\x20\x05", b"\xc3", b"\xc0\x06", b"\xc0\x0c", b"\xc0\x01\x03\x01\x0c\x10"]
    ),
    st.binary(min_size=1, max_size=16),
)
cdbs = st.builds(
    lambda code, rest: bytes([code, *rest]),
    st.one_of(st.sampled_from([*map(int, OperationCode)]), st.integers(0, 0xFF)),
    st.one_of(st.binary(max_size=15), st.just(bytes.fromhex("000000000000000100")), st.just(bytes(15))),
)


@contextmanager
def some_board() -> Iterator[Board]:
    targets = {0: disk(16), 4: Target({0: CdRom(MemoryBackend(32 * 2048))})}
    board = Board(Lsi53c895a(targets=targets))
    try:
        yield board
    finally:
        board.close()


def is_running(board: Board) -> bool:
    return board.device.processor.is_running


def causes_of(board: Board) -> tuple[DmaInterrupt, ScsiInterrupt]:
    return DmaInterrupt(board.dstat()), ScsiInterrupt(board.sist())


@settings(max_examples=PROGRAMS, deadline=None)
@given(
    program=programs,
    in_ram=st.booleans(),
    said=messages,
    cdb=cdbs,
    table=st.lists(st.one_of(any_word, address, count), max_size=32),
    dsa=st.one_of(st.just(TABLE), address),
)
def test_any_program_ends_in_an_interrupt_or_runs_until_it_is_stopped(
    program: Words, in_ram: bool, said: bytes, cdb: bytes, table: Words, dsa: int
) -> None:
    with some_board() as board:
        resets: list[bool] = []
        forget = board.device._forget

        def forget_and_tell() -> None:
            resets.append(True)
            forget()

        board.device._forget = forget_and_tell  # type: ignore[method-assign]
        code = struct.pack(f"<{len(program)}I", *program)
        if in_ram:
            board.device.region(2).write_bytes(0, code)
        else:
            board.write(PROGRAM, code)
        board.write(TABLE, struct.pack(f"<{len(table)}I", *table))
        board.write(DATA, said)
        board.write(DATA + 0x40, cdb)
        board.registers.dsa = dsa
        board.start(RAM if in_ram else PROGRAM)
        neighbour: list[int] = []
        for turn in range(8):
            board.device.call_soon(neighbour.append, turn)
            board.device.loop.run_once()
        assert len(neighbour) == 8
        if is_running(board):
            board.registers.write(0x14, 1, 0x00)
            board.registers.write(0x14, 1, ABORT)
            board.turn()
            assert not is_running(board)
            assert board.istat & 0x03
        elif not resets:
            # One that reset the chip itself has nothing to say; every other one has.
            dma, scsi = causes_of(board)
            assert dma or scsi
            assert dma & ~DmaInterrupt.MASTER_PARITY_ERROR == dma
            assert scsi & ~(ScsiInterrupt.PARITY_ERROR | ScsiInterrupt.SELECTED) == scsi
        board.device.load_state(board.device.save_state())
        answers_again(board)


def answers_again(board: Board) -> None:
    """A software reset and a reset of the bus bring any chip back, and any target."""
    board.registers.write(0x14, 1, SOFTWARE_RESET)
    board.registers.write(0x14, 1, 0x00)
    board.registers.write(0x01, 1, 0x08)
    board.registers.write(0x01, 1, 0x00)
    while board.istat & 0x03:
        causes_of(board)
    board.device.function.config.write(0x04, 2, 0x7)
    board.script = Script(PROGRAM)
    board.command(INQUIRY).move(Phase.DATA_IN, 36, DATA + 0x100)
    board.complete(0xE4D)
    assert (board.run(), board.code) == (SIR, 0xE4D)
    assert board.read(DATA + 0x108, 8) == b"vfiouser"


# What goes on beside a program without end.


def jump_to_itself(script: Script) -> None:
    script.jump(script.base)


def moves_without_end(script: Script) -> None:
    script.memory_move(0x4000, script.base + 0x4000, script.base + 0x8000)
    script.jump(script.base)


def rewrites_itself(script: Script) -> None:
    # Each time round it adds one to the second word of an instruction of its own.
    script.load(0x34, 4, script.base + 0x2C)
    script.register(7, 6, 0x34, 1)
    script.store(0x34, 4, script.base + 0x2C)
    script.jump(script.base + 0x28)
    script.emit(0, 0)
    script.register(7, 0, 0x5C, 0)
    script.jump(script.base)


@pytest.mark.parametrize("endless", [jump_to_itself, moves_without_end, rewrites_itself])
def test_other_devices_of_the_process_answer_meanwhile(tmp_path: Path, endless: object) -> None:
    loop = EventLoop()
    chip = Lsi53c895a(targets={0: disk(4)})
    slices: list[bool] = []
    run_slice = chip.processor._run_slice

    def counted() -> None:
        slices.append(True)
        run_slice()

    chip.processor._run_slice = counted  # type: ignore[method-assign]
    running = threading.Event()
    most = 0
    with ExitStack() as stack:
        # The client is a thread of the same process, which has to wait for the interpreter beside.
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(0.0001)
        servers = [
            stack.enter_context(Server(device, tmp_path / name, loop=loop))
            for device, name in ((chip, "lsi"), (Edu(), "edu"))
        ]

        def serve() -> None:
            nonlocal most
            while not running.is_set():
                before = len(slices)
                loop.run_once(0.05)
                most = max(most, len(slices) - before)

        thread = threading.Thread(target=serve)
        thread.start()
        stack.callback(thread.join)
        stack.callback(running.set)
        lsi = stack.enter_context(PciFunction.connect(tmp_path / "lsi"))
        edu = stack.enter_context(PciFunction.connect(tmp_path / "edu"))
        lsi.set_master()
        memory = lsi.dma_alloc(0x1_0000)
        script = Script(memory.iova)
        endless(script)  # type: ignore[operator]
        memory[: len(script.code)] = script.code
        lsi.bar1.write32(0x2C, memory.iova)
        while not slices:
            assert lsi.bar1.read8(0x15) & 0x02, "the program runs"
        for value in range(200):
            edu.bar0.write32(0x04, value)
            assert edu.bar0.read32(0x04) == ~value & 0xFFFF_FFFF
        # Each turn of the loop, in which every client that waits gets its reply, has a slice or two of the program.
        assert 0 < most <= 2
        assert lsi.bar1.read8(0x15) & 0x02
        # Its own registers are answered for, too, and it can be stopped.
        lsi.bar1.write8(0x14, ABORT)
        assert lsi.bar1.read8(0x0C) & DmaInterrupt.ABORTED
        assert not lsi.bar1.read8(0x15) & 0x02
        assert len(servers) == 2
