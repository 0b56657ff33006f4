"""What answers for a logical unit that is not there. Spec: SPC-4 6.6.2 and 6.33, SAM-5 5.13."""

from __future__ import annotations

from vfio_user.devices.scsi.logical_unit import Handler, illegal
from vfio_user.devices.scsi.primary import PrimaryUnit
from vfio_user.devices.scsi.task import Task
from vfio_user.hardware.scsi.cdb import Command
from vfio_user.hardware.scsi.codes import AdditionalSense, DeviceType, OperationCode, SenseKey
from vfio_user.hardware.scsi.sense import Sense

__all__ = ["MissingUnit"]

_ANSWERED = {OperationCode.INQUIRY, OperationCode.REPORT_LUNS, OperationCode.REQUEST_SENSE}


class MissingUnit(PrimaryUnit):
    """Says that it is not there: INQUIRY with qualifier 3, everything else LOGICAL UNIT NOT SUPPORTED."""

    peripheral = 0x60 | DeviceType.NONE

    def admit(self, task: Task, cdb: Command) -> None:
        """Lets the three commands pass that tell an initiator what is there."""
        if cdb.operation_code not in _ANSWERED:
            raise illegal(AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)

    def _decode(self, task: Task) -> tuple[Handler, Command]:
        if not task.cdb or task.cdb[0] not in _ANSWERED:
            raise illegal(AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)
        return super()._decode(task)

    def take_sense(self, initiator: int) -> Sense:
        """Why it answers nothing else."""
        self._senses.pop(initiator, None)
        return Sense(SenseKey.ILLEGAL_REQUEST, AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)
