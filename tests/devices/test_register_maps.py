"""Where a client finds the register blocks of a device."""

from __future__ import annotations

from vfio_user import Device, MemoryBar, PciDevice, Register, RegisterBlock
from vfio_user.devices.edu import Edu
from vfio_user.devices.register_maps import register_maps
from vfio_user.hardware.edu import EduRegisters
from vfio_user.pci.capabilities.msi import Msi


class Small(RegisterBlock):
    control = Register(0x0)


class Empty(RegisterBlock):
    size = 0x100


class Shared(PciDevice):
    """A block in a BAR that is larger, and one that was placed in another."""

    vendor_id, device_id, class_code = 0x1234, 1, 0xFF0000
    bar2 = MemoryBar(size=0x1000, region=lambda _: Small())
    bar4 = MemoryBar(size=0x100, registers=Empty)

    def __init__(self) -> None:
        super().__init__()
        self.bar4.place(0x40, Small(), "small")


def test_bars_and_on_demand_configuration_space() -> None:
    device = Edu()
    assert [(each.place, each.block, each.size) for each in register_maps(device)] == [("BAR0", EduRegisters, 1 << 20)]
    config = {each.place: each.block for each in register_maps(device, config=True) if each.region == 7}
    assert next(iter(config)) == "CONFIG 0x0 (header)"
    assert config[f"CONFIG {device.msi.offset:#x} (msi)"] is Msi


def test_blocks_of_composed_regions_and_placed_ones() -> None:
    found = [(each.place, each.offset, each.block) for each in register_maps(Shared())]
    assert found == [("BAR2", 0, Small), ("BAR4 0x40 (small)", 0x40, Small)]


def test_regions_of_any_device() -> None:
    class Wide(Device):
        num_regions = 12

    device = Wide()
    device.set_region(11, Small())
    assert [each.place for each in register_maps(device)] == ["region 11"]
