"""Regions that map: what DEVICE_GET_REGION_INFO says of them, and that client and device look at the same bytes."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fds import close_all
from tests.support.raw_client import RawClient, connect, memory_session
from vfio_user import MemoryBar, PciDevice, Register, RegisterBlock, Server
from vfio_user.protocol.constants import Command, RegionFlags
from vfio_user.protocol.region import MappableArea, RegionInfo
from vfio_user.regions import PAGE_SIZE, Region
from vfio_user.testing.leaks import leaked_since, open_files

READ_WRITE = RegionFlags.READ | RegionFlags.WRITE
MAPPED = READ_WRITE | RegionFlags.MMAP


class Registers(RegisterBlock):
    control = Register(0x00)


class Card(PciDevice):
    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    bar0 = MemoryBar(8 * PAGE_SIZE, registers=Registers)
    tails = bar0.shared_area(PAGE_SIZE, PAGE_SIZE)
    rings = bar0.shared_area(4 * PAGE_SIZE, 2 * PAGE_SIZE)
    bar2 = MemoryBar(4 * PAGE_SIZE, shared=True)
    bar4 = MemoryBar(PAGE_SIZE)


@contextlib.contextmanager
def session(capabilities: dict[str, Any] | None = None) -> Iterator[tuple[RawClient, Card]]:
    """A card and its negotiated client. (No fixtures: pytest would keep the card, and with it the memory, too long.)"""
    card = Card()
    with memory_session(card) as client:
        client.negotiate(capabilities)
        yield client, card


def ask(client: RawClient, index: int, argsz: int = 32, padding: int = 0) -> tuple[RegionInfo, bytes, list[int]]:
    """DEVICE_GET_REGION_INFO, which must succeed; the descriptors are the caller's."""
    request = struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0) + bytes(padding)
    reply = client.request(Command.DEVICE_GET_REGION_INFO, request)
    assert reply.error == 0
    return RegionInfo.decode(reply.payload), reply.payload, reply.fds


def map_area(fd: int, info: RegionInfo, area: MappableArea) -> mmap.mmap:
    """As a client maps: the region's offset and the area's."""
    return mmap.mmap(fd, area.size, mmap.MAP_SHARED, offset=info.fd_offset + area.offset)


def test_a_whole_region_has_one_area() -> None:
    with session() as (client, _):
        info, payload, fds = ask(client, 2, 64)
        assert payload == struct.pack("<IIIIQQ", 64, 15, 2, 32, 4 * PAGE_SIZE, 0) + struct.pack(
            "<HHIIIQQ", 1, 1, 0, 1, 0, 0, 4 * PAGE_SIZE
        )
        assert info.areas == (MappableArea(0, 4 * PAGE_SIZE),)
        assert len(fds) == 1
        close_all(fds)


def test_areas_beside_registers() -> None:
    with session() as (client, _):
        info, payload, fds = ask(client, 0, 80)
        assert len(payload) == info.argsz == 80
        assert info.flags == MAPPED | RegionFlags.CAPS
        assert info.areas == ((PAGE_SIZE, PAGE_SIZE), (4 * PAGE_SIZE, 2 * PAGE_SIZE))
        assert len(fds) == 1
        close_all(fds)


@pytest.mark.parametrize("argsz", [32, 63, 79])
def test_the_descriptor_comes_with_a_complete_reply_only(argsz: int) -> None:
    with session() as (client, _):
        before = open_files()
        info, payload, fds = ask(client, 0, argsz)
        assert payload == struct.pack("<IIIIQQ", 80, 7, 0, 0, 8 * PAGE_SIZE, 0)
        assert fds == []
        assert leaked_since(before) == []
        info, payload, fds = ask(client, 0, info.argsz)
        assert (len(payload), len(fds)) == (80, 1)
        close_all(fds)


def test_what_is_not_mapped_says_nothing_of_it() -> None:
    with session() as (client, _):
        for index in (4, 7):
            info, payload, fds = ask(client, index, 4064)
            assert (info.flags, info.argsz, len(payload), fds) == (READ_WRITE, 32, 32, [])


def test_c9_spdk_asks_once_with_all_the_room_it_has() -> None:
    with session() as (client, _):
        info, payload, fds = ask(client, 2, 4064, padding=4032)
        assert (len(payload), len(fds), info.areas) == (64, 1, ((0, 4 * PAGE_SIZE),))
        close_all(fds)


def test_a_client_that_takes_no_descriptors_is_offered_no_mapping() -> None:
    with session({"max_msg_fds": 0}) as (client, _):
        info, payload, fds = ask(client, 2, 4064)
        assert (info.flags, len(payload), fds) == (READ_WRITE, 32, [])


def test_a_client_that_says_nothing_takes_one() -> None:
    with session({}) as (client, _):
        _, _, fds = ask(client, 2, 64)
        assert len(fds) == 1
        close_all(fds)


def test_every_client_maps_the_same_memory() -> None:
    card = Card()
    before = open_files()
    for value in (1, 2):
        with memory_session(card) as client:
            client.negotiate()
            _, _, fds = ask(client, 2, 64)
            with mmap.mmap(fds[0], PAGE_SIZE) as theirs:
                assert theirs[0] == value - 1
                theirs[0] = value
            close_all(fds)
    assert card.bar2.memory[0] == 2
    assert leaked_since(before) == []


def test_a_mapping_outlives_the_connection() -> None:
    card = Card()
    with memory_session(card) as client:
        client.negotiate()
        _, _, fds = ask(client, 2, 64)
        theirs = mmap.mmap(fds[0], PAGE_SIZE)
        close_all(fds)
    theirs[7] = 9
    assert card.bar2.memory[7] == 9
    theirs.close()


def test_the_client_cannot_take_the_memory_away() -> None:
    with session() as (client, card):
        _, _, fds = ask(client, 2, 64)
        for size in (0, PAGE_SIZE, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fds[0], size)
        close_all(fds)
        assert card.bar2.memory[-1] == 0  # SIGBUS, if it had


def test_over_a_socket_both_see_the_same_bytes(tmp_path: Path) -> None:
    card = Card()
    with Server(card, tmp_path / "card.sock", strict=True).start(), connect(tmp_path / "card.sock") as client:
        client.negotiate()
        info, _, fds = ask(client, 0, 80)
        tails, rings = (map_area(fds[0], info, area) for area in info.areas)
        close_all(fds)
        # The client's stores, seen by the device and by messages.
        tails[:4] = b"tail"
        rings[PAGE_SIZE : PAGE_SIZE + 8] = b"new ring"
        assert bytes(card.tails[:4]) == b"tail"
        assert bytes(card.rings[PAGE_SIZE : PAGE_SIZE + 8]) == b"new ring"
        assert client.read(0, PAGE_SIZE) == int.from_bytes(b"tail", "little")
        assert client.read(0, 5 * PAGE_SIZE, 8) == int.from_bytes(b"new ring", "little")
        # The device's, and those of messages, seen by the client.
        card.tails[4:8] = b"done"
        client.write(0, 4 * PAGE_SIZE, 0x11223344)
        assert tails[:8] == b"taildone"
        assert rings[:4] == b"\x44\x33\x22\x11"
        # Registers stay registers.
        client.write(0, 0, 5)
        assert card.bar0.control == 5
        assert client.read(0, 0) == 5
        tails.close()
        rings.close()


def test_a_region_that_has_areas_but_no_file_is_not_mapped() -> None:
    class Odd(Region):
        size = 4 * PAGE_SIZE
        mappable_areas = ((0, PAGE_SIZE),)

    class OddCard(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
        bar0 = MemoryBar(4 * PAGE_SIZE, region=lambda _: Odd())

    with memory_session(OddCard()) as client:
        client.negotiate()
        info, _, fds = ask(client, 0, 64)
        assert (info.flags, info.areas, fds) == (READ_WRITE, (), [])
