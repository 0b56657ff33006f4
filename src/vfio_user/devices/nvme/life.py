"""The life of the controller: enabled, reset, shut down, failed; and quiet, before it is stopped to be migrated.

A reset takes everything away at once, but for writes of the backend that have begun: the host may write the same blocks
again afterwards, so CSTS.RDY stays 1 until they have ended.

To be stopped, the controller begins nothing more and waits for what has begun, as only that cannot be carried out again
where its state is loaded: see ``saved``, and ``vfio_user.server.quiesce``. Neither an unmap nor a reset needs quiet: no
thread touches the guest's memory.

Spec: 3.5 (initialization), 3.6 (shutdown), 3.7 (resets), 9.5 (controller fatal status).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.queues import CompletionQueue, SubmissionQueue
from vfio_user.hardware.nvme.registers import CommandSet, ShutdownStatus
from vfio_user.pci import ResetKind

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme
    from vfio_user.server.quiesce import Quiesce

__all__ = ["MAX_PAGE_SHIFT", "Life"]

log = logging.getLogger(__name__)

#: CAP.MPSMAX: memory pages of up to 64 KiB.
MAX_PAGE_SHIFT = 4


class Life:
    """The life of a controller.

    Args:
        controller: whose.

    Threading: session thread.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._is_enabling = False
        self._quiesce: Quiesce | None = None
        self._was_stopped = False

    # Enabled.

    def enable(self) -> None:
        """CC.EN went to 1. Spec: 3.5.1."""
        controller = self._controller
        if self._is_busy:  # with what is of the time before a reset; a write must not come after one of this time
            self._is_enabling = True
            return
        registers = controller.bar0
        cc, aqa = registers.cc, registers.aqa
        usable = cc.css == CommandSet.NVM and cc.mps <= MAX_PAGE_SHIFT and not cc.ams
        if not usable or not aqa.asqs or not aqa.acqs:
            self.fail(f"it was enabled with cc={cc} aqa={aqa}, which it does not support")
            return
        controller.data.page_size = 4096 << cc.mps
        completions = CompletionQueue(controller.dma, 0, registers.acq.acqb << 12, aqa.acqs + 1, 0)
        controller.add_queue(completions)
        controller.add_queue(SubmissionQueue(controller.dma, 0, registers.asq.asqb << 12, aqa.asqs + 1, completions))
        registers.csts.rdy = 1
        controller.settings.are_ours = True

    # Reset.

    def disable(self) -> None:
        """CC.EN went to 0. Spec: 3.7.2."""
        controller = self._controller
        cc = int(controller.bar0.cc)
        controller.bar0.reset(ResetKind.SOFTWARE)
        controller.bar0.cc = cc
        self.reset()

    def reset(self) -> None:
        """Everything a reset ends; the registers have been reset."""
        controller = self._controller
        controller.describe()
        self.abandon()
        controller.events.reset()
        controller.features.reset()
        controller.firmware.reset()
        controller.self_test.reset()
        controller.lower_interrupt()
        controller.bar0.csts.rdy = int(self._is_busy)

    @property
    def _is_busy(self) -> bool:
        """What was begun has not ended: it may still write to an image, or to the guest's memory."""
        return self._controller.turns.is_working or not self._controller.jobs.is_idle

    def abandon(self) -> None:
        """Drops all queues, and what is under way."""
        controller = self._controller
        self._is_enabling = False
        for queue in controller.submission_queues.values():
            queue.delete()
        for completions in controller.completion_queues.values():
            completions.alive = False
        controller.submission_queues.clear()
        controller.completion_queues.clear()
        controller.turns.clear()
        controller.doorbells.drop()
        controller.jobs.cancel_all()
        controller.admin.stop_keep_alive()
        controller.vectors.reset()

    def work_ended(self) -> None:
        """The last job is over, or a turn in whose middle there was a reset."""
        controller = self._controller
        if self._is_busy:
            return
        if not controller.is_connected:  # nobody is there to give them work: threads and descriptors go
            controller.jobs.close()
        if not controller.bar0.cc.en or self._is_enabling:
            controller.bar0.csts.rdy = 0
        if self._is_enabling:
            self._is_enabling = False
            self.enable()

    def disconnect(self) -> None:
        """The host is gone, its memory with it: as when the link goes down."""
        self._controller.bar0.reset(ResetKind.DEVICE)
        self.reset()
        if self._controller.jobs.is_idle:
            self._controller.jobs.close()

    # Shut down, and failed.

    def shut_down(self) -> None:
        """CC.SHN: what was written is made to last. Spec: 3.6.1."""
        controller = self._controller
        controller.bar0.csts.shst = ShutdownStatus.OCCURRING
        backends = [namespace.backend for namespace in controller.namespaces]

        controller.settings.update()

        def work() -> None:
            for backend in backends:
                try:
                    backend.flush()
                except Exception:  # there is no status to say so, and the others are to last all the more
                    log.exception("nvme %s: what was written may be lost at the shutdown", controller.serial)
            controller.settings.write_if_possible()

        def finish(_: object) -> int:
            if controller.bar0.csts.shst == ShutdownStatus.OCCURRING:
                controller.bar0.csts.shst = ShutdownStatus.COMPLETE
            return 0

        blocks = controller.settings.are_kept or any(backend.flush_blocks for backend in backends)
        controller.jobs.start(None, work, finish, blocks=blocks)

    def fail(self, why: str) -> None:
        """The controller cannot go on: CSTS.CFS, until it is reset. Spec: 9.5."""
        log.error("nvme %s: controller fatal status: %s", self._controller.serial, why)
        self._controller.bar0.csts.cfs = 1
        self.abandon()

    # Quiet, to be stopped.

    def quiet(self, quiesce: Quiesce) -> None:
        """The controller is about to be stopped."""
        jobs = self._controller.jobs
        self._controller.turns.pause()
        jobs.hold()
        if not jobs.is_still:
            self._quiesce = quiesce
            quiesce.wait(jobs.describe)

    def became_still(self) -> None:
        """No thread works on a backend any more."""
        quiesce, self._quiesce = self._quiesce, None
        if quiesce is not None:
            quiesce.done()

    def stopped(self) -> None:
        """The controller is stopped. Whoever stops it without asking for quiet waits here."""
        self._was_stopped = True
        self._controller.turns.pause()
        self._controller.jobs.hold()
        self._controller.jobs.settle()

    def go_on(self) -> None:
        """It runs again, or was not stopped after all."""
        if self._controller.dma.held:  # stopped again meanwhile
            return
        self._quiesce = None
        self._controller.jobs.release()
        self._controller.turns.resume()
        was_stopped, self._was_stopped = self._was_stopped, False
        if was_stopped and self._controller.submission_queues:  # and it is here that it runs on, after all
            self._controller.settings.adopt()
