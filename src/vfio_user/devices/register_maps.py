"""The register blocks of a device, each with the place a client finds it at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vfio_user.pci.capabilities.base import AnyCapability
from vfio_user.pci.config_space import ConfigSpace
from vfio_user.pci.overlay import OverlayRegion
from vfio_user.pci.registers import RegisterBlock
from vfio_user.protocol.constants import RegionIndex
from vfio_user.regions import Region
from vfio_user.server.device import Device

__all__ = ["RegisterMap", "register_maps"]


@dataclass(frozen=True)
class RegisterMap:
    """One register block of a device.

    Attributes:
        region: the index of its region.
        offset: of its first byte in that region.
        name: what it is called there: a capability, or a part of a BAR; "" where it is the whole region.
        block: the class.
        size: bytes it takes, which can be more than its registers do.
    """

    region: int
    offset: int
    name: str
    block: type[RegisterBlock]
    size: int

    @property
    def place(self) -> str:
        """Where it stands, in words: ``BAR0``, or ``CONFIG 0x40 (msi)``."""
        try:
            region = RegionIndex(self.region).name
        except ValueError:
            region = f"region {self.region}"
        offset = f" {self.offset:#x}" if self.offset or self.name else ""
        return f"{region}{offset}{f' ({self.name})' if self.name else ''}"


def register_maps(device: Device, *, config: bool = False) -> Iterator[RegisterMap]:
    """The register blocks of a device, by region and offset.

    Args:
        device: it is only looked at.
        config: configuration space too.
    """
    for index in range(device.num_regions):
        if config or index != RegionIndex.CONFIG:
            for offset, name, block in sorted(_blocks(device.region(index), 0, ""), key=lambda found: found[0]):
                yield RegisterMap(index, offset, name, type(block), block.size)


def _blocks(region: Region, offset: int, name: str) -> Iterator[tuple[int, str, RegisterBlock]]:
    """The register blocks a region is, or is made of: where, what it is called, and which."""
    if isinstance(region, RegisterBlock):
        # A row of blocks inside a block belongs to its class; what was placed there at run time does not.
        if type(region).layout.declarations:
            yield offset, name, region
        for placed in region.placements:
            yield from _blocks(placed.region, offset + placed.offset, placed.name)
    elif isinstance(region, ConfigSpace):
        for start, part in region.parts:
            yield from _blocks(part, offset + start, part.name if isinstance(part, AnyCapability) else "header")
    elif isinstance(region, OverlayRegion):
        yield from _blocks(region.base, offset, name)
        for start, _, part in region.parts:
            yield from _blocks(part, offset + start, name)
