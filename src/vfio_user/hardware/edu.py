"""QEMU's educational device: its registers.

Ref: "EDU device", QEMU documentation, ``docs/specs/edu.rst``.
"""

from __future__ import annotations

from vfio_user.errors import InvalidAccess
from vfio_user.pci.registers import RO, WO, Field, Register, RegisterBlock

__all__ = ["BUFFER_ADDRESS", "BUFFER_SIZE", "DMA_INTERRUPT", "FACTORIAL_INTERRUPT", "EduRegisters", "buffer_slice"]

#: Where the device's own buffer lies, in the addresses its DMA engine understands; the driver cannot read it directly.
BUFFER_ADDRESS = 0x40000

#: Bytes of that buffer.
BUFFER_SIZE = 4096

#: The bit of ``interrupt_status`` a finished factorial sets, where that was asked for.
FACTORIAL_INTERRUPT = 0x001

#: The bit of ``interrupt_status`` a finished DMA sets, where that was asked for.
DMA_INTERRUPT = 0x100


class EduRegisters(RegisterBlock):
    """The registers in BAR0. Below 0x80 they are accessed by four bytes, from there on by four or eight."""

    access_sizes = (4, 8)

    identification = Register(0x00, access=RO, reset=0x0100_00ED, sizes={4}, doc="0xRRrr00ed: version RR.rr")
    liveness = Register(0x04, sizes={4}, doc="reads back the complement of what was written")
    factorial = Register(0x08, sizes={4}, doc="write n; reads n! once status.computing is clear")
    status = Register(
        0x20,
        sizes={4},
        fields=[
            Field("computing", 0, access=RO, doc="the factorial is not there yet"),
            Field("raise_interrupt", 7, doc="interrupt when it is"),
        ],
    )
    interrupt_status = Register(0x24, access=RO, sizes={4}, doc="what raised the interrupt")
    interrupt_raise = Register(0x60, access=WO, sizes={4}, doc="sets bits of interrupt_status, and interrupts")
    interrupt_acknowledge = Register(0x64, access=WO, sizes={4}, doc="clears bits of interrupt_status")
    dma_source = Register(0x80, width=64)
    dma_destination = Register(0x88, width=64)
    dma_count = Register(0x90, width=64, doc="bytes")
    dma_command = Register(
        0x98,
        width=64,
        fields=[
            Field("start", 0, doc="reads 1 until the transfer is done"),
            Field("direction", 1, values={0: "memory to buffer", 1: "buffer to memory"}),
            Field("raise_interrupt", 2, doc="interrupt when it is done"),
        ],
    )


def buffer_slice(address: int, count: int) -> slice:
    """Where ``[address, address + count)`` of the DMA engine's addresses lies in the buffer, counted from its start.

    Raises:
        InvalidAccess: not all of it lies there.
    """
    start = address - BUFFER_ADDRESS
    if not 0 <= start <= start + count <= BUFFER_SIZE:
        end = BUFFER_ADDRESS + BUFFER_SIZE
        raise InvalidAccess(
            f"[{address:#x}, {address + count:#x}) is not in the buffer at [{BUFFER_ADDRESS:#x}, {end:#x})"
        )
    return slice(start, start + count)
