"""Firmware: images are downloaded, put into slots, and one of them is what the controller says it runs.

An image is any bytes that begin with the revision they are: 8 printable ASCII characters. Nothing of them is executed.

Spec: 5.12 (Commit), 5.13 (Download), 3.11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.hardware.nvme.logs import FirmwareSlotLog
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["SLOTS", "Firmware"]

#: Firmware slots, all of which can be written.
SLOTS = 3
#: Bytes of the longest image.
_MAX_IMAGE = 16 << 20
#: Parts it may come in: as many as there are of the granularity we ask for (FWUG).
_MAX_PARTS = _MAX_IMAGE // 4096
_ACTIVATE_AT_RESET = {1, 2}


class Firmware:
    """The firmware of a controller.

    Args:
        controller: whose.
        revision: of what it runs at first, in slot 1.
    """

    def __init__(self, controller: Nvme, revision: str) -> None:
        self._controller = controller
        self._slots = {1: revision}
        self._active = 1
        self._next: int | None = None
        self._parts: list[tuple[int, bytes]] = []

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD: self._download, AdminOpcode.FIRMWARE_COMMIT: self._commit}

    @property
    def revision(self) -> str:
        """What the controller runs."""
        return self._slots[self._active]

    def reset(self) -> None:
        """The controller was reset: what was to be active after that is."""
        if self._next is not None:
            self._active, self._next = self._next, None
        self._parts.clear()

    def log(self) -> FirmwareSlotLog:
        """The firmware slot log."""
        revisions = {f"frs{slot}": revision for slot, revision in self._slots.items()}
        return FirmwareSlotLog(afi=self._active | (self._next or 0) << 4, **revisions)

    def _download(self, command: Command) -> int:
        entry = command.entry
        length, offset = (entry.cdw10 + 1) * 4, entry.cdw11 * 4
        if offset + length > _MAX_IMAGE or length > self._controller.max_transfer or len(self._parts) >= _MAX_PARTS:
            raise CommandFailed(Status.INVALID_FIELD, location=40)
        if any(offset < start + len(part) and start < offset + length for start, part in self._parts):
            self._parts.clear()
            raise CommandFailed(Status.OVERLAPPING_RANGE, location=44)
        self._parts.append((offset, bytes(self._controller.take(command, length))))
        return 0

    def _commit(self, command: Command) -> int | None:
        slot, action = command.entry.cdw10 & 7, command.entry.cdw10 >> 3 & 7
        if slot > SLOTS:
            raise CommandFailed(Status.INVALID_FIRMWARE_SLOT, location=40)
        if action not in (0, 1, 2, 3):
            raise CommandFailed(Status.INVALID_FIELD, location=40 | 3 << 8)
        if slot == 0:
            slot = self._choose()
        if action == 2 or (action == 3 and not self._parts):
            if slot not in self._slots:
                raise CommandFailed(Status.INVALID_FIRMWARE_IMAGE)
        else:
            self._slots[slot] = self._image_revision()
        if action in _ACTIVATE_AT_RESET:
            self._next = slot
            needs_reset = CommandFailed(Status.FIRMWARE_ACTIVATION_REQUIRES_CONTROLLER_RESET, retry=True)
            return self._controller.settings.keep(command, failure=needs_reset)
        if action == 3:
            self._active, self._next = slot, None
        return self._controller.settings.keep(command)

    def _choose(self) -> int:
        """The slot for an image the host leaves to us: the first that is not active, empty ones first."""
        free = [slot for slot in range(1, SLOTS + 1) if slot != self._active]
        return next((slot for slot in free if slot not in self._slots), free[0])

    def _image_revision(self) -> str:
        parts = sorted(self._parts)
        self._parts = []
        at = 0
        for start, part in parts:
            if start != at:
                raise CommandFailed(Status.INVALID_FIRMWARE_IMAGE)
            at += len(part)
        revision = b"".join(part for _, part in parts)[:8]
        if len(revision) < 8 or not revision.isascii() or not revision.decode().isprintable():
            raise CommandFailed(Status.INVALID_FIRMWARE_IMAGE)
        return revision.decode().rstrip()

    def save_slots(self) -> dict[str, Any]:
        """What is kept when the process ends."""
        return {"slots": [list(item) for item in self._slots.items()], "active": self._active, "next": self._next}

    def restore(self, kept: dict[str, Any]) -> None:
        """Takes the slots of a process before this one; power was off, so what was to be active after that is.

        Raises:
            ValueError: they are no slots.
        """
        slots, active = dict(kept["slots"]), kept["next"] or kept["active"]
        for slot, revision in slots.items():
            if slot not in range(1, SLOTS + 1) or not isinstance(revision, str) or not revision.isascii():
                raise ValueError(f"firmware {revision!r} in slot {slot!r}")
        if active not in slots:
            raise ValueError(f"firmware slot {active!r} is active, and empty")
        self._slots, self._active, self._next = slots, active, None

    def save(self) -> dict[str, Any]:
        """What is saved."""
        return {
            **self.save_slots(),
            "parts": [list(part) for part in self._parts],
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Puts ``save`` back."""
        self._slots = dict(saved["slots"])
        self._active, self._next = saved["active"], saved["next"]
        self._parts = [(offset, part) for offset, part in saved["parts"]]
