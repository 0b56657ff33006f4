"""Batches through a controller's queues: the engines do the same."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest

from tests.support.nvme import Bench, PatientBackend, bench
from vfio_user.backends import MemoryBackend
from vfio_user.devices.nvme.engines import CROSS_OVER, BatchCommands, make_engine
from vfio_user.devices.nvme.nvm_commands import NvmCommands
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.features import Feature
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.hardware.nvme.status import Status

PAGE = 4096
PAGES = 64


@pytest.fixture
def nvme() -> Iterator[Bench]:
    with bench(image="memory:1M") as made:
        made.device.engine = make_engine(made.device, vector=True)
        yield made


def together(nvme: Bench) -> int:
    engine = nvme.device.engine
    assert isinstance(engine, BatchCommands)
    return engine.together


def transfer(opcode: int, buffer: int, page: int, **fields: int) -> SubmissionEntry:
    return SubmissionEntry(opcode, nsid=1, prp1=buffer, cdw10=page * 8, cdw12=7, **fields)


def run(nvme: Bench, entries: list[SubmissionEntry]) -> list[Status]:
    cids = nvme.queue.submit(*entries)
    ended = {completion.cid: Status(completion.status) for completion in nvme.queue.wait(cids)}
    return [ended[cid] for cid in cids]


def history(*, vector: bool) -> tuple[list[Status], bytes, bytes, tuple[int, ...]]:
    """What becomes of a random load, the same each time."""
    chance = random.Random(7)
    with bench(image="") as nvme:
        nvme.device.add_namespace(MemoryBackend(chance.randbytes(PAGES * PAGE)))
        nvme.device.engine = make_engine(nvme.device, vector=vector)
        buffers = nvme.function.dma_alloc(16 * PAGE)
        buffers[:] = chance.randbytes(16 * PAGE)
        statuses = []
        for _ in range(50):
            batch = []
            places = chance.sample(range(PAGES), 15)
            for number in range(chance.randrange(1, 15)):
                opcode = chance.choice([NvmOpcode.READ] * 12 + [NvmOpcode.WRITE] * 7 + [NvmOpcode.FLUSH])
                entry = transfer(opcode, buffers.iova + number * PAGE, places[number])
                match chance.randrange(40):
                    case 0:
                        entry = entry._replace(cdw10=PAGES * 8)
                    case 1:
                        entry = entry._replace(prp1=0x5555_0000_0000)
                    case 2:
                        entry = entry._replace(nsid=3)
                    case 3:
                        entry = entry._replace(cdw12=chance.randrange(7))
                    case 4:
                        entry = entry._replace(opcode=0x7F)
                batch.append(entry)
            statuses += run(nvme, batch)
        [namespace] = nvme.device.namespaces
        health = nvme.device.health
        if vector:
            assert together(nvme) > 100
        return (
            statuses,
            bytes(namespace.backend.contents or b""),
            bytes(buffers[:]),
            (health.reads, health.blocks_read, health.writes, health.blocks_written),
        )


def test_the_engines_do_the_same() -> None:
    assert history(vector=True) == history(vector=False)


def test_alike_commands_are_carried_out_together(nvme: Bench) -> None:
    buffers = nvme.function.dma_alloc(8 * PAGE)
    reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
    assert run(nvme, reads[: CROSS_OVER - 1]) == [Status.SUCCESS] * (CROSS_OVER - 1)
    assert together(nvme) == 0
    assert run(nvme, reads) == [Status.SUCCESS] * 8
    assert together(nvme) == 8
    assert nvme.device.health.reads == 8 + CROSS_OVER - 1


def test_without_a_write_cache_writes_go_one_by_one(nvme: Bench) -> None:
    buffers = nvme.function.dma_alloc(8 * PAGE)
    writes = [transfer(NvmOpcode.WRITE, buffers.iova + number * PAGE, number) for number in range(8)]
    nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 0)
    assert run(nvme, writes) == [Status.SUCCESS] * 8
    assert together(nvme) == 0
    nvme.driver.set_feature(Feature.VOLATILE_WRITE_CACHE, 1)
    assert run(nvme, writes) == [Status.SUCCESS] * 8
    assert together(nvme) == 8


def test_fused_commands_keep_their_neighbours(nvme: Bench) -> None:
    buffers = nvme.function.dma_alloc(8 * PAGE)
    reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
    first = transfer(NvmOpcode.COMPARE, buffers.iova, 0, flags=1)
    assert run(nvme, [*reads[:4], first, *reads[4:]]) == [
        *[Status.SUCCESS] * 4,
        Status.ABORTED_MISSING_FUSED,
        *[Status.SUCCESS] * 4,
    ]
    assert together(nvme) == 0


def test_a_fused_command_of_the_batch_before(nvme: Bench) -> None:
    buffers = nvme.function.dma_alloc(8 * PAGE)
    reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
    [first] = nvme.queue.submit(transfer(NvmOpcode.COMPARE, buffers.iova, 0, flags=1))
    nvme.under_test.settle()
    assert run(nvme, reads) == [Status.SUCCESS] * 8
    [completion] = nvme.queue.wait([first])
    assert completion.status == Status.ABORTED_MISSING_FUSED
    assert together(nvme) == 0


def test_unreadable_blocks_are_found(nvme: Bench) -> None:
    buffers = nvme.function.dma_alloc(8 * PAGE)
    assert run(nvme, [SubmissionEntry(NvmOpcode.WRITE_UNCORRECTABLE, nsid=1, cdw10=17, cdw12=0)]) == [Status.SUCCESS]
    reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
    statuses = run(nvme, reads)
    assert statuses.pop(2) == Status.UNRECOVERED_READ_ERROR
    assert statuses == [Status.SUCCESS] * 7


def test_a_backend_with_threads_is_asked_one_by_one() -> None:
    with bench(real_time=True, backend=PatientBackend(patient=False)) as nvme:
        nvme.device.engine = make_engine(nvme.device, vector=True)
        buffers = nvme.function.dma_alloc(8 * PAGE)
        reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
        assert run(nvme, reads) == [Status.SUCCESS] * 8
        assert together(nvme) == 0


def test_larger_pages_of_memory() -> None:
    with bench(image="memory:1M") as nvme:
        engine = BatchCommands(nvme.device)
        nvme.device.engine = engine
        buffers = nvme.function.dma_alloc(9 * PAGE)
        reads = [transfer(NvmOpcode.READ, buffers.iova + number * PAGE, number) for number in range(8)]
        assert run(nvme, reads) == [Status.SUCCESS] * 8
        assert together(nvme) == 8
        nvme.device.data.page_size = 8192
        assert run(nvme, reads) == [Status.SUCCESS] * 8  # half a page each: not what is done together
        assert together(nvme) == 8


def test_without_numpy_there_is_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(image="memory:1M") as nvme:
        assert isinstance(make_engine(nvme.device), BatchCommands)
        assert isinstance(make_engine(nvme.device, vector=False), NvmCommands)
        monkeypatch.setattr("vfio_user.devices.nvme.engines.find_spec", lambda _: None)
        assert isinstance(make_engine(nvme.device), NvmCommands)
        with pytest.raises(ValueError, match=r"vfio-user\[vector\]"):
            make_engine(nvme.device, vector=True)


def test_numpy_is_not_imported_before_it_is_needed() -> None:
    import subprocess

    program = (
        "import sys; from vfio_user.devices.nvme import Nvme; from vfio_user.devices.nvme.engines import make_engine\n"
        "device = Nvme(image='memory:1M'); make_engine(device); print('numpy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "False"


def test_a_disk_that_has_to_be_waited_for_is_left_to_the_other_engine_at_once() -> None:
    with bench(real_time=True, backend=PatientBackend(patient=False)) as nvme:
        engine = nvme.device.engine = make_engine(nvme.device, vector=True)
        assert isinstance(engine, BatchCommands)
        buffer = nvme.buffer(size=PAGE)
        for nsid, status in ((1, Status.SUCCESS), (7, Status.INVALID_FIELD)):
            batch = [transfer(NvmOpcode.READ, buffer, 0)._replace(nsid=nsid)] * 8
            assert run(nvme, batch) == [status] * 8
        assert engine._vector is None
