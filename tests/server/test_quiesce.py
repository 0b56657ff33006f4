"""Devices with something under way: what waits for it, in which order, for how long, and what becomes of it."""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fds import memory_file
from tests.support.migration_card import PAGE, Card, session
from tests.support.raw_client import RawClient, access, connect, memory_session, message
from tests.support.waiting import wait_for
from vfio_user.errors import Busy, DeviceError
from vfio_user.pci.registers import ResetKind
from vfio_user.protocol.constants import Command, RegionIndex
from vfio_user.protocol.feature import Feature, FeatureFlags
from vfio_user.protocol.migration import MigrationState
from vfio_user.protocol.region import ACCESS
from vfio_user.server.loop import EventLoop
from vfio_user.server.message_dma import ClientMemory
from vfio_user.server.quiesce import Quiesce, QuiesceReason
from vfio_user.server.server import Server
from vfio_user.testing.leaks import leaked_since, open_files

BAR0 = RegionIndex.BAR0
UNMAP = struct.pack("<IIQQ", 24, 0, 0x10000, PAGE)


class Disk(Card):
    """A card with reads under way."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[object] = []
        self.reads = 0
        self.quiesce: Quiesce | None = None
        self.refuses: Exception | None = None

    def on_quiesce(self, quiesce: Quiesce) -> None:
        self.events.append(quiesce.reason)
        self.quiesce = quiesce
        if self.refuses is not None:
            raise self.refuses
        if self.reads:
            quiesce.wait(lambda: f"{self.reads} reads")

    def on_unquiesce(self) -> None:
        self.events.append("go on")

    def on_reset(self, kind: ResetKind) -> None:
        self.events.append(kind)

    def end(self) -> None:
        """The last read has ended."""
        self.reads = 0
        assert self.quiesce is not None
        self.quiesce.done()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def client(disk: Disk) -> Iterator[RawClient]:
    with session(disk) as client:
        fd = memory_file(bytes(PAGE))
        assert client.map_memory(0x10000, PAGE, fd) == 0
        os.close(fd)
        yield client


def set_state(state: MigrationState) -> bytes:
    return struct.pack("<IIII", 16, Feature.MIG_DEVICE_STATE | FeatureFlags.SET, state, 0)


def turn(disk: Disk, client: RawClient) -> None:
    """Lets the loop do what is due."""
    disk.loop.run_once()
    assert client.is_silent()


# A device that is quiet at once.


def test_a_device_with_nothing_under_way(client: RawClient, disk: Disk) -> None:
    assert client.request(Command.DMA_UNMAP, UNMAP).error == 0
    assert client.request(Command.DEVICE_RESET).error == 0
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP, "go on", QuiesceReason.RESET, ResetKind.DEVICE, "go on"]


def test_what_is_done_at_once(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    ended = disk.on_quiesce

    def on_quiesce(quiesce: Quiesce) -> None:
        ended(quiesce)
        disk.end()

    disk.on_quiesce = on_quiesce  # type: ignore[method-assign]
    assert client.request(Command.DMA_UNMAP, UNMAP).error == 0


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x50000, PAGE)),
        (Command.DMA_UNMAP, UNMAP[:23]),
        (Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 1, 0)),
        (Command.DEVICE_FEATURE, set_state(MigrationState.ERROR)),
        (Command.DEVICE_FEATURE, set_state(MigrationState.STOP)[:15]),
        (Command.DEVICE_FEATURE, struct.pack("<IIII", 16, Feature.MIG_DEVICE_STATE | FeatureFlags.PROBE, 1, 0)),
        (Command.DEVICE_FEATURE, set_state(MigrationState.PRE_COPY)),
        (Command.DEVICE_FEATURE, set_state(MigrationState.RUNNING)),
        (Command.REGION_WRITE, access(0, 0, b"abcde")),
        (Command.DEVICE_GET_INFO, bytes(16)),
    ],
)
def test_what_needs_no_quiet_or_is_refused_anyway(
    client: RawClient, disk: Disk, command: Command, payload: bytes
) -> None:
    disk.reads = 1
    client.request(command, payload)
    assert disk.events == []


def test_the_device_refuses(client: RawClient, disk: Disk) -> None:
    disk.refuses = Busy("not now")
    assert client.request(Command.DMA_UNMAP, UNMAP).error == errno.EBUSY
    assert disk.dma.lookup(0x10000) is not None
    assert not disk.is_quiet
    disk.refuses = None
    assert client.request(Command.DMA_UNMAP, UNMAP).error == 0


def test_what_the_device_is_told(client: RawClient, disk: Disk) -> None:
    client.request(Command.DMA_UNMAP, UNMAP)
    assert disk.quiesce is not None
    assert (disk.quiesce.iova, disk.quiesce.length) == (0x10000, PAGE)
    assert str(disk.quiesce) == "DMA_UNMAP of [0x10000, 0x11000)"
    assert disk.quiesce.is_over
    client.read(BAR0, 0)
    client.map_memory(0x20000, PAGE, None)
    client.request(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0))
    assert (disk.quiesce.iova, disk.quiesce.length) == (0, 1 << 64)
    client.read(BAR0, 0)
    client.request(Command.DEVICE_RESET)
    assert str(disk.quiesce) == "DEVICE_RESET"


def test_a_range_with_mappings_in_it(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    client.command(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, 0x80000))
    assert client.is_silent()
    assert disk.events == [QuiesceReason.UNMAP]
    disk.end()
    assert client.receive().error == 0


# A device that is not.


def test_unmap_waits(client: RawClient, disk: Disk) -> None:
    disk.reads = 2
    client.command(Command.DMA_UNMAP, UNMAP)
    assert client.is_silent()
    assert disk.dma.read(0x10000, 1) == b"\0"  # what is under way still can
    assert disk.events == [QuiesceReason.UNMAP]
    disk.end()
    reply = client.receive()
    assert (reply.error, reply.payload) == (0, UNMAP)
    assert disk.dma.lookup(0x10000) is None
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP, "go on"]


def test_reset_waits(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    client.command(Command.DEVICE_RESET)
    assert client.is_silent()
    disk.end()
    assert client.receive().error == 0
    turn(disk, client)
    assert disk.events == [QuiesceReason.RESET, ResetKind.DEVICE, "go on"]


@pytest.mark.parametrize(
    ("start", "goal"),
    [
        (MigrationState.RUNNING, MigrationState.STOP),
        (MigrationState.RUNNING, MigrationState.STOP_COPY),
        (MigrationState.RUNNING, MigrationState.RESUMING),
        (MigrationState.PRE_COPY, MigrationState.STOP_COPY),
        (MigrationState.PRE_COPY, MigrationState.STOP),
    ],
)
def test_stopping_waits_until_the_device_runs_again(
    client: RawClient, disk: Disk, start: MigrationState, goal: MigrationState
) -> None:
    assert client.request(Command.DEVICE_FEATURE, set_state(start)).error == 0
    disk.reads = 1
    client.command(Command.DEVICE_FEATURE, set_state(goal))
    assert client.is_silent()
    assert disk.migration is not None
    assert disk.migration.state == start
    disk.end()
    assert client.receive().payload == set_state(goal)
    assert disk.migration.state == goal
    turn(disk, client)
    assert disk.events == [QuiesceReason.STOP]
    if goal == MigrationState.RESUMING:
        # It is quiet already: nobody asks again.
        assert client.request(Command.DEVICE_RESET).error == 0
        assert disk.events == [QuiesceReason.STOP, ResetKind.DEVICE]
    assert client.request(Command.DEVICE_FEATURE, set_state(MigrationState.RUNNING)).error == 0
    turn(disk, client)
    assert disk.events[-1] == "go on"
    assert disk.events.count("go on") == 1


@pytest.mark.parametrize("goal", [0, 2, 4])
def test_the_first_protocol_waits_too(caplog: pytest.LogCaptureFixture, goal: int) -> None:
    disk = Disk()
    disk.offer_migration("v1")
    with session(disk) as client:
        for offset, value in [(0, 5), (4, 0), (8, 0)]:
            client.write_error(RegionIndex.MIGRATION, offset, value)
        assert disk.events == []
        disk.reads = 1
        client.command(Command.REGION_WRITE, access(0, RegionIndex.MIGRATION, bytes([goal, 0, 0, 0])))
        client.command(Command.REGION_READ, ACCESS.pack(0, RegionIndex.MIGRATION, 4))
        assert client.is_silent()
        disk.end()
        assert client.receive().error == 0
        assert client.receive().payload[ACCESS.size :] == bytes([goal, 0, 0, 0])
    caplog.get_records("call").clear()


def test_everything_behind_it_waits_in_its_order(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    read = message(Command.REGION_READ, ACCESS.pack(0, BAR0, 4), message_id=3)
    posted = [message(Command.REGION_WRITE, access(0, BAR0, bytes([n, 0, 0, 0])), no_reply=True) for n in range(1, 8)]
    # In one piece with it, and later; with what the message path would take in runs.
    client.send(message(Command.DMA_UNMAP, UNMAP, message_id=1) + b"".join(posted[:4]) + read[:20])
    assert client.is_silent()
    client.send(read[20:] + b"".join(posted[4:]) + message(Command.DEVICE_RESET, message_id=4) + read)
    assert client.is_silent()
    assert disk.bar0.value == 0
    disk.end()
    assert [(reply := client.receive()).header.message_id for _ in range(2)] == [1, 3]
    assert reply.payload[16:] == b"\4\0\0\0"
    assert client.receive().header.message_id == 4
    assert client.receive().payload[16:] == bytes(4)
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP, ResetKind.DEVICE, "go on"]


def test_one_after_another(client: RawClient, disk: Disk) -> None:
    for _ in range(3):
        disk.reads = 1
        client.command(Command.DEVICE_RESET)
        assert client.is_silent()
        disk.end()
        assert client.receive().error == 0
        turn(disk, client)
    assert disk.events == [QuiesceReason.RESET, ResetKind.DEVICE, "go on"] * 3


def test_two_that_come_together(client: RawClient, disk: Disk) -> None:
    # The second finds the device quiet still: it has not gone on in between.
    disk.reads = 1
    client.send(message(Command.DMA_UNMAP, UNMAP) + message(Command.DEVICE_RESET))
    assert client.is_silent()
    disk.end()
    assert client.receive().header.command == Command.DMA_UNMAP
    assert client.receive().header.command == Command.DEVICE_RESET
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP, ResetKind.DEVICE, "go on"]


def test_a_device_that_is_stopped_before_it_went_on(client: RawClient, disk: Disk) -> None:
    client.send(message(Command.DMA_UNMAP, UNMAP) + message(Command.DEVICE_FEATURE, set_state(MigrationState.STOP)))
    assert client.receive().error == client.receive().error == 0
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP]
    assert client.request(Command.DEVICE_FEATURE, set_state(MigrationState.RUNNING)).error == 0
    turn(disk, client)
    assert disk.events == [QuiesceReason.UNMAP, "go on"]


def test_what_waits_has_bounds(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    client.command(Command.DEVICE_RESET)
    memory = disk.dma.messenger
    assert isinstance(memory, ClientMemory)
    for n in range(6000):
        if n % 100 == 0:
            client.is_silent()
        client.write(BAR0, 0, n, posted=True)
    client.is_silent()
    assert 4096 < len(memory.held) < 4300
    disk.end()
    assert client.receive().error == 0
    assert client.read(BAR0, 0) == 5999


def test_what_waits_holds_few_descriptors(client: RawClient, disk: Disk) -> None:
    fd = memory_file(bytes(PAGE))
    memory = disk.dma.messenger
    assert isinstance(memory, ClientMemory)
    disk.reads = 1
    client.command(Command.DEVICE_RESET)
    for n in range(400):
        client.command(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x100000 + n * PAGE, PAGE), fds=[fd])
        if n % 8 == 0:
            client.is_silent()
    client.is_silent()
    assert 128 < sum(len(fds) for _, _, fds in memory.held) < 160
    disk.end()
    assert client.receive().error == 0
    assert [client.receive().error for _ in range(400)] == [0] * 400
    client.command(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0))
    assert client.receive().error == 0
    assert not memory.is_full
    os.close(fd)


def test_without_a_wish_for_a_reply(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    client.command(Command.DMA_UNMAP, UNMAP, no_reply=True)
    assert client.is_silent()
    assert disk.dma.lookup(0x10000) is not None
    disk.end()
    assert client.is_silent()
    assert disk.dma.lookup(0x10000) is None


def test_done_twice_or_too_late(client: RawClient, disk: Disk) -> None:
    disk.reads = 1
    client.command(Command.DEVICE_RESET)
    assert client.is_silent()
    quiesce = disk.quiesce
    assert quiesce is not None
    disk.end()
    quiesce.done()
    assert client.receive().error == 0
    turn(disk, client)
    disk.reads = 1
    client.command(Command.DEVICE_RESET)
    quiesce.done()
    assert client.is_silent()
    disk.end()
    assert client.receive().error == 0


def test_descriptors_that_came_along_are_closed(client: RawClient, disk: Disk) -> None:
    before = open_files()
    disk.reads = 1
    fd = memory_file()
    client.command(Command.DMA_UNMAP, UNMAP, fds=[fd, fd])
    os.close(fd)
    assert client.is_silent()
    disk.end()
    assert client.receive().error == 0
    assert leaked_since(before) == []


def test_dma_by_messages_meanwhile_is_refused(client: RawClient, disk: Disk) -> None:
    client.map_memory(0x80000, PAGE, None)
    disk.reads = 1
    client.command(Command.DMA_UNMAP, UNMAP)
    assert client.is_silent()
    with pytest.raises(DeviceError, match="while a command waits for the device to be quiet") as caught:
        disk.dma.read(0x80000, 4)
    assert caught.value.errno == errno.EDEADLK
    disk.end()
    assert client.receive().error == 0


def test_a_command_that_fails_after_all(client: RawClient, disk: Disk) -> None:
    disk.reads = 1

    def fail(_kind: ResetKind) -> None:
        raise Busy("cannot")

    disk.on_reset = fail  # type: ignore[method-assign,assignment]
    client.command(Command.DEVICE_RESET)
    assert client.is_silent()
    disk.end()
    assert client.receive().error == errno.EBUSY
    turn(disk, client)
    assert disk.events == [QuiesceReason.RESET, "go on"]


# Time.


def test_what_is_waited_for_is_said_and_after_a_while_refused(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    disk = Disk()
    caplog.set_level(logging.WARNING)
    with memory_session(disk, loop=EventLoop(lambda: now)) as client:
        client.negotiate()
        client.map_memory(0x10000, PAGE, None)
        disk.reads = 3
        client.command(Command.DMA_UNMAP, UNMAP)
        client.command(Command.REGION_READ, ACCESS.pack(0, 0, 4))
        assert client.is_silent()
        now += 1.0
        assert client.is_silent()
        assert "DMA_UNMAP of [0x10000, 0x11000) has waited 1.0 s for the Disk to be quiet: 3 reads" in caplog.text
        now += 2.9
        assert client.is_silent()
        now += 0.2
        assert client.receive().error == errno.ETIMEDOUT
        assert "not carried out, as the Disk was not quiet within 4 seconds: it waits for 3 reads" in caplog.text
        assert disk.dma.lookup(0x10000) is not None
        assert client.receive().error == 0
        turn(disk, client)
        assert disk.events == [QuiesceReason.UNMAP, "go on"]
        disk.end()
        assert client.is_silent()
        # For ever, if the device wants it so.
        disk.quiesce_timeout = None
        disk.reads = 1
        client.command(Command.DEVICE_RESET)
        for _ in range(5):
            assert client.is_silent()
            now += 1000
        disk.end()
        assert client.receive().error == 0


# A client that is gone.


def test_a_client_that_is_gone_takes_its_command_along(disk: Disk) -> None:
    before = open_files()
    with session(disk) as client:
        client.map_memory(0x10000, PAGE, None)
        disk.reads = 1
        fd = memory_file()
        client.command(Command.DMA_UNMAP, UNMAP, fds=[fd])
        client.command(Command.DEVICE_RESET)
        os.close(fd)
        assert client.is_silent()
    assert disk.quiesce is not None
    assert disk.quiesce.is_over
    assert len(disk.dma) == 0
    disk.loop.run_once()
    assert disk.events == [QuiesceReason.UNMAP, "go on"]
    disk.end()
    disk.loop.run_once()
    disk.loop.close()
    assert leaked_since(before) == []
    disk.attach(EventLoop())
    with session(disk) as client:
        assert client.request(Command.DEVICE_RESET).error == 0
        turn(disk, client)
    assert disk.events[2:] == [QuiesceReason.RESET, ResetKind.DEVICE, "go on"]


def test_a_client_that_is_gone_while_the_device_was_stopped(disk: Disk) -> None:
    with session(disk) as client:
        client.request(Command.DEVICE_FEATURE, set_state(MigrationState.STOP))
        assert disk.is_quiet
    disk.loop.run_once()
    disk.loop.close()
    assert disk.events == [QuiesceReason.STOP, "go on"]


# Over a socket, with threads.


@pytest.mark.parametrize("goes_away", [False, True])
def test_over_a_socket_from_another_thread(tmp_path: Path, goes_away: bool) -> None:
    disk = Disk()
    asked = threading.Event()
    left = threading.Event()
    disk.on_disconnect = left.set  # type: ignore[method-assign]
    before = disk.on_quiesce

    def on_quiesce(quiesce: Quiesce) -> None:
        before(quiesce)
        asked.set()

    disk.on_quiesce = on_quiesce  # type: ignore[method-assign]
    with Server(disk, tmp_path / "s").start():
        with connect(tmp_path / "s") as client:
            client.negotiate()
            disk.reads = 1
            client.command(Command.DEVICE_RESET)
            assert asked.wait(10)
            if goes_away:
                client.close()
                assert left.wait(10)
            else:
                client.command(Command.REGION_READ, ACCESS.pack(0, 0, 4))
                disk.end()
                assert client.receive().header.command == Command.DEVICE_RESET
                assert client.receive().header.command == Command.REGION_READ
        disk.reads = 0
        with connect(tmp_path / "s") as client:
            client.negotiate()
            assert client.request(Command.DEVICE_RESET).error == 0


def test_a_client_that_sends_on_and_on_is_not_read_from_any_more(tmp_path: Path) -> None:
    disk = Disk()
    with Server(disk, tmp_path / "s") as server, connect(tmp_path / "s", server.process) as client:
        client.negotiate()
        disk.reads = 1
        number = 40_000
        writes = b"".join(
            message(Command.REGION_WRITE, access(0, BAR0, struct.pack("<I", n)), no_reply=True)
            for n in range(1, number + 1)
        )
        client.command(Command.DEVICE_RESET)
        view = memoryview(writes)
        sent = 0
        idle = 0
        while idle < 50:
            try:
                sent += client.channel.send(view[sent:], 0)
                idle = 0
            except BlockingIOError:
                idle += 1
            server.process()
        assert sent < len(writes)
        disk.end()
        assert client.receive().header.command == Command.DEVICE_RESET
        client.send(bytes(view[sent:]))
        assert client.read(BAR0, 0) == number


def test_what_comes_while_a_device_takes_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With no time limit there is no timer either, nothing to wait for but the client; what it sends waits, too."""
    monkeypatch.setattr("vfio_user.server.quiesce._PATIENCE", 0.001)
    disk = Disk()
    disk.quiesce_timeout = None
    with Server(disk, tmp_path / "s").start(), connect(tmp_path / "s") as client:
        client.negotiate()
        disk.reads = 1
        client.command(Command.DEVICE_RESET)
        wait_for(lambda: "has waited" in caplog.text)
        client.write(BAR0, 0, 7, posted=True)
        memory = disk.dma.messenger
        assert isinstance(memory, ClientMemory)
        wait_for(lambda: bool(memory.held) or bool(disk.bar0.read(0, 4)))
        assert disk.bar0.read(0, 4) == 0
        disk.end()
        assert client.receive().header.command == Command.DEVICE_RESET
        assert client.read(BAR0, 0) == 7
