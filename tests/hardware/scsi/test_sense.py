from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey
from vfio_user.hardware.scsi.sense import FieldPointer, Sense

POINTERS = st.builds(FieldPointer, st.integers(0, 0xFFFF), st.none() | st.integers(0, 7), st.booleans())
SENSES = st.builds(
    Sense,
    st.sampled_from(SenseKey),
    st.sampled_from(AdditionalSense),
    st.none() | st.integers(0, 0xFFFF_FFFF),
    st.none() | POINTERS,
)

LBA_OUT_OF_RANGE = Sense(SenseKey.ILLEGAL_REQUEST, AdditionalSense.LBA_OUT_OF_RANGE, 0x1234, FieldPointer(2, 5))


@pytest.mark.parametrize(
    ("sense", "fixed", "descriptor"),
    [
        (Sense(SenseKey.NO_SENSE), "70 00 00 00000000 0a 00000000 00 00 00 000000", "72 00 00 00 000000 00"),
        (
            LBA_OUT_OF_RANGE,
            "f0 00 05 00001234 0a 00000000 21 00 00 cd0002",
            "72 05 21 00 000000 14 000a 8000 0000000000001234 0206 0000 cd0002 00",
        ),
        (
            Sense(SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY, None, FieldPointer(7, None, True)),
            "70 00 0e 00000000 0a 00000000 1d 00 00 800007",
            "72 0e 1d 00 000000 08 0206 0000 800007 00",
        ),
    ],
)
def test_both_formats(sense: Sense, fixed: str, descriptor: str) -> None:
    assert sense.pack() == bytes.fromhex(fixed)
    assert sense.pack(descriptor=True) == bytes.fromhex(descriptor)


def test_a_block_beyond_four_bytes_has_no_place_in_the_fixed_format() -> None:
    sense = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR, 1 << 32)
    assert sense.pack()[0] == 0x70
    assert Sense.unpack(sense.pack()).information is None
    assert Sense.unpack(sense.pack(descriptor=True)) == sense


@given(SENSES, st.booleans())
def test_what_is_packed_can_be_read(sense: Sense, descriptor: bool) -> None:
    assert Sense.unpack(sense.pack(descriptor=descriptor)) == sense


@given(st.binary(max_size=40))
def test_anything_else_is_no_sense_data(data: bytes) -> None:
    try:
        Sense.unpack(data)
    except ValueError:
        pass
    else:
        assert data[0] & 0x7F in (0x70, 0x72)
