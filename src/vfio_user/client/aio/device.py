"""``AsyncClient``: one device, driven by its protocol - a coroutine for each command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vfio_user.client import exchanges
from vfio_user.client.aio.connection import AsyncConnection
from vfio_user.client.aio.irq import AsyncVector
from vfio_user.client.guest_memory import GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.client.negotiation import OFFER
from vfio_user.errors import StateError
from vfio_user.protocol.constants import MAX_FDS_PER_MESSAGE, IrqIndex, IrqSetFlags
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.irq import IrqInfo
from vfio_user.protocol.region import RegionInfo
from vfio_user.protocol.version import Capabilities
from vfio_user.transport.address import Address
from vfio_user.transport.connect import connect

__all__ = ["AsyncClient"]

T = TypeVar("T")

#: Bytes of data in one region access; see ``VfioUserClient``.
_MAX_ACCESS = 32 * 1024


class AsyncClient:
    """A device, driven by its protocol: a method for each command. See the module.

    Args:
        connection: closed with this.

    Attributes:
        connection: for everything below messages.
        space: what of memory the device sees.

    Every method that sends a command raises CommandError (the server refused), CommandTimeoutError, RemoteProtocolError
    (its reply makes no sense) or ConnectionClosedError.

    Ownership: ``close`` it, or use it in an ``async with`` statement; eventfds go with it. Memory stays the caller's.

    Threading: the event loop's.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.space = GuestAddressSpace()
        connection.commands.dma = self.space
        self._vectors: dict[int, list[AsyncVector]] = {}
        server = connection.agreement.server
        self._max_access = min(server.max_data_xfer_size, connection.offer.max_data_xfer_size, _MAX_ACCESS)
        self._max_fds = min(server.max_msg_fds, MAX_FDS_PER_MESSAGE) if connection.carries_fds else 0

    @classmethod
    async def connect(cls, address: str | Path | Address, *, timeout: float = 5.0, offer: Capabilities = OFFER) -> Self:
        """Connects to a server and negotiates; see ``VfioUserClient.connect``."""
        channel = await asyncio.to_thread(connect, address, timeout=timeout)
        return cls(await AsyncConnection.open(channel, timeout=timeout, offer=offer))

    async def run(self, exchange: exchanges.Exchange[T]) -> T:
        """Carries out an exchange, message by message."""
        try:
            ask = next(exchange)
            while True:
                command, payload, fds, max_payload, max_fds, what = ask
                reply = await self.connection.request(
                    command, payload, fds=fds, max_payload=max_payload, max_fds=max_fds, request=what
                )
                ask = exchange.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            exchange.close()

    # The device and its regions.

    async def get_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        return await self.run(exchanges.device_info())

    async def reset(self) -> None:
        """DEVICE_RESET."""
        await self.run(exchanges.reset())

    async def region_info(self, index: int) -> tuple[RegionInfo, int | None]:
        """DEVICE_GET_REGION_INFO: the description, and the descriptor for mapping, which is the caller's to close."""
        return await self.run(exchanges.region_info(index))

    async def region_read(self, index: int, offset: int, count: int) -> bytes:
        """REGION_READ of any number of bytes."""
        return await self.run(exchanges.region_read(index, offset, count, self._max_access))

    async def region_write(self, index: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        """REGION_WRITE of any number of bytes; ``posted``, without hearing whether it failed."""
        if not posted:
            await self.run(exchanges.region_write(index, offset, data, self._max_access))
            return
        for ask in exchanges.region_write(index, offset, data, self._max_access):
            await self.connection.send_posted(ask.command, ask.payload)

    async def read(self, index: int, offset: int, size: int) -> int:
        """REGION_READ of an integer of 1, 2, 4 or 8 bytes."""
        return int.from_bytes(await self.region_read(index, offset, size), "little")

    async def write(self, index: int, offset: int, size: int, value: int, *, posted: bool = False) -> None:
        """REGION_WRITE of an integer of 1, 2, 4 or 8 bytes."""
        await self.region_write(index, offset, value.to_bytes(size, "little"), posted=posted)

    async def read32(self, index: int, offset: int) -> int:
        """Reads four bytes."""
        return await self.read(index, offset, 4)

    async def write32(self, index: int, offset: int, value: int, *, posted: bool = False) -> None:
        """Writes four bytes."""
        await self.write(index, offset, 4, value, posted=posted)

    # Interrupts.

    async def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        return await self.run(exchanges.irq_info(index))

    async def enable_irqs(self, index: IrqIndex, count: int | None = None) -> list[AsyncVector]:
        """Gives vectors an eventfd each, and the eventfds to the device; replaces what was enabled before.

        Raises:
            StateError: the device has not as many vectors of that kind.
        """
        has = (await self.irq_info(index)).count
        wanted = has if count is None else count
        if not 1 <= wanted <= has:
            raise StateError(f"the device has {has} {exchanges.irq_name(index)} vectors; {wanted} cannot be enabled")
        await self.disable_irqs(index)
        vectors = self._vectors[index] = [AsyncVector(number) for number in range(wanted)]
        try:
            await self.run(exchanges.connect_irqs(index, [vector.fd for vector in vectors], 0, self._max_fds))
        except BaseException:
            self._close_vectors(index)
            raise
        return vectors

    async def disable_irqs(self, index: IrqIndex) -> None:
        """Takes all of that kind back from the device, and closes the eventfds."""
        if index in self._vectors:
            try:
                flags = IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_TRIGGER
                await self.run(exchanges.set_irqs(index, flags, 0, 0))
            finally:
                self._close_vectors(index)

    def _close_vectors(self, index: int) -> None:
        for vector in self._vectors.pop(index, []):
            vector.close()

    # Memory.

    async def dma_map(self, memory: GuestMemory, iova: int, *, shared: bool = True) -> GuestMapping:
        """DMA_MAP of a whole memory, which the device may read and write; see ``VfioUserClient.dma_map``."""
        mapping = GuestMapping(iova, memory.size, memory, 0, True, True, shared)
        self.space.add(mapping)
        try:
            await self.run(exchanges.dma_map(mapping))
        except BaseException:
            self.space.remove(mapping)
            raise
        return mapping

    async def dma_unmap(self, mapping: GuestMapping) -> None:
        """DMA_UNMAP. When this returns, the device uses it no more."""
        await self.run(exchanges.dma_unmap(mapping))
        self.space.remove(mapping)

    # The end.

    def close(self) -> None:
        """Hangs up, and closes the eventfds. Idempotent."""
        self.connection.close()
        for index in list(self._vectors):
            self._close_vectors(index)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
