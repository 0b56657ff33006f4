"""Our own client: it keeps every rule, and whatever a server does, it says so, in time, and leaks nothing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.testing.conformance.devices import Rich
from vfio_user.client.connection import Connection
from vfio_user.client.device import VfioUserClient
from vfio_user.errors import (
    CommandError,
    CommandTimeoutError,
    ConnectionClosedError,
    RemoteProtocolError,
    VersionError,
    VfioUserError,
)
from vfio_user.protocol.constants import IrqIndex
from vfio_user.testing.conformance.check import Outcome
from vfio_user.testing.conformance.client import MISBEHAVIOURS, Observation, RogueServer, Script
from vfio_user.testing.conformance.endpoint import DeviceEndpoint, SocketWire

_TIMEOUT = 0.15


@contextmanager
def rogue(*lines: str) -> Iterator[tuple[socket.socket, Observation]]:
    """A server on a thread, that misbehaves so; the client's end of its connection."""
    ours, theirs = socket.socketpair()
    device = Rich()
    endpoint = DeviceEndpoint(device)
    observation = Observation(device)
    wire = SocketWire(theirs)
    wire.pause = 0.0001
    server = RogueServer(wire, endpoint.connect(0.0), observation, Script.parse(lines))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield ours, observation
    finally:
        ours.close()
        thread.join(5)
        assert not thread.is_alive()
        endpoint.close()


def work(client: VfioUserClient) -> None:
    """Everything a client has to do with a device."""
    assert client.info.num_regions == 9
    config = client.region_read(7, 0, 64)
    assert len(config) == 64
    for index in range(9):
        client.region(index)
    client.region_write(7, 0x3C, b"\x0b")
    client.region_write(7, 0x3C, b"\x0c", posted=True)
    assert client.region_read(7, 0x3C, 1) == b"\x0c"
    client.write_multi([(7, 0x3C, b"\x01"), (7, 0x3C, b"\x02")])
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        assert client.irq_info(IrqIndex.MSIX).count == 20
        client.connect_irqs(IrqIndex.MSIX, [fd, None, fd])
    finally:
        os.close(fd)
    buffer = client.dma_alloc(4096)
    buffer[:4] = b"1234"
    client.reset()


def test_our_client_keeps_every_rule() -> None:
    with rogue() as (channel, observation), VfioUserClient(Connection(channel)) as client:
        work(client)
    outcomes = {result.check.name: result.outcome for result in observation.results()}
    assert [name for name, outcome in outcomes.items() if outcome in (Outcome.FAILED, Outcome.DIFFERS)] == []
    kept = sum(outcome is Outcome.PASSED for outcome in outcomes.values())
    assert kept >= 40


def negotiate(_client: VfioUserClient) -> object:
    return None


def get_info(client: VfioUserClient) -> object:
    return client.get_info()


def read_config(client: VfioUserClient) -> object:
    return client.region_read(7, 0, 64)


def read_word(client: VfioUserClient) -> object:
    return client.region(7).read32(0)


def write_word(client: VfioUserClient) -> None:
    client.region(7).write32(0x3C, 0)


def region_info(client: VfioUserClient) -> object:
    return client.region(2)


def irq_info(client: VfioUserClient) -> object:
    return client.irq_info(IrqIndex.MSIX)


def allocate(client: VfioUserClient) -> object:
    return client.dma_alloc(4096)


def multi(client: VfioUserClient) -> None:
    client.write_multi([(7, 0x3C, b"\x01")])


Broken = type[VfioUserError] | tuple[type[VfioUserError], ...]

#: What the server does, what the client does, and what it raises; None where it has to cope.
TABLE: list[tuple[str, Callable[[VfioUserClient], object], Broken | None]] = [
    ("DEVICE_GET_INFO late 0.02", get_info, None),
    ("DEVICE_GET_INFO late 0.4", get_info, CommandTimeoutError),
    ("DEVICE_GET_INFO silent", get_info, CommandTimeoutError),
    ("DEVICE_GET_INFO twice", get_info, None),
    *((f"DEVICE_GET_INFO split {place}", get_info, None) for place in (1, 8, 15, 16, 17, 31)),
    ("DEVICE_GET_INFO byte-by-byte", get_info, None),
    ("DEVICE_GET_INFO oversized 4", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO oversized 0x100000", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO truncated 1", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO truncated 16", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO promise 1", get_info, CommandTimeoutError),
    ("DEVICE_GET_INFO wrong-id", get_info, CommandTimeoutError),
    ("DEVICE_GET_INFO wrong-command", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO error EPERM", get_info, CommandError),
    ("DEVICE_GET_INFO error 0", get_info, CommandError),
    ("DEVICE_GET_INFO error 4000000000", get_info, CommandError),
    ("DEVICE_GET_INFO as-command", get_info, CommandTimeoutError),
    ("DEVICE_GET_INFO bad-type", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO bad-size 0", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO bad-size 15", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO bad-size 0xffffffff", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO patch 8:ffffffff", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO patch 12:ffffffff", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO fd", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO stray", get_info, None),
    ("DEVICE_GET_INFO ask DMA_READ", get_info, None),
    ("DEVICE_GET_INFO ask DMA_WRITE", get_info, None),
    ("DEVICE_GET_INFO ask 99", get_info, None),
    ("DEVICE_GET_INFO garbage 16", get_info, RemoteProtocolError),
    ("DEVICE_GET_INFO close", get_info, ConnectionClosedError),
    *((f"DEVICE_GET_INFO close-at {place}", get_info, ConnectionClosedError) for place in (1, 15, 16, 17, 31)),
    ("DEVICE_GET_INFO close-at 32", get_info, None),
    # VERSION, on which all depends.
    ("VERSION silent", negotiate, CommandTimeoutError),
    ("VERSION late 0.4", negotiate, CommandTimeoutError),
    ("VERSION error EINVAL", negotiate, CommandError),
    ("VERSION close", negotiate, ConnectionClosedError),
    ("VERSION close-at 20", negotiate, ConnectionClosedError),
    ("VERSION byte-by-byte", negotiate, None),
    ("VERSION patch 0:0100", negotiate, VersionError),
    ("VERSION patch 2:0100", negotiate, VersionError),
    ("VERSION truncated 1", negotiate, VersionError),
    ("VERSION text {", negotiate, VersionError),
    ("VERSION text []", negotiate, VersionError),
    ("VERSION text {}", get_info, None),
    ('VERSION text {"capabilities":{"max_msg_fds":"8"}}', negotiate, VersionError),
    ('VERSION text {"capabilities":{"max_data_xfer_size":1073741824}}', negotiate, VersionError),
    ('VERSION text {"capabilities":{"pgsizes":1}}', negotiate, VersionError),
    ('VERSION text {"capabilities":{"max_dma_maps":65536}}', negotiate, VersionError),
    ('VERSION text {"capabilities":{"unheard":"of"}}', get_info, None),
    ("VERSION oversized 0x10000", negotiate, RemoteProtocolError),
    ("VERSION fd", negotiate, RemoteProtocolError),
    ("VERSION wrong-command", negotiate, RemoteProtocolError),
    # The hot path has code of its own.
    ("REGION_READ silent", read_word, CommandTimeoutError),
    ("REGION_READ late 0.4", read_word, CommandTimeoutError),
    ("REGION_READ twice", read_word, None),
    *((f"REGION_READ split {place}", read_word, None) for place in (1, 16, 20, 35)),
    ("REGION_READ byte-by-byte", read_word, None),
    ("REGION_READ oversized 1", read_word, RemoteProtocolError),
    ("REGION_READ truncated 1", read_word, RemoteProtocolError),
    ("REGION_READ truncated 20", read_word, RemoteProtocolError),
    ("REGION_READ wrong-id", read_word, CommandTimeoutError),
    ("REGION_READ wrong-command", read_word, RemoteProtocolError),
    ("REGION_READ error EIO", read_word, CommandError),
    ("REGION_READ error 0", read_word, CommandError),
    ("REGION_READ bad-type", read_word, RemoteProtocolError),
    ("REGION_READ bad-size 3", read_word, RemoteProtocolError),
    ("REGION_READ patch 0:ff", read_word, RemoteProtocolError),
    ("REGION_READ patch 8:ff", read_word, RemoteProtocolError),
    ("REGION_READ patch 12:ff", read_word, RemoteProtocolError),
    ("REGION_READ fd", read_word, RemoteProtocolError),
    ("REGION_READ ask DMA_READ", read_word, None),
    ("REGION_READ ask 99", read_word, None),
    ("REGION_READ stray", read_word, None),
    ("REGION_READ close", read_word, ConnectionClosedError),
    ("REGION_READ close-at 33", read_word, ConnectionClosedError),
    ("REGION_READ truncated 4", read_config, RemoteProtocolError),
    ("REGION_READ patch 0:ff", read_config, RemoteProtocolError),
    ("REGION_WRITE silent", write_word, CommandTimeoutError),
    ("REGION_WRITE error EIO", write_word, CommandError),
    ("REGION_WRITE truncated 16", write_word, None),
    ("REGION_WRITE oversized 8", write_word, RemoteProtocolError),
    ("REGION_WRITE close", write_word, ConnectionClosedError),
    ("REGION_WRITE_MULTI patch 0:00", multi, RemoteProtocolError),
    ("REGION_WRITE_MULTI truncated 8", multi, RemoteProtocolError),
    # What a client must not believe.
    ("DEVICE_GET_REGION_INFO patch 8:05", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO patch 0:1f000000", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO patch 0:ffffffff", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO#2 patch 12:ff000000", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO#2 patch 36:20000000", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO#2 patch 40:ffffffff", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO#2 patch 48:0000000000000010", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO#2 no-fd", region_info, None),
    ("DEVICE_GET_REGION_INFO#1 fd", region_info, None),
    ("DEVICE_GET_REGION_INFO#2 fd", region_info, RemoteProtocolError),
    ("DEVICE_GET_REGION_INFO oversized 32", region_info, RemoteProtocolError),
    ("DEVICE_GET_IRQ_INFO patch 8:00", irq_info, RemoteProtocolError),
    ("DEVICE_GET_IRQ_INFO patch 12:ffffffff", irq_info, RemoteProtocolError),
    ("DEVICE_GET_IRQ_INFO truncated 4", irq_info, RemoteProtocolError),
    ("DMA_MAP error ENOSPC", allocate, CommandError),
    ("DMA_MAP silent", allocate, CommandTimeoutError),
    ("DMA_MAP oversized 4", allocate, RemoteProtocolError),
]


@pytest.mark.parametrize(("line", "act", "expected"), TABLE, ids=[f"{row[0]}, {row[1].__name__}" for row in TABLE])
def test_our_client(line: str, act: Callable[[VfioUserClient], object], expected: Broken | None) -> None:
    with rogue(line) as (channel, observation):
        raised: BaseException | None = None
        try:
            with VfioUserClient(Connection(channel, timeout=_TIMEOUT)) as client:
                act(client)
        except VfioUserError as exc:
            raised = exc
        if expected is None:
            assert raised is None
        else:
            assert isinstance(raised, expected), repr(raised)
    broken = [result for result in observation.results() if result.outcome is Outcome.FAILED]
    assert [(result.check.name, result.seen) for result in broken] == []


def test_every_misbehaviour_is_met() -> None:
    met = {line.split()[1] for line, _, _ in TABLE}
    assert met == set(MISBEHAVIOURS)


@pytest.mark.parametrize(
    "line", ["DEVICE_GET_INFO#1 silent", "DEVICE_GET_INFO#1 late 0.2", "DEVICE_GET_INFO#1 wrong-id"]
)
def test_our_client_goes_on_after_a_reply_that_did_not_come(line: str) -> None:
    with rogue(line) as (channel, _), VfioUserClient(Connection(channel, timeout=_TIMEOUT)) as client:
        with suppress(CommandTimeoutError):
            client.get_info()
        assert client.get_info().num_regions == 9
