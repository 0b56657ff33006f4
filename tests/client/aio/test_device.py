"""``AsyncClient`` against a real server in a process of its own, and against what a server may say."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.client.scripted import ScriptedServer, message
from tests.client.traveller import MEMORY_IOVA, MEMORY_SIZE, VECTORS
from vfio_user.client.aio import AsyncClient, AsyncConnection
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.negotiation import OFFER
from vfio_user.errors import CommandError, ConnectError, RemoteProtocolError, StateError
from vfio_user.protocol.constants import Command, IrqIndex, IrqInfoFlags, RegionIndex
from vfio_user.protocol.irq import IrqInfo

BAR0, CONFIG = RegionIndex.BAR0, RegionIndex.CONFIG
FOUR_VECTORS = IrqInfo(IrqIndex.MSIX, IrqInfoFlags.EVENTFD, 4).encode()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Path]:
    """Where a Traveller is served, by a process of its own."""
    program = (
        "from tests.client.traveller import Traveller; from vfio_user import Server, run_servers\n"
        f"server = Server(Traveller(), {str(tmp_path / 'socket')!r})\n"
        "print(flush=True); run_servers(server)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"\n"
            yield tmp_path / "socket"
        finally:
            server.kill()


def test_a_device(address: Path) -> None:
    async def drive() -> None:
        async with await AsyncClient.connect(address) as client:
            info = await client.get_info()
            assert (info.num_regions, info.num_irqs) == (9, 5)
            region, fd = await client.region_info(BAR0)
            assert (region.size, fd) == (4096, None)
            assert await client.read32(CONFIG, 0) == 0x7A7E_1234
            # Many tasks, one connection: every write is carried out before the read behind it.
            await asyncio.gather(*(client.write32(BAR0, 0, value) for value in range(100)))
            for value in range(100):
                await client.write32(BAR0, 0, value, posted=True)
            assert await client.read32(BAR0, 4) == 200
            assert len(await client.region_read(RegionIndex.BAR2, 0, 100_000)) == 100_000
            await client.region_write(RegionIndex.BAR2, 5, bytes(range(256)) * 300)
            assert await client.read(RegionIndex.BAR2, 6, 2) == 0x0201
            await client.reset()
            assert await client.read32(BAR0, 4) == 0
            with pytest.raises(CommandError) as caught:
                await client.read32(BAR0, 4096)
            assert caught.value.errno == errno.EINVAL

    asyncio.run(drive())


@pytest.mark.parametrize("mode", ["shared", "messages", "twin socket"])
def test_memory_and_interrupts(address: Path, mode: str) -> None:
    async def drive() -> None:
        offer = replace(OFFER, twin_socket=mode == "twin socket")
        async with await AsyncClient.connect(address, offer=offer) as client:
            with GuestMemory(MEMORY_SIZE) as memory:
                mapping = await client.dma_map(memory, MEMORY_IOVA, shared=mode == "shared")
                await client.write(CONFIG, 4, 2, 6)
                vectors = await client.enable_irqs(IrqIndex.MSIX)
                assert len(vectors) == VECTORS
                msix = await client.read(CONFIG, 0x34, 1)
                await client.write(CONFIG, msix + 2, 2, 0x8000)
                await client.write(BAR0, 0x10, 8, MEMORY_IOVA)
                await client.write32(BAR0, 0x18, 1)
                # The device answers none of these before it has interrupted, and writes memory meanwhile.
                async with asyncio.timeout(10):
                    fired = await asyncio.gather(*(vector.wait() for vector in vectors))
                    while await client.read(BAR0, 0x20, 8) < 50:
                        pass
                await client.write32(BAR0, 0x18, 0)
                while await client.read32(BAR0, 0x40):
                    pass
                entries = await client.read(BAR0, 0x20, 8)
                total = sum(fired) + sum(vector.poll() for vector in vectors)
                assert total == entries
                assert [memory.view[slot * 4096] for slot in range(50)] == list(range(50))
                served = client.connection.commands.statistics.served
                assert served == (0 if mode == "shared" else entries)
                assert client.connection.has_twin == (mode == "twin socket")
                await client.disable_irqs(IrqIndex.MSIX)
                with pytest.raises(StateError, match="is closed"):
                    vectors[0].poll()
                await client.dma_unmap(mapping)
                assert len(client.space) == 0

    asyncio.run(drive())


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectError):
        asyncio.run(AsyncClient.connect(tmp_path / "nobody"))


def test_what_a_server_may_not_say(server: ScriptedServer) -> None:
    async def drive() -> None:
        server.say_version()
        async with AsyncClient(await AsyncConnection.open(server.channel)) as client:
            server.say(message(1, Command.REGION_READ, bytes(16) + b"12345"))
            with pytest.raises(RemoteProtocolError, match="payload of 21 bytes"):
                await client.read32(BAR0, 0)
            server.say(message(2, Command.REGION_READ, bytes(16) + b"1234"))
            with pytest.raises(RemoteProtocolError, match="is about another access"):
                await client.read32(BAR0, 8)
            server.say(message(3, Command.DMA_MAP, flags=0x21, error=errno.ENOSPC))
            with GuestMemory(4096) as memory, pytest.raises(CommandError, match="refused DMA_MAP"):
                await client.dma_map(memory, 0)
            assert len(client.space) == 0
            server.say(message(4, Command.DEVICE_GET_IRQ_INFO, FOUR_VECTORS))
            with pytest.raises(StateError, match="the device has 4 MSIX vectors; 5 cannot be enabled"):
                await client.enable_irqs(IrqIndex.MSIX, 5)
            server.say(message(5, Command.DEVICE_GET_IRQ_INFO, FOUR_VECTORS))
            enabling = asyncio.ensure_future(client.enable_irqs(IrqIndex.MSIX, 2))
            while not any(heard.header.command == Command.DEVICE_SET_IRQS for heard in server.heard()):
                await asyncio.sleep(0)
            server.say(message(6, Command.DEVICE_SET_IRQS, flags=0x21, error=errno.EINVAL))
            with pytest.raises(CommandError, match="refused DEVICE_SET_IRQS of MSIX"):
                await enabling

    asyncio.run(drive())
