from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.scsi.initiator import GOOD, Initiator, cdb
from tests.devices.scsi.storage import Jobs, SlowStorage, Storage
from vfio_user.backends import MemoryBackend
from vfio_user.devices.scsi import Disk, Task, TaskPhase
from vfio_user.devices.scsi.block_unit import PIECE
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey, Status
from vfio_user.hardware.scsi.codes import OperationCode as Op

ILLEGAL, DATA_PROTECT, MEDIUM_ERROR = SenseKey.ILLEGAL_REQUEST, SenseKey.DATA_PROTECT, SenseKey.MEDIUM_ERROR

BLOCKS = 64


def make(blocks: int = BLOCKS, **options: Any) -> tuple[Storage, Initiator]:
    storage = Storage(blocks * options.get("block_size", 512), read_only=options.pop("read_only_storage", False))
    return storage, Initiator(Disk(storage, **options)).ready()


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + seed) % 251 for index in range(length))


def read_10(lba: int, blocks: int, flags: int = 0) -> bytes:
    return cdb("BBIxHx", Op.READ_10, flags, lba, blocks)


def write_10(lba: int, blocks: int, flags: int = 0) -> bytes:
    return cdb("BBIxHx", Op.WRITE_10, flags, lba, blocks)


READS: dict[int, Callable[..., bytes]] = {
    6: lambda lba, blocks: cdb("BBHBx", Op.READ_6, lba >> 16, lba & 0xFFFF, blocks & 0xFF),
    10: read_10,
    12: lambda lba, blocks: cdb("BxIIxx", Op.READ_12, lba, blocks),
    16: lambda lba, blocks: cdb("BxQIxx", Op.READ_16, lba, blocks),
}
WRITES: dict[int, Callable[..., bytes]] = {
    6: lambda lba, blocks: cdb("BBHBx", Op.WRITE_6, lba >> 16, lba & 0xFFFF, blocks & 0xFF),
    10: write_10,
    12: lambda lba, blocks: cdb("BxIIxx", Op.WRITE_12, lba, blocks),
    16: lambda lba, blocks: cdb("BxQIxx", Op.WRITE_16, lba, blocks),
}
VERIFIES: dict[int, Callable[..., bytes]] = {
    10: lambda lba, blocks, check=0: cdb("BBIxHx", Op.VERIFY_10, check << 1, lba, blocks),
    12: lambda lba, blocks, check=0: cdb("BBIIxx", Op.VERIFY_12, check << 1, lba, blocks),
    16: lambda lba, blocks, check=0: cdb("BBQIxx", Op.VERIFY_16, check << 1, lba, blocks),
}


# Reading and writing.


@pytest.mark.parametrize("size", [6, 10, 12, 16])
@pytest.mark.parametrize("portion", [1 << 30, 700, 512])
def test_write_and_read(size: int, portion: int) -> None:
    storage, initiator = make()
    initiator.portion = portion
    data = pattern(3 * 512)
    initiator.good(WRITES[size](5, 3), data)
    assert storage.bytes[5 * 512 : 8 * 512] == data
    assert initiator.good(READS[size](5, 3)) == data
    assert initiator.good(READS[size](4, 1)) == bytes(512)


def test_six_bytes_and_no_length_mean_256_blocks() -> None:
    storage, initiator = make(blocks=300)
    storage.bytes[:] = pattern(len(storage.bytes))
    assert initiator.good(READS[6](40, 0)) == storage.bytes[40 * 512 : 296 * 512]
    initiator.good(WRITES[6](44, 0), bytes(256 * 512))
    assert storage.bytes[44 * 512 :] == bytes(256 * 512)
    initiator.illegal(READS[6](45, 0), 1, 4, AdditionalSense.LBA_OUT_OF_RANGE)


@pytest.mark.parametrize("size", [10, 12, 16])
def test_no_blocks_are_no_data(size: int) -> None:
    _, initiator = make()
    assert initiator.good(READS[size](BLOCKS, 0)) == b""
    assert initiator.good(WRITES[size](BLOCKS, 0)) == b""
    initiator.illegal(READS[size](BLOCKS + 1, 0), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)
    assert set(initiator.phases[2:]) == {TaskPhase.STATUS}


@pytest.mark.parametrize("size", [6, 10, 12, 16])
@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (BLOCKS - 1, 2), (0, BLOCKS + 1), ((1 << 21) - 1, 1)])
def test_blocks_that_are_not_there(size: int, lba: int, blocks: int) -> None:
    storage, initiator = make()
    byte, bit = (1, 4) if size == 6 else (2, None)
    initiator.illegal(READS[size](lba, blocks), byte, bit, AdditionalSense.LBA_OUT_OF_RANGE)
    initiator.illegal(WRITES[size](lba, blocks), byte, bit, AdditionalSense.LBA_OUT_OF_RANGE, data=b"x")
    assert storage.bytes == bytes(len(storage.bytes))
    assert TaskPhase.DATA_OUT not in initiator.phases


def test_the_largest_addresses() -> None:
    _, initiator = make()
    for lba, blocks in [((1 << 64) - 1, 1), ((1 << 64) - 1, (1 << 32) - 1), (0, (1 << 32) - 1)]:
        for command in (READS[16](lba, blocks), WRITES[16](lba, blocks), VERIFIES[16](lba, blocks)):
            initiator.illegal(command, 2, None, AdditionalSense.LBA_OUT_OF_RANGE)


@pytest.mark.parametrize("backend", [Storage, MemoryBackend])
def test_large_transfers_go_in_pieces(backend: Any) -> None:
    blocks = 3 * PIECE // 512 + 1
    initiator = Initiator(Disk(backend(blocks * 512))).ready()
    data = pattern(blocks * 512)
    initiator.good(WRITES[12](0, blocks), data)
    assert initiator.good(READS[12](0, blocks)) == data


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_size(block_size: int) -> None:
    storage, initiator = make(block_size=block_size)
    assert initiator.good(cdb("B9x", Op.READ_CAPACITY_10)) == struct.pack(">II", BLOCKS - 1, block_size)
    initiator.good(write_10(1, 1), pattern(block_size))
    assert storage.bytes[block_size : 2 * block_size] == pattern(block_size)


def test_protection_information_is_not_there() -> None:
    _, initiator = make()
    initiator.illegal(read_10(0, 1, 0x20), 1, 7)
    initiator.illegal(write_10(0, 1, 0x20), 1, 7)
    initiator.illegal(cdb("BBIxHx", Op.VERIFY_10, 0x20, 0, 1), 1, 7)
    initiator.illegal(cdb("BBIxHx", Op.WRITE_SAME_10, 0x20, 0, 1), 1, 7)


# What lasts.


def test_writes_are_cached() -> None:
    storage, initiator = make()
    initiator.good(write_10(0, 1), bytes(512))
    assert storage.flushes == 0
    initiator.good(write_10(0, 1, 0x08), bytes(512))
    assert storage.flushes == 1
    initiator.good(write_10(0, 1, 0x10), bytes(512))  # DPO alone
    assert storage.flushes == 1


@pytest.mark.parametrize("command", [cdb("BxIxHx", Op.SYNCHRONIZE_CACHE_10, 0, 0), cdb("B15x", 0x91)])
def test_synchronize_cache(command: bytes) -> None:
    storage, initiator = make()
    initiator.good(command)
    assert storage.flushes == 1


def test_synchronize_cache_of_blocks_that_are_not_there() -> None:
    _, initiator = make()
    initiator.illegal(cdb("BxIxHx", 0x35, BLOCKS, 1), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)


def test_without_the_write_cache_every_write_lasts() -> None:
    storage, initiator = make()
    page = bytearray(initiator.good("1a0808001800")[4:])
    page[2] &= ~4
    initiator.good("151000001800", bytes(4) + page)
    storage.flushes = 0
    initiator.good(write_10(0, 1), bytes(512))
    assert storage.flushes == 1
    initiator.good(cdb("BxIxHx", Op.WRITE_SAME_10, 0, 1), bytes(512))
    assert storage.flushes == 2


def test_a_read_only_disk_flushes_nothing() -> None:
    storage, initiator = make(read_only_storage=True)
    initiator.good("35" + "00" * 9)
    assert storage.flushes == 0


# Write protection.


WRITING = [
    *(make_cdb(0, 1) for make_cdb in WRITES.values()),
    cdb("BxIxHx", Op.WRITE_AND_VERIFY_10, 0, 1),
    cdb("BxIxHx", Op.WRITE_SAME_10, 0, 1),
    cdb("BxQIxx", Op.WRITE_SAME_16, 0, 1),
    cdb("BxIxHx", Op.UNMAP, 0, 24),
]


@pytest.mark.parametrize("command", WRITING)
@pytest.mark.parametrize("options", [{"read_only": True}, {"read_only_storage": True}])
def test_nothing_is_written_to_a_disk_that_is_read_only(command: bytes, options: dict[str, bool]) -> None:
    _, initiator = make(**options)
    initiator.check(command, DATA_PROTECT, AdditionalSense.WRITE_PROTECTED)
    assert TaskPhase.DATA_OUT not in initiator.phases
    assert initiator.good(read_10(0, 1)) == bytes(512)
    assert initiator.good("1a003f00ff00")[2] == 0x90


def test_software_write_protect() -> None:
    storage, initiator = make()
    page = bytearray(initiator.good("1a080a001000")[4:])
    page[4] |= 0x08
    initiator.good("151000001000", bytes(4) + page)
    initiator.check(write_10(0, 1), DATA_PROTECT, AdditionalSense.WRITE_PROTECTED)
    assert initiator.good("1a003f00ff00")[2] == 0x90
    page[4] &= ~0x08
    initiator.good("151000001000", bytes(4) + page)
    initiator.good(write_10(0, 1), b"x" * 512)
    assert storage.bytes[0] == ord("x")


# Verifying.


@pytest.mark.parametrize("size", [10, 12, 16])
def test_verify(size: int) -> None:
    storage, initiator = make()
    storage.bytes[512:1536] = pattern(1024)
    assert initiator.good(VERIFIES[size](1, 2)) == b""
    initiator.portion = 300
    initiator.good(VERIFIES[size](1, 2, 1), pattern(1024))
    initiator.check(
        VERIFIES[size](1, 2, 1),
        SenseKey.MISCOMPARE,
        AdditionalSense.MISCOMPARE_DURING_VERIFY,
        data=pattern(1023) + b"\xff",
    )
    storage.bytes[1024:1536] = storage.bytes[512:1024]
    initiator.good(VERIFIES[size](1, 2, 3), pattern(512))
    initiator.check(
        VERIFIES[size](1, 3, 3), SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY, data=pattern(512)
    )
    initiator.good(VERIFIES[size](1, 0, 3))
    initiator.illegal(VERIFIES[size](1, 1, 2), 1, 2)
    initiator.illegal(VERIFIES[size](BLOCKS, 1), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)
    storage.failure = OSError(errno.EIO, "broken")
    result = initiator.check(VERIFIES[size](1, 1), MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR)
    assert result.sense.information == 1


@pytest.mark.parametrize(
    "command", [cdb("BBIxHx", 0x2E, 2, 1, 2), cdb("BBIIxx", 0xAE, 2, 1, 2), cdb("BBQIxx", 0x8E, 2, 1, 2)]
)
def test_write_and_verify(command: bytes) -> None:
    storage, initiator = make()
    initiator.good(command, pattern(1024))
    assert storage.bytes[512:1536] == pattern(1024)
    assert storage.flushes == 1


def test_write_and_verify_with_a_check_there_is_not() -> None:
    _, initiator = make()
    initiator.illegal(cdb("BBIxHx", 0x2E, 4, 1, 2), 1, 2)


def test_write_and_verify_finds_what_was_not_written() -> None:
    storage, initiator = make()
    storage._write = lambda *_args: None  # type: ignore[method-assign]
    initiator.check(
        cdb("BxIxHx", 0x2E, 1, 1), SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY, data=b"x" * 512
    )


# Provisioning.


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", *each) for each in ranges)
    return struct.pack(">HH4x", 6 + len(body), len(body)) + body


def unmap(length: int, anchor: int = 0) -> bytes:
    return cdb("BBIxHx", Op.UNMAP, anchor, 0, length)


def test_unmap() -> None:
    storage, initiator = make()
    storage.bytes[:] = b"x" * len(storage.bytes)
    parameters = unmap_list((1, 2), (10, 0), (BLOCKS - 1, 1))
    initiator.good(unmap(len(parameters)), parameters)
    assert storage.discarded == [(512, 1024), ((BLOCKS - 1) * 512, 512)]
    assert initiator.good(read_10(0, 4)) == b"x" * 512 + bytes(1024) + b"x" * 512


def test_unmap_of_nothing() -> None:
    storage, initiator = make()
    initiator.good(unmap(0))
    initiator.good(unmap(8), unmap_list())
    initiator.good(unmap(24), unmap_list((0, 1))[:2] + b"\0\x08" + bytes(20))  # half a descriptor
    assert storage.discarded == []


@pytest.mark.parametrize("command", ["040000000000", "041000000000", "043000000000"])
def test_formatting_takes_no_time(command: str) -> None:
    storage, initiator = make()
    storage.bytes[:512] = b"x" * 512
    initiator.good(command, bytes({"0": 0, "1": 4, "3": 8}[command[2]]))
    initiator.good(read_10(0, 1))


def test_formats_there_are_none_of() -> None:
    _, initiator = make()
    for byte, bit in [(0x80, 7), (0x08, 3), (0x04, 2)]:
        initiator.illegal(f"04{byte:02x}00000000", 1, bit)
    for header, byte in [("01000000", 0), ("00080000", 1), ("00000001", 2)]:
        initiator.illegal("041000000000", byte, data=bytes.fromhex(header), in_data=True)
    initiator.illegal("043000000000", 3, data=bytes.fromhex("0000000100000000"), in_data=True)
    _, initiator = make(read_only=True)
    initiator.check("040000000000", SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED)


def test_unmap_that_is_wrong() -> None:
    storage, initiator = make()
    initiator.illegal(unmap(24, anchor=1), 1, 0)
    initiator.check(unmap(7), ILLEGAL, AdditionalSense.PARAMETER_LIST_LENGTH_ERROR, data=bytes(7))
    for wrong in [(BLOCKS, 1), (BLOCKS - 1, 2), ((1 << 64) - 1, (1 << 32) - 1)]:
        parameters = unmap_list((0, 1), wrong)
        initiator.check(unmap(len(parameters)), ILLEGAL, AdditionalSense.LBA_OUT_OF_RANGE, data=parameters)
    parameters = unmap_list(*[(0, 1)] * 256)
    initiator.illegal(unmap(len(parameters)), 2, data=parameters, in_data=True)
    assert storage.discarded == []


@pytest.mark.parametrize("size", [10, 16])
def test_write_same(size: int) -> None:
    storage, initiator = make(blocks=2000)
    layout = {10: "BBIxHx", 16: "BBQIxx"}[size]
    code = {10: Op.WRITE_SAME_10, 16: Op.WRITE_SAME_16}[size]
    initiator.good(cdb(layout, code, 0, 3, 1500), pattern(512))
    assert storage.bytes == bytes(3 * 512) + pattern(512) * 1500 + bytes(497 * 512)
    initiator.good(cdb(layout, code, 0x08, 4, 0), bytes(512))  # to the end
    assert storage.bytes == bytes(3 * 512) + pattern(512) + bytes(1996 * 512)
    initiator.illegal(cdb(layout, code, 0x10, 0, 1), 1, 4)
    initiator.illegal(cdb(layout, code, 0, 2000, 1), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)
    initiator.illegal(cdb(layout, code, 0, 2001, 0), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)


def test_write_same_without_data() -> None:
    storage, initiator = make()
    storage.bytes[:] = b"x" * len(storage.bytes)
    initiator.good(cdb("BBQIxx", Op.WRITE_SAME_16, 0x01, 1, 2))
    assert storage.bytes[:2048] == b"x" * 512 + bytes(1024) + b"x" * 512
    assert TaskPhase.DATA_OUT not in initiator.phases


# Errors of storage.


@pytest.mark.parametrize(
    ("number", "key", "read", "write"),
    [
        (errno.EIO, MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR, AdditionalSense.WRITE_ERROR),
        (errno.EROFS, DATA_PROTECT, AdditionalSense.WRITE_PROTECTED, AdditionalSense.WRITE_PROTECTED),
        (errno.ENOSPC, DATA_PROTECT, *[AdditionalSense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT] * 2),
        (errno.ENOMEDIUM, SenseKey.NOT_READY, *[AdditionalSense.MEDIUM_NOT_PRESENT] * 2),
    ],
)
def test_errors_become_sense(number: int, key: SenseKey, read: AdditionalSense, write: AdditionalSense) -> None:
    storage, initiator = make()
    storage.failure = OSError(number, "failed")
    assert initiator.check(read_10(7, 1), key, read).sense.information == 7
    assert initiator.check(write_10(8, 1), key, write, data=bytes(512)).sense.information == 8
    initiator.check("35" + "00" * 9, key, write)
    storage.failure = None
    assert initiator.good(read_10(0, 1)) == bytes(512)


def test_an_error_names_the_first_block_that_is_in_doubt() -> None:
    blocks = 3 * PIECE // 512
    storage, initiator = make(blocks=blocks + 10)
    storage.failure, storage.good_calls = OSError(errno.EIO, "failed"), 1
    result = initiator.check(WRITES[16](10, blocks), MEDIUM_ERROR, AdditionalSense.WRITE_ERROR, data=bytes(3 * PIECE))
    assert result.sense.information == 10 + PIECE // 512
    storage.good_calls = 2
    result = initiator.check(READS[16](10, blocks), MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR)
    assert (result.sense.information, len(result.data), result.residual) == (10 + 2 * PIECE // 512, 2 * PIECE, PIECE)


def test_a_bug_is_an_error_of_the_target_and_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    storage, initiator = make()
    storage.close()
    initiator.check(read_10(0, 1), SenseKey.HARDWARE_ERROR, AdditionalSense.INTERNAL_TARGET_FAILURE)
    assert "a bug of ours" in caplog.text


# Storage that has to be waited for.


def test_work_goes_to_the_workers() -> None:
    storage, jobs = SlowStorage(BLOCKS * 512), Jobs()
    initiator = Initiator(Disk(storage, workers=jobs), wait=jobs.step).ready()
    initiator.good(write_10(0, 2, 0x08), pattern(1024))
    assert jobs.done == 2  # the write, and the flush
    assert initiator.good(read_10(0, 2)) == pattern(1024)
    assert jobs.done == 3
    initiator.good(VERIFIES[10](0, 2, 1), pattern(1024))
    parameters = unmap_list((0, 1))
    initiator.good(unmap(len(parameters)), parameters)
    assert initiator.good(read_10(0, 2)) == bytes(512) + pattern(1024)[512:]
    storage.failure = OSError(errno.EIO, "broken")
    initiator.check(read_10(0, 2), MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR)


def test_what_can_be_had_at_once_is_not_waited_for() -> None:
    class Cached(SlowStorage):
        """Has the first half in memory."""

        def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
            if offset + length > self.size // 2:
                return False
            self._read(offset, views, length)
            return True

    storage, jobs = Cached(BLOCKS * 512), Jobs()
    storage.bytes[:] = pattern(BLOCKS * 512)
    initiator = Initiator(Disk(storage, workers=jobs), wait=jobs.step).ready()
    assert initiator.good(read_10(1, 2)) == storage.bytes[512:1536]
    assert jobs.done == 0
    assert initiator.good(read_10(BLOCKS // 2 - 1, 2)) == storage.bytes[BLOCKS * 256 - 512 : BLOCKS * 256 + 512]
    assert jobs.done == 1
    # Nobody takes what is only verified, so that there is no end to it but the command's: it never keeps the device.
    initiator.good(VERIFIES[10](0, 8))
    assert jobs.done == 2


def test_what_is_at_hand_is_read_where_it_goes() -> None:
    """All of it, without a copy; and what is not, in pieces, as work."""

    class Cached(SlowStorage):
        """Has the first two MiB in memory, but for some moments."""

        is_forgetful = False

        def _read_at_once(self, offset: int, views: Sequence[memoryview], length: int) -> bool:
            if self.is_forgetful or not self._is_at_hand(offset, length):
                return False
            self._read(offset, views, length)
            return True

        def _is_at_hand(self, offset: int, length: int) -> bool:
            return offset + length <= 2 << 20

    storage, jobs = Cached(3 << 20), Jobs()
    storage.bytes[:] = pattern(3 << 20)
    initiator = Initiator(Disk(storage, workers=jobs), wait=jobs.step).ready()
    task = initiator.start(read_10(1, 4000))
    place = memoryview(bytearray(4000 * 512))
    assert task.in_hand == 1 << 20
    assert task.read_into([place[:512], place[512 : 1 << 20]])
    assert task.read_into([place[1 << 20 :]])
    assert (task.status, place == storage.bytes[512 : 4001 * 512]) == (Status.GOOD, True)
    assert jobs.done == 0
    assert initiator.good(read_10(1, 4000)) == place
    assert jobs.done == 0
    storage.is_forgetful = True
    assert initiator.good(read_10(1, 4000)) == place
    assert jobs.done == 2
    storage.is_forgetful = False
    assert initiator.good(read_10(2048, 4096)) == storage.bytes[1 << 20 : 3 << 20]
    assert jobs.done == 2 + 4


@pytest.mark.parametrize("size", [0, 511])
def test_a_medium_has_a_block(size: int) -> None:
    with pytest.raises(ValueError, match=f"the backend has {size} bytes, not even a block of 512: give it one"):
        Disk(Storage(size))
    disk = Disk(None, removable=True)
    with pytest.raises(ValueError, match="not even a block"):
        disk.insert(Storage(size))


def test_without_workers_slow_storage_is_waited_for() -> None:
    initiator = Initiator(Disk(SlowStorage(BLOCKS * 512))).ready()
    assert initiator.good(read_10(0, 1)) == bytes(512)


def test_several_tasks_at_once_and_an_abort() -> None:
    storage, jobs = SlowStorage(BLOCKS * 512), Jobs()
    disk = Disk(storage, workers=jobs)
    storage.bytes[:] = pattern(len(storage.bytes))
    initiator = Initiator(disk, wait=jobs.step).ready()
    tasks = [initiator.start(read_10(number, 1), tag=number) for number in range(3)]
    initiator.phases.clear()
    disk.abort(tasks[1])
    assert list(disk.tasks) == [tasks[0], tasks[2]]
    while jobs.waiting:
        jobs.step()
    assert [task.phase for task in tasks] == [TaskPhase.DATA_IN, TaskPhase.BUSY, TaskPhase.DATA_IN]
    assert initiator.phases == [TaskPhase.DATA_IN] * 2
    assert bytes(tasks[2].read(512)) == pattern(len(storage.bytes))[1024:1536]
    assert list(disk.tasks) == [tasks[0]]


# What it says about itself.


def test_capacity_16() -> None:
    _, initiator = make()
    data = initiator.good(cdb("BBQIxx", 0x9E, 0x10, 0, 64))
    assert data == struct.pack(">QIBBB17x", BLOCKS - 1, 512, 0, 0, 0xC0)
    assert initiator.good(cdb("BBQIxx", 0x9E, 0x10, 0, 10)) == data[:10]
    initiator.illegal(cdb("BBQIxx", 0x9E, 0x10, 1, 32), 2)


def test_capacity_10() -> None:
    _, initiator = make()
    initiator.illegal(cdb("BxI4x", 0x25, 1), 2)
    assert initiator.good(cdb("BxIxxBx", 0x25, 1, 1)) == struct.pack(">II", BLOCKS - 1, 512)


def test_capacity_of_a_disk_too_large_for_four_bytes() -> None:
    class Large(Storage):
        def __init__(self) -> None:
            super().__init__(512)
            self._size = (1 << 32) * 512 + 512

    initiator = Initiator(Disk(Large())).ready()
    assert initiator.good("25" + "00" * 9) == struct.pack(">II", 0xFFFF_FFFF, 512)
    assert initiator.good(cdb("BBQIxx", 0x9E, 0x10, 0, 12)) == struct.pack(">QI", 1 << 32, 512)


def test_pages_of_vital_product_data() -> None:
    _, initiator = make()
    assert initiator.good("12010000ff00") == bytes.fromhex("00000006 00 80 83 b0 b1 b2")
    limits = initiator.good("1201b000ff00")
    assert (limits[1], len(limits)) == (0xB0, 64)
    assert struct.unpack_from(">II", limits, 20) == (0xFFFF_FFFF, 255)
    assert initiator.good("1201b100ff00") == bytes.fromhex("00b1003c0001") + bytes(58)
    assert initiator.good("1201b200ff00") == bytes.fromhex("00b20004 00e40200")


def test_start_and_stop() -> None:
    storage, initiator = make()
    initiator.good("1b0000000000")
    assert storage.flushes == 1
    not_running = (SenseKey.NOT_READY, AdditionalSense.NOT_READY_INITIALIZING_COMMAND_REQUIRED)
    initiator.check(read_10(0, 1), *not_running)
    initiator.check("000000000000", *not_running)
    initiator.good("120000002400")
    initiator.good("1b0000000100")
    initiator.good(read_10(0, 1))
    initiator.good("1b0000000400")  # stopped once more, and nothing flushed
    assert storage.flushes == 1
    initiator.illegal("1b0000001000", 4, 7)
    initiator.illegal("1b0000000200", 4, 1)


def test_a_removable_disk() -> None:
    storage, initiator = make(removable=True)
    assert initiator.good("120000002400")[1] == 0x80
    initiator.good("1e0000000100")
    initiator.check("1b0000000200", ILLEGAL, AdditionalSense.MEDIUM_REMOVAL_PREVENTED)
    initiator.illegal("1e0000000300", 4, 1)
    initiator.good("1e0000000000")
    initiator.good("1b0000000200")
    for command in [read_10(0, 1), b"\0" * 6, b"\x25" + bytes(9), write_10(0, 1)]:
        initiator.check(command, SenseKey.NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT)
    initiator.good("1b0000000300")
    initiator.check(read_10(0, 1), SenseKey.UNIT_ATTENTION, AdditionalSense.MEDIUM_MAY_HAVE_CHANGED)
    initiator.good(read_10(0, 1))
    disk = initiator.unit
    assert isinstance(disk, Disk)
    assert disk.remove() is storage
    initiator.good("1b0000000300")  # there is nothing to load
    initiator.check("000000000000", SenseKey.NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT)
    disk.insert(Storage(512 * 100))
    initiator.check("000000000000", SenseKey.UNIT_ATTENTION, AdditionalSense.MEDIUM_MAY_HAVE_CHANGED)
    assert initiator.good("25" + "00" * 9)[:4] == struct.pack(">I", 99)


def test_another_capacity() -> None:
    _, initiator = make()
    assert isinstance(initiator.unit, Disk)
    initiator.unit.insert(Storage(BLOCKS * 512))
    initiator.good("000000000000")
    initiator.unit.insert(Storage(BLOCKS * 1024))
    initiator.check("000000000000", SenseKey.UNIT_ATTENTION, AdditionalSense.CAPACITY_CHANGED)
    with pytest.raises(ValueError, match="cannot be taken out"):
        initiator.unit.remove()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_size": 1024}, "a block of 1024 bytes is none of 512, 4096"),
        ({"vendor": "much too long"}, "the vendor 'much too long' is not at most 8 printable"),
        ({"product": "\xe4"}, "is not at most 16 printable characters of ASCII"),
        ({"serial": "\n"}, "the serial"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Disk(Storage(4096), **options)


def test_storage_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="use block_size=4096"):
        Disk(Storage(8192, block_size=4096))
    with pytest.raises(ValueError, match="has to be removable"):
        Disk(None)
    disk = Disk(None, removable=True)
    Initiator(disk).ready().check("000000000000", SenseKey.NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT)
    assert Disk(Storage(8192, block_size=4096), block_size=4096).blocks == 2


# Properties.

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "same", "unmap", "verify"]),
        st.sampled_from([6, 10, 12, 16]),
        st.integers(0, BLOCKS + 1),
        st.integers(1, 20),
        st.integers(1, 250),
    ),
    max_size=12,
)


@given(OPERATIONS, st.integers(1, 3000), st.booleans())
@settings(max_examples=60)
def test_it_is_a_row_of_bytes(operations: list[tuple[str, int, int, int, int]], portion: int, slow: bool) -> None:
    jobs = Jobs()
    storage = (SlowStorage if slow else Storage)(BLOCKS * 512)
    initiator = Initiator(Disk(storage, workers=jobs), portion=portion, wait=jobs.step).ready()
    model = bytearray(BLOCKS * 512)
    for what, size, lba, blocks, seed in operations:
        where = slice(lba * 512, (lba + blocks) * 512)
        fits = lba + blocks <= BLOCKS
        data = pattern(blocks * 512, seed)
        match what:
            case "read":
                result = initiator.run(READS[size](lba, blocks))
                assert result.data == (model[where] if fits else b"")
            case "write":
                result = initiator.run(WRITES[size](lba, blocks), data)
            case "same":
                result = initiator.run(cdb("BBQIxx", Op.WRITE_SAME_16, 0, lba, blocks), data[:512])
                data = data[:512] * blocks
            case "unmap":
                parameters = unmap_list((lba, blocks))
                result = initiator.run(unmap(len(parameters)), parameters)
                data = bytes(blocks * 512)
            case _:
                result = initiator.run(VERIFIES[max(size, 10)](lba, blocks, 1), data)
                assert (result.status is GOOD) is (fits and model[where] == data)
        if fits and what in ("write", "same", "unmap"):
            model[where] = data
        if what != "verify":
            assert (result.status is GOOD) is fits
    assert storage.bytes == model


@given(st.binary(max_size=20), st.sampled_from([None, *Op]), st.binary(max_size=300), st.integers(1, 64))
@settings(max_examples=400)
def test_no_command_is_too_much(command: bytes, code: Op | None, data: bytes, portion: int) -> None:
    if code is not None:
        command = bytes([code]) + command
    initiator = Initiator(Disk(Storage(BLOCKS * 512), removable=True), portion=portion * 1024).ready()
    result = initiator.run(command, data)
    assert isinstance(result.status, Status)
    assert (result.status is Status.CHECK_CONDITION) is bool(result.raw_sense)
    if result.raw_sense:
        assert result.sense.additional is not AdditionalSense.INTERNAL_TARGET_FAILURE
    assert initiator.unit.tasks == ()


@given(st.integers(0, 300), st.sampled_from(["1a003f00{:02x}00", "12000000{:02x}00", "03000000{:02x}00"]))
def test_data_is_cut_to_the_allocation_length(length: int, command: str) -> None:
    _, initiator = make()
    length = min(length, 255)
    whole = initiator.good(command.format(255))
    assert initiator.good(command.format(length)) == whole[:length]


# Saving.


def test_a_saved_disk_is_the_same_disk() -> None:
    storage, initiator = make(removable=True)
    initiator.good("1e0000000100")
    initiator.good(write_10(0, 2), bytes(1024))
    page = bytearray(initiator.good("1a0808001800")[4:])
    page[2] ^= 4
    initiator.good("151000001800", bytes(4) + page)
    initiator.run("ff0000000000")  # leaves sense data
    other = Disk(storage, removable=True)
    other.load(initiator.unit.save())
    second = Initiator(other)
    assert second.last_sense().additional is AdditionalSense.INVALID_OPERATION_CODE
    second.check("1b0000000200", ILLEGAL, AdditionalSense.MEDIUM_REMOVAL_PREVENTED)
    assert second.good("1a0808001800")[4:] == page
    initiator.last_sense()
    assert other.save() == initiator.unit.save()
    with pytest.raises(ValueError, match="has 64 blocks, this one 1"):
        Disk(Storage(512)).load(initiator.unit.save())


def test_a_saved_write_is_finished_elsewhere() -> None:
    storage, jobs = SlowStorage(4 * PIECE), Jobs()
    disk = Disk(storage, workers=jobs)
    initiator = Initiator(disk, wait=jobs.step).ready()
    data = pattern(3 * PIECE)
    task = initiator.start(WRITES[16](0, 3 * PIECE // 512), tag=1)
    task.write(data[: PIECE + 100])
    jobs.step()
    task.write(data[PIECE + 100 : PIECE + 200])
    state, unit = task.save(), disk.save()
    other = Disk(storage, workers=jobs)
    other.load(unit)
    moved = Task.load(state)
    other.resume(moved, lambda _task: None)
    assert other.tasks == (moved,)
    result = Initiator(other, wait=jobs.step).finish(moved, data[PIECE + 200 :])
    assert result.status is GOOD
    assert storage.bytes[: 3 * PIECE] == data


# Log pages.


def test_counters() -> None:
    storage, initiator = make()
    initiator.good(write_10(0, 3), bytes(3 * 512))
    initiator.good(read_10(0, 2))
    storage.failure = OSError(errno.EIO, "broken")
    initiator.run(read_10(0, 1))
    storage.failure = None
    written = initiator.good(cdb("BxBBxHHx", Op.LOG_SENSE, 0x42, 0, 0, 255))
    assert written[:4] == bytes([2, 0, 0, 36])
    assert struct.unpack_from(">HBBQ", written, 16) == (5, 2, 8, 3 * 512)
    read = initiator.good(cdb("BxBBxHHx", Op.LOG_SENSE, 0x43, 0, 5, 255))
    assert struct.unpack_from(">HBBQ", read, 4) == (5, 2, 8, 3 * 512)
    assert struct.unpack_from(">HBBQ", read, 16) == (6, 2, 8, 1)


def test_log_pages() -> None:
    _, initiator = make()
    assert initiator.good(cdb("BxBBxHHx", 0x4D, 0x40, 0, 0, 255)) == bytes.fromhex("00000004 00 02 03 2f")
    assert initiator.good(cdb("BxBBxHHx", 0x4D, 0x40, 0xFF, 0, 255)) == bytes.fromhex(
        "40ff000a 0000 00ff 0200 0300 2f00"
    )
    assert initiator.good(cdb("BxBBxHHx", 0x4D, 0x6F, 0, 0, 255)) == bytes.fromhex("2f000007 0000 03 03 0000ff")
    initiator.illegal(cdb("BxBBxHHx", 0x4D, 0x7F, 0, 0, 255), 2, 5)
    initiator.illegal(cdb("BxBBxHHx", 0x4D, 0x42, 1, 0, 255), 3)
    initiator.illegal(cdb("BxBBxHHx", 0x4D, 0x82, 0, 0, 255), 2, 7)
    initiator.illegal(cdb("BxBBxHHx", 0x4D, 0x42, 0, 7, 255), 5)
    initiator.illegal(cdb("BxBBxHHx", 0x4D, 0x6F, 0, 1, 255), 5)
    initiator.illegal(cdb("BBBBxHHx", 0x4D, 1, 0x42, 0, 0, 255), 1, 0)


def test_seek() -> None:
    _, initiator = make()
    initiator.good(cdb("BxI4x", Op.SEEK_10, BLOCKS - 1))
    initiator.illegal(cdb("BxI4x", Op.SEEK_10, BLOCKS), 2, None, AdditionalSense.LBA_OUT_OF_RANGE)


def test_a_write_that_was_aborted_does_not_undo_a_later_one() -> None:
    jobs, storage = Jobs(), SlowStorage(1 << 16)
    initiator = Initiator(Disk(storage, workers=jobs), wait=jobs.step).ready()
    initiator.start("2a00 00000001 00 0001 00", tag=1).write(b"A" * 512)
    late = jobs.waiting.popleft()
    for task in initiator.unit.tasks:
        initiator.unit.abort(task)
    again = initiator.start("2a00 00000001 00 0001 00", tag=2)
    jobs.waiting.append(late)
    assert initiator.finish(again, b"B" * 512).status is GOOD
    assert not jobs.waiting
    assert bytes(storage.bytes[512:1024]) == b"B" * 512


def test_a_read_that_was_aborted_keeps_nothing_waiting() -> None:
    jobs = Jobs()
    initiator = Initiator(Disk(SlowStorage(1 << 16), workers=jobs), wait=jobs.step).ready()
    task = initiator.start("2800 00000001 00 0001 00", tag=1)
    jobs.waiting.clear()
    initiator.unit.abort(task)
    initiator.good("2800 00000001 00 0001 00")


def test_turning_the_write_cache_off_makes_durable_what_is_in_it() -> None:
    storage = Storage(1 << 16)
    initiator = Initiator(Disk(storage)).ready()
    initiator.good(write_10(1, 1), b"x" * 512)
    pages = bytearray(initiator.good("1a08 08 00 ff 00"))
    pages[0] = pages[2] = 0
    flushes = [storage.flushes]
    for wce in (0x00, 0x00, 0x04):
        pages[6] = wce
        initiator.good(bytes([0x15, 0x10, 0, 0, len(pages), 0]), bytes(pages))
        flushes.append(storage.flushes)
    assert flushes == [0, 1, 1, 1]
