from __future__ import annotations

import pytest

from vfio_user.hardware.scsi import mmc
from vfio_user.hardware.scsi.mmc import Feature


@pytest.mark.parametrize(
    ("block", "msf"),
    [(0, "00000200"), (74, "0000024a"), (75, "00000300"), (4350, "00010000"), (1 << 40, "00ff3b4a")],
)
def test_minutes_seconds_and_frames(block: int, msf: str) -> None:
    assert mmc.to_msf(block).hex() == msf


def test_a_feature() -> None:
    feature = Feature(0x1E, 2, persistent=True, current=False, data=b"abcd")
    assert feature.pack() == bytes.fromhex("001e 0a 04") + b"abcd"


def test_blocks_beyond_what_can_be_said() -> None:
    assert mmc.toc(1 << 33, 0xAA, msf=False)[-4:] == b"\xff" * 4
    assert mmc.track_information(1 << 33)[24:28] == b"\xff" * 4


@pytest.mark.parametrize(
    ("data", "width"),
    [
        (mmc.toc(5, 0, msf=False), 2),
        (mmc.session_information(msf=True), 2),
        (mmc.full_toc(5), 2),
        (mmc.disc_information(), 2),
        (mmc.track_information(5), 2),
        (mmc.no_event_available(), 2),
        (mmc.configuration(mmc.Profile.NONE, [Feature(0, 0, True, True, b"abcd")]), 4),
    ],
)
def test_everything_says_how_long_it_is(data: bytes, width: int) -> None:
    assert int.from_bytes(data[:width], "big") == len(data) - width
