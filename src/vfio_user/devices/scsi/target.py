"""What tasks are for: a bus with targets, a target with logical units.

An adapter finds a target by its SCSI id in ``ScsiBus.targets``, and starts tasks there. Which logical unit a task is
for, the target knows; one that is not there answers as SPC-4 asks for. Spec: SAM-5 4.6, SPC-4 6.6.2, 6.33.

Threading: everything on the device's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vfio_user.devices.scsi.logical_unit import LogicalUnit
from vfio_user.devices.scsi.missing_unit import MissingUnit
from vfio_user.devices.scsi.task import Task
from vfio_user.hardware.scsi.codes import AdditionalSense

__all__ = ["ScsiBus", "Target"]


class Target:
    """A SCSI target device: logical units, by number.

    Args:
        luns: what there is. LUN 0 is best there: initiators ask it what else is.
        autosense: the adapter delivers ``Task.sense`` with the status, so REQUEST SENSE does not return it once more.

    Raises:
        ValueError: a number is not in [0, 16384).
    """

    def __init__(self, luns: Mapping[int, LogicalUnit], *, autosense: bool = False) -> None:
        for number in luns:
            if not 0 <= number < 1 << 14:
                raise ValueError(f"LUN {number} is not in [0, 16384), what flat space addressing can say")
        self.luns = dict(luns)
        self._missing = MissingUnit()
        for unit in (*self.luns.values(), self._missing):
            unit.siblings = lambda: sorted(self.luns)
            unit.autosense = autosense

    def unit(self, lun: int) -> LogicalUnit:
        """The logical unit of that number; one that says it is not there, where there is none."""
        return self.luns.get(lun, self._missing)

    def start(self, task: Task, notify: Callable[[Task], None]) -> None:
        """Takes a task on.

        Args:
            task: a new one.
            notify: called with it after each change of its phase; the first time, maybe, before this returns.
        """
        self.unit(task.lun).start(task, notify)

    def resume(self, task: Task, notify: Callable[[Task], None]) -> None:
        """Takes on a task that ``Task.load`` made. Nothing is notified of the phase it is in already."""
        self.unit(task.lun).resume(task, notify)

    def status_taken(self, task: Task) -> None:
        """The initiator has the status of a task; without autosense, REQUEST SENSE says what was wrong from now on.

        Not before: tasks that end in between, or begin, have nothing to do with what the initiator will ask about.
        """
        self.unit(task.lun).status_taken(task)

    def abort(self, task: Task) -> None:
        """ABORT TASK: forgets it. It will not be notified again; what it wrote so far may have been written."""
        self.unit(task.lun).abort(task)

    def abort_task_set(self, lun: int, initiator: int) -> None:
        """ABORT TASK SET: forgets all tasks of one initiator in a logical unit."""
        self.unit(lun).abort_all(initiator)

    def clear_task_set(self, lun: int, initiator: int) -> None:
        """CLEAR TASK SET: forgets all tasks of a logical unit, and tells the other initiators so."""
        self.unit(lun).clear(initiator)

    def reset_unit(self, lun: int) -> None:
        """LOGICAL UNIT RESET."""
        self.unit(lun).reset(AdditionalSense.BUS_DEVICE_RESET)

    def reset(self, reason: AdditionalSense = AdditionalSense.BUS_DEVICE_RESET) -> None:
        """Resets every logical unit: its tasks are forgotten, and every initiator hears of it by a unit attention."""
        for unit in (*self.luns.values(), self._missing):
            unit.reset(reason)

    def save(self) -> dict[str, Any]:
        """What its logical units remember. Tasks are the adapter's to save."""
        return {str(number): unit.save() for number, unit in self.luns.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts that back; tasks are forgotten, and come back by ``resume``.

        Raises:
            ValueError: it is of a target with other logical units.
        """
        if set(state) != {str(number) for number in self.luns}:
            raise ValueError(f"the saved target has logical units {sorted(state)}, this one {sorted(self.luns)}")
        for number, unit in self.luns.items():
            unit.load(state[str(number)])


class ScsiBus:
    """The targets one adapter reaches.

    Attributes:
        targets: by SCSI id.
    """

    def __init__(self, targets: Mapping[int, Target] | None = None) -> None:
        self.targets = dict(targets or {})

    def reset(self) -> None:
        """Resets the bus."""
        for target in self.targets.values():
            target.reset(AdditionalSense.BUS_RESET)

    def save(self) -> dict[str, Any]:
        """What the targets remember."""
        return {str(number): target.save() for number, target in self.targets.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts that back.

        Raises:
            ValueError: it is of a bus with other targets.
        """
        if set(state) != {str(number) for number in self.targets}:
            raise ValueError(f"the saved bus has targets {sorted(state)}, this one {sorted(self.targets)}")
        for number, target in self.targets.items():
            target.load(state[str(number)])
