from __future__ import annotations

import pytest

from tests.devices.scsi.initiator import GOOD, Result
from tests.devices.scsi.storage import Storage
from vfio_user.devices.scsi import Disk, ScsiBus, Target, Task, TaskPhase
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status
from vfio_user.hardware.scsi.sense import Sense

TEST_UNIT_READY, INQUIRY = bytes(6), bytes.fromhex("120000002400")


def disk() -> Disk:
    return Disk(Storage(64 * 512))


def run(target: Target, lun: int, command: bytes | str, initiator: int = 7) -> Result:
    command = bytes.fromhex(command) if isinstance(command, str) else command
    task, data = Task(lun, command, initiator=initiator), bytearray()
    target.start(task, lambda _task: None)
    while task.phase is TaskPhase.DATA_IN:
        data += task.read(1 << 20)
    return Result(task.status, bytes(data), task.sense, task.residual)


def sense(target: Target, lun: int, initiator: int = 7) -> AdditionalSense:
    return Sense.unpack(run(target, lun, "03000000ff00", initiator).data).additional


@pytest.fixture
def target() -> Target:
    return Target({0: disk(), 5: disk(), 300: disk()})


def test_tasks_reach_their_logical_unit(target: Target) -> None:
    assert target.unit(5) is target.luns[5]
    assert run(target, 5, TEST_UNIT_READY).sense.key is SenseKey.UNIT_ATTENTION
    assert run(target, 5, TEST_UNIT_READY).status is GOOD
    assert run(target, 0, TEST_UNIT_READY).sense.key is SenseKey.UNIT_ATTENTION


@pytest.mark.parametrize("lun", [0, 5, 1, 7])
def test_every_lun_reports_all(target: Target, lun: int) -> None:
    expected = "00000018 00000000 0000000000000000 0005000000000000 412c000000000000"
    assert run(target, lun, "a00000000000 00000100 0000").data == bytes.fromhex(expected)
    assert run(target, lun, "a00001000000 00000100 0000").data == bytes(8)
    assert run(target, lun, "a00002000000 00000010 0000").data == bytes.fromhex(expected)[:16]


def test_report_luns_that_is_wrong(target: Target) -> None:
    for command, byte in [("a00003000000 00000100 0000", 2), ("a00000000000 0000000f 0000", 6)]:
        found = run(target, 0, command).sense
        assert found.additional is AdditionalSense.INVALID_FIELD_IN_CDB
        assert found.pointer is not None
        assert found.pointer.byte == byte


def test_a_lun_that_is_not_there(target: Target) -> None:
    assert run(target, 1, INQUIRY).data[0] == 0x7F
    for command in (TEST_UNIT_READY, b"", b"\xff", b"\x28" + bytes(9), b"\x25" + bytes(9)):
        found = run(target, 1, command).sense
        assert (found.key, found.additional) == (
            SenseKey.ILLEGAL_REQUEST,
            AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED,
        )
    assert sense(target, 1) is AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED
    assert sense(target, 1) is AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED


def test_a_number_that_is_none() -> None:
    with pytest.raises(ValueError, match="LUN 16384 is not in"):
        Target({1 << 14: disk()})


def test_adapters_that_deliver_sense_data() -> None:
    target = Target({0: disk()}, autosense=True)
    sense(target, 0)
    assert run(target, 0, b"\xff").sense.additional is AdditionalSense.INVALID_OPERATION_CODE
    assert sense(target, 0) is AdditionalSense.NONE


def test_resets(target: Target) -> None:
    for reset, reason in [
        (target.reset, AdditionalSense.BUS_DEVICE_RESET),
        (ScsiBus({3: target}).reset, AdditionalSense.BUS_RESET),
        (lambda: target.reset_unit(0), AdditionalSense.BUS_DEVICE_RESET),
    ]:
        sense(target, 0)
        reset()
        assert sense(target, 0) is reason
        assert sense(target, 0) is AdditionalSense.NONE


def test_aborts(target: Target) -> None:
    def started(initiator: int, tag: int) -> Task:
        task = Task(0, bytes.fromhex("28000000000000000100"), initiator=initiator, tag=tag)
        target.start(task, lambda _task: None)
        return task

    for initiator in (7, 6):
        sense(target, 0, initiator)
    first, second, third = started(7, 1), started(7, 2), started(6, 1)
    target.abort(first)
    assert list(target.luns[0].tasks) == [second, third]
    target.abort_task_set(0, 7)
    assert list(target.luns[0].tasks) == [third]
    target.clear_task_set(0, 7)
    assert target.luns[0].tasks == ()
    assert sense(target, 0, 6) is AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR


def test_saving(target: Target) -> None:
    bus = ScsiBus({2: target})
    sense(target, 0)
    state = bus.save()
    other = ScsiBus({2: Target({0: disk(), 5: disk(), 300: disk()})})
    other.load(state)
    assert other.save() == state
    assert sense(other.targets[2], 0) is AdditionalSense.NONE
    assert sense(other.targets[2], 5) is AdditionalSense.POWER_ON
    with pytest.raises(ValueError, match=r"has targets \['2'\], this one \[\]"):
        ScsiBus().load(state)
    with pytest.raises(ValueError, match="has logical units"):
        Target({}).load(state["2"])


def test_a_task_goes_on_at_its_target(target: Target) -> None:
    sense(target, 0)
    task = Task(0, bytes.fromhex("28000000000000000100"))
    target.start(task, lambda _task: None)
    task.read(500)
    moved, other = Task.load(task.save()), Target({0: disk()})
    other.load({"0": target.save()["0"]})
    heard: list[TaskPhase] = []
    other.resume(moved, lambda task: heard.append(task.phase))
    assert (len(moved.read(500)), heard, moved.status) == (12, [TaskPhase.STATUS], Status.GOOD)
