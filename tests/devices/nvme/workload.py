"""A host that keeps an NVMe controller busy, and account of everything: what a live migration must not lose or double.

Every queue has slots of blocks to itself, and on each slot one operation at a time, so what a slot holds is known at
every moment. Reads compare; Compare has to succeed; and each fused compare and write counts on from the number that is
there, so that one carried out twice fails the second time. Each identifier ends exactly once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import DmaBuffer
from vfio_user.client.pci_function import PciFunction
from vfio_user.drivers.nvme import NvmeDriver, QueuePair
from vfio_user.hardware.nvme.entries import CompletionEntry, Fused, SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.logs import AsyncEventType, LogPage, SmartEvent
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode

BLOCK = 512
#: Blocks of a slot.
SLOT = 16
QUEUES = 3
#: Slots of a queue, each of which has at most one operation.
SLOTS = 16
LENGTH = 64
IMAGE_SIZE = QUEUES * SLOTS * SLOT * BLOCK
EVENTS = 3

_NORMAL = 0x0157  # kelvin; above what it ever is


@dataclass
class Slot:
    """Blocks with what they hold, and where their data are in memory.

    Attributes:
        slba: the first.
        contents: what they hold, once what is under way has ended.
        buffer: for one block more than there are.
        left: identifiers that have not ended.
        check: looks at what came of the operation.
    """

    slba: int
    contents: bytearray
    buffer: DmaBuffer
    left: set[int]
    check: Callable[[], None] | None = None


class Host:
    """See the module.

    Args:
        client: of the controller.
        seed: of what it does.

    Attributes:
        driver: the controller's.
        ended: operations, by kind.
    """

    def __init__(self, client: VfioUserClient, seed: int) -> None:
        self._random = random.Random(seed)
        self._sequence = 0
        self.driver = NvmeDriver(PciFunction(client), vectors=QUEUES + 1)
        self.queues = [self.driver.create_queue_pair(LENGTH, vector=1 + number) for number in range(QUEUES)]
        self._slots = [[self._slot(queue, slot) for slot in range(SLOTS)] for queue in range(QUEUES)]
        self._of: list[dict[int, Slot]] = [{} for _ in range(QUEUES)]
        self.ended: dict[str, int] = {}
        self._events = self.driver.admin_queue.submit(
            *[SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST)] * EVENTS
        )

    def _slot(self, queue: int, slot: int) -> Slot:
        slba = (queue * SLOTS + slot) * SLOT
        buffer = self.driver.function.dma_alloc((SLOT + 1) * BLOCK)
        return Slot(slba, bytearray(SLOT * BLOCK), buffer, set())

    @property
    def buffers(self) -> list[DmaBuffer]:
        """All memory this has."""
        queues = [self.driver.admin_queue, *self.queues]
        own = [slot.buffer for slots in self._slots for slot in slots] + list(self.driver._shadows or ())
        return own + [part for queue in queues for part in (queue.submissions, queue.completions)]

    @property
    def in_flight(self) -> int:
        """Commands that have not ended."""
        return sum(map(len, self._of))

    # What it does.

    def submit(self, number: int, slot: Slot) -> None:
        """Begins an operation on a slot that has none."""
        kind = self._random.choices(("write", "read", "compare", "count", "zero"), (40, 40, 10, 20, 5))[0]
        first = self._random.randrange(SLOT)
        blocks = 1 if kind == "count" else self._random.randint(1, SLOT - first)
        part = slice(first * BLOCK, (first + blocks) * BLOCK)
        held = bytes(slot.contents[part])
        self._sequence += 1
        data = self._sequence.to_bytes(8, "little") * (blocks * BLOCK // 8)
        slot.check = None
        size = blocks * BLOCK
        entry = SubmissionEntry(
            {
                "write": NvmOpcode.WRITE,
                "read": NvmOpcode.READ,
                "compare": NvmOpcode.COMPARE,
                "count": NvmOpcode.COMPARE,
                "zero": NvmOpcode.WRITE_ZEROES,
            }[kind],
            nsid=1,
            cdw10=slot.slba + first,
            cdw12=blocks - 1,
        )
        entries = [entry]
        if kind == "zero":
            data = bytes(size)
        else:
            entries = [self.driver.with_data(entry, slot.buffer.iova, size)[0]]
        if kind == "read":
            slot.buffer[:size] = b"\xee" * size
            slot.check = lambda: self._same(slot.buffer[:size], held)
        else:
            slot.buffer[:size] = held if kind in ("compare", "count") else data
        if kind == "count":
            slot.buffer[BLOCK : 2 * BLOCK] = data
            second = entry._replace(opcode=NvmOpcode.WRITE, flags=Fused.SECOND, prp1=slot.buffer.iova + BLOCK)
            entries = [entry._replace(flags=Fused.FIRST, prp1=slot.buffer.iova), second]
        if kind not in ("read", "compare"):
            slot.contents[part] = data
        cids = self.queues[number].submit(*entries)
        slot.left.update(cids)
        for cid in cids:
            assert cid not in self._of[number]
            self._of[number][cid] = slot
        self.ended[kind] = self.ended.get(kind, 0) + 1

    def _same(self, read: bytes, held: bytes) -> None:
        assert read == held

    def fill(self) -> None:
        """Begins an operation on every slot that has none."""
        for number, slots in enumerate(self._slots):
            for slot in slots:
                if not slot.left and self.queues[number].room >= 2:
                    self.submit(number, slot)

    def take(self) -> int:
        """Takes the completions that are there; returns how many."""
        return sum(self._take(number, queue) for number, queue in enumerate(self.queues))

    def _take(self, number: int, queue: QueuePair) -> int:
        found: list[CompletionEntry] = queue.poll()
        for completion in found:
            assert completion.status == 0, completion
            slot = self._of[number].pop(completion.cid)  # or it ended twice
            slot.left.remove(completion.cid)
            if not slot.left and slot.check is not None:
                slot.check()
        return len(found)

    def work(self, commands: int) -> None:
        """Keeps all slots busy until so many commands have ended."""
        while commands > 0:
            self.fill()
            commands -= self.take() or self._wait()

    def finish(self) -> None:
        """Waits for everything to end."""
        while self.in_flight:
            self._wait()

    def _wait(self) -> int:
        """Waits for the interrupt of a queue that has commands, and takes its completions."""
        busy = [number for number in range(QUEUES) if self._of[number]]
        number = self._random.choice(busy)
        found = self._take(number, self.queues[number])
        if not found:
            vector = self.queues[number].vector
            assert vector is not None
            vector.wait(20)
        return found

    def hear_an_event(self) -> None:
        """Makes something happen that the controller tells by one of the requests it has, wherever it got them."""
        driver, admin = self.driver, self.driver.admin_queue
        assert [cid for cid in self._events if cid in admin.in_flight] == self._events
        driver.set_feature(Feature.TEMPERATURE_THRESHOLD, 1)
        [told] = [cid for cid in self._events if cid in admin._taken] or admin.wait(self._events[:1])
        completion = admin._taken.pop(told) if isinstance(told, int) else told
        assert completion.dw0 == (AsyncEventType.SMART | SmartEvent.TEMPERATURE_THRESHOLD << 8 | LogPage.SMART << 16)
        self._events.remove(completion.cid)
        driver.set_feature(Feature.TEMPERATURE_THRESHOLD, _NORMAL)
        driver.get_log(LogPage.SMART, 512)
        self._events += admin.submit(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))

    def contents(self) -> bytes:
        """What the image holds, once all has ended."""
        return b"".join(bytes(slot.contents) for slots in self._slots for slot in slots)
