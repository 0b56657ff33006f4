from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.pci.msix_table import MsiXPendingBits, MsiXTable


def test_every_vector_is_masked_and_empty_at_reset() -> None:
    table = MsiXTable(3)
    assert table.size == 48
    assert [table.entry(vector) for vector in range(3)] == [(0, 0, True)] * 3
    assert table.read_bytes(0, 16).hex() == "00" * 12 + "01000000"


def test_entry_is_what_software_wrote() -> None:
    table = MsiXTable(2)
    table.write(16, 8, 0x1_FEE0_0000)
    table.write(24, 4, 0x4041)
    table.write(28, 4, 0)
    assert table.entry(1) == (0x1_FEE0_0000, 0x4041, False)
    assert table.entry(0) == (0, 0, True)
    assert table.read(16, 8) == 0x1_FEE0_0000


def test_reserved_bits_of_vector_control_stay_zero() -> None:
    table = MsiXTable(1)
    table.write(12, 4, 0xFFFF_FFFF)
    assert table.read(12, 4) == 1
    table.write(8, 8, 0xFFFF_FFFE_0000_0001)
    assert table.read(8, 8) == 1


def test_mask_changes_are_reported_after_the_whole_access_is_stored() -> None:
    seen: list[tuple[int, bool, int]] = []
    table = MsiXTable(4, lambda vector, masked: seen.append((vector, masked, table.entry(vector)[1])))
    table.write(16 + 8, 8, 0x55)  # data 0x55, control 0: unmasked
    table.write(16 + 12, 1, 0)  # no change
    table.write(16 + 12, 4, 1)
    assert seen == [(1, False, 0x55), (1, True, 0x55)]


def test_reset_masks_again_without_a_report() -> None:
    seen: list[int] = []
    table = MsiXTable(1, lambda vector, masked: seen.append(vector))
    table.write(12, 4, 0)
    table.reset()
    assert table.is_masked(0)
    assert seen == [0]


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 63), st.integers(0, 2**64 - 1)), max_size=20))
def test_any_access_is_taken_and_reserved_bits_stay_zero(accesses: list[tuple[int, int, int]]) -> None:
    table = MsiXTable(4)
    for size, offset, value in accesses:
        if offset + size <= table.size:
            table.write(offset, size, value % (1 << size * 8))
            table.read(offset, size)
    assert all(table.read(vector * 16 + 12, 4) in (0, 1) for vector in range(4))


@pytest.mark.parametrize(("vectors", "size"), [(1, 8), (64, 8), (65, 16), (2048, 256)])
def test_pending_bits_take_whole_words(vectors: int, size: int) -> None:
    assert MsiXPendingBits(vectors).size == size


def test_pending_bits_are_set_cleared_and_read() -> None:
    pending = MsiXPendingBits(70)
    pending.set(0, True)
    pending.set(69, True)
    assert pending.bits == 1 << 69 | 1
    assert pending.read(0, 8) == 1
    assert pending.read(8, 4) == 1 << 5
    assert pending.read_bytes(0, 16).hex() == "01" + "00" * 7 + "20" + "00" * 7
    pending.set(0, False)
    assert pending.read(0, 1) == 0
    pending.write(8, 8, 0)
    pending.write_bytes(8, bytes(8))
    assert pending.bits == 1 << 69
    pending.reset()
    assert pending.bits == 0


@pytest.mark.parametrize("vector", [-1, 70])
def test_a_vector_that_does_not_exist_is_an_index_error(vector: int) -> None:
    with pytest.raises(IndexError, match="of 70"):
        MsiXPendingBits(70).set(vector, True)
    with pytest.raises(IndexError, match="of 70"):
        MsiXTable(70).is_masked(vector)


def test_pending_bits_may_be_kept_elsewhere() -> None:
    pending = MsiXPendingBits(8)
    pending.set(0, True)
    pending.source = lambda: 0x82
    assert (pending.bits, pending.read(0, 8), pending.read_bytes(0, 2)) == (0x82, 0x82, b"\x82\0")
