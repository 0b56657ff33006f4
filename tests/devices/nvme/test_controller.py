"""The controller's life: enabling, resets, shutdown, queues, interrupts, namespaces that come and go, saved state."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.nvme import Bench, PatientBackend, bench, fails_with
from vfio_user.backends import open_backend
from vfio_user.devices.nvme import Nvme, jobs
from vfio_user.devices.nvme.command import Command
from vfio_user.devices.nvme.events import REQUEST_LIMIT
from vfio_user.drivers.nvme import NvmeDriver, QueuePair
from vfio_user.errors import InvalidAccess, StateError
from vfio_user.hardware.nvme.entries import Fused, SubmissionEntry
from vfio_user.hardware.nvme.features import AsyncEventConfiguration, Feature
from vfio_user.hardware.nvme.identify import IdentifyNamespace, unpack_namespace_list
from vfio_user.hardware.nvme.logs import AsyncEventType, LogPage, NoticeEvent
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.registers import SUBSYSTEM_RESET, ShutdownStatus
from vfio_user.hardware.nvme.status import Status
from vfio_user.protocol.constants import IrqIndex
from vfio_user.protocol.migration import MigrationState
from vfio_user.testing.in_process import DeviceUnderTest

BLOCK = 512


def read(slba: int, prp1: int, blocks: int = 1) -> SubmissionEntry:
    return SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=prp1, cdw10=slba, cdw12=blocks - 1)


# Registers.


def test_what_the_registers_say() -> None:
    with bench() as nvme:
        registers = nvme.driver.registers
        assert (registers.cap.mqes, registers.cap.cqr, registers.cap.nssrs, registers.cap.dstrd) == (1023, 1, 1, 0)
        assert (registers.vs.major, registers.vs.minor) == (2, 0)
        assert registers.cap.css == 1
        assert nvme.function.class_code == 0x010802


@pytest.mark.parametrize(
    ("cc", "aqa"),
    [
        (1 | 1 << 4, 0x1F_001F),  # a command set there is not
        (1 | 6 << 4, 0x1F_001F),  # all there are besides, of which there are none
        (1 | 5 << 7, 0x1F_001F),  # pages of 128 KiB
        (1 | 1 << 11, 0x1F_001F),  # another arbitration
        (1, 0x1F_0000),
        (1, 0x0000_001F),
    ],
)
def test_what_it_cannot_be_enabled_with(cc: int, aqa: int, caplog: pytest.LogCaptureFixture) -> None:
    with bench() as nvme:
        nvme.driver.disable()
        nvme.driver.registers.aqa = aqa
        nvme.driver.registers.cc = cc
        assert (nvme.driver.registers.csts.cfs, nvme.driver.registers.csts.rdy) == (1, 0)
        assert "controller fatal status" in caplog.text
        nvme.driver.disable()
        nvme.driver.enable()
        assert nvme.driver.registers.csts.cfs == 0


@pytest.mark.parametrize("kind", ["disable", "device", "flr", "subsystem"])
def test_resets(kind: str) -> None:
    with bench() as nvme:
        nvme.driver.write(nvme.queue, 0, b"\1" * BLOCK)
        if kind == "disable":
            nvme.driver.disable()
        elif kind == "device":
            nvme.function.reset()
        elif kind == "flr":
            nvme.function.flr()
        else:
            nvme.driver.registers.nssr = 1234
            assert nvme.driver.registers.csts.rdy == 1
            nvme.driver.registers.nssr = SUBSYSTEM_RESET
            assert nvme.driver.registers.csts.nssro == 1
            nvme.driver.registers.csts = 0x10
            assert nvme.driver.registers.csts.nssro == 0
        assert nvme.driver.registers.csts.rdy == 0
        assert nvme.driver.registers.cap.mqes == 1023
        assert not nvme.device.submission_queues
        assert (nvme.driver.registers.asq != 0) == (kind == "disable")
        again = NvmeDriver(nvme.function)
        assert again.read(again.create_queue_pair(), 0, 1) == b"\1" * BLOCK


def test_a_reset_is_over_when_writes_that_have_begun_are() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        write = SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=nvme.buffer(b"\1" * BLOCK))
        nvme.queue.submit(write, *[write] * 7)
        nvme.under_test.settle()
        for _ in range(4):  # as many as there are threads
            assert backend.begun.acquire(timeout=5)
        nvme.driver.registers.cc = 0
        assert nvme.driver.registers.csts.rdy == 1
        backend.let_go()
        nvme.under_test.wait_until(lambda: not nvme.device.bar0.csts.rdy)
        assert not backend.begun.acquire(blocking=False)  # the others never began


def test_nothing_is_written_to_memory_after_a_reset() -> None:
    backend = PatientBackend()
    backend.memory[:BLOCK] = b"\1" * BLOCK
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        nvme.queue.submit(read(0, target))
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        nvme.function.reset()
        backend.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        nvme.function.set_master()
        assert nvme.device.dma.read(target, BLOCK) == bytes(BLOCK)


def test_a_client_that_goes_leaves_no_thread_behind() -> None:
    backend = PatientBackend(patient=False)
    device = Nvme(image="")
    device.add_namespace(backend)
    for _ in range(2):
        with DeviceUnderTest(device, real_time=True) as under_test:
            nvme = Bench(device, under_test)
            nvme.driver.write(nvme.queue, 0, b"\1" * BLOCK)
        assert device.jobs.is_idle
        assert not device.loop.has_work
    device.close()
    device.loop.close()


def test_shutdown_makes_everything_last() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        nvme.driver.registers.cc.shn = 1
        assert nvme.driver.registers.csts.shst == ShutdownStatus.OCCURRING
        backend.let_go()
        nvme.driver.shut_down()
        assert backend.flushed == 1


def test_shutdown_makes_everything_last_that_can(caplog: pytest.LogCaptureFixture) -> None:
    first, second = PatientBackend(patient=False), PatientBackend(patient=False)
    first.fails = OSError(errno.EIO, "broken")
    with bench(real_time=True, backend=first) as nvme:
        nvme.device.add_namespace(second)
        nvme.driver.shut_down()
        assert second.flushed == 1
    assert "may be lost" in caplog.text
    caplog.clear()


def test_a_queue_in_memory_that_is_not_there_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    with bench(vectors=0) as nvme:
        nvme.driver.disable()
        nvme.driver.registers.asq = 0x7777_0000_0000
        nvme.driver.registers.cc = 4 << 20 | 6 << 16 | 1
        nvme.driver.admin_queue.ring(1)
        nvme.under_test.settle()
        assert nvme.driver.registers.csts.cfs == 1
        assert "a queue cannot be reached" in caplog.text
        with pytest.raises(StateError, match="did not become ready"):
            nvme.driver._wait_ready(2)


# Queues.


def test_64_queue_pairs_of_1024_entries() -> None:
    with bench() as nvme:
        queues = [nvme.queue, *(nvme.driver.create_queue_pair(1024) for _ in range(63))]
        for number, queue in enumerate(queues):
            nvme.driver.write(queue, number, bytes([number]) * BLOCK)
        assert nvme.driver.read(nvme.queue, 0, 64) == b"".join(bytes([number]) * BLOCK for number in range(64))
        for queue in queues:
            nvme.driver.delete_queue_pair(queue)
        assert list(nvme.device.submission_queues) == [0]


def test_rings_that_wrap_and_completion_queues_that_are_full() -> None:
    with bench() as nvme:
        data = os.urandom(64 * BLOCK)
        nvme.driver.write(nvme.queue, 0, data)
        target = nvme.buffer(size=BLOCK)
        ended = 0
        for _ in range(20):
            # 15 commands fill the submission queue; nobody takes their completions before all 15 are there.
            nvme.queue.submit(*[read(0, target)] * 15)
            nvme.under_test.settle()
            found = nvme.queue.poll()
            assert [completion.status for completion in found] == [0] * 15
            ended += len(found)
        assert ended == 300


def test_more_completions_than_a_queue_holds() -> None:
    with bench() as nvme:
        target, queue = nvme.buffer(size=BLOCK), nvme.queue
        queue.submit(*[read(0, target)] * 15)
        nvme.under_test.settle()
        # The controller has fetched them, so there is room for more, whose completions have none.
        queue._sq_head = queue._tail
        queue.submit(*[read(0, target)] * 10)
        nvme.under_test.settle()
        # And while those wait, no more are fetched.
        queue._sq_head = queue._tail
        queue.submit(*[read(0, target)] * 3)
        nvme.under_test.settle()
        assert len(nvme.device.submission_queues[1].ring) == 3
        for count in (15, 13):
            assert len(queue.poll()) == count
            nvme.under_test.settle()


def test_requests_for_events_do_not_fill_a_short_admin_queue() -> None:
    with bench() as nvme:
        driver = nvme.driver
        driver.disable()
        admin = driver.admin_queue = QueuePair(nvme.function, 0, 2, None)
        registers = driver.registers
        registers.aqa = 1 << 16 | 1
        registers.asq, registers.acq = admin.submissions.iova, admin.completions.iova
        registers.cc = 4 << 20 | 6 << 16 | 1
        for _ in range(REQUEST_LIMIT):
            admin.submit(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))
            nvme.under_test.settle()
            admin._sq_head = admin._tail  # it was fetched, though no completion says so
        with fails_with(Status.ASYNCHRONOUS_EVENT_REQUEST_LIMIT_EXCEEDED):
            admin.execute(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))
        assert driver.identify_controller().aerl == REQUEST_LIMIT - 1


def test_deleting_a_queue_waits_for_what_has_begun() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        cids = nvme.queue.submit(*[read(0, target)] * 6)
        nvme.under_test.settle()
        for _ in range(4):
            assert backend.begun.acquire(timeout=5)
        admin = nvme.driver.admin_queue
        deletion = admin.submit(SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=1))
        nvme.under_test.settle()
        assert admin.poll() == []
        with fails_with(Status.INVALID_QUEUE_IDENTIFIER):  # it is being deleted
            admin.execute(SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=1))
        nvme.queue.submit(read(0, target))  # too late: nothing is fetched any more
        nvme.under_test.settle()
        assert len(nvme.device.submission_queues[1].ring) == 1
        backend.let_go()
        assert admin.wait(deletion)[0].status == 0
        completions = nvme.queue.wait(cids)
        assert [completion.status for completion in completions] == [0] * 4 + [Status.ABORTED_SQ_DELETION] * 2
        assert not any(completion.do_not_retry for completion in completions)
        nvme.driver.admin_queue.execute(SubmissionEntry(AdminOpcode.DELETE_IO_COMPLETION_QUEUE, cdw10=1))


def test_data_that_waits_for_the_image_does_not_hold_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the admin queue at all; other queues only until there is room again, even where nobody waits for its end."""
    monkeypatch.setattr(jobs, "_BUDGET", 2 * BLOCK)
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        other = nvme.driver.create_queue_pair(16, vector=None)
        cids = nvme.queue.submit(*[read(0, target)] * 12)
        nvme.under_test.settle()
        for _ in range(4):
            assert backend.begun.acquire(timeout=5)
        waiting = other.submit(read(0, target))
        nvme.under_test.settle()
        assert len(nvme.device.submission_queues[other.qid].ring) == 1
        admin = nvme.driver.admin_queue
        deletion = admin.submit(SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=1))
        nvme.under_test.settle()
        assert [completion.status for completion in nvme.queue.wait(cids[4:])] == [Status.ABORTED_SQ_DELETION] * 8
        backend.let_go()
        assert [completion.status for completion in other.wait(waiting) + admin.wait(deletion)] == [0, 0]


def test_what_was_aborted_makes_room_when_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_BUDGET", 2)
    ended, rooms = list[Command](), list[int]()
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go_on.wait(10)

    def complete(command: Command, *_: object) -> None:
        ended.append(command)

    made = jobs.Jobs(lambda *_: ExitStack(), complete, go_on.clear, go_on.clear, lambda: rooms.append(len(ended)), 1)
    with bench() as nvme:
        queue = nvme.device.submission_queues[1]
        first, second = (Command(queue, SubmissionEntry(NvmOpcode.READ, cid=cid)) for cid in (1, 2))
        made.start(first, wait, lambda _: 0, size=1)
        made.start(second, int, lambda _: 0, size=2)
        assert begun.wait(10)
        assert made.abort(second)
        assert not made.has_room
        go_on.set()
        made.settle()
        made.close()
        assert (ended, rooms, made.bytes) == ([first], [1], 0)


class ResettingMemory:
    """The client's memory, reached by messages: during one read the host resets the controller."""

    def __init__(self, nvme: Bench, iova: int) -> None:
        self._memory = nvme.under_test.client.connection.dma
        assert self._memory is not None
        self._device = nvme.device
        self._iova = iova
        self.ready: int | None = None
        self.written = 0

    def read(self, iova: int, length: int) -> bytes:
        assert self._memory is not None
        data = bytes(self._memory.read(iova, length))
        if iova == self._iova:
            # As the session does where the client asks while the device waits.
            self._device.bar0.write(0x14, 4, 0)
            self.ready = self._device.bar0.read(0x1C, 4) & 1
        return data

    def write(self, iova: int, data: Any) -> None:
        assert self._memory is not None
        self.written += 1
        self._memory.write(iova, data)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_reset_while_memory_is_reached_by_messages(blocking: bool) -> None:
    backend = PatientBackend(patient=False)
    backend.blocking = blocking
    with bench(real_time=True, share_memory=False, backend=backend) as nvme:
        first, second = nvme.buffer(b"\1" * BLOCK), nvme.buffer(b"\2" * BLOCK)
        memory = ResettingMemory(nvme, first)
        nvme.under_test.client.connection.dma = memory
        nvme.queue.submit(
            SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=first),
            SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=second, cdw10=1),
            read(0, second),
        )
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle and memory.ready is not None)
        assert memory.ready == 1  # the first write was still to be done
        assert nvme.driver.registers.csts.rdy == 0
        assert backend.memory[BLOCK] == 0  # the second was not
        assert memory.written == 0
        nvme.under_test.client.connection.dma = memory._memory
        nvme.driver.enable()
        assert nvme.driver.identify_controller().cntlid == 1


def test_abort() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        cids = nvme.queue.submit(*[read(0, target)] * 5)
        nvme.under_test.settle()
        for _ in range(4):
            assert backend.begun.acquire(timeout=5)
        admin = nvme.driver.admin_queue
        for cid, result in ((cids[0], 1), (cids[4], 0), (cids[4], 1)):
            assert admin.execute(SubmissionEntry(AdminOpcode.ABORT, cdw10=cid << 16 | 1)).dw0 == result
        backend.let_go()
        completions = nvme.queue.wait(cids)
        assert [completion.status for completion in completions] == [0] * 4 + [Status.COMMAND_ABORT_REQUESTED]
        assert not completions[4].do_not_retry


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        (SubmissionEntry(AdminOpcode.ABORT, cdw10=2 << 16 | 1), Status.COMMAND_ABORT_REQUESTED),
        (SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=1), Status.ABORTED_SQ_DELETION),
    ],
)
def test_both_commands_of_a_fused_operation_that_never_begins_end(entry: SubmissionEntry, status: Status) -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        cids = nvme.queue.submit(
            read(0, target),
            SubmissionEntry(NvmOpcode.COMPARE, nsid=1, flags=Fused.FIRST, prp1=target),
            SubmissionEntry(NvmOpcode.WRITE, nsid=1, flags=Fused.SECOND, prp1=target),
        )
        assert cids[2] == 2
        nvme.under_test.settle()
        nvme.driver.admin_queue.submit(entry)
        nvme.under_test.settle()
        backend.let_go()
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0, status, status]


# Interrupts.


def test_interrupts_are_coalesced() -> None:
    with bench() as nvme:
        target, vector = nvme.buffer(size=BLOCK), nvme.queue.vector
        assert vector is not None
        vector.poll()
        nvme.driver.set_feature(Feature.INTERRUPT_COALESCING, 200 << 8 | 3)  # after 20 ms, or with 4 completions
        nvme.queue.submit(read(0, target))
        nvme.under_test.settle()
        assert vector.poll() == 0
        nvme.under_test.advance(0.019)
        assert vector.poll() == 0
        nvme.under_test.advance(0.002)
        assert vector.poll() == 1
        nvme.queue.poll()
        for _ in range(4):
            assert vector.poll() == 0
            nvme.queue.submit(read(0, target))
            nvme.under_test.settle()
        assert vector.poll() == 1
        nvme.under_test.advance(1)
        assert vector.poll() == 0
        # One vector may be left out.
        nvme.driver.set_feature(Feature.INTERRUPT_VECTOR_CONFIGURATION, 1 | 1 << 16)
        nvme.queue.submit(read(0, target))
        nvme.under_test.settle()
        assert vector.poll() == 1
        assert nvme.driver.get_feature(Feature.INTERRUPT_VECTOR_CONFIGURATION, cdw11=1) == 0x1_0001


def test_the_pin_follows_the_completion_queues_and_the_mask() -> None:
    with bench(vectors=0) as nvme:
        registers, queue = nvme.driver.registers, nvme.driver.admin_queue
        nvme.function.enable_intx()

        def level() -> bool:
            nvme.under_test.settle()
            return nvme.device.interrupts.intx_level

        queue.submit(SubmissionEntry(0xFF))
        assert level()
        registers.intms = 2
        assert level()
        registers.intms = 1
        assert not level()
        assert registers.intmc == registers.intms == 3
        registers.intmc = 1
        assert registers.intms == 2
        assert level()
        queue.poll()
        assert not level()


def test_a_completion_queue_without_interrupts() -> None:
    with bench() as nvme:
        queue = nvme.driver.create_queue_pair(8, vector=None)
        before = nvme.device.interrupts.statistics().fired[IrqIndex.MSIX][:]
        queue.submit(read(0, nvme.buffer(size=BLOCK)))
        nvme.under_test.settle()
        assert len(queue.poll()) == 1
        assert nvme.device.interrupts.statistics().fired[IrqIndex.MSIX] == before


# Namespaces that come and go.


def test_namespaces_come_and_go() -> None:
    with bench() as nvme:
        nvme.driver.set_feature(Feature.ASYNC_EVENT_CONFIGURATION, AsyncEventConfiguration.NAMESPACE_ATTRIBUTE)
        admin = nvme.driver.admin_queue
        changed = (
            AsyncEventType.NOTICE | NoticeEvent.NAMESPACE_ATTRIBUTE_CHANGED << 8 | LogPage.CHANGED_NAMESPACE_LIST << 16
        )
        cids = admin.submit(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))
        assert nvme.device.add_namespace(open_backend("memory:64K"), nsid=7, lba_size=4096) == 7
        assert admin.wait(cids)[0].dw0 == changed
        assert unpack_namespace_list(nvme.driver.get_log(LogPage.CHANGED_NAMESPACE_LIST, 4096)) == [7]
        assert unpack_namespace_list(nvme.driver.get_log(LogPage.CHANGED_NAMESPACE_LIST, 4096)) == []
        assert nvme.driver.namespaces() == [1, 7]
        nvme.driver.write(nvme.queue, 15, b"\1" * 4096, nsid=7)
        cids = admin.submit(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))
        nvme.device.remove_namespace(7)
        assert admin.wait(cids)[0].dw0 == changed
        assert nvme.driver.namespaces() == [1]
        with fails_with(Status.INVALID_FIELD):
            nvme.driver.read(nvme.queue, 0, 1, nsid=7)
        with pytest.raises(ValueError, match="namespace 7 of 1 to 256: there is none"):
            nvme.device.remove_namespace(7)
        with pytest.raises(ValueError, match="lba_size=513"):
            nvme.device.add_namespace(open_backend("memory:64K"), lba_size=513)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("lba_size", 1024, "512 or 4096"), ("serial", "", "1 to 20"), ("serial", "x" * 21, "1 to 20")],
)
def test_options_that_cannot_be(option: str, value: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Nvme(**{option: value})  # type: ignore[arg-type]


# The controller fails when its host has promised to speak, and does not.


def test_keep_alive(caplog: pytest.LogCaptureFixture) -> None:
    with bench() as nvme:
        nvme.driver.set_feature(Feature.KEEP_ALIVE_TIMER, 1000)
        for _ in range(3):
            nvme.under_test.advance(0.9)
            nvme.driver.admin_queue.execute(SubmissionEntry(AdminOpcode.KEEP_ALIVE))
        assert nvme.driver.registers.csts.cfs == 0
        nvme.under_test.advance(1.1)
        assert nvme.driver.registers.csts.cfs == 1
        assert "kept it alive" in caplog.text


# Saved state.


def test_a_state_is_saved_and_loaded_with_commands_in_flight() -> None:
    backend = PatientBackend()
    backend.memory[:] = os.urandom(len(backend.memory))
    with bench(real_time=True, backend=backend, unallocated="memory:2M") as nvme:
        driver = nvme.driver
        driver.set_feature(Feature.INTERRUPT_COALESCING, 0x0105, save=True)
        driver.set_feature(Feature.ASYNC_EVENT_CONFIGURATION, AsyncEventConfiguration.NAMESPACE_ATTRIBUTE)
        page = IdentifyNamespace(nsze=100, ncap=100).pack()
        created, _ = driver.admin(SubmissionEntry(AdminOpcode.NAMESPACE_MANAGEMENT), data=page)
        assert created.dw0 == 2
        target = nvme.buffer(size=1024)
        event = driver.admin_queue.submit(SubmissionEntry(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST))
        cids = nvme.queue.submit(read(3, target), read(4, target + 512))
        nvme.under_test.settle()
        state = nvme.device.save_state()
        # What the device goes on to do is undone by what it was, but for what the host has in memory and has not seen.
        backend.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        nvme.device.dma.write(target, bytes(1024))
        nvme.device.features.reset()
        nvme.device.namespaces.remove(2)
        nvme.device.load_state(state)
        nvme.under_test.settle()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0, 0]
        assert nvme.device.dma.read(target, 1024) == backend.memory[3 * BLOCK : 5 * BLOCK]
        assert driver.get_feature(Feature.INTERRUPT_COALESCING) == 0x0105
        assert unpack_namespace_list(driver.identify(0x10)) == [1, 2]
        nvme.device.add_namespace(open_backend("memory:64K"))
        driver.admin_queue.wait(event)
        # The rings go on where they were.
        [completion] = nvme.queue.wait(nvme.queue.submit(read(5, target)))
        assert (completion.status, completion.sq_head) == (0, 3)
        assert nvme.queue.poll() == []
        assert nvme.queue._taken == {}  # nothing was carried out again


def test_a_state_of_other_namespaces_is_refused() -> None:
    with bench() as nvme:
        state = nvme.device.save_state()
    other = Nvme(image="memory:2M")
    with pytest.raises(InvalidAccess, match="this device was made with 2097152 bytes"):
        other.load_state(state)
    other.close()
    other.loop.close()


def test_a_device_that_is_stopped_has_no_writes_under_way() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        write = SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=nvme.buffer(b"\1" * BLOCK))
        cids = nvme.queue.submit(write, read(1, nvme.buffer(size=BLOCK)))
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        assert backend.begun.acquire(timeout=5)
        backend.let_go()
        nvme.device.hold()
        nvme.device.on_state(MigrationState.RUNNING, MigrationState.STOP)
        assert backend.memory[:BLOCK] == b"\1" * BLOCK
        assert list(nvme.device.submission_queues[1].in_flight) == cids[1:]  # a read waits to reach memory
        nvme.device.release()
        nvme.device.on_state(MigrationState.STOP, MigrationState.RUNNING)
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0, 0]
