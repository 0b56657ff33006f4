"""The commands of I/O queues: what they do to the blocks, and how they end."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.nvme import Bench, PatientBackend, bench, fails_with
from vfio_user.backends import FileBackend
from vfio_user.backends.base import ReadableBuffer
from vfio_user.devices.nvme import nvm_commands
from vfio_user.hardware.nvme.data_pointers import SglDescriptor, SglType
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.hardware.nvme.status import Status

BLOCK = 512
BLOCKS = (1 << 20) // BLOCK


def never(*_: object) -> bool:
    return False


@pytest.fixture(params=["memory", "file", "file, always waiting", "mapped"])
def nvme(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """On memory, on a file, on a file that threads read, on a mapped file."""
    image = "memory:1M"
    if request.param != "memory":
        path = tmp_path / "disk.img"
        path.write_bytes(bytes(1 << 20))
        image = f"file:{path}?mapped=on" if request.param == "mapped" else str(path)
    if request.param == "file, always waiting":
        monkeypatch.setattr(FileBackend, "_read_at_once", never)
    with bench(real_time=True, image=image) as made:
        yield made


def command(opcode: int, slba: int = 0, blocks: int = 1, **fields: int) -> SubmissionEntry:
    return SubmissionEntry(
        opcode, nsid=1, cdw10=slba & 0xFFFF_FFFF, cdw11=slba >> 32, cdw12=blocks - 1 | fields.pop("cdw12", 0), **fields
    )


@pytest.mark.parametrize("blocks", [1, 7, 8, 9, 16, 17, 128, 1024])
@pytest.mark.parametrize("fua", [False, True])
def test_what_is_written_is_read(nvme: Bench, blocks: int, fua: bool) -> None:
    data = os.urandom(blocks * BLOCK)
    nvme.driver.write(nvme.queue, 3, data, fua=fua)
    assert nvme.driver.read(nvme.queue, 3, blocks) == data
    assert nvme.driver.read(nvme.queue, 2, 1) == bytes(BLOCK)
    nvme.driver.flush(nvme.queue)
    nvme.driver.flush(nvme.queue, nsid=0xFFFF_FFFF)


def test_the_last_block_and_not_one_more(nvme: Bench) -> None:
    nvme.driver.write(nvme.queue, BLOCKS - 1, b"\7" * BLOCK)
    assert nvme.driver.read(nvme.queue, BLOCKS - 1, 1) == b"\7" * BLOCK
    for slba, blocks in ((BLOCKS - 1, 2), (BLOCKS, 1), ((1 << 64) - 1, 1)):
        with fails_with(Status.LBA_OUT_OF_RANGE):
            nvme.driver.read(nvme.queue, slba, blocks)


@pytest.mark.parametrize("fua", [0, 1 << 30])
def test_a_block_half_of_which_cannot_be_read_is_not_torn(nvme: Bench, fua: int) -> None:
    nvme.driver.write(nvme.queue, 0, b"\1" * BLOCK)
    source = nvme.buffer(b"\2" * 8192)
    torn = command(NvmOpcode.WRITE, prp1=source + 4096 - 256, prp2=0x5555_0000_0000, cdw12=fua)
    assert nvme.status(torn) == Status.DATA_TRANSFER_ERROR
    assert nvme.driver.read(nvme.queue, 0, 1) == b"\1" * BLOCK
    # Two pages that do not follow each other, with a block across.
    source += -source % 4096
    assert nvme.status(torn._replace(prp1=source + 4096 - 256, prp2=source)) == Status.SUCCESS
    assert nvme.driver.read(nvme.queue, 0, 1) == b"\2" * BLOCK


def test_unreadable_blocks_are_not_too_many(nvme: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvm_commands, "_MAX_UNCORRECTABLE", 3)
    for slba in (0, 2, 4):
        assert nvme.status(command(NvmOpcode.WRITE_UNCORRECTABLE, slba)) == Status.SUCCESS
    assert nvme.status(command(NvmOpcode.WRITE_UNCORRECTABLE, 6)) == Status.WRITE_FAULT
    nvme.driver.write(nvme.queue, 2, bytes(BLOCK))
    assert nvme.status(command(NvmOpcode.WRITE_UNCORRECTABLE, 6)) == Status.SUCCESS


def test_compare(nvme: Bench) -> None:
    nvme.driver.write(nvme.queue, 0, b"\1" * BLOCK)
    assert nvme.status(command(NvmOpcode.COMPARE), data=b"\1" * BLOCK) == Status.SUCCESS
    assert nvme.status(command(NvmOpcode.COMPARE), data=b"\1" * 511 + b"\2") == Status.COMPARE_FAILURE


@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes(nvme: Bench, deallocate: int) -> None:
    nvme.driver.write(nvme.queue, 0, b"\1" * 3 * BLOCK)
    assert nvme.status(command(NvmOpcode.WRITE_ZEROES, 1, 1, cdw12=deallocate)) == Status.SUCCESS
    assert nvme.driver.read(nvme.queue, 0, 3) == b"\1" * BLOCK + bytes(BLOCK) + b"\1" * BLOCK


def test_deallocate(nvme: Bench) -> None:
    nvme.driver.write(nvme.queue, 0, b"\1" * 64 * BLOCK)
    ranges = struct.pack("<IIQIIQ", 0, 8, 0, 0, 16, 32)
    entry = SubmissionEntry(NvmOpcode.DATASET_MANAGEMENT, nsid=1, cdw10=1, cdw11=4)
    assert nvme.status(entry, data=ranges) == Status.SUCCESS
    data = nvme.driver.read(nvme.queue, 0, 64)
    assert [index for index in range(64) if not any(data[index * BLOCK : (index + 1) * BLOCK])] == [
        *range(8), *range(32, 48),
    ]  # fmt: skip
    # Without the attribute it is advice only.
    assert nvme.status(entry._replace(cdw10=0, cdw11=3), data=struct.pack("<IIQ", 0, 8, 8)) == Status.SUCCESS
    assert nvme.driver.read(nvme.queue, 8, 1) == b"\1" * BLOCK


def test_copy(nvme: Bench) -> None:
    nvme.driver.write(nvme.queue, 0, b"".join(bytes([index]) * BLOCK for index in range(8)))
    ranges = struct.pack("<8xQH14x8xQH14x", 6, 1, 1, 0)
    entry = SubmissionEntry(NvmOpcode.COPY, nsid=1, cdw10=100, cdw12=1)
    assert nvme.status(entry, data=ranges) == Status.SUCCESS
    assert nvme.driver.read(nvme.queue, 100, 3) == b"\6" * BLOCK + b"\7" * BLOCK + b"\1" * BLOCK


def test_verify(nvme: Bench) -> None:
    assert nvme.status(command(NvmOpcode.VERIFY, 0, BLOCKS)) == Status.SUCCESS
    assert nvme.status(command(NvmOpcode.VERIFY, 1, BLOCKS)) == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("cure", ["write", "write zeroes", "deallocate", "copy"])
def test_blocks_made_uncorrectable_until_they_are_written(nvme: Bench, cure: str) -> None:
    assert nvme.status(command(NvmOpcode.WRITE_UNCORRECTABLE, 4, 2)) == Status.SUCCESS
    for opcode in (NvmOpcode.READ, NvmOpcode.VERIFY, NvmOpcode.COMPARE):
        data = None if opcode == NvmOpcode.VERIFY else bytes(8 * BLOCK)
        assert nvme.status(command(opcode, 0, 8), data=data) == Status.UNRECOVERED_READ_ERROR
    assert nvme.driver.read(nvme.queue, 0, 4) == bytes(4 * BLOCK)
    assert nvme.driver.read(nvme.queue, 6, 2) == bytes(2 * BLOCK)
    copy = SubmissionEntry(NvmOpcode.COPY, nsid=1, cdw10=4)
    assert nvme.status(copy, data=struct.pack("<8xQH14x", 5, 0)) == Status.UNRECOVERED_READ_ERROR
    if cure == "write":
        nvme.driver.write(nvme.queue, 4, bytes(2 * BLOCK))
    elif cure == "write zeroes":
        assert nvme.status(command(NvmOpcode.WRITE_ZEROES, 4, 2)) == Status.SUCCESS
    elif cure == "deallocate":
        entry = SubmissionEntry(NvmOpcode.DATASET_MANAGEMENT, nsid=1, cdw11=4)
        assert nvme.status(entry, data=struct.pack("<IIQ", 0, 2, 4)) == Status.SUCCESS
    else:
        assert nvme.status(copy, data=struct.pack("<8xQH14x", 10, 1)) == Status.SUCCESS
    assert nvme.driver.read(nvme.queue, 0, 8) == bytes(8 * BLOCK)


# Fused compare and write.


def fused(nvme: Bench, expected: bytes, data: bytes, second: SubmissionEntry | None = None) -> list[Status]:
    write = second or command(NvmOpcode.WRITE)
    pair = [
        command(NvmOpcode.COMPARE, flags=1, prp1=nvme.buffer(expected)),
        write._replace(flags=2, prp1=nvme.buffer(data)),
    ]
    return [Status(completion.status) for completion in nvme.queue.wait(nvme.queue.submit(*pair))]


def test_compare_and_write(nvme: Bench) -> None:
    assert fused(nvme, bytes(BLOCK), b"\1" * BLOCK) == [Status.SUCCESS] * 2
    assert fused(nvme, bytes(BLOCK), b"\2" * BLOCK) == [Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED]
    assert nvme.driver.read(nvme.queue, 0, 1) == b"\1" * BLOCK


@pytest.mark.parametrize(
    ("second", "statuses"),
    [
        (command(NvmOpcode.WRITE, 1), [Status.ABORTED_FAILED_FUSED, Status.INVALID_FIELD]),
        (command(NvmOpcode.READ), [Status.ABORTED_FAILED_FUSED, Status.INVALID_FIELD]),
        (command(NvmOpcode.WRITE, 0, 2), [Status.ABORTED_FAILED_FUSED, Status.INVALID_FIELD]),
    ],
)
def test_what_cannot_be_fused(nvme: Bench, second: SubmissionEntry, statuses: list[Status]) -> None:
    assert fused(nvme, bytes(BLOCK), b"\1" * BLOCK, second) == statuses
    assert nvme.driver.read(nvme.queue, 0, 2) == bytes(2 * BLOCK)


def test_halves_of_fused_commands(nvme: Bench) -> None:
    def statuses(*flags: int) -> list[Status]:
        entries = [command(NvmOpcode.COMPARE, flags=flag, prp1=nvme.buffer(bytes(BLOCK))) for flag in flags]
        return [Status(completion.status) for completion in nvme.queue.wait(nvme.queue.submit(*entries))]

    assert statuses(2) == [Status.ABORTED_MISSING_FUSED]
    assert statuses(1, 0) == [Status.ABORTED_MISSING_FUSED, Status.SUCCESS]
    assert statuses(3) == [Status.INVALID_FIELD]
    # The second half may come with a later ring of the doorbell.
    first = nvme.queue.submit(command(NvmOpcode.COMPARE, flags=1, prp1=nvme.buffer(bytes(BLOCK))))
    nvme.under_test.settle()
    assert nvme.queue.poll() == []
    second = nvme.queue.submit(command(NvmOpcode.WRITE, flags=2, prp1=nvme.buffer(b"\3" * BLOCK)))
    assert [completion.status for completion in nvme.queue.wait([*first, *second])] == [0, 0]
    assert nvme.driver.read(nvme.queue, 0, 1) == b"\3" * BLOCK


def test_nothing_comes_between_compare_and_write() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        pair = nvme.queue.submit(
            command(NvmOpcode.COMPARE, flags=1, prp1=nvme.buffer(bytes(BLOCK))),
            command(NvmOpcode.WRITE, flags=2, prp1=nvme.buffer(b"\1" * BLOCK), cdw12=1 << 30),
        )
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        other = nvme.queue.submit(command(NvmOpcode.WRITE, prp1=nvme.buffer(b"\2" * BLOCK)))
        nvme.under_test.settle()
        assert not backend.begun.acquire(timeout=0.02)
        backend.let_go()
        assert [completion.status for completion in nvme.queue.wait([*pair, *other])] == [0, 0, 0]
        assert backend.memory[:BLOCK] == b"\2" * BLOCK
        assert backend.flushed == 1  # of FUA


# Data pointers.


def test_an_sgl_with_a_bit_bucket_and_two_segments(nvme: Bench) -> None:
    data = os.urandom(4 * BLOCK)
    target = nvme.buffer(size=8192)
    nvme.driver.write(nvme.queue, 0, data)
    last = nvme.buffer(SglDescriptor(target + 1, 3 * BLOCK).pack())
    first = nvme.buffer(
        SglDescriptor(0, BLOCK, SglType.BIT_BUCKET).pack() + SglDescriptor(last, 16, SglType.LAST_SEGMENT).pack()
    )
    prp1, prp2 = SglDescriptor(first, 32, SglType.SEGMENT).to_entry()
    assert nvme.status(command(NvmOpcode.READ, 0, 4, flags=0x40, prp1=prp1, prp2=prp2)) == Status.SUCCESS
    assert nvme.device.dma.read(target, 3 * BLOCK + 2) == b"\0" + data[BLOCK:] + b"\0"


@pytest.mark.parametrize("image", ["memory", "file"])
def test_memory_that_is_not_shared(image: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with bench(real_time=True, share_memory=False, image="memory:1M" if image == "memory" else str(path)) as nvme:
        data = os.urandom(300 * BLOCK)
        nvme.driver.write(nvme.queue, 3, data)
        assert nvme.driver.read(nvme.queue, 3, 300) == data


# Backends that fail, or take their time.


@pytest.mark.parametrize(
    ("error", "opcode", "status", "may_retry"),
    [
        (errno.EIO, NvmOpcode.READ, Status.UNRECOVERED_READ_ERROR, False),
        (errno.EIO, NvmOpcode.WRITE, Status.WRITE_FAULT, False),
        (errno.EIO, NvmOpcode.COMPARE, Status.UNRECOVERED_READ_ERROR, False),
        (errno.EIO, NvmOpcode.FLUSH, Status.WRITE_FAULT, False),
        (errno.ENOSPC, NvmOpcode.WRITE, Status.CAPACITY_EXCEEDED, False),
        (errno.EACCES, NvmOpcode.WRITE, Status.ACCESS_DENIED, False),
        (errno.ECONNRESET, NvmOpcode.READ, Status.INTERNAL_ERROR, True),
    ],
)
@pytest.mark.parametrize("blocking", [False, True])
def test_errors_of_the_backend(error: int, opcode: int, status: Status, may_retry: bool, blocking: bool) -> None:
    backend = PatientBackend(patient=False)
    backend.blocking = blocking
    backend.fails = OSError(error, os.strerror(error))
    with bench(real_time=True, backend=backend) as nvme:
        entry = command(opcode, prp1=nvme.buffer(bytes(BLOCK)))
        [completion] = nvme.queue.wait(nvme.queue.submit(entry))
        assert Status(completion.status) == status
        assert completion.do_not_retry != may_retry
        assert completion.more


class BrokenBackend(PatientBackend):
    """Fails to read, or only to write."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__(patient=False)
        self._reads = reads

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        if not self._reads:
            raise OSError(errno.EIO, "broken")
        super()._read(offset, views, length)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        raise OSError(errno.EIO, "broken")


@pytest.mark.parametrize(
    ("reads", "statuses"),
    [
        (False, [Status.UNRECOVERED_READ_ERROR, Status.ABORTED_FAILED_FUSED]),
        (True, [Status.ABORTED_FAILED_FUSED, Status.WRITE_FAULT]),
    ],
)
@pytest.mark.parametrize("blocking", [False, True])
def test_both_commands_of_a_fused_operation_end_where_the_backend_fails(
    reads: bool, statuses: list[Status], blocking: bool
) -> None:
    backend = BrokenBackend(reads=reads)
    backend.blocking = blocking
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        cids = nvme.queue.submit(
            command(NvmOpcode.COMPARE, flags=1, prp1=target), command(NvmOpcode.WRITE, flags=2, prp1=target)
        )
        assert [completion.status for completion in nvme.queue.wait(cids)] == statuses
        assert not nvme.device.submission_queues[1].in_flight


@pytest.mark.parametrize("cached", [True, False])
def test_fua_and_a_write_cache_that_is_off_make_writes_last(cached: bool) -> None:
    backend = PatientBackend(patient=False)
    with bench(real_time=True, backend=backend) as nvme:
        nvme.driver.write(nvme.queue, 0, bytes(BLOCK))
        nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, int(cached))
        assert backend.flushed == (0 if cached else 1)  # what is in the cache when it is switched off
        nvme.driver.write(nvme.queue, 0, bytes(BLOCK))
        assert backend.flushed == (0 if cached else 2)
        nvme.driver.write(nvme.queue, 0, bytes(BLOCK), fua=True)
        assert backend.flushed == (1 if cached else 3)


@pytest.mark.parametrize(
    "entry",
    [
        command(NvmOpcode.WRITE_ZEROES, 0, 2049),
        command(NvmOpcode.VERIFY, 0, 2049),
        SubmissionEntry(NvmOpcode.DATASET_MANAGEMENT, nsid=1, cdw10=0, cdw11=4),
        SubmissionEntry(NvmOpcode.DATASET_MANAGEMENT, nsid=1, cdw10=8, cdw11=4),
        command(NvmOpcode.COPY, 0, 3),
    ],
)
def test_long_commands_do_not_hold_up_others_where_nothing_blocks(entry: SubmissionEntry) -> None:
    backend = PatientBackend(4 << 20)
    backend.blocking = False
    with bench(real_time=True, backend=backend) as nvme:
        if entry.opcode == NvmOpcode.COPY:
            data = struct.pack("<8xQH14x", 0, 1023) * 3
        else:
            data = struct.pack("<IIQ", 0, 8 if entry.cdw10 else 2049, 0) * 9
        cids = nvme.queue.submit(entry._replace(prp1=nvme.buffer(data)))
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        assert nvme.status(command(0xFF)) == Status.INVALID_COMMAND_OPCODE
        backend.let_go()
        assert nvme.queue.wait(cids)[0].status == 0


def test_commands_that_block_do_not_hold_up_others() -> None:
    backend = PatientBackend()
    backend.memory[:BLOCK] = b"\5" * BLOCK
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=BLOCK)
        cids = nvme.queue.submit(command(NvmOpcode.READ, prp1=target), command(NvmOpcode.READ, 1, prp1=target))
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        assert nvme.queue.poll() == []
        assert nvme.status(command(0xFF)) == Status.INVALID_COMMAND_OPCODE  # out of order
        backend.let_go()
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0, 0]


class CachingBackend(PatientBackend):
    """Half of it need not be waited for."""

    def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
        if offset + length > self.size // 2:
            return False
        for view in views:
            view[:] = self.memory[offset : offset + len(view)]
            offset += len(view)
        return True


def test_what_need_not_be_waited_for_is_read_at_once() -> None:
    backend = CachingBackend()
    backend.memory[:] = os.urandom(backend.size)
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(size=3 * BLOCK)
        cids = nvme.queue.submit(
            command(NvmOpcode.READ, BLOCKS - 1, prp1=target),
            command(NvmOpcode.READ, 5, 2, prp1=target + BLOCK),
        )
        nvme.under_test.settle()
        assert [completion.cid for completion in nvme.queue.poll()] == [cids[1]]
        assert nvme.device.dma.read(target, 3 * BLOCK) == bytes(BLOCK) + backend.memory[5 * BLOCK : 7 * BLOCK]
        backend.let_go()
        assert [completion.status for completion in nvme.queue.wait(cids[:1])] == [0]
        assert nvme.device.dma.read(target, BLOCK) == backend.memory[-BLOCK:]
        # Not while a command works there alone.
        backend.hold()
        pair = [command(NvmOpcode.COMPARE, flags=1, prp1=target), command(NvmOpcode.WRITE, flags=2, prp1=target)]
        nvme.queue.submit(*pair, command(NvmOpcode.READ, 5, 2, prp1=target))
        nvme.under_test.settle()
        assert nvme.queue.poll() == []
        backend.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)


def test_data_that_has_nowhere_to_go_is_not_read_at_once() -> None:
    with bench(real_time=True, backend=CachingBackend(patient=False)) as nvme:
        assert nvme.status(command(NvmOpcode.READ, prp1=0x5555_0000_0000)) == Status.DATA_TRANSFER_ERROR
        last = nvme.buffer(SglDescriptor(0, BLOCK, SglType.BIT_BUCKET).pack())
        prp1, prp2 = SglDescriptor(last, 16, SglType.LAST_SEGMENT).to_entry()
        assert nvme.status(command(NvmOpcode.READ, flags=0x40, prp1=prp1, prp2=prp2)) == Status.SUCCESS


def test_a_command_identifier_that_is_in_use() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        entry = command(NvmOpcode.READ, prp1=nvme.buffer(size=BLOCK), cid=77)
        nvme.queue.put(entry)
        nvme.queue.put(entry)
        nvme.queue.ring()
        nvme.under_test.settle()
        [completion] = nvme.queue.poll()
        assert (completion.cid, completion.status) == (77, Status.COMMAND_ID_CONFLICT)
        backend.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)


def test_a_read_only_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\1" * (1 << 16))
    with bench(real_time=True, image=f"file:{path}?read_only=on") as nvme:
        assert nvme.driver.identify_namespace(1).nsattr == 1
        assert nvme.driver.read(nvme.queue, 0, 1) == b"\1" * BLOCK
        for opcode in (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.WRITE_UNCORRECTABLE):
            data = bytes(BLOCK) if opcode == NvmOpcode.WRITE else None
            assert nvme.status(command(opcode), data=data) == Status.NAMESPACE_WRITE_PROTECTED
