"""What stands for a host bus adapter, and for the initiator behind it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from vfio_user.devices.scsi.logical_unit import LogicalUnit
from vfio_user.devices.scsi.task import Task, TaskPhase
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status, TaskAttribute
from vfio_user.hardware.scsi.sense import FieldPointer, Sense

GOOD = Status.GOOD


@dataclass
class Result:
    """How a command ended."""

    status: Status | None
    data: bytes
    raw_sense: bytes
    residual: int

    @property
    def sense(self) -> Sense:
        return Sense.unpack(self.raw_sense)


def cdb(layout: str, *values: int) -> bytes:
    """A CDB packed as ``struct`` says, in big-endian order."""
    return struct.pack(f">{layout}", *values)


@dataclass
class Initiator:
    """Sends commands, one after the other, and does what the adapter has to for each."""

    unit: LogicalUnit
    id: int = 7
    portion: int = 1 << 30
    wait: Callable[[], object] | None = None
    phases: list[TaskPhase] = field(default_factory=list)

    def run(self, command: bytes | str, data: bytes = b"", *, tag: int | None = None) -> Result:
        """Carries a command out, whatever phases it goes through."""
        task = self.start(command, tag=tag)
        return self.finish(task, data)

    def start(
        self, command: bytes | str, *, tag: int | None = None, attribute: TaskAttribute = TaskAttribute.SIMPLE
    ) -> Task:
        command = bytes.fromhex(command) if isinstance(command, str) else command
        task = Task(0, command, tag=tag, attribute=attribute, initiator=self.id)
        self.unit.start(task, lambda task: self.phases.append(task.phase))
        return task

    def finish(self, task: Task, data: bytes = b"") -> Result:
        taken, given = bytearray(), memoryview(data)
        while task.phase is not TaskPhase.STATUS:
            if task.phase is TaskPhase.DATA_IN:
                before = task.remaining
                piece = task.read(self.portion)
                assert 0 < len(piece) <= before or task.phase is not TaskPhase.DATA_IN
                taken += piece
            elif task.phase is TaskPhase.DATA_OUT:
                count = min(self.portion, task.remaining, len(given))
                if count:
                    task.write(given[:count])
                    given = given[count:]
                else:
                    task.end_data()
            else:
                assert self.wait is not None, f"{task} waits for something"
                self.wait()
        self.unit.status_taken(task)
        return Result(task.status, bytes(taken), task.sense, task.residual)

    def ready(self) -> Initiator:
        """Takes what unit attentions there are."""
        while self.run("00" * 6).status is Status.CHECK_CONDITION:
            if self.last_sense().key is not SenseKey.UNIT_ATTENTION:
                break
        return self

    def last_sense(self) -> Sense:
        """REQUEST SENSE."""
        result = self.run("03000000ff00")
        assert result.status is GOOD
        return Sense.unpack(result.data)

    def check(
        self,
        command: bytes | str,
        key: SenseKey,
        additional: AdditionalSense,
        pointer: FieldPointer | None = None,
        *,
        data: bytes = b"",
    ) -> Result:
        """Carries a command out that has to fail just so."""
        result = self.run(command, data)
        assert result.status is Status.CHECK_CONDITION, (command, result)
        found = result.sense
        assert (found.key, found.additional, found.pointer) == (key, additional, pointer), (command, found)
        return result

    def illegal(
        self,
        command: bytes | str,
        byte: int,
        bit: int | None = None,
        additional: AdditionalSense = AdditionalSense.INVALID_FIELD_IN_CDB,
        *,
        data: bytes = b"",
        in_data: bool = False,
    ) -> None:
        """Carries a command out whose field is wrong."""
        if in_data:
            additional = AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST
        pointer = FieldPointer(byte, bit, in_data)
        self.check(command, SenseKey.ILLEGAL_REQUEST, additional, pointer, data=data)

    def good(self, command: bytes | str, data: bytes = b"") -> bytes:
        """Carries a command out that has to succeed, and returns its data."""
        result = self.run(command, data)
        assert result.status is GOOD, (command, result.raw_sense and result.sense)
        assert result.residual == 0
        return result.data
