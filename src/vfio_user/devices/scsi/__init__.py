"""SCSI targets, for whatever adapter reaches them: a bus with targets, their logical units, disks and CD-ROM drives.

An adapter starts tasks and moves their data (``task``, ``target``); ``Disk`` and ``CdRom`` are what it is made for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names

if TYPE_CHECKING:
    from vfio_user.devices.scsi.cdrom import CdRom
    from vfio_user.devices.scsi.disk import Disk
    from vfio_user.devices.scsi.logical_unit import LogicalUnit
    from vfio_user.devices.scsi.target import ScsiBus, Target
    from vfio_user.devices.scsi.task import Task, TaskPhase

__all__ = ["CdRom", "Disk", "LogicalUnit", "ScsiBus", "Target", "Task", "TaskPhase"]

__getattr__ = lazy_names(
    __name__,
    {
        "cdrom": ["CdRom"],
        "disk": ["Disk"],
        "logical_unit": ["LogicalUnit"],
        "target": ["ScsiBus", "Target"],
        "task": ["Task", "TaskPhase"],
    },
)
