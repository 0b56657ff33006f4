"""A PCI function: what a device class declares, built for one device.

``declare_function`` checks the class; ``build_function`` makes, for one instance, the configuration space, the regions
behind the BARs and the capabilities, and puts the last two where the class's attributes are read: ``device.bar0`` and
``device.msix`` are this device's own. Server and tests work with the ``PciFunction`` that comes out.

Resets:

- ``PciFunction.reset(kind)`` resets the registers of configuration space, the MSI-X table, and the register blocks
  behind BARs. What the device keeps elsewhere is its own business; memory, shared or not, keeps its contents.
- A function level reset written by the guest, or a way back from D3hot that resets, calls it and then tells the device.
- A reset sends no events about what it changed: being told of the reset is enough.
- Sticky bits and hardware-initialised ones survive all of them.

Spec: PCI Express Base 6.6 (resets), 7.5.1 (header).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from vfio_user.errors import DefinitionError
from vfio_user.pci.bars import Bar
from vfio_user.pci.capabilities.base import AnyCapability
from vfio_user.pci.capabilities.express import PciExpress
from vfio_user.pci.capabilities.msi import Msi
from vfio_user.pci.capabilities.msix import MsiX
from vfio_user.pci.capabilities.power_management import PowerManagement, PowerState
from vfio_user.pci.config_registers import ConfigRegisters
from vfio_user.pci.config_space import CONVENTIONAL_SIZE, ConfigSpace
from vfio_user.pci.declaration import FunctionDeclaration, PlacedCapability, declare_function
from vfio_user.pci.doorbells import bind_doorbells
from vfio_user.pci.events import FunctionEvents
from vfio_user.pci.header import MULTIFUNCTION, Type0Header
from vfio_user.pci.overlay import OverlayRegion, SharedOverlay
from vfio_user.pci.registers import RO, Register, RegisterBlock, ResetKind
from vfio_user.pci.rom import OptionRom
from vfio_user.pci.shared_areas import SharedArea
from vfio_user.regions import Doorbell, Region

__all__ = ["ClasslessWarning", "PciAttributes", "PciFunction", "build_function"]

C = TypeVar("C")

_STATUS_CAPABILITIES = 1 << 4
_STATUS_INTERRUPT = 1 << 3

#: The status register's place in what the header holds.
_STATUS = Type0Header.layout.registers["status"].slot


class ClasslessWarning(UserWarning):
    """A device without a class code: Linux gives it no BARs where no firmware did."""


class PciAttributes:
    """The class attributes of a PCI device, checked when a subclass is made. A base for device classes.

    The ids may also be set on an instance before it is built, for devices that take them as options.

    Attributes:
        vendor_id: 16 bits. 0xFFFF is what software reads where there is no device.
        device_id: 16 bits.
        subsystem_vendor_id: 16 bits.
        subsystem_id: 16 bits.
        class_code: 24 bits: base class, subclass, programming interface; 0x010802 is NVMe. None warns and is 0: Linux
            gives a device of class 0 no BARs when it is hot-plugged, or where no firmware gave it any, as on aarch64.
            Say 0x000000 if that is what you mean, 0xFF0000 for a device that fits no class.
        revision: 8 bits.
        interrupt_pin: 0 for a device that never uses INTx, 1 (INTA) to 4 (INTD).
        multifunction: the device has functions other than this one.
        min_gnt: 8 bits, conventional PCI.
        max_lat: 8 bits, conventional PCI.
        rom: an option ROM: its bytes, the file that holds them, or an OptionRom; None for none.
        function_declaration: what was collected from the class.
    """

    vendor_id: int | None = None
    device_id: int | None = None
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0
    class_code: int | None = None
    revision: int = 0
    interrupt_pin: int = 1
    multifunction: bool = False
    min_gnt: int = 0
    max_lat: int = 0
    rom: bytes | Path | OptionRom | None = None
    function_declaration: ClassVar[FunctionDeclaration]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _header_constants(cls, cls.__name__, complete=False)
        if isinstance(cls.rom, bytes):
            OptionRom(cls.rom)
        cls.function_declaration = declare_function(cls)


class NullCapability(ConfigRegisters):
    """A header at 0x100 that only leads on: the extended chain begins there, whatever stands there.

    Spec: PCI Express Base 7.9.28.
    """

    header = Register(0x00, access=RO)

    def __init__(self, next_offset: int) -> None:
        super().__init__()
        self._next = next_offset
        self.configure()

    def configure(self) -> None:
        """See ``ConfigRegisters.configure``."""
        self.header = self._next << 20


class PciFunction:
    """One function: configuration space, BARs, ROM and capabilities. Made by ``build_function``.

    Attributes:
        declaration: what its class declared.
        events: the device's callbacks.
        header: the first 64 bytes of configuration space.
        config: configuration space, as the client reads and writes it.
        regions: the regions behind the BARs, by index, as large as the BAR says. BARs that are not there are not in it.
        rom: the option ROM, None without one.
        capabilities: by the name they were declared as.
        pm: power management, None without it; ``msi``, ``msix`` and ``express`` likewise.

    Threading: session thread.
    """

    def __init__(self, device: object, declaration: FunctionDeclaration, events: FunctionEvents) -> None:
        self.declaration = declaration
        self.events = events
        self.rom = _rom(getattr(device, "rom", None))
        constants = _header_constants(device, type(device).__name__, complete=True)
        chain = declaration.capabilities
        if chain:
            constants |= {"status": _STATUS_CAPABILITIES, "capabilities_pointer": chain[0].offset}
        masks, flags = _bar_registers(declaration)
        self.header = Type0Header(
            constants,
            bar_masks=masks,
            bar_flags=flags,
            rom_mask=0 if self.rom is None else (1 << 32) - self.rom.size | 1,
            express=declaration.config_size > CONVENTIONAL_SIZE,
            on_command=self._command_changed,
        )
        self.capabilities: dict[str, AnyCapability] = {}
        placed = chain + declaration.extended_capabilities
        parts: list[tuple[int, Region]] = [(0, self.header)]
        parts += [(item.offset, self._capability(item)) for item in placed]
        extended = declaration.extended_capabilities
        if extended and extended[0].offset != CONVENTIONAL_SIZE:
            parts.append((CONVENTIONAL_SIZE, NullCapability(extended[0].offset)))
        self.config = ConfigSpace(declaration.config_size, parts)
        self.pm: PowerManagement | None = self.find(PowerManagement)
        self.msi: Msi | None = self.find(Msi)
        self.msix: MsiX | None = self.find(MsiX)
        self.express: PciExpress | None = self.find(PciExpress)
        self._blocks: list[RegisterBlock] = []
        self.regions: dict[int, Region] = {}
        self._build_bars(device)
        device.__dict__.update(self.capabilities)

    def _capability(self, item: PlacedCapability) -> AnyCapability:
        capability = item.declaration.for_device(item.name, item.offset, item.next_offset, self)
        if isinstance(capability, MsiX):
            assert self.declaration.msix is not None
            capability.locate(self.declaration.msix.table, self.declaration.msix.pba)
        self.capabilities[item.name] = capability
        return capability

    def _build_bars(self, device: object) -> None:
        named: dict[str, object] = {}
        for index, bar in self.declaration.bars.items():
            region = bar.build(device)
            doorbells: list[Doorbell] = []
            if isinstance(region, RegisterBlock):
                self._blocks.append(region)
                region.bind(self.declaration.hooks.get(index, ()), device)
                doorbells = bind_doorbells(self.declaration.doorbells.get(index, ()), region, device)
            named[f"bar{index}"] = region
            filled = bar.fill(self._with_msix(index, region))
            if len(filled.mappable_areas) < len(region.mappable_areas):
                raise bar.error("MSI-X lies in an area of its region that can be mapped: say table_offset= elsewhere")
            areas = tuple(area for area in self.declaration.shared_areas.get(index, ()) if area.is_in(device))
            if areas:
                filled = self._with_areas(bar, filled, areas, named)
            if doorbells:
                filled.ioeventfds = doorbells
            self.regions[index] = filled
        device.__dict__.update(named)

    def _with_areas(
        self, bar: Bar[Any], region: Region, areas: tuple[SharedArea, ...], named: dict[str, object]
    ) -> Region:
        """Puts shared memory where the class declares it, on top of everything else."""
        if region.mappable_areas:
            raise areas[0].error("the region of its BAR has areas of its own that can be mapped: keep one of the two")
        for placement in region.placements if isinstance(region, RegisterBlock) else ():
            for area in areas:
                if area.overlaps(placement.offset, placement.offset + placement.region.size):
                    raise area.error(f"{placement} was placed in it, which accesses of mapped memory do not reach")
        try:
            overlay = SharedOverlay(region, [(area.offset, area.size) for area in areas])
        except (OSError, OverflowError) as exc:
            raise bar.error(f"no memory file of {bar.size:#x} bytes can be made, to share part of it: {exc}") from exc
        named.update({area.name: overlay.shared.views[area.offset] for area in areas})
        return overlay

    def _with_msix(self, index: int, region: Region) -> Region:
        """Puts the MSI-X table and the pending bits into their BAR."""
        where = self.declaration.msix
        if where is None:
            return region
        assert self.msix is not None
        parts: list[tuple[int, Region, str]] = []
        if where.table[0] == index:
            parts.append((where.table[1], self.msix.table, "msix_table"))
        if where.pba[0] == index:
            parts.append((where.pba[1], self.msix.pending, "msix_pending"))
        if not parts:
            return region
        bar = self.declaration.bars[index]
        if not isinstance(region, RegisterBlock) or region.size < bar.size:
            whole = bar.fill(region)
            return OverlayRegion(whole, [(offset, part) for offset, part, _ in parts])
        for offset, part, name in parts:
            region.place(offset, part, name)
        return region

    # -- what the capabilities ask ---------------------------------------------------------------------------------

    def find(self, kind: type[C]) -> C | None:
        """The first capability of that class, or None."""
        return next((item for item in self.capabilities.values() if isinstance(item, kind)), None)

    def reset(self, kind: ResetKind) -> None:
        """Resets configuration space, the MSI-X table and the register blocks behind the BARs; sends no events."""
        self.header.reset(kind)
        for capability in self.capabilities.values():
            capability.reset(kind)
        for block in self._blocks:
            block.reset(kind)

    def _command_changed(self, old: int, new: int) -> None:
        self.config.call_after_access(self.events.on_command, old, new)

    # -- what the server asks --------------------------------------------------------------------------------------

    @property
    def power_state(self) -> PowerState:
        """D0 for a function without power management."""
        return PowerState.D0 if self.pm is None else self.pm.state

    @property
    def bus_master_enabled(self) -> bool:
        """It may read and write memory, and send MSIs."""
        return bool(self.header.command.bus_master) and self.power_state is PowerState.D0

    @property
    def memory_enabled(self) -> bool:
        """It answers accesses to its memory BARs."""
        return bool(self.header.command.memory_space) and self.power_state is PowerState.D0

    @property
    def io_enabled(self) -> bool:
        """It answers accesses to its I/O BARs."""
        return bool(self.header.command.io_space) and self.power_state is PowerState.D0

    @property
    def interrupt_pin(self) -> int:
        """0 none, 1 INTA to 4 INTD."""
        return int(self.header.interrupt_pin)

    @property
    def intx_disabled(self) -> bool:
        """It must not assert INTx: software said so, or it has turned MSI or MSI-X on."""
        return bool(self.header.command.interrupt_disable) or self.msi_enabled or self.msix_enabled

    @property
    def msi_enabled(self) -> bool:
        """Software turned MSI on."""
        return self.msi is not None and self.msi.enabled

    @property
    def msi_vectors(self) -> int:
        """Vectors the MSI capability offers, 0 without one."""
        return 0 if self.msi is None else self.msi.vectors

    @property
    def msix_enabled(self) -> bool:
        """Software turned MSI-X on."""
        return self.msix is not None and self.msix.enabled

    @property
    def msix_vectors(self) -> int:
        """Vectors the MSI-X capability offers, 0 without one."""
        return 0 if self.msix is None else self.msix.vectors

    @property
    def rom_enabled(self) -> bool:
        """Software enabled the option ROM."""
        return bool(self.header.rom_bar & 1)

    def bar_address(self, index: int) -> int:
        """The base address software gave a BAR, 0 before it did.

        Raises:
            KeyError: there is no such BAR.
        """
        bar = self.declaration.bars[index]
        value = int(self.header.bars[index])
        if bar.width == 64:
            value |= int(self.header.bars[index + 1]) << 32
        # Not the mask of the declaration: a BAR that was made smaller has more bits of address.
        return value & ~(3 if bar.is_io else 15)

    def set_interrupt_status(self, asserted: bool) -> None:
        """Shows the level of INTx in the status register, which it does whether INTx is disabled or not."""
        # Twice for each interrupt of a driver without MSI: not by name, which takes longer.
        values = self.header.stored_values
        values[_STATUS] = values[_STATUS] & ~_STATUS_INTERRUPT | (_STATUS_INTERRUPT if asserted else 0)


def build_function(device: object, events: FunctionEvents | None = None) -> PciFunction:
    """Builds the function of one device, and puts its BARs and capabilities where its class declares them.

    Args:
        device: an instance of a class with PCI declarations; PciAttributes names the ids it may have.
        events: the device's callbacks.

    Raises:
        DefinitionError: an id is missing or out of range, or the ROM is broken.
        OSError: the ROM's file cannot be read.
    """
    declaration = getattr(type(device), "function_declaration", None) or declare_function(type(device))
    return PciFunction(device, declaration, events or FunctionEvents())


#: Attribute, bits, and the registers they go to, lowest byte first.
_IDS = {
    "vendor_id": 16,
    "device_id": 16,
    "subsystem_vendor_id": 16,
    "subsystem_id": 16,
    "revision": 8,
    "class_code": 24,
    "min_gnt": 8,
    "max_lat": 8,
}


def _header_constants(source: object, name: str, *, complete: bool) -> dict[str, int]:
    """The header's constants, from the attributes of a device or of its class.

    Args:
        source: where the attributes are.
        name: what errors call it.
        complete: nothing may be missing.
    """
    constants: dict[str, int] = {}
    for attribute, bits in _IDS.items():
        value = getattr(source, attribute, None)
        if value is None:
            if not complete:
                continue
            value = _missing(attribute, name)
        if not isinstance(value, int) or not 0 <= value < 1 << bits:
            shown = f"{value:#x}" if isinstance(value, int) else repr(value)
            raise DefinitionError(
                f"{name}.{attribute} = {shown}; it is a number of {bits} bits, 0 to {(1 << bits) - 1:#x}"
            )
        constants[attribute] = value
    if constants.get("vendor_id") == 0xFFFF:
        raise DefinitionError(f"{name}.vendor_id = 0xffff is what software reads where no device is: take another")
    pin = getattr(source, "interrupt_pin", 1)
    if pin not in range(5):
        raise DefinitionError(
            f"{name}.interrupt_pin = {pin}; it is 0 (none), or 1 (INTA) to 4 (INTD): QEMU refuses more"
        )
    class_code = constants.pop("class_code", 0)
    constants["programming_interface"] = class_code & 0xFF
    constants["subclass"] = class_code >> 8 & 0xFF
    constants["base_class"] = class_code >> 16
    constants["interrupt_pin"] = pin
    constants["header_type"] = MULTIFUNCTION if getattr(source, "multifunction", False) else 0
    return constants


def _missing(attribute: str, name: str) -> int:
    if attribute in ("vendor_id", "device_id"):
        raise DefinitionError(f"{name}.{attribute} is not set: write {attribute} = 0x1234 in the class")
    if attribute == "class_code":
        warnings.warn(
            f"{name}.class_code is not set: Linux gives a device of class 0 no BARs when it is hot-plugged, or where "
            "no firmware did (aarch64). Write class_code = 0xFF0000 (fits no class) or the real one; 0 to insist",
            ClasslessWarning,
            stacklevel=6,
        )
    return 0


def _rom(rom: bytes | Path | OptionRom | None) -> OptionRom | None:
    return rom if rom is None or isinstance(rom, OptionRom) else OptionRom(rom)


def _bar_registers(declaration: FunctionDeclaration) -> tuple[list[int], list[int]]:
    """Writable bits and constant bits of the six base address registers."""
    masks, flags = [0] * 6, [0] * 6
    for index, bar in declaration.bars.items():
        masks[index] = bar.mask & 0xFFFF_FFFF
        flags[index] = bar.flags
        if bar.width == 64:
            masks[index + 1] = bar.mask >> 32
    return masks, flags
