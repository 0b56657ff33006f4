"""The educational device's registers: what the tables of its specification say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import InvalidAccess
from vfio_user.hardware.edu import BUFFER_ADDRESS, BUFFER_SIZE, EduRegisters, buffer_slice


def test_registers_lie_where_the_specification_has_them() -> None:
    table = {item.offset: (item.register.width, item.register.access_names) for item in EduRegisters.describe()}
    assert table == {
        0x00: (32, "RO"),
        0x04: (32, "RW"),
        0x08: (32, "RW"),
        0x20: (32, "RO RW"),
        0x24: (32, "RO"),
        0x60: (32, "WO"),
        0x64: (32, "WO"),
        0x80: (64, "RW"),
        0x88: (64, "RW"),
        0x90: (64, "RW"),
        0x98: (64, "RW"),
    }


@pytest.mark.parametrize(("offset", "size"), [(0x4, 1), (0x4, 2), (0x4, 8), (0x80, 2), (0x98, 1)])
def test_accesses_of_other_sizes_are_refused(offset: int, size: int) -> None:
    with pytest.raises(InvalidAccess):
        EduRegisters().read(offset, size)


def test_dma_registers_take_both_sizes() -> None:
    block = EduRegisters()
    block.write(0x80, 4, 0x1111_2222)
    block.write(0x84, 4, 0x3333_4444)
    assert block.read(0x80, 8) == 0x3333_4444_1111_2222


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_slice_of_the_buffer_is_all_of_the_range_or_an_error(address: int, count: int) -> None:
    for near, few in ((address, count), (BUFFER_ADDRESS + address % 0x1800 - 0x400, count % 0x1800)):
        if near >= BUFFER_ADDRESS and near + few <= BUFFER_ADDRESS + BUFFER_SIZE:
            piece = buffer_slice(near, few)
            assert (piece.start, piece.stop) == (near - BUFFER_ADDRESS, near - BUFFER_ADDRESS + few)
        else:
            with pytest.raises(InvalidAccess, match=rf"\[{near:#x}, {near + few:#x}\) is not in the buffer"):
                buffer_slice(near, few)
