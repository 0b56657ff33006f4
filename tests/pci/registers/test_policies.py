"""Each policy against its data-sheet sentence, bit by bit, and the folded masks against the policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.pci.registers import (
    CONST,
    COUNTER,
    COUNTER_RC,
    COUNTER_WRAP,
    RC,
    RO,
    RS,
    RSVDP,
    RSVDZ,
    RW,
    RW1C,
    RW1S,
    RW1T,
    RWRC,
    W0C,
    W0S,
    W1P,
    WO,
    Access,
    ReadEffect,
    WriteEffect,
)
from vfio_user.pci.registers.policies import Combined

ALL = [
    RW, RO, WO, RW1C, RW1S, RW1T, W0C, W0S, W1P, RC, RS, RWRC, RSVDP, RSVDZ, CONST, COUNTER, COUNTER_RC, COUNTER_WRAP,
    Access("W0T", WriteEffect.ZERO_TOGGLES), Access("WSET", WriteEffect.SETS, ReadEffect.HIDDEN),
]  # fmt: skip

#: For each policy: the bit after a write, for (stored, written) = 00 01 10 11; what 0 and 1 read as; and leave behind.
BITS = {
    "RW": ("0101", "01", "01"),
    "RO": ("0011", "01", "01"),
    "WO": ("0101", "00", "01"),
    "RW1C": ("0010", "01", "01"),
    "RW1S": ("0111", "01", "01"),
    "RW1T": ("0110", "01", "01"),
    "W0C": ("0001", "01", "01"),
    "W0S": ("1011", "01", "01"),
    "W1P": ("0101", "01", "01"),
    "RC": ("0011", "01", "00"),
    "RS": ("0011", "01", "11"),
    "RWRC": ("0101", "01", "00"),
    "RsvdP": ("0011", "01", "01"),
    "RsvdZ": ("0011", "00", "01"),
    "CONST": ("0011", "01", "01"),
    "COUNTER": ("0000", "01", "01"),
    "COUNTER_RC": ("0011", "01", "00"),
    "COUNTER_WRAP": ("0000", "01", "01"),
    "W0T": ("1001", "01", "01"),
    "WSET": ("1111", "00", "01"),
}


@pytest.mark.parametrize("access", ALL, ids=str)
def test_every_bit_of_every_policy(access: Access) -> None:
    written, returned, left = BITS[access.name]
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "".join(str(access.written(stored, value, 1)) for stored, value in pairs) == written
    assert "".join(str(access.returned(stored, 1)) for stored in (0, 1)) == returned
    assert "".join(str(access.after_read(stored, 1)) for stored in (0, 1)) == left


@given(
    policies=st.lists(st.sampled_from(ALL), min_size=64, max_size=64),
    stored=st.integers(0, 2**64 - 1),
    value=st.integers(0, 2**64 - 1),
    lanes=st.integers(0, 2**64 - 1),
)
def test_the_masks_of_a_register_do_what_each_bits_policy_says(
    policies: list[Access], stored: int, value: int, lanes: int
) -> None:
    combined = Combined((1 << bit, access) for bit, access in enumerate(policies))
    new = combined.writer(lanes)(stored, value)
    for bit, access in enumerate(policies):
        mask = 1 << bit
        expected = access.written(stored & mask, value & mask, mask) if lanes & mask else stored & mask
        assert new & mask == expected, (bit, access)
        assert stored & ~combined.hidden & mask == access.returned(stored & mask, mask)
        left = stored & ~combined.clears_on_read | combined.sets_on_read
        assert left & mask == access.after_read(stored & mask, mask)
        assert bool(combined.pulses & mask) == (access is W1P)
        assert bool(combined.constant & mask) == (access is CONST)
    assert new >> 64 == 0


@given(access=st.sampled_from(ALL), stored=st.integers(0, 255), value=st.integers(0, 255), mask=st.integers(0, 255))
def test_a_policy_stays_inside_its_mask(access: Access, stored: int, value: int, mask: int) -> None:
    assert access.written(stored, value, mask) & ~mask == 0
    assert access.returned(stored, mask) & ~mask == 0
    assert access.after_read(stored, mask) & ~mask == 0


def test_plain_is_read_write_and_nothing_else() -> None:
    assert Combined([(0xFF, RW)]).is_plain
    for access in ALL[1:]:
        assert not Combined([(0x0F, RW), (0xF0, access)]).is_plain, access


def test_readable_and_writable_say_which_side_has_a_client() -> None:
    assert (RW.readable, RW.writable) == (True, True)
    assert (RO.readable, RO.writable) == (True, False)
    assert (WO.readable, WO.writable) == (False, True)
    assert (RSVDZ.readable, RSVDZ.writable) == (False, False)
    assert str(RW1C) == "RW1C"
