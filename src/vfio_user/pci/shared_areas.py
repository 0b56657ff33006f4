"""Areas of a BAR that a client maps, as declarations.

They are made by their BAR and stand in the class beside it; read through a device, one is that memory::

    class Card(PciDevice):
        bar0 = MemoryBar(size=16 * KiB, registers=CardRegisters)
        tails = bar0.shared_area(0x1000, 0x1000)


    Card.tails  # the SharedArea
    Card().tails  # a memoryview of 4096 bytes, which the client has before it, too

One with ``when=`` is there in some devices of the class, and in others what lies beneath it.

Spec: vfio-user "VFIO_USER_DEVICE_GET_REGION_INFO", the sparse mmap capability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, overload

from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci.registers._text import Location
from vfio_user.regions import PAGE_SIZE

if TYPE_CHECKING:
    from vfio_user.pci.bars import Bar

__all__ = ["MsiXStructure", "SharedArea", "check_shared_areas"]


class MsiXStructure(NamedTuple):
    """Part of a BAR that MSI-X takes."""

    what: str
    bar: int
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.what} [{self.offset:#x}, {self.offset + self.size:#x})"


class SharedArea:
    """Part of a BAR that is memory a client maps; see ``MemoryBar.shared_area``, which makes it.

    Attributes:
        bar: where it lies.
        offset: bytes into the BAR.
        size: bytes.
        when: says of a device whether it has it; None where every device does.
        name: the attribute it was declared as.
        location: the line it was declared in.

    Ownership: belongs to its class and is never written to after it.
    """

    def __init__(
        self, bar: Bar[Any], offset: int, size: int, location: Location, when: Callable[[Any], bool] | None = None
    ) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size
        self.when = when
        self.name = ""
        self.location = location
        if when is None:
            self._check_pages()

    def _check_pages(self) -> None:
        """Pages may be larger elsewhere: an area that is not in every device is checked where it is."""
        offset, size = self.offset, self.size
        if size <= 0 or offset < 0 or offset % PAGE_SIZE or size % PAGE_SIZE:
            start, end = max(offset, 0) // PAGE_SIZE * PAGE_SIZE, -(-(offset + max(size, 1)) // PAGE_SIZE) * PAGE_SIZE
            raise self.error(
                f"what is mapped are whole pages of {PAGE_SIZE:#x} bytes: "
                f"write shared_area({start:#x}, {max(end - start, PAGE_SIZE):#x})"
            )

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.size

    def is_in(self, device: object) -> bool:
        """A device, which is being made, has it.

        Raises:
            DefinitionError: it has, and it is no whole pages.
        """
        if self.when is None:
            return True
        if not self.when(device):
            return False
        self._check_pages()
        return True

    def __str__(self) -> str:
        name = f"{self.name} = " if self.name else ""
        return f"{name}shared_area({self.offset:#x}, {self.size:#x}) ({self.location})"

    def error(self, what: str) -> DefinitionError:
        """An error about this declaration, with the place it stands at."""
        return DefinitionError(f"{self}: {what}")

    def overlaps(self, start: int, end: int) -> bool:
        """Some of ``[start, end)`` lies in it."""
        return self.offset < end and start < self.end

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name = name

    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[object]) -> memoryview: ...
    def __get__(self, instance: object | None, owner: type[object]) -> Self | memoryview:
        # No __set__: the memory a device has in its __dict__ is found first.
        if instance is None:
            return self
        hint = "" if self.when is None else "; or its when= said that this one has none"
        raise StateError(
            f"{self.name} is not built yet in this {owner.__name__}: call super().__init__() before using it{hint}"
        )


def check_shared_areas(
    areas: Mapping[str, SharedArea], bars: Mapping[int, Bar[Any]], structures: Sequence[MsiXStructure]
) -> dict[int, tuple[SharedArea, ...]]:
    """Checks the areas of a class, and the BARs that are shared whole, against everything else that lies in them.

    Args:
        areas: by attribute.
        bars: by index.
        structures: what MSI-X takes.

    Returns:
        The areas of each BAR, ascending.

    Raises:
        DefinitionError: an area lies outside its BAR, or over registers, an MSI-X structure or another area; both are
            named.
    """
    by_name = {f"bar{index}": index for index in bars}
    found: dict[int, list[SharedArea]] = {}
    for name, area in areas.items():
        index = by_name.get(area.bar.name)
        if index is None:
            raise area.error(f"there is no {area.bar.name}: drop the area too, {name} = None")
        _check_shared_area(area, index, bars[index])
        for other in found.setdefault(index, []):
            if other.overlaps(area.offset, area.end):
                raise area.error(f"it overlaps {other}: move one, or make them one")
        found[index].append(area)
    for structure in structures:
        bar = bars[structure.bar]
        what = f"{structure} lies in it, and accesses of mapped memory do not reach that"
        way_out = "say table_offset= and pba_offset=, or leave bar= out to get a BAR for MSI-X alone"
        if bar.shared:
            raise bar.error(f"{what}: {way_out}")
        for area in found.get(structure.bar, ()):
            if area.overlaps(structure.offset, structure.offset + structure.size):
                raise area.error(f"{what}: move the area; or {way_out}")
    return {index: tuple(sorted(areas, key=lambda area: area.offset)) for index, areas in found.items()}


def _check_shared_area(area: SharedArea, index: int, bar: Bar[Any]) -> None:
    where = f"bar{index} ({bar.location})"
    if bar.is_io:
        raise area.error(f"{where} is an I/O BAR; only memory can be mapped")
    if bar.shared:
        raise area.error(f"all of {where} is shared already: drop the area, or shared=True")
    if area.end > bar.size:
        raise area.error(f"it leaves {where}, which has {bar.size:#x} bytes")
    if bar.registers is not None and area.when is None:
        for item, _ in bar.registers.layout.find(area.offset, area.size):
            raise area.error(
                f"register {item} of {where} lies in it, and accesses of mapped memory reach no register: move one, or "
                "say when= it is to lie over it"
            )
