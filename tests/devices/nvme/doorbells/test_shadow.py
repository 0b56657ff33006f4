"""Doorbells in the host's memory, with event indexes beside them."""

from __future__ import annotations

import pytest

from tests.support.nvme import bench
from vfio_user.devices.nvme import DoorbellMode
from vfio_user.devices.nvme.doorbells import shadow as shadow_module
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import AdminOpcode, NvmOpcode
from vfio_user.hardware.nvme.status import Status

BLOCK = 512


def read(slba: int, prp1: int) -> SubmissionEntry:
    return SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=prp1, cdw10=slba)


def test_shadow_doorbells() -> None:
    with bench(doorbells=DoorbellMode.SHADOW) as nvme:
        assert nvme.driver.identify_controller().oacs & 1 << 8
        shadow, event = nvme.buffer(size=4096), nvme.buffer(size=4096)
        entry = SubmissionEntry(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)
        nvme.driver.admin_queue.execute(entry)
        dma, target = nvme.device.dma, nvme.buffer(size=BLOCK)
        for tail in range(1, 6):
            nvme.queue.put(read(0, target)._replace(cid=tail))
            dma.write_u32(shadow + 8, tail)
        nvme.queue.ring(1)  # the register's value no longer counts
        nvme.under_test.settle()
        assert len(nvme.queue.poll()) == 5
        assert dma.read_u32(event + 8) == 5  # it rests, and wants to be rung for the next


def test_a_shadow_doorbell_written_while_the_controller_goes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(doorbells=DoorbellMode.SHADOW) as nvme:
        shadow, event = nvme.buffer(size=4096), nvme.buffer(size=4096)
        entry = SubmissionEntry(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=shadow, prp2=event)
        nvme.driver.admin_queue.execute(entry)
        target, dma = nvme.buffer(size=BLOCK), nvme.device.dma

        def write_another() -> None:
            # The host has not seen the event index yet, so it does not ring.
            if dma.read_u32(shadow + 8) == 1:
                nvme.queue.put(read(0, target)._replace(cid=2))
                dma.write_u32(shadow + 8, 2)

        monkeypatch.setattr(shadow_module, "full_barrier", write_another)
        nvme.queue.put(read(0, target)._replace(cid=1))
        dma.write_u32(shadow + 8, 1)
        nvme.queue.ring(1)
        nvme.under_test.settle()
        assert [completion.cid for completion in nvme.queue.poll()] == [1, 2]


def test_shadow_doorbells_that_cannot_be() -> None:
    with bench(doorbells=DoorbellMode.SHADOW) as nvme:
        for prp1, prp2, status in (
            (8, 4096, Status.INVALID_FIELD),
            (4096, 8, Status.INVALID_FIELD),
            (0x7777_0000_0000, 4096, Status.DATA_TRANSFER_ERROR),
        ):
            entry = SubmissionEntry(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=prp1, prp2=prp2)
            assert nvme.status(entry, admin=True) == status
        assert not nvme.device.doorbells.are_followed
