"""The commands of I/O queues, one entry at a time: the engine that can do them all.

A command is checked against the copy of its entry, then its data is moved: straight between the guest's memory and the
backend's where the backend's contents are memory; otherwise through a buffer, which is filled or emptied by a job
(``jobs``) where the backend may block. Each handler returns the result of a command that has succeeded, or None where
it ends later, and raises ``CommandFailed`` or OSError where it has failed.

Order: commands are independent of each other, as the specification has it, but for the two of a fused operation, which
work on their namespace alone. What Flush makes last is everything that was complete before it was submitted.

Spec: NVM Command Set 3.2; Base 3.4.2 (fused operations).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfio_user.devices.nvme.command import Command, CommandFailed, status_of
from vfio_user.devices.nvme.namespaces import Namespace
from vfio_user.devices.nvme.queues import SubmissionQueue
from vfio_user.hardware.nvme.entries import SUBMISSION_ENTRY_SIZE, Fused, SubmissionEntry
from vfio_user.hardware.nvme.identify import BROADCAST_NSID
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["COPY_BLOCKS", "COPY_RANGES", "COPY_RANGE_BLOCKS", "NvmCommands"]

#: Copy: blocks of one source range, blocks of one command, source ranges (MSSRL, MCL, MSRC).
COPY_RANGE_BLOCKS, COPY_BLOCKS, COPY_RANGES = 1024, 4096, 128

#: Bytes, and ranges of Dataset Management, that are not worth two changes of thread. More is done by a thread even
#: where nothing blocks: a host may submit 128 commands of 256 MiB each, and everybody waits for the device's thread.
_LONG, _SOME_RANGES = 1 << 20, 8

#: Ranges of a namespace's blocks that Write Uncorrectable may have made unreadable: each takes memory of ours.
_MAX_UNCORRECTABLE = 16384

_DSM_RANGE = struct.Struct("<IIQ")
_COPY_RANGE = struct.Struct("<8xQH14x")
_DEALLOCATE = 1 << 2  # attribute of Dataset Management
_WZ_DEALLOCATE = 1 << 25  # DEAC of Write Zeroes

#: Where in a command its parameters are, for the error log.
_AT_SLBA, _AT_CDW12 = 40, 48


class NvmCommands:
    """See the module.

    Args:
        controller: whose commands they are.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._data = controller.data
        self._jobs = controller.jobs
        self._health = controller.health
        self._handlers: dict[int, Callable[[Command, Namespace], int | None]] = {
            NvmOpcode.WRITE: self._write,
            NvmOpcode.READ: self._read,
            NvmOpcode.WRITE_UNCORRECTABLE: self._write_uncorrectable,
            NvmOpcode.COMPARE: self._compare,
            NvmOpcode.WRITE_ZEROES: self._write_zeroes,
            NvmOpcode.DATASET_MANAGEMENT: self._dataset_management,
            NvmOpcode.VERIFY: self._verify,
            NvmOpcode.COPY: self._copy,
        }

    def take(self, queue: SubmissionQueue, entries: bytes) -> None:
        """Carries out a batch of commands.

        Args:
            queue: where they were fetched from.
            entries: whole entries, in order.
        """
        for offset in range(0, len(entries), SUBMISSION_ENTRY_SIZE):
            if not queue.alive:  # there was a reset while memory was reached by messages
                return
            self.execute(queue, SubmissionEntry.unpack(entries, offset))

    def execute(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """Carries out one command, whatever it is; it ends now or later."""
        if entry.flags & 3 or queue.fused is not None:
            self._fused(queue, entry)
            return
        command = Command(queue, entry)
        write = entry.opcode & 3 == 1
        try:
            dw0 = self._handle(command)
        except CommandFailed as exc:
            self._controller.fail(queue, entry, exc)
        except OSError as exc:
            self._controller.fail(queue, entry, status_of(exc, write=write))
        else:
            if dw0 is not None:
                queue.complete(entry.cid, 0, dw0)

    def _handle(self, command: Command) -> int | None:
        entry = command.entry
        if entry.cid in command.queue.in_flight:
            raise CommandFailed(Status.COMMAND_ID_CONFLICT, location=2)
        handler = self._handlers.get(entry.opcode)
        if handler is None:
            if entry.opcode == NvmOpcode.FLUSH:
                return self._flush(command)
            raise CommandFailed(Status.INVALID_COMMAND_OPCODE, location=0)
        namespace = self._controller.namespaces.active(entry.nsid)
        if namespace.formatting:
            raise CommandFailed(Status.FORMAT_IN_PROGRESS, retry=True)
        return handler(command, namespace)

    # Read, write, compare: commands with data.

    def _read(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        offset, length = self._transfer(entry, namespace)
        pieces = self._data.pieces(entry, length)
        if namespace.uncorrectable:
            self._check_correctable(entry, namespace)
        health, backend = self._health, namespace.backend
        health.reads += 1
        health.blocks_read += length >> 9
        contents = backend.contents
        if contents is not None and namespace.gate.is_open:
            self._data.write(pieces, contents[offset : offset + length])
            return 0
        if backend.blocking and namespace.gate.is_open:
            # Two changes of thread take longer than all the rest. What does not have to be waited for is read here.
            views = self._data.writable_views(pieces)
            if views is not None and backend.read_at_once(offset, views):
                return 0

        def work() -> bytearray:
            buffer = bytearray(length)
            backend.read(offset, [memoryview(buffer)])
            return buffer

        def finish(buffer: bytearray) -> int:
            self._data.write(pieces, buffer)
            return 0

        return self._run(command, namespace, work, finish, size=length, to_guest=True)

    def _write(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        offset, length = self._change(entry, namespace, limited=True)
        pieces = self._data.pieces(entry, length)
        health, backend = self._health, namespace.backend
        health.writes += 1
        health.blocks_written += length >> 9
        lasting = bool(entry.cdw12 & 1 << 30) or not self._controller.features.write_cache
        contents = backend.contents
        if contents is not None and namespace.gate.is_open:
            if len(pieces) > 1 and any(size & (1 << namespace.shift) - 1 for _, size in pieces):
                # A block that is in two places, one of which may be none, is not to be torn.
                contents[offset : offset + length] = self._data.read(pieces)
            else:
                self._data.read_into(pieces, contents[offset : offset + length])
            if lasting and backend.flush_blocks:
                self._written(entry, namespace)
                return self._run(command, namespace, backend.flush, write=True, blocks=True)
            if namespace.uncorrectable:
                self._written(entry, namespace)
            if lasting:
                backend.flush()
            return 0
        data = self._data.read(pieces)

        def work() -> None:
            backend.write(offset, [data])
            if lasting:
                backend.flush()

        def finish(_: object) -> int:
            self._written(entry, namespace)
            return 0

        blocks = backend.blocking or (lasting and backend.flush_blocks)
        return self._run(command, namespace, work, finish, write=True, blocks=blocks, size=length)

    def _compare(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        offset, length = self._transfer(entry, namespace)
        data = self._data.read(self._data.pieces(entry, length))
        self._check_correctable(entry, namespace)

        def work() -> bytearray:
            buffer = bytearray(length)
            namespace.backend.read(offset, [memoryview(buffer)])
            return buffer

        def finish(buffer: bytearray) -> int:
            if buffer != data:
                raise CommandFailed(Status.COMPARE_FAILURE)
            return 0

        return self._run(command, namespace, work, finish, size=2 * length)

    def _fused(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """Takes a command that is, or should be, one half of a compare and write."""
        first, queue.fused = queue.fused, None
        fused = entry.flags & 3
        if first is not None and fused != Fused.SECOND:
            self._controller.fail(queue, first, CommandFailed(Status.ABORTED_MISSING_FUSED))
        if fused == Fused.NONE:
            self.execute(queue, entry)
        elif fused == Fused.RESERVED:
            self._controller.fail(queue, entry, CommandFailed(Status.INVALID_FIELD, location=1))
        elif fused == Fused.FIRST:
            queue.fused = entry
        elif first is None:
            self._controller.fail(queue, entry, CommandFailed(Status.ABORTED_MISSING_FUSED))
        else:
            self._compare_and_write(queue, first, entry)

    def _compare_and_write(self, queue: SubmissionQueue, first: SubmissionEntry, second: SubmissionEntry) -> None:
        failed = first
        try:
            if first.opcode != NvmOpcode.COMPARE or first.cid in queue.in_flight:
                raise CommandFailed(Status.INVALID_FIELD, location=0)
            failed = second
            if second.opcode != NvmOpcode.WRITE or second.cid in queue.in_flight or second.cid == first.cid:
                raise CommandFailed(Status.INVALID_FIELD, location=0)
            failed = first
            namespace = self._controller.namespaces.active(first.nsid)
            if namespace.formatting:
                raise CommandFailed(Status.FORMAT_IN_PROGRESS, retry=True)
            offset, length = self._transfer(first, namespace)
            self._check_correctable(first, namespace)
            failed = second
            if (second.nsid, second.slba, second.block_count) != (first.nsid, first.slba, first.block_count):
                raise CommandFailed(Status.INVALID_FIELD, location=_AT_SLBA)
            self._change(second, namespace, limited=True)
            failed = first
            expected = self._data.read(self._data.pieces(first, length))
            failed = second
            data = self._data.read(self._data.pieces(second, length))
        except (CommandFailed, OSError) as exc:
            self._fail_fused(queue, first, second, failed, status_of(exc, write=False))
            return
        backend = namespace.backend
        lasting = second.fua or not self._controller.features.write_cache

        # What goes wrong is returned, not raised: ``finish`` has to end the first command, too.
        def work() -> tuple[SubmissionEntry, Exception] | None:
            buffer = bytearray(length)
            try:
                backend.read(offset, [memoryview(buffer)])
                if buffer != expected:
                    raise CommandFailed(Status.COMPARE_FAILURE)
            except Exception as exc:
                return first, exc
            try:
                backend.write(offset, [data])
                if lasting:
                    backend.flush()
            except Exception as exc:
                return second, exc
            return None

        def finish(failed: tuple[SubmissionEntry, Exception] | None) -> int:
            if failed is not None:
                entry, exc = failed
                if entry is second:
                    self._controller.fail(queue, first, CommandFailed(Status.ABORTED_FAILED_FUSED))
                    raise exc
                self._controller.fail(queue, first, status_of(exc, write=False))
                raise CommandFailed(Status.ABORTED_FAILED_FUSED)
            queue.complete(first.cid, 0)
            self._written(second, namespace)
            return 0

        blocks = backend.blocking or (lasting and backend.flush_blocks)
        self._jobs.start(
            Command(queue, second, first), work, finish,
            gate=namespace.gate, alone=True, blocks=blocks, write=True, size=3 * length,
        )  # fmt: skip

    def _fail_fused(
        self,
        queue: SubmissionQueue,
        first: SubmissionEntry,
        second: SubmissionEntry,
        failed: SubmissionEntry,
        failure: CommandFailed,
    ) -> None:
        for entry in (first, second):
            other = CommandFailed(Status.ABORTED_FAILED_FUSED)
            self._controller.fail(queue, entry, failure if entry is failed else other)

    # Commands without data, or with data about blocks.

    def _flush(self, command: Command) -> int | None:
        entry = command.entry
        if entry.nsid == BROADCAST_NSID:
            namespaces = [namespace for namespace in self._controller.namespaces if namespace.attached]
        else:
            namespaces = [self._controller.namespaces.active(entry.nsid)]

        def work() -> None:
            for namespace in namespaces:
                namespace.backend.flush()

        if not any(namespace.backend.flush_blocks for namespace in namespaces):
            try:
                work()
            except OSError as exc:
                raise status_of(exc, write=True) from exc
            return 0
        self._jobs.start(command, work, _nothing, write=True)
        return None

    def _write_zeroes(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        offset, length = self._change(entry, namespace)
        deallocate = bool(entry.cdw12 & _WZ_DEALLOCATE)
        lasting = entry.fua or not self._controller.features.write_cache
        backend = namespace.backend

        def work() -> None:
            backend.zero(offset, length, may_deallocate=deallocate)
            if lasting:
                backend.flush()

        def finish(_: object) -> int:
            self._written(entry, namespace)
            return 0

        self._health.writes += 1
        blocks = backend.flush_blocks or length > _LONG
        return self._run(command, namespace, work, finish, write=True, blocks=blocks)

    def _write_uncorrectable(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        self._change(entry, namespace)
        if len(namespace.uncorrectable) >= _MAX_UNCORRECTABLE:
            raise CommandFailed(Status.WRITE_FAULT)
        namespace.uncorrectable.add(entry.slba, entry.slba + entry.block_count)
        return 0

    def _verify(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        offset, length = self._range(entry, namespace)
        self._check_correctable(entry, namespace)

        def work() -> None:
            piece = bytearray(min(length, 1 << 18))
            for at in range(offset, offset + length, len(piece)):
                count = min(len(piece), offset + length - at)
                namespace.backend.read(at, [memoryview(piece)[:count]])

        return self._run(command, namespace, work, blocks=namespace.backend.blocking or length > _LONG)

    def _dataset_management(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        count = (entry.cdw10 & 0xFF) + 1
        data = self._data.read(self._data.pieces(entry, count * _DSM_RANGE.size))
        if not entry.cdw11 & _DEALLOCATE:
            return 0
        if namespace.write_protected:
            raise CommandFailed(Status.NAMESPACE_WRITE_PROTECTED)
        ranges = []
        for _, blocks, slba in _DSM_RANGE.iter_unpack(data):
            if slba + blocks > namespace.blocks:
                raise CommandFailed(Status.LBA_OUT_OF_RANGE, lba=slba)
            ranges.append((slba, blocks))
        backend, shift = namespace.backend, namespace.shift

        def work() -> None:
            for slba, blocks in ranges:
                backend.discard(slba << shift, blocks << shift)

        def finish(_: object) -> int:
            for slba, blocks in ranges:
                namespace.uncorrectable.remove(slba, slba + blocks)
            return 0

        is_long = count > _SOME_RANGES or sum(blocks for _, blocks in ranges) << shift > _LONG
        return self._run(command, namespace, work, finish, write=True, blocks=backend.flush_blocks or is_long)

    def _copy(self, command: Command, namespace: Namespace) -> int | None:
        entry = command.entry
        if entry.cdw12 >> 8 & 0xF:  # descriptor format
            raise CommandFailed(Status.INVALID_FIELD, location=_AT_CDW12 + 1)
        count = (entry.cdw12 & 0xFF) + 1
        if count > COPY_RANGES:
            raise CommandFailed(Status.COMMAND_SIZE_LIMIT_EXCEEDED, location=_AT_CDW12)
        if namespace.write_protected:
            raise CommandFailed(Status.NAMESPACE_WRITE_PROTECTED)
        data = self._data.read(self._data.pieces(entry, count * _COPY_RANGE.size))
        ranges = [(slba, nlb + 1) for slba, nlb in _COPY_RANGE.iter_unpack(data)]
        total = sum(blocks for _, blocks in ranges)
        if total > COPY_BLOCKS or any(blocks > COPY_RANGE_BLOCKS for _, blocks in ranges):
            raise CommandFailed(Status.COMMAND_SIZE_LIMIT_EXCEEDED, location=24)
        for slba, blocks in [*ranges, (entry.slba, total)]:
            if slba + blocks > namespace.blocks:
                raise CommandFailed(Status.LBA_OUT_OF_RANGE, location=_AT_SLBA, lba=slba)
        for slba, blocks in ranges:
            bad = namespace.uncorrectable.first(slba, slba + blocks)
            if bad is not None:
                raise CommandFailed(Status.UNRECOVERED_READ_ERROR, lba=bad)
        backend, shift = namespace.backend, namespace.shift
        lasting = entry.fua or not self._controller.features.write_cache

        def work() -> None:
            buffers = []
            for slba, blocks in ranges:
                buffers.append(bytearray(blocks << shift))
                try:
                    backend.read(slba << shift, [memoryview(buffers[-1])])
                except OSError as exc:
                    raise status_of(exc, write=False) from exc
            backend.write(entry.slba << shift, buffers)
            if lasting:
                backend.flush()

        def finish(_: object) -> int:
            namespace.uncorrectable.remove(entry.slba, entry.slba + total)
            return 0

        blocks = backend.blocking or (lasting and backend.flush_blocks) or total << shift > _LONG
        return self._run(command, namespace, work, finish, write=True, blocks=blocks, size=total << shift)

    # What they share.

    def _run(
        self,
        command: Command,
        namespace: Namespace,
        work: Callable[[], Any],
        finish: Callable[[Any], int] | None = None,
        *,
        write: bool = False,
        blocks: bool | None = None,
        size: int = 0,
        to_guest: bool = False,
    ) -> int | None:
        if blocks is None:
            blocks = namespace.backend.blocking
        if not blocks and namespace.gate.is_open:
            try:
                result = work()
            except OSError as exc:
                raise status_of(exc, write=write) from exc
            return 0 if finish is None else finish(result)
        self._jobs.start(
            command,
            work,
            finish or _nothing,
            gate=namespace.gate,
            blocks=blocks,
            write=write,
            to_guest=to_guest,
            size=size,
        )
        return None

    def _range(self, entry: SubmissionEntry, namespace: Namespace) -> tuple[int, int]:
        """The bytes of the blocks a command names: offset and length."""
        slba = entry.cdw10 | entry.cdw11 << 32
        blocks = (entry.cdw12 & 0xFFFF) + 1
        if slba + blocks > namespace.blocks:
            raise CommandFailed(Status.LBA_OUT_OF_RANGE, location=_AT_SLBA, lba=slba)
        return slba << namespace.shift, blocks << namespace.shift

    def _transfer(self, entry: SubmissionEntry, namespace: Namespace) -> tuple[int, int]:
        """``_range`` of a command that moves the blocks' data."""
        if (entry.cdw12 & 0xFFFF) + 1 << namespace.shift > self._controller.max_transfer:
            raise CommandFailed(Status.INVALID_FIELD, location=_AT_CDW12)
        return self._range(entry, namespace)

    def _change(self, entry: SubmissionEntry, namespace: Namespace, *, limited: bool = False) -> tuple[int, int]:
        """``_range`` of a command that changes the blocks; ``limited`` if it moves their data."""
        if namespace.write_protected:
            raise CommandFailed(Status.NAMESPACE_WRITE_PROTECTED)
        return self._transfer(entry, namespace) if limited else self._range(entry, namespace)

    def _check_correctable(self, entry: SubmissionEntry, namespace: Namespace) -> None:
        bad = namespace.uncorrectable.first(entry.slba, entry.slba + entry.block_count)
        if bad is not None:
            self._health.media_errors += 1
            raise CommandFailed(Status.UNRECOVERED_READ_ERROR, lba=bad)

    def _written(self, entry: SubmissionEntry, namespace: Namespace) -> None:
        """The blocks of a command can be read again."""
        if namespace.uncorrectable:
            namespace.uncorrectable.remove(entry.slba, entry.slba + entry.block_count)


def _nothing(_: object) -> int:
    return 0
