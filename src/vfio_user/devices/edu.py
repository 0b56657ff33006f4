"""QEMU's educational device, to learn driver writing on. Ref: "EDU device", QEMU's ``docs/specs/edu.rst``."""

import logging
import math

from vfio_user.errors import DeviceError
from vfio_user.hardware.edu import BUFFER_SIZE, DMA_INTERRUPT, FACTORIAL_INTERRUPT, EduRegisters, buffer_slice
from vfio_user.pci import MemoryBar, Msi
from vfio_user.server.pci_device import PciDevice

__all__ = ["Edu"]


class Edu(PciDevice):
    """QEMU's educational device.

    Args:
        dma_mask: the address bits its DMA engine has.
    """

    vendor_id, device_id, class_code, revision = 0x1234, 0x11E8, 0x00FF00, 0x10
    bar0, msi = MemoryBar(size=1 << 20, registers=EduRegisters), Msi(vectors=1)
    migratable, saved_attributes = True, ("buffer",)

    def __init__(self, *, dma_mask: int = (1 << 28) - 1) -> None:
        super().__init__()
        self.dma_mask, self.buffer = dma_mask, bytearray(BUFFER_SIZE)

    @bar0.on_write("liveness")
    def invert(self, value: int) -> None:
        self.bar0.liveness = ~value & 0xFFFF_FFFF

    @bar0.on_write("factorial")
    def start_factorial(self, n: int) -> None:
        if not self.bar0.status.computing:
            self.bar0.status.computing = 1
            self.call_soon(self.finish_factorial, n)

    def finish_factorial(self, n: int) -> None:
        self.bar0.factorial = math.factorial(min(n, 34)) & 0xFFFF_FFFF  # 34! has 32 factors of two: nothing is left
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
        command, source, destination = self.bar0.dma_command, self.bar0.dma_source, self.bar0.dma_destination
        count = self.bar0.dma_count
        try:
            if command.direction:
                self.dma.write(destination & self.dma_mask, self.buffer[buffer_slice(source, count)])
            else:
                self.buffer[buffer_slice(destination, count)] = self.dma.read(source & self.dma_mask, count)
        except DeviceError as exc:
            logging.getLogger(__name__).warning("edu: no DMA of %d bytes: %s", count, exc)
        command.start = 0
        if command.raise_interrupt:
            self.interrupt(DMA_INTERRUPT)

    def on_loaded(self) -> None:
        if self.bar0.status.computing:
            self.call_soon(self.finish_factorial, self.bar0.factorial)
        self.start_dma(self.bar0.dma_command.start)
