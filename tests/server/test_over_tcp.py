"""A device driven through every command over a connection that carries no file descriptors."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from tests.support.fds import close_all, memory_file, no_leaks
from tests.support.raw_client import RawClient, access, message
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.errors import DeviceError, LocalProtocolError, StateError
from vfio_user.protocol.constants import Command, IrqIndex, RegionFlags
from vfio_user.protocol.region import ACCESS
from vfio_user.protocol.version import Capabilities, VersionMessage
from vfio_user.regions import CallbackRegion, Doorbell, MemoryRegion, SharedMemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.transport.address import TcpAddress
from vfio_user.transport.connect import connect

FOUR = struct.Struct("<IIII")
REGION_INFO = struct.Struct("<IIIIQQ")
MIB = 1 << 20

#: Made once: a fixture's value outlives the search for leaked descriptors, and this one has two.
SHARED = SharedMemoryRegion(0x1000)

Connect = Callable[[], RawClient]


class Card(Device):
    """Memory in region 0, memory to map in 1, a doorbell in 2, much memory in 3; it counts its resets."""

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 4})
        self.resets = 0
        self.set_region(0, MemoryRegion(0x1000))
        self.set_region(1, SHARED)
        bell = CallbackRegion(0x100, write=lambda *_: None)
        bell.ioeventfds = [Doorbell(0, 4, None, lambda: None)]
        self.set_region(2, bell)
        self.set_region(3, MemoryRegion(MIB))

    def on_reset(self, kind: object) -> None:
        self.resets += 1


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture(params=["direct", "polled"])
def reach(request: pytest.FixtureRequest, card: Card) -> Iterator[Connect]:
    """Connects to a server: one that waits in the receive call itself, or one that is driven by this thread."""
    with Server(card, "tcp:0") as server:
        assert isinstance(server.address, TcpAddress)

        def new_client() -> RawClient:
            channel = connect(server.address)

            def work() -> None:
                # The bytes of either end take their time, however short.
                select.select([server.fileno(), channel.fileno()], [], [], 1)
                server.process()

            return RawClient(channel, work if request.param == "polled" else None)

        if request.param == "direct":
            server.start()
        yield new_client


@pytest.fixture
def client(reach: Connect) -> Iterator[RawClient]:
    with reach() as client:
        client.negotiate()
        yield client


def capabilities(payload: bytes) -> Capabilities:
    return Capabilities.parse(VersionMessage.decode(payload).capabilities)


@pytest.mark.parametrize("offered", [{"max_msg_fds": 16}, {"max_msg_fds": 0}, {}, {"twin_socket": {"supported": True}}])
def test_the_server_takes_no_descriptors_and_gives_none(reach: Connect, offered: dict[str, object]) -> None:
    with reach() as client:
        reply = client.negotiate(offered)
        said = capabilities(reply.payload)
        assert (said.max_msg_fds, said.twin_socket) == (0, False)
        assert reply.fds == []


def test_what_the_device_is(client: RawClient) -> None:
    assert FOUR.unpack(client.request(Command.DEVICE_GET_INFO, FOUR.pack(16, 0, 0, 0)).payload) == (16, 1, 9, 5)
    reply = client.request(Command.DEVICE_GET_IRQ_INFO, FOUR.pack(16, 0, IrqIndex.MSIX, 0))
    assert FOUR.unpack(reply.payload) == (16, 1, IrqIndex.MSIX, 4)


def test_nothing_is_mapped(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(4096, 0, 1, 0, 0, 0))
    readable = RegionFlags.READ | RegionFlags.WRITE
    assert REGION_INFO.unpack(reply.payload) == (32, readable, 1, 0, 0x1000, 0)
    # Its memory is reached by messages instead.
    client.write(1, 0x10, 0x1234)
    assert client.read(1, 0x10) == 0x1234


def test_no_eventfd_rings(client: RawClient) -> None:
    reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, FOUR.pack(4096, 0, 2, 0))
    assert (FOUR.unpack(reply.payload), reply.fds) == ((16, 0, 2, 0), [])
    client.write(2, 0, 1)


def test_interrupts_can_be_named_but_not_connected(client: RawClient, card: Card) -> None:
    fds = [os.eventfd(0)]
    with no_leaks(), pytest.raises(LocalProtocolError, match="1 file descriptors cannot be sent over this connection"):
        client.set_eventfds(IrqIndex.MSIX, fds)
    # Nothing had gone, so the stream is in step.
    assert client.set_eventfds(IrqIndex.MSIX, [], count=4) == 0
    assert not card.interrupts.trigger(IrqIndex.MSIX, 0)
    close_all(fds)


def test_guest_memory_is_mapped_for_messages_only(client: RawClient) -> None:
    file = memory_file(bytes(0x1000))
    with no_leaks(), pytest.raises(LocalProtocolError, match="only UNIX sockets carry them"):
        client.map_memory(0x8000, 0x1000, file)
    os.close(file)
    assert client.map_memory(0x8000, 0x1000, None) == 0
    # Access by mmap, by files: there is no descriptor for either.
    assert client.map_memory(0xA000, 0x1000, None, flags=3 | 4) == errno.EINVAL
    assert client.map_memory(0xA000, 0x1000, None, flags=3 | 8) == errno.EINVAL
    assert client.unmap_memory(0x8000, 0x1000) == 0
    assert client.unmap_memory(0x8000, 0x1000) == errno.ENOENT


def test_accesses_of_every_kind(client: RawClient) -> None:
    for size in (1, 2, 4, 8):
        client.write(0, 0x10, 0x1122_3344_5566_7788 & (1 << 8 * size) - 1, size)
    assert client.read(0, 0x10, 8) == 0x1122_3344_5566_7788
    for value in range(1000):
        client.write(0, 0x20, value, posted=True)
    assert client.read(0, 0x20) == 999
    writes = (
        struct.pack("<Q", 2) + struct.pack("<QII8s", 0x30, 0, 4, b"abcd") + struct.pack("<QII8s", 0x34, 0, 2, b"ef")
    )
    assert client.request(Command.REGION_WRITE_MULTI, writes).payload == struct.pack("<Q", 2)
    assert client.read(0, 0x34, 2) == int.from_bytes(b"ef", "little")
    assert client.read_error(0, 0x1000) == errno.EINVAL


def test_reset(client: RawClient, card: Card) -> None:
    assert client.request(Command.DEVICE_RESET).error == 0
    assert card.resets == 1


def test_the_largest_transfers_go_in_pieces_both_ways(client: RawClient) -> None:
    data = os.urandom(MIB)
    assert client.request(Command.REGION_WRITE, access(0, 3, data)).payload == ACCESS.pack(0, 3, MIB)
    # Several replies at once: more than the kernel holds for a client that does not read.
    for _ in range(8):
        client.command(Command.REGION_READ, ACCESS.pack(0, 3, MIB))
    for _ in range(8):
        assert client.receive().payload[ACCESS.size :] == data


def test_a_message_byte_by_byte(client: RawClient) -> None:
    for byte in message(Command.REGION_WRITE, access(0x40, 0, b"wxyz"), message_id=7):
        client.send(bytes([byte]))
    assert client.receive().header.message_id == 7
    assert client.read(0, 0x40) == int.from_bytes(b"wxyz", "little")


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_the_next_client_is_served_after_one_that(reach: Connect, how: str) -> None:
    first = reach()
    first.negotiate()
    first.write(0, 0, 77)
    if how == "resets":
        assert isinstance(first.channel, socket.socket)
        first.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.command(Command.DEVICE_RESET)
    first.close()
    with reach() as second:
        second.negotiate()
        assert second.read(0, 0) == 77


def test_a_unix_client_of_the_same_device_is_offered_what_a_tcp_one_is_not(card: Card, tmp_path: Path) -> None:
    with Server(card, tmp_path / "s") as server, RawClient(connect(tmp_path / "s"), server.process) as client:
        assert capabilities(client.negotiate().payload).max_msg_fds > 0
        reply = client.request(Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(4096, 0, 1, 0, 0, 0))
        assert len(reply.fds) == 1
        close_all(reply.fds)
        reply = client.request(Command.DEVICE_GET_REGION_IO_FDS, FOUR.pack(4096, 0, 2, 0))
        assert len(reply.fds) == 1
        close_all(reply.fds)


def test_who_is_connected_is_in_the_log(card: Card, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vfio_user.server")
    with Server(card, "tcp:0") as server, connect(server.address) as client:
        select.select([server.fileno()], [], [], 5)
        server.process()
        host, port = client.getsockname()
        assert caplog.messages == [f"{server.address}: client (tcp:{host}:{port}) connected"]


def test_nagle_waits_for_nobody(reach: Connect, card: Card) -> None:
    """Posted writes and a read behind them: with Nagle's algorithm and delayed acknowledgements, 40 ms each."""
    with reach() as client:
        client.negotiate()
        assert isinstance(client.channel, socket.socket)
        assert client.channel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for value in range(200):
            client.write(0, 0, value, posted=True)
            client.write(0, 4, value, posted=True)
            assert client.read(0, 0) == value


# Our own client.


def test_our_client_drives_it(card: Card) -> None:
    with Server(card, "tcp:0").start() as server, VfioUserClient.connect(server.address) as client:
        assert (client.info.num_regions, client.info.num_irqs) == (9, 5)
        client.region_write(0, 0x10, b"some bytes")
        assert client.region_read(0, 0x10, 10) == b"some bytes"
        assert client.region(1).info.flags & RegionFlags.MMAP == 0
        client.region(1).write(0, 4, 0x1234)
        assert client.region(1).read(0, 4) == 0x1234
        client.write_multi([(0, 0x20, b"ab"), (0, 0x22, b"cd")])
        assert client.region_read(0, 0x20, 4) == b"abcd"
        assert client.irq_info(IrqIndex.MSIX).count == 4
        with pytest.raises(StateError, match="the connection carries none: it cannot get an eventfd"):
            client.irq(IrqIndex.MSIX).enable(1)
        client.reset()
        assert card.resets == 1
        buffer = client.dma_alloc(0x1000)
        assert len(card.dma) == 1
        client.dma_unmap_all()
        assert len(card.dma) == 0
        assert buffer.size == 0x1000


# DMA: all of it by messages, since no descriptor of the client's memory can be had.


class Copier(Device):
    """Copies ``count`` bytes from one IOVA to another, when the second is written; each word of its region is one.

    Attributes:
        done: what came of each copy, as far as it is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = {0: 0, 8: 0, 16: 0}
        self.done: Queue[str] = Queue()
        self.set_region(0, CallbackRegion(24, write=self.write))

    def write(self, offset: int, size: int, value: int) -> None:
        self.words[offset] = value
        if offset == 16:
            # Behind the reply: the client answers DMA only when it waits for nothing it would have to answer first.
            self.call_soon(self.copy, self.words[0], self.words[8], value)

    def copy(self, count: int, source: int, target: int) -> None:
        try:
            self.dma.write(target, self.dma.read(source, count))
        except DeviceError as exc:
            self.done.put(errno.errorcode[exc.errno or 0])
        else:
            self.done.put("copied")


def copied(client: VfioUserClient, copier: Copier, count: int, source: int, target: int, *, posted: bool) -> str:
    """What a copy comes to, the client serving the device's DMA meanwhile."""
    registers = client.region(0)
    registers.write64(0, count, posted=posted)
    registers.write64(8, source, posted=posted)
    registers.write64(16, target, posted=posted)
    while copier.done.empty():
        client.connection.process(0.01)
    return copier.done.get()


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize("count", [1, 4096, MIB])
def test_a_device_reads_and_writes_guest_memory_by_messages(posted: bool, count: int) -> None:
    copier = Copier()
    with (
        Server(copier, "tcp:127.0.0.1:0", strict=True).start() as server,
        VfioUserClient.connect(server.address) as client,
    ):
        buffer = client.dma_alloc(2 * MIB)
        data = os.urandom(count)
        buffer[:count] = data
        before = client.connection.statistics.served
        # Neither place is aligned, and the second piece follows the first in one mapping.
        assert copied(client, copier, count, buffer.iova, buffer.iova + MIB - 1, posted=posted) == "copied"
        assert buffer[MIB - 1 : MIB - 1 + count] == data
        assert buffer[MIB - 1 + count : MIB + count] == b"\0"
        assert client.connection.statistics.served - before >= 2
        assert client.connection.statistics.refused == 0


def test_dma_over_tcp_has_the_rights_of_its_mapping() -> None:
    copier = Copier()
    with (
        Server(copier, "tcp:127.0.0.1:0", strict=True).start() as server,
        VfioUserClient.connect(server.address) as client,
        GuestMemory(0x3000) as memory,
    ):
        client.dma_map(memory, 0x10000, size=0x1000, writable=False, shared=False)
        client.dma_map(memory, 0x11000, offset=0x1000, size=0x1000, readable=False, shared=False)
        memory.view[:4] = b"data"
        assert copied(client, copier, 4, 0x10000, 0x11000, posted=False) == "copied"
        assert memory.view[0x1000:0x1004].tobytes() == b"data"
        assert copied(client, copier, 4, 0x11000, 0x11000, posted=False) == "EACCES"
        assert copied(client, copier, 4, 0x10000, 0x10000, posted=False) == "EACCES"
        assert copied(client, copier, 4, 0x10000, 0x12000, posted=False) == "ENOENT"
        assert copied(client, copier, 0x1001, 0x10000, 0x11000, posted=False) in ("EACCES", "ENOENT")
        # Nothing of that was asked of the client: the device knows what is mapped.
        assert client.connection.statistics.refused == 0
