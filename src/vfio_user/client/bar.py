"""Base address registers from the driver's side: sized, placed, accessed.

Spec: PCI 3.0 6.2.5.1.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from vfio_user.client.config_space import ConfigSpace
from vfio_user.client.region import DeviceRegion
from vfio_user.client.register_view import view_registers
from vfio_user.pci.registers import RegisterBlock

if TYPE_CHECKING:
    from vfio_user.client.device import VfioUserClient

__all__ = ["Bar", "BarOverlay", "find_bars", "place_bars"]

log = logging.getLogger("vfio_user.client")

B = TypeVar("B", bound=RegisterBlock)

_FIRST = 0x10
_NUMBER = 6
_IO = 1 << 0
_64_BIT = 1 << 2
_PREFETCHABLE = 1 << 3

#: Where BARs are placed, by kind: above what any test takes for memory, below 4 GiB where there are 32 bits only.
_IO_BASE = 0x1000
_MEMORY_BASE = 0xE000_0000
_MEMORY_64_BASE = 0x80_0000_0000


class BarOverlay(Protocol):
    """Part of a BAR that the client answers for itself, as QEMU does for the MSI-X table."""

    start: int
    end: int

    def read(self, offset: int, size: int, /) -> int:
        """Reads at ``offset`` from ``start``."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Writes at ``offset`` from ``start``."""


class Bar(DeviceRegion):
    """One BAR: a region with an address.

    Attributes:
        address: where it was placed. The device does not care; a driver may want to see it.
        is_io: it is accessed by port instructions.
        is_64bit: its address has 64 bits, and takes two registers.
        prefetchable: reads have no side effects.
    """

    address: int = 0
    _overlay: BarOverlay | None = None

    def __init__(self, client: VfioUserClient, region: DeviceRegion, flags: int) -> None:
        super().__init__(client, region.info, region.areas)
        self.is_io = bool(flags & _IO)
        self.is_64bit = not self.is_io and bool(flags & _64_BIT)
        self.prefetchable = not self.is_io and bool(flags & _PREFETCHABLE)

    def registers(self, block: type[B], offset: int = 0) -> B:
        """Its registers by name.

        Args:
            block: what is there.
            offset: where it begins, bytes.
        """
        return view_registers(block, self, offset)

    def overlay(self, part: BarOverlay) -> None:
        """Answers for a part of it here from now on."""
        self._overlay = part

    def read(self, offset: int, size: int) -> int:
        """See ``DeviceRegion.read``."""
        part = self._overlay
        if part is not None and part.start <= offset < part.end:
            return part.read(offset - part.start, size)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int, *, posted: bool = False) -> None:
        """See ``DeviceRegion.write``."""
        part = self._overlay
        if part is not None and part.start <= offset < part.end:
            part.write(offset - part.start, size, value)
        else:
            super().write(offset, size, value, posted=posted)

    def __repr__(self) -> str:
        kind = "I/O" if self.is_io else f"memory, {64 if self.is_64bit else 32} bits"
        return f"<{self.name}: {self.size:#x} bytes at {self.address:#x}, {kind}>"


def find_bars(client: VfioUserClient, config: ConfigSpace) -> dict[int, Bar]:
    """Finds the BARs as firmware does: write all ones, see which bits stay, restore. Decoding should be off.

    A BAR the region's description has and sizing does not find, or the other way round, is logged; the description
    decides, as it does for QEMU.
    """
    bars: dict[int, Bar] = {}
    index = 0
    while index < _NUMBER:
        flags = config.read32(_FIRST + 4 * index)
        sized, wide = _size(config, index, flags)
        region = client.region(index)
        if region.size:
            bars[index] = Bar(client, region, flags)
        if sized != region.size:
            log.warning(
                "BAR%d decodes %#x bytes, and its region has %#x: a guest will see the first", index, sized, region.size
            )
        index += 2 if wide else 1
    return bars


def _size(config: ConfigSpace, index: int, flags: int) -> tuple[int, bool]:
    """Bytes a BAR decodes, and whether it takes two registers."""

    def probe(at: int) -> int:
        old = config.read32(at)
        config.write32(at, 0xFFFF_FFFF)
        value = config.read32(at)
        config.write32(at, old)
        return value

    at = _FIRST + 4 * index
    value = probe(at)
    if flags & _IO:
        mask = value & ~3
        # The upper half of an I/O BAR may read as 0: 64 KiB is all there is.
        return (-(mask | 0xFFFF_0000) & 0xFFFF_FFFF if mask else 0), False
    wide = bool(flags & _64_BIT) and index + 1 < _NUMBER
    mask, ones = value & ~0xF, 0xFFFF_FFFF
    if wide:
        mask, ones = mask | probe(at + 4) << 32, 0xFFFF_FFFF_FFFF_FFFF
    return (-mask & ones if mask else 0), wide


def place_bars(config: ConfigSpace, bars: dict[int, Bar]) -> None:
    """Gives every BAR an address, aligned to its size, the largest first so that nothing is wasted."""
    following = {"io": _IO_BASE, "32": _MEMORY_BASE, "64": _MEMORY_64_BASE}
    for index, bar in sorted(bars.items(), key=lambda item: (-item[1].size, item[0])):
        kind = "io" if bar.is_io else "64" if bar.is_64bit and bar.size >= 1 << 28 else "32"
        alignment = 1 << max(bar.size - 1, 0).bit_length()
        bar.address = -(-following[kind] // alignment) * alignment
        following[kind] = bar.address + bar.size
        write_address(config, index, bar)


def write_address(config: ConfigSpace, index: int, bar: Bar) -> None:
    """Writes a BAR's address into its register, or its two."""
    config.write32(_FIRST + 4 * index, bar.address & 0xFFFF_FFFF)
    if bar.is_64bit:
        config.write32(_FIRST + 4 * index + 4, bar.address >> 32)
