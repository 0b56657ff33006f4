"""The client for asyncio: the same commands, replies and rules, awaited.

    async with await AsyncClient.connect("/tmp/edu.sock") as edu:
        await edu.write32(RegionIndex.BAR0, 0x04, 0x1234_5678)
        assert await edu.read32(RegionIndex.BAR0, 0x04) == 0xEDCB_A987

It is a thin shell: bytes move by ``stream``, commands under way are in ``pending``, and what is said and made of the
replies is ``exchanges``. Any number of tasks may use one client; their commands are carried out in the order they were
sent. The server's DMA_READ and DMA_WRITE are answered whenever they come, as long as the event loop runs. A command
that is cancelled is still carried out; only its reply is dropped.

Where only latency counts, ``VfioUserClient`` is the one to use: a round trip there is one system call each way.
"""

from vfio_user.client.aio.connection import AsyncConnection
from vfio_user.client.aio.device import AsyncClient
from vfio_user.client.aio.irq import AsyncVector

__all__ = ["AsyncClient", "AsyncConnection", "AsyncVector"]
