"""``Task``: one command on its way through a target, as a host bus adapter drives it.

Theory of operation. A logical unit carries a command out as a generator of *steps*: what it needs next - bytes taken
by the initiator (``DataIn``), bytes from it (``DataOut``), work that may block (``Work``). The task runs the
generator from one step to the next and shows the adapter just the phase it is in::

    start() -> BUSY -> DATA_IN  -> (BUSY -> DATA_IN ...)  -> STATUS
                    -> DATA_OUT -> (BUSY -> DATA_OUT ...) -> (BUSY) -> STATUS

The adapter moves data at its own pace, in portions of its own: ``read`` while the phase is DATA_IN, ``write`` while it
is DATA_OUT. Large transfers come in pieces; a task is BUSY between two of them where storage has to be waited for.

A task can be saved in any phase. A generator cannot, so a unit's generator begins at ``task.done``: the bytes of the
data phase that are settled, none for a task that is new.

Threading: everything on the device's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from vfio_user.hardware.scsi.codes import Status, TaskAttribute
from vfio_user.hardware.scsi.sense import Sense

__all__ = [
    "Buffer",
    "CommandFailed",
    "DataIn",
    "DataOut",
    "Runner",
    "Source",
    "Step",
    "Steps",
    "StoredDataIn",
    "Task",
    "TaskPhase",
    "Work",
    "WorkQueue",
    "run_at_once",
]

Buffer = bytes | bytearray | memoryview

_NOTHING = memoryview(b"")


class TaskPhase(Enum):
    """What the target wants next."""

    BUSY = "busy"
    DATA_IN = "data in"
    DATA_OUT = "data out"
    STATUS = "status"


@dataclass(slots=True)
class DataIn:
    """A step: these bytes go to the initiator. Nobody changes them until they have gone."""

    data: Buffer


class Source(Protocol):
    """Where bytes are: a ``vfio_user.backends.Backend``."""

    def read(self, offset: int, views: Sequence[memoryview], /) -> None:
        """Fills the views with the bytes from ``offset`` on."""

    def read_at_once(self, offset: int, views: Sequence[memoryview], /) -> bool:
        """The same, if nothing has to be waited for; else, False."""


@dataclass(slots=True)
class StoredDataIn:
    """A step: bytes that can very likely be had at once go to the initiator. They are read when they are moved."""

    source: Source
    offset: int
    length: int

    def read_at_once(self, views: Sequence[memoryview]) -> bool:
        """Fills the views with the first of the bytes, if nothing has to be waited for, and nothing is wrong."""
        try:
            return self.source.read_at_once(self.offset, views)
        except ValueError:  # the medium was taken out, and closed: a read that may fail will say so
            return False


@dataclass(slots=True)
class DataOut:
    """A step: the initiator sends that many bytes; the generator gets them as a memoryview, its own to keep."""

    length: int


@dataclass(slots=True)
class Work:
    """A step: a call that may block, and whose result the generator gets, or the exception it raised."""

    call: Callable[[], object]


Step = DataIn | StoredDataIn | DataOut | Work
Steps = Generator[Step, Any, Status | None]

#: Runs work, maybe on another thread, and calls back on the device's with its result or its exception.
Runner = Callable[[Callable[[], object], Callable[[object], None]], object]


class WorkQueue(Protocol):
    """Where work that may block is done: ``vfio_user.backends.Workers``."""

    def submit(self, work: Callable[[], object], done: Callable[[object], None], /) -> object:
        """Does the work on another thread, then calls back on the device's, with the result or the exception."""


class CommandFailed(Exception):
    """A command ends with a status other than GOOD.

    Attributes:
        status: which.
        sense: what is wrong, of a CHECK CONDITION.
    """

    def __init__(self, status: Status, sense: Sense | None = None) -> None:
        super().__init__(f"{status.name} {sense or ''}".strip())
        self.status = status
        self.sense = sense


class Task:
    """A command, from the moment a target has it until its status is taken.

    Args:
        lun: the logical unit it is for.
        cdb: the command descriptor block.
        tag: what the initiator calls it; None for an untagged task.
        attribute: its order among the tasks of the unit.
        may_wait: for tasks that came before it; if not, and it would have to, it ends with BUSY. (An initiator that
            keeps the bus to itself until a task has ended keeps others from ending.)
        initiator: who sent it: a SCSI id, or whatever tells initiators apart.

    Attributes:
        phase: what the target wants next.
        remaining: bytes of the data phase still to move, 0 while there is none.
        status: how it ended; None until the phase is STATUS.
        sense: sense data of a CHECK CONDITION, for adapters that deliver it with the status.
        residual: bytes of the data phase that were never moved.
        done: bytes of the data phase the logical unit has settled.
        started: the logical unit carries it out, rather than waiting for others to end.
        dropped: it was forgotten, and will never end.
    """

    __slots__ = (
        "_fail",
        "_finished",
        "_length",
        "_notify",
        "_piece",
        "_position",
        "_run",
        "_steps",
        "_stored",
        "_taken",
        "_wanted",
        "attribute",
        "cdb",
        "done",
        "dropped",
        "initiator",
        "lun",
        "may_wait",
        "phase",
        "remaining",
        "residual",
        "sense",
        "started",
        "status",
        "tag",
    )

    def __init__(
        self,
        lun: int,
        cdb: bytes,
        *,
        tag: int | None = None,
        attribute: TaskAttribute = TaskAttribute.SIMPLE,
        may_wait: bool = True,
        initiator: int = 7,
    ) -> None:
        self.lun = lun
        self.cdb = bytes(cdb)
        self.tag = tag
        self.attribute = attribute
        self.may_wait = may_wait
        self.initiator = initiator
        self.phase = TaskPhase.BUSY
        self.remaining = 0
        self.status: Status | None = None
        self.sense = b""
        self.residual = 0
        self.done = 0
        self.started = False
        self.dropped = False
        self._length = 0  # of the whole data phase, once a step or ``expect`` has said it
        self._piece: bytearray | memoryview = _NOTHING  # what the present step moves: all of it, or what has come
        self._position = 0  # in a piece that goes to the initiator
        self._stored: StoredDataIn | None = None  # what follows it, still where it is stored
        self._wanted = 0  # length of a piece that comes from it
        self._taken = 0  # bytes of it the generator has, and may be at work on
        self._steps: Steps | None = None
        self._run: Runner = run_at_once
        self._notify: Callable[[Task], None] = _ignore
        self._finished: Callable[[Task], None] = _ignore
        self._fail: Callable[[Task, Exception], tuple[Status, bytes]] = _reraise

    def __repr__(self) -> str:
        tag = "" if self.tag is None else f" tag {self.tag:#x}"
        end = "" if self.status is None else f" {self.status.name}"
        return f"<Task lun {self.lun}{tag} {self.cdb.hex(' ')}: {self.phase.value}{end}>"

    # The adapter's side.

    @property
    def in_hand(self) -> int:
        """Bytes of the data phase that can be moved before something else has to happen."""
        if self.phase is TaskPhase.DATA_IN:
            return len(self._piece) - self._position + (0 if self._stored is None else self._stored.length)
        return self._wanted - len(self._piece) if self.phase is TaskPhase.DATA_OUT else 0

    def _fetch(self) -> bool:
        """Has the next bytes of a DATA_IN phase in memory.

        Returns:
            Whether they are there. If not, the task is no longer in that phase: it waits for storage, or has failed.
        """
        stored = self._stored
        if stored is None or self.phase is not TaskPhase.DATA_IN or self._position < len(self._piece):
            return self.phase is TaskPhase.DATA_IN
        self._stored = None
        piece = bytearray(stored.length)
        views = [memoryview(piece)]
        if stored.read_at_once(views):
            self._piece, self._position = views[0], 0
            return True
        steps, waits = self._steps, False

        def loaded(result: object) -> None:
            if waits and self._steps is not steps:
                return  # the task was dropped, or ended
            if isinstance(result, Exception):
                self._steps_close()
                self._failed(result)
            else:
                self._piece, self._position = views[0], 0
                self._show(TaskPhase.DATA_IN)

        self._run(lambda: stored.source.read(stored.offset, views), loaded)
        if not self._position and not self._piece and self.status is None:
            waits = True
            self._show(TaskPhase.BUSY)
        return self.phase is TaskPhase.DATA_IN

    def read(self, length: int) -> memoryview:
        """Takes the next bytes of the data phase: ``length``, or fewer where a piece ends before.

        Nothing at all comes when the phase is not DATA_IN, or ceased to be because reading on failed. The bytes stay as
        they are for as long as the view is kept. The phase may have changed when this returns.
        """
        if length <= 0 or not self._fetch():
            return _NOTHING
        piece = memoryview(self._piece)[self._position : self._position + length]
        self._moved(len(piece))
        return piece

    def read_into(self, views: Sequence[memoryview]) -> bool:
        """Takes as many bytes as the views hold, no more than are ``in_hand``: straight to where they go.

        Returns:
            Whether it did: the bytes may be elsewhere, or storage may have to be waited for. Then the views hold
            anything, and ``read`` has the bytes. The phase may have changed when this returns True.
        """
        if self.phase is not TaskPhase.DATA_IN:
            return False
        length = sum(map(len, views))
        stored, at = self._stored, self._position
        if at < len(self._piece):
            if at + length > len(self._piece):
                return False
            piece = memoryview(self._piece)
            for view in views:
                view[:] = piece[at : at + len(view)]
                at += len(view)
        elif stored is None or length > stored.length or not stored.read_at_once(views):
            return False
        self._moved(length)
        return True

    def _moved(self, length: int) -> None:
        """Bytes of a DATA_IN phase have gone: of the piece in memory, or where there is none, of what is stored."""
        self.remaining -= length
        stored = self._stored
        if self._position < len(self._piece):
            self._position += length
            if self._position < len(self._piece):
                return
            self.done += len(self._piece)
            self._piece, self._position = _NOTHING, 0
        elif stored is not None:
            self.done += length
            stored.offset += length
            stored.length -= length
            if not stored.length:
                self._stored = stored = None
        if stored is None:
            self._advance(None)

    def write(self, data: Buffer) -> None:
        """Gives the next bytes of the data phase; bytes beyond ``remaining``, or in another phase, are dropped."""
        given = memoryview(data).cast("B")
        if self.phase is not TaskPhase.DATA_OUT:
            return
        taken = given[: self.remaining]
        self.remaining -= len(taken)
        assert isinstance(self._piece, bytearray)
        self._piece += taken
        if len(self._piece) >= self._wanted:
            self._advance(self._take())

    def end_data(self) -> None:
        """The initiator moves no more: ends the data phase early, and the command with it.

        A read ends as it would have; a write ends in CHECK CONDITION, with what had been settled left settled.
        """
        if self.phase is TaskPhase.DATA_IN:
            self._steps_close()
            self.finish(Status.GOOD)
        elif self.phase is TaskPhase.DATA_OUT:
            self._steps_close()
            self._failed(EOFError("the initiator ended the data phase early"))

    # The logical unit's side.

    def expect(self, length: int) -> None:
        """Says how long the whole data phase is, before its first step. One of a single step needs no saying."""
        self._length = length

    def begin(
        self,
        steps: Steps,
        *,
        run: Runner,
        notify: Callable[[Task], None],
        finished: Callable[[Task], None],
        fail: Callable[[Task, Exception], tuple[Status, bytes]],
    ) -> None:
        """Carries the command out.

        Args:
            steps: what it consists of.
            run: runs work.
            notify: called after each change of phase.
            finished: called once, when the status is there, before ``notify``; it must not begin another task.
            fail: the status, and the sense data, an exception means.
        """
        self.started = True
        self._steps, self._run, self._notify, self._finished, self._fail = steps, run, notify, finished, fail
        if self.phase is TaskPhase.DATA_IN:
            # A task that was saved, and has bytes to move first. If they are its last, there is nothing to do besides.
            if self.done + len(self._piece) >= self._length:
                self._steps = _no_steps()
            return
        self._advance(None)

    def finish(self, status: Status, sense: bytes = b"") -> None:
        """Ends the command."""
        if self.status is not None:
            return
        self._steps_close()
        self.status, self.sense = status, sense
        self.residual, self.remaining = self.remaining, 0
        self._piece, self._position, self._stored = _NOTHING, 0, None
        self._show(TaskPhase.STATUS)

    def drop(self) -> None:
        """Forgets the command: no status, no notice. What is being worked on ends without anybody hearing of it."""
        self._steps_close()
        self.dropped = True
        self._notify = self._finished = _ignore
        self.phase, self.remaining, self._piece, self._stored = TaskPhase.BUSY, 0, _NOTHING, None

    # Running the steps.

    def _advance(self, value: object) -> None:
        """Runs the generator on, to a step that has to be waited for, or to the end."""
        while (steps := self._steps) is not None:
            try:
                step = steps.throw(value) if isinstance(value, BaseException) else steps.send(value)
            except StopIteration as stop:
                self._steps = None
                self.finish(Status.GOOD if stop.value is None else stop.value)
                return
            except Exception as exc:
                self._steps = None
                self._failed(exc)
                return
            value = None
            match step:
                case Work():
                    done: list[object] = []
                    self._begin_work(step, done)
                    if not done:
                        self._show(TaskPhase.BUSY)
                        return
                    value = done[0]
                case DataIn() | StoredDataIn():
                    if self._offer(step):
                        return
                case DataOut():
                    if self._ask(step):
                        return
                    value = self._take()

    def _begin_work(self, step: Work, done: list[object]) -> None:
        """Has work done; ``done`` holds the result if that is there on return, else the task advances when it comes."""
        steps, waiting = self._steps, False

        def finished(result: object) -> None:
            if not waiting:
                done.append(result)
            elif self._steps is steps:  # else the task was dropped, or ended
                self._advance(result)

        self._run(step.call, finished)
        waiting = True

    def _offer(self, step: DataIn | StoredDataIn) -> bool:
        """Shows bytes to the adapter; False when there are none."""
        if isinstance(step, DataIn):
            self._piece, self._position = memoryview(step.data).cast("B"), 0
            length = len(self._piece)
        else:
            self._stored, length = step, step.length
        if not length:
            self._stored = None
            return False
        self._length = max(self._length, self.done + length)
        self.remaining = self._length - self.done
        self._show(TaskPhase.DATA_IN)
        return True

    def _ask(self, step: DataOut) -> bool:
        """Asks the adapter for bytes; False when they are there already.

        Those of the step before are settled now: it would not go on otherwise.
        """
        if not isinstance(self._piece, bytearray):
            self._piece = bytearray()
        if self._taken:
            self.done += self._taken
            self._piece, self._taken = bytearray(memoryview(self._piece)[self._taken :]), 0
        self._length = max(self._length, self.done + step.length)
        self._wanted = step.length
        self.remaining = self._length - self.done - len(self._piece)
        if len(self._piece) >= step.length:
            return False
        self._show(TaskPhase.DATA_OUT)
        return True

    def _take(self) -> memoryview:
        """The bytes asked for. They stay, to be saved, until the generator asks for more: then they are settled."""
        self._taken = self._wanted
        return memoryview(self._piece)[: self._wanted]

    def _failed(self, exc: Exception) -> None:
        self.finish(*self._fail(self, exc))

    def _steps_close(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()

    def _show(self, phase: TaskPhase) -> None:
        """Enters a phase, and says so if it is another one."""
        changed = phase is not self.phase
        self.phase = phase
        if phase is TaskPhase.STATUS:
            self._finished(self)
        if changed:
            self._notify(self)

    # Saving.

    def save(self) -> dict[str, object]:
        """The task as plain values. What storage is at work on is begun again where it is loaded."""
        phase = self.phase
        # What is still stored is read anew there, too.
        if phase is TaskPhase.DATA_IN and self._stored is not None:
            phase = TaskPhase.BUSY
        going = phase is TaskPhase.DATA_IN
        return {
            "lun": self.lun,
            "cdb": self.cdb,
            "tag": self.tag,
            "attribute": int(self.attribute),
            "initiator": self.initiator,
            "phase": phase.value,
            "started": self.started,
            "done": self.done + (self._position if going else 0),
            "length": self._length,
            "piece": bytes(memoryview(self._piece)[self._position if going else 0 :]),
            "remaining": self.remaining,
            "status": None if self.status is None else int(self.status),
            "sense": self.sense,
            "residual": self.residual,
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Task:
        """The task that was saved. It does not run yet: give it to ``Target.resume``."""
        task = cls(
            state["lun"],
            state["cdb"],
            tag=None if state["tag"] is None else int(state["tag"]),
            attribute=TaskAttribute(state["attribute"]),
            initiator=int(state["initiator"]),
        )
        task.phase = TaskPhase(state["phase"])
        task.started = state["started"]
        task.done, task._length, task.remaining = state["done"], state["length"], state["remaining"]
        task._piece = memoryview(state["piece"]) if task.phase is TaskPhase.DATA_IN else bytearray(state["piece"])
        task.status = None if state["status"] is None else Status(state["status"])
        task.sense, task.residual = state["sense"], state["residual"]
        return task


def run_at_once(call: Callable[[], object], done: Callable[[object], None]) -> None:
    """A ``Runner``: does the work there and then."""
    try:
        result = call()
    except Exception as exc:
        done(exc)
    else:
        done(result)


def _no_steps() -> Steps:
    yield from ()
    return None


def _ignore(_task: Task) -> None:
    pass


def _reraise(_task: Task, exc: Exception) -> tuple[Status, bytes]:
    raise exc
