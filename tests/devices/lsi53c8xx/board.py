"""A controller on a board: with memory, a time that passes when it is told to, and storage that may take its time."""

from __future__ import annotations

from typing import cast

from tests.devices.scsi.storage import Jobs, SlowStorage
from tests.support.fds import memory_file
from vfio_user.backends import Backend, MemoryBackend
from vfio_user.devices.lsi53c8xx.controller import Lsi53c8xx, Lsi53c895a
from vfio_user.devices.scsi import Disk, Target
from vfio_user.drivers.lsi53c8xx.assembler import Script
from vfio_user.hardware.lsi53c8xx.interrupts import Phase
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c895aRegisters
from vfio_user.protocol.constants import DmaMapFlags
from vfio_user.server.loop import EventLoop
from vfio_user.testing.in_process import SimulatedClock

MEMORY, MEMORY_SIZE = 0x10_0000, 0x10_0000
REGISTERS, RAM = 0xFE00_0000, 0xFE10_0000
PROGRAM = MEMORY
DATA = MEMORY + 0x8000
TABLE = MEMORY + 0x1000
DSP = 0x2C

INQUIRY = bytes.fromhex("120000002400")
TEST_UNIT_READY = bytes(6)


def disk(blocks: int = 128, *, storage: Jobs | None = None) -> Target:
    """A target with one disk, whose block n is full of bytes n; with jobs, each access waits for one of them."""
    backend: Backend = MemoryBackend(blocks * 512) if storage is None else SlowStorage(blocks * 512)
    for block in range(blocks):
        backend.write(block * 512, [bytes([block & 0xFF]) * 512])
    return Target({0: Disk(backend, workers=storage)})


class Board:
    """A controller whose driver has given it addresses, and made it bus master."""

    def __init__(self, device: Lsi53c8xx) -> None:
        self.device = device
        self.clock = SimulatedClock()
        device.attach(EventLoop(self.clock))
        fd = memory_file(bytes(MEMORY_SIZE))
        device.dma.map(MEMORY, MEMORY_SIZE, DmaMapFlags.READ | DmaMapFlags.WRITE, 0, fd)
        config = device.function.config
        config.write(0x14, 4, REGISTERS)
        if isinstance(device, Lsi53c895a):
            config.write(0x18, 4, RAM)
        config.write(0x04, 2, 0x7)
        # The later chip's, with all there is; tests of the other one keep to what it has.
        self.registers = cast("Lsi53c895aRegisters", device.registers)
        self.registers.scid = 0x47
        self.core = device._core
        self.script = Script(PROGRAM)

    def close(self) -> None:
        self.device.dma.clear()
        self.device.loop.close()
        self.device.close()

    def write(self, address: int, data: bytes) -> None:
        self.device.dma.write(address, data)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.device.dma.read(address, length))

    def turn(self, turns: int = 10) -> None:
        """Lets the device do what there is to do."""
        for _ in range(turns):
            self.device.loop.run_once()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    def run(self, *, at: int = PROGRAM, turns: int = 10) -> int:
        """Runs the program that was written; returns DSTAT, which clears it."""
        self.write(self.script.base, self.script.code)
        self.start(at)
        self.turn(turns)
        return self.dstat()

    def start(self, at: int = PROGRAM) -> None:
        self.registers.write(DSP, 4, at)

    def dstat(self) -> int:
        return self.registers.read(0x0C, 1) & 0x7F

    def sist(self) -> int:
        return self.registers.read(0x42, 2)

    @property
    def istat(self) -> int:
        return self.registers.read(0x14, 1)

    @property
    def code(self) -> int:
        """The code of the interrupt instruction that stopped the program."""
        return int(self.registers.dsps)

    def command(self, cdb: bytes, *, target: int = 0, messages: bytes = b"\xc0") -> Script:
        """Begins a program that selects a target and sends it a command; the data is at DATA + 0x100."""
        self.write(DATA, messages)
        self.write(DATA + 0x40, cdb)
        script = self.script
        script.select(target, otherwise=0)
        script.move(Phase.MESSAGE_OUT, len(messages), DATA)
        script.move(Phase.COMMAND, len(cdb), DATA + 0x40)
        return script

    def complete(self, code: int = 0xC0DE) -> None:
        """Ends it, and the program."""
        self.take_status()
        self.script.interrupt(code)

    def take_status(self) -> None:
        """Ends it: status to DATA + 0x80, the message after it."""
        script = self.script
        script.move(Phase.STATUS, 1, DATA + 0x80)
        script.move(Phase.MESSAGE_IN, 1, DATA + 0x81)
        script.register(7, 4, 0x02, 0x7F)
        script.clear(ack=True)
        script.wait_disconnect()

    def make_ready(self, target: int = 0) -> None:
        """Takes the unit attention every initiator is told first."""
        self.script = Script(PROGRAM)
        self.command(TEST_UNIT_READY, target=target)
        self.complete()
        assert self.run() == 0x04
        self.script = Script(PROGRAM)
