"""``CdRom``: a CD-ROM or DVD-ROM drive, for images of discs (ISO 9660). Spec: MMC-6, the reading side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vfio_user.backends import Backend
from vfio_user.devices.scsi.block_unit import BlockUnit
from vfio_user.devices.scsi.logical_unit import command, illegal, invalid_field
from vfio_user.devices.scsi.task import Steps, Task
from vfio_user.hardware.scsi import mmc
from vfio_user.hardware.scsi.cdb import Command
from vfio_user.hardware.scsi.codes import AdditionalSense, DeviceType
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.mmc import DiscStructure, Feature, MediaEvent, MediaStatus, Profile, SectorType, TocFormat
from vfio_user.hardware.scsi.mode_pages import (
    CD_CAPABILITIES,
    CD_ERROR_RECOVERY,
    CONTROL,
    INFORMATIONAL_EXCEPTIONS,
    ModePage,
)

__all__ = ["CdRom"]

_BLOCK_SIZE = 2048

#: Blocks of the largest CD, of 80 minutes; what is larger is a DVD.
_CD_BLOCKS = 80 * 60 * 75

_ALL, _CURRENT, _ONE = 0, 1, 2


class CdRom(BlockUnit):
    """A drive, with a disc in it or without. The disc is one data track.

    Args:
        backend: the disc, which is never written; None for none.
        options: those of ``BlockUnit``: serial, vendor, product, revision, workers.
    """

    device_type = DeviceType.CD_ROM
    block_sizes = (_BLOCK_SIZE,)
    product = "CD-ROM"
    mode_pages: ClassVar = (CD_ERROR_RECOVERY, CONTROL, INFORMATIONAL_EXCEPTIONS, CD_CAPABILITIES)

    def __init__(self, backend: Backend | None = None, **options: Any) -> None:
        super().__init__(backend, block_size=_BLOCK_SIZE, removable=True, read_only=True, **options)
        self._is_tray_open = False
        self._event = MediaEvent.NONE

    # The tray.

    @property
    def is_tray_open(self) -> bool:
        """The tray is out, the disc with it."""
        return self._is_tray_open

    def insert(self, backend: Backend) -> None:
        """Puts a disc in, and closes the tray."""
        self._is_tray_open = False
        super().insert(backend)

    def remove(self) -> Backend | None:
        """Takes the disc out, which leaves the tray open."""
        self.tray_moved(is_open=True)
        return super().remove()

    def tray_moved(self, *, is_open: bool) -> None:
        """The tray went out, or in."""
        if is_open and self.is_present:
            self._event = MediaEvent.MEDIA_REMOVAL
        self._is_tray_open = is_open

    def medium_changed(self) -> None:
        """A disc is there, and may be another one."""
        super().medium_changed()
        self._event = MediaEvent.NEW_MEDIA

    def press_eject(self) -> None:
        """Somebody presses the button: the tray opens, or if that is prevented, the initiator is asked to open it."""
        if self.is_removal_prevented:
            self._event = MediaEvent.EJECT_REQUEST
        else:
            self.tray_moved(is_open=True)
            self.is_present = False

    def reason_of_absence(self) -> AdditionalSense:
        """No disc, or an open tray."""
        if self._is_tray_open:
            return AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_OPEN
        return AdditionalSense.MEDIUM_NOT_PRESENT_TRAY_CLOSED

    # Discs.

    @property
    def profile(self) -> Profile:
        """What the disc makes of the drive."""
        if not self.is_present:
            return Profile.NONE
        return Profile.CD_ROM if self.blocks <= _CD_BLOCKS else Profile.DVD_ROM

    @command(Op.READ_CD)
    def read_cd(self, task: Task, cdb: Command) -> Steps:
        """READ CD, of the data in sectors, which is all an image has. Spec: 6.18."""
        return self._read_sectors(task, cdb, cdb.lba, cdb.length)

    @command(Op.READ_CD_MSF)
    def read_cd_msf(self, task: Task, cdb: Command) -> Steps:
        """READ CD MSF: the same by minutes, seconds and frames. Spec: 6.19."""
        try:
            start, end = mmc.block_of(cdb.start), mmc.block_of(cdb.end)
        except ValueError:
            raise invalid_field(cdb, "start") from None
        if start > end:
            raise invalid_field(cdb, "start")
        return self._read_sectors(task, cdb, start, end - start)

    def _read_sectors(self, task: Task, cdb: Command, first: int, count: int) -> Steps:
        medium = self.medium()
        if self.profile is not Profile.CD_ROM:
            raise illegal(AdditionalSense.INCOMPATIBLE_MEDIUM)
        if not 0 <= first <= first + count <= self.blocks:
            raise illegal(AdditionalSense.LBA_OUT_OF_RANGE)
        if cdb.sector_type not in (SectorType.ANY, SectorType.MODE_1):
            raise illegal(AdditionalSense.ILLEGAL_MODE_FOR_THIS_TRACK)
        if cdb.main_channel not in (0, mmc.USER_DATA):
            raise invalid_field(cdb, "main_channel")
        if cdb.sub_channel:
            raise invalid_field(cdb, "sub_channel")
        if cdb.main_channel:
            yield from self.send(task, medium, first * _BLOCK_SIZE, count * _BLOCK_SIZE)
        return None

    @command(Op.READ_TOC)
    def read_toc(self, task: Task, cdb: Command) -> bytes:
        """READ TOC/PMA/ATIP, of one data track. Spec: 6.26."""
        self.check_ready()
        # Before MMC the format stood in the last byte; who uses it there leaves the other one 0.
        kind = cdb.format or cdb.old_format
        msf = bool(cdb.msf)
        if kind == TocFormat.TOC:
            if 1 < cdb.track != mmc.LEAD_OUT:
                raise invalid_field(cdb, "track")
            return mmc.toc(self.blocks, cdb.track, msf=msf)
        if kind == TocFormat.SESSION_INFORMATION:
            return mmc.session_information(msf=msf)
        if kind == TocFormat.FULL_TOC:
            return mmc.full_toc(self.blocks)
        raise invalid_field(cdb, "format")

    @command(Op.READ_DISC_INFORMATION)
    def read_disc_information(self, task: Task, cdb: Command) -> bytes:
        """READ DISC INFORMATION. Spec: 6.22."""
        self.check_ready()
        if cdb.data_type:
            raise invalid_field(cdb, "data_type")
        return mmc.disc_information()

    @command(Op.READ_TRACK_INFORMATION)
    def read_track_information(self, task: Task, cdb: Command) -> bytes:
        """READ TRACK INFORMATION, by block, track or session. Spec: 6.27."""
        self.check_ready()
        if cdb.address_type == 3:
            raise invalid_field(cdb, "address_type")
        if cdb.address != 1 if cdb.address_type else cdb.address >= self.blocks:
            raise invalid_field(cdb, "address")
        return mmc.track_information(self.blocks)

    @command(Op.READ_DISC_STRUCTURE)
    def read_disc_structure(self, task: Task, cdb: Command) -> bytes:
        """READ DISC STRUCTURE, which the feature DVD Read asks for; of CDs there is none. Spec: 6.21."""
        self.check_ready()
        if cdb.media_type:
            raise invalid_field(cdb, "media_type")
        if self.profile is not Profile.DVD_ROM:
            raise illegal(AdditionalSense.INCOMPATIBLE_MEDIUM)
        if cdb.layer:
            raise invalid_field(cdb, "layer")
        if cdb.format not in [*DiscStructure]:
            raise invalid_field(cdb, "format")
        return mmc.disc_structure(DiscStructure(cdb.format), self.blocks)

    # The drive.

    @command(Op.GET_CONFIGURATION)
    def get_configuration(self, task: Task, cdb: Command) -> bytes:
        """GET CONFIGURATION. Spec: 6.5."""
        kind, first = cdb.request_type, cdb.starting_feature
        if kind > _ONE:
            raise invalid_field(cdb, "request_type")
        features = [feature for feature in self._features() if feature.code >= first]
        if kind == _ONE:
            features = [feature for feature in features if feature.code == first]
        elif kind == _CURRENT:
            features = [feature for feature in features if feature.current]
        return mmc.configuration(self.profile, features)

    def _features(self) -> list[Feature]:
        """Spec: 5.3."""
        profile = self.profile
        is_cd, is_dvd, is_there = profile is Profile.CD_ROM, profile is Profile.DVD_ROM, profile is not Profile.NONE
        profiles = b"".join(
            number.to_bytes(2, "big") + bytes([profile is number, 0]) for number in (Profile.DVD_ROM, Profile.CD_ROM)
        )
        readable = _BLOCK_SIZE.to_bytes(4, "big") + (1).to_bytes(2, "big") + bytes(2)
        return [
            Feature(0x0000, 0, persistent=True, current=True, data=profiles),
            # Core: a parallel bus, which stands for all of SCSI. Morphing: events are polled for.
            Feature(0x0001, 2, persistent=True, current=True, data=bytes([0, 0, 0, 1, 0, 0, 0, 0])),
            Feature(0x0002, 1, persistent=True, current=True, data=bytes(4)),
            # Removable medium: a tray, that ejects, and that can be locked.
            Feature(0x0003, 2, persistent=True, current=True, data=bytes([0x39, 0, 0, 0])),
            Feature(0x0010, 0, persistent=False, current=is_there, data=readable),
            Feature(0x001D, 0, persistent=False, current=is_there, data=b""),
            Feature(0x001E, 2, persistent=False, current=is_cd, data=bytes(4)),
            Feature(0x001F, 0, persistent=False, current=is_dvd, data=bytes(4)),
        ]

    @command(Op.GET_EVENT_STATUS_NOTIFICATION)
    def get_event_status_notification(self, task: Task, cdb: Command) -> bytes:
        """GET EVENT STATUS NOTIFICATION, of media; polled for, since nothing else is offered. Spec: 6.6."""
        if not cdb.polled:
            raise invalid_field(cdb, "polled")
        if not cdb.classes & 1 << mmc.EVENT_CLASS_MEDIA:
            return mmc.no_event_available()
        # The header alone reports nothing, so nothing is forgotten.
        event = self._event
        if cdb.allocation_length > 4:
            self._event = MediaEvent.NONE
        status = MediaStatus(0)
        if self._is_tray_open:
            status |= MediaStatus.TRAY_OPEN
        if self.is_present:
            status |= MediaStatus.MEDIA_PRESENT
        return mmc.event_status(event, status)

    @command(Op.MECHANISM_STATUS)
    def mechanism_status(self, task: Task, cdb: Command) -> bytes:
        """MECHANISM STATUS. Spec: 6.12."""
        return mmc.mechanism_status(door_open=self._is_tray_open)

    @command(Op.SET_CD_SPEED)
    def set_cd_speed(self, task: Task, cdb: Command) -> None:
        """SET CD SPEED: it is as fast as it is. Spec: 6.36."""

    # What it says about itself. MMC has neither a block descriptor nor a device-specific parameter.

    def block_descriptor(self, *, long_lba: bool) -> bytes:
        """None."""
        return b""

    def current_page(self, page: ModePage) -> bytes:
        """With the lock's state."""
        current = super().current_page(page)
        if page is not CD_CAPABILITIES:
            return current
        shown = bytearray(current)
        page.layout.put(shown, "lock_state", int(self.is_removal_prevented))
        return bytes(shown)

    # Saving.

    def save(self) -> dict[str, Any]:
        """With the tray."""
        return {**super().save(), "is_tray_open": self._is_tray_open, "event": int(self._event)}

    def load(self, state: Mapping[str, Any]) -> None:
        """With the tray."""
        super().load(state)
        self._is_tray_open, self._event = state["is_tray_open"], MediaEvent(state["event"])
