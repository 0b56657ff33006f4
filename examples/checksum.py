"""An accelerator that computes CRC-32 over the driver's memory: DMA, a 64-bit register, MSI-X, errors, an option.

vfio-user serve examples/checksum.py --set largest=65536
"""

import enum
import zlib

from vfio_user import RO, RW1C, W1P, DeviceError, Field, MemoryBar, MsiX, PciDevice, Register, RegisterBlock, ResetKind


class Failure(enum.IntEnum):
    """Why a job gave no checksum."""

    NONE = 0
    TOO_LONG = 1
    NO_MEMORY = 2


class ChecksumRegisters(RegisterBlock):
    """What the driver sees in BAR 0."""

    address = Register(0x00, width=64, doc="Where the data begin, as the device sees memory.")
    length = Register(0x08, doc="Bytes.")
    control = Register(0x0C, fields=[Field("start", 0, access=W1P)])
    status = Register(
        0x10,
        fields=[
            Field("busy", 0, access=RO),
            Field("done", 1, access=RW1C),
            Field("failure", (5, 4), access=RO, values=Failure),
        ],
    )
    result = Register(0x14, access=RO)


class Checksum(PciDevice):
    """Computes checksums of memory.

    Args:
        largest: bytes of the largest job.
    """

    vendor_id, device_id, class_code = 0x1234, 0xC32C, 0x12_00_00
    msix = MsiX(vectors=1)
    bar0 = MemoryBar(size=4096, registers=ChecksumRegisters)

    def __init__(self, *, largest: int = 1 << 20) -> None:
        super().__init__()
        self.largest = largest
        self.jobs = 0

    @bar0.on_write("control.start")
    def start(self, start: int) -> None:
        """Puts the work off, so that the driver's write is answered before it begins."""
        if start and not self.bar0.status.busy:
            self.bar0.status.busy = 1
            self.call_soon(self.compute)

    def compute(self) -> None:
        """Does the job. Memory the driver did not share ends it with a status; it does not end the device."""
        registers = self.bar0
        failure = Failure.NONE
        if registers.length > self.largest:
            failure = Failure.TOO_LONG
        else:
            try:
                registers.result = zlib.crc32(self.dma.read(registers.address, registers.length))
            except DeviceError:
                failure = Failure.NO_MEMORY
        self.jobs += 1
        registers.status.failure = failure
        registers.status.busy = 0
        registers.status.done = 1
        self.raise_interrupt()

    def on_reset(self, kind: ResetKind) -> None:
        """Registers go back to their reset values by themselves; this is for the rest."""
        self.jobs = 0
