"""What a function holds, to be saved and put back: everything its class declares, and nothing else.

``FunctionState`` finds the parts that hold something: the header, every capability, every register block behind a BAR,
the MSI-X table, and memory. Registers are saved by name (see ``pci.registers.state``), memory is left where it is and
offered for copying, as it may be large. What a client maps of a BAR is memory like any other here.

Not here, because it is not the function's: pending interrupts and the level of INTx (``vfio_user.interrupts``), and
whatever device code keeps in Python.

Parts are named as a reader of the class would: ``header``, ``msix``, ``bar0``, ``bar2+0x1000`` for what lies there on
top of BAR 2, ``bar0.contents`` for what was placed in it by that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from vfio_user.errors import DefinitionError, InvalidAccess
from vfio_user.pci.function import PciFunction
from vfio_user.pci.msix_table import MsiXPendingBits, MsiXTable
from vfio_user.pci.overlay import OverlayRegion, ReadOnlyMemory, UnclaimedRegion
from vfio_user.pci.registers import RegisterBlock
from vfio_user.pci.registers.state import check_block
from vfio_user.regions import EmptyRegion, MemoryRegion, Region, SharedMemoryRegion

__all__ = ["FunctionState", "SavedRegion"]

#: Regions with nothing to save: what they show comes from elsewhere, or never changes.
_STATELESS = (MsiXPendingBits, UnclaimedRegion, ReadOnlyMemory, EmptyRegion)


@runtime_checkable
class SavedRegion(Protocol):
    """A region of a device's own that can be saved: one with these two methods."""

    def save_state(self) -> Any:
        """What it holds: plain data, fit for JSON."""

    def load_state(self, state: Any) -> None:
        """Puts a saved state back.

        Raises:
            InvalidAccess: it is not a state of this region. Nothing was changed.
        """


class FunctionState:
    """The parts of one function that hold something.

    Args:
        function: the function; its regions do not change any more.

    Attributes:
        memories: the memory of it, by name: for the one who saves to copy from, for the one who loads to copy into.

    Raises:
        DefinitionError: behind a BAR is a region that nobody knows how to save.

    Threading: session thread.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.memories: dict[str, bytearray | memoryview] = {}
        self._tables: dict[str, MsiXTable] = {}
        self._blocks: dict[str, RegisterBlock] = {}
        self._regions: dict[str, SavedRegion] = {}
        self._add("header", function.header)
        for name, capability in function.capabilities.items():
            self._add(name, capability)
        for index, region in function.regions.items():
            self._add(f"bar{index}", region)

    def _add(self, name: str, region: Region) -> None:
        if isinstance(region, _STATELESS):
            return
        if isinstance(region, OverlayRegion):
            self._add(name, region.base)
            for start, _, part in region.parts:
                self._add(f"{name}+{start:#x}", part)
        elif isinstance(region, RegisterBlock):
            self._blocks[name] = region
            for inner, placed in _placed(region):
                self._add(f"{name}.{inner}", placed)
        elif isinstance(region, MsiXTable):
            self._tables[name] = region
        elif isinstance(region, SavedRegion):
            self._regions[name] = region
        elif isinstance(region, MemoryRegion | SharedMemoryRegion):
            self.memories[name] = region.memory
        else:
            raise DefinitionError(
                f"{name} is a {type(region).__name__}, which cannot be saved: give it save_state() and "
                "load_state(state), or say migratable = False in the device's class"
            )

    def save(self) -> dict[str, Any]:
        """What all parts but memory hold: plain data, fit for JSON."""
        return {
            "ids": self._ids(),
            "bars": self._sizes(),
            "registers": {name: block.save_state() for name, block in self._blocks.items()},
            "tables": {name: table.read_bytes(0, table.size).hex() for name, table in self._tables.items()},
            "regions": {name: region.save_state() for name, region in self._regions.items()},
            "memories": {name: len(memory) for name, memory in self.memories.items()},
        }

    def check(self, state: object) -> Callable[[], None]:
        """Checks a saved state, without changing anything.

        Returns:
            A function that puts it back, memory excepted. No hook runs and no event is sent. Only a ``SavedRegion`` can
            make it fail; those come first.

        Raises:
            InvalidAccess: it is not a state of such a function; the text names the part and what is wrong with it.
        """
        if not isinstance(state, dict):
            raise InvalidAccess("saved state of a PCI function: it is no mapping of names to parts")
        for what, ours in (("ids", self._ids()), ("bars", self._sizes())):
            if state.get(what) != ours:
                raise InvalidAccess(f"saved state of a PCI function: its {what} are {state.get(what)}, not {ours}")
        blocks = _same_names(state, "registers", self._blocks)
        tables = _same_names(state, "tables", self._tables)
        regions = _same_names(state, "regions", self._regions)
        memories = _same_names(state, "memories", self.memories)
        for name, memory in self.memories.items():
            if memories[name] != len(memory):
                raise InvalidAccess(f"saved state of {name}: {memories[name]} bytes of memory, not {len(memory)}")
        contents = {name: _table_contents(name, table, tables[name]) for name, table in self._tables.items()}
        stores = {name: check_block(block, blocks[name]) for name, block in self._blocks.items()}

        def put_back() -> None:
            for name, region in self._regions.items():
                region.load_state(regions[name])
            for name, table in self._tables.items():
                table.restore(contents[name])
            # The header last: giving BARs their sizes takes their addresses.
            store_header = stores.pop("header")
            for store in stores.values():
                store()
            for capability in self._function.capabilities.values():
                capability.restored()
            store_header()

        return put_back

    def _ids(self) -> list[int]:
        header = self._function.header
        return [int(header.vendor_id), int(header.device_id)]

    def _sizes(self) -> dict[str, int]:
        return {f"bar{index}": region.size for index, region in self._function.regions.items()}


def _placed(block: RegisterBlock) -> Iterator[tuple[str, Region]]:
    """The regions that were placed in a block, or in one inside it, and are no blocks themselves."""
    for placement in block.placements:
        if placement.block is None:
            yield f"{block.path}{placement.name}", placement.region
    for inner in block.inner_blocks():
        yield from _placed(inner)


def _same_names(state: dict[str, Any], kind: str, ours: dict[str, Any]) -> dict[str, Any]:
    saved = state.get(kind)
    if not isinstance(saved, dict) or saved.keys() != ours.keys():
        names = sorted(saved) if isinstance(saved, dict) else saved
        raise InvalidAccess(f"saved state of a PCI function: its {kind} are {names}, not {sorted(ours)}")
    return saved


def _table_contents(name: str, table: MsiXTable, saved: object) -> bytes:
    try:
        contents = bytes.fromhex(saved) if isinstance(saved, str) else b""
    except ValueError:
        contents = b""
    if len(contents) != table.size:
        raise InvalidAccess(f"saved state of {name}: it is no MSI-X table of {table.vectors} vectors")
    return contents
