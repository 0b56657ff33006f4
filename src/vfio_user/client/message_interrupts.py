"""MSI and MSI-X from the driver's side.

No message is ever written to memory: a server signals an eventfd for each vector, and the client is what an interrupt
controller would be. The MSI-X table therefore lives here, as it lives in QEMU: accesses of the driver to that part of
the BAR never reach the device. A vector that is masked there gives the device another eventfd, which says that an
interrupt is pending; when it is unmasked, what was pending comes.

Spec: PCI 3.0 6.8; PCI Express Base 7.7.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfio_user.client.bar import Bar
from vfio_user.client.config_space import ConfigSpace, FoundCapability
from vfio_user.client.irq import Irq, IrqVector
from vfio_user.client.register_view import view_registers
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.pci.capabilities import Msi as MsiRegisters
from vfio_user.pci.capabilities import MsiX as MsiXRegisters

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["Msi", "MsiX"]

#: The address every message goes to: where x86 has its local interrupt controllers.
_MESSAGE_ADDRESS = 0xFEE0_0000

_ENTRY_SIZE = 16
_CONTROL = 12
_MASKED = 1


class _MessageInterrupts:
    """What both have in common: vectors, by number."""

    def __init__(self, irq: Irq) -> None:
        self.irq = irq

    @property
    def vectors(self) -> list[IrqVector]:
        """Those that are enabled."""
        return self.irq.vectors

    def __len__(self) -> int:
        return len(self.irq.vectors)

    def __iter__(self) -> Iterator[IrqVector]:
        return iter(self.irq.vectors)

    def __getitem__(self, vector: int) -> IrqVector:
        return self.irq[vector]


class Msi(_MessageInterrupts):
    """Message signalled interrupts.

    Attributes:
        irq: the vectors' eventfds.
        registers: the capability's registers by name.
        count: vectors the device asks for.
    """

    def __init__(self, irq: Irq, config: ConfigSpace, found: FoundCapability) -> None:
        super().__init__(irq)
        self.registers: MsiRegisters = view_registers(MsiRegisters, config, found.offset)
        self.count = 1 << min(self.registers.control.multiple_message_capable, 5)

    @property
    def enabled(self) -> bool:
        """Software turned MSI on."""
        return bool(self.registers.control.enable)

    def enable(self, count: int | None = None) -> list[IrqVector]:
        """Turns MSI on.

        Args:
            count: vectors, a power of two; None for all the device asks for.

        Raises:
            StateError: the device has not as many.
            ValueError: that is no power of two.
        """
        count = self.count if count is None else count
        if count < 1 or count & (count - 1):
            raise ValueError(f"{count} MSI vectors: MSI has a power of two")
        if count > self.count:
            raise StateError(f"the device has {self.count} MSI vectors; {count} cannot be enabled")
        vectors = self.irq.enable(count)
        registers = self.registers
        registers.address = _MESSAGE_ADDRESS
        if registers.control.address_64:
            registers.address_high = 0
            registers.data_64 = 0
        else:
            registers.data_32 = 0
        registers.control.multiple_message_enable = count.bit_length() - 1
        registers.control.enable = 1
        return vectors

    def disable(self) -> None:
        """Turns MSI off."""
        self.registers.control.enable = 0
        self.irq.disable()

    @property
    def has_masks(self) -> bool:
        """Single vectors can be masked."""
        return bool(self.registers.control.per_vector_masking)

    def mask(self, vector: int) -> None:
        """Masks a vector: it fires when it is unmasked.

        Raises:
            StateError: the function's vectors cannot be masked one by one.
            IndexError: there is no such vector.
        """
        self._masks = self._masks | self._bit(vector)

    def unmask(self, vector: int) -> None:
        """Unmasks a vector; it fires if it is pending. Raises as ``mask`` does."""
        self._masks = self._masks & ~self._bit(vector)

    def is_masked(self, vector: int) -> bool:
        """Software masked that vector. Raises as ``mask`` does."""
        return bool(self._masks & self._bit(vector))

    def is_pending(self, vector: int) -> bool:
        """It is masked, and has fired since, says the function. Raises as ``mask`` does."""
        registers = self.registers
        pending = registers.pending_64 if registers.control.address_64 else registers.pending_32
        return bool(pending & self._bit(vector))

    @property
    def _masks(self) -> int:
        registers = self.registers
        return int(registers.mask_64 if registers.control.address_64 else registers.mask_32)

    @_masks.setter
    def _masks(self, masks: int) -> None:
        if self.registers.control.address_64:
            self.registers.mask_64 = masks
        else:
            self.registers.mask_32 = masks

    def _bit(self, vector: int) -> int:
        if not self.has_masks:
            raise StateError("the function cannot mask single MSI vectors: its capability has no mask bits")
        if not 0 <= vector < self.count:
            raise IndexError(f"MSI vector {vector} of {self.count}: vectors count from 0")
        return 1 << vector


class MsiX(_MessageInterrupts):
    """MSI-X, with its table.

    Attributes:
        irq: the vectors' eventfds.
        registers: the capability's registers by name.
        count: vectors the device has.
        table: (BAR index, offset, bytes) of the table.
        pending_bits: (BAR index, offset, bytes) of the pending bits, which the device keeps.

    Raises:
        RemoteProtocolError: the table or the pending bits lie outside their BAR.
    """

    def __init__(
        self, client: VfioUserClient, irq: Irq, config: ConfigSpace, found: FoundCapability, bars: dict[int, Bar]
    ) -> None:
        super().__init__(irq)
        self._client = client
        self.registers: MsiXRegisters = view_registers(MsiXRegisters, config, found.offset)
        self.count = self.registers.control.table_size + 1
        table, pending = self.registers.table_location, self.registers.pba_location
        self.table = int(table.bar), table.offset_8 * 8, self.count * _ENTRY_SIZE
        self.pending_bits = int(pending.bar), pending.offset_8 * 8, -(-self.count // 64) * 8
        for what, (index, offset, size) in (("table", self.table), ("pending bits", self.pending_bits)):
            if index not in bars or offset + size > bars[index].size:
                raise RemoteProtocolError(
                    f"the MSI-X {what} of {size} bytes lie at {offset:#x} of BAR{index}: "
                    + (f"it has {bars[index].size:#x} bytes" if index in bars else "there is no such BAR")
                )
        self.start = self.table[1]
        self.end = self.start + self.table[2]
        self._entries = bytearray(self.table[2])
        #: Eventfds the device has for masked vectors, by vector.
        self._stand_ins: dict[int, int] = {}
        self._reset_table()
        bars[self.table[0]].overlay(self)

    @property
    def enabled(self) -> bool:
        """Software turned MSI-X on."""
        return bool(self.registers.control.enable)

    def enable(self, count: int | None = None) -> list[IrqVector]:
        """Turns MSI-X on, with a message in the table for each vector, and none of them masked.

        Args:
            count: vectors, from 0 on; None for all. The others stay masked.

        Raises:
            StateError: the device has not as many.
        """
        vectors = self.irq.enable(count)
        self._reset_table()
        for vector in range(len(vectors)):
            at = vector * _ENTRY_SIZE
            self._entries[at : at + 8] = _MESSAGE_ADDRESS.to_bytes(8, "little")
            self._entries[at + 8 : at + _CONTROL] = vector.to_bytes(4, "little")
            self._entries[at + _CONTROL] = 0
        control = self.registers.control
        control.function_mask = 0
        control.enable = 1
        return vectors

    def disable(self) -> None:
        """Turns MSI-X off."""
        self.registers.control.enable = 0
        self.irq.disable()
        self.forget()

    def forget(self) -> None:
        """The function was reset: nothing is enabled, and every vector is masked."""
        for fd in self._stand_ins.values():
            os.close(fd)
        self._stand_ins.clear()
        self._reset_table()

    def is_masked(self, vector: int) -> bool:
        """Software masked that vector in the table."""
        return bool(self._entries[self._entry(vector) + _CONTROL] & _MASKED)

    def is_pending(self, vector: int) -> bool:
        """It is masked, and has fired since."""
        fd = self._stand_ins.get(vector)
        if fd is None:
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, os.eventfd_read(fd))
            return True
        return False

    def mask(self, vector: int) -> None:
        """Masks a vector: it fires when it is unmasked."""
        self._entries[self._entry(vector) + _CONTROL] |= _MASKED
        if vector < len(self.irq) and vector not in self._stand_ins:
            fd = self._stand_ins[vector] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.irq.connect(vector, fd)

    def unmask(self, vector: int) -> None:
        """Unmasks a vector; it fires if it is pending."""
        self._entries[self._entry(vector) + _CONTROL] &= ~_MASKED
        fd = self._stand_ins.pop(vector, None)
        if fd is None:
            return
        try:
            self.irq.connect(vector)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(fd)
                os.eventfd_write(self.irq[vector].fd, 1)
        finally:
            os.close(fd)

    # The table, as a driver that writes it itself reaches it through the BAR.

    def read(self, offset: int, size: int) -> int:
        """Reads the table at ``offset`` from its start."""
        return int.from_bytes(self._entries[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes the table at ``offset`` from its start; mask bits take effect."""
        vectors = range(offset // _ENTRY_SIZE, min((offset + size - 1) // _ENTRY_SIZE + 1, self.count))
        before = {vector: self.is_masked(vector) for vector in vectors}
        end = min(offset + size, len(self._entries))
        self._entries[offset:end] = value.to_bytes(size, "little")[: end - offset]
        for vector, masked in before.items():
            if self.is_masked(vector) != masked:
                (self.unmask if masked else self.mask)(vector)

    def close(self) -> None:
        """Closes its eventfds. Idempotent."""
        self.forget()

    def _entry(self, vector: int) -> int:
        if not 0 <= vector < self.count:
            raise IndexError(f"MSI-X vector {vector} of {self.count}: vectors count from 0")
        return vector * _ENTRY_SIZE

    def _reset_table(self) -> None:
        self._entries[:] = (bytes(_CONTROL) + _MASKED.to_bytes(4, "little")) * self.count
