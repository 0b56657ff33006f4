"""``LogicalUnit``: takes tasks, puts them in order, and runs the method that carries each out.

A unit is a class whose methods are commands::

    class Disk(LogicalUnit):
        @command(OperationCode.READ_CAPACITY_10)
        def read_capacity_10(self, task: Task, cdb: Command) -> bytes: ...

A command returns data for the initiator, cut to the allocation length by the way; or None, when there is none; or, as a
generator, steps (see ``task``). It fails by raising: ``CommandFailed``, most easily made by ``failed`` and
``invalid_field``, or the ``OSError`` of storage.

Everything else SAM-5 asks of a logical unit is here: the task set and its order, unit attentions by initiator, sense
data kept for REQUEST SENSE, aborts and resets. NACA and linked commands are not: who asks for them is told so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar

from vfio_user.devices.scsi.task import CommandFailed, DataIn, Steps, Task, TaskPhase, WorkQueue, run_at_once
from vfio_user.hardware.scsi.cdb import Command, cdb_length
from vfio_user.hardware.scsi.codes import (
    AdditionalSense,
    DeviceType,
    OperationCode,
    SenseKey,
    Status,
    TaskAttribute,
)
from vfio_user.hardware.scsi.sense import FieldPointer, Sense

__all__ = ["Handler", "LogicalUnit", "command", "failed", "illegal", "invalid_field", "invalid_parameter"]

_log = logging.getLogger(__name__)

#: A method of a unit that carries a command out.
Handler = Callable[[Any, Task, Command], "bytes | bytearray | Steps | None"]
_H = TypeVar("_H", bound=Handler)

#: Tasks a unit takes before it answers TASK SET FULL: what Linux, at its most, sends to one.
_TASK_LIMIT = 4096

#: Commands nothing stops: no unit attention (SAM-5 5.14, MMC-6 4.1.6; REQUEST SENSE reports it by itself), no task.
_UNHINDERED = {
    OperationCode.INQUIRY,
    OperationCode.REPORT_LUNS,
    OperationCode.REQUEST_SENSE,
    OperationCode.GET_CONFIGURATION,
    OperationCode.GET_EVENT_STATUS_NOTIFICATION,
}

_TEST_UNIT_READY = bytes([OperationCode.TEST_UNIT_READY])

#: Unit attentions that say everything a list of others could.
_RESETS = {
    AdditionalSense.POWER_ON_OR_RESET,
    AdditionalSense.POWER_ON,
    AdditionalSense.BUS_RESET,
    AdditionalSense.BUS_DEVICE_RESET,
}


def command(*codes: OperationCode | tuple[OperationCode, int]) -> Callable[[_H], _H]:
    """Declares a method to carry out these commands; one of a service action as ``(code, action)``."""

    def declare(method: _H) -> _H:
        keys = [code if isinstance(code, tuple) else (code, None) for code in codes]
        method.scsi_commands = keys  # type: ignore[attr-defined]
        return method

    return declare


def failed(key: SenseKey, additional: AdditionalSense, information: int | None = None) -> CommandFailed:
    """What to raise for a CHECK CONDITION."""
    return CommandFailed(Status.CHECK_CONDITION, Sense(key, additional, information))


def illegal(additional: AdditionalSense, pointer: FieldPointer | None = None) -> CommandFailed:
    """What to raise for an ILLEGAL REQUEST."""
    return CommandFailed(Status.CHECK_CONDITION, Sense(SenseKey.ILLEGAL_REQUEST, additional, pointer=pointer))


def invalid_field(cdb: Command, name: str) -> CommandFailed:
    """What to raise when that field of a CDB cannot be accepted."""
    return illegal(AdditionalSense.INVALID_FIELD_IN_CDB, cdb.pointer(name))


def invalid_parameter(byte: int, bit: int | None = None) -> CommandFailed:
    """What to raise when a parameter list cannot be accepted, from that byte on."""
    return illegal(AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST, FieldPointer(byte, bit, in_data=True))


class LogicalUnit:
    """What every logical unit has. It carries nothing out yet.

    Args:
        workers: where work that may block is done; without them, on the spot.

    Attributes:
        device_type: what kind of device.
        commands: what carries out what: by operation code and service action.
        operation_codes: those of the commands, whatever their service actions.
        workers: as given; an adapter that has some sets it before it starts a task.
        autosense: sense data goes with the status, and is not kept for REQUEST SENSE.
        siblings: the LUNs of its target; the target's to set.
    """

    device_type: ClassVar[DeviceType] = DeviceType.NONE
    commands: ClassVar[Mapping[tuple[int, int | None], Handler]] = {}
    operation_codes: ClassVar[frozenset[int]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        table: dict[tuple[int, int | None], Handler] = {}
        for base in reversed(cls.__mro__):
            for method in vars(base).values():
                for key in getattr(method, "scsi_commands", ()):
                    table[key] = method
        cls.commands = table
        cls.operation_codes = frozenset(code for code, _ in table)

    def __init__(self, *, workers: WorkQueue | None = None) -> None:
        self.workers = workers
        self.autosense = False
        self.siblings: Callable[[], list[int]] = lambda: [0]
        self._tasks: dict[tuple[int, int | None], Task] = {}  # by initiator and tag, in the order they came
        self._notices: dict[int, Callable[[Task], None]] = {}  # of those that wait for others, by identity
        self._is_beginning = False  # those that waited are being begun
        self._abandoned: set[Task] = set()  # ended before the work on them has, which may yet change the medium
        self._senses: dict[int, Sense] = {}  # for REQUEST SENSE, by initiator
        self._attentions: dict[int, list[AdditionalSense]] = {}  # by initiator
        self._first_attention = AdditionalSense.POWER_ON  # of an initiator not seen before

    # Tasks.

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The task set, in the order it came."""
        return tuple(self._tasks.values())

    def start(self, task: Task, notify: Callable[[Task], None]) -> None:
        """Takes a task on; see ``Target.start``."""
        if not _is_unhindered(task):
            self._senses.pop(task.initiator, None)
        rival = self._rival(task)
        refusal: CommandFailed | None = None
        if rival is not None:
            self.abort(rival)  # SAM-5 5.11: both end
            refusal = failed(SenseKey.ABORTED_COMMAND, AdditionalSense.OVERLAPPED_COMMANDS)
        elif len(self._tasks) >= _TASK_LIMIT:
            refusal = CommandFailed(Status.TASK_SET_FULL)
        elif not task.may_wait and not self._is_next(task):
            refusal = CommandFailed(Status.BUSY)
        if refusal is not None:
            task.begin(_refuse(refusal), run=run_at_once, notify=notify, finished=_nothing, fail=self._failure)
            return
        self._tasks[task.initiator, task.tag] = task
        if self._may_run(task):
            self._begin(task, notify)
        else:
            self._notices[id(task)] = notify

    def resume(self, task: Task, notify: Callable[[Task], None]) -> None:
        """Takes on a task that was saved; see ``Target.resume``."""
        if task.status is not None:
            return
        rival = self._rival(task)
        if rival is not None:  # in a state somebody made up
            self.abort(rival)
        self._tasks[task.initiator, task.tag] = task
        if task.started or self._may_run(task):
            self._begin(task, notify)
        else:
            self._notices[id(task)] = notify

    def abort(self, task: Task) -> None:
        """Forgets a task; one that is not here is no matter."""
        if self._rival(task) is task:
            self._drop(task)
            self._remove(task)
            self._begin_waiting()

    def abort_all(self, initiator: int | None = None) -> None:
        """Forgets all tasks, or those of one initiator."""
        for task in [each for each in self._tasks.values() if initiator in (None, each.initiator)]:
            self._drop(task)
            self._remove(task)
        self._begin_waiting()

    def _drop(self, task: Task) -> None:
        # What has begun and is busy is being worked on.
        if task.started and task.phase is TaskPhase.BUSY and self.writes(Command(task.cdb)):
            self._abandoned.add(task)
        task.drop()

    def clear(self, initiator: int) -> None:
        """CLEAR TASK SET: forgets all tasks, and tells those initiators that had some and did not ask for it."""
        others = {task.initiator for task in self._tasks.values()} - {initiator}
        self.abort_all()
        for other in others:
            self.attention(AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, to=other)

    def reset(self, reason: AdditionalSense = AdditionalSense.POWER_ON_OR_RESET) -> None:
        """Puts the unit back as a reset does: tasks and sense data are gone, and each initiator is told once."""
        self.abort_all()
        self._senses.clear()
        self._attentions.clear()
        self._first_attention = reason
        self.on_reset()

    def on_reset(self) -> None:
        """A reset happened: override to put back what it changes."""

    def _rival(self, task: Task) -> Task | None:
        """The task that has its tag already, from the same initiator."""
        return self._tasks.get((task.initiator, task.tag))

    def _may_run(self, task: Task) -> bool:
        """It need not wait."""
        if self._abandoned and task.cdb[:1] != _TEST_UNIT_READY and not _is_unhindered(task):
            # A write that was aborted, late, must not undo one that came after it. Whoever aborted it asks whether the
            # unit is ready, and is not to resort to more.
            return False
        return self._is_next(task)

    def _is_next(self, task: Task) -> bool:
        """By its attribute and those of the tasks before it, it is not behind them. Spec: SAM-5 8.6."""
        if _is_unhindered(task):
            # As at the head of the queue. An initiator may keep the bus to itself for REQUEST SENSE, and what that
            # would wait for could need the bus.
            return True
        if task.attribute is TaskAttribute.HEAD_OF_QUEUE:
            return True
        for older in self._tasks.values():
            if older is task:
                return True
            if older.attribute is not TaskAttribute.SIMPLE or task.attribute is TaskAttribute.ORDERED:
                return False
        return True

    def _begin(self, task: Task, notify: Callable[[Task], None]) -> None:
        def notify_in_order(task: Task) -> None:
            # It left the task set before, so that its tag is free; what waited for it is heard of after it.
            notify(task)
            if task.phase is TaskPhase.STATUS:
                self._begin_waiting()

        steps = self._carry_out(task, checked=task.started)
        run = run_at_once if self.workers is None else partial(self._work, self.workers, task)
        task.begin(steps, run=run, notify=notify_in_order, finished=self._remove, fail=self._failure)

    def _remove(self, task: Task) -> None:
        self._notices.pop(id(task), None)
        if self._rival(task) is task:
            del self._tasks[task.initiator, task.tag]

    def _begin_waiting(self) -> None:
        """Begins what has waited and need not any longer."""
        if self._is_beginning:
            return  # a task ended at once, which is why we are here: whoever began it looks again
        self._is_beginning = True
        try:
            while self._notices:
                # If the first one that waits has to go on waiting, so have those behind it.
                task = next(each for each in self._tasks.values() if id(each) in self._notices)
                if not self._may_run(task):
                    break
                self._begin(task, self._notices.pop(id(task)))
        finally:
            self._is_beginning = False

    def _work(self, workers: WorkQueue, task: Task, call: Callable[[], object], done: Callable[[object], None]) -> None:
        """Has work of a task done by the workers."""

        def ended(result: object) -> None:
            if task in self._abandoned:
                self._abandoned.remove(task)
                self._begin_waiting()
            else:
                done(result)

        workers.submit(call, ended)

    # One command.

    def _carry_out(self, task: Task, *, checked: bool) -> Steps:
        """The steps of a task: what every command has to pass, then its own."""
        handler, cdb = self._decode(task)
        if not checked:
            self.admit(task, cdb)
        result = handler(self, task, cdb)
        if not isinstance(result, bytes | bytearray | None):
            return (yield from result)
        if result is not None:
            if "allocation_length" in cdb:
                result = result[: cdb.allocation_length]
            yield DataIn(result)
        return None

    def _decode(self, task: Task) -> tuple[Handler, Command]:
        cdb = task.cdb
        key = Command.key(cdb)
        if not cdb or key[0] not in self.operation_codes:
            raise illegal(AdditionalSense.INVALID_OPERATION_CODE, FieldPointer(0))
        handler = self.commands.get(key)
        if handler is None:
            raise illegal(AdditionalSense.INVALID_FIELD_IN_CDB, FieldPointer(1, 4))
        if len(cdb) < cdb_length(cdb[0]):
            raise illegal(AdditionalSense.INVALID_FIELD_IN_CDB, FieldPointer(len(cdb)))
        decoded = Command(cdb)
        if decoded.naca:
            raise invalid_field(decoded, "naca")
        return handler, decoded

    def admit(self, task: Task, cdb: Command) -> None:
        """Lets a command pass, or raises; override to add what else may stand in its way.

        Raises:
            CommandFailed: a unit attention has to be reported first.
        """
        attentions = self._attentions_of(task.initiator)
        if attentions and cdb.operation_code not in _UNHINDERED:
            raise failed(SenseKey.UNIT_ATTENTION, attentions.pop(0))

    def writes(self, cdb: Command) -> bool:
        """Whether a command changes the medium. Override: what is not known to leave it alone counts as one."""
        return True

    def sense_of_error(self, exc: Exception, task: Task) -> Sense:
        """What an exception of a command means. Override for what a kind of device knows better."""
        if isinstance(exc, EOFError):
            return Sense(SenseKey.ABORTED_COMMAND, AdditionalSense.DATA_PHASE_ERROR)
        if not isinstance(exc, OSError):
            _log.error("SCSI command %s: a bug of ours", task.cdb.hex(" "), exc_info=exc)
        return Sense(SenseKey.HARDWARE_ERROR, AdditionalSense.INTERNAL_TARGET_FAILURE)

    def uses_descriptor_sense(self) -> bool:
        """The format sense data is delivered in: descriptor rather than fixed, as D_SENSE chooses."""
        return False

    def _failure(self, task: Task, exc: Exception) -> tuple[Status, bytes]:
        if not isinstance(exc, CommandFailed):
            exc = CommandFailed(Status.CHECK_CONDITION, self.sense_of_error(exc, task))
        if exc.sense is None:
            return exc.status, b""
        return exc.status, exc.sense.pack(descriptor=self.uses_descriptor_sense())

    # Unit attentions, and sense data that waits.

    def attention(self, additional: AdditionalSense, *, to: int | None = None, but: int | None = None) -> None:
        """Has initiators told of something, by a unit attention.

        Args:
            additional: what.
            to: one initiator; all that are known when None.
            but: an initiator that knows already.
        """
        for initiator, waiting in self._attentions.items():
            is_meant = to in (None, initiator) and initiator != but
            if is_meant and additional not in waiting and not (waiting and waiting[0] in _RESETS):
                waiting.append(additional)

    def _attentions_of(self, initiator: int) -> list[AdditionalSense]:
        return self._attentions.setdefault(initiator, [self._first_attention])

    def status_taken(self, task: Task) -> None:
        """See ``Target.status_taken``."""
        if task.sense and not self.autosense:
            self._senses[task.initiator] = Sense.unpack(task.sense)

    def take_sense(self, initiator: int) -> Sense:
        """What REQUEST SENSE reports, and forgets. Spec: SPC-4 6.39."""
        attentions = self._attentions_of(initiator)
        if initiator in self._senses:
            return self._senses.pop(initiator)
        if attentions:
            return Sense(SenseKey.UNIT_ATTENTION, attentions.pop(0))
        return self.idle_sense()

    def idle_sense(self) -> Sense:
        """What REQUEST SENSE reports when nothing went wrong."""
        return Sense(SenseKey.NO_SENSE)

    # Saving.

    def save(self) -> dict[str, Any]:
        """What it remembers, except for its tasks and the medium. Override to add to it."""
        return {
            "first_attention": int(self._first_attention),
            "attentions": {str(each): [int(code) for code in codes] for each, codes in self._attentions.items()},
            "senses": {str(each): sense.pack(descriptor=True) for each, sense in self._senses.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts that back; tasks are forgotten."""
        self.abort_all()
        self._first_attention = AdditionalSense(state["first_attention"])
        self._attentions = {
            int(each): [AdditionalSense(code) for code in codes] for each, codes in state["attentions"].items()
        }
        self._senses = {int(each): Sense.unpack(packed) for each, packed in state["senses"].items()}


def _is_unhindered(task: Task) -> bool:
    return task.cdb[:1] != b"" and task.cdb[0] in _UNHINDERED


def _refuse(why: CommandFailed) -> Steps:
    yield from ()
    raise why


def _nothing(_task: Task) -> None:
    pass
