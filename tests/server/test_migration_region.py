"""The first migration protocol as a client drives it: every register, every way, every refusal, devices that move."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.fds import close_all, memory_file
from tests.support.migration_card import PAGE, Card, session
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.errors import DefinitionError, StateError
from vfio_user.pci import MemoryBar
from vfio_user.protocol.constants import Command, RegionCapability, RegionFlags, RegionIndex
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.header import Header
from vfio_user.protocol.migration_region import TRANSITIONS, DeviceState
from vfio_user.protocol.region import ACCESS, MappableArea, RegionInfo, RegionInfoRequest
from vfio_user.server.device import Device
from vfio_user.server.migration_region import DATA_OFFSET, WINDOW_SIZE
from vfio_user.server.pci_device import PciDevice
from vfio_user.testing.leaks import leaked_since, open_files

STOPPED, RUNNING = DeviceState.STOPPED, DeviceState.RUNNING
STOP_AND_COPY, PRE_COPY = DeviceState.STOP_AND_COPY, DeviceState.PRE_COPY
RESUMING, ERROR = DeviceState.RESUMING, DeviceState.ERROR
EINVAL = errno.EINVAL
BAR0, BAR2, MIGRATION = RegionIndex.BAR0, RegionIndex.BAR2, RegionIndex.MIGRATION
DEVICE_STATE, RESERVED, PENDING_BYTES, DATA_OFFSET_REGISTER, DATA_SIZE = 0, 4, 8, 16, 24

#: How to get to each state from RUNNING.
WAYS = {
    STOPPED: [STOPPED],
    RUNNING: [],
    STOP_AND_COPY: [STOP_AND_COPY],
    PRE_COPY: [PRE_COPY],
    RESUMING: [RESUMING],
    ERROR: [ERROR],
}


def v1(device: Device) -> Device:
    device.offer_migration("v1")
    return device


@pytest.fixture
def card(caplog: pytest.LogCaptureFixture) -> Iterator[Card]:
    card = Card()
    card.offer_migration("v1")
    yield card
    # pytest keeps the card, and what was logged with the frames it came from, beyond the look for leaked files.
    card.offer_migration("off")
    caplog.get_records("call").clear()


@pytest.fixture
def client(card: Card) -> Iterator[RawClient]:
    with session(card) as client:
        yield client


def go_to(client: RawClient, state: int) -> int:
    return client.write_error(MIGRATION, DEVICE_STATE, state)


def reach(client: RawClient, state: DeviceState) -> None:
    for step in WAYS[state]:
        assert go_to(client, step) == 0


def state_of(client: RawClient) -> int:
    return client.read(MIGRATION, DEVICE_STATE)


def pending(client: RawClient) -> int:
    return client.read(MIGRATION, PENDING_BYTES, 8)


def read_round(client: RawClient) -> bytes:
    """One round's data, if any are pending."""
    if not pending(client):
        return b""
    offset = client.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
    size = client.read(MIGRATION, DATA_SIZE, 8)
    reply = client.request(Command.REGION_READ, ACCESS.pack(offset, MIGRATION, size))
    assert reply.error == 0
    return reply.payload[ACCESS.size :]


def read_all(client: RawClient) -> list[bytes]:
    """The rounds there are now."""
    return list(iter(lambda: read_round(client), b""))


def write_round(client: RawClient, data: bytes) -> int:
    offset = client.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
    assert client.request(Command.REGION_WRITE, access(offset, MIGRATION, data)).error == 0
    return client.write_error(MIGRATION, DATA_SIZE, len(data), 8)


def move(source: RawClient, destination: RawClient, *, rehearse: bool = False) -> None:
    """Migrates one device into another, as a client does, and lets the other run."""
    rounds = []
    if rehearse:
        assert go_to(source, PRE_COPY) == 0
        rounds += read_all(source)
    assert go_to(source, STOP_AND_COPY) == 0
    rounds += read_all(source)
    assert go_to(source, STOPPED) == 0
    assert go_to(destination, RESUMING) == 0
    for data in rounds:
        assert write_round(destination, data) == 0
    assert go_to(destination, RUNNING) == 0


@contextmanager
def pair(source: Device, destination: Device) -> Iterator[tuple[RawClient, RawClient]]:
    with ExitStack() as stack:
        yield stack.enter_context(session(v1(source))), stack.enter_context(session(v1(destination)))


# The offer.


def test_a_tenth_region_and_its_type(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert struct.unpack("<IIII", reply.payload)[2] == 10
    short = client.request(Command.DEVICE_GET_REGION_INFO, RegionInfoRequest(MIGRATION).encode())
    info = RegionInfo.decode(short.payload)
    assert (info.argsz, short.fds) == (32 + 32 + 16, [])
    reply = client.request(Command.DEVICE_GET_REGION_INFO, RegionInfoRequest(MIGRATION, info.argsz).encode())
    info = RegionInfo.decode(reply.payload)
    assert info.flags == RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP | RegionFlags.CAPS
    assert info.size == DATA_OFFSET + WINDOW_SIZE
    assert info.region_type == (3, 1)
    assert info.areas == (MappableArea(DATA_OFFSET, WINDOW_SIZE),)
    assert reply.payload[64:66] == bytes([RegionCapability.TYPE, 0])
    close_all(reply.fds)


def test_no_such_region_unless_asked_for() -> None:
    for device in (Card(), v1_and_back()):
        with session(device) as client:
            assert client.read_error(MIGRATION, DEVICE_STATE) == EINVAL
            assert client.request(Command.DIRTY_PAGES, struct.pack("<II", 8, 2)).error == EINVAL
            assert client.request(Command.DEVICE_FEATURE, struct.pack("<II", 8, 0x4_0001)).error == 0
            reply = client.request(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
            assert struct.unpack("<IIII", reply.payload)[2] == 9


def v1_and_back() -> Card:
    card = Card()
    card.offer_migration("v1")
    card.offer_migration("v2")
    return card


def test_one_protocol_alone(client: RawClient) -> None:
    assert client.request(Command.DEVICE_FEATURE, struct.pack("<II", 8, 0x4_0001)).error == EINVAL
    assert client.request(Command.MIG_DATA_READ, struct.pack("<II", 16, 8)).error == EINVAL
    assert client.request(Command.MIG_DATA_WRITE, struct.pack("<II", 8, 0)).error == EINVAL


def test_no_migration_at_all(card: Card) -> None:
    card.offer_migration("off")
    with session(card) as client:
        assert client.request(Command.DEVICE_FEATURE, struct.pack("<II", 8, 0x4_0001)).error == EINVAL
        assert client.request(Command.DIRTY_PAGES, struct.pack("<II", 8, 2)).error == EINVAL
        assert client.read_error(MIGRATION, DEVICE_STATE) == EINVAL


def test_offers_that_cannot_be_made(card: Card) -> None:
    class Plain(PciDevice):
        vendor_id, device_id, class_code = 1, 2, 0xFF0000

    class Eleven(Card):
        num_regions = 11

    with pytest.raises(DefinitionError, match="migratable is False"):
        Plain().offer_migration("v1")
    with pytest.raises(DefinitionError, match="has 11 regions"):
        Eleven().offer_migration("v1")
    with pytest.raises(ValueError, match="'v3' is none of v2, v1, off"):
        card.offer_migration("v3")  # type: ignore[arg-type]
    with session(card), pytest.raises(StateError, match="while a client is connected"):
        card.offer_migration("v2")


@pytest.mark.parametrize(("proposed", "agreed"), [(4096, 4096), (65536, 4096), (1024, 1024)])
def test_the_smaller_page_size_is_agreed_on(card: Card, proposed: int, agreed: int) -> None:
    with memory_session(card) as client:
        reply = client.negotiate({"max_msg_fds": 8, "migration": {"pgsize": proposed}})
        assert b'"migration":{"pgsize":%d}' % agreed in reply.payload
        assert client.request(Command.DIRTY_PAGES, struct.pack("<II", 8, 1)).error == 0
        assert card.dma.dirty_log is not None
        assert card.dma.dirty_log.page_size == agreed


def test_a_client_that_says_nothing_of_it_is_not_told(card: Card) -> None:
    with memory_session(card) as client:
        assert b"migration" not in client.negotiate().payload
        assert state_of(client) == RUNNING


# States.


@pytest.mark.parametrize("start", DeviceState)
@pytest.mark.parametrize("goal", [*range(10), 0xFFFF_FFFF])
def test_every_way(client: RawClient, start: DeviceState, goal: int) -> None:
    reach(client, start)
    allowed = start == goal or (start, goal) in TRANSITIONS
    assert go_to(client, goal) == (0 if allowed else EINVAL)
    assert state_of(client) == (goal if allowed else start)


def test_only_a_reset_leads_out_of_an_error(client: RawClient, card: Card) -> None:
    go_to(client, ERROR)
    client.write(BAR0, 4, 7)
    assert client.read(BAR0, 8) == 0
    assert client.request(Command.DEVICE_RESET).error == 0
    assert state_of(client) == RUNNING
    client.write(BAR0, 4, 8)
    assert client.read(BAR0, 8) == 8
    assert card.history == [8]


def test_a_step_that_fails_is_an_error(card: Card) -> None:
    with session(card, strict=False) as client:
        card.fail_in = card.migration.state.STOP  # type: ignore[union-attr]
        assert go_to(client, STOP_AND_COPY) == errno.EIO
        assert state_of(client) == ERROR


def test_a_device_that_holds_what_cannot_be_saved(card: Card) -> None:
    card.last = object()  # type: ignore[assignment]
    with session(card, strict=False) as client:
        go_to(client, STOP_AND_COPY)
        assert client.read_error(MIGRATION, PENDING_BYTES, 8) == errno.EIO
        assert state_of(client) == ERROR


@pytest.mark.parametrize("state", DeviceState)
def test_the_next_client_finds_it_running_unless_it_is_broken(card: Card, state: DeviceState) -> None:
    with session(card) as client:
        reach(client, state)
        client.request(Command.DIRTY_PAGES, struct.pack("<II", 8, 1))
    assert card.dma.dirty_log is None
    with session(card) as client:
        assert state_of(client) == (ERROR if state == ERROR else RUNNING)


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
    Command.DIRTY_PAGES: struct.pack("<II", 8, 2),
}
ACCESSES = {Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE_MULTI}


@pytest.mark.parametrize("state", DeviceState)
@pytest.mark.parametrize("command", REQUESTS)
def test_which_commands_are_carried_out(client: RawClient, state: DeviceState, command: Command) -> None:
    reach(client, state)
    allowed = (
        command == Command.DIRTY_PAGES
        or state not in (STOPPED, STOP_AND_COPY)
        or (state == STOPPED and command in ACCESSES)
    )
    assert client.request(command, REQUESTS[command]).error == (0 if allowed else EINVAL)


def test_writes_in_one_message_go_by_no_refusal(client: RawClient) -> None:
    reach(client, STOP_AND_COPY)
    to_the_region = struct.pack("<QQII8s", 1, DEVICE_STATE, MIGRATION, 4, bytes([RUNNING]))
    assert client.request(Command.REGION_WRITE_MULTI, to_the_region).error == EINVAL
    assert state_of(client) == STOP_AND_COPY


def test_accesses_that_come_in_one_piece_with_the_state(client: RawClient) -> None:
    stop, run = (
        message(Command.REGION_WRITE, access(DEVICE_STATE, MIGRATION, struct.pack("<I", state)))
        for state in (STOP_AND_COPY, RUNNING)
    )
    read = message(Command.REGION_READ, ACCESS.pack(0, 0, 4))
    client.send(read + stop + read + read + run + read)
    assert [client.receive().error for _ in range(6)] == [0, 0, EINVAL, EINVAL, 0, 0]
    # By posted writes, too, a client stops a device.
    posted = message(
        Command.REGION_WRITE, access(DEVICE_STATE, MIGRATION, struct.pack("<I", STOP_AND_COPY)), no_reply=True
    )
    write = message(Command.REGION_WRITE, access(0, 0, b"abcd"), no_reply=True)
    client.send(write * 4 + posted + write + read)
    assert client.receive().error == EINVAL


# The registers.


@pytest.mark.parametrize("state", [RUNNING, PRE_COPY, RESUMING])
@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (DEVICE_STATE, 1),
        (DEVICE_STATE, 2),
        (DEVICE_STATE, 8),
        (1, 1),
        (2, 2),
        (PENDING_BYTES, 4),
        (12, 4),
        (DATA_OFFSET_REGISTER, 4),
        (DATA_SIZE, 4),
        (DATA_SIZE, 2),
        (28, 4),
        (6, 8),
        (32, 1),
        (32, 8),
        (DATA_OFFSET - 8, 8),
        (DATA_OFFSET - 4, 8),
        (0, 32),
        (0, 0x800),
    ],
)
def test_odd_accesses(client: RawClient, state: DeviceState, offset: int, size: int) -> None:
    reach(client, state)
    assert client.read_error(MIGRATION, offset, size) == EINVAL
    assert client.request(Command.REGION_WRITE, access(offset, MIGRATION, bytes(size))).error == EINVAL
    assert state_of(client) == state


def test_what_means_nothing(client: RawClient) -> None:
    client.write(MIGRATION, RESERVED, 0xFFFF_FFFF)
    assert client.read(MIGRATION, RESERVED) == 0


@pytest.mark.parametrize("state", DeviceState)
@pytest.mark.parametrize("offset", [PENDING_BYTES, DATA_OFFSET_REGISTER, DATA_SIZE, DATA_OFFSET])
def test_which_can_be_read_when(client: RawClient, state: DeviceState, offset: int) -> None:
    reach(client, state)
    readable = (offset == PENDING_BYTES and state in (PRE_COPY, STOP_AND_COPY)) or (
        offset == DATA_OFFSET_REGISTER and state == RESUMING
    )
    assert client.read_error(MIGRATION, offset, 8) == (0 if readable else EINVAL)


@pytest.mark.parametrize("state", DeviceState)
@pytest.mark.parametrize("offset", [PENDING_BYTES, DATA_OFFSET_REGISTER, DATA_SIZE, DATA_OFFSET])
def test_which_can_be_written_when(client: RawClient, state: DeviceState, offset: int) -> None:
    reach(client, state)
    writable = offset >= DATA_SIZE and state == RESUMING
    assert client.write_error(MIGRATION, offset, 8, 8) == (0 if writable else EINVAL)


def test_a_round(client: RawClient) -> None:
    reach(client, STOP_AND_COPY)
    assert client.read_error(MIGRATION, DATA_SIZE, 8) == EINVAL
    size = pending(client)
    assert size == pending(client)
    assert client.read_error(MIGRATION, DATA_OFFSET, 8) == EINVAL
    assert client.read(MIGRATION, DATA_OFFSET_REGISTER, 8) == DATA_OFFSET
    assert client.read(MIGRATION, DATA_SIZE, 8) == size
    assert client.read(MIGRATION, DATA_OFFSET, 8) == int.from_bytes(b"vfu-stat", "little")
    assert client.read_error(MIGRATION, DATA_OFFSET + size - 7, 8) == EINVAL
    assert client.read(MIGRATION, DATA_OFFSET + size - 1, 1) == 0
    assert client.read_error(MIGRATION, DATA_OFFSET + WINDOW_SIZE - 7, 8) == EINVAL
    assert pending(client) == 0
    for register in (DATA_OFFSET_REGISTER, DATA_SIZE, DATA_OFFSET):
        assert client.read_error(MIGRATION, register, 8) == EINVAL
    assert pending(client) == 0


def test_a_round_ends_with_an_error(client: RawClient) -> None:
    reach(client, STOP_AND_COPY)
    assert pending(client)
    client.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
    assert go_to(client, ERROR) == 0
    assert client.read_error(MIGRATION, DATA_OFFSET, 8) == EINVAL


def test_a_round_ends_with_the_state(client: RawClient) -> None:
    reach(client, STOP_AND_COPY)
    assert pending(client)
    client.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
    go_to(client, RUNNING)
    assert client.read_error(MIGRATION, DATA_OFFSET, 8) == EINVAL
    go_to(client, PRE_COPY)
    assert client.read_error(MIGRATION, DATA_OFFSET_REGISTER, 8) == EINVAL


def test_more_than_the_window_is_not_taken_in(client: RawClient) -> None:
    reach(client, RESUMING)
    assert client.write_error(MIGRATION, DATA_SIZE, WINDOW_SIZE + 1, 8) == EINVAL
    assert client.write_error(MIGRATION, DATA_SIZE, (1 << 64) - 1, 8) == EINVAL
    assert client.write_error(MIGRATION, DATA_OFFSET + WINDOW_SIZE - 4, 0, 8) == EINVAL
    assert client.write_error(MIGRATION, DATA_SIZE, WINDOW_SIZE, 8) == 0


def test_more_state_than_any(client: RawClient, card: Card) -> None:
    reach(client, RESUMING)
    card.state.max_size = 10
    assert client.write_error(MIGRATION, DATA_SIZE, 10, 8) == 0
    assert client.write_error(MIGRATION, DATA_SIZE, 1, 8) == EINVAL


# Devices that move.


class Large(Card):
    """A card whose state takes several rounds."""

    bar4 = MemoryBar(size=4 << 20)


@pytest.mark.parametrize("rehearse", [False, True])
def test_everything_moves(rehearse: bool) -> None:
    source, destination = Large(), Large()
    contents = os.urandom(4 << 20)
    with pair(source, destination) as (ours, theirs):
        ours.write(BAR0, 0, 0x1234)
        ours.write(BAR2, 0x10, 0x5678)
        source.bar4.write_bytes(0, contents)
        for value in (3, 9):
            ours.write(BAR0, 4, value)
        theirs.write(BAR2, 0x30000, 0xFFFF)
        move(ours, theirs, rehearse=rehearse)
        assert theirs.read(BAR0, 0) == 0x1234
        assert theirs.read(BAR2, 0x10) == 0x5678
        assert theirs.read(BAR2, 0x30000) == 0
        assert destination.bar4.read_bytes(0, 4 << 20) == contents
        assert (destination.history, destination.last, destination.loaded) == ([3, 9], 9, 1)


def test_pending_bytes_shrink_to_nothing() -> None:
    device = Large()
    with session(v1(device)) as client:
        device.bar4.write_bytes(0, os.urandom(4 << 20))
        go_to(client, STOP_AND_COPY)
        seen = []
        total = 0
        while left := pending(client):
            seen.append(left)
            client.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
            total += client.read(MIGRATION, DATA_SIZE, 8)
        assert seen == sorted(set(seen), reverse=True)
        assert seen[0] >= 4 << 20
        assert len(seen) == -(-total // WINDOW_SIZE) == 5


def test_a_round_that_was_begun_is_not_lost_when_the_device_stops() -> None:
    for prepared in (False, True):
        source, destination = Card(), Card()
        with pair(source, destination) as (ours, theirs):
            ours.write(BAR2, 0, 0xAAAA)
            go_to(ours, PRE_COPY)
            assert pending(ours)
            rounds = []
            if prepared:
                ours.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
                size = ours.read(MIGRATION, DATA_SIZE, 8)
                reply = ours.request(Command.REGION_READ, ACCESS.pack(DATA_OFFSET, MIGRATION, size))
                rounds.append(reply.payload[ACCESS.size :])
            go_to(ours, STOP_AND_COPY)
            rounds += read_all(ours)
            go_to(theirs, RESUMING)
            for data in rounds:
                write_round(theirs, data)
            assert go_to(theirs, RUNNING) == 0
            assert theirs.read(BAR2, 0) == 0xAAAA


def test_a_state_that_is_none_changes_nothing(client: RawClient, card: Card) -> None:
    client.write(BAR0, 0, 5)
    reach(client, RESUMING)
    write_round(client, b"rubbish, and enough of it")
    assert go_to(client, RUNNING) == EINVAL
    assert state_of(client) == RESUMING
    assert go_to(client, RUNNING) == 0
    assert (client.read(BAR0, 0), card.loaded) == (5, 0)


def test_through_a_mapped_window() -> None:
    with pair(Card(), Card()) as (ours, theirs):
        ours.write(BAR2, 0, 0x1234)
        windows = []
        for client in (ours, theirs):
            reply = client.request(Command.DEVICE_GET_REGION_INFO, RegionInfoRequest(MIGRATION, 80).encode())
            (fd,) = reply.fds
            windows.append(mmap.mmap(fd, WINDOW_SIZE, offset=DATA_OFFSET))
            os.close(fd)
        go_to(ours, STOP_AND_COPY)
        go_to(theirs, RESUMING)
        while pending(ours):
            ours.read(MIGRATION, DATA_OFFSET_REGISTER, 8)
            size = ours.read(MIGRATION, DATA_SIZE, 8)
            windows[1][:size] = windows[0][:size]
            theirs.write(MIGRATION, DATA_SIZE, size, 8)
            windows[1][:size] = bytes(size)  # it was taken in, and this is too late
        assert go_to(theirs, RUNNING) == 0
        assert theirs.read(BAR2, 0) == 0x1234
        for window in windows:
            window.close()


class Streaming(Card):
    """Keeps a list of words elsewhere, and tells what is new of it."""

    chunks_limit = 1 << 16

    def __init__(self) -> None:
        super().__init__()
        self.words: list[bytes] = []

    def save_chunks(self) -> Iterator[bytes]:
        sent = 0
        while True:
            while sent < len(self.words):
                sent += 1
                yield self.words[sent - 1]
            yield b""

    def load_chunk(self, chunk: memoryview) -> None:
        self.words.append(bytes(chunk))


@pytest.mark.parametrize("rehearse", [False, True])
def test_chunks_of_the_devices_own(rehearse: bool) -> None:
    source, destination = Streaming(), Streaming()
    source.words += [b"one", b"two"]
    with pair(source, destination) as (ours, theirs):
        rounds = []
        if rehearse:
            go_to(ours, PRE_COPY)
            rounds += read_all(ours)
            assert b"two" in b"".join(rounds)
            assert pending(ours) == 0
            source.words.append(b"three")
            more = read_all(ours)
            assert b"three" in b"".join(more)
            assert b"one" not in b"".join(more)
            rounds += more
        source.words.append(b"four")
        go_to(ours, STOP_AND_COPY)
        rounds += read_all(ours)
        go_to(theirs, RESUMING)
        for data in rounds:
            write_round(theirs, data)
        assert go_to(theirs, RUNNING) == 0
    assert destination.words == source.words
    assert len(source.words) == 3 + rehearse


# DIRTY_PAGES.


def dirty_pages(client: RawClient, flags: int, argsz: int = 8) -> int:
    return client.request(Command.DIRTY_PAGES, struct.pack("<II", argsz, flags)).error


def bitmap(
    client: RawClient,
    iova: int,
    length: int,
    page_size: int = PAGE,
    size: int | None = None,
    argsz: int | None = None,
) -> int | set[int]:
    """The dirty pages of a range; or the errno."""
    size = bitmap_size(length, page_size) if size is None else size
    argsz = 40 + size if argsz is None else argsz
    request = struct.pack("<IIQQQQ", argsz, 4, iova, length, page_size, size)
    reply = client.request(Command.DIRTY_PAGES, request)
    if reply.error:
        return reply.error
    assert reply.payload[:4] == struct.pack("<I", 40 + size)
    assert reply.payload[4:40] == request[4:40]
    assert len(reply.payload) == 40 + size
    pages = int.from_bytes(reply.payload[40:], "little")
    return {page for page in range(size * 8) if pages >> page & 1}


@contextmanager
def logged(card: Card) -> Iterator[RawClient]:
    """64 pages at 0x10000, and one at 0x800000 that only messages reach."""
    with session(card) as client:
        fd = memory_file(bytes(64 * PAGE))
        assert client.map_memory(0x10000, 64 * PAGE, fd) == 0
        os.close(fd)
        assert client.map_memory(0x80_0000, PAGE, None) == 0
        yield client


def test_what_the_device_wrote(card: Card) -> None:
    with logged(card) as client:
        card.dma.write(0x10000, b"before anything is logged")
        assert dirty_pages(client, 1) == 0
        assert dirty_pages(client, 1) == 0
        card.dma.write(0x10000 + 5 * PAGE, bytes(PAGE + 1))
        assert bitmap(client, 0x10000, 64 * PAGE) == {5, 6}
        assert bitmap(client, 0x10000, 64 * PAGE) == set()
        assert bitmap(client, 0x80_0000, PAGE) == set()
        card.dma.write(0x10000, b"x")
        assert dirty_pages(client, 2) == 0
        assert bitmap(client, 0x10000, 64 * PAGE) == EINVAL
        assert dirty_pages(client, 1) == 0
        assert bitmap(client, 0x10000, 64 * PAGE) == set()


@pytest.mark.parametrize("argsz", [8, 12, 40, 47])
def test_a_client_with_little_room_loses_nothing(card: Card, argsz: int) -> None:
    with logged(card) as client:
        dirty_pages(client, 1)
        card.dma.write(0x10000, b"x")
        request = struct.pack("<IIQQQQ", argsz, 4, 0x10000, 64 * PAGE, PAGE, 8)
        reply = client.request(Command.DIRTY_PAGES, request)
        whole = struct.pack("<I", 48) + request[4:] + b"\1" + bytes(7)
        assert (reply.error, reply.payload) == (0, whole[:argsz])
        assert bitmap(client, 0x10000, 64 * PAGE) == {0}


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        pytest.param(bytes(7), EINVAL, id="payload under 8"),
        pytest.param(struct.pack("<II", 7, 1), EINVAL, id="argsz under 8"),
        pytest.param(struct.pack("<II", 8, 0), EINVAL, id="no flag"),
        pytest.param(struct.pack("<II", 8, 3), EINVAL, id="start and stop"),
        pytest.param(struct.pack("<II", 8, 8), EINVAL, id="unknown flag"),
        pytest.param(struct.pack("<IIQQQQ", 48, 5, 0x10000, 64 * PAGE, PAGE, 8), EINVAL, id="start and get"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x10000, 64 * PAGE, PAGE, 8)[:39], EINVAL, id="payload under 40"),
        pytest.param(struct.pack("<IIQQQQ", 7, 4, 0x10000, 64 * PAGE, PAGE, 8), EINVAL, id="get, argsz under 8"),
        pytest.param(
            struct.pack("<IIQQQQ", (1 << 20) + 1, 4, 0x10000, 64 * PAGE, PAGE, 8), EINVAL, id="argsz over 1 MiB"
        ),
        pytest.param(struct.pack("<IIQQQQ", 64, 4, 0x10000, 64 * PAGE, PAGE, 16), EINVAL, id="bitmap too long"),
        pytest.param(struct.pack("<IIQQQQ", 64, 4, 0x10000, 64 * PAGE, PAGE, 0), EINVAL, id="bitmap too short"),
        pytest.param(
            struct.pack("<IIQQQQ", 1 << 20, 4, 0x10000, 64 * PAGE, PAGE, (1 << 64) - 1), EINVAL, id="bitmap of all"
        ),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x10000, 64 * PAGE, 8192, 8), EINVAL, id="other pages"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x10000, 64 * PAGE, 0, 8), EINVAL, id="page size 0"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x10000, PAGE - 1, PAGE, 8), EINVAL, id="less than a page"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x10001, PAGE, PAGE, 8), EINVAL, id="no page's beginning"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0x11000, PAGE, PAGE, 8), errno.ENOTSUP, id="inside a mapping"),
        pytest.param(struct.pack("<IIQQQQ", 48, 4, 0, PAGE, PAGE, 8), errno.ENOENT, id="not mapped"),
    ],
)
def test_dirty_pages_refused(card: Card, payload: bytes, error: int) -> None:
    with logged(card) as client:
        dirty_pages(client, 1)
        card.dma.write(0x10000, b"x")
        client.send(message(Command.DIRTY_PAGES, payload, message_id=0xBEEF))
        assert client.receive().header == Header(0xBEEF, Command.DIRTY_PAGES, 16, 0x21, error)
        client.send(message(Command.DIRTY_PAGES, payload, no_reply=True))
        assert client.is_silent()
        assert bitmap(client, 0x10000, 64 * PAGE) == {0}


def test_pages_of_no_power_of_two(card: Card) -> None:
    with memory_session(card) as client:
        client.negotiate({"migration": {"pgsize": 3000}})
        assert dirty_pages(client, 1) == EINVAL


def test_descriptors_are_closed(client: RawClient) -> None:
    before = open_files()
    fd = memory_file(bytes(PAGE))
    for flags in (1, 3):
        client.request(Command.DIRTY_PAGES, struct.pack("<II", 8, flags), (fd,))
    os.close(fd)
    assert leaked_since(before) == []


def test_unmap_reports_what_was_written(card: Card) -> None:
    with logged(card) as client:
        dirty_pages(client, 1)
        card.dma.write(0x10000 + 5 * PAGE, bytes(PAGE + 1))
        request = struct.pack("<IIQQQQ", 48, 1, 0x10000, 64 * PAGE, PAGE, 8)
        reply = client.request(Command.DMA_UNMAP, request)
        assert reply.payload == request + struct.pack("<Q", 0b1100000)
        assert card.dma.lookup(0x10000) is None


def test_the_whole_life_of_a_migration_that_is_called_off(client: RawClient, card: Card) -> None:
    for state in itertools.chain.from_iterable(zip([PRE_COPY, STOP_AND_COPY, RESUMING], [RUNNING] * 3, strict=True)):
        assert go_to(client, state) == 0
        if state in (PRE_COPY, STOP_AND_COPY):
            read_round(client)
    client.write(BAR0, 4, 3)
    client.read(BAR0, 0)
    assert card.history == [3]
