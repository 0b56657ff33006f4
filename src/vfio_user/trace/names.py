"""What to call a region, and the registers an access to it touches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vfio_user.protocol.constants import IrqIndex, RegionIndex
from vfio_user.regions import Region

if TYPE_CHECKING:
    from vfio_user.pci.registers import RegisterBlock
    from vfio_user.server.device import Device

__all__ = ["DeviceNames", "RegionNames", "irq_name", "region_name", "register_blocks"]


def region_name(index: int) -> str:
    """``BAR0``, ``CONFIG``; ``region 12`` where the number has no name."""
    try:
        return RegionIndex(index).name
    except ValueError:
        return f"region {index}"


def irq_name(index: int) -> str:
    """``MSIX``; ``interrupt 9`` where the number has no name."""
    try:
        return IrqIndex(index).name
    except ValueError:
        return f"interrupt {index}"


class RegionNames:
    """Names no registers: all there is to know when only the messages are there."""

    def registers(self, region: int, offset: int, size: int, *, writing: bool) -> str:
        """The registers an access touches, ``status, control``; "" when nobody knows."""
        return ""

    def values(self, region: int, offset: int, size: int, value: int, *, writing: bool) -> str:
        """The same with what they are read or written: ``status = 0x81 (computing=1)``; "" when nobody knows."""
        return ""


class DeviceNames(RegionNames):
    """Names the registers of a device, wherever its regions are register blocks or made of such.

    Args:
        device: the device; it is only looked at, never accessed.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def registers(self, region: int, offset: int, size: int, *, writing: bool) -> str:
        """See ``RegionNames.registers``."""
        from vfio_user.pci.registers import RegisterBlock
        from vfio_user.pci.registers.description import locate

        found, at = _innermost(self._device.region(region), offset, size)
        if not isinstance(found, RegisterBlock):
            return ""
        return ", ".join(each.name for each in locate(type(found), at, size, writing=writing))

    def values(self, region: int, offset: int, size: int, value: int, *, writing: bool) -> str:
        """See ``RegionNames.values``."""
        from vfio_user.pci.registers import RegisterBlock
        from vfio_user.pci.registers.description import locate

        found, at = _innermost(self._device.region(region), offset, size)
        if not isinstance(found, RegisterBlock):
            return ""
        return ", ".join(each.show(value) for each in locate(type(found), at, size, writing=writing))


def register_blocks(region: Region) -> Iterator[RegisterBlock]:
    """The register blocks a region is, or is made of."""
    from vfio_user.pci.registers import RegisterBlock

    if isinstance(region, RegisterBlock):
        yield region
    for _, part in _parts(region):
        yield from register_blocks(part)


def _innermost(region: Region, offset: int, size: int) -> tuple[Region, int]:
    """The part of a composed region that holds the whole access, and the offset in it."""
    for start, part in reversed(_parts(region)):
        if start <= offset and offset + size <= start + part.size:
            return _innermost(part, offset - start, size)
    return region, offset


def _parts(region: Region) -> list[tuple[int, Region]]:
    """What a composed region is made of: offset and region, those on top last."""
    from vfio_user.pci.config_space import ConfigSpace
    from vfio_user.pci.overlay import OverlayRegion
    from vfio_user.pci.registers import RegisterBlock

    if isinstance(region, ConfigSpace):
        return list(region.parts)
    if isinstance(region, OverlayRegion):
        return [(0, region.base), *((start, part) for start, _, part in region.parts)]
    if isinstance(region, RegisterBlock):
        return [(placed.offset, placed.region) for placed in region.placements]
    return []
