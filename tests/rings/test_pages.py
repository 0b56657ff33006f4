"""Guest memory by pages."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numpy", reason="the vector engine needs NumPy: pip install vfio-user[vector]")

import numpy as np
from numpy.typing import NDArray

from tests.support.guest_ram import GuestRam, guest_ram
from vfio_user.memory import DirtyLog, Dma
from vfio_user.protocol.constants import DmaMapFlags
from vfio_user.rings import pages as module
from vfio_user.rings.pages import GuestPages, as_pages

PAGE = 4096

#: (IOVA, size) in pages; the second follows the first in addresses, not in memory.
RANGES = [(16, 4), (20, 3), (64, 8)]


@pytest.fixture
def guest() -> Iterator[tuple[Dma, list[GuestRam], GuestPages]]:
    with guest_ram(*((iova * PAGE, size * PAGE) for iova, size in RANGES)) as (dma, rams):
        for ram in rams:
            ram.memory[:] = os.urandom(len(ram.memory))
        pages = GuestPages(dma, PAGE)
        yield dma, rams, pages
        pages.close()


def addresses(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64) * PAGE


def page(rams: list[GuestRam], number: int) -> bytes:
    for ram in rams:
        if ram.iova <= number * PAGE < ram.iova + len(ram.memory):
            return ram[number * PAGE : (number + 1) * PAGE]
    raise KeyError(number)


@given(st.lists(st.lists(st.integers(12, 76), min_size=1, max_size=6), min_size=1, max_size=6), st.booleans())
def test_pages_are_found_wherever_they_are_mapped(rounds: list[list[int]], bounded: bool) -> None:
    mapped = {iova + number for iova, size in RANGES for number in range(size)}
    with guest_ram(*((iova * PAGE, size * PAGE) for iova, size in RANGES)) as (dma, rams):
        for ram in rams:
            ram.memory[:] = os.urandom(len(ram.memory))
        pages = GuestPages(dma, PAGE)
        for numbers in rounds:
            bounds = (min(numbers) * PAGE, max(numbers) * PAGE) if bounded else None
            located = pages.locate(addresses(*numbers), write=True, bounds=bounds)
            expected = [number in mapped for number in numbers]
            if not all(expected):
                assert located.found is not None
                assert located.found.tolist() == expected
                continue
            assert located.found is None
            target = np.zeros(len(numbers) + 1, f"V{PAGE}")
            located.load(target, np.arange(1, len(numbers) + 1))
            assert target[0].tobytes() == bytes(PAGE)
            assert [one.tobytes() for one in target[1:]] == [page(rams, number) for number in numbers]
            news = np.frombuffer(os.urandom(PAGE * len(numbers)), f"V{PAGE}")
            located.store(news, np.arange(len(numbers)))
            last = {number: one.tobytes() for number, one in zip(numbers, news, strict=True)}
            assert {number: page(rams, number) for number in numbers} == last
            located.store(news, slice(0, 1), slice(0, 1))
            assert page(rams, numbers[0]) == news[0].tobytes()
        pages.close()


def test_a_part_of_what_was_located(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    _, rams, pages = guest
    for numbers in ((16, 17, 18), (16, 22, 65)):
        located = pages.locate(addresses(*numbers), write=True)
        target = np.zeros(2, f"V{PAGE}")
        located.load(target, slice(0, 2), slice(1, 3))
        assert [one.tobytes() for one in target] == [page(rams, number) for number in numbers[1:]]
        before = page(rams, numbers[0])
        located.store(np.zeros(4, f"V{PAGE}"), slice(2, 4), slice(1, 3))
        assert [page(rams, number) for number in numbers] == [before, bytes(PAGE), bytes(PAGE)]


#: Of how many pages runs are, and how many of them follow each other in the guest.
_RUNS = [(1, 1), (2, 2), (7, 7), (8, 1), (8, 8), (8, 24), (9, 5), (12, 6), (16, 16), (32, 8)]


@pytest.mark.parametrize(("length", "neighbours"), _RUNS)
@pytest.mark.parametrize("files", [1, 2])
def test_runs_of_pages(length: int, neighbours: int, files: int) -> None:
    count, source_pages, ram_pages = 3, 200, 256
    with guest_ram((0, ram_pages * PAGE), (ram_pages * PAGE, ram_pages * PAGE)) as (dma, rams):
        pages = GuestPages(dma, PAGE)
        # Groups of pages that follow each other, taken in any order, from one file or from both.
        groups = list(range(0, files * ram_pages - neighbours, neighbours))
        random.Random(length).shuffle(groups)
        numbers = [group + at for group in groups for at in range(neighbours)][: count * length]
        # Two runs that follow each other in the source do not in the guest, and the other way round.
        firsts = np.array([100, 100 + length, 3], np.int64)
        rows = [int(first) + at for first in firsts for at in range(length)]
        source = np.frombuffer(os.urandom(source_pages * PAGE), f"V{PAGE}")
        located = pages.locate(addresses(*numbers), write=True)
        located.store_runs(source, firsts, length)
        expected = {number: source[row].tobytes() for number, row in zip(numbers, rows, strict=True)}
        for number in range(2 * ram_pages):
            assert page(rams, number) == expected.get(number, bytes(PAGE))
        target = np.zeros(source_pages, f"V{PAGE}")
        located.load_runs(target, firsts, length)
        wanted = {row: source[row].tobytes() for row in rows}
        assert [one.tobytes() for one in target] == [wanted.get(row, bytes(PAGE)) for row in range(source_pages)]
        pages.close()


@pytest.mark.parametrize("numbers", [(18, 16, 19), (18, 65, 20)])
def test_the_first_words_of_pages(guest: tuple[Dma, list[GuestRam], GuestPages], numbers: tuple[int, ...]) -> None:
    _, rams, pages = guest
    words = pages.locate(addresses(*numbers), write=False).load_words(3)
    assert [row.tobytes() for row in words] == [page(rams, number)[:24] for number in numbers]
    rams[0].memory[:] = bytes(len(rams[0].memory))
    assert words.any(axis=1).all()  # a copy


@pytest.mark.parametrize("bounds", [(0, (1 << 63) - 1), (-1, 0), (0, -1), (17 * PAGE, 1 << 40)])
def test_bounds_that_are_far_off(guest: tuple[Dma, list[GuestRam], GuestPages], bounds: tuple[int, int]) -> None:
    _, _, pages = guest
    assert pages.locate(addresses(16), write=False).found is None
    for numbers, expected in (((17, 18), True), ((18, 40), False), ((17, 60), False)):
        assert (pages.locate(addresses(*numbers), write=False, bounds=bounds).found is None) == expected


def test_more_pages_than_are_called_in_first() -> None:
    count = 2 * module._MANY
    with guest_ram((0, count * PAGE)) as (dma, [ram]):
        pages = GuestPages(dma, PAGE)
        source = np.frombuffer(os.urandom(3 * count * PAGE), f"V{PAGE}")
        numbers, rows = np.random.default_rng(1).permutation(count), np.arange(0, 3 * count, 3)
        pages.locate(addresses(*numbers), write=True).store(source, rows)
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            assert page([ram], number) == source[row].tobytes()
        pages.close()


def test_addresses_of_the_upper_half_are_not_found(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    _, _, pages = guest
    assert pages.locate(addresses(16), write=False).found is None
    for numbers in (addresses(-1), addresses(16, -1), addresses(-(1 << 51), -1)):
        for bounds in (None, (int(np.bitwise_and.reduce(numbers)), int(np.bitwise_or.reduce(numbers)))):
            found = pages.locate(numbers, write=False, bounds=bounds).found
            assert found is not None
            assert found.tolist() == [number > 0 for number in numbers]


def test_what_a_mapping_allows(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    dma, _, pages = guest
    GuestRam(dma, 100 * PAGE, PAGE, flags=DmaMapFlags.READ)
    GuestRam(dma, 101 * PAGE, PAGE, flags=DmaMapFlags.WRITE)
    for first in (100, 101):  # whichever is the mapping last hit
        pages.locate(addresses(first), write=first == 101)
        for number, write in ((100, True), (101, False)):
            found = pages.locate(addresses(number), write=write).found
            assert found is not None
            assert not found.any()
            assert pages.locate(addresses(number), write=not write).found is None


def test_only_whole_pages_of_files_are_found() -> None:
    dma = Dma()
    fd = os.memfd_create("unaligned")
    os.ftruncate(fd, 8 * PAGE)
    flags = DmaMapFlags.READ | DmaMapFlags.WRITE
    dma.map(0x10000, 2 * PAGE + 512, flags, 0, os.dup(fd))  # the last page is there in part
    dma.map(0x20000, PAGE, flags, 512, os.dup(fd))  # a page of the guest, none of the file
    dma.map(0x30000 + 512, 2 * PAGE, flags, 512, os.dup(fd))
    dma.map(0x40000, PAGE, flags | DmaMapFlags.ACCESS_FILE_IO, 0, fd)
    dma.map(0x50000, PAGE, flags)  # by messages
    pages = GuestPages(dma, PAGE)
    for number, expected in ((0x10, True), (0x11, True), (0x12, False), (0x20, False), (0x31, False), (0x40, False)):
        assert (pages.locate(addresses(number), write=True).found is None) == expected, hex(number)
    assert pages.locate(addresses(0x50), write=True).found is not None
    pages.close()
    dma.clear()


def test_nothing_is_found_while_the_device_may_not_access_memory(
    guest: tuple[Dma, list[GuestRam], GuestPages],
) -> None:
    dma, _, pages = guest
    assert pages.locate(addresses(16), write=False).found is None
    for attribute, forbidding in (("enabled", False), ("held", True)):
        setattr(dma, attribute, forbidding)
        assert pages.locate(addresses(16), write=False).found is not None
        setattr(dma, attribute, not forbidding)
        assert pages.locate(addresses(16), write=False).found is None


def test_mappings_come_and_go(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    dma, _, pages = guest
    assert pages.locate(addresses(16), write=False).found is None
    assert pages.locate(addresses(120), write=False).found is not None
    ram = GuestRam(dma, 120 * PAGE, PAGE)
    ram.memory[:] = b"\x11" * PAGE
    target = np.zeros(1, f"V{PAGE}")
    pages.locate(addresses(120), write=False).load(target, slice(None))
    assert target[0].tobytes() == b"\x11" * PAGE
    dma.unmap(120 * PAGE, PAGE)
    assert pages.locate(addresses(120), write=False).found is not None
    dma.clear()
    assert pages.locate(addresses(16), write=False).found is not None
    assert dma.statistics().stuck_views == 0


def test_no_mapping_outlives_its_end(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    dma, _, pages = guest
    pages.locate(addresses(16), write=False)

    def mapped() -> int:
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            return sum("guest-ram" in line for line in maps)

    before = mapped()
    dma.unmap(16 * PAGE, 4 * PAGE)
    assert mapped() == before - 1


def test_with_very_many_mappings_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.rings.pages._MAX_MAPPINGS", 2)
    with guest_ram((0, PAGE), (PAGE, PAGE)) as (dma, _):
        pages = GuestPages(dma, PAGE)
        assert pages.locate(addresses(0), write=True).found is None
        GuestRam(dma, 2 * PAGE, PAGE)
        assert pages.locate(addresses(0), write=True).found is not None
        pages.close()


def test_written_pages_are_marked(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    dma, _, pages = guest
    log = DirtyLog(PAGE)
    dma.dirty_log = log
    pages.locate(addresses(18, 17, 66, 17, 20), write=True)
    pages.locate(addresses(16, 64), write=False)  # only to be read
    pages.locate(addresses(69, 12), write=True)  # not all found
    marked = int.from_bytes(log.report(0, 128 * PAGE, PAGE), "little")
    assert [number for number in range(128) if marked >> number & 1] == [17, 18, 20, 66]


def test_closing_stops_listening(guest: tuple[Dma, list[GuestRam], GuestPages]) -> None:
    dma, _, pages = guest
    assert dma.on_map
    assert dma.on_unmap
    pages.close()
    pages.close()
    assert dma.on_map == dma.on_unmap == []


def test_memory_as_pages() -> None:
    memory = mmap.mmap(-1, 3 * PAGE)
    memory[PAGE : PAGE + 2] = b"ab"
    view = memoryview(memory)[: 2 * PAGE + 100]
    pages = as_pages(view, PAGE)
    assert len(pages) == 2
    assert pages[1].tobytes()[:2] == b"ab"
    pages[0] = b"\xff" * PAGE
    assert memory[:PAGE] == b"\xff" * PAGE
