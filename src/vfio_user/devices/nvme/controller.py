"""``Nvme``: an NVM Express controller. See ``docs/nvme.md``.

The controller has the registers, the queues and the turns of work; what commands do is in modules of their own:
``admin`` with its families, and ``nvm_commands``. A turn (``_work``) fetches a batch of each queue that was rung, gives
it to the queue's engine, shows the host the completions, and interrupts, once a queue.

Ref: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0, NVMe over PCIe Transport Specification 1.0.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol

from vfio_user.backends.base import Backend
from vfio_user.backends.open import open_backend
from vfio_user.devices.nvme.admin import AdminCommands
from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.data import DataPointers
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
from vfio_user.devices.nvme.log_pages import LogPages
from vfio_user.devices.nvme.management import Management
from vfio_user.devices.nvme.namespaces import LBA_SHIFTS, MAX_NAMESPACES, Namespaces
from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.devices.nvme.saved import load_controller, save_controller
from vfio_user.devices.nvme.self_test import SelfTest
from vfio_user.devices.nvme.shadow import ShadowDoorbells
from vfio_user.devices.nvme.vectors import Vectors
from vfio_user.errors import DeviceError, InvalidAccess
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.logs import AsyncEventType, ErrorEvent, LogPage
from vfio_user.hardware.nvme.registers import (
    SUBSYSTEM_RESET,
    CommandSet,
    NvmeRegisters,
    ShutdownNotification,
    ShutdownStatus,
)
from vfio_user.hardware.nvme.status import MORE, Status
from vfio_user.pci import MemoryBar, MsiX, PciExpress, PowerManagement, ResetKind
from vfio_user.server.pci_device import PciDevice

if TYPE_CHECKING:
    from vfio_user.protocol.migration import MigrationState

__all__ = ["DoorbellMode", "Engine", "Nvme"]

log = logging.getLogger(__name__)

#: Entries fetched from one queue before the others have their turn.
_BATCH = 128
#: CAP.TO and CRTO: what a reset may take while writes of the backend end; 20 s, in units of 500 ms.
_READY_TIMEOUT = 40
_MAX_PAGE_SHIFT = 4


class DoorbellMode(enum.Enum):
    """How the host tells of new entries."""

    TRAPPED = "trapped"
    SHADOW = "shadow"


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
        doorbells: trapped, or shadow, where the host writes most of them to memory. (Linux does when it can.)
        threads: that do what may block.
        faults: a file of faults, see ``fault_file``; empty for none.

    Attributes:
        max_queue_pairs: I/O queues of each kind; one more MSI-X vector is needed. Raise both in a subclass.
        max_queue_entries: of an I/O queue, up to 65536.
        max_transfer: bytes of one command's data, a power of two and at least 8192.
        model: model number.
        engine: carries out the commands of I/O queues.
        admin_engine: those of the admin queue.
        posted: interrupts the host, which was shown so many completions in a queue.
        faults: what is to go wrong on purpose.

    Raises:
        ValueError: an option says what cannot be.
        OSError: the image cannot be opened.

    Ownership: ``close`` it: that closes the images.
    """

    vendor_id, device_id, class_code, revision = 0x1234, 0x4E56, 0x010802, 0x01
    linux_modules = ("nvme",)
    bar0 = MemoryBar(size=0x4000, width=64, registers=NvmeRegisters)
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
    ) -> None:
        if lba_size not in (512, 4096):
            raise ValueError(f"lba_size={lba_size}: blocks have 512 or 4096 bytes")
        if not serial.isascii() or not 1 <= len(serial) <= 20:
            raise ValueError(f"serial={serial!r}: it has 1 to 20 ASCII characters")
        injected = load_faults(faults) if faults else []
        super().__init__()
        self.serial = serial
        self.subnqn = f"nqn.2024-01.io.github.vfio-user:{serial}"
        self.vector_count = self.max_queue_pairs + 1
        self.has_shadow_doorbells = doorbells is DoorbellMode.SHADOW
        self.namespaces = Namespaces(serial, open_backend(unallocated) if unallocated else None)
        if image:
            self.namespaces.add(open_backend(image), LBA_SHIFTS.index(lba_size.bit_length() - 1))
        self.submission_queues: dict[int, SubmissionQueue] = {}
        self.completion_queues: dict[int, CompletionQueue] = {}
        self.shadow: ShadowDoorbells | None = None
        self.health = Health()
        self.data = DataPointers(self.dma)
        self.jobs = Jobs(self.watch, self._job_ended, self._jobs_idle, threads)
        self.vectors = Vectors(self)
        self.features = Features(self)
        self.firmware = Firmware(self, "1.0")
        self.self_test = SelfTest(self)
        self.events = AsyncEvents(
            lambda: self.features.value(Feature.ASYNC_EVENT_CONFIGURATION),
            lambda command: self.flush_soon(command.queue.completions),
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
        self._rung: list[SubmissionQueue] = []
        self._dirty: list[CompletionQueue] = []
        self._stalled: list[SubmissionQueue] = []
        self._is_scheduled = False
        self._is_enabling = False
        self._describe()

    # Registers.

    def _describe(self) -> None:
        """What the registers say of the controller; resets take it away."""
        cap = self.bar0.cap
        cap.mqes, cap.cqr, cap.to = self.max_queue_entries - 1, 1, _READY_TIMEOUT
        cap.nssrs, cap.css, cap.mpsmax, cap.crms = 1, 1 << 0 | 1 << 6, _MAX_PAGE_SHIFT, 1
        self.bar0.crto.crwmt = _READY_TIMEOUT

    @bar0.on_change("cc")
    def _configure(self, new: int, old: int) -> None:
        if (new ^ old) & 1:
            if new & 1:
                self._enable()
            else:
                self._controller_reset()
        shutdown = new >> 14 & 3
        if shutdown != old >> 14 & 3 and shutdown in (ShutdownNotification.NORMAL, ShutdownNotification.ABRUPT):
            self._shut_down()

    @bar0.on_write("nssr")
    def _reset_subsystem(self, value: int) -> None:
        if value == SUBSYSTEM_RESET:
            self.bar0.reset(ResetKind.DEVICE)
            self._stop()
            self.bar0.csts.nssro = 1

    @bar0.on_change("intms")
    def _mask_interrupts(self) -> None:
        self.vectors.update_pin()

    @bar0.on_write("doorbells")
    def _doorbell(self, index: int, value: int) -> None:
        qid = index >> 1
        if index & 1:
            completions = self.completion_queues.get(qid)
            if completions is None:
                self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_REGISTER, qid)
                return
            try:
                completions.ring.advance(value)
            except InvalidAccess:
                self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE, qid)
                return
            self._taken(completions)
            return
        queue = self.submission_queues.get(qid)
        if queue is None:
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_REGISTER, qid)
            return
        self.rung(queue, value)

    def rung(self, queue: SubmissionQueue, tail: int) -> None:
        """The host has written a submission queue's tail, however the controller learnt of it."""
        try:
            queue.ring.advance(tail)
        except InvalidAccess:
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE, queue.qid)
            return
        self._fetch_soon(queue)

    def _bad_doorbell(self, event: ErrorEvent, qid: int) -> None:
        if not self.bar0.csts.rdy or self.bar0.csts.cfs:  # there are no queues, and nobody is to be told
            return
        self.health.add_error(sqid=qid, cid=0xFFFF, parameter_error_location=0xFFFF)
        self.events.post(AsyncEventType.ERROR, event, LogPage.ERROR_INFORMATION)

    def _taken(self, queue: CompletionQueue) -> None:
        """The host has taken completions: there is room for more."""
        if queue.ready:
            self.flush_soon(queue)
        if self.interrupts.intx_level:
            self.vectors.update_pin()

    # Life.

    @property
    def has_io_queues(self) -> bool:
        """The host has created I/O queues."""
        return len(self.completion_queues) > 1

    def _enable(self) -> None:
        if not self.jobs.is_idle:  # of the time before a reset; a write must not come after one of the time to come
            self._is_enabling = True
            return
        registers = self.bar0
        cc, aqa = registers.cc, registers.aqa
        usable = cc.css in (CommandSet.NVM, CommandSet.ALL_SUPPORTED) and cc.mps <= _MAX_PAGE_SHIFT and not cc.ams
        if not usable or not aqa.asqs or not aqa.acqs:
            self.fatal(f"it was enabled with cc={cc} aqa={aqa}, which it does not support")
            return
        self.data.page_size = 4096 << cc.mps
        completions = CompletionQueue(self.dma, 0, registers.acq.acqb << 12, aqa.acqs + 1, 0)
        self.completion_queues[0] = completions
        self.submission_queues[0] = SubmissionQueue(self.dma, 0, registers.asq.asqb << 12, aqa.asqs + 1, completions)
        registers.csts.rdy = 1

    def _controller_reset(self) -> None:
        """CC.EN went to 0. Spec: 3.7.2."""
        cc = int(self.bar0.cc)
        self.bar0.reset(ResetKind.SOFTWARE)
        self.bar0.cc = cc
        self._stop()

    def _stop(self) -> None:
        """Everything a reset ends; the registers have been reset."""
        self._describe()
        self.abandon()
        self.events.reset()
        self.features.reset()
        self.firmware.reset()
        self.self_test.reset()
        self.lower_interrupt()
        # Writes that have begun end before the reset does: the host may write the same blocks again afterwards.
        self.bar0.csts.rdy = int(not self.jobs.is_idle)

    def abandon(self) -> None:
        """Drops all queues, and what is under way."""
        self._is_enabling = False
        for queue in self.submission_queues.values():
            queue.delete()
        for completions in self.completion_queues.values():
            completions.alive = False
        self.submission_queues.clear()
        self.completion_queues.clear()
        self._rung.clear()
        self._dirty.clear()
        self._stalled.clear()
        self.shadow = None
        self.jobs.cancel_all()
        self.admin.stop_keep_alive()
        self.vectors.reset()

    def _jobs_idle(self) -> None:
        if not self.is_connected:  # nobody is there to give them work: threads and descriptors go
            self.jobs.close()
        if not self.bar0.cc.en or self._is_enabling:
            self.bar0.csts.rdy = 0
        if self._is_enabling:
            self._is_enabling = False
            self._enable()

    def _shut_down(self) -> None:
        """CC.SHN: what was written is made to last. Spec: 3.6.1."""
        self.bar0.csts.shst = ShutdownStatus.OCCURRING
        backends = [namespace.backend for namespace in self.namespaces]

        def work() -> None:
            for backend in backends:
                backend.flush()

        def finish(_: object) -> int:
            if self.bar0.csts.shst == ShutdownStatus.OCCURRING:
                self.bar0.csts.shst = ShutdownStatus.COMPLETE
            return 0

        self.jobs.start(None, work, finish, blocks=any(backend.flush_blocks for backend in backends))

    def fatal(self, why: str) -> None:
        """The controller cannot go on: CSTS.CFS, until it is reset. Spec: 9.5."""
        log.error("nvme %s: controller fatal status: %s", self.serial, why)
        self.bar0.csts.cfs = 1
        self.abandon()

    def feature_changed(self, feature: Feature) -> None:
        """The host has set a feature."""
        if feature == Feature.KEEP_ALIVE_TIMER:
            self.admin.restart_keep_alive()

    def on_reset(self, kind: ResetKind) -> None:
        """See ``Device.on_reset``."""
        self._stop()

    def on_disconnect(self) -> None:
        """The host is gone, its memory with it: as when the link goes down."""
        self.bar0.reset(ResetKind.DEVICE)
        self._stop()
        if self.jobs.is_idle:
            self.jobs.close()

    def on_state(self, old: MigrationState, new: MigrationState) -> None:
        """Before the device is saved, its backends come to rest; what they have read waits."""
        if self.dma.held:
            self.jobs.held = True
            self.jobs.settle()
        elif self.jobs.held:
            self.jobs.release()

    def close(self) -> None:
        """Waits for what is under way and closes the images. Not while a client is connected."""
        self.jobs.close()
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

    # Work.

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.call_soon(self._work)

    def _fetch_soon(self, queue: SubmissionQueue) -> None:
        if not queue.is_rung:
            queue.is_rung = True
            self._rung.append(queue)
            if not self._is_scheduled:
                self._is_scheduled = True
                self.call_soon(self._work)

    def flush_soon(self, queue: CompletionQueue) -> None:
        """The host is to be shown what is ready in a completion queue, and interrupted."""
        if not queue.is_dirty:
            queue.is_dirty = True
            self._dirty.append(queue)
            self._schedule()

    def _work(self) -> None:
        """One turn; see the module."""
        self._is_scheduled = False
        try:
            rung, self._rung = self._rung, []
            for queue in rung:
                queue.is_rung = False
                if queue.alive:
                    self._fetch(queue)
            dirty, self._dirty = self._dirty, []
            for completions in dirty:
                completions.is_dirty = False
                if completions.alive:
                    self._flush(completions)
        except DeviceError as exc:
            self.fatal(f"a queue cannot be reached: {exc}")

    def _fetch(self, queue: SubmissionQueue) -> None:
        shadow = self.shadow if queue.qid else None
        if shadow is not None:
            self._follow(queue, shadow.tail(queue.qid))
        if not queue.has_room() or not self.jobs.has_room:
            self._stalled.append(queue)
            return
        entries = queue.ring.fetch(_BATCH)
        if entries:
            engine = self.engine if queue.qid else self.admin_engine
            engine.take(queue, entries)
            if queue.completions.ready and not queue.completions.is_dirty:
                queue.completions.is_dirty = True
                self._dirty.append(queue.completions)
        if not len(queue.ring) and shadow is not None:
            self._follow(queue, shadow.rest_tail(queue.qid, queue.ring.tail))
        if len(queue.ring):
            self._fetch_soon(queue)

    def _follow(self, queue: SubmissionQueue, tail: int) -> None:
        try:
            queue.ring.advance(tail)
        except InvalidAccess:
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE, queue.qid)

    def _flush(self, queue: CompletionQueue) -> None:
        shadow = self.shadow if queue.qid else None
        if shadow is not None:
            self._follow_head(queue, shadow.head(queue.qid))
        count = queue.flush()
        if shadow is not None and (queue.ready or not self.function.msix_enabled):
            self._follow_head(queue, shadow.rest_head(queue.qid, queue.ring.head))
            count += queue.flush()
        if count:
            self.posted(queue, count)
        if not queue.ready and self._stalled:
            self._go_on()

    def _follow_head(self, queue: CompletionQueue, head: int) -> None:
        try:
            queue.ring.advance(head)
        except InvalidAccess:
            self._bad_doorbell(ErrorEvent.INVALID_DOORBELL_VALUE, queue.qid)

    def _go_on(self) -> None:
        """Queues that had to wait may have room now."""
        stalled, self._stalled = self._stalled, []
        for queue in stalled:
            if queue.alive:
                self._fetch_soon(queue)

    # The ends of commands.

    def _job_ended(self, command: Command, failure: CommandFailed | None, dw0: int) -> None:
        queue, cid = command.queue, command.entry.cid
        queue.in_flight.pop(cid, None)
        if failure is not None:
            self.fail(queue, command.entry, failure)
        else:
            queue.complete(cid, 0, dw0)
        if not queue.alive:
            return
        self.flush_soon(queue.completions)
        if self._stalled:
            self._go_on()
        closing = queue.closing
        if closing is not None and not queue.in_flight:
            self.queue_commands.finish_deletion(queue)
            closing.queue.in_flight.pop(closing.entry.cid, None)
            closing.queue.complete(closing.entry.cid, 0)
            self.flush_soon(closing.queue.completions)

    def fail(self, queue: SubmissionQueue, entry: SubmissionEntry, failure: CommandFailed) -> None:
        """A command ends with an error, which the error log remembers."""
        if not queue.alive:
            return
        status = failure.field
        if failure.status not in (Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED):
            status |= MORE
            self.health.add_error(
                sqid=queue.qid,
                cid=entry.cid,
                status_field=status << 1,
                parameter_error_location=failure.location,
                lba=failure.lba,
                nsid=entry.nsid,
            )
        queue.complete(entry.cid, status, failure.dw0)

    # Saved state.

    @property
    def nvme_state(self) -> dict[str, object]:
        """What is not in the registers; see ``saved``."""
        return save_controller(self)

    @nvme_state.setter
    def nvme_state(self, state: dict[str, object]) -> None:
        self._loaded = state

    def on_loaded(self) -> None:
        """See ``PciDevice.on_loaded``."""
        load_controller(self, self._loaded)

    def resume(self, in_flight: list[tuple[SubmissionQueue, bytes]]) -> None:
        """Goes on after a state was loaded, with the commands that were under way then."""
        for queue, data in in_flight:
            if queue.alive:
                engine = self.engine if queue.qid else self.admin_engine
                engine.execute(queue, SubmissionEntry.unpack(data))
        for queue in list(self.submission_queues.values()):
            self.flush_soon(queue.completions)
            self._fetch_soon(queue)
        csts = self.bar0.csts
        if csts.shst == ShutdownStatus.OCCURRING:
            self._shut_down()
        if not self.submission_queues and not csts.cfs:  # a reset was to end with the last write, which has ended
            csts.rdy = 0
            if self.bar0.cc.en:
                self._enable()
        self.vectors.restart()
