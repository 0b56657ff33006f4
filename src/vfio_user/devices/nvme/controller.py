"""``Nvme``: an NVM Express controller. See ``docs/nvme.md``.

The controller has the registers and the queues, and brings its parts together: its ``life``, the ``turns`` of work,
the ``doorbells``; and what commands do, ``admin`` with its families and ``nvm_commands``.

Ref: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0, NVMe over PCIe Transport Specification 1.0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vfio_user.backends.base import Backend
from vfio_user.backends.open import open_backend
from vfio_user.devices.nvme.admin import AdminCommands
from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.data import DataPointers
from vfio_user.devices.nvme.doorbells import DoorbellMode, Doorbells, make_doorbells
from vfio_user.devices.nvme.engines import make_engine
from vfio_user.devices.nvme.events import AsyncEvents
from vfio_user.devices.nvme.fault_file import load_faults
from vfio_user.devices.nvme.faults import Faults
from vfio_user.devices.nvme.features import Features
from vfio_user.devices.nvme.firmware import Firmware
from vfio_user.devices.nvme.health import Health
from vfio_user.devices.nvme.identify import Identify
from vfio_user.devices.nvme.io_queues import IoQueues
from vfio_user.devices.nvme.jobs import Jobs
from vfio_user.devices.nvme.life import MAX_PAGE_SHIFT, Life
from vfio_user.devices.nvme.log_pages import LogPages
from vfio_user.devices.nvme.management import Management
from vfio_user.devices.nvme.namespaces import LBA_SHIFTS, MAX_NAMESPACES, Namespaces
from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.devices.nvme.saved import check_controller, load_controller, save_controller
from vfio_user.devices.nvme.self_test import SelfTest
from vfio_user.devices.nvme.settings import Settings, settings_path
from vfio_user.devices.nvme.turns import Turns
from vfio_user.devices.nvme.vectors import Vectors
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.logs import AsyncEventType, ErrorEvent, LogPage
from vfio_user.hardware.nvme.registers import (
    DOORBELLS,
    DOORBELLS_OFFSET,
    SUBSYSTEM_RESET,
    NvmeRegisters,
    ShutdownNotification,
    completion_doorbell,
    submission_doorbell,
)
from vfio_user.pci import MemoryBar, MsiX, PciExpress, PowerManagement, ResetKind
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.quiesce import QuiesceReason

if TYPE_CHECKING:
    from vfio_user.protocol.migration import MigrationState
    from vfio_user.server.quiesce import Quiesce

__all__ = ["Engine", "Nvme"]

log = logging.getLogger(__name__)

#: CAP.TO and CRTO: what a reset may take while writes of the backend end; 20 s, in units of 500 ms.
_READY_TIMEOUT = 40


class Engine(Protocol):
    """What carries out the commands of I/O queues.

    An engine that does only some of them has another one to give the rest to, in order.
    """

    def take(self, queue: SubmissionQueue, entries: bytes) -> None:
        """Carries out a batch of commands: whole entries, copied from the queue, in order."""

    def execute(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """Carries out one."""


class Nvme(PciDevice):
    """An NVM Express I/O controller, the only one of its subsystem.

    Args:
        image: holds namespace 1, as ``open_backend`` has it; empty for no namespace.
        unallocated: holds the namespaces the host creates; empty for no such capacity.
        lba_size: bytes of a block of namespace 1 at first, 512 or 4096. The host may change it (Format NVM).
        serial: serial number, up to 20 ASCII characters.
        doorbells: trapped; shadow, where the host writes most of them to its own memory (Linux does when it can); or
            mapped, where it writes all of them to memory of the controller's that its VMM maps. ``docs/nvme.md`` says
            when each wins.
        threads: that do what may block.
        faults: a file of faults, see ``fault_file``; empty for none.
        settings: a file that keeps the namespaces the host has made, and what else ``settings`` says, when the process
            ends; empty for ``UNALLOCATED.settings.json`` if that is a file, ``none`` for nowhere.

    Attributes:
        max_queue_pairs: I/O queues of each kind; one more MSI-X vector is needed. Raise both in a subclass.
        max_queue_entries: of an I/O queue, up to 65536.
        max_transfer: bytes of one command's data, a power of two and at least 8192.
        model: model number.
        doorbell_page: the doorbells, where they are mapped.
        engine: carries out the commands of I/O queues.
        admin_engine: those of the admin queue.
        posted: interrupts the host, which was shown so many completions in a queue.
        faults: what is to go wrong on purpose.

    Raises:
        ValueError: an option says what cannot be, or the settings are another controller's.
        OSError: the image, or the settings, cannot be opened.

    Ownership: ``close`` it: that closes the images.
    """

    vendor_id, device_id, class_code, revision = 0x1234, 0x4E56, 0x010802, 0x01
    linux_modules = ("nvme",)
    bar0 = MemoryBar(size=0x4000, width=64, registers=NvmeRegisters)
    doorbell_page = bar0.shared_area(
        DOORBELLS_OFFSET, 4 * DOORBELLS, when=lambda device: device.doorbell_mode is DoorbellMode.MAPPED
    )
    pm = PowerManagement()
    express = PciExpress()
    msix = MsiX(vectors=65, bar=0, table_offset=0x2000, pba_offset=0x3000)
    migratable = True
    saved_attributes = ("nvme_state",)

    max_queue_pairs: ClassVar[int] = 64
    max_queue_entries: ClassVar[int] = 1024
    max_transfer: ClassVar[int] = 512 * 1024
    model: ClassVar[str] = "vfio-user NVMe controller"

    def __init__(
        self,
        *,
        image: str = "memory:64M",
        unallocated: str = "",
        lba_size: int = 512,
        serial: str = "vfio-user-1",
        doorbells: DoorbellMode = DoorbellMode.TRAPPED,
        threads: int = 4,
        faults: str = "",
        settings: str = "",
    ) -> None:
        if lba_size not in (512, 4096):
            raise ValueError(f"lba_size={lba_size}: blocks have 512 or 4096 bytes")
        if not serial.isascii() or not 1 <= len(serial) <= 20:
            raise ValueError(f"serial={serial!r}: it has 1 to 20 ASCII characters")
        injected = load_faults(faults) if faults else []
        self.doorbell_mode = doorbells
        super().__init__()
        self.serial = serial
        self.subnqn = f"nqn.2024-01.io.github.vfio-user:{serial}"
        self.vector_count = self.max_queue_pairs + 1
        self.namespaces = Namespaces(serial, open_backend(unallocated) if unallocated else None)
        if image:
            self.namespaces.add(open_backend(image), LBA_SHIFTS.index(lba_size.bit_length() - 1))
        self.submission_queues: dict[int, SubmissionQueue] = {}
        self.completion_queues: dict[int, CompletionQueue] = {}
        self.health = Health()
        self.data = DataPointers(self.dma)
        self.life = Life(self)
        self.turns = Turns(self)
        self.doorbells: Doorbells = make_doorbells(self, doorbells)
        self.jobs = Jobs(
            self.watch, self.turns.end, self.life.work_ended, self.life.became_still, self.turns.go_on, threads
        )
        self.vectors = Vectors(self)
        self.features = Features(self)
        self.firmware = Firmware(self, "1.0")
        self.self_test = SelfTest(self)
        try:
            self.settings = Settings(self, settings_path(settings, unallocated))
        except BaseException:
            self.namespaces.close()
            raise
        self.events = AsyncEvents(
            lambda: self.features.value(Feature.ASYNC_EVENT_CONFIGURATION),
            lambda command: self.turns.flush_soon(command.queue.completions),
        )
        self.queue_commands = IoQueues(self)
        self.admin = AdminCommands(
            self,
            Identify(self).handlers(),
            self.features.handlers(),
            LogPages(self).handlers(),
            self.queue_commands.handlers(),
            Management(self).handlers(),
            self.firmware.handlers(),
            self.self_test.handlers(),
        )
        self.engine: Engine = make_engine(self)
        self.admin_engine: Engine = self.admin
        self.posted: Callable[[CompletionQueue, int], None] = self.vectors.posted
        self.faults = Faults(self)
        for fault in injected:
            self.faults.add(fault)
        self.describe()

    # Registers.

    def describe(self) -> None:
        """What the registers say of the controller; resets take it away."""
        cap = self.bar0.cap
        cap.mqes, cap.cqr, cap.to = self.max_queue_entries - 1, 1, _READY_TIMEOUT
        # The NVM Command Set alone. Bit 6 is for controllers with others besides, and optional for this one. Others of
        # its kind leave it clear, and hosts take it to mean more: nvme-cli then asks for zoned namespaces' log.
        cap.nssrs, cap.css, cap.mpsmax, cap.crms = 1, 1 << 0, MAX_PAGE_SHIFT, 1
        self.bar0.crto.crwmt = _READY_TIMEOUT

    @bar0.on_change("cc")
    def _configure(self, new: int, old: int) -> None:
        if (new ^ old) & 1:
            if new & 1:
                self.life.enable()
            else:
                self.life.disable()
        shutdown = new >> 14 & 3
        if shutdown != old >> 14 & 3 and shutdown in (ShutdownNotification.NORMAL, ShutdownNotification.ABRUPT):
            self.life.shut_down()

    @bar0.on_write("nssr")
    def _reset_subsystem(self, value: int) -> None:
        if value == SUBSYSTEM_RESET:
            self.bar0.reset(ResetKind.DEVICE)
            self.life.reset()
            self.bar0.csts.nssro = 1

    @bar0.on_change("intms")
    def _mask_interrupts(self) -> None:
        self.vectors.update_pin()

    @bar0.on_write("doorbells")
    def _doorbell(self, index: int, value: int) -> None:
        self.doorbells.write(index, value)

    def bad_doorbell(self, event: ErrorEvent, qid: int) -> None:
        """The host has written to a doorbell what cannot be: it is told, if there are queues at all."""
        if not self.bar0.csts.rdy or self.bar0.csts.cfs:
            return
        self.health.add_error(sqid=qid, cid=0xFFFF, parameter_error_location=0xFFFF)
        self.events.post(AsyncEventType.ERROR, event, LogPage.ERROR_INFORMATION)

    # Queues.

    @property
    def has_io_queues(self) -> bool:
        """The host has created I/O queues."""
        return len(self.completion_queues) > 1

    def add_queue(self, queue: SubmissionQueue | CompletionQueue) -> None:
        """The host has made a queue."""
        if isinstance(queue, SubmissionQueue):
            self.doorbells.create(submission_doorbell(queue.qid))
            self.submission_queues[queue.qid] = queue
        else:
            self.doorbells.create(completion_doorbell(queue.qid))
            self.completion_queues[queue.qid] = queue

    def flush_soon(self, queue: CompletionQueue) -> None:
        """The host is to be shown what is ready in a completion queue, and interrupted."""
        self.turns.flush_soon(queue)

    def fail(self, queue: SubmissionQueue, entry: SubmissionEntry, failure: CommandFailed) -> None:
        """A command ends with an error, which the error log remembers."""
        self.turns.fail(queue, entry, failure)

    # Life.

    def feature_changed(self, feature: Feature) -> None:
        """The host has set a feature."""
        if feature == Feature.KEEP_ALIVE_TIMER:
            self.admin.restart_keep_alive()

    def on_reset(self, kind: ResetKind) -> None:
        """See ``Device.on_reset``."""
        self.life.reset()

    def on_disconnect(self) -> None:
        """See ``Device.on_disconnect``."""
        self.life.disconnect()

    def on_quiesce(self, quiesce: Quiesce) -> None:
        """See ``Device.on_quiesce``."""
        if quiesce.reason is QuiesceReason.STOP:
            self.life.quiet(quiesce)

    def on_unquiesce(self) -> None:
        """See ``Device.on_unquiesce``."""
        self.life.go_on()

    def on_state(self, old: MigrationState, new: MigrationState) -> None:
        """See ``Device.on_state``."""
        if self.dma.held:
            self.life.stopped()
        elif self.turns.are_paused and not self.is_quiet:  # or ``on_unquiesce`` comes
            self.call_soon(self.life.go_on)

    def close(self) -> None:
        """Waits for what is under way, writes the settings, closes the images. Not while a client is connected."""
        self.jobs.close()
        self.settings.update()
        self.settings.write_if_possible()
        self.namespaces.close()
        for fault in self.faults:
            log.info("nvme %s: %s", self.serial, fault)

    # Namespaces that come and go.

    def add_namespace(self, backend: Backend, *, nsid: int | None = None, lba_size: int = 512) -> int:
        """Plugs a namespace in, attached; the host is told. Session thread; ``call_soon`` from others.

        Returns:
            Its identifier.

        Raises:
            ValueError: the identifier is in use, or the size of blocks is none there is.

        Ownership: the backend is closed when the namespace goes, or with the device.
        """
        if lba_size not in (512, 4096):
            raise ValueError(f"lba_size={lba_size}: blocks have 512 or 4096 bytes")
        namespace = self.namespaces.add(backend, LBA_SHIFTS.index(lba_size.bit_length() - 1), nsid)
        self.events.namespace_changed(namespace.nsid)
        return namespace.nsid

    def remove_namespace(self, nsid: int) -> None:
        """Unplugs a namespace; the host is told. What has begun ends, then the backend is closed. Session thread.

        Raises:
            ValueError: there is none.
        """
        if self.namespaces.get(nsid) is None:
            raise ValueError(f"namespace {nsid} of 1 to {MAX_NAMESPACES}: there is none")
        namespace = self.namespaces.remove(nsid)
        namespace.attached = False
        namespace.gate.enter(namespace.backend.close, alone=True)
        self.events.namespace_changed(nsid)

    # What admin commands need.

    def take(self, command: Command, length: int) -> bytearray:
        """The data of an admin command.

        Raises:
            CommandFailed: its data pointer is wrong.
            DeviceError: the data cannot be read.
        """
        return self.data.read(self.data.prp(command.entry.prp1, command.entry.prp2, length))

    def give(self, command: Command, data: bytes) -> None:
        """Answers an admin command with data.

        Raises:
            CommandFailed: its data pointer is wrong.
            DeviceError: the data cannot be written.
        """
        self.data.write(self.data.prp(command.entry.prp1, command.entry.prp2, len(data)), data)

    @property
    def admin_handlers(self) -> dict[int, object]:
        """The admin commands there are, by opcode."""
        return dict(self.admin.handlers)

    # Saved state.

    @property
    def nvme_state(self) -> dict[str, object]:
        """What is not in the registers; see ``saved``."""
        return save_controller(self)

    @nvme_state.setter
    def nvme_state(self, state: dict[str, object]) -> None:
        self._loaded = state

    def check_loaded(self, attributes: Mapping[str, Any]) -> None:
        """See ``PciDevice.check_loaded``."""
        check_controller(self, attributes["nvme_state"])

    def on_loaded(self) -> None:
        """See ``PciDevice.on_loaded``."""
        load_controller(self, self._loaded)
