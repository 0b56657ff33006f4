from __future__ import annotations

import json

import pytest

from tests.devices.scsi.initiator import GOOD, Initiator
from tests.devices.scsi.storage import Jobs
from vfio_user.devices.scsi.logical_unit import command
from vfio_user.devices.scsi.primary import PrimaryUnit
from vfio_user.devices.scsi.task import CommandFailed, Steps, Task, TaskPhase, Work
from vfio_user.hardware.scsi.cdb import Command
from vfio_user.hardware.scsi.codes import AdditionalSense, OperationCode, SenseKey, Status, TaskAttribute
from vfio_user.hardware.scsi.sense import Sense

SIMPLE, ORDERED, HEAD = TaskAttribute.SIMPLE, TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE
UNIT_ATTENTION = SenseKey.UNIT_ATTENTION
TEST_UNIT_READY = "000000000000"
WORK = "250000000000" + "00" * 4


class Unit(PrimaryUnit):
    """One whose READ CAPACITY takes as long as the test wants."""

    @command(OperationCode.READ_CAPACITY_10)
    def work(self, task: Task, cdb: Command) -> Steps:
        yield Work(lambda: None)
        return None

    @command(OperationCode.SEEK_10)
    def break_down(self, task: Task, cdb: Command) -> None:
        raise ZeroDivisionError


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def unit(jobs: Jobs) -> Unit:
    return Unit(workers=jobs)


@pytest.fixture
def initiator(unit: Unit, jobs: Jobs) -> Initiator:
    return Initiator(unit, wait=jobs.step).ready()


# Commands that are not there.


def test_a_command_it_does_not_have(initiator: Initiator) -> None:
    for wrong in ("ff0000000000", "280000000000" + "00" * 4, "c1", ""):
        initiator.illegal(wrong, 0, None, AdditionalSense.INVALID_OPERATION_CODE)
    initiator.illegal("a3050000000000000000" + "0000", 1, 4)  # it has another one of these service actions


def test_a_command_that_is_cut_off(initiator: Initiator) -> None:
    initiator.illegal("1200", 2)
    initiator.illegal("0000000000", 5)
    initiator.good(TEST_UNIT_READY + "0000")  # what is more does no harm


def test_no_auto_contingent_allegiance(initiator: Initiator) -> None:
    initiator.illegal("000000000004", 5, 2)


def test_a_bug_is_told_from_what_may_happen(initiator: Initiator, caplog: pytest.LogCaptureFixture) -> None:
    initiator.check("2b" + "00" * 9, SenseKey.HARDWARE_ERROR, AdditionalSense.INTERNAL_TARGET_FAILURE)
    assert "ZeroDivisionError" in caplog.text


# Order.


@pytest.mark.parametrize(
    ("attributes", "running"),
    [
        ([SIMPLE, SIMPLE], [0, 1]),
        ([SIMPLE, ORDERED, SIMPLE], [0]),
        ([ORDERED, ORDERED], [0]),
        ([ORDERED, SIMPLE], [0]),
        ([SIMPLE, ORDERED, HEAD], [0, 2]),
        ([HEAD, HEAD, SIMPLE], [0, 1]),
    ],
)
def test_what_runs(unit: Unit, initiator: Initiator, attributes: list[TaskAttribute], running: list[int]) -> None:
    tasks = [initiator.start(WORK, tag=tag, attribute=each) for tag, each in enumerate(attributes)]
    assert [number for number, task in enumerate(tasks) if task.started] == running


@pytest.mark.parametrize(
    ("attributes", "command", "status"),
    [
        ([SIMPLE, ORDERED], WORK, Status.BUSY),
        ([ORDERED, SIMPLE], WORK, Status.BUSY),
        ([SIMPLE, SIMPLE], WORK, None),
        ([SIMPLE, HEAD], WORK, None),
        ([SIMPLE, ORDERED], "03000000ff00", None),  # REQUEST SENSE never waits
    ],
)
def test_who_must_not_wait_for_others_is_told_at_once(
    unit: Unit, jobs: Jobs, initiator: Initiator, attributes: list[TaskAttribute], command: str, status: Status | None
) -> None:
    initiator.start(WORK, tag=1, attribute=attributes[0])
    task = Task(0, bytes.fromhex(command), tag=2, attribute=attributes[1], may_wait=False)
    unit.start(task, lambda _: None)
    assert (task.status, task.started) == (status, True)
    assert len(unit.tasks) == (1 if status else 2)


def test_who_waited_runs_in_the_end(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    tasks = [initiator.start(WORK, tag=tag, attribute=each) for tag, each in enumerate([SIMPLE, ORDERED, SIMPLE])]
    order = []
    while jobs.waiting:
        jobs.step()
        order += [tag for tag, task in enumerate(tasks) if task.status is GOOD and tag not in order]
    assert order == [0, 1, 2]
    assert unit.tasks == ()


def test_an_abort_lets_the_next_one_run(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    first, second = initiator.start(WORK, tag=1, attribute=ORDERED), initiator.start(WORK, tag=2)
    started = [second.started]
    unit.abort(first)
    unit.abort(first)
    started.append(second.started)
    jobs.step()
    assert [*started, second.started] == [False, False, True]
    unit.abort(second)
    jobs.step()
    assert (first.status, second.status, unit.tasks) == (None, None, ())


def test_a_task_that_waits_can_be_aborted(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    initiator.start(WORK, tag=1, attribute=ORDERED)
    waiting = initiator.start(WORK, tag=2)
    unit.abort(waiting)
    jobs.step()
    assert (waiting.started, unit.tasks) == (False, ())


def test_any_number_of_tasks_may_wait_for_one_and_each_end_at_once(
    unit: Unit, initiator: Initiator, jobs: Jobs
) -> None:
    initiator.start(WORK, tag=0)
    waiting = [initiator.start(TEST_UNIT_READY, tag=tag, attribute=ORDERED) for tag in range(1, 1000)]
    jobs.step()
    assert {task.status for task in waiting} == {GOOD}
    assert unit.tasks == ()


@pytest.mark.parametrize("attribute", [SIMPLE, ORDERED, HEAD])
@pytest.mark.parametrize("how", ["abort", "abort_all", "reset"])
def test_nothing_overtakes_the_work_of_a_task_that_was_aborted(
    unit: Unit, initiator: Initiator, jobs: Jobs, how: str, attribute: TaskAttribute
) -> None:
    gone = initiator.start(WORK, tag=1)
    late = jobs.waiting.popleft()
    unit.abort(gone) if how == "abort" else getattr(unit, how)()
    after = initiator.start(WORK, tag=1, attribute=attribute)
    assert not jobs.waiting
    initiator.good("120000002400")  # nothing the other could undo
    jobs.waiting.append(late)
    jobs.step()
    assert gone.status is None
    initiator.finish(after)
    assert after.status is (Status.CHECK_CONDITION if how == "reset" else GOOD)


def test_what_tells_about_a_unit_waits_for_nothing(unit: Unit, initiator: Initiator) -> None:
    initiator.start(WORK, tag=1, attribute=ORDERED)
    initiator.start(WORK, tag=2, attribute=ORDERED)
    for harmless in ("120000002400", "030000001200", "a00000000000000000ff0000"):
        initiator.good(harmless)


def test_two_tasks_of_one_tag_both_end(unit: Unit, initiator: Initiator) -> None:
    first = initiator.start(WORK, tag=1)
    initiator.start(WORK, tag=2)
    again = initiator.run(TEST_UNIT_READY, tag=1)
    assert again.status is Status.CHECK_CONDITION
    assert again.sense == Sense(SenseKey.ABORTED_COMMAND, AdditionalSense.OVERLAPPED_COMMANDS)
    assert not first.status
    assert [task.tag for task in unit.tasks] == [2]
    # Another initiator's tags are its own.
    Initiator(unit, id=1).ready().start(WORK, tag=2)
    assert len(unit.tasks) == 2


def test_a_tag_is_free_when_the_status_comes(unit: Unit, initiator: Initiator) -> None:
    again = Task(0, bytes.fromhex(TEST_UNIT_READY))
    first = Task(0, bytes.fromhex(TEST_UNIT_READY))
    unit.start(first, lambda _task: unit.start(again, lambda _task: None))
    assert again.status is GOOD


def test_a_full_task_set(unit: Unit, initiator: Initiator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.devices.scsi.logical_unit._TASK_LIMIT", 2)
    initiator.start(WORK, tag=1)
    initiator.start(WORK, tag=2)
    result = initiator.run(TEST_UNIT_READY, tag=3)
    assert (result.status, result.raw_sense, len(unit.tasks)) == (Status.TASK_SET_FULL, b"", 2)


def test_abort_of_one_initiators_tasks(unit: Unit, initiator: Initiator) -> None:
    other = Initiator(unit, id=3).ready()
    initiator.start(WORK, tag=1)
    theirs = other.start(WORK, tag=1)
    unit.abort_all(7)
    assert unit.tasks == (theirs,)


def test_clear_task_set_tells_the_others(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    other = Initiator(unit, id=3, wait=jobs.step).ready()
    third = Initiator(unit, id=4).ready()
    for each in (initiator, other):
        each.start(WORK, tag=1)
    unit.clear(7)
    assert unit.tasks == ()
    other.check(TEST_UNIT_READY, UNIT_ATTENTION, AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
    initiator.good(TEST_UNIT_READY)
    third.good(TEST_UNIT_READY)


# Unit attentions and sense data.


def test_every_initiator_hears_of_power_on_once(unit: Unit) -> None:
    for number in (7, 3):
        initiator = Initiator(unit, id=number)
        initiator.good("120000002400")
        initiator.good("a00000000000000000ff0000")
        initiator.check(TEST_UNIT_READY, UNIT_ATTENTION, AdditionalSense.POWER_ON)
        initiator.good(TEST_UNIT_READY)


def test_request_sense_reports_an_attention_and_clears_it(unit: Unit) -> None:
    initiator = Initiator(unit)
    assert initiator.last_sense() == Sense(UNIT_ATTENTION, AdditionalSense.POWER_ON)
    assert initiator.last_sense() == Sense(SenseKey.NO_SENSE)
    initiator.good(TEST_UNIT_READY)


def test_a_reset_says_all(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    task = initiator.start(WORK)
    initiator.run("ff0000000000", tag=1)
    unit.attention(AdditionalSense.CAPACITY_CHANGED)
    unit.reset(AdditionalSense.BUS_RESET)
    assert (unit.tasks, task.status) == ((), None)
    unit.attention(AdditionalSense.CAPACITY_CHANGED)
    assert initiator.last_sense() == Sense(UNIT_ATTENTION, AdditionalSense.BUS_RESET)


def test_attentions_wait_in_order_and_once_each(unit: Unit, initiator: Initiator) -> None:
    for what in (AdditionalSense.MODE_PARAMETERS_CHANGED, AdditionalSense.CAPACITY_CHANGED) * 2:
        unit.attention(what)
    initiator.check(TEST_UNIT_READY, UNIT_ATTENTION, AdditionalSense.MODE_PARAMETERS_CHANGED)
    initiator.check(TEST_UNIT_READY, UNIT_ATTENTION, AdditionalSense.CAPACITY_CHANGED)
    initiator.good(TEST_UNIT_READY)


def test_a_reset_that_was_not_heard_of_yet_covers_what_follows(unit: Unit) -> None:
    initiator = Initiator(unit)
    initiator.good("120000002400")
    unit.attention(AdditionalSense.CAPACITY_CHANGED)
    initiator.check(TEST_UNIT_READY, UNIT_ATTENTION, AdditionalSense.POWER_ON)
    initiator.good(TEST_UNIT_READY)


def test_who_it_is_for(unit: Unit, initiator: Initiator) -> None:
    other = Initiator(unit, id=1).ready()
    unit.attention(AdditionalSense.CAPACITY_CHANGED, but=7)
    unit.attention(AdditionalSense.MODE_PARAMETERS_CHANGED, to=7)
    assert initiator.last_sense().additional is AdditionalSense.MODE_PARAMETERS_CHANGED
    assert other.last_sense().additional is AdditionalSense.CAPACITY_CHANGED


def test_sense_data_stays_until_the_next_command(initiator: Initiator) -> None:
    wrong = Sense(SenseKey.ILLEGAL_REQUEST, AdditionalSense.INVALID_OPERATION_CODE)
    initiator.run("ff0000000000")
    initiator.good("120000002400")
    found = initiator.last_sense()
    assert (found.key, found.additional) == (wrong.key, wrong.additional)
    initiator.run("ff0000000000")
    initiator.good(TEST_UNIT_READY)
    assert initiator.last_sense() == Sense(SenseKey.NO_SENSE)


def test_sense_data_is_its_initiators(unit: Unit, initiator: Initiator) -> None:
    other = Initiator(unit, id=1).ready()
    initiator.run("ff0000000000")
    assert other.last_sense() == Sense(SenseKey.NO_SENSE)
    assert initiator.last_sense().key is SenseKey.ILLEGAL_REQUEST


def test_sense_data_that_went_with_the_status_is_not_kept(unit: Unit, initiator: Initiator) -> None:
    unit.autosense = True
    assert initiator.run("ff0000000000").sense.key is SenseKey.ILLEGAL_REQUEST
    assert initiator.last_sense() == Sense(SenseKey.NO_SENSE)


def test_a_status_without_sense(unit: Unit) -> None:
    class Conflict(Unit):
        @command(OperationCode.SEEK_10)
        def break_down(self, task: Task, cdb: Command) -> None:
            raise CommandFailed(Status.RESERVATION_CONFLICT)

    result = Initiator(Conflict()).ready().run("2b" + "00" * 9)
    assert (result.status, result.raw_sense) == (Status.RESERVATION_CONFLICT, b"")


# Saving.


def test_a_saved_unit_remembers(unit: Unit, initiator: Initiator) -> None:
    other = Initiator(unit, id=1)
    other.good("120000002400")
    initiator.run("ff0000000000")
    state = unit.save()
    json.dumps({key: value for key, value in state.items() if key != "senses"})
    loaded = Unit()
    loaded.load(state)
    assert loaded.save() == state
    assert Initiator(loaded).last_sense().additional is AdditionalSense.INVALID_OPERATION_CODE
    assert Initiator(loaded, id=1).last_sense().additional is AdditionalSense.POWER_ON
    Initiator(loaded).good(TEST_UNIT_READY)


def test_a_state_with_two_tasks_of_one_tag_has_the_later_one(unit: Unit, initiator: Initiator) -> None:
    """Nobody saves such a state. Somebody may send one."""
    first, second = (Task(0, bytes.fromhex(WORK), tag=7) for _ in range(2))
    for task in (first, second):
        unit.resume(task, lambda _task: None)
    assert unit.tasks == (second,)
    assert (first.dropped, second.dropped) == (True, False)


def test_saved_tasks_go_on(unit: Unit, initiator: Initiator, jobs: Jobs) -> None:
    running, waiting = initiator.start(WORK, tag=1, attribute=ORDERED), initiator.start(WORK, tag=2)
    ended = initiator.start("120000000000", tag=3, attribute=HEAD)
    unit.attention(AdditionalSense.CAPACITY_CHANGED)
    state, tasks = unit.save(), [Task.load(each.save()) for each in (running, waiting, ended)]
    jobs.waiting.clear()
    loaded, heard = Unit(workers=jobs), list[tuple[int | None, TaskPhase]]()
    loaded.load(state)
    for task in tasks:
        loaded.resume(task, lambda task: heard.append((task.tag, task.phase)))
    assert [task.tag for task in loaded.tasks] == [1, 2]
    jobs.step()
    # The first had begun, so nothing stops it; the second meets what has happened in between.
    assert heard == [(1, TaskPhase.STATUS), (2, TaskPhase.STATUS)]
    assert (tasks[0].status, tasks[1].status) == (Status.GOOD, Status.CHECK_CONDITION)
