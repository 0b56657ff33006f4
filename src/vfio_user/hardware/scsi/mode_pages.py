"""Mode pages: fields, what they are by default, which of them an initiator can change. Spec: SPC-4 7.5, SBC-3 6.4."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vfio_user.hardware.scsi.layout import Layout, Place

__all__ = [
    "ALL_PAGES",
    "ALL_SUBPAGES",
    "CACHING",
    "CD_CAPABILITIES",
    "CD_ERROR_RECOVERY",
    "CONTROL",
    "CONTROL_EXTENSION",
    "DISCONNECT_RECONNECT",
    "ERROR_RECOVERY",
    "HEADER_6",
    "HEADER_10",
    "INFORMATIONAL_EXCEPTIONS",
    "LONG_BLOCK_DESCRIPTOR",
    "SHORT_BLOCK_DESCRIPTOR",
    "ModePage",
    "PageControl",
]

#: PAGE CODE and SUBPAGE CODE that ask for everything there is.
ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF

#: What comes before the pages. Spec: SPC-4 7.5.5.
HEADER_6 = Layout(4, data_length=(0, 7, 8), medium_type=(1, 7, 8), device_specific=(2, 7, 8), block_length=(3, 7, 8))
HEADER_10 = Layout(
    8,
    data_length=(0, 7, 16),
    medium_type=(2, 7, 8),
    device_specific=(3, 7, 8),
    long_lba=(4, 0),
    block_length=(6, 7, 16),
)

#: What comes between. Spec: SBC-3 6.4.2.
SHORT_BLOCK_DESCRIPTOR = Layout(8, blocks=(0, 7, 32), block_size=(5, 7, 24))
LONG_BLOCK_DESCRIPTOR = Layout(16, blocks=(0, 7, 64), block_size=(12, 7, 32))


class PageControl:
    """Which values of a page MODE SENSE asks for. Spec: SPC-4 6.11."""

    CURRENT: Final = 0
    CHANGEABLE: Final = 1
    DEFAULT: Final = 2
    SAVED: Final = 3


class ModePage:
    """A mode page, or a subpage.

    Args:
        code: PAGE CODE.
        subcode: SUBPAGE CODE; 0 for a page without one.
        length: bytes, with its header.
        changeable: the fields MODE SELECT can change.
        defaults: fields that are not zero by default.
        fields: where fields lie, counted from the page's first byte as the tables do.
    """

    def __init__(
        self,
        code: int,
        subcode: int,
        length: int,
        *,
        changeable: Iterable[str] = (),
        defaults: dict[str, int] | None = None,
        **fields: Place,
    ) -> None:
        self.code, self.subcode, self.length = code, subcode, length
        self.layout = Layout(length, **fields)
        self.header_length = 4 if subcode else 2
        header = (
            bytes([0x40 | code, subcode]) + (length - 4).to_bytes(2, "big") if subcode else bytes([code, length - 2])
        )
        self.default = header + bytes(self.layout.pack(**(defaults or {})))[len(header) :]
        mask = bytes(self.layout.pack(**{name: (1 << self.layout.fields[name].width) - 1 for name in changeable}))
        self.mask = mask
        self.changeable = header + mask[len(header) :]

    @property
    def key(self) -> tuple[int, int]:
        """Code and subcode."""
        return self.code, self.subcode


#: Spec: SBC-3 6.4.8. Blocks that go bad are reallocated, so the medium's owner says.
ERROR_RECOVERY = ModePage(
    0x01,
    0,
    12,
    awre=(2, 7),
    arre=(2, 6),
    per=(2, 2),
    dte=(2, 1),
    dcr=(2, 0),
    read_retries=(3, 7, 8),
    write_retries=(8, 7, 8),
    time_limit=(10, 7, 16),
    defaults={"awre": 1, "arre": 1},
)

#: Spec: SPC-4 7.5.10. Whoever moves the data decides; nothing is asked for.
DISCONNECT_RECONNECT = ModePage(
    0x02, 0, 16, buffer_full=(2, 7, 8), buffer_empty=(3, 7, 8), maximum_burst=(10, 7, 16), first_burst=(14, 7, 16)
)

#: Spec: SBC-3 6.4.5. Without WCE, a write is durable when its status comes.
CACHING = ModePage(
    0x08,
    0,
    20,
    wce=(2, 2),
    rcd=(2, 0),
    dra=(12, 5),
    defaults={"wce": 1},
    changeable=("wce",),
)

#: Spec: SPC-4 7.5.8.
CONTROL = ModePage(
    0x0A,
    0,
    12,
    task_set_type=(2, 7, 3),
    d_sense=(2, 2),
    gltsd=(2, 1),
    queue_algorithm_modifier=(3, 7, 4),
    qerr=(3, 2, 2),
    swp=(4, 3),
    busy_timeout=(8, 7, 16),
    self_test_time=(10, 7, 16),
    defaults={"gltsd": 1, "queue_algorithm_modifier": 1},
    changeable=("d_sense", "swp"),
)

#: Spec: SPC-4 7.5.9.
CONTROL_EXTENSION = ModePage(0x0A, 1, 32, ialuae=(4, 0), initial_priority=(5, 3, 4), maximum_sense_length=(6, 7, 8))

#: Spec: SPC-4 7.5.11. There are none to be reported.
INFORMATIONAL_EXCEPTIONS = ModePage(
    0x1C, 0, 12, dexcpt=(2, 3), mrie=(3, 3, 4), interval=(4, 7, 32), count=(8, 7, 32), defaults={"dexcpt": 1}
)

#: Spec: MMC-6 7.3.
CD_ERROR_RECOVERY = ModePage(0x01, 0, 12, read_retries=(3, 7, 8), defaults={"read_retries": 5})

#: Spec: MMC-3 5.5.10, which later editions keep for old initiators. Speeds in units of 1000 bytes a second.
CD_CAPABILITIES = ModePage(
    0x2A,
    0,
    22,
    dvd_rom=(2, 3),
    cd_rw=(2, 1),
    cd_r=(2, 0),
    multi_session=(4, 6),
    mode_2_form_1=(4, 4),
    loading_mechanism=(6, 7, 3),
    eject=(6, 3),
    lock_state=(6, 1),
    lock=(6, 0),
    maximum_speed=(8, 7, 16),
    volume_levels=(10, 7, 16),
    buffer_size=(12, 7, 16),
    current_speed=(14, 7, 16),
    defaults={
        "dvd_rom": 1,
        "cd_rw": 1,
        "cd_r": 1,
        "multi_session": 1,
        "mode_2_form_1": 1,
        "loading_mechanism": 1,
        "eject": 1,
        "lock": 1,
        "maximum_speed": 8467,
        "volume_levels": 2,
        "buffer_size": 2048,
        "current_speed": 8467,
    },
)
