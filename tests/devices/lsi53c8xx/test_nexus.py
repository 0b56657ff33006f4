"""A nexus as plain values, and back."""

from __future__ import annotations

from vfio_user.devices.lsi53c8xx.nexus import Ending, Nexus
from vfio_user.devices.scsi import Task
from vfio_user.hardware.scsi.codes import TaskAttribute


def test_all_of_it_is_saved() -> None:
    nexus = Nexus(5)
    nexus.lun, nexus.may_disconnect, nexus.tag, nexus.attribute = 3, True, 0x42, TaskAttribute.ORDERED
    nexus.cdb, nexus.ending, nexus.has_moved, nexus.has_status = bytearray(b"cdb"), Ending.DISCONNECT, True, True
    nexus.task = Task(3, bytes(6), tag=0x42)
    again = Nexus.load(nexus.save())
    assert again.save() == nexus.save()
    for name in Nexus.__slots__:
        if name != "task":
            assert getattr(again, name) == getattr(nexus, name), name
    assert again.task is not None
    assert again.task.tag == 0x42


def test_without_a_task() -> None:
    assert Nexus.load(Nexus(1).save()).task is None
