"""The controller whose doorbells are memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.support.nvme import Bench, PatientBackend
from vfio_user.backends import Backend, Workers
from vfio_user.devices.nvme import DoorbellMode, Nvme
from vfio_user.devices.nvme.doorbells.mapped import MappedDoorbells
from vfio_user.devices.nvme.poller import DoorbellPoller
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.testing.in_process import DeviceUnderTest


@contextlib.contextmanager
def polled(backend: Backend | None = None) -> Iterator[Bench]:
    """No fixture: pytest keeps the values of those, and so the memory behind the BAR, for longer than the test."""
    device = Nvme(image="" if backend else "memory:1M", doorbells=DoorbellMode.MAPPED)
    if backend is not None:
        device.add_namespace(backend)
    try:
        with DeviceUnderTest(device) as under_test:
            yield Bench(device, under_test)
    finally:
        device.close()
        device.loop.close()


def poller_of(nvme: Bench) -> DoorbellPoller:
    assert isinstance(nvme.device.doorbells, MappedDoorbells)
    return nvme.device.doorbells.poller


def test_a_driver_works() -> None:
    with polled() as nvme:
        data = os.urandom(20 * 512)
        nvme.driver.write(nvme.queue, 5, data)
        assert nvme.driver.read(nvme.queue, 5, 20) == data
        for _ in range(40):  # around the queue
            assert nvme.driver.read(nvme.queue, 5, 1) == data[:512]


def test_work_is_found_after_a_rest() -> None:
    with polled() as nvme:
        nvme.under_test.advance(5.0)
        assert poller_of(nvme).is_resting
        nvme.driver.write(nvme.queue, 0, bytes(512))
        assert nvme.driver.read(nvme.queue, 0, 1) == bytes(512)


def test_a_command_that_ends_late_ends_a_rest() -> None:
    backend = PatientBackend()
    with polled(backend) as nvme:
        poller = poller_of(nvme)

        def is_resting() -> bool:
            return poller.is_resting

        [cid] = nvme.queue.submit(SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=nvme.buffer(size=512)))
        nvme.under_test.advance(5.0)
        assert backend.begun.acquire(timeout=10)
        assert is_resting()
        backend.let_go()
        nvme.device.jobs.settle()
        assert not is_resting()
        assert [completion.cid for completion in nvme.queue.wait([cid])] == [cid]


def test_threads_that_have_work_are_given_way_to(monkeypatch: pytest.MonkeyPatch) -> None:
    moments: list[float] = []

    def give_way(_: Workers, timeout: float) -> bool:
        moments.append(timeout)
        return False

    monkeypatch.setattr(Workers, "give_way", give_way)
    backend = PatientBackend()
    with polled(backend) as nvme:
        jobs = nvme.device.jobs
        assert not jobs.give_way()
        nvme.queue.submit(SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=nvme.buffer(size=512)))
        nvme.under_test.settle()
        assert moments
        assert 0 < max(moments) < 0.001
        assert jobs.give_way()
        backend.let_go()
        jobs.settle()
        assert not jobs.give_way()


def test_what_has_ended_is_shown_before_it_looks_again() -> None:
    backend = PatientBackend()
    with polled(backend) as nvme:
        poller = poller_of(nvme)
        [cid] = nvme.queue.submit(SubmissionEntry(NvmOpcode.READ, nsid=1, prp1=nvme.buffer(size=512)))
        nvme.under_test.settle()
        backend.let_go()
        nvme.device.jobs.settle()
        assert nvme.queue.poll() == []
        looks = poller.looks
        assert poller._give_way is not None
        assert not poller._give_way()
        assert [completion.cid for completion in nvme.queue.poll()] == [cid]
        assert poller.looks == looks


def test_a_store_to_the_mapped_page_is_enough() -> None:
    with polled() as nvme:
        page = nvme.device.doorbell_page.cast("I")
        cid = 77
        nvme.queue.put(SubmissionEntry(NvmOpcode.FLUSH, cid=cid, nsid=1))
        page[2 * nvme.queue.qid] = nvme.queue._tail
        [completion] = nvme.queue.wait([cid])
        assert completion.status == 0


def test_a_queue_that_is_made_again_hears_its_first_tail() -> None:
    with polled() as nvme:
        for _ in range(3):
            queue = nvme.driver.create_queue_pair(16, qid=5, vector=None)
            nvme.driver.read(queue, 0, 1)  # tail 1, every time
            nvme.driver.delete_queue_pair(queue)


def test_a_disabled_controller_is_not_looked_at() -> None:
    with polled() as nvme:
        poller = poller_of(nvme)
        nvme.driver.disable()
        assert not poller.is_running
        before = poller.looks
        nvme.under_test.advance(1.0)
        assert poller.looks == before
        nvme.driver.enable()
        nvme.queue = nvme.driver.create_queue_pair(16)
        nvme.driver.read(nvme.queue, 0, 1)


def test_a_doorbell_that_cannot_be() -> None:
    with polled() as nvme:
        before = nvme.device.health.errors
        nvme.device.doorbell_page.cast("I")[3] = 0xFFFF
        nvme.under_test.settle()
        nvme.driver.read(nvme.queue, 0, 1)
        assert nvme.device.health.errors == before + 1


@pytest.mark.parametrize("done", [0, 10, 15])
def test_a_doorbell_nobody_has_looked_at_moves_along(done: int) -> None:
    # With 15 done before, the tail it is written to is that of a doorbell never written: 0.
    with polled() as nvme:
        for _ in range(done):
            nvme.driver.write(nvme.queue, 0, b"\1" * 512)
        other = nvme.driver.create_queue_pair(8, qid=2)
        nvme.driver.read(other, 0, 1)
        nvme.driver.create_queue_pair(8, qid=3)
        nvme.driver.delete_queue_pair(other)  # its doorbells are not zero, and nobody's any more
        nvme.queue.put(SubmissionEntry(NvmOpcode.FLUSH, cid=77, nsid=1))
        nvme.device.doorbell_page.cast("I")[2 * nvme.queue.qid] = nvme.queue._tail
        state, before = nvme.device.save_state(), nvme.device.health.errors
        nvme.device.load_state(state)
        [completion] = nvme.queue.wait([77])
        assert completion.status == 0
        assert nvme.device.health.errors == before
        nvme.driver.read(nvme.queue, 0, 1)
