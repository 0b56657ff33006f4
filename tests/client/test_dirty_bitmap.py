"""Dirty bitmaps: the runs they say, for any bits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.client.dirty_bitmap import DirtyBitmap
from vfio_user.errors import RemoteProtocolError

PAGE = 4096


def bitmap(*pages: int, words: int = 1) -> bytes:
    return sum(1 << page for page in pages).to_bytes(8 * words, "little")


@pytest.mark.parametrize(
    ("length", "pages", "runs"),
    [
        (64 * PAGE, [], []),
        (64 * PAGE, [0], [(0x1000, PAGE)]),
        (64 * PAGE, [63], [(0x40000, PAGE)]),
        (64 * PAGE, [1, 2, 5], [(0x2000, 2 * PAGE), (0x6000, PAGE)]),
        (64 * PAGE, range(64), [(0x1000, 64 * PAGE)]),
        (129 * PAGE, range(63, 129), [(0x40000, 66 * PAGE)]),
        (200 * PAGE, range(64, 128), [(0x41000, 64 * PAGE)]),
        # The last page may be a part of one, and bits beyond it mean nothing.
        (PAGE + 1, [1, 2, 63], [(0x2000, 1)]),
        (PAGE + 1, range(64), [(0x1000, PAGE + 1)]),
        (1, [0], [(0x1000, 1)]),
    ],
)
def test_runs(length: int, pages: list[int], runs: list[tuple[int, int]]) -> None:
    words = (length - 1) // PAGE // 64 + 1
    found = DirtyBitmap(0x1000, length, PAGE, bitmap(*pages, words=words))
    assert list(found) == runs
    assert found.size == sum(size for _, size in runs)
    assert bool(found) == bool(runs)


@given(st.integers(1, 400), st.data())
def test_every_page_is_in_one_run(pages: int, data: st.DataObject) -> None:
    # Whole words of zeroes and ones are taken at once: they have to be likely.
    words = data.draw(
        st.lists(
            st.sampled_from([0, 2**64 - 1]) | st.integers(0, 2**64 - 1),
            min_size=-(-pages // 64),
            max_size=-(-pages // 64),
        )
    )
    found = DirtyBitmap(0, pages * PAGE, PAGE, b"".join(word.to_bytes(8, "little") for word in words))
    covered = [page for start, size in found for page in range(start // PAGE, (start + size) // PAGE)]
    assert covered == [page for page in range(pages) if words[page // 64] >> page % 64 & 1]
    starts = [start for start, _ in found]
    assert all(end < start for end, start in zip([s + size for s, size in found], starts[1:], strict=False))


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_bitmaps_of_another_size(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"bitmap of {size} bytes; 0x40000 bytes in pages of 4096 have 8"):
        DirtyBitmap(0, 64 * PAGE, PAGE, bytes(size))


def test_all_of_a_range() -> None:
    assert list(DirtyBitmap.all(PAGE, 3 * PAGE + 5, PAGE)) == [(PAGE, 3 * PAGE + 5)]


def test_two_united() -> None:
    one, other = (DirtyBitmap(0, 9 * PAGE, PAGE, bitmap(*pages)) for pages in ([0, 8], [1, 8]))
    assert list(one | other) == [(0, 2 * PAGE), (8 * PAGE, PAGE)]
    assert repr(one | other) == "<DirtyBitmap of [0x0, 0x9000): 0x3000 bytes in 2 runs>"
    with pytest.raises(ValueError, match="not about the same pages"):
        _ = one | DirtyBitmap(0, 9 * PAGE, 2 * PAGE, bitmap())
