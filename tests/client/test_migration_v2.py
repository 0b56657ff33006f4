"""Migration by DEVICE_FEATURE: what is asked of a server, and what it may not answer."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from tests.client.scripted import Answering, Heard
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.migration_v2 import FeatureMigration
from vfio_user.errors import RemoteProtocolError, StateError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.feature import Feature, bitmap_size
from vfio_user.protocol.migration import MigrationState

PAGE = 4096


class Device:
    """A server's answers, feature by feature."""

    def __init__(self, answering: Answering) -> None:
        self.flags = 5
        self.state = MigrationState.RUNNING
        self.data: list[bytes] = []
        self.answer: Callable[[bytes], bytes] = lambda data: data + bytes(bitmap_size(*struct.unpack("<8xQQ", data)))
        self.asked: list[tuple[object, bytes]] = []
        self.written: list[bytes] = []
        answering.answers[Command.DEVICE_FEATURE] = self.feature
        answering.answers[Command.MIG_DATA_READ] = self.read
        answering.answers[Command.MIG_DATA_WRITE] = self.write

    def feature(self, heard: Heard) -> bytes | int:
        _, flags = struct.unpack_from("<II", heard.payload)
        number, data = flags & 0xFFFF, heard.payload[8:]
        self.asked.append((number, data))
        if number == Feature.MIGRATION:
            return self.reply(flags, struct.pack("<Q", self.flags)) if self.flags >= 0 else errno.EINVAL
        if number == Feature.MIG_DEVICE_STATE and flags & 0x10000:
            return self.reply(flags, struct.pack("<II", self.state, 0))
        if number == Feature.DMA_LOGGING_REPORT:
            return self.reply(flags, self.answer(data))
        return heard.payload

    @staticmethod
    def reply(flags: int, data: bytes) -> bytes:
        return struct.pack("<II", 8 + len(data), flags) + data

    def read(self, heard: Heard) -> bytes:
        data = self.data.pop(0) if self.data else b""
        return struct.pack("<II", 8 + len(data), len(data)) + data

    def write(self, heard: Heard) -> bytes:
        self.written.append(heard.payload[8:])
        return b""


@pytest.fixture
def device(answering: Answering) -> Device:
    return Device(answering)


@pytest.fixture
def client(answering: Answering) -> VfioUserClient:
    return answering.client()


def find(client: VfioUserClient) -> FeatureMigration:
    found = FeatureMigration.find(client)
    assert found is not None
    return found


@pytest.mark.parametrize(("flags", "pre_copy"), [(1, False), (5, True), (0xFF, True)])
def test_what_the_device_can(client: VfioUserClient, device: Device, flags: int, pre_copy: bool) -> None:
    device.flags = flags
    assert find(client).has_pre_copy == pre_copy


def test_a_device_that_cannot(client: VfioUserClient, device: Device) -> None:
    device.flags = -1
    assert FeatureMigration.find(client) is None
    device.flags = 4
    with pytest.raises(RemoteProtocolError, match=r"with flags 0x4; STOP_COPY \(0x1\) is a part of every"):
        FeatureMigration.find(client)


def test_states(client: VfioUserClient, device: Device) -> None:
    migration = find(client)
    device.state = MigrationState.PRE_COPY
    assert migration.state == MigrationState.PRE_COPY
    migration.go_to(MigrationState.STOP_COPY)
    assert device.asked[-1] == (Feature.MIG_DEVICE_STATE, struct.pack("<II", 3, 0))
    device.state = 8  # type: ignore[assignment]
    with pytest.raises(RemoteProtocolError, match="8 is no migration state"):
        _ = migration.state


@pytest.mark.parametrize("rest", [b"", b"the end"])
def test_reading_until_less_comes(client: VfioUserClient, device: Device, rest: bytes) -> None:
    # The server takes 4096 bytes in one message, so that is what is asked for.
    device.data = [b"a" * 4096, b"b" * 4096, rest, b"later"]
    migration = find(client)
    assert list(migration.read()) == [b"a" * 4096, b"b" * 4096, *([rest] if rest else [])]
    assert list(migration.read()) == [b"later"]


def test_writing_in_pieces(client: VfioUserClient, device: Device) -> None:
    find(client).write(bytes(10_000))
    assert [len(piece) for piece in device.written] == [4096, 4096, 1808]


def test_dirty_pages(client: VfioUserClient, device: Device) -> None:
    migration = find(client)
    with GuestMemory(32 * PAGE) as memory:
        mapping = client.dma_map(memory, 0x10000)
        with pytest.raises(StateError, match=r"while none are logged: call start_log\(\) first"):
            migration.dirty_pages(mapping)
        migration.start_log()
        assert device.asked[-1] == (Feature.DMA_LOGGING_START, struct.pack("<QII", PAGE, 0, 0))
        device.answer = lambda data: data + b"\x02" + bytes(7)
        # What the device wrote by messages, this end knows.
        client.space.write(0x13FFF, b"xy")
        assert list(migration.dirty_pages(mapping)) == [(0x11000, PAGE), (0x13000, 2 * PAGE)]
        assert list(migration.dirty_pages(mapping)) == [(0x11000, PAGE)]
        assert device.asked[-1] == (Feature.DMA_LOGGING_REPORT, struct.pack("<QQQ", 0x10000, 32 * PAGE, PAGE))
        migration.stop_log()
        assert device.asked[-1] == (Feature.DMA_LOGGING_STOP, b"")
        number = len(device.asked)
        migration.stop_log()
        assert len(device.asked) == number
        assert client.space.dirty_log is None


def test_memory_reached_by_messages_is_not_asked_about(client: VfioUserClient, device: Device) -> None:
    # Servers before 2026 refuse that.
    migration = find(client)
    with GuestMemory(PAGE) as memory:
        mapping = client.dma_map(memory, 0x10000, shared=False)
        migration.start_log()
        assert not migration.dirty_pages(mapping)
        client.space.write(0x10000, b"x")
        assert list(migration.dirty_pages(mapping)) == [(0x10000, PAGE)]
        assert device.asked[-1][0] == Feature.DMA_LOGGING_START


@pytest.mark.parametrize(("iova", "size"), [(0x10200, 2 * PAGE), (0x10000, 512)])
def test_what_is_not_made_of_pages_counts_as_written(
    client: VfioUserClient, device: Device, iova: int, size: int
) -> None:
    migration = find(client)
    with GuestMemory(2 * PAGE) as memory:
        mapping = client.dma_map(memory, iova, size=size)
        migration.start_log()
        assert list(migration.dirty_pages(mapping)) == [(iova, size)]
        assert device.asked[-1][0] == Feature.DMA_LOGGING_START


def test_a_large_mapping_is_reported_in_larger_pages(client: VfioUserClient, device: Device) -> None:
    # 4096 bytes are what the server takes: a bitmap of 4064 at most, 32512 pages.
    migration = find(client)
    with GuestMemory(32_512 * PAGE + PAGE) as memory:
        mapping = client.dma_map(memory, 0)
        migration.start_log()
        assert migration.dirty_pages(mapping).page_size == 2 * PAGE
        client.space.write(3 * PAGE, b"x")
        assert list(migration.dirty_pages(mapping)) == [(2 * PAGE, 2 * PAGE)]


def test_a_server_whose_messages_have_no_room_for_a_report(client: VfioUserClient, device: Device) -> None:
    migration = find(client)
    migration._room = 39
    with GuestMemory(2 * PAGE) as memory:
        mapping = client.dma_map(memory, 0)
        migration.start_log()
        with pytest.raises(StateError, match=r"at least 40 bytes; the server and this client have agreed on 39"):
            migration.dirty_pages(mapping)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda data: data[:-1], "shorter than the 24"),
        (lambda data: data, "dirty bitmap of 0 bytes; 0x2000 bytes in pages of 4096 have 8"),
        (lambda data: data + bytes(7), "dirty bitmap of 7 bytes"),
        (lambda data: data + bytes(9), "payload of 41 bytes; it has 40 at most"),
        (lambda data: bytes(8) + data[8:] + bytes(8), r"was answered as DirtyReport\(iova=0"),
    ],
)
def test_reports_that_make_no_sense(
    client: VfioUserClient, device: Device, answer: Callable[[bytes], bytes], why: str
) -> None:
    migration = find(client)
    with GuestMemory(2 * PAGE) as memory:
        mapping = client.dma_map(memory, 0x10000)
        migration.start_log()
        device.answer = answer
        with pytest.raises(RemoteProtocolError, match=why):
            migration.dirty_pages(mapping)
