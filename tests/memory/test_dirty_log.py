"""The dirty log, against a set of pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import InvalidAccess
from vfio_user.memory.dirty_log import DirtyLog

SIZES = st.sampled_from([1024, 4096, 16384, 65536])


def pages_of(bitmap: bytes) -> set[int]:
    """The bits that are set, least significant first."""
    return {8 * at + bit for at, octet in enumerate(bitmap) for bit in range(8) if octet >> bit & 1}


def test_a_written_byte_is_its_page_and_reporting_it_cleans_it() -> None:
    log = DirtyLog(4096)
    log.mark(0x3FFF, 2)
    assert log.report(0, 0x10000, 4096) == bytes([0b11000, 0, 0, 0, 0, 0, 0, 0])
    assert log.report(0, 0x10000, 4096) == bytes(8)


def test_the_answer_is_whole_words_of_64_pages() -> None:
    log = DirtyLog(4096)
    log.mark(64 << 12, 1)
    assert log.report(0, 65 << 12, 4096) == bytes(8) + bytes([1]) + bytes(7)


@pytest.mark.parametrize("length", [0, -1])
def test_nothing_written(length: int) -> None:
    log = DirtyLog(4096)
    log.mark(0, length)
    assert pages_of(log.report(0, 4096, 4096)) == set()


def test_a_report_leaves_other_pages_alone() -> None:
    log = DirtyLog(4096)
    log.mark(0, 1 << 20)
    assert pages_of(log.report(0x8000, 0x8000, 4096)) == set(range(8))
    assert pages_of(log.report(0, 1 << 20, 4096)) == set(range(8)) | set(range(16, 256))


def test_a_report_across_chunks_that_begins_inside_a_byte() -> None:
    log = DirtyLog(4096)
    log.mark(4090 << 12, 10 << 12)
    assert pages_of(log.report(4083 << 12, 40 << 12, 4096)) == set(range(7, 17))


def test_what_was_reported_costs_nothing() -> None:
    log = DirtyLog(4096)
    log.mark(0, 1 << 30)
    log.report(0, 1 << 30, 4096)
    assert log._chunks == {}


def test_a_logged_page_reaching_out_of_the_range_stays_dirty() -> None:
    log = DirtyLog(65536)
    log.mark(0, 1)
    assert pages_of(log.report(0x1000, 0x2000, 4096)) == {0, 1}
    assert pages_of(log.report(0, 0x10000, 4096)) == set(range(16))
    assert pages_of(log.report(0, 0x10000, 4096)) == set()


@given(
    own=SIZES,
    asked=SIZES,
    marks=st.lists(st.tuples(st.integers(0, 1 << 26), st.integers(1, 1 << 20)), max_size=6),
    start=st.integers(0, 1 << 10),
    count=st.integers(1, 300),
)
def test_against_a_set(own: int, asked: int, marks: list[tuple[int, int]], start: int, count: int) -> None:
    log = DirtyLog(own)
    dirty: set[int] = set()
    for iova, length in marks:
        log.mark(iova, length)
        dirty.update(range(iova // own, (iova + length - 1) // own + 1))
    begin, end = start * asked, (start + count) * asked
    bitmap = log.report(begin, end - begin, asked)
    assert len(bitmap) == 8 * -(-count // 64)
    step = min(own, asked)
    expected = {(at - begin) // asked for at in range(begin, end, step) if at // own in dirty}
    assert pages_of(bitmap) == expected
    cleaned = {page for page in dirty if begin <= page * own and (page + 1) * own <= end}
    everything = pages_of(log.report(0, 1 << 27, own))
    assert everything == dirty - cleaned


@pytest.mark.parametrize("page_size", [0, -4096, 3000])
def test_impossible_page_sizes(page_size: int) -> None:
    with pytest.raises(InvalidAccess, match="not a power of two"):
        DirtyLog(page_size)
    with pytest.raises(InvalidAccess, match="not a power of two"):
        DirtyLog(4096).report(0, 4096, page_size)


@pytest.mark.parametrize(("iova", "length"), [(0, 2048), (0, 0), (2048, 4096)])
def test_impossible_ranges(iova: int, length: int) -> None:
    with pytest.raises(InvalidAccess, match="begin on a page and hold at least one"):
        DirtyLog(4096).report(iova, length, 4096)


def test_a_look_takes_nothing_out() -> None:
    log = DirtyLog(4096)
    log.mark(0x3000, 1)
    assert log.peek(0, 0x8000, 4096) == log.peek(0, 0x8000, 4096) == b"\x08" + bytes(7)
    assert log.peek(0x1000, 0x8000, 4096) == b"\x04" + bytes(7)
    assert log.report(0, 0x8000, 4096) == b"\x08" + bytes(7)
    assert log.peek(0, 0x8000, 4096) == bytes(8)


def test_a_report_costs_what_was_written_not_what_was_asked_about() -> None:
    log = DirtyLog(4096)
    log.mark(3 << 60, 1)  # with a look at every page this would not end
    assert pages_of(log.report(0, 1 << 63, 1 << 57)) == {3 << 60 >> 57}
    assert log._chunks == {}


@pytest.mark.parametrize(("first", "last"), [(0, 7), (3, 5), (7, 8), (8, 31), (1, 62), (0, 127), (63, 64)])
def test_one_logged_page_is_a_run_of_reported_ones(first: int, last: int) -> None:
    log = DirtyLog(1 << 20)
    log.mark(1 << 20, 1)
    begin = (1 << 20) - (first << 12)
    length = (last + 1) << 12
    assert pages_of(log.report(begin, length, 4096)) == set(range(first, last + 1))
    assert pages_of(log.report(1 << 20, 1 << 20, 4096)) == set(range(256)), "it reaches out of that range"
