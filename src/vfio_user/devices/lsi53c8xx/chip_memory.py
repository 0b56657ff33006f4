"""What the SCRIPTS processor reaches by an address: the client's memory, the chip's own RAM and registers.

The chip finds its own RAM and registers behind the addresses in its base address registers, without going over the bus;
everything else is DMA.

Ref: LSI53C895A Technical Manual, 2.2.3 (SCRIPTS RAM), 2.1.2 (configuration space).
"""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.memory import Dma
from vfio_user.pci.registers import RegisterBlock

__all__ = ["ChipMemory"]

#: Bytes of registers that answer to memory accesses.
_REGISTERS_SIZE = 0x100

_NOWHERE = 1 << 64

_Buffer = bytes | bytearray | memoryview


class ChipMemory:
    """See the module.

    Args:
        dma: the client's memory.
        registers: the chip's.
        ram: the chip's RAM; empty where it has none.

    Attributes:
        ram: as given.
        ram_words: the same, as 32-bit words.
        ram_base: the address it answers to.
        registers_base: the address the registers answer to.
        dma: as given.
        code: for each word of the RAM, whether somebody is to hear of writes to it.
        code_written: told the first and the last of some words that were written, at least one of them such.
    """

    def __init__(self, dma: Dma, registers: RegisterBlock, ram: bytearray) -> None:
        self.ram = ram
        self.ram_words = memoryview(ram).cast("I")
        self.ram_base = _NOWHERE
        self.registers_base = _NOWHERE
        self.dma = dma
        self.code = bytearray(len(ram) // 4)
        self.code_written: Callable[[int, int], None] = _ignore
        self._registers = registers
        #: Addresses between these may be the chip's own.
        self.own_low, self.own_high = _NOWHERE, 0

    def locate(self, registers_base: int, ram_base: int) -> None:
        """Says what addresses the driver's system gave the BARs; 0 is none."""
        self.registers_base = registers_base or _NOWHERE
        self.ram_base = ram_base if ram_base and self.ram else _NOWHERE
        windows = (self.registers_base, _REGISTERS_SIZE), (self.ram_base, len(self.ram))
        own = [(base, size) for base, size in windows if base != _NOWHERE]
        self.own_low = min((base for base, _ in own), default=_NOWHERE)
        self.own_high = max((base + size for base, size in own), default=0)

    def read(self, address: int, length: int) -> _Buffer:
        """Reads bytes.

        Raises:
            DeviceError: there is nothing at that address.
        """
        offset = address - self.ram_base
        if 0 <= offset <= len(self.ram) - length:
            return self.ram[offset : offset + length]
        offset = address - self.registers_base
        if 0 <= offset <= _REGISTERS_SIZE - length:
            return self._registers.read_bytes(offset, length)
        return self.dma.read(address, length)

    def write(self, address: int, data: _Buffer) -> None:
        """Writes bytes.

        Raises:
            DeviceError: there is nothing at that address.
        """
        offset = address - self.ram_base
        if 0 <= offset <= len(self.ram) - len(data):
            self.ram[offset : offset + len(data)] = data
            first, end = offset >> 2, offset + len(data) + 3 >> 2
            if self.code.find(1, first, end) >= 0:
                self.code_written(first, end - 1)
            return
        offset = address - self.registers_base
        if 0 <= offset <= _REGISTERS_SIZE - len(data):
            self._registers.write_bytes(offset, data)
            return
        self.dma.write(address, data)

    def read_word(self, address: int) -> int:
        """Reads 32 bits at a multiple of 4; raises as ``read`` does."""
        offset = address - self.ram_base
        if 0 <= offset < len(self.ram):
            return self.ram_words[offset >> 2]
        offset = address - self.registers_base
        if 0 <= offset < _REGISTERS_SIZE:
            return self._registers.read(offset, 4)
        return self.dma.read_u32(address)

    def read_pair(self, address: int) -> tuple[int, int]:
        """Reads two words that follow each other; raises as ``read`` does."""
        if address & 4 or self.own_low - 8 < address < self.own_high:
            return self.read_word(address), self.read_word(address + 4)
        pair = self.dma.read_u64(address)
        return pair & 0xFFFF_FFFF, pair >> 32

    def write_word(self, address: int, value: int) -> None:
        """Writes 32 bits at a multiple of 4; raises as ``write`` does."""
        offset = address - self.ram_base
        if 0 <= offset < len(self.ram):
            self.ram_words[offset >> 2] = value
            if self.code[offset >> 2]:
                self.code_written(offset >> 2, offset >> 2)
            return
        offset = address - self.registers_base
        if 0 <= offset < _REGISTERS_SIZE:
            self._registers.write(offset, 4, value)
            return
        self.dma.write_u32(address, value)

    def is_own(self, address: int, length: int) -> bool:
        """Some of those bytes may be the chip's own RAM, or registers."""
        if address >= self.own_high or address + length <= self.own_low:
            return False
        for base, size in ((self.ram_base, len(self.ram)), (self.registers_base, _REGISTERS_SIZE)):
            if address < base + size and base < address + length:
                return True
        return False

    def view_nowait(self, address: int, length: int) -> memoryview | None:
        """The client's memory itself, to be read at once, if that takes nothing more; see ``Dma.view_nowait``."""
        return None if self.is_own(address, length) else self.dma.view_nowait(address, length)

    def view(self, address: int, length: int) -> memoryview | None:
        """The memory itself, to be read at once; None where it cannot be had without a copy.

        Raises:
            DeviceError: there is nothing at that address.
        """
        if self.own_low <= address < self.own_high:
            if 0 <= address - self.ram_base < len(self.ram) or 0 <= address - self.registers_base < _REGISTERS_SIZE:
                return None
        else:
            view = self.dma.view_nowait(address, length)
            if view is not None:
                return view
        segments = self.dma.sgl(address, length)
        return segments[0].memory if len(segments) == 1 else None


def _ignore(_first: int, _last: int) -> None:
    pass
