"""The driver's half: room, identifiers, waiting, and what it says of a command that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.nvme import Bench, PatientBackend, bench
from vfio_user.drivers.nvme import NvmeError
from vfio_user.errors import InterruptTimeoutError, StateError
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode

FLUSH = SubmissionEntry(NvmOpcode.FLUSH, nsid=1)


@pytest.fixture(params=[2, 0], ids=["interrupts", "looking"])
def nvme(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with bench(vectors=request.param) as made:
        yield made


def test_no_more_commands_than_there_is_room_for(nvme: Bench) -> None:
    assert nvme.queue.room == 15
    with pytest.raises(StateError, match="16 commands for queue 1, which has room for 15"):
        nvme.queue.submit(*[FLUSH] * 16)
    cids = nvme.queue.submit(*[FLUSH] * 15)
    assert nvme.queue.room == 0
    nvme.queue.wait(cids)
    assert nvme.queue.room == 15
    assert nvme.queue.in_flight == {}


def test_identifiers_are_not_used_twice(nvme: Bench) -> None:
    nvme.queue._next_cid = 0xFFFE
    cids = nvme.queue.submit(FLUSH, FLUSH, FLUSH)
    assert cids == [0xFFFE, 0, 1]
    nvme.queue.wait(cids[:1])
    nvme.queue._next_cid = 0
    assert nvme.queue.submit(FLUSH) == [2]  # the completions of 0 and 1 were not asked for yet
    assert [completion.cid for completion in nvme.queue.wait([2, 1, 0])] == [2, 1, 0]


def test_a_command_that_fails(nvme: Bench) -> None:
    with pytest.raises(NvmeError, match=r"command 0x77 ended with INVALID_COMMAND_OPCODE$") as caught:
        nvme.queue.execute(SubmissionEntry(0x77))
    assert caught.value.status == 1


def test_a_long_transfer_has_a_prp_list(nvme: Bench) -> None:
    data = os.urandom(300 * 512)
    nvme.driver.write(nvme.queue, 1, data)
    assert nvme.driver.read(nvme.queue, 1, 300) == data
    with pytest.raises(StateError, match="PRP lists of one page"):
        nvme.driver.with_data(FLUSH, 0x1000, 4 << 20)


def test_a_command_that_does_not_end() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend, vectors=0) as nvme:
        cids = nvme.queue.submit(FLUSH)
        with pytest.raises(InterruptTimeoutError, match=r"commands \[0\] of queue 1 did not end within 0.01 s"):
            nvme.queue.wait(cids, timeout=0.01)
        backend.let_go()
        nvme.queue.wait(cids)
