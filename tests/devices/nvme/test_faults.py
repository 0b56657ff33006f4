"""Faults on purpose: each kind as a driver sees it, and which commands it hits."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.support.nvme import PatientBackend, bench, fails_with
from vfio_user.devices.nvme import Nvme
from vfio_user.devices.nvme.engines import BatchCommands
from vfio_user.devices.nvme.faults import Fault, FaultKind
from vfio_user.drivers.nvme import NvmeDriver
from vfio_user.errors import InterruptTimeoutError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.identify import Cns
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

BLOCK = 512


def read(slba: int, prp1: int, blocks: int = 1) -> SubmissionEntry:
    return SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=prp1, cdw10=slba, cdw12=blocks - 1)


# Which commands are hit.


def test_a_range_of_blocks() -> None:
    with bench() as nvme:
        fault = nvme.device.faults.add(
            Fault(
                FaultKind.STATUS,
                command=NvmOpcode.READ,
                lbas=range(100, 108),
                status=Status.UNRECOVERED_READ_ERROR,
            )
        )
        for slba, blocks in ((99, 1), (108, 4), (0, 100)):
            nvme.driver.read(nvme.queue, slba, blocks)
        for slba, blocks in ((100, 1), (107, 1), (99, 2), (90, 100)):
            with fails_with(Status.UNRECOVERED_READ_ERROR):
                nvme.driver.read(nvme.queue, slba, blocks)
        nvme.driver.write(nvme.queue, 100, bytes(BLOCK))
        assert nvme.device.health.media_errors == 4
        assert (fault.seen, fault.hits) == (4, 4)
        assert nvme.device.faults.report() == "status of READ of blocks [100, 108): 4 hits of 4 commands"


@pytest.mark.parametrize(
    ("options", "hit"),
    [
        ({"nth": 3}, [3]),
        ({"every": 3}, [3, 6, 9]),
        ({"every": 2, "times": 2}, [2, 4]),
        ({"times": 1}, [1]),
        ({"nsid": 2}, []),
        ({"queue": 2}, []),
        ({"queue": 1, "nth": 1}, [1]),
        ({"command": NvmOpcode.WRITE}, []),
        ({"command": AdminOpcode.GET_LOG_PAGE}, []),  # the opcode of Read, on another queue
    ],
)
def test_how_often(options: dict[str, Any], hit: list[int]) -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.STATUS, **options))
        target = nvme.buffer(size=BLOCK)
        statuses = [nvme.status(read(0, target)) for _ in range(10)]
        assert [number for number, status in enumerate(statuses, 1) if status] == hit


def test_chance_is_the_same_for_the_same_seed() -> None:
    def hits(seed: int) -> list[bool]:
        fault = Fault(FaultKind.DROP, probability=0.3, seed=seed)
        return [fault.strikes(1, read(0, 0)) for _ in range(1000)]

    assert hits(1) == hits(1) != hits(2)
    assert 250 < sum(hits(1)) < 350


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        (FaultKind.DROP, {"nth": 0}, "nth=0: commands are counted from 1"),
        (FaultKind.DROP, {"probability": 0.0}, "over 0 and up to 1"),
        (FaultKind.DROP, {"probability": 1.5}, "over 0 and up to 1"),
        (FaultKind.DELAY, {"seconds": -1.0}, "before it came"),
        (FaultKind.TORN, {"blocks": -1}, "blocks=-1"),
        (FaultKind.STATUS, {"status": Status.SUCCESS}, "no fault"),
        (FaultKind.DROP, {"lbas": range(4, 4)}, "at least one block"),
        (FaultKind.DROP, {"lbas": range(0, 8, 2)}, "steps of 1"),
        (FaultKind.TORN, {"command": NvmOpcode.READ}, "command=READ: torn is a fault of WRITE alone"),
        (FaultKind.DROP, {"command": AdminOpcode.IDENTIFY, "queue": 1}, "IDENTIFY is a command of queue 0"),
        (FaultKind.DROP, {"command": NvmOpcode.READ, "queue": 0}, "READ is an I/O command"),
    ],
)
def test_faults_that_cannot_be(kind: FaultKind, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Fault(kind, **options)


# What becomes of them.


def test_an_admin_command() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.STATUS, command=AdminOpcode.IDENTIFY, retry=True, times=1))
        with pytest.raises(Exception, match="it may be tried again"):
            nvme.driver.identify(Cns.CONTROLLER)
        nvme.driver.identify(Cns.CONTROLLER)


def test_a_delay() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.DELAY, seconds=2.0, nth=1))
        target = nvme.buffer(size=BLOCK)
        late, soon = nvme.queue.submit(read(0, target), read(1, target))
        nvme.under_test.settle()
        assert [completion.cid for completion in nvme.queue.poll()] == [soon]
        nvme.under_test.advance(1.99)
        assert nvme.queue.poll() == []
        nvme.under_test.advance(0.02)
        assert [(completion.cid, completion.status) for completion in nvme.queue.poll()] == [(late, 0)]
        assert nvme.device.submission_queues[1].in_flight == {}


def test_what_is_delayed_is_over_with_a_reset() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.DELAY, command=NvmOpcode.WRITE))
        nvme.queue.submit(SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=nvme.buffer(b"\1" * BLOCK)))
        nvme.under_test.settle()
        nvme.driver.disable()
        nvme.driver.enable()
        queue = nvme.driver.create_queue_pair(16)
        nvme.under_test.advance(2)
        assert queue.poll() == []
        assert nvme.driver.read(queue, 0, 1) == bytes(BLOCK)


def test_a_dropped_command_can_be_aborted() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.DROP, nth=2))
        target = nvme.buffer(size=BLOCK)
        first, lost, third = nvme.queue.submit(*[read(0, target)] * 3)
        assert [completion.status for completion in nvme.queue.wait([first, third])] == [0, 0]
        nvme.under_test.advance(60)
        assert nvme.queue.poll() == []
        abort = SubmissionEntry(AdminOpcode.ABORT, cdw10=lost << 16 | 1)
        assert nvme.driver.admin_queue.execute(abort).dw0 == 0
        assert nvme.queue.wait([lost])[0].status == Status.COMMAND_ABORT_REQUESTED


def test_a_queue_with_a_dropped_command_can_be_deleted() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.DROP))
        cids = nvme.queue.submit(read(0, nvme.buffer(size=BLOCK)))
        nvme.under_test.settle()
        nvme.driver.admin_queue.execute(SubmissionEntry(AdminOpcode.DELETE_IO_SUBMISSION_QUEUE, cdw10=1))
        assert nvme.queue.wait(cids)[0].status == Status.ABORTED_SQ_DELETION


def test_a_lost_interrupt() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.LOSE_INTERRUPT, nth=1))
        target, vector = nvme.buffer(size=BLOCK), nvme.queue.vector
        assert vector is not None
        vector.poll()
        for interrupts in (0, 1):
            nvme.queue.submit(read(0, target))
            nvme.under_test.settle()
            assert vector.poll() == interrupts
            assert [completion.status for completion in nvme.queue.poll()] == [0]


@pytest.mark.parametrize("patient", [False, True])
def test_a_torn_write(patient: bool) -> None:
    backend = PatientBackend(patient=False) if patient else None
    with bench(real_time=patient, backend=backend) as nvme:
        nvme.driver.write(nvme.queue, 0, b"\1" * 16 * BLOCK)
        nvme.device.faults.add(Fault(FaultKind.TORN, blocks=3, times=1))
        nvme.driver.write(nvme.queue, 4, b"\2" * 10 * BLOCK)
        wanted = b"\1" * 4 * BLOCK + b"\2" * 3 * BLOCK + b"\1" * 9 * BLOCK
        assert nvme.driver.read(nvme.queue, 0, 16) == wanted


def test_a_misdirected_write() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.MISDIRECT, to=2047, lbas=range(4, 5)))
        nvme.driver.write(nvme.queue, 4, b"\2" * 2 * BLOCK)  # its second block is behind the end
        assert nvme.driver.read(nvme.queue, 4, 2) == bytes(2 * BLOCK)
        assert nvme.driver.read(nvme.queue, 2047, 1) == b"\2" * BLOCK


@pytest.mark.parametrize("kind", [FaultKind.TORN, FaultKind.MISDIRECT, FaultKind.CORRUPT])
def test_a_command_that_fails_anyway_fails_as_it_does(kind: FaultKind) -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(kind))
        opcode = NvmOpcode.READ if kind is FaultKind.CORRUPT else NvmOpcode.WRITE
        target = nvme.buffer(size=4096)
        for entry, status in (
            (SubmissionEntry(opcode, nsid=9, prp1=target), Status.INVALID_FIELD),
            (SubmissionEntry(opcode, nsid=1, prp1=target, cdw10=1 << 20), Status.LBA_OUT_OF_RANGE),
            (SubmissionEntry(opcode, nsid=1, prp1=target, cdw12=0xFFFF), Status.INVALID_FIELD),
            (SubmissionEntry(opcode, nsid=1, prp1=target + 1), Status.PRP_OFFSET_INVALID),
            (SubmissionEntry(opcode, nsid=1, prp1=0x7777_0000_0000), Status.DATA_TRANSFER_ERROR),
        ):
            assert nvme.status(entry) == status


def test_a_corrupted_read_has_one_wrong_bit() -> None:
    with bench() as nvme:
        data = os.urandom(4 * BLOCK)
        nvme.driver.write(nvme.queue, 0, data)
        nvme.device.faults.add(Fault(FaultKind.CORRUPT, times=1))
        got = nvme.driver.read(nvme.queue, 0, 4)
        difference = int.from_bytes(got, "little") ^ int.from_bytes(data, "little")
        assert difference.bit_count() == 1
        assert nvme.driver.read(nvme.queue, 0, 4) == data


def test_the_controller_fails() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.FATAL, nth=2))
        data = nvme.buffer(b"\1" * BLOCK)
        write = SubmissionEntry(NvmOpcode.WRITE, nsid=1, prp1=data)
        nvme.queue.submit(*[write._replace(cdw10=block) for block in range(3)])
        nvme.under_test.settle()
        assert nvme.driver.registers.csts.cfs == 1
        again = NvmeDriver(nvme.function)
        assert nvme.driver.registers.csts.cfs == 0
        # Nothing of what came behind was carried out.
        assert again.read(again.create_queue_pair(), 0, 3) == b"\1" * BLOCK + bytes(2 * BLOCK)


def test_the_controller_hangs_until_it_is_reset() -> None:
    with bench() as nvme:
        nvme.device.faults.add(Fault(FaultKind.HANG, times=1))
        nvme.queue.submit(read(0, nvme.buffer(size=BLOCK)))
        with pytest.raises(InterruptTimeoutError):
            nvme.driver.identify(Cns.CONTROLLER)
        assert nvme.driver.registers.csts.rdy == 1
        nvme.driver.disable()
        nvme.driver.enable()
        nvme.driver.read(nvme.driver.create_queue_pair(), 0, 1)


# Together with what there is without.


def test_commands_nobody_hits_are_still_carried_out_together() -> None:
    pytest.importorskip("numpy")
    with bench() as nvme:
        engine = nvme.device.engine
        assert isinstance(engine, BatchCommands)
        nvme.device.faults.add(Fault(FaultKind.STATUS, nth=6))
        target = nvme.buffer(size=4096)
        cids = nvme.queue.submit(*[read(8 * number, target, 8) for number in range(11)])
        statuses = [bool(completion.status) for completion in nvme.queue.wait(cids)]
        assert statuses == [False] * 5 + [True] + [False] * 5
        assert engine.together == 10


def test_without_faults_nothing_is_in_the_way() -> None:
    device = Nvme(image="memory:1M")
    before = device.engine, device.admin_engine
    faults = [device.faults.add(Fault(FaultKind.DROP)) for _ in range(2)]
    assert (device.engine, device.admin_engine) == (device.faults, device.faults)
    assert list(device.faults) == faults
    device.faults.remove(faults[0])
    assert device.engine is device.faults
    device.faults.remove(faults[1])
    assert (device.engine, device.admin_engine) == before
    assert device.posted == device.vectors.posted
    device.close()
    device.loop.close()


def test_halves_of_fused_commands_are_not_hit() -> None:
    with bench() as nvme:
        fault = nvme.device.faults.add(Fault(FaultKind.DROP))
        data = nvme.buffer(bytes(BLOCK))
        first = SubmissionEntry(NvmOpcode.COMPARE, flags=1, nsid=1, prp1=data)
        second = SubmissionEntry(NvmOpcode.WRITE, flags=2, nsid=1, prp1=data)
        assert [completion.status for completion in nvme.queue.wait(nvme.queue.submit(first, second))] == [0, 0]
        assert fault.seen == 0
