"""``PciDevice``: a PCI function written as a class. What a device author subclasses.

The class attributes are the data sheet: ids, BARs with their registers, capabilities. The methods are the behaviour::

    class Edu(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x11E8, 0xFF0000
        msi = Msi(vectors=1)
        bar0 = MemoryBar(size=1 << 20, registers=EduRegisters)

        @bar0.on_write("liveness")
        def invert(self, value: int) -> None:
            self.bar0.liveness = ~value & 0xFFFF_FFFF

Everything PCI asks of a function is then there: configuration space, BAR sizing, capability chain, resets, power
states, interrupt routing, the bus master gate. ``docs/pci.md`` lists the declarations, ``docs/registers.md`` the
register language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from vfio_user.errors import InvalidAccess
from vfio_user.pci.capabilities.power_management import PowerState
from vfio_user.pci.events import FunctionEvents
from vfio_user.pci.function import PciAttributes, PciFunction, build_function
from vfio_user.pci.registers import ResetKind
from vfio_user.pci.saved_state import FunctionState
from vfio_user.protocol.constants import DeviceFlags, IrqIndex, RegionIndex
from vfio_user.server.device import Device

if TYPE_CHECKING:
    from vfio_user.server.migration import Migration
    from vfio_user.server.saved_state import DeviceState

__all__ = ["PciDevice"]


class PciDevice(Device, PciAttributes):
    """See the module; ``PciAttributes`` has the ids a class may set.

    A subclass with an ``__init__`` calls this one; its keyword arguments, annotated and with defaults, are the options
    of ``vfio-user serve --set``. Ids it sets on ``self`` before that call take effect.

    Attributes:
        linux_modules: the kernel modules that drive it in a Linux guest, each with the parameters it is to have after
            a space; ``vfio-user boot`` loads them.
        enforce_bus_master: DMA fails while the driver has not set Bus Master Enable, as on a real bus. Turn it off only
            for a client that never sets it.
        migratable: it can be migrated, and its state saved: everything that is not in a register or in memory behind a
            BAR stands in ``saved_attributes``.
        saved_attributes: names of attributes that are saved with the registers: plain values, as JSON has them, or
            bytes. ``on_loaded`` sees to the rest.
        chunks_limit: bytes of all chunks ``load_chunk`` may be given for one state: it bounds what a client can make us
            keep.
        state_version: raise it when the meaning of ``saved_attributes`` changes; states of other versions are refused.
        function: the PCI function: what software configured, as properties.

    Raises:
        DefinitionError: an id is missing or does not fit, or the ROM is broken; ``migratable`` with a region behind a
            BAR that cannot be saved.
        OSError: the ROM's file cannot be read.
    """

    flags = DeviceFlags.PCI | DeviceFlags.RESET
    linux_modules: ClassVar[tuple[str, ...]] = ()
    enforce_bus_master: ClassVar[bool] = True
    saved_attributes: ClassVar[tuple[str, ...]] = ()
    state_version: ClassVar[int] = 1
    chunks_limit: ClassVar[int] = 0

    def __init__(self) -> None:
        self.function: PciFunction = build_function(
            self,
            FunctionEvents(
                on_flr=lambda: self._was_reset(ResetKind.FLR),
                on_power_state=self._power_state_changed,
                on_command=self._command_changed,
                on_msi=lambda _enabled, _vectors: self._update_gates(),
                on_msi_mask=lambda vector, masked: self._set_mask(IrqIndex.MSI, vector, masked),
                on_msix=lambda _enabled, _masked: self._update_gates(),
                on_msix_mask=lambda vector, masked: self._set_mask(IrqIndex.MSIX, vector, masked),
                on_capability=self.on_capability,
            ),
        )
        function = self.function
        super().__init__(
            irqs={
                IrqIndex.INTX: 1 if function.interrupt_pin else 0,
                IrqIndex.MSI: function.msi_vectors,
                IrqIndex.MSIX: function.msix_vectors,
            }
        )
        self.set_region(RegionIndex.CONFIG, function.config)
        for index, region in function.regions.items():
            self.set_region(index, region)
        if function.rom is not None:
            self.set_region(RegionIndex.ROM, function.rom)
        self.interrupts.on_intx_level = function.set_interrupt_status
        if function.msix is not None:
            function.msix.pending.source = lambda: self.interrupts.pending(IrqIndex.MSIX)
        self._update_gates()
        if self.migratable:
            # What cannot be saved is better found now than in the middle of a migration.
            FunctionState(function)

    # What happens to it; override what matters. ``on_reset``, ``on_connect`` and ``on_disconnect`` are inherited.

    def on_power_state(self, old: PowerState, new: PowerState) -> None:
        """The driver changed the power state. (Coming back from D3hot with a reset, ``on_reset`` came first.)"""

    def on_command(self, old: int, new: int) -> None:
        """The driver changed the command register: decoding, bus mastering."""

    def on_capability(self, name: str, register: str) -> None:
        """The driver wrote a register of the capability declared as ``name``; one without a callback of its own."""

    def check_loaded(self, attributes: Mapping[str, Any]) -> None:
        """A state is about to be loaded: says, before anything has changed, whether its attributes fit this device.

        Args:
            attributes: the saved ones, by name; of the types this device's have, and otherwise as the client sent them.

        Raises:
            InvalidAccess: they do not; the state is refused.
        """

    def on_loaded(self) -> None:
        """A saved state was loaded, and all work put off before was dropped: put off what, by it, is under way.

        No hook ran for the registers. The device may be stopped still; work put off then waits.
        """

    def save_chunks(self) -> Iterable[bytes]:
        """Saves what is too large for ``saved_attributes``, or not kept here at all, in chunks of the device's own.

        Usually a generator. A client that rehearses (PRE_COPY) takes from it while the device runs, and what is left
        once it has stopped. To yield ``b""`` is to have nothing more at the moment: while it runs it is asked again
        later, and when it is stopped that was all. Called once for each time the device is saved.

        Returns:
            The chunks, each of less than 4 GiB; ``load_chunk`` gets them in this order.
        """
        return ()

    def load_chunk(self, chunk: memoryview) -> None:
        """Loads a chunk of a saved state. Registers and attributes have been put back; ``on_loaded`` comes later.

        Raises:
            Exception: it is none of this device's. Where a client migrates the device, its state is ERROR then.
        """
        raise InvalidAccess(f"saved state: a chunk of {len(chunk)} bytes, and {type(self).__name__} has no load_chunk")

    # Interrupts, whichever kind the driver chose.

    def raise_interrupt(self, vector: int = 0) -> None:
        """Interrupts the driver: by MSI-X or MSI if it turned one on, else by asserting INTx until ``lower_interrupt``.

        A driver that took fewer MSI vectors than the device has gets the last it took instead of those it did not.

        Raises:
            InvalidAccess: MSI-X is on and has no such vector: a bug of the device.
        """
        function = self.function
        if function.msix_enabled:
            self.interrupts.trigger(IrqIndex.MSIX, vector)
        elif function.msi_enabled:
            assert function.msi is not None
            self.interrupts.trigger(IrqIndex.MSI, min(vector, function.msi.vectors_enabled - 1))
        elif function.interrupt_pin:
            self.interrupts.assert_intx()

    def lower_interrupt(self) -> None:
        """The driver has acknowledged: deasserts INTx. Messages need no such thing, so with them nothing happens."""
        self.interrupts.deassert_intx()

    # Resets.

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the function: registers as ``kind`` demands, pending interrupts and rings, then ``on_reset``.

        DMA mappings and eventfds stay: they are the client's, and QEMU does not set them up again after DEVICE_RESET.
        """
        self.function.reset(kind)
        self._was_reset(kind)
        if self.migration is not None:
            self.migration.was_reset()

    def _was_reset(self, kind: ResetKind) -> None:
        """Does the rest of a reset, the registers having been reset."""
        self.interrupts.reset()
        self.ioeventfds.drain()
        self._update_gates()
        self.on_reset(kind)

    # Saving and loading.

    def prepare_migration(self) -> Migration:
        """See ``Device.prepare_migration``."""
        if not self.migratable or self.migration_protocol == "off":
            return super().prepare_migration()
        # A server listens sooner without these.
        if self.migration_protocol == "v1":
            from vfio_user.server.migration_region import RegionMigration

            migration = RegionMigration(self)
            self.set_region(RegionIndex.MIGRATION, migration.region)
            self.migration = migration
        else:
            from vfio_user.server.migration_features import FeatureMigration

            self.migration = FeatureMigration(self)
        return self.migration

    @cached_property
    def state(self) -> DeviceState:
        """What saves and loads it; made when it is first needed, after which no region may be placed any more.

        Raises:
            DefinitionError: a region behind a BAR cannot be saved.
        """
        from vfio_user.server.saved_state import DeviceState

        return DeviceState(self)

    def save_state(self) -> bytes:
        """Everything the device holds: registers, memory, pending interrupts, ``saved_attributes``.

        Raises:
            DefinitionError: an attribute has a value, or a BAR a region, that cannot be saved.
        """
        return b"".join(self.state.writer().finish())

    def load_state(self, state: bytes | bytearray) -> None:
        """Puts a saved state back, drops work put off before, and calls ``on_loaded``. Eventfds and mappings stay.

        Raises:
            InvalidAccess: it is no state of such a device. Nothing was changed.
        """
        self.check_state(state)()

    def check_state(self, state: bytes | bytearray) -> Callable[[], None]:
        """The first half of ``load_state``; returns the second."""
        put_back = self.state.check(state)

        def load() -> None:
            self.deferred.forget()
            put_back()
            self._update_gates()
            self.on_loaded()

        return load

    # What configuration space sets off.

    def _power_state_changed(self, old: int, new: int) -> None:
        pm = self.function.pm
        if old == PowerState.D3HOT and new == PowerState.D0 and pm is not None and not pm.control.no_soft_reset:
            self._was_reset(ResetKind.D3_HOT)
        self._update_gates()
        self.on_power_state(PowerState(old), PowerState(new))

    def _command_changed(self, old: int, new: int) -> None:
        self._update_gates()
        self.on_command(old, new)

    def _update_gates(self) -> None:
        """Lets through what software allows now: DMA by Bus Master Enable, INTx unless disabled or replaced by MSI."""
        self.dma.enabled = self.function.bus_master_enabled or not self.enforce_bus_master
        self.interrupts.intx_disabled = self.function.intx_disabled

    def _set_mask(self, index: IrqIndex, vector: int, masked: bool) -> None:
        if masked:
            self.interrupts.mask(index, vector)
        else:
            self.interrupts.unmask(index, vector)
