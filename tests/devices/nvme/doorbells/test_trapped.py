"""Doorbells whose every write is a message."""

from __future__ import annotations

import pytest

from tests.support.nvme import bench
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode


@pytest.mark.parametrize("posted", [False, True])
def test_a_write_of_the_register_rings(posted: bool) -> None:
    with bench() as nvme:
        nvme.queue.put(SubmissionEntry(NvmOpcode.FLUSH, cid=7, nsid=1))
        nvme.function.bar0.write(0x1000 + 8, 4, 1, posted=posted)
        nvme.under_test.settle()
        assert [completion.cid for completion in nvme.queue.poll()] == [7]


def test_a_controller_that_is_not_rung_does_not_look() -> None:
    with bench() as nvme:
        nvme.queue.put(SubmissionEntry(NvmOpcode.FLUSH, cid=7, nsid=1))
        nvme.under_test.advance(10)
        assert nvme.queue.poll() == []
