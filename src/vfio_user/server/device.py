"""``Device``: what every device is, PCI or not - regions, interrupts, DMA, and a thread of its own to work on.

Subclass ``vfio_user.server.pci_device.PciDevice`` for a PCI device; subclass this one for anything else, or to shape
every region by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from vfio_user.errors import DefinitionError, InvalidAccess, StateError
from vfio_user.interrupts import Interrupts
from vfio_user.memory import Dma
from vfio_user.pci.registers import ResetKind
from vfio_user.protocol.constants import NUM_PCI_REGIONS, DeviceFlags, IrqIndex, RegionIndex
from vfio_user.protocol.device import DeviceInfo
from vfio_user.regions import EmptyRegion, Region
from vfio_user.server.deferred import DeferredWork
from vfio_user.server.doorbells import Doorbells
from vfio_user.server.loop import EventLoop, Timer, Watch

if TYPE_CHECKING:
    from vfio_user.protocol.migration import MigrationState
    from vfio_user.server.io_sockets import IoSockets
    from vfio_user.server.migration import Migration
    from vfio_user.server.quiesce import Quiesce

__all__ = ["Device", "MigrationProtocol"]

#: How a client can migrate a device: by the commands of today's specification, by those of 0.9.1 (a tenth region), or
#: not at all.
MigrationProtocol = Literal["v2", "v1", "off"]

_EMPTY = EmptyRegion()


class Device:
    """A device, as a client sees it: regions, interrupts, and what it can reach of the client's memory.

    Args:
        irqs: vectors by kind of interrupt; a kind not named has none.

    Attributes:
        flags: what DEVICE_GET_INFO says.
        num_regions: region indexes a client may ask about.
        num_irqs: interrupt indexes a client may ask about.
        interrupts: vectors, and the eventfds the client connected to them.
        dma: the client's memory.
        ioeventfds: the eventfds of those regions' doorbells; the server's to use.
        migratable: a client can migrate it. What is needed for that, ``PciDevice`` has.
        migration_protocol: how; see ``offer_migration``.
        migration: its migration; None until a client asks for one. The server's to use.
        quiesce_timeout: seconds ``on_quiesce`` may keep a client waiting, after which its command fails; None for ever.
            QEMU waits 5.
        is_quiet: ``on_quiesce`` was called, and ``on_unquiesce`` not yet. The server's to set.
        deferred: keeps back work put off while the device is stopped.

    A device outlives its clients. It keeps its state when one goes, and only loses what was the client's: mappings and
    eventfds. It needs no client, either: its regions can be read and written in the same process.

    Threading: every method, and every callback, on the thread of ``loop``; except ``call_soon``, ``call_later`` and
    ``watch``, which any thread may call.
    """

    flags: DeviceFlags = DeviceFlags.RESET
    num_regions: int = NUM_PCI_REGIONS
    num_irqs: int = len(IrqIndex)
    migratable: ClassVar[bool] = False
    migration_protocol: MigrationProtocol = "v2"
    quiesce_timeout: float | None = 4.0

    def __init__(self, *, irqs: dict[IrqIndex, int] | None = None) -> None:
        self.interrupts = Interrupts(irqs or {})
        self.dma = Dma()
        self.deferred = DeferredWork()
        self.is_quiet = False
        self._unquiesce_is_due = False
        self.migration: Migration | None = None
        self.ioeventfds = Doorbells(self.watch)
        self._ioregionfds: IoSockets | None = None
        self._regions: dict[int, Region] = {}
        self._loop: EventLoop | None = None
        self._is_connected = False

    # What the device is.

    def region(self, index: int) -> Region:
        """The region of that index; an empty one where the device has nothing."""
        return self._regions.get(index, _EMPTY)

    def set_region(self, index: int, region: Region) -> None:
        """Puts a region at an index. Before a client connects, since clients look once.

        Raises:
            StateError: a client is connected.
            ValueError: there is no such index.
        """
        if self._is_connected:
            raise StateError(f"region {index} cannot change while a client is connected: set it before")
        if not 0 <= index < self.num_regions:
            raise ValueError(f"region index {index} is not in [0, {self.num_regions})")
        self._regions[index] = region

    def info(self) -> DeviceInfo:
        """What DEVICE_GET_INFO answers."""
        return DeviceInfo(self.flags, self.num_regions, self.num_irqs)

    # What happens to it; override what matters.

    def on_reset(self, kind: ResetKind) -> None:
        """The device was reset: put back whatever is not in a register. DMA mappings and eventfds stay.

        So does work put off before: cancel the timers a reset is to stop.
        """

    def on_connect(self) -> None:
        """A client connected."""

    def on_disconnect(self) -> None:
        """The client is gone, and with it every mapping and eventfd. Stop what used them."""

    def on_irq_mask(self, index: IrqIndex, vectors: Sequence[int], masked: bool) -> None:
        """The client masked or unmasked vectors, by a message; what fires while masked waits, without the device.

        Drivers mask in configuration space, the MSI-X table or the device's registers; this is what clients do besides,
        to interrupts of any kind: nearly always INTx, to have it again once a guest has dealt with it.
        """

    def on_quiesce(self, quiesce: Quiesce) -> None:
        """The client is about to take memory away, to reset the device, or to stop it: begin nothing new.

        With something under way, say so by ``quiesce.wait("3 reads")``, and when it has ended, ``quiesce.done()``. The
        client's command waits for that, as does all it sends after it. See ``vfio_user.server.quiesce``.

        DMA by messages fails meanwhile (EDEADLK): the client waits.

        Raises:
            DeviceError: it cannot be; the client's command fails with that errno.
        """

    def on_unquiesce(self) -> None:
        """What ``on_quiesce`` was for is over: go on."""

    def on_state(self, old: MigrationState, new: MigrationState) -> None:
        """A client migrates the device, which went from one state to the next, and is in it now.

        Unless it is RUNNING or PRE_COPY, work put off waits, interrupts become pending, and DMA fails; who does work in
        threads of its own holds it back, too.

        Raises:
            Exception: the device cannot be used any more: its state is ERROR, until a reset.
        """

    def reset(self, kind: ResetKind = ResetKind.DEVICE) -> None:
        """Resets the device: pending interrupts and rings, then ``on_reset``. Spec: "VFIO_USER_DEVICE_RESET".

        Memory keeps its contents, whether or not a client maps it; a device for which that is wrong clears it there.
        """
        self.interrupts.reset()
        self.ioeventfds.drain()
        self.on_reset(kind)

    # Work put off.

    @property
    def loop(self) -> EventLoop:
        """The loop all work of this device runs on: its server's, or until it has one, its own."""
        if self._loop is None:
            self._loop = EventLoop()
        return self._loop

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        """Calls ``callback(*args)`` on the device's thread, after the message being answered has been. Any thread."""
        if self.migratable:
            self.loop.call_soon(self.deferred.wrap(callback, args))
        else:
            self.loop.call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        """Calls ``callback(*args)`` on the device's thread in ``delay`` seconds. Any thread."""
        if self.migratable:
            return self.loop.call_later(delay, self.deferred.wrap(callback, args))
        return self.loop.call_later(delay, callback, *args)

    def watch(self, fd: int, callback: Callable[[], None]) -> Watch:
        """Calls ``callback()`` on the device's thread whenever ``fd`` is readable. Any thread."""
        watch = self.loop.watch(fd, callback)
        return self.deferred.add(watch) if self.migratable else watch

    # Being migrated.

    def offer_migration(self, protocol: MigrationProtocol) -> None:
        """Says how clients may migrate the device from now on.

        Args:
            protocol: "v2", today's, which needs no offer; "v1", that of 0.9.1, which makes a tenth region (clients
                that insist on nine do not like it); or "off".

        Raises:
            StateError: a client is connected.
            DefinitionError: "v1" of a device that cannot be migrated, or has a region 9 of its own.
            ValueError: there is no such protocol.
        """
        if protocol not in get_args(MigrationProtocol):
            raise ValueError(f"migration {protocol!r} is none of {', '.join(get_args(MigrationProtocol))}")
        if self._is_connected:
            raise StateError("how a device is migrated cannot change while a client is connected: say it before")
        if protocol == self.migration_protocol:
            return
        name = type(self).__name__
        if protocol == "v1" and not self.migratable:
            raise DefinitionError(f"a {name} cannot be migrated: migratable is False in its class")
        if protocol == "v1" and type(self).num_regions != NUM_PCI_REGIONS:
            raise DefinitionError(
                f"a {name} has {self.num_regions} regions; the first protocol needs number 9 for itself"
            )
        self.migration = None
        self._regions.pop(RegionIndex.MIGRATION, None)
        self.migration_protocol = protocol
        self.num_regions = type(self).num_regions
        if protocol == "v1":
            self.num_regions += 1
            self.prepare_migration()

    def prepare_migration(self) -> Migration:
        """Makes ``migration``, a client having asked for it; the server calls this.

        Raises:
            InvalidAccess: the device cannot be migrated.
        """
        why = "migratable is False in its class" if not self.migratable else "its server does not offer it"
        raise InvalidAccess(f"a {type(self).__name__} cannot be migrated: {why}")

    def hold(self) -> None:
        """Stops the device: no deferred work, no interrupts, no DMA until ``release``. The server calls this."""
        self.deferred.hold()
        self.interrupts.held = True
        self.dma.held = True

    def release(self) -> None:
        """Lets the device run again, and do what has waited; the server calls this."""
        self.dma.held = False
        self.interrupts.held = False
        self.deferred.release(self.loop.call_soon)
        self.end_quiet()

    def end_quiet(self) -> None:
        """What the device was quiet for is over: it goes on soon, unless it is stopped. The server calls this."""
        if not self.is_quiet or self.deferred.is_held or self._unquiesce_is_due:
            return
        if type(self).on_unquiesce is Device.on_unquiesce:
            self.is_quiet = False  # nobody wants to know
        else:
            self._unquiesce_is_due = True
            self.loop.call_soon(self._unquiesce)

    def _unquiesce(self) -> None:
        self._unquiesce_is_due = False
        if self.is_quiet and not self.deferred.is_held:
            self.is_quiet = False
            self.on_unquiesce()

    # The server's side.

    @property
    def ioregionfds(self) -> IoSockets:
        """The sockets through which a client accesses parts of regions; the server's to use."""
        if self._ioregionfds is None:
            from vfio_user.server.io_sockets import (
                IoSockets,
            )  # few devices have any, and a server listens sooner without

            self._ioregionfds = IoSockets(self.watch)
        return self._ioregionfds

    def answer_sockets(self) -> None:
        """Carries out what has come by ``ioregionfds``, if there are any; the server calls this."""
        if self._ioregionfds is not None:
            self._ioregionfds.answer()

    @property
    def is_connected(self) -> bool:
        """A client is connected."""
        return self._is_connected

    def attach(self, loop: EventLoop) -> None:
        """Moves the device, and the work it has put off so far, to a server's loop."""
        if self._loop is not None and self._loop is not loop:
            loop.adopt(self._loop)
        self._loop = loop

    def detach(self) -> None:
        """The server's loop is to be closed: takes what is left to do to a loop of the device's own."""
        left, self._loop = self._loop, None
        if left is not None and left.has_work:
            self.loop.adopt(left)

    def connected(self) -> None:
        """A client connected; the server calls this."""
        self._is_connected = True
        self.on_connect()

    def disconnected(self) -> None:
        """The client is gone; the server calls this. Drops what was the client's.

        Spec: "Client disconnection": the server drops mappings and eventfds, and keeps the device's state.
        """
        self._is_connected = False
        try:
            if self.migration is not None:
                self.migration.abandon()
            self.on_disconnect()
        finally:
            self.ioeventfds.clear()
            if self._ioregionfds is not None:
                self._ioregionfds.clear()
            self.interrupts.clear()
            self.dma.clear()
            self.end_quiet()
