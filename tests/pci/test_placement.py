from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import DefinitionError
from vfio_user.pci.placement import PlacementRequest, place


def request(size: int, at: int | None = None, label: str = "x") -> PlacementRequest:
    return PlacementRequest(label=label, size=size, at=at)


def at(*requests: PlacementRequest) -> list[int]:
    return place(requests, start=0x40, end=0x100, what="capability area")


def test_things_follow_each_other_aligned() -> None:
    assert at(request(8), request(10), request(12)) == [0x40, 0x48, 0x54]


def test_explicit_offsets_are_kept_and_gaps_are_filled() -> None:
    assert at(request(12), request(8, 0x44), request(4), request(20, 0xEC)) == [0x4C, 0x44, 0x40, 0xEC]


def test_the_area_can_be_filled_to_the_last_byte() -> None:
    assert at(request(0xC0)) == [0x40]
    with pytest.raises(
        DefinitionError, match=r"full: no 4 free bytes in the capability area \[0x40, 0x100\), taken by x"
    ):
        at(request(0xC0), request(4, label="full"))


@pytest.mark.parametrize("offset", [0x3C, 0x42, 0xFC])
def test_an_explicit_offset_outside_or_unaligned_is_refused(offset: int) -> None:
    with pytest.raises(DefinitionError, match=f"x: at={offset:#x} puts 8 bytes"):
        at(request(8, offset))


def test_a_clash_names_both() -> None:
    with pytest.raises(DefinitionError, match=r"msi at \[0x50, 0x68\) overlaps pm at \[0x4c, 0x54\)"):
        at(request(8, 0x4C, "pm"), request(24, 0x50, "msi"))


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.none() | st.integers(0x40 // 4, 0xFF // 4).map(lambda n: n * 4)), max_size=8
    )
)
def test_whatever_is_placed_is_aligned_inside_and_disjoint(wanted: list[tuple[int, int | None]]) -> None:
    requests = [request(size, offset) for size, offset in wanted]
    try:
        offsets = at(*requests)
    except DefinitionError:
        return
    assert all(
        offset == wanted_at for offset, (_, wanted_at) in zip(offsets, wanted, strict=True) if wanted_at is not None
    )
    used: set[int] = set()
    for offset, (size, _) in zip(offsets, wanted, strict=True):
        covered = set(range(offset, offset + size))
        assert offset % 4 == 0
        assert covered <= set(range(0x40, 0x100))
        assert not covered & used
        used |= covered
