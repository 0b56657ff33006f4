"""``NvmeDriver``: an NVMe controller, driven as an operating system drives it.

    with PciFunction.connect("/tmp/nvme.sock") as function:
        nvme = NvmeDriver(function)
        queue = nvme.create_queue_pair(64)
        nvme.write(queue, 0, b"data".ljust(512))
        assert nvme.read(queue, 0, 1)[:4] == b"data"

Ref: NVM Express Base Specification 2.0, 3.5.1 (initialization).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfio_user.client.guest_memory import DmaBuffer
from vfio_user.client.pci_function import PciFunction
from vfio_user.drivers.nvme.queue_pair import QueuePair
from vfio_user.errors import StateError
from vfio_user.hardware.nvme.entries import CompletionEntry, SubmissionEntry
from vfio_user.hardware.nvme.features import Feature, Select
from vfio_user.hardware.nvme.identify import (
    IDENTIFY_SIZE,
    Cns,
    IdentifyController,
    IdentifyNamespace,
    unpack_namespace_list,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.registers import NvmeRegisters, ShutdownNotification, ShutdownStatus

if TYPE_CHECKING:
    from vfio_user.client.irq import IrqVector

__all__ = ["NvmeDriver"]

_PAGE = 4096


class NvmeDriver:
    """See the module. Made, the controller is enabled and its admin queue works.

    Args:
        function: the controller.
        admin_entries: of the admin queues.
        vectors: interrupts to use, the first for the admin queue; 0 to look for completions instead.

    Attributes:
        function: as given.
        registers: the controller's.
        admin_queue: for commands of your own.
        queues: I/O queue pairs, by identifier.

    Raises:
        StateError: the controller did not become ready.

    Threading: one thread.
    """

    def __init__(self, function: PciFunction, *, admin_entries: int = 32, vectors: int = 2) -> None:
        self.function = function
        self.registers = function.registers(0, NvmeRegisters)
        self.queues: dict[int, QueuePair] = {}
        function.set_master()
        self._vectors: Sequence[IrqVector] = function.enable_interrupts(vectors) if vectors else []
        self._formats: dict[int, int] = {}
        self._shadows: tuple[DmaBuffer, DmaBuffer] | None = None
        self.disable()
        self.admin_queue = self._enable(admin_entries)

    # The controller.

    def disable(self) -> None:
        """Resets the controller; all queues are gone.

        Raises:
            StateError: it did not become unready in time.
        """
        self.registers.cc = 0
        self._wait_ready(0)
        for queue in self.queues.values():
            queue.free()
        self.queues.clear()
        for page in self._shadows or ():
            page.free()
        self._shadows = None

    def enable(self) -> None:
        """Enables the controller again after ``disable``.

        Raises:
            StateError: it did not become ready.
        """
        self.admin_queue = self._enable(self.admin_queue.length)

    def _enable(self, entries: int) -> QueuePair:
        registers = self.registers
        queue = QueuePair(self.function, 0, entries, self._vectors[0] if self._vectors else None)
        registers.aqa = entries - 1 << 16 | entries - 1
        registers.asq = queue.submissions.iova
        registers.acq = queue.completions.iova
        registers.cc = 4 << 20 | 6 << 16 | 1
        self._wait_ready(1)
        return queue

    def moved_to(self, function: PciFunction) -> None:
        """The controller goes on behind another client: the device has been migrated. What is in flight ends there.

        Args:
            function: of the client it was moved to, whose memory and interrupts are at the same addresses and of the
                same numbers, as ``vfio_user.client.migrate`` sees to.
        """
        self.function = function
        self.registers = function.registers(0, NvmeRegisters)
        self._vectors = [function.client.irq(vector.irq.index)[vector.number] for vector in self._vectors]
        for queue in (self.admin_queue, *self.queues.values()):
            number = None if queue.vector is None else queue.vector.number
            queue.moved_to(function, next((one for one in self._vectors if one.number == number), None))

    def _wait_ready(self, ready: int) -> None:
        deadline = time.monotonic() + max(self.registers.cap.to, 1) * 0.5
        while True:
            status = self.registers.csts
            if status.rdy == ready:
                return
            if status.cfs or time.monotonic() > deadline:
                wanted = "ready" if ready else "unready"
                raise StateError(f"the controller did not become {wanted}: its CSTS is {status}")
            self.function.client.connection.process(0.001)

    def shut_down(self, timeout: float = 10.0) -> None:
        """Has the controller make everything last. Spec: 3.6.1.

        Raises:
            StateError: it did not in time.
        """
        self.registers.cc.shn = ShutdownNotification.NORMAL
        deadline = time.monotonic() + timeout
        while self.registers.csts.shst != ShutdownStatus.COMPLETE:
            if time.monotonic() > deadline:
                status = self.registers.csts
                raise StateError(f"the controller is not shut down after {timeout:g} s: its CSTS is {status}")
            self.function.client.connection.process(0.001)

    # Admin commands.

    def admin(
        self, entry: SubmissionEntry, *, data: bytes | None = None, receive: int = 0, timeout: float = 10.0
    ) -> tuple[CompletionEntry, bytes]:
        """Carries out an admin command.

        Args:
            entry: the command, without data pointer.
            data: what goes to the controller.
            receive: bytes that come from it.
            timeout: seconds.

        Returns:
            Its completion, and what was received.

        Raises:
            NvmeError: it failed.
            InterruptTimeoutError: it did not end.
        """
        length = receive if data is None else len(data)
        if not length:
            return self.admin_queue.execute(entry, timeout), b""
        buffer = self.function.dma_alloc(length)
        pages: DmaBuffer | None = None
        try:
            if data is not None:
                buffer[:length] = data
            entry, pages = self.with_data(entry, buffer.iova, length)
            completion = self.admin_queue.execute(entry, timeout)
            return completion, buffer[:receive]
        finally:
            buffer.free()
            if pages is not None:
                pages.free()

    def with_data(self, entry: SubmissionEntry, iova: int, length: int) -> tuple[SubmissionEntry, DmaBuffer | None]:
        """A command with a data pointer to ``length`` bytes from ``iova`` on.

        Returns:
            It, and the PRP list where it needs one, which is to be freed when the command has ended.
        """
        following = iova - iova % _PAGE + _PAGE
        rest = iova + length - following
        if rest <= 0:
            return entry._replace(prp1=iova), None
        if rest <= _PAGE:
            return entry._replace(prp1=iova, prp2=following), None
        addresses = list(range(following, iova + length, _PAGE))
        if len(addresses) > _PAGE // 8:
            raise StateError(f"{length} bytes in one command: this driver makes PRP lists of one page, for 2 MiB")
        pages = self.function.dma_alloc(_PAGE)
        pages[: 8 * len(addresses)] = struct.pack(f"<{len(addresses)}Q", *addresses)
        return entry._replace(prp1=iova, prp2=pages.iova), pages

    def identify(self, cns: int, *, nsid: int = 0, cntid: int = 0, csi: int = 0) -> bytes:
        """Identify; raises as ``admin`` does."""
        entry = SubmissionEntry(AdminOpcode.IDENTIFY, nsid=nsid, cdw10=cns | cntid << 16, cdw11=csi << 24)
        return self.admin(entry, receive=IDENTIFY_SIZE)[1]

    def identify_controller(self) -> IdentifyController:
        """What the controller is; raises as ``admin`` does."""
        return IdentifyController.unpack(self.identify(Cns.CONTROLLER))

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        """What a namespace is, all zeroes for an inactive one; raises as ``admin`` does."""
        return IdentifyNamespace.unpack(self.identify(Cns.NAMESPACE, nsid=nsid))

    def namespaces(self) -> list[int]:
        """The active namespaces; raises as ``admin`` does."""
        return unpack_namespace_list(self.identify(Cns.ACTIVE_NAMESPACE_LIST))

    def get_log(
        self, log_page: int, length: int, *, nsid: int = 0xFFFF_FFFF, offset: int = 0, retain: bool = False
    ) -> bytes:
        """Get Log Page, ``length`` and ``offset`` in bytes, multiples of 4; raises as ``admin`` does."""
        dwords = length // 4 - 1
        entry = SubmissionEntry(
            AdminOpcode.GET_LOG_PAGE,
            nsid=nsid,
            cdw10=log_page | retain << 15 | (dwords & 0xFFFF) << 16,
            cdw11=dwords >> 16,
            cdw12=offset & 0xFFFF_FFFF,
            cdw13=offset >> 32,
        )
        return self.admin(entry, receive=length)[1]

    def get_feature(self, feature: int, *, select: int = Select.CURRENT, nsid: int = 0, cdw11: int = 0) -> int:
        """A feature that is a number; raises as ``admin`` does."""
        entry = SubmissionEntry(AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=feature | select << 8, cdw11=cdw11)
        return self.admin(entry)[0].dw0

    def set_feature(
        self, feature: int, value: int = 0, *, save: bool = False, nsid: int = 0, data: bytes | None = None
    ) -> int:
        """Sets a feature; raises as ``admin`` does."""
        entry = SubmissionEntry(AdminOpcode.SET_FEATURES, nsid=nsid, cdw10=feature | save << 31, cdw11=value)
        return self.admin(entry, data=data)[0].dw0

    # I/O queues.

    def use_shadow_doorbells(self) -> None:
        """Doorbell Buffer Config: those of I/O queues are memory from now on; the controller says when to ring.

        Raises:
            NvmeError: the controller has no such command.
        """
        pages = self.function.dma_alloc(_PAGE), self.function.dma_alloc(_PAGE)
        entry = SubmissionEntry(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=pages[0].iova, prp2=pages[1].iova)
        # What the controller looks at as soon as it knows where is to be right by then.
        for queue in self.queues.values():
            queue.use_shadows(*pages)
        self.admin_queue.execute(entry)
        self._shadows = pages

    def create_queue_pair(self, length: int = 64, *, qid: int | None = None, vector: int | None = 1) -> QueuePair:
        """Creates an I/O submission queue and its completion queue.

        Args:
            length: entries of each.
            qid: of both; None for the next.
            vector: the interrupt; None for none. One the driver was not made with is none, too.

        Raises:
            NvmeError: the controller refuses.
        """
        if not self.queues:
            self.set_feature(Feature.NUMBER_OF_QUEUES, 0x003F_003F)
        qid = max(self.queues, default=0) + 1 if qid is None else qid
        irq = self._vectors[vector] if vector is not None and vector < len(self._vectors) else None
        queue = QueuePair(self.function, qid, length, irq)
        flags = 1 if irq is None else 3 | irq.number << 16
        size = length - 1 << 16 | qid
        self.admin_queue.execute(
            SubmissionEntry(
                AdminOpcode.CREATE_IO_COMPLETION_QUEUE, prp1=queue.completions.iova, cdw10=size, cdw11=flags
            )
        )
        self.admin_queue.execute(
            SubmissionEntry(
                AdminOpcode.CREATE_IO_SUBMISSION_QUEUE, prp1=queue.submissions.iova, cdw10=size, cdw11=qid << 16 | 1
            )
        )
        if self._shadows is not None:
            queue.use_shadows(*self._shadows)
        self.queues[qid] = queue
        return queue

    def delete_queue_pair(self, queue: QueuePair) -> None:
        """Deletes both queues; raises NvmeError where the controller refuses."""
        self.admin_queue.execute(SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=queue.qid))
        self.admin_queue.execute(SubmissionEntry(AdminOpcode.DELETE_IO_COMPLETION_QUEUE, cdw10=queue.qid))
        del self.queues[queue.qid]
        queue.free()

    # I/O, one command at a time; ``QueuePair.submit`` is for many.

    def block_size(self, nsid: int = 1) -> int:
        """Bytes of a block of a namespace, looked up once; raises as ``admin`` does."""
        shift = self._formats.get(nsid)
        if shift is None:
            page = self.identify_namespace(nsid)
            shift = self._formats[nsid] = page.lbaf[page.flbas & 0xF] >> 16 & 0xFF
        return 1 << shift

    def forget_formats(self) -> None:
        """Namespaces may have been formatted: ``block_size`` looks again."""
        self._formats.clear()

    def read(self, queue: QueuePair, slba: int, blocks: int, *, nsid: int = 1) -> bytes:
        """Reads blocks; raises as ``QueuePair.execute`` does."""
        length = blocks * self.block_size(nsid)
        entry = SubmissionEntry(NvmOpcode.READ, nsid=nsid, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32, cdw12=blocks - 1)
        return self._io(queue, entry, None, length)

    def write(self, queue: QueuePair, slba: int, data: bytes, *, nsid: int = 1, fua: bool = False) -> None:
        """Writes whole blocks; raises as ``QueuePair.execute`` does."""
        blocks = len(data) // self.block_size(nsid)
        entry = SubmissionEntry(
            NvmOpcode.WRITE,
            nsid=nsid,
            cdw10=slba & 0xFFFF_FFFF,
            cdw11=slba >> 32,
            cdw12=blocks - 1 | fua << 30,
        )
        self._io(queue, entry, data, len(data))

    def flush(self, queue: QueuePair, *, nsid: int = 1) -> None:
        """Makes everything written last; raises as ``QueuePair.execute`` does."""
        queue.execute(SubmissionEntry(NvmOpcode.FLUSH, nsid=nsid))

    def io(self, queue: QueuePair, entry: SubmissionEntry, data: bytes = b"") -> CompletionEntry:
        """Carries out an I/O command that takes ``data``; raises as ``QueuePair.execute`` does."""
        if not data:
            return queue.execute(entry)
        self._io(queue, entry, data, len(data))
        return CompletionEntry()

    def _io(self, queue: QueuePair, entry: SubmissionEntry, data: bytes | None, length: int) -> bytes:
        buffer = self.function.dma_alloc(length)
        pages: DmaBuffer | None = None
        try:
            if data is not None:
                buffer[:length] = data
            entry, pages = self.with_data(entry, buffer.iova, length)
            queue.execute(entry)
            return buffer[:length] if data is None else b""
        finally:
            buffer.free()
            if pages is not None:
                pages.free()
