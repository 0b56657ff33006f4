"""Devices that between them have everything a check may ask about."""

from __future__ import annotations

from vfio_user.devices.edu import Edu
from vfio_user.pci import IoBar, MemoryBar, Msi, MsiX, OptionRom, PciExpress, PowerManagement, Register, RegisterBlock
from vfio_user.protocol.constants import DeviceFlags, IrqIndex, RegionIndex
from vfio_user.regions import MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.pci_device import PciDevice

__all__ = ["Edu", "Plain", "Rich"]


class Registers(RegisterBlock):
    """Two doorbells."""

    kick = Register(0)
    stop = Register(4)


class Rich(PciDevice):
    """Has one of everything."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    rom = OptionRom(bytes(4096), check=False)
    migratable = True
    pm = PowerManagement()
    msi = Msi(vectors=4)
    msix = MsiX(vectors=20, bar=0)
    express = PciExpress()
    bar0 = MemoryBar(size=0x10000, registers=Registers)
    bar1 = IoBar(size=0x20)
    bar2 = MemoryBar(size=0x4000, shared=True)
    bar3 = MemoryBar(size=0x8000)
    bar3_head = bar3.shared_area(0x1000, 0x1000)
    bar3_tail = bar3.shared_area(0x4000, 0x2000)
    bar4 = MemoryBar(size=0x1000)
    bar5 = MemoryBar(size=0x1000)

    @bar0.doorbell("kick")
    def kicked(self) -> None:
        pass

    @bar0.doorbell("stop")
    def stopped(self) -> None:
        pass


class Plain(Device):
    """No PCI function in code, and no migration: regions shaped by hand."""

    flags = DeviceFlags.PCI | DeviceFlags.RESET

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.MSI: 1})
        self.set_region(RegionIndex.CONFIG, MemoryRegion(256))
