from __future__ import annotations

from vfio_user.pci.config_space import ConfigSpace
from vfio_user.pci.overlay import OverlayRegion
from vfio_user.pci.registers import Field, Register, RegisterBlock
from vfio_user.regions import MemoryRegion
from vfio_user.server.device import Device
from vfio_user.trace.names import DeviceNames, RegionNames, irq_name, region_name


class Lamp(RegisterBlock):
    identity = Register(0x0)
    status = Register(0x4, fields=[Field("lit", 0), Field("hot", 7)])


def names(region: int = 0, *, of: object = None) -> DeviceNames:
    device = Device()
    device.set_region(region, of or Lamp())  # type: ignore[arg-type]  # regions of any kind
    return DeviceNames(device)


def test_regions_and_interrupts_by_number() -> None:
    assert (region_name(7), region_name(12)) == ("CONFIG", "region 12")
    assert (irq_name(2), irq_name(9)) == ("MSIX", "interrupt 9")


def test_without_a_device_nothing_has_a_name() -> None:
    assert RegionNames().registers(0, 0, 4, writing=False) == ""
    assert RegionNames().values(0, 0, 4, 1, writing=True) == ""


def test_a_register_block() -> None:
    assert names().registers(0, 4, 4, writing=True) == "status"
    assert names().registers(0, 0, 8, writing=True) == "identity, status"
    assert names().values(0, 4, 4, 0x81, writing=False) == "status = 0x81 (lit=1 hot=1)"
    assert names().registers(0, 0x40, 4, writing=False) == ""


def test_regions_that_are_no_blocks_or_not_there() -> None:
    assert names(of=MemoryRegion(16)).registers(0, 4, 4, writing=True) == ""
    assert names(of=MemoryRegion(16)).values(0, 4, 4, 0, writing=True) == ""
    assert names().registers(12, 4, 4, writing=True) == ""


def test_parts_of_a_config_space() -> None:
    found = names(7, of=ConfigSpace(256, [(0x40, Lamp())]))
    assert found.registers(7, 0x44, 4, writing=True) == "status"
    assert found.values(7, 0x40, 4, 5, writing=True) == "identity = 0x5"
    assert found.registers(7, 0x10, 4, writing=True) == ""


def test_parts_of_an_overlay_and_what_lies_under_them() -> None:
    found = names(of=OverlayRegion(Lamp(size=0x100), [(0x80, Lamp())]))
    assert found.registers(0, 0x84, 4, writing=True) == "status"
    assert found.registers(0, 0x0, 4, writing=True) == "identity"


def test_blocks_placed_at_run_time() -> None:
    outer = Lamp(size=0x100)
    outer.place(0x80, Lamp(), "second")
    assert names(of=outer).registers(0, 0x84, 4, writing=True) == "status"
