"""What a device says of itself: ours in full, and odd ones as far as they make sense."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest

from tests.client.scripted import Answering, Heard, ScriptedServer, message, open_file
from tests.support.fds import no_leaks
from vfio_user.client.survey import survey_device
from vfio_user.devices.edu import Edu
from vfio_user.protocol.constants import Command, DeviceFlags, IrqIndex, IrqInfoFlags, RegionFlags, RegionIndex
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.feature import DeviceFeature, Feature, FeatureFlags, MigrationFlags
from vfio_user.protocol.irq import IrqInfo
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.region import ACCESS, MappableArea, RegionInfo, RegionInfoRequest
from vfio_user.protocol.region_io_fds import IoEventFd, RegionIoFds
from vfio_user.regions import CallbackRegion, Doorbell, SharedMemoryRegion
from vfio_user.server.device import Device
from vfio_user.testing.in_process import DeviceUnderTest

RW = RegionFlags.READ | RegionFlags.WRITE


#: Made once: a fixture's value outlives the search for leaked descriptors, and this one has two.
SHARED = SharedMemoryRegion(0x2000)


class Board(Device):
    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.MSIX: 5})
        self.set_region(0, SHARED)
        bell = CallbackRegion(0x100, write=lambda *_: None)
        bell.ioeventfds = [Doorbell(8, 4, None, lambda: None)]
        self.set_region(1, bell)


def test_a_device_of_ours() -> None:
    with DeviceUnderTest(Edu()) as under_test:
        found = survey_device(under_test.client)
    assert found.info == DeviceInfo(DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)
    assert [region.info.size for region in found.regions if region.info is not None] == [1 << 20, *6 * [0], 256, 0]
    assert [irq.info.count for irq in found.irqs if irq.info is not None] == [1, 1, 0, 1, 1]
    assert found.config[:4] == b"\x34\x12\xe8\x11"
    assert (found.ended, found.optional_ended, found.config_fault) == ("", "", "")


def test_what_can_be_mapped_or_rung() -> None:
    board = Board()
    with DeviceUnderTest(board) as under_test:
        usual = under_test.client.connection.timeout
        found = survey_device(under_test.client)
        assert under_test.client.connection.timeout == usual
    assert found.regions[0].mapped == 0x2000
    assert found.regions[1].mapped == 0
    entries = found.regions[1].io_fds
    assert entries is not None
    assert [(entry.offset, entry.size) for entry in entries.entries] == [(8, 4)]


def test_nothing_of_the_device_is_touched(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.PCI, 9, 5).encode()
    answering.answers[Command.DEVICE_GET_REGION_INFO] = region_answer
    answering.answers[Command.REGION_READ] = lambda heard: heard.payload + bytes(ACCESS.unpack(heard.payload)[2])
    with answering.client(map_regions=False) as client:
        assert survey_device(client).config == bytes(256)
    reads = [heard for heard in answering.heard if heard.header.command == Command.REGION_READ]
    assert [ACCESS.unpack(heard.payload) for heard in reads] == [(0, RegionIndex.CONFIG, 256)]
    harmless = {
        Command.DEVICE_GET_INFO,
        Command.DEVICE_GET_REGION_INFO,
        Command.DEVICE_GET_IRQ_INFO,
        Command.DEVICE_GET_REGION_IO_FDS,
        Command.REGION_READ,
        Command.DEVICE_FEATURE,
    }
    assert {heard.header.command for heard in answering.heard} == harmless
    features = [DeviceFeature.decode(h.payload) for h in answering.heard if h.header.command == Command.DEVICE_FEATURE]
    assert all(FeatureFlags.SET not in each.operation or FeatureFlags.PROBE in each.operation for each in features)


def region_answer(heard: Heard) -> bytes:
    index = RegionInfoRequest.decode(heard.payload).index
    return RegionInfo(index, RW, 256).encode(1024)[0]


def test_features_and_migration(answering: Answering) -> None:
    def feature(heard: Heard) -> bytes | int:
        request = DeviceFeature.decode(heard.payload)
        if request.feature not in (Feature.MIGRATION, Feature.MIG_DEVICE_STATE):
            return errno.ENOTSUP
        if request.operation & FeatureFlags.PROBE:
            return heard.payload[:8]
        number = MigrationFlags.STOP_COPY if request.feature == Feature.MIGRATION else MigrationState.RUNNING
        return heard.payload[:8] + struct.pack("<Q", number)

    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.RESET, 0, 0).encode()
    answering.answers[Command.DEVICE_FEATURE] = feature
    with answering.client() as client:
        found = survey_device(client)
    assert set(found.features) == {Feature.MIGRATION, Feature.MIG_DEVICE_STATE}
    assert found.migration is not None
    assert found.migration.flags == MigrationFlags.STOP_COPY
    assert found.migration_state is not None
    assert found.migration_state.state is MigrationState.RUNNING


def test_a_feature_with_nonsense_in_it_is_one_the_device_does_not_have(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.RESET, 0, 0).encode()
    answering.answers[Command.DEVICE_FEATURE] = lambda heard: heard.payload[:8] + b"\xff\xff\xff\xff"
    with answering.client() as client:
        found = survey_device(client)
    assert (found.migration, found.migration_state, found.ended, found.optional_ended) == (None, None, "", "")


def refused(_: Heard) -> int:
    return errno.EPERM


def of_another(_: Heard) -> bytes:
    return RegionInfo(77, RW, 256).encode(1024)[0]


def too_large(heard: Heard) -> bytes:
    return struct.pack("<IIIIQQ", 1 << 31, 0, RegionInfoRequest.decode(heard.payload).index, 0, 1, 0)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [(refused, "Operation not permitted"), (of_another, "answered for region 77"), (too_large, "argsz 2147483648")],
)
def test_faults_are_kept_beside_what_they_are_about(
    answering: Answering, answer: Callable[[Heard], bytes | int], fault: str
) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.RESET, 3, 1).encode()
    answering.answers[Command.DEVICE_GET_REGION_INFO] = answer
    answering.answers[Command.DEVICE_GET_IRQ_INFO] = lambda _: IrqInfo(0, IrqInfoFlags(0), 3).encode()
    with answering.client() as client:
        found = survey_device(client)
    assert all(fault in region.fault and region.info is None for region in found.regions)
    assert len(found.regions) == 3
    assert found.irqs[0].info is not None
    assert found.ended == ""


def described(info: RegionInfo, heard: Heard, fd: int) -> tuple[bytes, list[int]]:
    payload, complete = info.encode(RegionInfoRequest.decode(heard.payload).argsz)
    return payload, [fd] * complete


def test_an_area_beyond_its_file_is_a_fault_and_the_descriptor_is_closed(answering: Answering) -> None:
    with open_file() as fd, no_leaks():
        info = RegionInfo(0, RW | RegionFlags.MMAP, 1 << 40, 0, (MappableArea(0, 1 << 30),))
        answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.RESET, 1, 0).encode()
        answering.answers[Command.DEVICE_GET_REGION_INFO] = lambda heard: described(info, heard, fd)
        answering.answers[Command.DEVICE_GET_REGION_IO_FDS] = lambda heard: (
            RegionIoFds.of(0, (IoEventFd(0, 4, 0),)).encode(4096)[0],
            [fd],
        )
        with answering.client() as client:
            [region] = survey_device(client).regions
    assert "beyond the end of its file" in region.fault
    assert region.info is not None
    assert region.io_fds is not None


def test_a_configuration_space_that_cannot_be_read(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.PCI, 9, 0).encode()
    answering.answers[Command.DEVICE_GET_REGION_INFO] = region_answer
    answering.answers[Command.REGION_READ] = refused
    with answering.client() as client:
        found = survey_device(client)
    assert found.config == b""
    assert "Operation not permitted" in found.config_fault


def test_a_huge_configuration_space_is_read_no_further_than_there_can_be_one(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.PCI, 9, 0).encode()
    answering.answers[Command.DEVICE_GET_REGION_INFO] = lambda heard: RegionInfo(
        RegionInfoRequest.decode(heard.payload).index, RW, 1 << 63
    ).encode(1024)[0]
    answering.answers[Command.REGION_READ] = lambda heard: heard.payload + bytes(ACCESS.unpack(heard.payload)[2])
    with answering.client() as client:
        assert len(survey_device(client).config) == 4096


def test_a_server_that_claims_too_much_ends_it(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.PCI, 1 << 31, 5).encode()
    with answering.client() as client:
        found = survey_device(client)
    assert "claims 2147483648 regions" in found.ended
    assert found.regions == []


def test_a_server_that_hangs_up(server: ScriptedServer) -> None:
    client = server.client()
    server.say(message(1, Command.DEVICE_GET_INFO, DeviceInfo(DeviceFlags.RESET, 2, 0).encode()))
    server.socket.shutdown(1)
    with client:
        found = survey_device(client)
    assert [region.info for region in found.regions] == [None, None]
    assert "closed the connection" in found.ended


def test_a_server_that_hangs_up_at_a_command_it_need_not_know(server: ScriptedServer) -> None:
    client = server.client()
    server.say(message(1, Command.DEVICE_GET_INFO, DeviceInfo(DeviceFlags.RESET, 0, 0).encode()))
    server.socket.shutdown(1)
    with client:
        found = survey_device(client)
    assert found.ended == ""
    assert "closed the connection" in found.optional_ended


def test_a_slow_server_has_the_time_there_is_for_all_of_it(answering: Answering) -> None:
    now = 0.0

    def slow(heard: Heard) -> bytes:
        nonlocal now
        now += 0.3
        return region_answer(heard)

    answering.answers[Command.DEVICE_GET_INFO] = lambda _: DeviceInfo(DeviceFlags.RESET, 50, 0).encode()
    answering.answers[Command.DEVICE_GET_REGION_INFO] = slow
    with answering.client() as client:
        found = survey_device(client, seconds=1.0, clock=lambda: now)
    assert "the time for all of it is over" in found.ended
    assert sum(region.info is not None for region in found.regions) == 4
