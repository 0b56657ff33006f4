"""CD-ROMs: tables of contents, features, events, what a disc is. Spec: MMC-6 clauses 5 and 6."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

__all__ = [
    "DATA_TRACK",
    "EVENT_CLASS_MEDIA",
    "LEAD_OUT",
    "USER_DATA",
    "DiscStructure",
    "Feature",
    "MediaEvent",
    "MediaStatus",
    "Profile",
    "SectorType",
    "TocFormat",
    "block_of",
    "configuration",
    "disc_information",
    "disc_structure",
    "event_status",
    "full_toc",
    "mechanism_status",
    "no_event_available",
    "session_information",
    "to_msf",
    "toc",
    "track_information",
]

#: TRACK NUMBER of the lead-out area.
LEAD_OUT: Final = 0xAA

#: ADR 1 and CONTROL 4: a data track, not to be copied.
DATA_TRACK: Final = 0x14

#: NOTIFICATION CLASS of media events.
EVENT_CLASS_MEDIA: Final = 4

#: MAIN CHANNEL SELECTION of READ CD: the data of a sector, without what surrounds them. Spec: 6.18.2.7.
USER_DATA: Final = 0x10

#: The first physical sector of a DVD's data area.
_DVD_START = 0x3_0000

#: Frames before block 0, in the addresses of minutes, seconds and frames.
_MSF_OFFSET = 150


class Profile(IntEnum):
    """What a drive acts as, with the medium at hand. Spec: 5.3.1."""

    NONE = 0x0000
    CD_ROM = 0x0008
    DVD_ROM = 0x0010


class SectorType(IntEnum):
    """EXPECTED SECTOR TYPE of READ CD, as far as discs of data have them. Spec: 6.18.2.2."""

    ANY = 0
    MODE_1 = 2


class TocFormat(IntEnum):
    """Formats of READ TOC/PMA/ATIP."""

    TOC = 0
    SESSION_INFORMATION = 1
    FULL_TOC = 2


class DiscStructure(IntEnum):
    """Formats of READ DISC STRUCTURE. Spec: 6.21.3."""

    PHYSICAL = 0x00
    COPYRIGHT = 0x01
    LIST = 0xFF


class MediaEvent(IntEnum):
    """MEDIA EVENT of GET EVENT STATUS NOTIFICATION. Spec: 6.6.3.5."""

    NONE = 0
    EJECT_REQUEST = 1
    NEW_MEDIA = 2
    MEDIA_REMOVAL = 3


class MediaStatus(IntFlag):
    """MEDIA STATUS beside it."""

    TRAY_OPEN = 1
    MEDIA_PRESENT = 2


class Feature(NamedTuple):
    """A feature descriptor. Spec: 5.2.

    Attributes:
        code: FEATURE CODE.
        version: VERSION.
        persistent: it is always there.
        current: it is there with this medium.
        data: what is particular to it.
    """

    code: int
    version: int
    persistent: bool
    current: bool
    data: bytes

    def pack(self) -> bytes:
        """The descriptor."""
        flags = self.version << 2 | self.persistent << 1 | self.current
        return struct.pack(">HBB", self.code, flags, len(self.data)) + self.data


def to_msf(block: int) -> bytes:
    """The address of a block in minutes, seconds and frames, of four bytes; the last there is where it has none."""
    frames = min(block + _MSF_OFFSET, 256 * 60 * 75 - 1)
    return bytes([0, frames // (60 * 75), frames // 75 % 60, frames % 75])


def block_of(msf: int) -> int:
    """The block at an address of minutes, seconds and frames, a byte each; negative before the first one.

    Raises:
        ValueError: a minute has no such second, or a second no such frame.
    """
    minutes, seconds, frames = msf.to_bytes(3, "big")
    if seconds >= 60 or frames >= 75:
        raise ValueError(f"{minutes}:{seconds:02}.{frames:02} is no address: there are 60 seconds, and 75 frames")
    return (minutes * 60 + seconds) * 75 + frames - _MSF_OFFSET


def _address(block: int, *, msf: bool) -> bytes:
    return to_msf(block) if msf else struct.pack(">I", min(block, 0xFFFF_FFFF))


def toc(blocks: int, first_track: int, *, msf: bool) -> bytes:
    """READ TOC, format 0, of a disc with one data track. Spec: 6.26.2.4."""
    tracks = [(1, 0)] if first_track <= 1 else []
    entries = b"".join(
        struct.pack(">xBBx", DATA_TRACK, number) + _address(block, msf=msf)
        for number, block in [*tracks, (LEAD_OUT, blocks)]
    )
    return struct.pack(">HBB", 2 + len(entries), 1, 1) + entries


def session_information(*, msf: bool) -> bytes:
    """READ TOC, format 1: where the last session begins, which is the only one. Spec: 6.26.2.5."""
    return struct.pack(">HBBxBBx", 10, 1, 1, DATA_TRACK, 1) + _address(0, msf=msf)


def full_toc(blocks: int) -> bytes:
    """READ TOC, format 2: the lead-in's entries, as they stand on the disc. Spec: 6.26.2.6."""
    entries = b"".join(
        struct.pack(">BBxB4x", 1, DATA_TRACK, point) + address
        for point, address in [
            (0xA0, bytes([1, 0, 0])),
            (0xA1, bytes([1, 0, 0])),
            (0xA2, to_msf(blocks)[1:]),
            (0x01, to_msf(0)[1:]),
        ]
    )
    return struct.pack(">HBB", 2 + len(entries), 1, 1) + entries


def configuration(profile: Profile, features: Sequence[Feature]) -> bytes:
    """GET CONFIGURATION. Spec: 6.5.2."""
    body = b"".join(feature.pack() for feature in features)
    return struct.pack(">IHH", 4 + len(body), 0, profile) + body


def event_status(event: MediaEvent, status: MediaStatus) -> bytes:
    """GET EVENT STATUS NOTIFICATION, of the media class. Spec: 6.6.2."""
    return struct.pack(">HBBBB2x", 6, EVENT_CLASS_MEDIA, 1 << EVENT_CLASS_MEDIA, event, status)


def no_event_available() -> bytes:
    """GET EVENT STATUS NOTIFICATION, of classes there are none of: NEA."""
    return struct.pack(">HBB", 2, 0x80, 1 << EVENT_CLASS_MEDIA)


def disc_information() -> bytes:
    """READ DISC INFORMATION: one finished session of one track. Spec: 6.22.3.1."""
    return struct.pack(">HBBBBBBB3x4xII9xB", 32, 0x0E, 1, 1, 1, 1, 0x20, 0x00, 0xFFFF_FFFF, 0xFFFF_FFFF, 0)


def track_information(blocks: int) -> bytes:
    """READ TRACK INFORMATION: the one data track, all recorded. Spec: 6.27.3."""
    return struct.pack(">HBBxBBxI12xI8x", 34, 1, 1, 4, 1, 0, min(blocks, 0xFFFF_FFFF))


def disc_structure(kind: DiscStructure, blocks: int) -> bytes:
    """READ DISC STRUCTURE, of a DVD-ROM of one layer without copy protection. Spec: 6.21.3.2."""
    match kind:
        case DiscStructure.PHYSICAL:
            # Version 1, 120 mm, any rate, embossed; from the first physical sector of data to the last.
            body = struct.pack(">BBBBIII", 0x01, 0x0F, 0x01, 0x00, _DVD_START, _DVD_START + max(blocks - 1, 0), 0)
            body = body.ljust(2048, b"\0")
        case DiscStructure.COPYRIGHT:
            body = bytes(4)
        case DiscStructure.LIST:
            readable = (DiscStructure.PHYSICAL, DiscStructure.COPYRIGHT)
            body = b"".join(struct.pack(">BBH", each, 0x40, len(disc_structure(each, blocks))) for each in readable)
    return struct.pack(">H2x", 2 + len(body)) + body


def mechanism_status(*, door_open: bool) -> bytes:
    """MECHANISM STATUS: no changer, the door. Spec: 6.12.2."""
    return struct.pack(">BB3xBH", 0, 0x10 if door_open else 0, 1, 0)
