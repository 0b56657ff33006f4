from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.hardware.scsi.layout import Layout
from vfio_user.hardware.scsi.sense import FieldPointer

LAYOUT = Layout(8, flag=(0, 6), middle=(0, 5, 3), wide=(1, 4, 21), text=(4, 7, 32))


def test_fields_lie_where_they_are_said_to() -> None:
    assert LAYOUT.pack(flag=1, middle=5, wide=0x1F_0001, text="ab") == bytes.fromhex("68 1f0001 61622020")
    assert LAYOUT.pack(middle=1) == bytes.fromhex("0800000000000000")
    assert LAYOUT.mask() == bytes.fromhex("78 1fffff ffffffff")


@given(st.integers(0, 1), st.integers(0, 7), st.integers(0, 0x1F_FFFF), st.binary(min_size=8, max_size=8))
def test_a_field_changes_nothing_else(flag: int, middle: int, wide: int, start: bytes) -> None:
    data = bytearray(start)
    for name, value in (("flag", flag), ("middle", middle), ("wide", wide)):
        LAYOUT.put(data, name, value)
    assert (LAYOUT.get(data, "flag"), LAYOUT.get(data, "middle"), LAYOUT.get(data, "wide")) == (flag, middle, wide)
    outside = bytes(~byte & 0xFF for byte in Layout(8, flag=(0, 6), middle=(0, 5, 3), wide=(1, 4, 21)).mask())
    assert [a & m for a, m in zip(data, outside, strict=True)] == [a & m for a, m in zip(start, outside, strict=True)]
    assert LAYOUT.unpack(data)["wide"] == wide


def test_what_is_not_there_is_zero() -> None:
    assert LAYOUT.get(b"\x08", "middle") == 1
    assert LAYOUT.get(b"\0\x01", "wide") == 0x01_0000
    assert LAYOUT.get(b"", "text") == 0


@pytest.mark.parametrize(("name", "value"), [("flag", 2), ("middle", 8), ("wide", -1), ("text", "abcde")])
def test_what_does_not_fit(name: str, value: int | str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        LAYOUT.pack(**{name: value})


@pytest.mark.parametrize("place", [(8, 7, 8), (7, 0, 2), (0, 7, 65)])
def test_a_field_outside(place: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="field x ends in byte 8 of a structure of 8"):
        Layout(8, x=place)


def test_a_bit_that_is_none() -> None:
    with pytest.raises(ValueError, match="field x begins at bit 8"):
        Layout(8, x=(0, 8))


def test_pointers() -> None:
    assert LAYOUT.pointer("text") == FieldPointer(4)
    assert LAYOUT.pointer("flag") == FieldPointer(0, 6)
    assert LAYOUT.pointer("wide", offset=10) == FieldPointer(11, 4, in_data=True)
