from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial

import pytest

from tests.devices.scsi.storage import Jobs
from vfio_user.devices.scsi.task import (
    CommandFailed,
    DataIn,
    DataOut,
    Steps,
    StoredDataIn,
    Task,
    TaskPhase,
    Work,
    run_at_once,
)
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status, TaskAttribute
from vfio_user.hardware.scsi.sense import Sense

BUSY, DATA_IN, DATA_OUT, STATUS = TaskPhase.BUSY, TaskPhase.DATA_IN, TaskPhase.DATA_OUT, TaskPhase.STATUS
SENSE = Sense(SenseKey.ABORTED_COMMAND, AdditionalSense.DATA_PHASE_ERROR)


class Run:
    """A task, and what was heard of it."""

    def __init__(self, steps: Steps | None = None, jobs: Jobs | None = None, task: Task | None = None) -> None:
        self.task = task or Task(0, b"\x28" * 10, tag=5)
        self.jobs = jobs
        self.heard: list[TaskPhase] = []
        self.finished = 0
        self.errors: list[Exception] = []
        if steps is not None:
            self.begin(steps)

    def begin(self, steps: Steps) -> None:
        self.task.begin(
            steps,
            run=run_at_once if self.jobs is None else self.jobs.submit,
            notify=lambda task: self.heard.append(task.phase),
            finished=self._finished,
            fail=self._fail,
        )

    def _finished(self, _task: Task) -> None:
        self.finished += 1

    def _fail(self, _task: Task, exc: Exception) -> tuple[Status, bytes]:
        self.errors.append(exc)
        if isinstance(exc, CommandFailed):
            return exc.status, exc.sense.pack() if exc.sense else b""
        return Status.CHECK_CONDITION, SENSE.pack()


def sends(*pieces: bytes, total: int = 0, task: Task | None = None) -> Steps:
    if task is not None:
        task.expect(total)
    for piece in pieces:
        yield DataIn(piece)
    return None


def takes(into: list[bytes], lengths: Iterable[int]) -> Steps:
    for length in lengths:
        piece = yield DataOut(length)
        into.append(bytes(piece))
    return None


def works(*calls: object) -> Steps:
    results = []
    for value in calls:
        result = yield Work(partial(str, value))
        results.append(result)
    yield DataIn(repr(results).encode())
    return None


def raises(exc: Exception) -> object:
    raise exc


def nothing() -> Steps:
    yield from ()
    return None


def test_a_command_without_data() -> None:
    run = Run(nothing())
    assert run.heard == [STATUS]
    assert (run.task.status, run.task.sense, run.task.remaining, run.finished) == (Status.GOOD, b"", 0, 1)


def test_another_status_than_good() -> None:
    def steps() -> Steps:
        yield from ()
        return Status.CONDITION_MET

    assert Run(steps()).task.status is Status.CONDITION_MET


def test_data_in_of_one_piece() -> None:
    run = Run(sends(b"hello"))
    assert (run.heard, run.task.remaining) == ([DATA_IN], 5)
    assert bytes(run.task.read(2)) == b"he"
    assert run.task.remaining == 3
    assert bytes(run.task.read(0)) == b""
    assert bytes(run.task.read(100)) == b"llo"
    assert (run.heard, run.task.remaining, run.task.residual) == ([DATA_IN, STATUS], 0, 0)
    assert bytes(run.task.read(1)) == b""


def test_data_in_of_several_pieces() -> None:
    task = Task(0, b"\x28" * 10)
    run = Run(task=task)
    run.begin(sends(b"abc", b"", b"de", task=task, total=5))
    assert task.remaining == 5
    first = task.read(10)
    assert (bytes(first), task.remaining, task.phase) == (b"abc", 2, DATA_IN)
    assert (bytes(task.read(10)), bytes(first), task.phase) == (b"de", b"abc", STATUS)
    assert run.heard == [DATA_IN, STATUS]


def test_data_out_of_any_portions() -> None:
    got: list[bytes] = []
    run = Run(takes(got, [4, 3]))
    task = run.task
    assert (run.heard, task.remaining) == ([DATA_OUT], 4)
    task.write(b"ab")
    assert task.remaining == 2
    task.write(memoryview(b"cdXX"))  # the end of it is beyond what is asked for
    assert (got, task.remaining) == ([b"abcd"], 3)
    task.write(b"efg")
    assert (got, run.heard, task.status) == ([b"abcd", b"efg"], [DATA_OUT, STATUS], Status.GOOD)
    task.write(b"more")


def test_what_is_in_hand_moves_without_more_ado() -> None:
    run = Run(sends(b"abcd", b"ef"))
    task = run.task
    assert task.in_hand == 4
    assert bytes(task.read(3)) == b"abc"
    assert task.in_hand == 1
    assert bytes(task.read(1)) == b"d"
    assert task.in_hand == 2
    task.read(2)
    assert (task.phase, task.in_hand) == (STATUS, 0)
    into: list[bytes] = []
    run = Run(takes(into, [4]))
    assert run.task.in_hand == 4
    run.task.write(b"abc")
    assert run.task.in_hand == 1
    assert not into
    run.task.write(b"d")
    assert into == [b"abcd"]
    assert run.task.in_hand == 0


def places(*lengths: int) -> list[memoryview]:
    return [memoryview(bytearray(length)) for length in lengths]


def test_bytes_in_memory_go_straight_to_where_they_go() -> None:
    run = Run(sends(b"abcdef", b"gh"))
    task = run.task
    views = places(1, 3)
    assert task.read_into(views)
    assert [bytes(view) for view in views] == [b"a", b"bcd"]
    assert (task.remaining, task.in_hand) == (2, 2)
    assert not task.read_into(places(3))  # beyond what is in hand
    assert (task.remaining, task.in_hand) == (2, 2)
    assert task.read_into(views := places(2))
    assert bytes(views[0]) == b"ef"
    assert task.read_into(places(2))
    assert (task.phase, task.read_into(places(1))) == (STATUS, False)


class Stored:
    """Bytes that are at hand, or not."""

    def __init__(self, data: bytes, *, at_hand: bool = True) -> None:
        self.data, self.at_hand = data, at_hand
        self.failure: Exception | None = None
        self.seen: list[tuple[str, int, int]] = []

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        self._fill("read", offset, views)

    def read_at_once(self, offset: int, views: Sequence[memoryview], /) -> bool:
        if self.at_hand:
            self._fill("at once", offset, views)
        return self.at_hand

    def _fill(self, how: str, offset: int, views: Sequence[memoryview]) -> None:
        if self.failure is not None:
            raise self.failure
        self.seen.append((how, offset, sum(map(len, views))))
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)


def stored(source: Stored, task: Task | None = None, *, length: int = 8) -> Steps:
    if task is not None:
        task.expect(length + 2)
    yield StoredDataIn(source, 4, 0)
    yield StoredDataIn(source, 4, length)
    yield DataIn(b"!!")
    return None


def test_stored_bytes_go_straight_to_where_they_go() -> None:
    source = Stored(bytes(range(32)))
    task = Task(0, b"\x28" * 10)
    run = Run(task=task)
    run.begin(stored(source, task))
    assert (run.heard, task.in_hand, task.remaining, source.seen) == ([DATA_IN], 8, 10, [])
    views = places(2, 3)
    assert task.read_into(views)
    assert [bytes(view) for view in views] == [b"\4\5", b"\6\7\10"]
    assert (task.in_hand, task.remaining, task.done) == (3, 5, 5)
    assert not task.read_into(places(4))
    assert task.read_into(views := places(3))
    assert bytes(views[0]) == b"\t\n\v"
    assert bytes(task.read(9)) == b"!!"
    assert (task.status, source.seen) == (Status.GOOD, [("at once", 4, 5), ("at once", 9, 3)])


def test_stored_bytes_for_an_adapter_that_wants_them_in_memory() -> None:
    source = Stored(bytes(range(32)))
    run = Run(stored(source))
    task = run.task
    assert bytes(task.read(3)) == b"\4\5\6"
    assert (task.in_hand, task.remaining, source.seen) == (5, 5, [("at once", 4, 8)])
    assert not task.read_into(places(6))
    assert task.read_into(views := places(4))
    assert bytes(views[0]) == b"\7\10\t\n"
    assert bytes(task.read(9)) == b"\v"
    assert bytes(task.read(9)) == b"!!"
    assert (run.heard, task.status) == ([DATA_IN, STATUS], Status.GOOD)


@pytest.mark.parametrize("at_once", [False, True])
def test_stored_bytes_that_are_not_at_hand_after_all(at_once: bool) -> None:
    source = Stored(bytes(range(32)), at_hand=False)
    jobs = Jobs()
    run = Run(stored(source), None if at_once else jobs)
    task = run.task
    assert not task.read_into(places(2))
    assert (task.phase, task.remaining) == (DATA_IN, 8)
    first = bytes(task.read(3))
    if not at_once:
        assert (first, task.phase, run.heard) == (b"", BUSY, [DATA_IN, BUSY])
        jobs.step()
        assert (task.phase, run.heard) == (DATA_IN, [DATA_IN, BUSY, DATA_IN])
        first = bytes(task.read(3))
    assert first + bytes(task.read(9)) == bytes(range(4, 12))
    assert (bytes(task.read(9)), task.status) == (b"!!", Status.GOOD)
    assert source.seen == [("read", 4, 8)]


@pytest.mark.parametrize("failure", [OSError(5, "gone"), ValueError("the backend is closed")])
@pytest.mark.parametrize("at_once", [False, True])
def test_stored_bytes_that_cannot_be_read(at_once: bool, failure: Exception) -> None:
    source = Stored(bytes(32), at_hand=isinstance(failure, ValueError))
    source.failure = failure
    jobs = Jobs()
    run = Run(stored(source), None if at_once else jobs)
    assert not run.task.read_into(places(3))
    assert bytes(run.task.read(3)) == b""
    if not at_once:
        jobs.step()
    assert (run.task.phase, run.task.status, run.errors) == (STATUS, Status.CHECK_CONDITION, [source.failure])
    assert run.task.residual == 8


def test_a_task_that_is_dropped_while_stored_bytes_are_waited_for() -> None:
    source = Stored(bytes(32), at_hand=False)
    jobs = Jobs()
    run = Run(stored(source), jobs)
    run.task.read(1)
    run.task.drop()
    jobs.step()
    assert (run.task.phase, run.heard, run.finished) == (BUSY, [DATA_IN, BUSY], 0)


@pytest.mark.parametrize("moved", [0, 3])
def test_a_task_with_stored_bytes_is_saved_without_them(moved: int) -> None:
    """They are at the other end as well; and here it may be that they cannot be read."""
    source = Stored(bytes(range(32)))
    task = Task(0, b"\x28" * 10)
    Run(task=task).begin(stored(source, task))
    if moved:
        assert task.read_into(places(moved))
    source.failure = OSError(5, "gone")
    state = task.save()
    assert len(json.dumps({**state, "cdb": "", "piece": len(state["piece"]), "sense": ""})) < 400  # type: ignore[arg-type]
    saved = Task.load(state)
    assert (saved.phase, saved.started, saved.remaining, saved.done) == (BUSY, True, 10 - moved, moved)
    run = Run(task=saved)
    run.begin(sends(bytes(range(4 + moved, 12)), b"!!", task=saved, total=10))
    assert bytes(saved.read(99)) == bytes(range(4 + moved, 12))
    assert (bytes(saved.read(99)), saved.status) == (b"!!", Status.GOOD)


@pytest.mark.parametrize("moved", [1, 3])
def test_stored_bytes_that_were_fetched_are_saved(moved: int) -> None:
    task = Task(0, b"\x28" * 10)
    Run(task=task).begin(stored(Stored(bytes(range(32))), task))
    assert len(task.read(moved)) == moved
    saved = Task.load(task.save())
    run = Run(task=saved)
    assert (saved.phase, saved.remaining, saved.done) == (DATA_IN, 10 - moved, moved)
    run.begin(sends(b"!!"))
    assert bytes(saved.read(99)) == bytes(range(4 + moved, 12))
    assert (bytes(saved.read(99)), saved.status) == (b"!!", Status.GOOD)


def test_a_large_portion_serves_several_steps() -> None:
    got: list[bytes] = []
    task = Task(0, b"\x2a" * 10)
    task.expect(7)
    run = Run(task=task)
    run.begin(takes(got, [4, 3]))
    assert task.remaining == 7
    task.write(b"abcdefg")
    assert (got, task.status) == ([b"abcd", b"efg"], Status.GOOD)


def test_work_is_waited_for() -> None:
    jobs = Jobs()
    run = Run(works(1, 2), jobs)
    assert (run.task.phase, run.heard) == (BUSY, [])
    jobs.step()
    assert run.task.phase is BUSY
    jobs.step()
    assert run.heard == [DATA_IN]
    assert bytes(run.task.read(99)) == b"['1', '2']"


def test_work_done_at_once() -> None:
    run = Run(works(1, 2))
    assert run.heard == [DATA_IN]
    assert bytes(run.task.read(99)) == b"['1', '2']"


@pytest.mark.parametrize("threads", [False, True])
def test_work_that_fails(threads: bool) -> None:
    jobs = Jobs() if threads else None

    def steps() -> Steps:
        with pytest.raises(OSError, match="first"):
            yield Work(lambda: raises(OSError(5, "first")))
        yield Work(lambda: raises(OSError(6, "disk")))
        return None

    run = Run(steps(), jobs)
    while jobs and jobs.waiting:
        jobs.step()
    assert (run.task.status, run.task.sense) == (Status.CHECK_CONDITION, SENSE.pack())
    assert [exc.errno for exc in run.errors if isinstance(exc, OSError)] == [6]


def test_busy_between_two_pieces() -> None:
    jobs = Jobs()

    def steps() -> Steps:
        yield DataIn(b"ab")
        yield Work(lambda: None)
        yield DataIn(b"cd")
        return None

    task = Task(0, b"\x28" * 10)
    task.expect(4)
    run = Run(task=task, jobs=jobs)
    run.begin(steps())
    task.read(9)
    assert (task.phase, task.remaining, bytes(task.read(9))) == (BUSY, 2, b"")
    jobs.step()
    task.read(9)
    assert run.heard == [DATA_IN, BUSY, DATA_IN, STATUS]


def test_a_read_that_fails_in_the_middle() -> None:
    def steps() -> Steps:
        yield DataIn(b"ab")
        raise CommandFailed(Status.CHECK_CONDITION, SENSE)

    task = Task(0, b"\x28" * 10)
    task.expect(6)
    run = Run(task=task)
    run.begin(steps())
    task.read(9)
    assert (task.status, task.sense, task.residual, task.remaining) == (Status.CHECK_CONDITION, SENSE.pack(), 4, 0)


def test_the_adapter_may_read_on_while_it_is_notified() -> None:
    taken = bytearray()

    def notify(task: Task) -> None:
        while task.phase is DATA_IN:
            taken.extend(task.read(2))

    task = Task(0, b"\x28" * 10)
    task.expect(6)
    task.begin(
        sends(b"abc", b"def"),
        run=run_at_once,
        notify=notify,
        finished=lambda _task: None,
        fail=lambda _task, exc: (Status.BUSY, b""),
    )
    assert (bytes(taken), task.phase) == (b"abcdef", STATUS)


def test_an_initiator_that_ends_the_data_phase() -> None:
    reading, got = Run(sends(b"abcd")), [b""]
    reading.task.read(1)
    reading.task.end_data()
    assert (reading.task.status, reading.task.residual) == (Status.GOOD, 3)
    writing = Run(takes(got, [4]))
    writing.task.write(b"ab")
    writing.task.end_data()
    assert (writing.task.status, writing.task.residual, got) == (Status.CHECK_CONDITION, 2, [b""])
    assert isinstance(writing.errors[0], EOFError)
    assert writing.finished == 1
    writing.task.end_data()


def test_a_task_that_is_dropped_is_not_heard_of() -> None:
    jobs = Jobs()
    run = Run(works(1), jobs)
    run.task.drop()
    jobs.step()
    assert (run.heard, run.finished, run.task.phase, run.task.status) == ([], 0, BUSY, None)
    assert run.task.remaining == 0
    assert bytes(run.task.read(1)) == b""


def test_a_task_ends_once() -> None:
    run = Run(nothing())
    run.task.finish(Status.BUSY)
    assert (run.task.status, run.finished) == (Status.GOOD, 1)


def test_in_words() -> None:
    run = Run(nothing())
    assert repr(run.task) == f"<Task lun 0 tag 0x5 {'28 ' * 9}28: status GOOD>"
    assert repr(Task(1, b"\0")) == "<Task lun 1 00: busy>"


def test_a_failure_in_words() -> None:
    assert str(CommandFailed(Status.BUSY)) == "BUSY"
    assert "DATA_PHASE_ERROR" in str(CommandFailed(Status.CHECK_CONDITION, SENSE))


# Saved and loaded: plain values in between.


def reloaded(task: Task) -> Task:
    state = task.save()
    assert all(isinstance(value, bytes | None) or json.loads(json.dumps(value)) == value for value in state.values())
    return Task.load(state)


def test_a_saved_read_goes_on_where_it_was() -> None:
    def steps(task: Task) -> Steps:
        task.expect(6)
        while task.done < 6:
            yield DataIn(b"abcdef"[task.done : task.done + 3])
        return None

    first = Run(task=Task(3, b"\x28" * 10, tag=9, attribute=TaskAttribute.ORDERED, initiator=2))
    first.begin(steps(first.task))
    first.task.read(1)
    task = reloaded(first.task)
    assert (task.lun, task.tag, task.attribute, task.initiator) == (3, 9, TaskAttribute.ORDERED, 2)
    assert (task.phase, task.remaining, task.started) == (DATA_IN, 5, True)
    second = Run(task=task)
    second.begin(steps(task))
    assert second.heard == []
    taken = bytearray()
    while task.phase is DATA_IN:
        taken += task.read(2)
    assert (bytes(taken), task.status) == (b"bcdef", Status.GOOD)


def test_a_saved_read_of_one_piece_is_not_carried_out_again() -> None:
    first = Run(sends(b"abc"))
    first.task.read(1)
    second = Run(sends(b"other"), task=reloaded(first.task))
    assert bytes(second.task.read(9)) == b"bc"
    assert second.task.status is Status.GOOD


def test_a_saved_write_keeps_what_was_given() -> None:
    def steps(task: Task, into: bytearray) -> Steps:
        task.expect(6)
        start = task.done
        while start < 6:
            piece = bytes((yield DataOut(3)))
            yield Work(partial(into.__setitem__, slice(start, start + 3), piece))
            start += 3
        return None

    disk, jobs = bytearray(6), Jobs()
    first = Run(task=Task(0, b"\x2a" * 10), jobs=jobs)
    first.begin(steps(first.task, disk))
    first.task.write(b"ab")
    second = Run(task=reloaded(first.task), jobs=jobs)
    assert (second.task.phase, second.task.remaining) == (DATA_OUT, 4)
    second.begin(steps(second.task, disk))
    second.task.write(b"cd")  # one more than the piece: it stays for the next one
    assert (second.task.phase, second.task.done) == (BUSY, 0)
    # Saved while storage is at work: it is done once more.
    third = Run(task=reloaded(second.task), jobs=jobs)
    jobs.waiting.clear()
    third.begin(steps(third.task, disk))
    jobs.step()
    assert (third.task.phase, third.task.remaining, third.task.done) == (DATA_OUT, 2, 3)
    fourth = Run(task=reloaded(third.task), jobs=jobs)
    fourth.begin(steps(fourth.task, disk))
    fourth.task.write(b"ef")
    jobs.step()
    assert (bytes(disk), fourth.task.status) == (b"abcdef", Status.GOOD)


def test_a_saved_status() -> None:
    first = Run(task=Task(0, b"\0" * 6))
    first.task.finish(Status.CHECK_CONDITION, SENSE.pack())
    task = reloaded(first.task)
    assert (task.status, task.sense, task.phase) == (Status.CHECK_CONDITION, SENSE.pack(), STATUS)
