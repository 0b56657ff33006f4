"""``Disk``: a direct access block device. Spec: SBC-3."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from vfio_user.backends import Backend
from vfio_user.devices.scsi.block_unit import PIECE, BlockUnit
from vfio_user.devices.scsi.logical_unit import command, failed, illegal, invalid_field, invalid_parameter
from vfio_user.devices.scsi.task import DataOut, Steps, Task
from vfio_user.hardware.scsi.cdb import Command
from vfio_user.hardware.scsi.codes import AdditionalSense, DeviceType, SenseKey
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.inquiry import BLOCK_LIMITS, PROVISIONING, VpdPage, block_characteristics_page
from vfio_user.hardware.scsi.layout import Layout
from vfio_user.hardware.scsi.log_pages import ErrorCounter, LogPage
from vfio_user.hardware.scsi.mode_pages import (
    CACHING,
    CONTROL,
    CONTROL_EXTENSION,
    DISCONNECT_RECONNECT,
    ERROR_RECOVERY,
    INFORMATIONAL_EXCEPTIONS,
)

__all__ = ["Disk"]

#: Ranges one UNMAP may have: what fits in a page.
_UNMAP_DESCRIPTORS = 255

#: Bytes of zeroes asked of a backend at a time, so that an aborted task ends some time.
_ZERO_PIECE = 64 << 20

_UNMAP_HEADER = struct.Struct(">HH4x")
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")

#: Parameter lists of FORMAT UNIT. Spec: SBC-3 5.3.2.2.
_FORMAT_SHORT = Layout(4, protection=(0, 2, 3), pattern=(1, 3), defects=(2, 7, 16))
_FORMAT_LONG = Layout(8, protection=(0, 2, 3), pattern=(1, 3), protection_interval=(3, 3, 4), defects=(4, 7, 32))

_WRITES = {Op.WRITE_6, Op.WRITE_10, Op.WRITE_12, Op.WRITE_16}
_WRITES_AND_VERIFIES = {Op.WRITE_AND_VERIFY_10, Op.WRITE_AND_VERIFY_12, Op.WRITE_AND_VERIFY_16}
_CHANGES = {*_WRITES, *_WRITES_AND_VERIFIES, Op.WRITE_SAME_10, Op.WRITE_SAME_16, Op.UNMAP}
_FLUSHES = {Op.SYNCHRONIZE_CACHE_10, Op.SYNCHRONIZE_CACHE_16, Op.START_STOP_UNIT}

#: DEVICE-SPECIFIC PARAMETER: write protected; FUA and DPO are known. Spec: SBC-3 6.4.1.
_WP, _DPOFUA = 0x80, 0x10


class Disk(BlockUnit):
    """A disk, as large as its backend. Blocks can be unmapped, and read as zeroes then.

    Writes are durable after a SYNCHRONIZE CACHE, with FUA, or all of them while the initiator has the write cache off.

    Args:
        backend: its contents.
        block_size: 512 or 4096 bytes.
        options: those of ``BlockUnit``: serial, vendor, product, revision, removable, read_only, workers.
    """

    device_type = DeviceType.DISK
    block_sizes = (512, 4096)
    product = "Disk"
    mode_pages: ClassVar = (
        ERROR_RECOVERY,
        DISCONNECT_RECONNECT,
        CACHING,
        CONTROL,
        CONTROL_EXTENSION,
        INFORMATIONAL_EXCEPTIONS,
    )

    def __init__(self, backend: Backend | None, *, block_size: int = 512, **options: Any) -> None:
        super().__init__(backend, block_size=block_size, **options)

    def writes(self, cdb: Command) -> bool:
        """Whether a command changes the medium, or makes changes last."""
        return cdb.operation_code in _CHANGES | _FLUSHES

    @property
    def is_write_protected(self) -> bool:
        """Nothing can be written now: it is read-only, or the initiator set SWP."""
        return self.is_read_only or bool(self.mode_value(CONTROL, "swp"))

    def check_writable(self) -> None:
        """Lets commands pass that change the medium.

        Raises:
            CommandFailed: it is not ready, or write protected.
        """
        self.check_ready()
        if self.is_write_protected:
            raise failed(SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED)

    # Writing.

    @command(
        Op.WRITE_6,
        Op.WRITE_10,
        Op.WRITE_12,
        Op.WRITE_16,
        Op.WRITE_AND_VERIFY_10,
        Op.WRITE_AND_VERIFY_12,
        Op.WRITE_AND_VERIFY_16,
    )
    def write(self, task: Task, cdb: Command) -> Steps:
        """WRITE, and WRITE AND VERIFY, which reads back what it wrote. Spec: SBC-3 5.32 to 5.39."""
        if "protect" in cdb and cdb.protect:
            raise invalid_field(cdb, "protect")
        verifies = cdb.operation_code in _WRITES_AND_VERIFIES
        if verifies and cdb.byte_check > 1:
            raise invalid_field(cdb, "byte_check")
        self.check_writable()
        blocks = 256 if cdb.operation_code == Op.WRITE_6 and not cdb.length else None
        medium, offset, length = self.extent(cdb, blocks)
        task.expect(length)
        start = task.done
        while start < length:
            count = min(PIECE, length - start)
            piece = yield DataOut(count)
            yield from self.call(medium, _write(medium, offset + start, piece))
            if verifies:
                self.compare((yield from self.fetch(medium, offset + start, count)), piece)
            self._counters[LogPage.WRITE_ERRORS][ErrorCounter.BYTES_PROCESSED] += count
            start += count
        if verifies or ("fua" in cdb and cdb.fua) or not self.mode_value(CACHING, "wce"):
            yield from self.flush(medium)
        return None

    def flush(self, medium: Backend) -> Steps:
        """Makes what was written last."""
        if self.is_read_only:
            return None
        return (yield from self.call(medium, medium.flush, blocks=medium.flush_blocks))

    def modes_changed(self, pages: Collection[tuple[int, int]]) -> Steps:
        """Who turns the write cache off need not flush any more, so what is in it becomes durable now."""
        if CACHING.key in pages and not self.mode_value(CACHING, "wce") and self.backend is not None:
            yield from self.flush(self.backend)
        return None

    @command(Op.SYNCHRONIZE_CACHE_10, Op.SYNCHRONIZE_CACHE_16)
    def synchronize_cache(self, task: Task, cdb: Command) -> Steps:
        """SYNCHRONIZE CACHE: of all blocks, whichever it names. With IMMED the status waits all the same."""
        medium, _, _ = self.extent(cdb)
        yield from self.flush(medium)
        return None

    @command(Op.UNMAP)
    def unmap(self, task: Task, cdb: Command) -> Steps:
        """UNMAP. Spec: SBC-3 5.28."""
        if cdb.anchor:
            raise invalid_field(cdb, "anchor")
        self.check_writable()
        if not cdb.parameter_list_length:
            return None
        data = yield DataOut(cdb.parameter_list_length)
        if len(data) < _UNMAP_HEADER.size:
            raise illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)
        _, length = _UNMAP_HEADER.unpack_from(data)
        body = data[_UNMAP_HEADER.size :][:length]
        # A descriptor that is cut off is left out, as 5.28.2 wants it.
        body = body[: len(body) // _UNMAP_DESCRIPTOR.size * _UNMAP_DESCRIPTOR.size]
        ranges = list(_UNMAP_DESCRIPTOR.iter_unpack(body))
        if len(ranges) > _UNMAP_DESCRIPTORS:
            raise invalid_parameter(2)
        if any(lba + count > self.blocks for lba, count in ranges):
            raise illegal(AdditionalSense.LBA_OUT_OF_RANGE)
        medium = self.medium()
        for lba, count in ranges:
            yield from self.call(
                medium, _discard(medium, lba * self.block_size, count * self.block_size), blocks=medium.flush_blocks
            )
        return None

    @command(Op.WRITE_SAME_10, Op.WRITE_SAME_16)
    def write_same(self, task: Task, cdb: Command) -> Steps:
        """WRITE SAME: one block, again and again; up to the last one where no number is given. Spec: SBC-3 5.42."""
        if cdb.protect:
            raise invalid_field(cdb, "protect")
        if cdb.anchor:
            raise invalid_field(cdb, "anchor")
        self.check_writable()
        medium, offset, length = self.extent(cdb, cdb.length or max(self.blocks - cdb.lba, 0))
        block = bytes(self.block_size)
        if not ("no_data_out_buffer" in cdb and cdb.no_data_out_buffer):
            block = bytes((yield DataOut(self.block_size)))
        if any(block):
            step = min(PIECE, length)
            pattern = block * (step // self.block_size)
            for start in range(0, length, PIECE):
                piece = pattern[: min(PIECE, length - start)]
                yield from self.call(medium, _write(medium, offset + start, piece))
        else:
            for start in range(0, length, _ZERO_PIECE):
                count = min(_ZERO_PIECE, length - start)
                zero = _zero(medium, offset + start, count, may_deallocate=bool(cdb.unmap))
                yield from self.call(medium, zero, blocks=medium.flush_blocks)
        if not self.mode_value(CACHING, "wce"):
            yield from self.flush(medium)
        return None

    @command(Op.FORMAT_UNIT)
    def format_unit(self, task: Task, cdb: Command) -> Steps:
        """FORMAT UNIT: there is nothing to be done, and what the blocks hold then is ours to say. Spec: SBC-3 5.3."""
        for name in ("protection", "complete_list", "list_format"):
            if getattr(cdb, name):
                raise invalid_field(cdb, name)
        self.check_writable()
        if cdb.has_data:
            layout = _FORMAT_LONG if cdb.long_list else _FORMAT_SHORT
            header = yield DataOut(layout.length)
            # No pattern, no protection, and no list of defects to go by.
            for name in ("protection", "pattern", "protection_interval", "defects"):
                if name in layout.fields and layout.get(header, name):
                    raise invalid_parameter(layout.fields[name].byte)
        return None

    # What it says about itself.

    def device_specific_parameter(self) -> int:
        """Whether it can be written, and that FUA and DPO are known."""
        return _DPOFUA | (_WP if self.is_write_protected else 0)

    def provisioning(self) -> dict[str, int]:
        """Blocks can be unmapped, and read as zeroes then; how many make one of the backend's."""
        physical = self.backend.block_size if self.backend is not None else self.block_size
        exponent = max((physical // self.block_size).bit_length() - 1, 0)
        return {"thin": 1, "zeroes": 1, "exponent": exponent}

    def vpd_pages(self) -> Mapping[int, bytes]:
        """With what SBC-3 adds."""
        limits = BLOCK_LIMITS.pack(
            optimal_granularity=1,
            optimal_transfer_length=0,
            max_unmap_blocks=0xFFFF_FFFF,
            max_unmap_descriptors=_UNMAP_DESCRIPTORS,
            optimal_unmap_granularity=max(4096 // self.block_size, 1),
        )
        return {
            **super().vpd_pages(),
            VpdPage.BLOCK_LIMITS: bytes(limits),
            VpdPage.BLOCK_DEVICE_CHARACTERISTICS: block_characteristics_page(),
            VpdPage.LOGICAL_BLOCK_PROVISIONING: bytes(
                PROVISIONING.pack(unmap=1, write_same_16=1, write_same_10=1, reads_zeroes=1, type=2)
            ),
        }


def _write(medium: Backend, offset: int, data: bytes | memoryview) -> Callable[[], object]:
    return lambda: medium.write(offset, [data])


def _discard(medium: Backend, offset: int, length: int) -> Callable[[], object]:
    return lambda: medium.discard(offset, length)


def _zero(medium: Backend, offset: int, length: int, *, may_deallocate: bool) -> Callable[[], object]:
    return lambda: medium.zero(offset, length, may_deallocate=may_deallocate)
