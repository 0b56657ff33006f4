"""``VfioUserClient``: one device, driven by its protocol - a method for each command, and objects for what they reach.

    with VfioUserClient.connect("/tmp/edu.sock") as client:
        bar0 = client.region(RegionIndex.BAR0)
        bar0.write32(0x04, 0x1234_5678)
        assert bar0.read32(0x04) == 0xEDCB_A987

``PciFunction`` is the layer above, for those who write a PCI driver rather than a virtual machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from vfio_user.client import exchanges
from vfio_user.client.connection import Connection
from vfio_user.client.dirty_bitmap import DirtyBitmap
from vfio_user.client.guest_memory import PAGE_SIZE, DmaBuffer, GuestAddressSpace, GuestMapping, GuestMemory
from vfio_user.client.io_fds import IoFds
from vfio_user.client.irq import Irq
from vfio_user.client.migration import Migration, find_migration
from vfio_user.client.negotiation import OFFER
from vfio_user.client.region import DeviceRegion, map_areas
from vfio_user.errors import RemoteProtocolError
from vfio_user.protocol.constants import (
    MAX_FDS_PER_MESSAGE,
    Command,
    DeviceFlags,
    DmaUnmapFlags,
    IrqSetFlags,
)
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.dirty_pages import BitmapHeader
from vfio_user.protocol.dma import DmaUnmap
from vfio_user.protocol.feature import bitmap_size
from vfio_user.protocol.framing import close_fds
from vfio_user.protocol.irq import IrqInfo
from vfio_user.protocol.region import (
    MAX_MULTI_WRITE_SIZE,
    MAX_MULTI_WRITES,
    MultiWrite,
    RegionInfo,
    RegionWriteMulti,
    WriteMultiReply,
)
from vfio_user.transport.address import Address
from vfio_user.transport.connect import connect

__all__ = ["VfioUserClient"]

T = TypeVar("T")

#: Bytes of data in one region access. libvfio-user reads a message's body with one receive call, which brings what fits
#: one segment of a socket: a longer write would be cut.
_MAX_ACCESS = 32 * 1024

#: Bytes of the memory buffers are allocated from, unless the client is given another size.
_MEMORY_SIZE = 16 << 20

#: Where the device sees that memory: aligned to 2 MiB, which SPDK needs, and low enough for a device with few address
#: bits (edu has 28).
_MEMORY_IOVA = 16 << 20


class VfioUserClient:
    """See the module.

    Args:
        connection: closed with this.
        memory_size: bytes of the memory ``dma_alloc`` takes from.
        memory_iova: where the device sees it.
        share_memory: give the device the memory's descriptor; without, it has to ask by messages.
        map_regions: map regions the server offers for it; without, every access is a message.

    Attributes:
        connection: for everything below messages.
        space: what of memory the device sees.

    Every method that sends a command raises CommandError (the server refused), CommandTimeoutError, RemoteProtocolError
    (its reply makes no sense) or ConnectionClosedError.

    Ownership: ``close`` it, or use it in a ``with`` statement; descriptors, mappings and memory go with it.

    Threading: one thread at a time.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        memory_size: int = _MEMORY_SIZE,
        memory_iova: int = _MEMORY_IOVA,
        share_memory: bool = True,
        map_regions: bool = True,
    ) -> None:
        self.connection = connection
        self.space = GuestAddressSpace()
        connection.dma = self.space
        self._memory_size = memory_size
        self._memory_iova = memory_iova
        self._share_memory = share_memory
        self._map_regions = map_regions
        self._memory: GuestMemory | None = None
        self._regions: dict[int, DeviceRegion] = {}
        self._irqs: dict[int, Irq] = {}
        server = connection.agreement.server
        self._max_access = min(server.max_data_xfer_size, connection.offer.max_data_xfer_size, _MAX_ACCESS)
        self._max_fds = min(server.max_msg_fds, MAX_FDS_PER_MESSAGE) if connection.carries_fds else 0

    @classmethod
    def connect(
        cls,
        address: str | Path | Address,
        *,
        timeout: float = 5.0,
        memory_size: int = _MEMORY_SIZE,
        memory_iova: int = _MEMORY_IOVA,
        share_memory: bool = True,
        map_regions: bool = True,
        twin_socket: bool = False,
    ) -> Self:
        """Connects to a server and negotiates.

        Args:
            address: a path, or any other form of ``transport.address``.
            timeout: seconds each command has.
            memory_size: see the class, as for the others.
            twin_socket: propose a second socket for the server's DMA_READ and DMA_WRITE; see ``Connection``.

        Raises:
            AddressError, ConnectError: there is no server.
            VersionError, CommandError: no version can be agreed on.
        """
        offer = replace(OFFER, twin_socket=twin_socket)
        return cls(
            Connection(connect(address, timeout=timeout), timeout=timeout, offer=offer),
            memory_size=memory_size,
            memory_iova=memory_iova,
            share_memory=share_memory,
            map_regions=map_regions,
        )

    def _run(self, exchange: exchanges.Exchange[T]) -> T:
        """Carries out an exchange, message by message."""
        request = self.connection.request
        try:
            ask = next(exchange)
            while True:
                command, payload, fds, max_payload, max_fds, what = ask
                ask = exchange.send(
                    request(command, payload, fds=fds, max_payload=max_payload, max_fds=max_fds, request=what)
                )
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            exchange.close()

    # The device.

    def get_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO."""
        return self._run(exchanges.device_info())

    @cached_property
    def info(self) -> DeviceInfo:
        """What ``get_info`` said the first time."""
        return self.get_info()

    def reset(self) -> None:
        """DEVICE_RESET: registers back to their reset values; mappings and eventfds stay."""
        self._run(exchanges.reset())

    @property
    def can_reset(self) -> bool:
        """The device says that it can be reset."""
        return bool(self.info.flags & DeviceFlags.RESET)

    # Regions.

    def region_info(self, index: int) -> tuple[RegionInfo, int | None]:
        """DEVICE_GET_REGION_INFO, asked again with more room where its capabilities need that.

        Returns:
            The description, and the descriptor for mapping, if there is one: the caller's to close.
        """
        return self._run(exchanges.region_info(index))

    def region(self, index: int) -> DeviceRegion:
        """A region, described and mapped when it is first asked for; size 0 if the device does not have it."""
        region = self._regions.get(index)
        if region is None:
            info, fd = self.region_info(index)
            try:
                areas = map_areas(info, fd) if fd is not None and self._map_regions else []
            finally:
                close_fds([] if fd is None else [fd])
            region = self._regions[index] = DeviceRegion(self, info, areas)
        return region

    def io_fds(self, index: int) -> IoFds:
        """DEVICE_GET_REGION_IO_FDS: what of a region can be accessed without messages; nothing, with most devices.

        Ownership: the caller's to close.
        """
        found, fds = self._run(exchanges.region_io_fds(index, self._max_fds))
        return IoFds(found, fds, self.region(index), self.connection.timeout)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        """REGION_READ of any number of bytes, in as many messages as the server's limit makes them."""
        return self._run(exchanges.region_read(index, offset, count, self._max_access))

    def region_write(
        self, index: int, offset: int, data: bytes | bytearray | memoryview, *, posted: bool = False
    ) -> None:
        """REGION_WRITE of any number of bytes, in as many messages as the server's limit makes them.

        Args:
            index: the region.
            offset: where, in bytes.
            data: what.
            posted: do not wait, nor hear whether it failed.
        """
        if not posted:
            self._run(exchanges.region_write(index, offset, data, self._max_access))
            return
        for ask in exchanges.region_write(index, offset, data, self._max_access):
            self.connection.send_posted(ask.command, ask.payload)

    def write_multi(self, writes: Sequence[tuple[int, int, bytes]], *, posted: bool = False) -> None:
        """REGION_WRITE_MULTI: several small writes in one message, done in order up to the first that fails.

        To a server without that command they go one by one.

        Args:
            writes: (region, offset, 1 to 8 bytes) each.
            posted: do not wait, nor hear whether they failed.

        Raises:
            CommandError: the first write was refused.
            RemoteProtocolError: a later one was; the text says which, and those before it are done.
        """
        if not self.connection.agreement.server.write_multiple:
            for region, offset, data in writes:
                self.region_write(region, offset, data, posted=posted)
            return
        entries = [
            MultiWrite(offset, region, len(data), data.ljust(MAX_MULTI_WRITE_SIZE, b"\0"))
            for region, offset, data in writes
        ]
        for start in range(0, len(entries), MAX_MULTI_WRITES):
            message = RegionWriteMulti(tuple(entries[start : start + MAX_MULTI_WRITES]))
            if posted:
                self.connection.send_posted(Command.REGION_WRITE_MULTI, message.encode())
                continue
            what = f"REGION_WRITE_MULTI of {len(message.writes)} writes"
            reply = self.connection.request(Command.REGION_WRITE_MULTI, message.encode(), max_payload=8, request=what)
            done = WriteMultiReply.decode(reply.payload).done
            if done != len(message.writes):
                raise RemoteProtocolError(
                    f"{what}: {start + done} of {len(entries)} were done; the next one was refused"
                )

    # Interrupts.

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        return self._run(exchanges.irq_info(index))

    def irq(self, index: int) -> Irq:
        """One kind of interrupt; without vectors if the device does not have it."""
        irq = self._irqs.get(index)
        if irq is None:
            irq = self._irqs[index] = Irq(self, self.irq_info(index))
        return irq

    def set_irqs(
        self,
        index: int,
        flags: IrqSetFlags,
        start: int,
        count: int,
        *,
        bools: bytes | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """DEVICE_SET_IRQS, one message.

        Args:
            index: kind of interrupt.
            flags: one kind of data and one action.
            start: first vector.
            count: vectors.
            bools: with DATA_BOOL, a byte for each.
            fds: with DATA_EVENTFD, one for each, or none; they stay the caller's.
        """
        self._run(exchanges.set_irqs(index, flags, start, count, bools, fds))

    def connect_irqs(self, index: int, fds: Sequence[int | None], *, start: int = 0) -> None:
        """Gives vectors their eventfds, in as many messages as the server's limit on descriptors makes them.

        Args:
            index: kind of interrupt.
            fds: one for each vector from ``start`` on; None takes that vector's back. They stay the caller's.
            start: first vector.

        Raises:
            StateError: the server takes no descriptors.
        """
        self._run(exchanges.connect_irqs(index, fds, start, self._max_fds))

    def enabled_irqs(self) -> list[Irq]:
        """The kinds of interrupt that have vectors enabled."""
        return [irq for irq in self._irqs.values() if irq.vectors]

    # Memory.

    def dma_map(
        self,
        memory: GuestMemory,
        iova: int,
        *,
        offset: int = 0,
        size: int | None = None,
        readable: bool = True,
        writable: bool = True,
        shared: bool = True,
    ) -> GuestMapping:
        """DMA_MAP: lets the device see memory.

        Args:
            memory: which; stays the caller's, and must outlive the mapping.
            iova: where the device sees it.
            offset: where in ``memory`` that begins, bytes.
            size: bytes; None for the rest of it.
            readable: the device may read.
            writable: the device may write.
            shared: give the server the descriptor. Without, its accesses come as messages, which are served whenever
                this client waits for something.

        Raises:
            ValueError: that is no part of ``memory``.
            StateError: it overlaps another mapping.
        """
        size = memory.size - offset if size is None else size
        if offset < 0 or size <= 0 or offset + size > memory.size:
            raise ValueError(f"[{offset:#x}, {offset + size:#x}) is no part of a memory of {memory.size:#x} bytes")
        mapping = GuestMapping(iova, size, memory, offset, readable, writable, shared)
        # Before the command: a server may use the memory before it has answered.
        self.space.add(mapping)
        try:
            self._run(exchanges.dma_map(mapping))
        except BaseException:
            self.space.remove(mapping)
            raise
        return mapping

    def map_like(self, mapping: GuestMapping) -> GuestMapping:
        """DMA_MAP of what another client has mapped: the same memory, at the same addresses."""
        return self.dma_map(
            mapping.memory,
            mapping.iova,
            offset=mapping.offset,
            size=mapping.size,
            readable=mapping.readable,
            writable=mapping.writable,
            shared=mapping.shared and self._max_fds > 0,
        )

    def dma_unmap(self, mapping: GuestMapping) -> None:
        """DMA_UNMAP: takes a mapping back. When this returns, the device uses it no more."""
        # Still there until the reply: what the device had under way may go on until then.
        self._run(exchanges.dma_unmap(mapping))
        self.space.remove(mapping)

    def dma_unmap_logged(self, mapping: GuestMapping, page_size: int = PAGE_SIZE) -> DirtyBitmap:
        """DMA_UNMAP, with what of the mapping the device wrote since dirty pages are logged: of 0.9.1's migration.

        Args:
            mapping: which.
            page_size: bytes a bit stands for.
        """
        size = bitmap_size(mapping.size, page_size)
        wanted = BitmapHeader(page_size, size).encode()
        head = DmaUnmap.SIZE + len(wanted)
        request = DmaUnmap(DmaUnmapFlags.GET_DIRTY_BITMAP, mapping.iova, mapping.size, head + size)
        payload = request.encode() + wanted
        what = f"DMA_UNMAP of [{mapping.iova:#x}, {mapping.end:#x}) with its dirty pages"
        reply = self.connection.request(Command.DMA_UNMAP, payload, max_payload=head + size, request=what).payload
        # Gone it is, whatever came with the reply.
        self.space.remove(mapping)
        if reply[:head] != payload:
            raise RemoteProtocolError(f"the reply to {what} is about another range, or has {len(reply)} bytes")
        return DirtyBitmap(mapping.iova, mapping.size, page_size, reply[head:])

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of everything, ``dma_alloc``'s memory included."""
        self._run(exchanges.dma_unmap(None))
        self.space.clear()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def dma_alloc(self, size: int, *, align: int = PAGE_SIZE) -> DmaBuffer:
        """Memory the device can read and write, for rings, descriptors and data.

        The memory it is taken from is made and mapped at the first call.

        Args:
            size: bytes.
            align: of its IOVA, bytes; a power of two.

        Raises:
            MemoryError: the memory is used up; the client can be given a larger one.
            ValueError: the alignment is no power of two, or more than that of the memory itself.
        """
        if align > 0 and self._memory_iova % align:
            raise ValueError(f"the memory at {self._memory_iova:#x} is not aligned to {align:#x}: set memory_iova")
        if self._memory is None:
            memory = GuestMemory(self._memory_size)
            try:
                self.dma_map(memory, self._memory_iova, shared=self._share_memory and self._max_fds > 0)
            except BaseException:
                memory.close()
                raise
            self._memory = memory
        offset = self._memory.allocate(size, align=align)
        buffer = DmaBuffer(self._memory, offset, self._memory_iova + offset, size)
        buffer[:] = bytes(size)
        return buffer

    def take_memory_of(self, other: VfioUserClient) -> None:
        """Takes the memory ``dma_alloc`` of another client takes from, if it has any: this one closes it from now on.

        Nothing happens where this client has such memory of its own.
        """
        if self._memory is None:
            self._memory, self._memory_iova = other._memory, other._memory_iova
            other._memory = None

    # Migration.

    @cached_property
    def migration(self) -> Migration:
        """States, data and dirty pages, of whichever protocol the server offers.

        Raises:
            StateError: the device cannot be migrated.
        """
        return find_migration(self)

    # The end.

    def close(self) -> None:
        """Hangs up, and gives back every descriptor, mapping and memory that was made here. Idempotent."""
        self.connection.close()
        for irq in self._irqs.values():
            irq.close()
        for region in self._regions.values():
            region.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
