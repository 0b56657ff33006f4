"""One method for each command: against our server over a real socket and in process, and against odd servers."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.scripted import Answering, Heard, ScriptedServer, open_file
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMapping, GuestMemory
from vfio_user.errors import CommandError, RemoteProtocolError, StateError
from vfio_user.protocol.constants import (
    Command,
    DeviceFlags,
    DmaMapFlags,
    IrqIndex,
    IrqSetFlags,
    RegionFlags,
    RegionIndex,
)
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.dma import DmaMap, DmaUnmap
from vfio_user.protocol.irq import IrqInfo, SetIrqs
from vfio_user.protocol.region import ACCESS, RegionInfo, RegionInfoRequest, RegionWriteMulti
from vfio_user.regions import CallbackRegion, MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.server import Server
from vfio_user.testing.in_process import DeviceUnderTest


class Board(Device):
    """Memory in region 0, one that refuses in region 1, and twenty MSI-X vectors."""

    flags = DeviceFlags.PCI | DeviceFlags.RESET

    def __init__(self) -> None:
        super().__init__(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 20})
        self.memory = MemoryRegion(200_000)
        self.set_region(0, self.memory)
        self.set_region(1, CallbackRegion(16, read=lambda _offset, _size: 7))
        self.resets = 0

    def on_reset(self, kind: object) -> None:
        self.resets += 1


@pytest.fixture(params=["in process", "socket"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[VfioUserClient, Board]]:
    board = Board()
    if request.param == "in process":
        with DeviceUnderTest(board) as under_test:
            yield under_test.client, board
    else:
        path = tmp_path / "board.sock"
        with Server(board, path, strict=True).start(), VfioUserClient.connect(path) as client:
            yield client, board


def test_what_it_is(pair: tuple[VfioUserClient, Board]) -> None:
    client, _ = pair
    assert client.get_info() == client.info == DeviceInfo(DeviceFlags.PCI | DeviceFlags.RESET, 9, 5)
    assert client.can_reset
    info, fd = client.region_info(0)
    assert (info.size, info.flags, fd) == (200_000, RegionFlags.READ | RegionFlags.WRITE, None)
    assert client.region(RegionIndex.VGA).size == 0
    assert client.region(0) is client.region(0)
    assert client.irq_info(IrqIndex.MSIX).count == client.irq(IrqIndex.MSIX).count == 20
    with pytest.raises(CommandError, match="DEVICE_GET_REGION_INFO of MIGRATION"):
        client.region_info(9)
    with pytest.raises(CommandError, match="DEVICE_GET_IRQ_INFO of interrupt 5"):
        client.irq_info(5)


def test_regions(pair: tuple[VfioUserClient, Board]) -> None:
    client, board = pair
    region = client.region(0)
    for size in (1, 2, 4, 8):
        region.write(8 * size, size, 256**size - 3)
        assert region.read(8 * size, size) == 256**size - 3
    data = bytes(number * 7 & 0xFF for number in range(100_001))
    region.write_bytes(3, data)
    assert bytes(board.memory.memory[3 : 3 + len(data)]) == data
    assert region.read_bytes(3, len(data)) == data
    assert client.region_read(0, 5, 0) == b""
    client.region_write(0, 0, memoryview(data), posted=True)
    assert client.region_read(0, 0, len(data)) == data
    region.write32(0, 0x1234, posted=True)
    assert region.read32(0) == 0x1234
    with pytest.raises(CommandError) as caught:
        client.region(1).write8(0, 0)
    assert caught.value.errno == errno.EINVAL
    client.region(1).write8(0, 0, posted=True)
    assert client.region(1).read32(0) == 7
    assert repr(region) == "<BAR0: 0x30d40 bytes>"


def test_many_writes_at_once(pair: tuple[VfioUserClient, Board]) -> None:
    client, board = pair
    writes = [(0, 8 * number, (number & 0xFF).to_bytes(1 + number % 8, "little")) for number in range(450)]
    client.write_multi(writes)
    assert all(board.memory.memory[8 * number] == number & 0xFF for number in range(450))
    client.write_multi([(0, 0, b"\xaa")], posted=True)
    assert client.region(0).read8(0) == 0xAA
    with pytest.raises(RemoteProtocolError, match="1 of 3 were done; the next one was refused"):
        client.write_multi([(0, 0, b"\1"), (1, 0, b"\2"), (0, 1, b"\3")])
    assert board.memory.memory[:2] == b"\1\0"
    with pytest.raises(CommandError):
        client.write_multi([(1, 0, b"\2")])


def test_interrupts(pair: tuple[VfioUserClient, Board]) -> None:
    client, board = pair
    irq = client.irq(IrqIndex.MSIX)
    vectors = irq.enable()
    assert len(vectors) == 20
    board.call_soon(board.interrupts.trigger, IrqIndex.MSIX, 17)
    assert irq[17].wait(5) == 1
    irq.trigger(3)
    assert irq[3].poll() == 1
    assert [vector.number for vector in irq if vector.is_pending] == []
    irq.disable()
    irq.disable()


def test_memory(pair: tuple[VfioUserClient, Board]) -> None:
    client, _ = pair
    with GuestMemory(0x4000) as memory:
        mapping = client.dma_map(memory, 0x10_0000, offset=0x1000, size=0x2000, writable=False)
        client.dma_map(memory, 0x20_0000, shared=False)
        memory.view[0x1000:0x1004] = b"abcd"
        assert client.space.read(0x10_0000, 4) == b"abcd"
        with pytest.raises(StateError, match="overlaps"):
            client.dma_map(memory, 0x10_0800, size=0x1000)
        for offset, size in ((-1, 1), (0, 0x4001), (0x4000, None)):
            with pytest.raises(ValueError, match="is no part of a memory of 0x4000 bytes"):
                client.dma_map(memory, 0, offset=offset, size=size)
        client.dma_unmap(mapping)
        assert client.space.find(0x10_0000) is None
        with pytest.raises(CommandError) as caught:
            client.dma_unmap(mapping)
        assert caught.value.errno == errno.ENOENT
        buffer = client.dma_alloc(100, align=64)
        other = client.dma_alloc(100, align=64)
        assert (buffer.iova, other.iova - buffer.iova) == (16 << 20, 128)
        with pytest.raises(ValueError, match="not aligned"):
            client.dma_alloc(1, align=1 << 30)
        other[:] = bytes(range(100))
        other.free()
        assert client.dma_alloc(100, align=64)[:] == bytes(100), "what another wrote there shows"
        client.dma_unmap_all()
        assert len(client.space) == 0
        assert client.dma_alloc(1).iova == 16 << 20


def test_the_device_reads_what_the_driver_wrote(pair: tuple[VfioUserClient, Board]) -> None:
    client, board = pair
    buffer = client.dma_alloc(4096)
    buffer[0:4] = b"abcd"
    done = client.irq(IrqIndex.MSIX).enable(1)[0]

    def copy() -> None:
        board.dma.write(buffer.iova + 4, board.dma.read(buffer.iova, 4))
        board.interrupts.trigger(IrqIndex.MSIX, 0)

    board.call_soon(copy)
    done.wait(5)
    assert buffer[0:8] == b"abcdabcd"


def test_reset(pair: tuple[VfioUserClient, Board]) -> None:
    client, board = pair
    client.reset()
    assert board.resets == 1


# Odd servers.


def counted(value: Any) -> Any:
    return lambda _heard: value


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (struct.pack("<IIII", 16, 3, 101, 5), "claims 101 regions"),
        (struct.pack("<IIII", 16, 3, 9, 51), "and 51 kinds of interrupt; at most 100 and 50"),
        (bytes(15), "shorter than the 16"),
        (bytes(20), "payload of 20 bytes"),
    ],
)
def test_a_device_that_is_too_much(answering: Answering, reply: bytes, why: str) -> None:
    answering.answers[Command.DEVICE_GET_INFO] = counted(reply)
    with answering.client() as client, pytest.raises(RemoteProtocolError, match=why):
        client.get_info()


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (RegionInfo(1), "of BAR0 was answered for BAR1"),
        (struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0), "argsz 31; a description has 32 to 65536"),
        (struct.pack("<IIIIQQ", 65537, 0, 0, 0, 0, 0), "argsz 65537"),
        (struct.pack("<IIIIQQ", 32, 8, 0, 32, 0, 0), "a capability at 0x20 does not follow 0x0 inside 32 bytes"),
        (bytes(31), "shorter than the 32"),
        (bytes(33), "payload of 33 bytes; it has 32 at most"),
    ],
)
def test_descriptions_that_cannot_be(answering: Answering, info: RegionInfo | bytes, why: str) -> None:
    payload = info if isinstance(info, bytes) else info.encode(32)[0]
    with answering.client() as client, open_file() as fd:
        answering.answers[Command.DEVICE_GET_REGION_INFO] = counted((payload, [fd]))
        with pytest.raises(RemoteProtocolError, match=why):
            client.region_info(0)


def test_a_description_that_grows_with_the_room_it_gets(answering: Answering) -> None:
    def grow(heard: Heard) -> bytes:
        return struct.pack("<IIIIQQ", RegionInfoRequest.decode(heard.payload).argsz + 16, 0, 0, 0, 0, 0)

    answering.answers[Command.DEVICE_GET_REGION_INFO] = grow
    with answering.client() as client, pytest.raises(RemoteProtocolError, match="now asks for 64 bytes"):
        client.region_info(0)
    assert len(answering.heard) == 2


@pytest.mark.parametrize("info", [IrqInfo(1, 1, 5), IrqInfo(2, 1, 2049)])  # type: ignore[arg-type]
def test_interrupts_that_cannot_be(answering: Answering, info: IrqInfo) -> None:
    answering.answers[Command.DEVICE_GET_IRQ_INFO] = counted(info.encode())
    with answering.client() as client, pytest.raises(RemoteProtocolError, match="there can be 2048 at most"):
        client.irq_info(2)


def test_transfers_keep_to_the_servers_limit(answering: Answering) -> None:
    answering.answers[Command.REGION_READ] = lambda heard: (
        heard.payload + b"x" * int.from_bytes(heard.payload[12:], "little")
    )
    with answering.client() as client:
        assert client.region_read(0, 0x10, 10_000) == b"x" * 10_000
        client.region_write(0, 0x10, bytes(10_000))
        accesses = [ACCESS.unpack_from(heard.payload) for heard in answering.heard]
        assert accesses == [(0x10, 0, 4096), (0x1010, 0, 4096), (0x2010, 0, 1808)] * 2


@pytest.mark.parametrize("reply", [b"", bytes(16), ACCESS.pack(0, 0, 9) + bytes(8)])
def test_reads_that_bring_something_else(answering: Answering, reply: bytes) -> None:
    answering.answers[Command.REGION_READ] = counted(reply)
    with answering.client() as client, pytest.raises(RemoteProtocolError, match="is about another access, or has"):
        client.region_read(0, 0, 9)


def test_writes_go_one_by_one_where_many_cannot_go_at_once(answering: Answering) -> None:
    with answering.client() as client:
        client.write_multi([(0, 0, b"ab"), (1, 8, b"c")])
        client.write_multi([(0, 0, b"ab")], posted=True)
        assert [(heard.header.command, heard.header.flags) for heard in answering.heard] == [
            (Command.REGION_WRITE, 0),
            (Command.REGION_WRITE, 0),
            (Command.REGION_WRITE, 0x10),
        ]


def test_many_writes_go_as_many_as_fit(server: ScriptedServer) -> None:
    with server.client(timeout=0.01) as client:
        client.write_multi([(3, 4, b"abc")] * 201, posted=True)
        first, second = server.heard()
        assert [len(RegionWriteMulti.decode(heard.payload).writes) for heard in (first, second)] == [200, 1]
        entry = RegionWriteMulti.decode(second.payload).writes[0]
        assert (entry.offset, entry.region, entry.count, entry.field) == (4, 3, 3, b"abc\0\0\0\0\0")


def test_eventfds_keep_to_the_servers_limit(answering: Answering) -> None:
    with answering.client() as client, open_file() as fd:
        client.connect_irqs(2, [fd] * 10 + [None] * 12 + [fd], start=1)
        sent = [(SetIrqs.decode(heard.payload), heard.fds) for heard in answering.heard]
        assert [(request.start, request.count, fds) for request, fds in sent] == [
            (1, 8, 8),
            (9, 2, 2),
            (11, 12, 0),
            (23, 1, 1),
        ]
        assert {request.flags for request, _ in sent} == {IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_TRIGGER}


def test_a_server_that_takes_no_descriptors() -> None:
    server = Answering(b'{"capabilities":{"max_msg_fds":0}}\0')
    with server.client() as client:
        with pytest.raises(StateError, match="max_msg_fds 0"):
            client.connect_irqs(2, [0])
        client.connect_irqs(2, [None])
        client.dma_alloc(1)
        assert [(heard.header.command, heard.fds) for heard in server.heard] == [
            (Command.DEVICE_SET_IRQS, 0),
            (Command.DMA_MAP, 0),
        ]
    server.close()


def test_mappings_over_the_wire(answering: Answering) -> None:
    with answering.client(share_memory=False) as client, GuestMemory(0x2000) as memory:
        client.dma_map(memory, 0x5000, offset=0x1000, writable=False)
        client.dma_map(memory, 0x8000, offset=0x1000, readable=False, shared=False)
        client.dma_alloc(1)
        maps = [(DmaMap.decode(heard.payload), heard.fds) for heard in answering.heard]
        assert maps == [
            (DmaMap(1, 0x1000, 0x5000, 0x1000), 1),  # type: ignore[arg-type]
            (DmaMap(2, 0, 0x8000, 0x1000), 0),  # type: ignore[arg-type]
            (DmaMap(3, 0, 16 << 20, 16 << 20), 0),  # type: ignore[arg-type]
        ]
        answering.heard.clear()
        client.dma_unmap_all()
        assert DmaUnmap.decode(answering.heard[0].payload) == DmaUnmap(2, 0, 0)  # type: ignore[arg-type]


def test_a_mapping_the_server_refuses_is_none(answering: Answering) -> None:
    answering.answers[Command.DMA_MAP] = counted(errno.ENOSPC)
    with answering.client() as client:
        with pytest.raises(CommandError, match=r"DMA_MAP of \[0x1000000, 0x2000000\)"):
            client.dma_alloc(1)
        assert len(client.space) == 0


def test_unmapping_what_was_logged(answering: Answering) -> None:
    def unmap(heard: Heard) -> bytes:
        assert heard.payload == struct.pack("<IIQQQQ", 48, 1, 0x10000, 0x3000, 4096, 8)
        return heard.payload + b"\5" + bytes(7)

    answering.answers[Command.DMA_UNMAP] = unmap
    with answering.client() as client, GuestMemory(0x3000) as memory:
        mapping = client.dma_map(memory, 0x10000)
        assert list(client.dma_unmap_logged(mapping)) == [(0x10000, 0x1000), (0x12000, 0x1000)]
        assert len(client.space) == 0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"", "is about another range, or has 0 bytes"),
        (struct.pack("<IIQQQQQ", 48, 1, 0x20000, 0x1000, 4096, 8, 0), "is about another range"),
        (struct.pack("<IIQQQQ", 48, 1, 0x10000, 0x1000, 4096, 8), "dirty bitmap of 0 bytes"),
        (bytes(49), "payload of 49 bytes; it has 48 at most"),
    ],
)
def test_bitmaps_of_an_unmap_that_make_no_sense(answering: Answering, reply: bytes, why: str) -> None:
    answering.answers[Command.DMA_UNMAP] = lambda _: reply
    with answering.client() as client, GuestMemory(0x1000) as memory:
        mapping = client.dma_map(memory, 0x10000)
        with pytest.raises(RemoteProtocolError, match=why):
            client.dma_unmap_logged(mapping)


def test_mapping_like_another_client(answering: Answering) -> None:
    with answering.client() as client, GuestMemory(0x3000) as memory:
        client.map_like(GuestMapping(0x10000, 0x1000, memory, 0x2000, True, False, True))
        client.map_like(GuestMapping(0x20000, 0x1000, memory, 0, True, True, False))
        assert [(DmaMap.decode(heard.payload), heard.fds) for heard in answering.heard] == [
            (DmaMap(DmaMapFlags.READ, 0x2000, 0x10000, 0x1000), 1),
            (DmaMap(DmaMapFlags.READ | DmaMapFlags.WRITE, 0, 0x20000, 0x1000), 0),
        ]
        assert [mapping.iova for mapping in client.space] == [0x10000, 0x20000]
        assert client.space.overlap(0x20FFF, 0x30000) is client.space.find(0x20000)
        assert client.space.overlap(0x21000, 0x30000) is None


def test_memory_of_its_own_is_not_given_up(answering: Answering) -> None:
    with answering.client() as client, DeviceUnderTest(Device()) as other:
        mine, theirs = client.dma_alloc(16), other.client.dma_alloc(16)
        client.take_memory_of(other.client)
        mine[:] = theirs[:] = bytes(range(16))
        other.client.close()
        with pytest.raises(ValueError, match="released"):
            _ = theirs[:]
        assert mine[:] == bytes(range(16))


def test_closing_gives_everything_back(answering: Answering) -> None:
    answering.answers[Command.DEVICE_GET_IRQ_INFO] = counted(IrqInfo(2, 1, 4).encode())  # type: ignore[arg-type]
    client = answering.client()
    client.irq(2).enable()
    client.dma_alloc(1)
    client.close()
    client.close()
    assert client.irq(2).vectors == []


def test_the_servers_half_forgets_the_client() -> None:
    board = Board()
    with DeviceUnderTest(board) as under_test:
        under_test.client.irq(IrqIndex.MSIX).enable()
        under_test.client.dma_alloc(1)
        assert len(board.dma) == 1
    assert len(board.dma) == 0


def test_descriptors_survive_what_they_were_sent_with(answering: Answering) -> None:
    with answering.client() as client, open_file() as fd:
        client.connect_irqs(2, [fd])
        os.fstat(fd)
