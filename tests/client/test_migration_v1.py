"""Migration by the region of 0.9.1, and DIRTY_PAGES: the order of accesses, and what a server may not say."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import pytest

from tests.client.scripted import Answering, Heard
from vfio_user.client import migration_v1
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.migration_v1 import RegionMigration
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.protocol.constants import Command, RegionFlags
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.migration_region import TRANSITIONS, DeviceState
from vfio_user.protocol.region import RegionInfo

PAGE = 4096
STATES = [state for state in MigrationState if state.name in ("STOP", "RUNNING", "STOP_COPY", "RESUMING", "PRE_COPY")]


class Device:
    """Ten regions, the last of them the registers of a migration."""

    def __init__(self, answering: Answering) -> None:
        self.regions = 10
        self.size = 0x2000
        self.type: tuple[int, int] | None = (3, 1)
        self.registers = {0: 1, 8: 0, 16: 0x1000, 24: 0}
        self.chunks: list[bytes] = []
        self.log: list[tuple[str, int, int]] = []
        self.window = bytearray(0x1000)
        self.bitmap = bytes(8)
        self.dirty_pages: list[bytes] = []
        answering.answers |= {
            Command.DEVICE_GET_INFO: lambda _: struct.pack("<IIII", 16, 3, self.regions, 5),
            Command.DEVICE_GET_REGION_INFO: self.info,
            Command.REGION_READ: self.read,
            Command.REGION_WRITE: self.write,
            Command.DIRTY_PAGES: self.dirty,
        }

    def info(self, heard: Heard) -> bytes:
        argsz, _, index = struct.unpack_from("<III", heard.payload)
        flags = RegionFlags.READ | RegionFlags.WRITE
        return RegionInfo(index, flags, self.size, region_type=self.type).encode(argsz)[0]

    def read(self, heard: Heard) -> bytes:
        offset, _, count = struct.unpack("<QII", heard.payload)
        self.log.append(("read", offset, count))
        if offset >= 0x1000:
            return heard.payload + self.window[offset - 0x1000 : offset - 0x1000 + count]
        if offset == 8 and self.chunks:
            chunk = self.chunks.pop(0)
            self.window[: len(chunk)] = chunk
            self.registers[8] = self.registers[24] = len(chunk)
        elif offset == 8:
            self.registers[8] = 0
        return heard.payload + self.registers[offset].to_bytes(count, "little")

    def write(self, heard: Heard) -> bytes:
        offset, _, count = struct.unpack_from("<QII", heard.payload)
        self.log.append(("write", offset, count))
        if offset >= 0x1000:
            self.window[offset - 0x1000 : offset - 0x1000 + count] = heard.payload[16:]
        else:
            self.registers[offset] = int.from_bytes(heard.payload[16:], "little")
        return heard.payload[:16]

    def dirty(self, heard: Heard) -> bytes:
        self.dirty_pages.append(heard.payload)
        return heard.payload + self.bitmap if len(heard.payload) == 40 else b""


@pytest.fixture
def device(answering: Answering) -> Device:
    return Device(answering)


@pytest.fixture
def client(answering: Answering) -> VfioUserClient:
    return answering.client()


@pytest.fixture
def migration(client: VfioUserClient, device: Device) -> RegionMigration:
    found = RegionMigration.find(client)
    assert found is not None
    assert found.has_pre_copy
    return found


@pytest.mark.parametrize(("regions", "kind"), [(9, (3, 1)), (10, None), (10, (3, 2)), (11, (1 << 31, 1))])
def test_devices_without_it(client: VfioUserClient, device: Device, regions: int, kind: tuple[int, int] | None) -> None:
    device.regions, device.type = regions, kind
    assert RegionMigration.find(client) is None


def test_a_region_that_is_too_small(client: VfioUserClient, device: Device) -> None:
    device.size = 31
    with pytest.raises(RemoteProtocolError, match="the migration region has 31 bytes; its registers have 32"):
        RegionMigration.find(client)


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (0, MigrationState.STOP),
        (1, MigrationState.RUNNING),
        (2, MigrationState.STOP_COPY),
        (3, MigrationState.PRE_COPY),
        (4, MigrationState.RESUMING),
        (6, MigrationState.ERROR),
    ],
)
def test_states(migration: RegionMigration, device: Device, number: int, state: MigrationState) -> None:
    device.registers[0] = number
    assert migration.state == state


@pytest.mark.parametrize("number", [5, 7, 0x100])
def test_states_that_do_not_exist(migration: RegionMigration, device: Device, number: int) -> None:
    device.registers[0] = number
    with pytest.raises(RemoteProtocolError, match=f"migration state {number:#x}, which does not exist"):
        _ = migration.state


@pytest.mark.parametrize("goal", STATES)
@pytest.mark.parametrize("start", STATES)
def test_the_way_from_each_state_to_each(
    migration: RegionMigration, device: Device, start: MigrationState, goal: MigrationState
) -> None:
    device.registers[0] = migration_v1._NUMBERS[start]
    if (start, goal) == (MigrationState.STOP_COPY, MigrationState.PRE_COPY):
        with pytest.raises(StateError, match="no way leads from STOP_COPY to PRE_COPY"):
            migration.go_to(goal)
        return
    migration.go_to(goal)
    assert migration.state == goal
    # Every step is one the protocol knows; one more than 0.9.1 lists, libvfio-user would refuse.
    way = [start, *migration_v1._WAYS[start][goal]] if start != goal else [start]
    steps = [(migration_v1._NUMBERS[a], migration_v1._NUMBERS[b]) for a, b in itertools.pairwise(way)]
    assert set(steps) <= TRANSITIONS - {
        (DeviceState.PRE_COPY, DeviceState.RUNNING),
        (DeviceState.PRE_COPY, DeviceState.STOPPED),
    }
    assert [entry for entry in device.log if entry[0] == "write"] == [("write", 0, 4)] * len(steps)


def test_no_way_leads_out_of_error(migration: RegionMigration, device: Device) -> None:
    device.registers[0] = DeviceState.ERROR
    with pytest.raises(StateError, match="no way leads from ERROR to RUNNING: reset the device first"):
        migration.go_to(MigrationState.RUNNING)


@pytest.mark.parametrize("state", [MigrationState.PRE_COPY, MigrationState.STOP_COPY])
def test_reading(migration: RegionMigration, device: Device, state: MigrationState) -> None:
    migration.go_to(state)
    device.log.clear()
    device.chunks = [b"one", b"the other"]
    assert list(migration.read()) == [b"one", b"the other"]
    assert device.log == [
        ("read", 0, 4),
        *[("read", 8, 8), ("read", 16, 8), ("read", 24, 8), ("read", 0x1000, 3)],
        *[("read", 8, 8), ("read", 16, 8), ("read", 24, 8), ("read", 0x1000, 9)],
        ("read", 8, 8),
    ]


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 8), (31, 1), (0x1000, 0x1001), (0x2000, 1), (1 << 63, 1 << 63), (0x1FFF, 1 << 40)]
)
def test_places_outside_the_region(
    answering: Answering, migration: RegionMigration, device: Device, offset: int, size: int
) -> None:
    migration.go_to(MigrationState.STOP_COPY)
    values = {0: 2, 8: 1, 16: offset, 24: size}
    answering.answers[Command.REGION_READ] = saying(values)
    with pytest.raises(RemoteProtocolError, match="of the migration region, which has data at"):
        list(migration.read())


def saying(values: dict[int, int]) -> Callable[[Heard], bytes]:
    """Answers REGION_READ by what stands at the offset."""

    def read(heard: Heard) -> bytes:
        offset, _, count = struct.unpack("<QII", heard.payload)
        return heard.payload + values[offset].to_bytes(count, "little")

    return read


def test_a_device_that_has_more_and_gives_nothing(answering: Answering, migration: RegionMigration) -> None:
    # While it runs, that means: not now.
    answering.answers[Command.REGION_READ] = saying({0: DeviceState.PRE_COPY, 8: 7, 16: 0x1000, 24: 0})
    assert list(migration.read()) == []
    answering.answers[Command.REGION_READ] = saying({0: DeviceState.STOP_AND_COPY, 8: 7, 16: 0x1000, 24: 0})
    with pytest.raises(RemoteProtocolError, match="has 7 bytes of state left, and gives none of them"):
        list(migration.read())


def test_writing(migration: RegionMigration, device: Device) -> None:
    migration.go_to(MigrationState.RESUMING)
    device.log.clear()
    migration.write(b"state")
    assert device.log == [("read", 16, 8), ("write", 0x1000, 5), ("write", 24, 8)]
    assert (bytes(device.window[:5]), device.registers[24]) == (b"state", 5)


def test_a_chunk_that_is_too_large(migration: RegionMigration, device: Device) -> None:
    migration.write(bytes(0x1000))
    with pytest.raises(StateError, match=r"a chunk of 4097 bytes of state; this device's .* has room for 4096"):
        migration.write(bytes(0x1001))


@pytest.mark.parametrize("offset", [0, 31, 0x2001, 1 << 63])
def test_a_window_outside_the_region(migration: RegionMigration, device: Device, offset: int) -> None:
    device.registers[16] = offset
    with pytest.raises(RemoteProtocolError, match=f"the device wants its state at {offset:#x} of the migration region"):
        migration.write(b"x")


def test_dirty_pages(migration: RegionMigration, device: Device, client: VfioUserClient) -> None:
    with GuestMemory(3 * PAGE) as memory:
        mapping = client.dma_map(memory, 0x10000)
        migration.start_log()
        device.bitmap = b"\4" + bytes(7)
        client.space.write(0x10000, b"x")
        assert list(migration.dirty_pages(mapping)) == [(0x10000, PAGE), (0x12000, PAGE)]
        migration.stop_log()
    assert device.dirty_pages == [
        struct.pack("<II", 8, 1),
        struct.pack("<IIQQQQ", 48, 4, 0x10000, 3 * PAGE, PAGE, 8),
        struct.pack("<II", 8, 2),
    ]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "was answered with 0 bytes"),
        (struct.pack("<IIQQQQ", 48, 4, 0x10000, PAGE, PAGE, 8), "was answered with 40 bytes"),
        (struct.pack("<IIQQQQQ", 48, 4, 0x20000, PAGE, PAGE, 8, 0), "for another range"),
        (struct.pack("<IIQQQQQ", 48, 4, 0x10000, PAGE, 2 * PAGE, 8, 0), "for another range"),
        (struct.pack("<IIQQQQQ", 48, 8, 0x10000, PAGE, PAGE, 8, 0), "is none of 1"),
        (bytes(49), "payload of 49 bytes; it has 48 at most"),
    ],
)
def test_bitmaps_that_make_no_sense(
    answering: Answering, migration: RegionMigration, client: VfioUserClient, reply: bytes, why: str
) -> None:
    with GuestMemory(PAGE) as memory:
        mapping = client.dma_map(memory, 0x10000)
        migration.start_log()
        answering.answers[Command.DIRTY_PAGES] = lambda _: reply
        with pytest.raises(RemoteProtocolError, match=why):
            migration.dirty_pages(mapping)


def test_a_mapping_whose_bitmap_is_too_large(migration: RegionMigration, client: VfioUserClient) -> None:
    with GuestMemory(PAGE) as memory:
        mapping = client.dma_map(memory, 0)
        object.__setattr__(mapping, "size", 1 << 40)
        migration.start_log()
        with pytest.raises(StateError, match=r"0x10000000000 bytes has a dirty bitmap of 33554432; .* in parts"):
            migration.dirty_pages(mapping)
        object.__setattr__(mapping, "size", PAGE)
