"""Regions: by messages, by mapping, and what a server may offer for mapping."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.client.scripted import Answering, Heard
from tests.support.fds import memory_file
from vfio_user.client.region import DeviceRegion, map_areas
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import Command, RegionFlags
from vfio_user.protocol.region import MappableArea, RegionInfo, RegionInfoRequest

ALL = RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
PAGE = 4096


@pytest.fixture
def file() -> Iterator[int]:
    """Four pages, each full of its number."""
    fd = memory_file(b"".join(bytes([number]) * PAGE for number in range(1, 5)))
    yield fd
    os.close(fd)


def region_of(server: Answering, info: RegionInfo, fd: int | None, **options: bool) -> DeviceRegion:
    """The region a client makes of a server's description."""

    def describe(heard: Heard) -> tuple[bytes, list[int]]:
        payload, complete = info.encode(RegionInfoRequest.decode(heard.payload).argsz)
        return payload, [fd] if fd is not None and complete else []

    server.answers[Command.DEVICE_GET_REGION_INFO] = describe
    region = server.client(**options).region(info.index)
    server.heard.clear()
    return region


def test_a_region_that_is_mapped_whole(answering: Answering, file: int) -> None:
    region = region_of(answering, RegionInfo(2, ALL, 2 * PAGE, PAGE), file)
    assert (region.name, region.size, region.readable, region.writable) == ("BAR2", 2 * PAGE, True, True)
    assert (region.read8(0), region.read16(PAGE), region.read32(1), region.read64(8)) == (
        2,
        0x0303,
        0x0202_0202,
        0x0202_0202_0202_0202,
    )
    assert region.read32(PAGE - 2) == 0x0303_0202
    region.write8(0, 0x11)
    region.write16(2, 0x2233)
    region.write32(5, 0x4455_6677)
    region.write64(16, 0x8899_AABB_CCDD_EEFF, posted=True)
    assert os.pread(file, 24, PAGE).hex() == "110233220277665544" + "02" * 7 + "ffeeddccbbaa9988"
    region.write_bytes(PAGE, b"bytes")
    assert region.read_bytes(PAGE - 1, 7) == b"\2bytes\3"
    assert answering.heard == [], "a mapped region takes no message"
    region._client.close()
    assert region.areas == []


def test_a_region_that_is_mapped_in_parts(answering: Answering, file: int) -> None:
    areas = (MappableArea(2 * PAGE, PAGE), MappableArea(0, PAGE))
    region = region_of(answering, RegionInfo(0, ALL, 4 * PAGE, 0, areas), file)
    assert [(area.offset, area.end) for area in region.areas] == [(0, PAGE), (2 * PAGE, 3 * PAGE)]
    assert (region.read8(0), region.read8(2 * PAGE), region.read8(3 * PAGE - 1)) == (1, 3, 3)
    client = region._client
    answering.answers[Command.REGION_READ] = lambda heard: heard.payload + b"abcdefgh"[: heard.payload[12]]
    assert region.read32(PAGE) == region.read32(PAGE - 2) == int.from_bytes(b"abcd", "little")
    assert region.read16(3 * PAGE - 1) == int.from_bytes(b"ab", "little")
    assert region.read_bytes(PAGE - 1, 2) == b"ab"
    assert [heard.payload[:8] for heard in answering.heard] == [
        offset.to_bytes(8, "little") for offset in (PAGE, PAGE - 2, 3 * PAGE - 1, PAGE - 1)
    ]
    answering.heard.clear()
    region.write_bytes(PAGE - 1, b"ab")
    region.write32(PAGE, 5)
    region.write32(PAGE, 5, posted=True)
    assert [heard.header.flags for heard in answering.heard] == [0, 0, 0x10]
    client.close()


@pytest.mark.parametrize(
    "flags",
    [ALL & ~RegionFlags.MMAP, RegionFlags.MMAP],
    ids=["not offered", "neither readable nor writable"],
)
def test_what_is_not_for_mapping(answering: Answering, file: int, flags: RegionFlags) -> None:
    region = region_of(answering, RegionInfo(0, flags, PAGE), file)
    assert region.areas == []
    region._client.close()


def test_mapping_can_be_declined(answering: Answering, file: int) -> None:
    region = region_of(answering, RegionInfo(0, ALL, PAGE), file, map_regions=False)
    assert region.areas == []
    region._client.close()


def test_an_offer_without_a_descriptor(answering: Answering) -> None:
    region = region_of(answering, RegionInfo(0, ALL, PAGE), None)
    assert region.areas == []
    region._client.close()


def test_a_descriptor_that_cannot_be_mapped() -> None:
    reading, writing = os.pipe()
    try:
        assert map_areas(RegionInfo(0, ALL, PAGE), reading) == []
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("size", "fd_offset", "areas", "why"),
    [
        (5 * PAGE, 0, (), "is beyond the end of its file of 0x4000 bytes"),
        (PAGE, 4 * PAGE, (), "is beyond the end"),
        (PAGE, 1, (), "not made of whole pages"),
        (4 * PAGE, 0, ((1, PAGE),), "not made of whole pages"),
        (4 * PAGE, 0, ((0, PAGE + 1),), "not made of whole pages"),
        (4 * PAGE, 0, ((0, 0),), "is empty or leaves the region"),
        (PAGE, 0, ((0, 2 * PAGE),), "is empty or leaves the region"),
        (PAGE, 0, (((1 << 64) - PAGE, PAGE),), "is empty or leaves the region"),
        (4 * PAGE, 0, ((PAGE, 2 * PAGE), (2 * PAGE, PAGE)), "overlaps the one before it, which ends at 0x3000"),
        (4 * PAGE, 0, ((0, PAGE), (0, PAGE)), "overlaps"),
        ((1 << 64) - PAGE, 0, (), "is beyond the end"),
    ],
)
def test_offers_that_cannot_be(
    file: int, size: int, fd_offset: int, areas: tuple[tuple[int, int], ...], why: str
) -> None:
    info = RegionInfo(0, ALL, size, fd_offset, tuple(MappableArea(*area) for area in areas))
    with pytest.raises(RemoteProtocolError, match=why):
        map_areas(info, file)


def test_the_client_closes_what_it_was_offered(answering: Answering, file: int) -> None:
    with pytest.raises(RemoteProtocolError, match="beyond the end of its file"):
        region_of(answering, RegionInfo(0, ALL, 8 * PAGE), file)
