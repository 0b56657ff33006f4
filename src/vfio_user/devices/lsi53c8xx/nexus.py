"""A nexus: what an initiator and a target have to do with each other, from the selection to COMMAND COMPLETE.

Spec: SAM-5 4.8 (nexus), SPI-4 clause 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from vfio_user.devices.scsi.task import Task
from vfio_user.hardware.scsi.codes import TaskAttribute

__all__ = ["Ending", "Nexus"]


class Ending(Enum):
    """Why the target frees the bus once its last message is acknowledged."""

    NONE = "none"
    DISCONNECT = "disconnect"
    COMPLETE = "complete"


class Nexus:
    """One command of one target.

    Attributes:
        target: the target's SCSI id.
        lun: what IDENTIFY named.
        may_disconnect: ... and whether it allowed the target to disconnect.
        tag: None for an untagged task.
        attribute: its order.
        cdb: the bytes of the command that have come.
        task: what the target makes of them; None before it has all.
        ending: see there.
        has_moved: data was moved since the data pointers were saved.
        has_status: the status byte was sent.
    """

    __slots__ = (
        "attribute",
        "cdb",
        "ending",
        "has_moved",
        "has_status",
        "lun",
        "may_disconnect",
        "tag",
        "target",
        "task",
    )

    def __init__(self, target: int) -> None:
        self.target = target
        self.lun = 0
        self.may_disconnect = False
        self.tag: int | None = None
        self.attribute = TaskAttribute.SIMPLE
        self.cdb = bytearray()
        self.task: Task | None = None
        self.ending = Ending.NONE
        self.has_moved = False
        self.has_status = False

    def save(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "target": self.target,
            "lun": self.lun,
            "may_disconnect": self.may_disconnect,
            "tag": self.tag,
            "attribute": int(self.attribute),
            "cdb": bytes(self.cdb),
            "task": None if self.task is None else self.task.save(),
            "ending": self.ending.value,
            "has_moved": self.has_moved,
            "has_status": self.has_status,
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Nexus:
        """The nexus that was saved. Its task does not run yet."""
        nexus = cls(state["target"])
        nexus.lun, nexus.may_disconnect, nexus.tag = state["lun"], state["may_disconnect"], state["tag"]
        nexus.attribute, nexus.cdb = TaskAttribute(state["attribute"]), bytearray(state["cdb"])
        nexus.task = None if state["task"] is None else Task.load(state["task"])
        nexus.ending, nexus.has_moved = Ending(state["ending"]), state["has_moved"]
        nexus.has_status = state["has_status"]
        return nexus
