"""Array types made of struct layouts."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("numpy", reason="the vector engine needs NumPy: pip install vfio-user[vector]")

import numpy as np

from vfio_user.rings.arrays import entry_type

LAYOUT = struct.Struct("<BBHI2QII")
NAMES = ["opcode", "flags", "cid", "nsid", "first", "second", "low", "high"]


def test_the_fields_are_where_the_layout_has_them() -> None:
    made = entry_type(LAYOUT, NAMES, {"both": ("low", "Q"), "kind": ("opcode", "H")})
    values = (1, 2, 0x304, 0x05060708, 1 << 60, 7, 8, 9)
    array = np.frombuffer(LAYOUT.pack(*values) * 2, made)
    assert array.shape == (2,)
    assert tuple(array[1][name] for name in NAMES) == values
    assert array[0]["both"] == 8 | 9 << 32
    assert array[0]["kind"] == 1 | 2 << 8
    assert made.itemsize == LAYOUT.size


@pytest.mark.parametrize(
    ("layout", "says"),
    [("<BBHIQQIi", "little-endian unsigned"), (">BBHI2QII", "little-endian unsigned"), ("<BBHI2QI", "7 fields")],
)
def test_layouts_that_are_none(layout: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        entry_type(struct.Struct(layout), NAMES)
