"""The vector engine: what it carries out is what one by one would have been, and the rest it leaves alone."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy", reason="the vector engine needs NumPy: pip install vfio-user[vector]")

from tests.support.guest_ram import guest_ram
from vfio_user.backends import Backend, MappedFileBackend, MemoryBackend, NullBackend
from vfio_user.devices.nvme.engines import CROSS_OVER
from vfio_user.devices.nvme.vector import Medium, Run, VectorEngine
from vfio_user.hardware.nvme.entries import CompletionEntry, SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.memory import DirtyLog, Dma

PAGE = 4096
DISK_PAGES = 256
SLOTS = 24
SLOT_PAGES = 10  # the last one is for a PRP list

#: Two pieces of guest memory; the slots of buffers lie in both.
LOW, HIGH = 0x10_0000, 0x1_0000_0000
HALF = SLOTS // 2 * SLOT_PAGES * PAGE

#: What memory and disk begin with.
NOISE = random.Random(1).randbytes(2 * DISK_PAGES * PAGE)


def slot(number: int) -> int:
    """Where the buffers of a command are."""
    half, within = divmod(number, SLOTS // 2)
    return (HIGH if half else LOW) + within * SLOT_PAGES * PAGE


class Commands:
    """Makes commands as a driver does."""

    def __init__(self, dma: Dma) -> None:
        self.dma = dma

    def transfer(
        self, opcode: int, buffer: int, lba: int, pages: int, *, block: int = 512, nsid: int = 1, cid: int | None = None
    ) -> SubmissionEntry:
        """Reads or writes pages, scattered in their slot: the last page comes first."""
        addresses = [slot(buffer) + (pages - 1 - number) * PAGE for number in range(pages)]
        prp2 = 0
        if pages == 2:
            prp2 = addresses[1]
        elif pages > 2:
            prp2 = slot(buffer) + (SLOT_PAGES - 1) * PAGE
            self.dma.write(prp2, b"".join(address.to_bytes(8, "little") for address in addresses[1:]))
        return SubmissionEntry(
            opcode,
            cid=buffer + 1000 if cid is None else cid,
            nsid=nsid,
            prp1=addresses[0],
            prp2=prp2,
            cdw10=lba & 0xFFFF_FFFF,
            cdw11=lba >> 32,
            cdw12=pages * PAGE // block - 1,
        )


def one_by_one(dma: Dma, disk: bytearray, command: SubmissionEntry, block: int = 512) -> None:
    """What a usual command does."""
    pages = command.block_count * block // PAGE
    addresses = [command.prp1]
    if pages == 2:
        addresses.append(command.prp2)
    elif pages > 2:
        packed = dma.read(command.prp2, 8 * (pages - 1))
        addresses += [int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), 8)]
    for number, address in enumerate(addresses):
        at = command.slba * block + number * PAGE
        if command.opcode == NvmOpcode.READ:
            dma.write(address, disk[at : at + PAGE])
        else:
            disk[at : at + PAGE] = dma.read(address, PAGE)


def run_all(engine: VectorEngine, commands: list[SubmissionEntry]) -> tuple[list[CompletionEntry], list[Run]]:
    runs = list(engine.carry_out(b"".join(command.pack() for command in commands), 3, 77))
    posted = b"".join(run.completions for run in runs)
    return [CompletionEntry.unpack(posted, at) for at in range(0, len(posted), 16)], runs


def left(runs: list[Run]) -> list[SubmissionEntry]:
    packed = b"".join(run.commands for run in runs)
    return [SubmissionEntry.unpack(packed, at) for at in range(0, len(packed), 64)]


#: How a command may be unusual; what is left alone is left whole, and in order.
UNUSUAL: dict[str, Callable[[SubmissionEntry], SubmissionEntry]] = {
    "flush": lambda c: c._replace(opcode=NvmOpcode.FLUSH),
    "compare": lambda c: c._replace(opcode=NvmOpcode.COMPARE),
    "fused": lambda c: c._replace(flags=1),
    "sgl": lambda c: c._replace(flags=0x40),
    "other namespace": lambda c: c._replace(nsid=2),
    "no such namespace": lambda c: c._replace(nsid=9),
    "all namespaces": lambda c: c._replace(nsid=0xFFFF_FFFF),
    "offset in page": lambda c: c._replace(prp1=c.prp1 + 512),
    "part of a page": lambda c: c._replace(cdw12=c.cdw12 - 1),
    "unaligned on disk": lambda c: c._replace(cdw10=c.cdw10 + 1),
    "forced to the medium": lambda c: c._replace(cdw12=c.cdw12 | 1 << 30),
    "limited retry": lambda c: c._replace(cdw12=c.cdw12 | 1 << 31),
    "behind the end": lambda c: c._replace(cdw10=DISK_PAGES * 8),
    "over the end": lambda c: c._replace(cdw10=(DISK_PAGES - 1) * 8, cdw12=15, prp2=slot(0)),
    "far behind the end": lambda c: c._replace(cdw11=0x8000_0000),
    "too long": lambda c: c._replace(cdw12=0xFFFF),
    "not mapped": lambda c: c._replace(prp1=0x5000_0000),
    "upper half": lambda c: c._replace(prp1=0xFFFF_FFFF_FFFF_F000),
    "second page unaligned": lambda c: c._replace(cdw12=15, prp2=c.prp1 + 8),
    "list inside a page": lambda c: c._replace(cdw12=23, prp2=c.prp1 + 8),
    "second page not mapped": lambda c: c._replace(cdw12=15, prp2=0x5000_0000),
    "list not mapped": lambda c: c._replace(cdw12=23, prp2=0x5000_0000),
    "list of nonsense": lambda c: c._replace(cdw12=23, prp2=slot(1)),
}


@pytest.fixture(params=["memory", "mapped"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    contents = NOISE[-DISK_PAGES * PAGE :]
    if request.param == "memory":
        return MemoryBackend(contents)
    (tmp_path / "disk.img").write_bytes(contents)
    return MappedFileBackend(tmp_path / "disk.img")


def engine_for(dma: Dma, backend: Backend, *, writable: bool = True, block_shift: int = 9) -> VectorEngine:
    medium = Medium(backend, block_shift, writable)
    return VectorEngine(dma, lambda nsid: medium if nsid == 1 else None, max_transfer=SLOT_PAGES * PAGE)


@given(data=st.data())
@settings(max_examples=40)
def test_batches_are_carried_out_as_one_by_one(data: st.DataObject) -> None:
    with (
        guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, rams),
        MemoryBackend(NOISE[-DISK_PAGES * PAGE :]) as backend,
    ):
        for ram in rams:
            ram.memory[:] = NOISE[: len(ram.memory)]
        commands = []
        make = Commands(dma)
        # Every command has a slot of its own, in memory and on the disk: what it does does not depend on others.
        kinds = st.tuples(
            st.sampled_from([NvmOpcode.READ, NvmOpcode.WRITE]),
            st.sampled_from([1, 1, 1, 2, 3, 9]),
            st.sampled_from([None] * 8 + sorted(UNUSUAL)),
        )
        drawn = data.draw(st.lists(kinds, max_size=SLOTS))
        places = data.draw(st.permutations(range(SLOTS)))
        unusual = []
        for number, (opcode, pages, how) in enumerate(drawn):
            command = make.transfer(opcode, places[number], places[-1 - number] * 10 * 8, pages)
            if how is not None:
                command = UNUSUAL[how](command)
                unusual.append(command)
            commands.append(command)
        disk = bytearray(backend.contents or b"")
        model = [bytearray(ram.memory) for ram in rams]
        with guest_ram((LOW, HALF), (HIGH, HALF)) as (model_dma, model_rams):
            for ram, contents in zip(model_rams, model, strict=True):
                ram.memory[:] = contents
            for command in commands:
                if command not in unusual:
                    one_by_one(model_dma, disk, command)
            completions, runs = run_all(engine_for(dma, backend), commands)
            rest = left(runs)
            for command in rest:
                if command not in unusual:
                    model_disk = bytearray(backend.contents or b"")
                    one_by_one(dma, model_disk, command)
                    backend.write(0, [model_disk])
            assert [ram.memory[:] for ram in rams] == [ram.memory[:] for ram in model_rams]
            assert bytes(backend.contents or b"") == disk
        assert sorted(command for command in rest if command in unusual) == sorted(unusual)
        done = [completion.cid for completion in completions]
        assert sorted(done + [command.cid for command in rest]) == sorted(command.cid for command in commands)
        assert all(one == CompletionEntry(sq_head=77, sq_id=3, cid=one.cid) for one in completions)
        assert sum(run.number for run in runs) == len(completions)


@pytest.mark.parametrize("pages", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("opcode", [NvmOpcode.READ, NvmOpcode.WRITE])
def test_all_alike_are_one_run(backend: Backend, opcode: int, pages: int) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, rams), backend:
        for ram in rams:
            ram.memory[:] = NOISE[: len(ram.memory)]
        make = Commands(dma)
        commands = [make.transfer(opcode, number, number * 10 * 8, pages) for number in range(SLOTS)]
        before = bytes(backend.contents or b"")
        completions, (run,) = run_all(engine_for(dma, backend), commands)
        assert (run.opcode, run.number, run.size, run.commands) == (opcode, SLOTS, pages * PAGE, b"")
        assert [completion.cid for completion in completions] == [command.cid for command in commands]
        for number in range(SLOTS):
            for page in range(pages):
                address = slot(number) + (pages - 1 - page) * PAGE
                at = (number * 10 + page) * PAGE
                assert dma.read(address, PAGE) == bytes((backend.contents or b"")[at : at + PAGE])
        if opcode == NvmOpcode.READ:
            assert bytes(backend.contents or b"") == before


@pytest.mark.parametrize("how", UNUSUAL)
def test_what_is_unusual_is_left_in_its_place(how: str) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, rams), MemoryBackend(DISK_PAGES * PAGE) as backend:
        rams[0][slot(1) : slot(1) + PAGE] = b"\1" * PAGE
        before = [bytes(ram.memory) for ram in rams]
        make = Commands(dma)
        odd = UNUSUAL[how](make.transfer(NvmOpcode.WRITE, 0, 0, 1))
        _, runs = run_all(engine_for(dma, backend), [odd] * 6)
        assert left(runs) == [odd] * 6
        assert bytes(backend.contents or b"") == bytes(DISK_PAGES * PAGE)
        assert [bytes(ram.memory) for ram in rams] == before
        flush = make.transfer(NvmOpcode.READ, 20, 0, 1)._replace(opcode=NvmOpcode.FLUSH)
        around = [make.transfer(NvmOpcode.READ, number, 8 * number, 1) for number in range(2 * CROSS_OVER)]
        batch = [*around[:CROSS_OVER], flush, *around[CROSS_OVER:], flush]
        _, runs = run_all(engine_for(dma, backend), batch)
        assert [run.number for run in runs] == [CROSS_OVER, 0, CROSS_OVER, 0]
        assert left(runs) == [flush, flush]


def test_few_are_left_and_none_is_nothing(backend: Backend) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _), backend:
        make = Commands(dma)
        commands = [make.transfer(NvmOpcode.READ, number, 0, 1) for number in range(CROSS_OVER - 1)]
        engine = engine_for(dma, backend)
        assert left(run_all(engine, commands)[1]) == commands
        assert run_all(engine, []) == ([], [])


def test_a_medium_that_is_not_to_be_written(backend: Backend) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _), backend:
        make = Commands(dma)
        engine = engine_for(dma, backend, writable=False)
        writes = [make.transfer(NvmOpcode.WRITE, number, 8 * number, 1) for number in range(CROSS_OVER)]
        assert left(run_all(engine, writes)[1]) == writes
        assert len(run_all(engine, [one._replace(opcode=NvmOpcode.READ) for one in writes])[0]) == CROSS_OVER


def test_transfers_longer_than_the_controller_allows(backend: Backend) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _), backend:
        engine = VectorEngine(dma, lambda _: Medium(backend, 9, writable=True), max_transfer=2 * PAGE)
        make = Commands(dma)
        for pages in (2, 3):
            reads = [make.transfer(NvmOpcode.READ, number, 0, pages) for number in range(CROSS_OVER)]
            assert left(run_all(engine, reads)[1]) == (reads if pages == 3 else [])


def test_media_without_memory_or_with_large_blocks() -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _):
        make = Commands(dma)
        reads = [make.transfer(NvmOpcode.READ, number, 0, 1) for number in range(CROSS_OVER)]
        assert left(run_all(engine_for(dma, NullBackend(DISK_PAGES * PAGE)), reads)[1]) == reads
        with MemoryBackend(DISK_PAGES * PAGE) as backend:
            odd = [one._replace(cdw12=0) for one in reads]
            assert left(run_all(engine_for(dma, backend, block_shift=13), odd)[1]) == odd
            large = [make.transfer(NvmOpcode.READ, number, number, 1, block=PAGE) for number in range(CROSS_OVER)]
            assert run_all(engine_for(dma, backend, block_shift=12), large)[1][0].number == CROSS_OVER


def test_an_image_that_was_truncated_is_left_to_who_reports_it(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(DISK_PAGES * PAGE))
    with (
        guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _),
        MappedFileBackend(tmp_path / "disk.img") as backend,
    ):
        make = Commands(dma)
        reads = [make.transfer(NvmOpcode.READ, number, 0, 1) for number in range(CROSS_OVER)]
        os.truncate(tmp_path / "disk.img", PAGE)
        assert left(run_all(engine_for(dma, backend), reads)[1]) == reads


def test_pages_that_are_written_become_dirty(backend: Backend) -> None:
    with guest_ram((LOW, HALF), (HIGH, HALF)) as (dma, _), backend:
        make = Commands(dma)
        reads = [make.transfer(NvmOpcode.READ, number, 0, 1) for number in range(CROSS_OVER)]
        writes = [make.transfer(NvmOpcode.WRITE, number + CROSS_OVER, 0, 1) for number in range(CROSS_OVER)]
        dma.dirty_log = log = DirtyLog(PAGE)
        run_all(engine_for(dma, backend), [*reads, *writes])
        marked = int.from_bytes(log.report(LOW, HALF, PAGE), "little")
        assert [number for number in range(HALF // PAGE) if marked >> number & 1] == [
            (one.prp1 - LOW) // PAGE for one in reads
        ]


def test_closing_lets_go_of_the_guest(backend: Backend) -> None:
    with guest_ram((LOW, HALF)) as (dma, _), backend:
        engine = engine_for(dma, backend)
        make = Commands(dma)
        run_all(engine, [make.transfer(NvmOpcode.READ, number, 0, 1) for number in range(CROSS_OVER)])
        engine.close()
        assert dma.on_unmap == []
        dma.clear()
        assert dma.statistics().stuck_views == 0
