"""Migration as a client drives it: every state, every refusal, the log of dirty pages, and devices that move."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fds import memory_file
from tests.support.migration_card import PAGE, Card, session
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.pci import MemoryBar
from vfio_user.protocol.constants import Command, IrqIndex, RegionIndex
from vfio_user.protocol.feature import Feature, FeatureFlags, bitmap_size
from vfio_user.protocol.io_region import IoRegionCommand
from vfio_user.protocol.migration import ARCS, MigDataRead, MigDataReadReply, MigDataWrite, MigrationState, next_state
from vfio_user.protocol.region import ACCESS
from vfio_user.regions import CallbackRegion, Doorbell, IoRange
from vfio_user.server.device import Device
from vfio_user.server.migration_features import FeatureMigration
from vfio_user.server.pci_device import PciDevice

ERROR, STOP, RUNNING = MigrationState.ERROR, MigrationState.STOP, MigrationState.RUNNING
STOP_COPY, RESUMING, PRE_COPY = MigrationState.STOP_COPY, MigrationState.RESUMING, MigrationState.PRE_COPY
GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
STATES = [STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY]

BAR0 = RegionIndex.BAR0


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def client(card: Card) -> Iterator[RawClient]:
    with session(card) as client:
        yield client


def head(feature: int, flags: int, data: bytes = b"", argsz: int | None = None) -> bytes:
    return struct.pack("<II", 8 + len(data) if argsz is None else argsz, flags | feature) + data


def feature(client: RawClient, number: int, flags: int, data: bytes = b"", argsz: int | None = None) -> int:
    """DEVICE_FEATURE; returns its errno."""
    return client.request(Command.DEVICE_FEATURE, head(number, flags, data, argsz)).error


def go_to(client: RawClient, state: int) -> int:
    """Sets a state; returns the errno."""
    payload = head(Feature.MIG_DEVICE_STATE, SET, struct.pack("<II", state, 0xFFFF_FFFF))
    reply = client.request(Command.DEVICE_FEATURE, payload)
    assert reply.error or reply.payload == payload
    return reply.error


def state_of(client: RawClient) -> MigrationState:
    reply = client.request(Command.DEVICE_FEATURE, head(Feature.MIG_DEVICE_STATE, GET, argsz=16))
    argsz, flags, state, _fd = struct.unpack("<IIII", reply.payload)
    assert (argsz, flags) == (16, Feature.MIG_DEVICE_STATE | GET)
    return MigrationState(state)


def read_all(client: RawClient, size: int = 4096) -> bytes:
    """All there is to read now."""
    data = b""
    while True:
        reply = client.request(Command.MIG_DATA_READ, MigDataRead(size).encode())
        assert not reply.error
        piece = MigDataReadReply.decode(reply.payload).data
        data += piece
        if len(piece) < size:
            return data


def write_all(client: RawClient, data: bytes, size: int = 3000) -> None:
    for at in range(0, len(data), size):
        assert not client.request(Command.MIG_DATA_WRITE, MigDataWrite(data[at : at + size]).encode()).error


def move(source: RawClient, destination: RawClient, *, rehearse: bool = False) -> None:
    """Migrates one device into another, as a client does, and lets the other run."""
    data = b""
    if rehearse:
        assert not go_to(source, PRE_COPY)
        data += read_all(source)
    assert not go_to(source, STOP_COPY)
    data += read_all(source)
    assert not go_to(destination, RESUMING)
    write_all(destination, data)
    assert not go_to(destination, RUNNING)


# What is offered.


def test_what_the_device_can(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_FEATURE, head(Feature.MIGRATION, GET, argsz=64))
    assert reply.payload.hex(" ", 4) == "10000000 01000100 05000000 00000000"


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (Feature.MIGRATION, PROBE),
        (Feature.MIGRATION, PROBE | GET),
        (Feature.MIG_DEVICE_STATE, PROBE | GET | SET),
        (Feature.DMA_LOGGING_START, PROBE | SET),
        (Feature.DMA_LOGGING_STOP, PROBE | SET),
        (Feature.DMA_LOGGING_REPORT, PROBE | GET),
    ],
)
def test_probing_echoes(client: RawClient, number: int, flags: int) -> None:
    payload = head(number, flags, b"whatever")
    assert client.request(Command.DEVICE_FEATURE, payload).payload == payload
    assert state_of(client) == RUNNING


class Plain(PciDevice):
    vendor_id, device_id, class_code = 1, 2, 0xFF0000


@pytest.mark.parametrize("device", [Plain, Device])
def test_devices_that_cannot(device: type[Device]) -> None:
    with session(device()) as client:
        for number in Feature:
            assert feature(client, number, PROBE) == errno.EINVAL
        assert client.request(Command.MIG_DATA_READ, MigDataRead(8).encode()).error == errno.EINVAL
        assert client.request(Command.MIG_DATA_WRITE, MigDataWrite(b"").encode()).error == errno.EINVAL


def test_a_class_whose_regions_cannot_be_saved() -> None:
    class Odd(PciDevice):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000
        migratable = True
        bar0 = MemoryBar(size=PAGE, region=lambda _: CallbackRegion(PAGE, read=lambda *_: 0))

    with pytest.raises(ValueError, match="bar0 is a CallbackRegion, which cannot be saved"):
        Odd()


# Refusals of DEVICE_FEATURE, row by row.

STATE_DATA = struct.pack("<II", STOP, 0)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(head(Feature.MIGRATION, GET)[:7], id="payload under 8"),
        pytest.param(head(3, GET, argsz=64), id="unknown feature"),
        pytest.param(head(Feature.MIGRATION, SET, bytes(8)), id="operation the feature has not"),
        pytest.param(head(Feature.MIGRATION, PROBE | GET | SET, bytes(8)), id="probe of more than there is"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, GET | SET, STATE_DATA), id="get and set"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, 0, STATE_DATA), id="no operation"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, SET | 1 << 19, STATE_DATA), id="unknown flag"),
        pytest.param(head(Feature.MIGRATION, GET, argsz=15), id="get migration, argsz"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, GET, argsz=15), id="get state, argsz"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, SET, STATE_DATA, argsz=15), id="set state, argsz"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, PROBE, STATE_DATA, argsz=15), id="probe, argsz"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, SET, STATE_DATA[:7]), id="set state, half of it"),
        pytest.param(head(Feature.MIG_DEVICE_STATE, SET, struct.pack("<II", 8, 0)), id="no such state"),
        pytest.param(head(Feature.DMA_LOGGING_START, SET, struct.pack("<QII", 0, 0, 0)), id="log, no page size"),
        pytest.param(head(Feature.DMA_LOGGING_START, SET, struct.pack("<QII", 3000, 0, 0)), id="log, odd page size"),
        pytest.param(head(Feature.DMA_LOGGING_START, SET, struct.pack("<QII", PAGE, 1, 0)), id="log, missing range"),
        pytest.param(head(Feature.DMA_LOGGING_REPORT, GET, struct.pack("<QQQ", 0, PAGE, PAGE), 40), id="no log"),
    ],
)
def test_refused(client: RawClient, payload: bytes) -> None:
    assert client.request(Command.DEVICE_FEATURE, payload).error == errno.EINVAL
    assert state_of(client) == RUNNING


# States.


def way(current: MigrationState, goal: MigrationState) -> list[tuple[MigrationState, MigrationState]]:
    steps = []
    while current != goal:
        step = next_state(current, goal)
        assert step is not None
        steps.append((current, step))
        current = step
    return steps


@pytest.mark.parametrize("start", STATES)
@pytest.mark.parametrize("goal", STATES)
def test_every_way(client: RawClient, card: Card, start: MigrationState, goal: MigrationState) -> None:
    assert go_to(client, start) == 0
    card.states.clear()
    if (start, goal) == (STOP_COPY, PRE_COPY):
        assert go_to(client, goal) == errno.EINVAL
        assert (state_of(client), card.states) == (start, [])
    else:
        assert go_to(client, goal) == 0
        assert (state_of(client), card.states) == (goal, way(start, goal))
        assert set(card.states) <= ARCS


@pytest.mark.parametrize("start", STATES)
@pytest.mark.parametrize("goal", [ERROR, MigrationState.RUNNING_P2P, MigrationState.PRE_COPY_P2P, 8, 0xFFFF_FFFF])
def test_goals_nobody_reaches(client: RawClient, card: Card, start: MigrationState, goal: int) -> None:
    go_to(client, start)
    card.states.clear()
    assert go_to(client, goal) == errno.EINVAL
    assert (state_of(client), card.states) == (start, [])


def test_a_step_that_fails_leaves_an_error_until_reset(card: Card) -> None:
    with session(card, strict=False) as client:
        card.fail_in = STOP
        assert go_to(client, STOP_COPY) == errno.EIO
        assert state_of(client) == ERROR
        for goal in MigrationState:
            assert go_to(client, goal) == (0 if goal == ERROR else errno.EINVAL)
        client.write(BAR0, 4, 7)
        assert card.history == []
        card.fail_in = None
        assert client.request(Command.DEVICE_RESET).error == 0
        assert state_of(client) == RUNNING
        client.write(BAR0, 4, 8)
        assert client.read(BAR0, 8) == 8
        assert card.history == [8]


@pytest.mark.parametrize(("start", "goal"), [(STOP, RUNNING), (STOP, PRE_COPY), (RUNNING, PRE_COPY)])
def test_a_device_that_is_broken_does_nothing(card: Card, start: MigrationState, goal: MigrationState) -> None:
    with session(card, strict=False) as client:
        go_to(client, start)
        card.fail_in = goal
        assert go_to(client, goal) == errno.EIO
        client.write(BAR0, 4, 7)
        assert client.read(BAR0, 8) == 0
        assert (state_of(client), card.history) == (ERROR, [])
    # Nor for the next client, until it resets it.
    with session(card) as client:
        assert state_of(client) == ERROR


def test_a_device_that_holds_what_cannot_be_saved(card: Card) -> None:
    card.last = object()  # type: ignore[assignment]
    with session(card, strict=False) as client:
        go_to(client, STOP_COPY)
        assert client.request(Command.MIG_DATA_READ, MigDataRead(4096).encode()).error == errno.EIO
        assert state_of(client) == ERROR
        assert client.request(Command.MIG_DATA_READ, MigDataRead(4096).encode()).error == errno.EINVAL


@pytest.mark.parametrize("state", [RUNNING, RESUMING, PRE_COPY])
def test_reset_leaves_other_states_alone(client: RawClient, state: MigrationState) -> None:
    go_to(client, state)
    assert client.request(Command.DEVICE_RESET).error == 0
    assert state_of(client) == state


REQUESTS = {
    Command.DMA_MAP: struct.pack("<IIQQQ", 32, 3, 0, 0x10000, PAGE),
    Command.DMA_UNMAP: struct.pack("<IIQQ", 24, 2, 0, 0),
    Command.DEVICE_GET_INFO: struct.pack("<IIII", 16, 0, 0, 0),
    Command.DEVICE_GET_REGION_INFO: struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0),
    Command.DEVICE_GET_REGION_IO_FDS: struct.pack("<IIII", 16, 0, 0, 0),
    Command.DEVICE_GET_IRQ_INFO: struct.pack("<IIII", 16, 0, 0, 0),
    Command.DEVICE_SET_IRQS: struct.pack("<IIIII", 20, 0x21, 2, 0, 0),
    Command.REGION_READ: ACCESS.pack(0, 0, 4),
    Command.REGION_WRITE: access(0, 0, b"abcd"),
    Command.REGION_WRITE_MULTI: struct.pack("<QQII8s", 1, 0, 0, 4, b"abcd"),
    Command.DEVICE_RESET: b"",
    Command.DEVICE_FEATURE: head(Feature.MIGRATION, PROBE),
    Command.MIG_DATA_READ: MigDataRead(8).encode(),
    Command.MIG_DATA_WRITE: MigDataWrite(b"").encode(),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("command", REQUESTS)
def test_which_commands_are_carried_out(client: RawClient, state: MigrationState, command: Command) -> None:
    go_to(client, state)
    allowed = command in FeatureMigration.allowed.get(state, REQUESTS)
    if command == Command.MIG_DATA_READ:
        allowed = state in (PRE_COPY, STOP_COPY)
    elif command == Command.MIG_DATA_WRITE:
        allowed = state == RESUMING
    assert client.request(command, REQUESTS[command]).error == (0 if allowed else errno.EINVAL)


def test_stopped_devices_may_be_looked_at_until_they_are_read(client: RawClient) -> None:
    client.write(BAR0, 0, 5)
    go_to(client, STOP)
    assert client.read(BAR0, 0) == 5
    go_to(client, STOP_COPY)
    assert client.read_error(BAR0, 0) == client.write_error(BAR0, 0, 6) == errno.EINVAL
    go_to(client, RUNNING)
    assert client.read(BAR0, 0) == 5


def test_accesses_that_come_in_one_piece_with_the_state(client: RawClient) -> None:
    stop = head(Feature.MIG_DEVICE_STATE, SET, struct.pack("<II", STOP_COPY, 0))
    run = head(Feature.MIG_DEVICE_STATE, SET, struct.pack("<II", RUNNING, 0))
    read = message(Command.REGION_READ, ACCESS.pack(0, 0, 4))
    feature_message = [message(Command.DEVICE_FEATURE, payload) for payload in (stop, run)]
    client.send(read + feature_message[0] + read + read + feature_message[1] + read)
    assert [client.receive().error for _ in range(6)] == [0, 0, errno.EINVAL, errno.EINVAL, 0, 0]


# A device that is stopped does nothing.


def test_work_interrupts_and_dma_wait(client: RawClient, card: Card) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        client.write(RegionIndex.CONFIG, card.msix.offset, 0x8000_0011)
        assert client.set_eventfds(IrqIndex.MSIX, [fd]) == 0
        go_to(client, STOP)
        client.write(BAR0, 4, 4)
        assert client.read(BAR0, 8) == 0
        card.raise_interrupt(0)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        assert card.interrupts.pending(IrqIndex.MSIX) == 1
        with pytest.raises(OSError, match="while the device is stopped"):
            card.dma.read(0, 1)
        go_to(client, RUNNING)
        client.read(BAR0, 0)
        assert card.history == [4]
        assert os.eventfd_read(fd) == 2
    finally:
        os.close(fd)


@pytest.mark.parametrize("start", [RUNNING, PRE_COPY])
def test_what_was_rung_before_is_answered(client: RawClient, card: Card, start: MigrationState) -> None:
    rings: list[str] = []
    go_to(client, start)
    (fd,) = card.ioeventfds.eventfds(0, [Doorbell(0, 4, None, lambda: rings.append("rung"))])
    os.eventfd_write(fd, 1)
    card.migration.go_to(STOP_COPY)  # type: ignore[union-attr]  # before the loop has had a look
    assert rings == ["rung"]
    os.eventfd_write(fd, 1)
    card.loop.run_once()
    assert rings == ["rung"]
    go_to(client, RUNNING)
    assert rings == ["rung", "rung"]


@pytest.mark.parametrize("start", [RUNNING, PRE_COPY])
def test_what_was_sent_through_a_socket_before_is_carried_out(
    client: RawClient, card: Card, start: MigrationState
) -> None:
    go_to(client, start)
    (fd,) = card.ioregionfds.client_fds(0, card.region(0), [IoRange(0, 4, posted_writes=True)])
    os.write(fd, IoRegionCommand(True, 4, 0, 7, wants_reply=False).encode())
    card.migration.go_to(STOP_COPY)  # type: ignore[union-attr]  # before the loop has had a look
    assert card.bar0.value == 7
    os.write(fd, IoRegionCommand(True, 4, 0, 8, wants_reply=False).encode())
    card.loop.run_once()
    assert card.bar0.value == 7
    go_to(client, RUNNING)
    assert client.is_silent()
    assert card.bar0.value == 8


def test_a_device_runs_while_it_rehearses(client: RawClient, card: Card) -> None:
    go_to(client, PRE_COPY)
    client.write(BAR0, 4, 4)
    assert client.read(BAR0, 8) == 4
    go_to(client, STOP_COPY)
    go_to(client, RUNNING)
    client.write(BAR0, 4, 5)
    client.read(BAR0, 0)
    assert card.history == [4, 5]


@pytest.mark.parametrize("state", STATES)
def test_the_next_client_finds_it_running(card: Card, state: MigrationState) -> None:
    with session(card) as client:
        go_to(client, state)
        feature(client, Feature.DMA_LOGGING_START, SET, struct.pack("<QII", PAGE, 0, 0))
    assert card.dma.dirty_log is None
    with session(card) as client:
        assert state_of(client) == RUNNING
        client.write(BAR0, 4, 9)
        assert client.read(BAR0, 8) == 9


# The data.


@pytest.mark.parametrize(
    ("state", "command", "payload"),
    [
        pytest.param(STOP_COPY, Command.MIG_DATA_READ, bytes(7), id="read, payload under 8"),
        pytest.param(STOP_COPY, Command.MIG_DATA_READ, struct.pack("<II", 15, 8), id="read, argsz"),
        pytest.param(STOP_COPY, Command.MIG_DATA_READ, MigDataRead((1 << 20) + 1).encode(), id="read, too much"),
        pytest.param(RUNNING, Command.MIG_DATA_READ, MigDataRead(8).encode(), id="read, running"),
        pytest.param(RESUMING, Command.MIG_DATA_READ, MigDataRead(8).encode(), id="read, resuming"),
        pytest.param(RESUMING, Command.MIG_DATA_WRITE, bytes(7), id="write, payload under 8"),
        pytest.param(RESUMING, Command.MIG_DATA_WRITE, struct.pack("<II", 15, 8) + bytes(8), id="write, argsz"),
        pytest.param(RESUMING, Command.MIG_DATA_WRITE, struct.pack("<II", 16, 8) + bytes(7), id="write, data missing"),
        pytest.param(
            RESUMING, Command.MIG_DATA_WRITE, MigDataWrite(bytes((1 << 20) + 1)).encode(), id="write, too much"
        ),
        pytest.param(RUNNING, Command.MIG_DATA_WRITE, MigDataWrite(b"x").encode(), id="write, running"),
        pytest.param(PRE_COPY, Command.MIG_DATA_WRITE, MigDataWrite(b"x").encode(), id="write, saving"),
    ],
)
def test_data_refused(client: RawClient, state: MigrationState, command: Command, payload: bytes) -> None:
    go_to(client, state)
    assert client.request(command, payload).error == errno.EINVAL
    assert state_of(client) == state


def test_a_client_that_takes_little() -> None:
    with memory_session(Card()) as client:
        client.negotiate({"max_data_xfer_size": 100})
        go_to(client, STOP_COPY)
        assert client.request(Command.MIG_DATA_READ, MigDataRead(101).encode()).error == errno.EINVAL
        assert client.request(Command.MIG_DATA_READ, MigDataRead(100).encode()).error == 0


def test_more_state_than_any(client: RawClient, card: Card) -> None:
    go_to(client, RESUMING)
    card.state.max_size = 10
    write_all(client, bytes(10))
    assert client.request(Command.MIG_DATA_WRITE, MigDataWrite(b"x").encode()).error == errno.EINVAL


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_pieces_of_any_size_make_the_same_state(client: RawClient, card: Card, size: int) -> None:
    client.write(RegionIndex.BAR2, 0x20000, 0x1234)
    go_to(client, STOP_COPY)
    data = b"".join(card.state.writer().finish())
    read = b""
    if size == 1:
        data, size = data[:64], 1
        for _ in range(64):
            reply = client.request(Command.MIG_DATA_READ, MigDataRead(1).encode())
            read += MigDataReadReply.decode(reply.payload).data
    else:
        read = read_all(client, size)
    assert read == data
    assert not data.startswith(bytes(8))


def test_a_state_that_is_none_changes_nothing(client: RawClient, card: Card) -> None:
    client.write(BAR0, 0, 5)
    go_to(client, RESUMING)
    write_all(client, b"rubbish, and enough of it")
    assert go_to(client, STOP) == errno.EINVAL
    assert state_of(client) == RESUMING
    # It can be tried again, or called off.
    assert go_to(client, RUNNING) == 0
    assert client.read(BAR0, 0) == 5
    assert card.loaded == 0


def test_a_device_that_fails_while_loading(card: Card) -> None:
    good = Card().save_state()

    def fail() -> None:
        raise RuntimeError("broken")

    card.on_loaded = fail  # type: ignore[method-assign]
    with session(card, strict=False) as client:
        go_to(client, RESUMING)
        write_all(client, good)
        assert go_to(client, STOP) == errno.EIO
        assert state_of(client) == ERROR


# Devices that move.


@contextmanager
def pair(source: Device, destination: Device) -> Iterator[tuple[RawClient, RawClient]]:
    with ExitStack() as stack:
        yield stack.enter_context(session(source)), stack.enter_context(session(destination))


@pytest.mark.parametrize("rehearse", [False, True])
def test_everything_moves(rehearse: bool) -> None:
    source, destination = Card(), Card()
    with pair(source, destination) as (ours, theirs):
        ours.write(BAR0, 0, 0x1234)
        ours.write(RegionIndex.BAR2, 0x10, 0x5678)
        ours.write(RegionIndex.CONFIG, 4, 6, 2)
        for value in (3, 9):
            ours.write(BAR0, 4, value)
        theirs.write(RegionIndex.BAR2, 0x30000, 0xFFFF)
        theirs.write(BAR0, 4, 1)
        buffer = destination.buffer
        move(ours, theirs, rehearse=rehearse)
        assert theirs.read(BAR0, 0) == 0x1234
        assert theirs.read(RegionIndex.BAR2, 0x10) == 0x5678
        assert theirs.read(RegionIndex.BAR2, 0x30000) == 0
        assert theirs.read(RegionIndex.CONFIG, 4, 2) == 6
        assert (destination.history, destination.last) == ([3, 9], 9)
        assert destination.buffer == source.buffer
        assert destination.buffer is buffer
        assert destination.loaded == 1
        assert destination.dma.enabled


def test_memory_that_changes_during_the_rehearsal() -> None:
    source, destination = Card(), Card()
    with pair(source, destination) as (ours, theirs):
        for offset in (0, 0x10000, 0x20000):
            ours.write(RegionIndex.BAR2, offset, 0xAAAA_AAAA)
        go_to(ours, PRE_COPY)
        data = read_all(ours)
        ours.write(RegionIndex.BAR2, 0x10000, 0xBBBB_BBBB)
        ours.write(RegionIndex.BAR2, 0x20000, 0)
        go_to(ours, STOP_COPY)
        rest = read_all(ours)
        assert 3 * 0x10000 < len(data) < 3 * 0x10000 + 200
        assert 2 * 0x10000 < len(rest) < 2 * 0x10000 + 8000
        go_to(theirs, RESUMING)
        write_all(theirs, data + rest)
        go_to(theirs, RUNNING)
        assert [theirs.read(RegionIndex.BAR2, offset) for offset in (0, 0x10000, 0x20000)] == [
            0xAAAA_AAAA,
            0xBBBB_BBBB,
            0,
        ]


def test_work_of_another_past_is_dropped() -> None:
    source, destination = Card(), Card()
    with pair(source, destination) as (ours, theirs):
        go_to(theirs, STOP)
        theirs.write(BAR0, 4, 5)  # waits
        destination.call_later(0, destination.finish, 6)
        move(ours, theirs)
        theirs.read(BAR0, 0)
        assert destination.history == []
        theirs.write(BAR0, 4, 7)
        theirs.read(BAR0, 0)
        assert destination.history == [7]


def test_interrupts_that_were_missed_are_made_good() -> None:
    source, destination = Card(), Card()
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    try:
        with pair(source, destination) as (ours, theirs):
            ours.write(RegionIndex.CONFIG, source.msix.offset, 0x8000_0011)
            ours.set_eventfds(IrqIndex.MSIX, fds)
            go_to(ours, STOP)
            source.raise_interrupt(2)
            theirs.set_eventfds(IrqIndex.MSIX, fds)
            move(ours, theirs)
            assert os.eventfd_read(fds[2]) == 1
            with pytest.raises(BlockingIOError):
                os.eventfd_read(fds[0])
            assert destination.msix.enabled
    finally:
        for fd in fds:
            os.close(fd)


def test_another_class_is_refused() -> None:
    with pair(Card(), Edu()) as (ours, theirs):
        go_to(ours, STOP_COPY)
        data = read_all(ours)
        go_to(theirs, RESUMING)
        write_all(theirs, data)
        assert go_to(theirs, STOP) == errno.EINVAL


EDU_WORDS = [0x04, 0x08, 0x20, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98]
edu_writes = st.lists(
    st.tuples(st.sampled_from(EDU_WORDS), st.integers(0, 0xFFFF_FFFF) | st.integers(0, 40)), max_size=12
)


@settings(max_examples=30, deadline=None)
@given(edu_writes, edu_writes, st.booleans())
def test_edu_in_any_state(before: list[tuple[int, int]], after: list[tuple[int, int]], rehearse: bool) -> None:
    source, twin, destination = Edu(), Edu(), Edu()
    with pair(source, destination) as (ours, theirs), session(twin) as other:
        for client in (ours, other):
            for offset, value in before:
                client.write(BAR0, offset, value)
        move(ours, theirs, rehearse=rehearse)
        for client in (theirs, other):
            for offset, value in after:
                client.write(BAR0, offset, value)
        for offset in [0x00, 0x24, *EDU_WORDS]:
            assert theirs.read(BAR0, offset) == other.read(BAR0, offset)
        assert destination.buffer == twin.buffer
        assert destination.interrupts.intx_level == twin.interrupts.intx_level
        config = ACCESS.pack(0, RegionIndex.CONFIG, 256)
        assert theirs.request(Command.REGION_READ, config).payload == other.request(Command.REGION_READ, config).payload


def test_edu_in_the_middle_of_a_factorial_and_of_a_transfer() -> None:
    source, destination = Edu(), Edu()
    with pair(source, destination) as (ours, theirs):
        fd = memory_file(bytes(PAGE))
        os.pwrite(fd, b"from memory", 0x100)
        assert theirs.map_memory(0, PAGE, fd) == 0
        os.close(fd)
        go_to(ours, STOP)
        ours.write(BAR0, 0x20, 0x80)
        ours.write(BAR0, 0x08, 10)
        ours.write(BAR0, 0x80, 0x100)
        ours.write(BAR0, 0x88, 0x40000)
        ours.write(BAR0, 0x90, 11)
        ours.write(BAR0, 0x98, 1)
        ours.write(RegionIndex.CONFIG, 4, 6, 2)
        assert ours.read(BAR0, 0x20) == 0x81
        move(ours, theirs)
        assert theirs.read(BAR0, 0x08) == 3628800
        assert theirs.read(BAR0, 0x20) == 0x80
        assert theirs.read(BAR0, 0x24) == 1
        assert theirs.read(BAR0, 0x98) == 0
        assert bytes(destination.buffer[:11]) == b"from memory"
        assert not source.buffer[0]


def test_gpio_moves_with_its_inputs_and_its_interrupt() -> None:
    source, destination = GpioPciIdio16(inputs=0x1234), GpioPciIdio16()
    bar2 = RegionIndex.BAR2
    with pair(source, destination) as (ours, theirs):
        ours.write(bar2, 0, 0x55, 1)
        ours.read(bar2, 2, 1)
        move(ours, theirs)
        assert destination.inputs == 0x1234
        assert destination.outputs == source.outputs
        destination.set_inputs(0x1235)
        theirs.read(bar2, 0, 1)
        assert destination.interrupts.intx_level


# The log of dirty pages.

REPORT = struct.Struct("<QQQ")


def start_log(client: RawClient, page_size: int = PAGE) -> int:
    return feature(client, Feature.DMA_LOGGING_START, SET, struct.pack("<QII", page_size, 0, 0))


def report(
    client: RawClient, iova: int, length: int, page_size: int = PAGE, argsz: int | None = None
) -> int | set[int]:
    """The dirty pages of a range; or the errno."""
    size = bitmap_size(length, page_size) if page_size else 0
    data = REPORT.pack(iova, length, page_size)
    wanted = 8 + len(data) + size if argsz is None else argsz
    reply = client.request(Command.DEVICE_FEATURE, head(Feature.DMA_LOGGING_REPORT, GET, data, wanted))
    if reply.error:
        return reply.error
    assert struct.unpack("<II", reply.payload[:8]) == (32 + size, Feature.DMA_LOGGING_REPORT | GET)
    assert reply.payload[8:32] == data
    bitmap = int.from_bytes(reply.payload[32:], "little")
    assert len(reply.payload) == 32 + size
    return {page for page in range(size * 8) if bitmap >> page & 1}


@contextmanager
def logged(pages: int = 64) -> Iterator[tuple[Card, RawClient]]:
    """A card with [0x10000, ...) mapped as a file, and a page at 0x800000 that only messages reach."""
    card = Card()
    with session(card) as client:
        fd = memory_file(bytes(pages * PAGE))
        assert client.map_memory(0x10000, pages * PAGE, fd) == 0
        os.close(fd)
        assert client.map_memory(0x80_0000, PAGE, None) == 0
        yield card, client


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 64 * PAGE - 1), st.integers(1, 5 * PAGE))), max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_log_is_exact(steps: list[tuple[int, int] | None]) -> None:
    with logged() as (card, client):
        card.dma.write(0x10000, b"before anything is logged")
        assert start_log(client) == 0
        model: set[int] = set()
        for step in [*steps, None, None]:
            if step is None:
                assert report(client, 0x10000, 64 * PAGE) == model
                model = set()
            else:
                offset, length = step
                length = min(length, 64 * PAGE - offset)
                card.dma.write(0x10000 + offset, bytes(length))
                model |= set(range(offset // PAGE, (offset + length - 1) // PAGE + 1))


def test_logging_is_started_stopped_and_started_again() -> None:
    with logged() as (card, client):
        assert start_log(client) == 0
        assert start_log(client) == 0
        assert start_log(client, 2 * PAGE) == errno.EINVAL
        card.dma.write(0x10000, b"x")
        assert feature(client, Feature.DMA_LOGGING_STOP, SET, bytes(16)) == 0
        assert report(client, 0x10000, PAGE) == errno.EINVAL
        assert start_log(client, 2 * PAGE) == 0
        assert report(client, 0x10000, 64 * PAGE) == set()
        card.dma.write(0x10000, b"x")
        assert report(client, 0x10000, 64 * PAGE) == {0, 1}


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "argsz", "error"),
    [
        pytest.param(0x10000, PAGE, PAGE, 39, errno.EINVAL, id="argsz"),
        pytest.param(0x10000, PAGE, 0, 64, errno.EINVAL, id="page size 0"),
        pytest.param(0x10000, PAGE, 3000, None, errno.EINVAL, id="page size no power of two"),
        pytest.param(0x10000, PAGE - 1, PAGE, None, errno.EINVAL, id="less than a page"),
        pytest.param(0x10000, 1 << 45, PAGE, 0xFFFF_FFFF, errno.EINVAL, id="a bitmap of a gigabyte"),
        pytest.param(0x11000, PAGE, PAGE, None, errno.ENOTSUP, id="inside a mapping"),
        pytest.param(0x0, PAGE, PAGE, None, errno.ENOENT, id="not mapped"),
    ],
)
def test_reports_refused(iova: int, length: int, page_size: int, argsz: int | None, error: int) -> None:
    with logged() as (card, client):
        start_log(client)
        card.dma.write(0x10000, b"x")
        assert report(client, iova, length, page_size, argsz) == error
        assert report(client, 0x10000, PAGE) == {0}


def test_memory_only_messages_reach_is_the_clients_to_log() -> None:
    with logged() as (_, client):
        start_log(client)
        assert report(client, 0x80_0000, PAGE) == set()


# Unmapping, and learning at the same time what was written there.


def unmap(client: RawClient, iova: int, length: int, page_size: int, size: int, argsz: int) -> int | set[int]:
    request = struct.pack("<IIQQ", argsz, 1, iova, length) + struct.pack("<QQ", page_size, size)
    reply = client.request(Command.DMA_UNMAP, request)
    if reply.error:
        return reply.error
    assert reply.payload[:40] == request
    assert len(reply.payload) == 40 + size
    bitmap = int.from_bytes(reply.payload[40:], "little")
    return {page for page in range(size * 8) if bitmap >> page & 1}


def test_unmap_reports_what_was_written() -> None:
    with logged() as (card, client):
        start_log(client)
        card.dma.write(0x10000 + 5 * PAGE, bytes(PAGE + 1))
        assert unmap(client, 0x10000, 64 * PAGE, PAGE, 8, 48) == {5, 6}
        assert card.dma.lookup(0x10000) is None


@pytest.mark.parametrize(
    ("length", "page_size", "size", "argsz"),
    [
        pytest.param(64 * PAGE, PAGE, 8, 47, id="no room"),
        pytest.param(64 * PAGE, PAGE, 16, 64, id="a bitmap too long"),
        pytest.param(64 * PAGE, PAGE, 0, 64, id="a bitmap too short"),
        pytest.param(64 * PAGE, 0, 8, 64, id="page size 0"),
        pytest.param(64 * PAGE, 3000, 16, 64, id="page size no power of two"),
        pytest.param(64 * PAGE, PAGE, (1 << 64) - 1, 1 << 20, id="a bitmap beyond all bounds"),
    ],
)
def test_unmap_with_a_bitmap_refused(length: int, page_size: int, size: int, argsz: int) -> None:
    with logged() as (card, client):
        start_log(client)
        assert unmap(client, 0x10000, length, page_size, size, argsz) == errno.EINVAL
        assert card.dma.lookup(0x10000) is not None


def test_unmap_with_a_bitmap_nobody_keeps() -> None:
    with logged() as (card, client):
        assert unmap(client, 0x10000, 64 * PAGE, PAGE, 8, 48) == errno.EINVAL
        assert card.dma.lookup(0x10000) is not None
        request = struct.pack("<IIQQ", 48, 1, 0x10000, 64 * PAGE)
        assert client.request(Command.DMA_UNMAP, request + bytes(15)).error == errno.EINVAL
