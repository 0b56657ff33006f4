"""QEMU's educational device: a factorial, a liveness check, an interrupt and a DMA engine to learn driver writing on.

Ref: "EDU device", QEMU documentation, ``docs/specs/edu.rst``.
"""

from __future__ import annotations

import logging
import math

from vfio_user.errors import DeviceError
from vfio_user.hardware.edu import BUFFER_ADDRESS, BUFFER_SIZE, DMA_INTERRUPT, FACTORIAL_INTERRUPT, EduRegisters
from vfio_user.pci import MemoryBar, Msi, ResetKind
from vfio_user.server.pci_device import PciDevice

__all__ = ["Edu"]

log = logging.getLogger(__name__)


class Edu(PciDevice):
    """QEMU's educational device.

    Args:
        dma_mask: address bits its DMA engine has.
    """

    vendor_id, device_id, class_code, revision = 0x1234, 0x11E8, 0x00FF00, 0x10
    msi = Msi(vectors=1)
    bar0 = MemoryBar(size=1 << 20, registers=EduRegisters)

    def __init__(self, *, dma_mask: int = (1 << 28) - 1) -> None:
        super().__init__()
        self.dma_mask = dma_mask
        self.buffer = bytearray(BUFFER_SIZE)

    @bar0.on_write("liveness")
    def invert(self, value: int) -> None:
        self.bar0.liveness = ~value & 0xFFFF_FFFF

    @bar0.before_write("factorial")
    def start_factorial(self, n: int, current: int) -> int:
        if not self.bar0.status.computing:
            self.bar0.status.computing = 1
            self.call_soon(self.finish_factorial, n)
        return current

    def finish_factorial(self, n: int) -> None:
        # 34! has 32 factors of two: from there on nothing of it is left in 32 bits.
        self.bar0.factorial = math.factorial(n) & 0xFFFF_FFFF if n < 34 else 0
        self.bar0.status.computing = 0
        if self.bar0.status.raise_interrupt:
            self.interrupt(FACTORIAL_INTERRUPT)

    @bar0.on_write("interrupt_raise")
    def interrupt(self, causes: int) -> None:
        self.bar0.interrupt_status |= causes
        if self.bar0.interrupt_status:
            self.raise_interrupt()

    @bar0.on_write("interrupt_acknowledge")
    def acknowledge(self, causes: int) -> None:
        self.bar0.interrupt_status &= ~causes
        if not self.bar0.interrupt_status:
            self.lower_interrupt()

    @bar0.on_write("dma_command.start")
    def start_dma(self, start: int) -> None:
        if start:
            self.call_soon(self.transfer)

    def transfer(self) -> None:
        registers = self.bar0
        to_memory = registers.dma_command.direction
        near, far = registers.dma_source, registers.dma_destination
        if not to_memory:
            near, far = far, near
        start, count = near - BUFFER_ADDRESS, int(registers.dma_count)
        try:
            if not 0 <= start <= start + count <= BUFFER_SIZE:
                raise ValueError(f"[{near:#x}, {near + count:#x}) is not in the buffer at {BUFFER_ADDRESS:#x}")
            if to_memory:
                self.dma.write(far & self.dma_mask, memoryview(self.buffer)[start : start + count])
            else:
                self.buffer[start : start + count] = self.dma.read(far & self.dma_mask, count)
        except (ValueError, DeviceError) as exc:
            log.warning("edu: no DMA of %d bytes: %s", count, exc)
        registers.dma_command.start = 0
        if registers.dma_command.raise_interrupt:
            self.interrupt(DMA_INTERRUPT)

    def on_reset(self, kind: ResetKind) -> None:
        self.buffer[:] = bytes(BUFFER_SIZE)
