"""Devices made for the guest tests: between them they have what the shipped ones do not."""

from __future__ import annotations

from vfio_user import (
    WO,
    DeviceError,
    IoBar,
    MemoryBar,
    MsiX,
    PciDevice,
    PciExpress,
    PowerManagement,
    Register,
    RegisterBlock,
    ResetKind,
)
from vfio_user.pci import PowerState

KiB = 1 << 10
MiB = 1 << 20


class ExerciserRegisters(RegisterBlock):
    """What programs/vfio_user_driver.c drives."""

    fire = Register(0x00, access=WO, doc="fires the vector written")
    source = Register(0x08, width=64)
    destination = Register(0x10, width=64)
    count = Register(0x18, doc="bytes; writing it copies them")
    status = Register(0x20, doc="0, or the errno the copy failed with")
    scratch = Register(0x40, doc="nothing but a place to write to")


class Exerciser(PciDevice):
    """PCI Express, FLR, D-states, 20 MSI-X vectors, and every kind of BAR."""

    vendor_id, device_id, class_code = 0x1234, 0xE5E5, 0xFF0000
    pm = PowerManagement(no_soft_reset=False)
    express = PciExpress()
    msix = MsiX(vectors=20)
    bar0 = MemoryBar(size=4 * KiB, registers=ExerciserRegisters)
    bar2 = MemoryBar(size=2 * MiB, width=64, prefetchable=True)
    bar5 = IoBar(size=32)

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []
        self.power_states: list[PowerState] = []

    @bar0.on_write("fire")
    def fire(self, vector: int) -> None:
        self.raise_interrupt(vector)

    @bar0.on_write("count")
    def copy(self, count: int) -> None:
        try:
            self.dma.write(int(self.bar0.destination), self.dma.read(int(self.bar0.source), count))
            self.bar0.status = 0
        except DeviceError as exc:
            self.bar0.status = exc.reply_errno

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)

    def on_power_state(self, old: PowerState, new: PowerState) -> None:
        self.power_states.append(new)


class Conventional(PciDevice):
    """Conventional PCI: 256 bytes of configuration space, nothing but a BAR that needs 64 bits."""

    vendor_id, device_id, class_code = 0x1234, 0xC0C0, 0xFF0000
    interrupt_pin = 0
    bar0 = MemoryBar(size=16 * MiB, width=64, prefetchable=True)
    bar4 = IoBar(size=4)
