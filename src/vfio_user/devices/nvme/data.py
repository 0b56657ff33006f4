"""Where a command's data lies in the guest's memory: PRP entries, PRP lists, SGLs.

All forms become one: a list of ``(iova, length)``, in order, neighbours merged. Lists are read once and then checked;
what the guest changes afterwards has no effect.

Spec: 4.1.1 (PRP), 4.1.2 (SGL).
"""

from __future__ import annotations

import struct

from vfio_user.devices.nvme.command import CommandFailed
from vfio_user.errors import DeviceError
from vfio_user.hardware.nvme.data_pointers import SGL_DESCRIPTOR_SIZE, SglDescriptor, SglType
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.status import Status
from vfio_user.memory import Dma

__all__ = ["BIT_BUCKET", "DataPointers", "Pieces"]

#: (iova, length) of each part of a command's data.
Pieces = list[tuple[int, int]]

#: In place of an iova: these bytes go nowhere.
BIT_BUCKET = -1

#: Descriptors of one SGL, all segments together; more than the longest transfer of 512-byte pieces needs.
_MAX_DESCRIPTORS = 4096


class DataPointers:
    """Reads data pointers.

    Args:
        dma: the guest's memory.

    Attributes:
        page_size: bytes of a memory page, as the host has set it (CC.MPS).
    """

    def __init__(self, dma: Dma) -> None:
        self._dma = dma
        self.page_size = 4096

    def pieces(self, entry: SubmissionEntry, length: int) -> Pieces:
        """The parts of ``length`` bytes of data.

        Raises:
            CommandFailed: the pointer is wrong, or cannot be read.
        """
        kind = entry.flags >> 6
        if kind == 0:
            return self.prp(entry.prp1, entry.prp2, length)
        if kind == 3:
            raise CommandFailed(Status.INVALID_FIELD, location=1 | 6 << 8)
        return self._sgl(entry, length)

    def prp(self, prp1: int, prp2: int, length: int) -> Pieces:
        """The parts of ``length`` bytes of data two PRP entries describe.

        Raises:
            CommandFailed: see ``pieces``.
        """
        if prp1 & 3:
            raise CommandFailed(Status.PRP_OFFSET_INVALID, location=24)
        page = self.page_size
        first = page - prp1 % page
        if length <= first:
            return [(prp1, length)]
        rest = length - first
        if rest <= page:
            if prp2 % page:
                raise CommandFailed(Status.PRP_OFFSET_INVALID, location=32)
            return [(prp1, length)] if prp2 == prp1 + first else [(prp1, first), (prp2, rest)]
        return self._prp_list((prp1, first), prp2, rest)

    def _prp_list(self, first: tuple[int, int], pointer: int, rest: int) -> Pieces:
        page = self.page_size
        if pointer & 7:
            raise CommandFailed(Status.PRP_OFFSET_INVALID, location=32)
        pieces: Pieces = []
        start, size = first
        while rest:
            needed = -(-rest // page)
            room = (page - pointer % page) // 8
            chained = needed > room
            addresses = struct.unpack(f"<{min(needed, room)}Q", self._read(pointer, 8 * min(needed, room)))
            if chained:
                *addresses, pointer = addresses  # type: ignore[assignment]
                if pointer % page:
                    raise CommandFailed(Status.PRP_OFFSET_INVALID)
            for address in addresses:
                if address % page:
                    raise CommandFailed(Status.PRP_OFFSET_INVALID)
                count = min(rest, page)
                if address == start + size:
                    size += count
                else:
                    pieces.append((start, size))
                    start, size = address, count
                rest -= count
        pieces.append((start, size))
        return pieces

    def _sgl(self, entry: SubmissionEntry, length: int) -> Pieces:
        pieces: Pieces = []
        to_host = entry.opcode & 3 == 2
        descriptors, is_last = [SglDescriptor.from_entry(entry.prp1, entry.prp2)], False
        # The descriptor in the command may point to the first segment, or to the last; or be the data itself.
        in_command, left, seen = True, length, 0
        while descriptors:
            following: SglDescriptor | None = None
            for number, descriptor in enumerate(descriptors):
                if descriptor.subtype:
                    raise CommandFailed(Status.SGL_DESCRIPTOR_TYPE_INVALID)
                if descriptor.type in (SglType.SEGMENT, SglType.LAST_SEGMENT):
                    if number != len(descriptors) - 1 or is_last:
                        raise CommandFailed(Status.INVALID_SGL_SEGMENT_DESCRIPTOR)
                    following = descriptor
                elif descriptor.type == SglType.BIT_BUCKET:
                    if to_host and left and descriptor.length:
                        count = min(left, descriptor.length)
                        pieces.append((BIT_BUCKET, count))
                        left -= count
                elif descriptor.type == SglType.DATA_BLOCK:
                    if left and descriptor.length:
                        count = min(left, descriptor.length)
                        pieces.append((descriptor.address, count))
                        left -= count
                else:
                    raise CommandFailed(Status.SGL_DESCRIPTOR_TYPE_INVALID)
            if following is None:
                if not in_command and not is_last:
                    raise CommandFailed(Status.INVALID_SGL_SEGMENT_DESCRIPTOR)
                break
            in_command, is_last = False, following.type == SglType.LAST_SEGMENT
            if not following.length or following.length % SGL_DESCRIPTOR_SIZE:
                raise CommandFailed(Status.INVALID_SGL_SEGMENT_DESCRIPTOR)
            seen += following.length // SGL_DESCRIPTOR_SIZE
            if seen > _MAX_DESCRIPTORS:
                raise CommandFailed(Status.INVALID_NUMBER_OF_SGL_DESCRIPTORS)
            data = self._read(following.address, following.length)
            descriptors = [SglDescriptor.unpack(data, at) for at in range(0, len(data), SGL_DESCRIPTOR_SIZE)]
        if left:
            raise CommandFailed(Status.DATA_SGL_LENGTH_INVALID)
        return pieces

    def _read(self, iova: int, length: int) -> bytes:
        try:
            return self._dma.read(iova, length)
        except DeviceError:
            raise CommandFailed(Status.DATA_TRANSFER_ERROR) from None

    # The data itself.

    def read(self, pieces: Pieces) -> bytearray:
        """Copies the data out of the guest's memory.

        Raises:
            DeviceError: some of it cannot be read.
        """
        data = bytearray(sum(length for _, length in pieces))
        self.read_into(pieces, memoryview(data))
        return data

    def read_into(self, pieces: Pieces, target: memoryview) -> None:
        """Copies the data out of the guest's memory into a buffer of as many bytes.

        Raises:
            DeviceError: some of it cannot be read.
        """
        at = 0
        for iova, length in pieces:
            self._dma.read_into(iova, target[at : at + length])
            at += length

    def writable_views(self, pieces: Pieces) -> list[memoryview] | None:
        """The guest's memory itself, to be filled before anything else is done; None where some of it is none of ours.

        Raises:
            DeviceError: some of it cannot be written.
        """
        views = []
        for iova, length in pieces:
            if iova == BIT_BUCKET:
                return None
            for segment in self._dma.sgl(iova, length, write=True):
                if segment.memory is None:
                    return None
                views.append(segment.memory)
        return views

    def write(self, pieces: Pieces, data: bytes | bytearray | memoryview) -> None:
        """Copies data into the guest's memory.

        Raises:
            DeviceError: some of it cannot be written.
        """
        view = memoryview(data)
        at = 0
        for iova, length in pieces:
            if iova != BIT_BUCKET:
                self._dma.write(iova, view[at : at + length])
            at += length
