"""Configuration space from the driver's side: reads and writes, and the chains of capabilities in it.

Spec: PCI 3.0 6.1, 6.7; PCI Express Base 7.5, 7.6.3.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from vfio_user.client.region import DeviceRegion
from vfio_user.client.register_view import view_registers
from vfio_user.errors import RemoteProtocolError
from vfio_user.pci.capabilities import AnyCapability, ExtendedCapability
from vfio_user.pci.header import Type0Header

__all__ = ["ConfigSpace", "FoundCapability"]

C = TypeVar("C", bound=AnyCapability)

_STATUS = 0x06
_CAPABILITIES_LIST = 1 << 4
_CAPABILITIES_POINTER = 0x34
_HEADER_END = 0x40
_CONVENTIONAL_END = 0x100


class FoundCapability(NamedTuple):
    """A capability as the chain has it.

    Attributes:
        cap_id: what it is.
        offset: where in configuration space, bytes.
        version: of an extended one; 0 for a conventional one.
        extended: which chain it is in.
    """

    cap_id: int
    offset: int
    version: int = 0
    extended: bool = False


class ConfigSpace:
    """The configuration space of a function. Every access goes to the device.

    Attributes:
        region: its region.
        size: bytes: 256, or 4096 for PCI Express.
        header: the header's registers by name, ``config.header.command.bus_master``.
    """

    def __init__(self, region: DeviceRegion) -> None:
        self.region = region
        self.size = region.size
        self.header: Type0Header = view_registers(Type0Header, region)

    def read(self, offset: int, size: int) -> int:
        """Reads an integer of 1, 2, 4 or 8 bytes."""
        return self.region.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Writes an integer of 1, 2, 4 or 8 bytes, and waits until it is done: these writes are never posted."""
        self.region.write(offset, size, value)

    def read8(self, offset: int) -> int:
        """Reads one byte."""
        return self.region.read(offset, 1)

    def read16(self, offset: int) -> int:
        """Reads two bytes."""
        return self.region.read(offset, 2)

    def read32(self, offset: int) -> int:
        """Reads four bytes."""
        return self.region.read(offset, 4)

    def write8(self, offset: int, value: int) -> None:
        """Writes one byte."""
        self.region.write(offset, 1, value)

    def write16(self, offset: int, value: int) -> None:
        """Writes two bytes."""
        self.region.write(offset, 2, value)

    def write32(self, offset: int, value: int) -> None:
        """Writes four bytes."""
        self.region.write(offset, 4, value)

    def dump(self) -> bytes:
        """All of it, as it is now."""
        return self.region.read_bytes(0, self.size)

    def capabilities(self) -> list[FoundCapability]:
        """Both chains, in order.

        Raises:
            RemoteProtocolError: a chain leads out of its space, or in a circle.
        """
        dump = self.dump()
        return [*_conventional(dump), *_extended(dump)]

    def find(self, kind: type[AnyCapability] | int, *, extended: bool = False) -> FoundCapability | None:
        """The first capability of a kind, None if there is none.

        Args:
            kind: a capability class of ``vfio_user.pci``, or an id.
            extended: for an id: look in the chain of extended capabilities.
        """
        if isinstance(kind, int):
            wanted = kind, extended
        else:
            wanted = kind.cap_id, issubclass(kind, ExtendedCapability)
        matching = (found for found in self.capabilities() if (found.cap_id, found.extended) == wanted)
        return next(matching, None)

    def view(self, kind: type[C]) -> C | None:
        """The registers of the first capability of a class by name, None if there is none."""
        found = self.find(kind)
        return None if found is None else view_registers(kind, self, found.offset)


def _conventional(dump: bytes) -> list[FoundCapability]:
    found: list[FoundCapability] = []
    if not int.from_bytes(dump[_STATUS : _STATUS + 2], "little") & _CAPABILITIES_LIST:
        return found
    # "The bottom two bits are reserved ... software must mask them."
    at = dump[_CAPABILITIES_POINTER] & 0xFC
    seen: set[int] = set()
    while at:
        if at < _HEADER_END or at in seen:
            raise RemoteProtocolError(
                f"the chain of capabilities leads {'back' if at in seen else 'into the header'}, to {at:#x}"
            )
        seen.add(at)
        found.append(FoundCapability(dump[at], at))
        at = dump[at + 1] & 0xFC
    return found


def _extended(dump: bytes) -> list[FoundCapability]:
    found: list[FoundCapability] = []
    at = _CONVENTIONAL_END if len(dump) > _CONVENTIONAL_END else 0
    seen: set[int] = set()
    while at:
        if at < _CONVENTIONAL_END or at in seen or at + 4 > len(dump):
            where = "back" if at in seen else "out of its space"
            raise RemoteProtocolError(f"the chain of extended capabilities leads {where}, to {at:#x}")
        seen.add(at)
        header = int.from_bytes(dump[at : at + 4], "little")
        # An empty header at 0x100 says that there are none; all ones are what nobody answers.
        if header in (0, 0xFFFF_FFFF):
            break
        found.append(FoundCapability(header & 0xFFFF, at, header >> 16 & 0xF, extended=True))
        at = header >> 20 & 0xFFC
    return found
