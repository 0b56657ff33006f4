"""``PciFunction``: a PCI function as a driver sees it.

    with PciFunction.connect("/tmp/edu.sock") as edu:
        edu.bar0.write32(0x04, 0x1234_5678)
        assert edu.bar0.read32(0x04) == 0xEDCB_A987

        edu.set_master()
        [interrupt] = edu.enable_interrupts()
        buffer = edu.dma_alloc(4096)
        ...
        interrupt.wait(timeout=1)

It does what firmware and an operating system do before a driver's ``probe`` runs: the BARs are found, sized, placed and
decoded. Bus mastering is off, as it is for a driver, until ``set_master``.

Spec: PCI 3.0; PCI Express Base 5.0. Names are those of Linux' driver interface where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from vfio_user.client.bar import Bar, find_bars, place_bars, write_address
from vfio_user.client.config_space import ConfigSpace, FoundCapability
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import PAGE_SIZE, DmaBuffer
from vfio_user.client.irq import Irq, IrqVector
from vfio_user.client.message_interrupts import Msi, MsiX
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.pci.capabilities import AnyCapability, PciExpress, PowerManagement, PowerState
from vfio_user.pci.capabilities import Msi as MsiRegisters
from vfio_user.pci.capabilities import MsiX as MsiXRegisters
from vfio_user.pci.registers import RegisterBlock
from vfio_user.protocol.constants import DeviceFlags, IrqIndex, RegionIndex
from vfio_user.transport.address import Address

__all__ = ["PciFunction"]

B = TypeVar("B", bound=RegisterBlock)
C = TypeVar("C", bound=AnyCapability)

_CONFIG_SIZES = (256, 4096)
_COMMAND = 0x04
_IO_SPACE, _MEMORY_SPACE, _BUS_MASTER, _INTERRUPT_DISABLE = 1 << 0, 1 << 1, 1 << 2, 1 << 10


class PciFunction:
    """See the module.

    Args:
        client: the device; closed with this.
        register_blocks: what lies behind each BAR, by index, for ``registers``.

    Attributes:
        client: for everything below PCI.
        config: configuration space.
        bars: those it has, by index. ``bar0`` to ``bar5`` are short for them.
        capabilities: both chains.
        msi: MSI, None if it has none.
        msix: MSI-X, None if it has none.
        intx: the interrupt pin; without vectors if it has none.

    Raises:
        RemoteProtocolError: the device is no PCI function, or not one that can be: its configuration space has another
            size than 256 or 4096 bytes, a capability chain goes in circles, an MSI-X table lies outside its BAR.

    Ownership: ``close`` it, or use it in a ``with`` statement.

    Threading: one thread at a time.
    """

    def __init__(
        self, client: VfioUserClient, *, register_blocks: Mapping[int, type[RegisterBlock]] | None = None
    ) -> None:
        self.client = client
        self._register_blocks = dict(register_blocks or {})
        info = client.info
        if not info.flags & DeviceFlags.PCI or info.num_regions <= RegionIndex.CONFIG:
            raise RemoteProtocolError(
                f"the device is no PCI function: its flags are {info.flags!r} and it has {info.num_regions} regions"
            )
        region = client.region(RegionIndex.CONFIG)
        if region.size not in _CONFIG_SIZES:
            raise RemoteProtocolError(f"a configuration space of {region.size:#x} bytes; it has 0x100 or 0x1000")
        self.config = ConfigSpace(region)
        command = self.config.read16(_COMMAND)
        self.config.write16(_COMMAND, command & ~(_IO_SPACE | _MEMORY_SPACE))
        self.bars = find_bars(client, self.config)
        place_bars(self.config, self.bars)
        self.enable()
        self.capabilities = self.config.capabilities()
        self.intx: Irq = client.irq(IrqIndex.INTX)
        msi, msix = self.config.find(MsiRegisters), self.config.find(MsiXRegisters)
        self.msi = None if msi is None else Msi(client.irq(IrqIndex.MSI), self.config, msi)
        self.msix: MsiX | None = None
        if msix is not None:
            self.msix = MsiX(client, client.irq(IrqIndex.MSIX), self.config, msix, self.bars)

    @classmethod
    def connect(
        cls,
        address: str | Path | Address,
        *,
        timeout: float = 5.0,
        register_blocks: Mapping[int, type[RegisterBlock]] | None = None,
        **options: Any,
    ) -> Self:
        """Connects to a server; ``options`` are those of ``VfioUserClient.connect``, which says what it raises."""
        client = VfioUserClient.connect(address, timeout=timeout, **options)
        try:
            return cls(client, register_blocks=register_blocks)
        except BaseException:
            client.close()
            raise

    # Who it is.

    @property
    def vendor_id(self) -> int:
        """Who made it."""
        return self.config.read16(0x00)

    @property
    def device_id(self) -> int:
        """Which of that vendor's devices it is."""
        return self.config.read16(0x02)

    @property
    def revision(self) -> int:
        """Its revision."""
        return self.config.read8(0x08)

    @property
    def class_code(self) -> int:
        """Base class, subclass and programming interface: 24 bits."""
        return self.config.read32(0x08) >> 8

    @property
    def subsystem_id(self) -> tuple[int, int]:
        """Subsystem vendor and device."""
        return self.config.read16(0x2C), self.config.read16(0x2E)

    # BARs, ROM, registers.

    def bar(self, index: int) -> Bar:
        """A BAR.

        Raises:
            StateError: the function does not have it.
        """
        bar = self.bars.get(index)
        if bar is None:
            has = ", ".join(bar.name for bar in self.bars.values()) or "none"
            raise StateError(f"the function has no BAR{index}; it has {has}")
        return bar

    @property
    def bar0(self) -> Bar:
        """BAR 0; see ``bar``."""
        return self.bar(0)

    @property
    def bar1(self) -> Bar:
        """BAR 1; see ``bar``."""
        return self.bar(1)

    @property
    def bar2(self) -> Bar:
        """BAR 2; see ``bar``."""
        return self.bar(2)

    @property
    def bar3(self) -> Bar:
        """BAR 3; see ``bar``."""
        return self.bar(3)

    @property
    def bar4(self) -> Bar:
        """BAR 4; see ``bar``."""
        return self.bar(4)

    @property
    def bar5(self) -> Bar:
        """BAR 5; see ``bar``."""
        return self.bar(5)

    @overload
    def registers(self, bar: int, block: type[B]) -> B: ...
    @overload
    def registers(self, bar: int) -> Any: ...
    def registers(self, bar: int, block: type[RegisterBlock] | None = None) -> Any:
        """The registers behind a BAR, by name.

        Args:
            bar: index of the BAR.
            block: what is there; None for what ``register_blocks`` says.

        Raises:
            StateError: nobody said what is there, or there is no such BAR.
        """
        found = block or self._register_blocks.get(bar)
        if found is None:
            raise StateError(f"nobody said what registers BAR{bar} has: give registers({bar}, ...) their class")
        return self.bar(bar).registers(found)

    def read_rom(self) -> bytes:
        """The expansion ROM; empty if there is none."""
        rom = self.client.region(RegionIndex.ROM)
        return rom.read_bytes(0, rom.size)

    # Capabilities.

    @overload
    def find_capability(self, kind: type[C]) -> C | None: ...
    @overload
    def find_capability(self, kind: int) -> FoundCapability | None: ...
    def find_capability(self, kind: type[AnyCapability] | int) -> AnyCapability | FoundCapability | None:
        """The first capability of a kind, None if there is none.

        Args:
            kind: a capability class of ``vfio_user.pci``, which gives its registers by name; or the id of a
                conventional capability, which gives its place.
        """
        return self.config.find(kind) if isinstance(kind, int) else self.config.view(kind)

    def find_extended_capability(self, cap_id: int) -> FoundCapability | None:
        """The first extended capability of that id, None if there is none."""
        return self.config.find(cap_id, extended=True)

    # What the command register switches.

    def enable(self) -> None:
        """Lets it answer accesses to its BARs. (Done when the function was found.)"""
        bits = {_IO_SPACE if bar.is_io else _MEMORY_SPACE for bar in self.bars.values()}
        self._command(sum(bits), on=True)

    def disable(self) -> None:
        """Stops it: no decoding, no bus mastering."""
        self._command(_IO_SPACE | _MEMORY_SPACE | _BUS_MASTER, on=False)

    def set_master(self) -> None:
        """Lets it read and write memory, and interrupt by message."""
        self.bus_master = True

    @property
    def bus_master(self) -> bool:
        """It may read and write memory, and interrupt by message."""
        return bool(self.config.read16(_COMMAND) & _BUS_MASTER)

    @bus_master.setter
    def bus_master(self, on: bool) -> None:
        self._command(_BUS_MASTER, on=on)

    def _command(self, bits: int, *, on: bool) -> None:
        command = self.config.read16(_COMMAND)
        self.config.write16(_COMMAND, command | bits if on else command & ~bits)

    # Interrupts.

    def enable_interrupts(self, count: int = 1, *, kinds: Sequence[IrqIndex] | None = None) -> Sequence[IrqVector]:
        """Enables vectors of the best kind there is: MSI-X, MSI, or the pin.

        Args:
            count: vectors; MSI rounds up to a power of two.
            kinds: which to consider, in this order.

        Raises:
            StateError: no kind has as many.
        """
        order = [IrqIndex.MSIX, IrqIndex.MSI, IrqIndex.INTX] if kinds is None else kinds
        for kind in order:
            if kind == IrqIndex.MSIX and self.msix is not None and self.msix.count >= count:
                self._command(_INTERRUPT_DISABLE, on=True)
                return self.msix.enable(count)
            rounded = 1 << max(count - 1, 0).bit_length()
            if kind == IrqIndex.MSI and self.msi is not None and self.msi.count >= rounded:
                self._command(_INTERRUPT_DISABLE, on=True)
                return self.msi.enable(rounded)
            if kind == IrqIndex.INTX and self.intx.count >= count == 1:
                return self.enable_intx()
        raise StateError(f"the function has no {count} vectors of {', '.join(kind.name for kind in order)}")

    def enable_intx(self) -> list[IrqVector]:
        """Enables the interrupt pin. It masks itself when it fires: end a handler with ``intx.unmask()``."""
        self._command(_INTERRUPT_DISABLE, on=False)
        return self.intx.enable(1)

    def disable_interrupts(self) -> None:
        """Disables whatever was enabled."""
        if self.msix is not None and len(self.msix):
            self.msix.disable()
        if self.msi is not None and len(self.msi):
            self.msi.disable()
        self.intx.disable()

    # Resets and power.

    def reset(self) -> None:
        """Resets the function as a bus reset does (DEVICE_RESET), and sets it up again as it was found."""
        self.client.reset()
        self._after_reset()

    @property
    def has_flr(self) -> bool:
        """It can do a function level reset."""
        express = self.find_capability(PciExpress)
        return express is not None and bool(express.device_capabilities.flr)

    def flr(self) -> None:
        """Resets the function by itself (FLR), and sets it up again as it was found.

        Raises:
            StateError: it cannot.
        """
        express = self.find_capability(PciExpress)
        if express is None or not express.device_capabilities.flr:
            raise StateError("the function says it has no function level reset; use reset()")
        express.device_control.initiate_flr = 1
        self._after_reset()

    def _after_reset(self) -> None:
        """Vectors are gone, addresses lost: what an operating system saves and restores."""
        if self.msix is not None:
            self.msix.irq.disable()
            self.msix.forget()
        if self.msi is not None:
            self.msi.irq.disable()
        self.intx.disable()
        for index, bar in self.bars.items():
            write_address(self.config, index, bar)
        self.enable()

    @property
    def power_state(self) -> PowerState:
        """The power state; D0 without the capability."""
        pm = self.find_capability(PowerManagement)
        return PowerState.D0 if pm is None else PowerState(pm.control.power_state)

    @power_state.setter
    def power_state(self, state: PowerState) -> None:
        pm = self.find_capability(PowerManagement)
        if pm is None:
            raise StateError(f"the function has no power management; it cannot go to {state.name}")
        old = PowerState(pm.control.power_state)
        loses = old == PowerState.D3HOT and state == PowerState.D0 and not pm.control.no_soft_reset
        pm.control.power_state = state
        if loses:
            self._after_reset()

    # Memory.

    def dma_alloc(self, size: int, *, align: int = PAGE_SIZE) -> DmaBuffer:
        """Memory the device can reach at ``.iova``; see ``VfioUserClient.dma_alloc``. ``set_master`` lets it."""
        return self.client.dma_alloc(size, align=align)

    # The end.

    def close(self) -> None:
        """Hangs up. Idempotent."""
        if self.msix is not None:
            self.msix.close()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PciFunction {self.vendor_id:04x}:{self.device_id:04x}>"
