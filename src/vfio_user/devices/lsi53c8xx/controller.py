"""LSI 53C895A and 53C810, PCI to SCSI controllers. Linux drives both with ``sym53c8xx``.

The parts, each in its module: ``processor`` with ``instructions`` and ``block_moves`` runs SCRIPTS, ``scsi_core`` is
the bus with its targets, ``interrupt_unit`` and ``timers`` are what their names say, ``chip_memory`` is what an address
means. Here they are put together, and registers do what a driver writes them for.

Ref: "LSI53C895A PCI to Ultra2 SCSI Controller Technical Manual"; "SYM53C810A PCI-SCSI I/O Processor Data Manual".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vfio_user.devices.lsi53c8xx.chip_memory import ChipMemory
from vfio_user.devices.lsi53c8xx.interrupt_unit import InterruptUnit
from vfio_user.devices.lsi53c8xx.processor import ScriptsProcessor
from vfio_user.devices.lsi53c8xx.register_window import RegisterWindow
from vfio_user.devices.lsi53c8xx.scsi_core import ScsiCore
from vfio_user.devices.lsi53c8xx.timers import ChipTimers
from vfio_user.devices.lsi53c8xx.waiting import Waiting
from vfio_user.devices.scsi.target import ScsiBus, Target
from vfio_user.hardware.lsi53c8xx.interrupts import DmaInterrupt, Phase, ScsiInterrupt, Signal
from vfio_user.hardware.lsi53c8xx.registers import Lsi53c810Registers, Lsi53c895aRegisters
from vfio_user.pci import IoBar, MemoryBar, PowerManagement, ResetKind
from vfio_user.pci.registers import Hooks
from vfio_user.server.pci_device import PciDevice

if TYPE_CHECKING:
    from vfio_user.devices.lsi53c8xx.storage_threads import StorageThreads

__all__ = ["Lsi53c8xx", "Lsi53c810", "Lsi53c895a"]

_HOST_ID = 7
_hooks = Hooks()
_hooks_895a = Hooks()


class Lsi53c8xx(PciDevice):
    """What the chips of the family have in common.

    Args:
        targets: what is on the bus, by SCSI id; for devices made in Python.
        disk0: image of the disk with that SCSI id: a file, or what else ``vfio_user.backends.open_backend`` takes.
        disk1: see ``disk0``.
        disk2: see ``disk0``.
        disk3: see ``disk0``.
        disk4: see ``disk0``.
        disk5: see ``disk0``.
        disk6: see ``disk0``.
        cdrom0: image of the disc in the CD-ROM drive with that SCSI id.
        cdrom1: see ``cdrom0``.
        cdrom2: see ``cdrom0``.
        cdrom3: see ``cdrom0``.
        cdrom4: see ``cdrom0``.
        cdrom5: see ``cdrom0``.
        cdrom6: see ``cdrom0``.
        serial: what the serial numbers of those disks and drives begin with; the SCSI id follows. The same at both ends
            of a migration, and different for each controller of a guest.

    Attributes:
        bus: the targets.
        processor: runs SCRIPTS.

    Raises:
        ValueError: two are to have the same id, or an image's name means nothing.
        OSError: an image cannot be opened.

    Ownership: the images it opened are closed by ``close``.
    """

    vendor_id = 0x1000
    class_code = 0x010000
    # It would wait three seconds after it has reset the bus, for drives that have to spin up.
    linux_modules = ("sd_mod", "sr_mod", "sym53c8xx settle=0")
    migratable = True
    saved_attributes = ("chip_state",)
    _ram_bar: int | None = None

    def __init__(
        self,
        *,
        targets: Mapping[int, Target] | None = None,
        disk0: str | None = None,
        disk1: str | None = None,
        disk2: str | None = None,
        disk3: str | None = None,
        disk4: str | None = None,
        disk5: str | None = None,
        disk6: str | None = None,
        cdrom0: str | None = None,
        cdrom1: str | None = None,
        cdrom2: str | None = None,
        cdrom3: str | None = None,
        cdrom4: str | None = None,
        cdrom5: str | None = None,
        cdrom6: str | None = None,
        serial: str = "vfio-user-1",
    ) -> None:
        super().__init__()
        self._workers: StorageThreads | None = None
        self._images: list[Any] = []
        self._serial = serial
        disks = (disk0, disk1, disk2, disk3, disk4, disk5, disk6)
        cdroms = (cdrom0, cdrom1, cdrom2, cdrom3, cdrom4, cdrom5, cdrom6)
        self.bus = ScsiBus(self._make_targets(targets or {}, disks, cdroms))
        registers = self.registers
        ram = bytearray() if self._ram_bar is None else self._ram()
        header = self.function.header
        self._bars, self._first_bar = header.stored_values, type(header).layout.registers["bars"].slot
        self._located: list[int] = []
        self._memory = ChipMemory(self.dma, registers, ram)
        self._interrupt_unit = InterruptUnit(registers, self._set_line)
        self._core = ScsiCore(self.bus, changed=self._bus_changed, disconnected=self._bus_freed)
        self.processor = ScriptsProcessor(
            registers,
            self._memory,
            self._core,
            self._interrupt_unit,
            call_soon=self.call_soon,
            locate=self._locate,
        )
        self._timers = ChipTimers(
            registers, call_later=self.call_later, clock=self._now, expired=self.processor.interrupt_scsi
        )
        self._scid_slot, self._stime0_slot = self.processor.slot("scid"), self.processor.slot("stime0")
        self.processor.on_wait = self._processor_waits
        self.processor.on_select = self._nobody_there
        self._bind()

    @property
    def registers(self) -> Lsi53c810Registers:
        """The operating registers."""
        raise NotImplementedError

    def _ram(self) -> bytearray:
        return bytearray()

    def _bind(self) -> None:
        self.registers.bind(_hooks, self)

    def close(self) -> None:
        """Closes the images it opened, and ends the threads that read them. Idempotent."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        for image in self._images:
            image.close()
        self._images.clear()

    # ---- Targets ----

    def _make_targets(
        self, given: Mapping[int, Target], disks: tuple[str | None, ...], cdroms: tuple[str | None, ...]
    ) -> dict[int, Target]:
        targets = dict(given)
        for number, (disk, cdrom) in enumerate(zip(disks, cdroms, strict=True)):
            if disk is None and cdrom is None:
                continue
            if number in targets or (disk is not None and cdrom is not None):
                raise ValueError(f"SCSI id {number} is taken twice: give disk{number} or cdrom{number} another number")
            targets[number] = self._make_target(number, disk or cdrom or "", is_disk=disk is not None)
        if _HOST_ID in targets:
            raise ValueError(f"SCSI id {_HOST_ID} is the controller's own: targets are 0 to 6, and 8 to 15")
        return targets

    def _make_target(self, number: int, image: str, *, is_disk: bool) -> Target:
        from vfio_user.backends import open_backend
        from vfio_user.devices.scsi import CdRom, Disk

        backend = open_backend(image)
        self._images.append(backend)
        workers = None
        if backend.blocking:
            workers = self._shared_workers()
        # Who compares names to find several ways to one disk must not find the same disk twice here.
        serial = f"{self._serial}-{number}"
        unit = Disk if is_disk else CdRom
        return Target({0: unit(backend, workers=workers, serial=serial)})

    def _shared_workers(self) -> StorageThreads:
        if self._workers is None:
            from vfio_user.devices.lsi53c8xx.storage_threads import StorageThreads

            self._workers = StorageThreads(self)
        return self._workers

    # ---- What the parts tell each other ----

    def _set_line(self, level: bool) -> None:
        if level:
            self.raise_interrupt()
        else:
            self.lower_interrupt()

    def _locate(self) -> None:
        """The driver's system may have moved the BARs, at any time; so this is done before each slice."""
        bars = self._bars[self._first_bar : self._first_bar + 6]
        if bars != self._located:
            self._located = bars
            address = self.function.bar_address
            self._memory.locate(address(1), 0 if self._ram_bar is None else address(self._ram_bar))
        self._core.own_id = self.registers.stored_values[self._scid_slot] & 0x0F

    def _bus_changed(self) -> None:
        self.processor.went_on()

    def _bus_freed(self, expected: bool) -> None:
        self.processor.disconnected(expected)

    def _now(self) -> float:
        return self.loop.clock()

    def _processor_waits(self, what: Waiting) -> None:
        waits = what.is_handshake
        if not waits or self.registers.stored_values[self._stime0_slot] & 0xF0:
            self._timers.watch_handshake(waits=waits)

    def _nobody_there(self) -> None:
        # At once, rather than after the quarter of a second in STIME0; and, as SeaBIOS expects, even if that is 0.
        self.call_soon(self.processor.time_out_selection)

    # ---- Registers that do something ----

    @_hooks.on_write("dsp.high")
    def _dsp_written(self) -> None:
        if not self.registers.dmode.man:
            self.processor.start()

    @_hooks.on_write("dcntl")
    def _dcntl_written(self, new: int, old: int) -> None:
        if (new ^ old) & 0x10:
            self.processor.break_slice()
        self._interrupt_unit.update()
        if new & 0x04:
            self.processor.start()

    @_hooks.on_write("sien")
    @_hooks.on_write("dien")
    def _interrupts_enabled(self) -> None:
        self._interrupt_unit.update()

    @_hooks.on_write("istat0")
    def _istat0_written(self, new: int, old: int) -> None:
        if new & 0x40:
            if not old & 0x40:
                self._software_reset()
            return
        if new & 0x80 and not old & 0x80:
            self.processor.interrupt_dma(DmaInterrupt.ABORTED)
        if old & ~new & 0x04:
            self._interrupt_unit.update()
        if new & 0x20 and self.processor.waiting is Waiting.RESELECT:
            self.processor.wake()

    @_hooks.after_read("sist")
    def _sist_read(self) -> None:
        self._interrupt_unit.sist_was_read()

    @_hooks.after_read("dstat")
    def _dstat_read(self) -> None:
        self._interrupt_unit.dstat_was_read()

    @_hooks.on_read("ctest2")
    def _read_ctest2(self, stored: int) -> int:
        values, istat0 = self.registers.stored_values, self.processor.slot("istat0")
        if values[istat0] & 0x20:
            values[istat0] &= ~0x20
            return stored | 0x40
        return stored

    @_hooks.on_change("scntl1.rst")
    def _reset_line(self, asserted: int) -> None:
        self.registers.sstat0.rst = asserted
        if asserted:
            self._core.reset_bus()
            self.processor.show_bus_free()
            self.processor.is_selecting = False
            self.processor.interrupt_scsi(ScsiInterrupt.RESET)

    @_hooks.on_write("stime1.gen")
    def _general_timer_written(self) -> None:
        self._timers.set_general()

    @_hooks.on_read("sbcl")
    def _read_sbcl(self) -> int:
        core = self._core
        if core.nexus is None:
            return 0
        signals = int(core.latched) | Signal.BSY | (Signal.ATN if core.attention else 0)
        if core.acknowledge:
            return signals | Signal.ACK
        return signals | (Signal.REQ if core.phase is not None else 0)

    @_hooks.on_read("sstat1")
    def _read_sstat1(self) -> Phase:
        return self._core.latched

    @_hooks.on_read("dfifo")
    def _read_dfifo(self) -> int:
        # The FIFO is empty, which drivers find by comparing its counter with that of the bytes to go.
        return int(self.registers.dbc) & 0xFF

    @_hooks.on_read("ctest5")
    def _read_ctest5(self, stored: int) -> int:
        return stored & ~3 | int(self.registers.dbc) >> 8 & 3

    # ---- Resets ----

    def _software_reset(self) -> None:
        self.registers.reset(ResetKind.SOFTWARE)
        self.registers.istat0.srst = 1
        self._forget()

    def _forget(self) -> None:
        """The registers were reset; so is the rest."""
        self.processor.reset()
        self._core.free()
        self.processor.show_bus_free()
        self._timers.reset()
        self._interrupt_unit.reset()

    def on_reset(self, kind: ResetKind) -> None:
        """See ``Device.on_reset``."""
        self._forget()
        self._core.reset_bus()

    # ---- Being migrated ----

    def on_state(self, old: object, new: object) -> None:
        """See ``Device.on_state``: what storage is at work on is finished before the state is taken."""
        if self.deferred.is_held and self._workers is not None:
            self._workers.drain()

    @property
    def chip_state(self) -> dict[str, Any]:
        """Everything that is in no register: the bus with its commands, the processor, stacked interrupts, timers."""
        return {
            "core": self._core.save(),
            "processor": self.processor.save(),
            "interrupts": self._interrupt_unit.save(),
            "timers": self._timers.save(),
        }

    @chip_state.setter
    def chip_state(self, state: dict[str, Any]) -> None:
        self._core.load(state["core"])
        self.processor.load(state["processor"])
        self._interrupt_unit.load(state["interrupts"])
        self._saved_timers = state["timers"]

    _saved_timers: Mapping[str, Any] = {}

    def on_loaded(self) -> None:
        """See ``PciDevice.on_loaded``."""
        self._timers.load(dict(self._saved_timers))
        self._core.resume()
        self.processor.resume()


def _window(device: Lsi53c8xx) -> RegisterWindow:
    return RegisterWindow(256, lambda: device.registers)


class Lsi53c895a(Lsi53c8xx):
    """LSI 53C895A, a SCSI controller (Ultra2) with disks and CD-ROM drives."""

    device_id = 0x0012
    subsystem_vendor_id, subsystem_id = 0x1000, 0x1000
    pm = PowerManagement(d1=True, d2=True)
    bar0 = IoBar(size=256, region=_window)
    bar1 = MemoryBar(size=1024, registers=Lsi53c895aRegisters)
    bar2 = MemoryBar(size=8192)
    _ram_bar = 2

    @property
    def registers(self) -> Lsi53c895aRegisters:
        """See ``Lsi53c8xx.registers``."""
        return self.bar1

    def _ram(self) -> bytearray:
        return self.bar2.memory

    def _bind(self) -> None:
        super()._bind()
        self.registers.bind(_hooks_895a, self)

    @_hooks_895a.on_read("istat1")
    def _read_istat1(self, stored: int) -> int:
        return stored | 0x02 if self.processor.is_running else stored

    @_hooks_895a.on_write("istat1")
    def _istat1_written(self) -> None:
        self._interrupt_unit.update()


class Lsi53c810(Lsi53c8xx):
    """LSI 53C810, a narrow SCSI controller without SCRIPTS RAM, with disks and CD-ROM drives."""

    device_id = 0x0001
    bar0 = IoBar(size=256, region=_window)
    bar1 = MemoryBar(size=256, registers=Lsi53c810Registers)

    @property
    def registers(self) -> Lsi53c810Registers:
        """See ``Lsi53c8xx.registers``."""
        return self.bar1
