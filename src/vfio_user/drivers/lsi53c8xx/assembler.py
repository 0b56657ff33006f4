"""A small assembler of SCRIPTS: each method appends an instruction, and returns the address it stands at."""

from __future__ import annotations

import struct

from vfio_user.hardware.lsi53c8xx.interrupts import Phase

__all__ = ["ALWAYS", "CARRY", "RELATIVE", "WAIT", "Script", "if_data", "if_phase"]

#: Conditions of transfer control, to be combined: bits of the first word.
ALWAYS = 0x0008_0000
WAIT = 0x0001_0000
CARRY = 0x0020_0000
RELATIVE = 0x0080_0000


def if_phase(phase: Phase, *, true: bool = True, wait: bool = False) -> int:
    """The bus is in that phase."""
    return int(phase) << 24 | 0x0002_0000 | (ALWAYS if true else 0) | (WAIT if wait else 0)


def if_data(data: int, *, mask: int = 0, true: bool = True) -> int:
    """SFBR is that, but for the bits of the mask."""
    return 0x0004_0000 | mask << 8 | data | (ALWAYS if true else 0)


class Script:
    """A program that is to stand at an address."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.words: list[int] = []

    @property
    def here(self) -> int:
        """The address of the next instruction."""
        return self.base + 4 * len(self.words)

    @property
    def code(self) -> bytes:
        return struct.pack(f"<{len(self.words)}I", *(word & 0xFFFF_FFFF for word in self.words))

    def emit(self, *words: int) -> int:
        at = self.here
        self.words += words
        return at

    # Block moves.

    def move(self, phase: Phase, count: int, address: int) -> int:
        return self.emit(0x0800_0000 | int(phase) << 24 | count, address)

    def move_indirect(self, phase: Phase, count: int, address: int) -> int:
        return self.emit(0x2800_0000 | int(phase) << 24 | count, address)

    def move_table(self, phase: Phase, offset: int) -> int:
        return self.emit(0x1800_0000 | int(phase) << 24, offset & 0xFF_FFFF)

    # The bus.

    def select(self, target: int, *, otherwise: int = 0, attention: bool = True) -> int:
        return self.emit(0x4000_0000 | attention << 24 | target << 16, otherwise)

    def select_table(self, offset: int, *, otherwise: int = 0, attention: bool = True) -> int:
        return self.emit(0x4200_0000 | attention << 24 | offset & 0xFF_FFFF, otherwise)

    def wait_disconnect(self) -> int:
        return self.emit(0x4800_0000, 0)

    def wait_reselect(self, *, otherwise: int = 0, relative: bool = False) -> int:
        return self.emit(0x5000_0000 | relative << 26, otherwise)

    def set(self, *, ack: bool = False, atn: bool = False, carry: bool = False, target: bool = False) -> int:
        return self.emit(0x5800_0000 | ack << 6 | atn << 3 | carry << 10 | target << 9, 0)

    def clear(self, *, ack: bool = False, atn: bool = False, carry: bool = False, target: bool = False) -> int:
        return self.emit(0x6000_0000 | ack << 6 | atn << 3 | carry << 10 | target << 9, 0)

    # Registers.

    def register(self, operation: int, operator: int, register: int, data: int = 0, *, use_sfbr: bool = False) -> int:
        word = 0x4000_0000 | operation << 27 | operator << 24 | (register & 0x7F) << 16 | register & 0x80
        return self.emit(word | use_sfbr << 23 | data << 8, 0)

    # Transfer control.

    def jump(self, address: int, condition: int = ALWAYS) -> int:
        return self.emit(0x8000_0000 | condition, address)

    def call(self, address: int, condition: int = ALWAYS) -> int:
        return self.emit(0x8800_0000 | condition, address)

    def give_back(self, condition: int = ALWAYS) -> int:
        return self.emit(0x9000_0000 | condition, 0)

    def interrupt(self, code: int, condition: int = ALWAYS) -> int:
        return self.emit(0x9800_0000 | condition, code)

    def interrupt_on_the_fly(self, condition: int = ALWAYS) -> int:
        return self.emit(0x9810_0000 | condition, 0)

    # Memory.

    def memory_move(self, count: int, source: int, destination: int) -> int:
        return self.emit(0xC000_0000 | count, source, destination)

    def load(self, register: int, count: int, address: int, *, relative: bool = False) -> int:
        return self.emit(0xE100_0000 | relative << 28 | register << 16 | count, address)

    def store(self, register: int, count: int, address: int, *, relative: bool = False) -> int:
        return self.emit(0xE000_0000 | relative << 28 | register << 16 | count, address)
