"""What a controller does with what is under way when its client stops it, and when that client goes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.nvme import PatientBackend, bench
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.pci_function import PciFunction
from vfio_user.devices.nvme import Nvme
from vfio_user.drivers.nvme import NvmeDriver, QueuePair
from vfio_user.errors import CommandError
from vfio_user.hardware.nvme.entries import Fused, SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.protocol.migration import MigrationState
from vfio_user.server.server import Server

BLOCK = 512
IOVA = 0x10_0000


class Served:
    """A controller on a thread of its own, whose two workers are in the hands of the test; and its driver."""

    def __init__(self, client: VfioUserClient, device: Nvme, backend: PatientBackend) -> None:
        self.client = client
        self.device = device
        self.backend = backend
        self.driver = NvmeDriver(PciFunction(client))
        self.queue: QueuePair = self.driver.create_queue_pair(16)

    def submit(self, opcode: NvmOpcode, number: int) -> list[int]:
        """Commands for blocks of their own, of which two begin."""
        cids = self.queue.submit(
            *[SubmissionEntry(opcode, nsid=1, prp1=IOVA + block * BLOCK, cdw10=block) for block in range(1, number + 1)]
        )
        for _ in range(2):
            assert self.backend.begun.acquire(timeout=5)
        return cids

    def settled(self) -> None:
        """The device's thread has come round."""
        done = threading.Event()
        self.device.call_soon(done.set)
        assert done.wait(5)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Inside, the client waits for the controller to stop."""
        client = threading.Thread(target=self.client.migration.go_to, args=(MigrationState.STOP,))
        client.start()
        while not self.device.is_quiet:
            self.settled()
        yield
        client.join(5)
        assert not client.is_alive()


@contextmanager
def served(folder: Path, memory: GuestMemory) -> Iterator[Served]:
    backend = PatientBackend()
    device = Nvme(image="", threads=2)
    device.add_namespace(backend)
    with Server(device, folder / "socket") as server:
        server.start()
        with VfioUserClient.connect(folder / "socket", timeout=10) as client:
            client.dma_map(memory, IOVA)
            yield Served(client, device, backend)
        backend.let_go()
    device.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as memory:
        yield memory


def test_a_stop_waits_for_what_has_begun_and_takes_the_rest_back(tmp_path: Path, memory: GuestMemory) -> None:
    memory.view[:] = b"\1" * len(memory.view)
    with served(tmp_path, memory) as nvme:
        cids = nvme.submit(NvmOpcode.WRITE, 6)
        with nvme.stopping():
            nvme.settled()  # its thread is not what waits
            nvme.backend.let_go()
        assert nvme.client.migration.state == MigrationState.STOP
        assert not nvme.backend.begun.acquire(blocking=False)
        assert nvme.backend.memory[: 8 * BLOCK].count(1) == 2 * BLOCK
        assert nvme.queue.poll() == []
        nvme.client.migration.go_to(MigrationState.RUNNING)
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0] * 6
        assert nvme.backend.memory[: 8 * BLOCK].count(1) == 6 * BLOCK
        for _ in range(4):
            assert nvme.backend.begun.acquire(blocking=False)
        assert not nvme.backend.begun.acquire(blocking=False)  # none was written twice


def test_a_stop_that_would_take_too_long_is_refused(tmp_path: Path, memory: GuestMemory) -> None:
    with served(tmp_path, memory) as nvme:
        nvme.device.quiesce_timeout = 0.05
        cids = nvme.submit(NvmOpcode.WRITE, 6)
        with pytest.raises(CommandError) as caught:
            nvme.client.migration.go_to(MigrationState.STOP)
        assert caught.value.errno == errno.ETIMEDOUT
        assert nvme.client.migration.state == MigrationState.RUNNING
        nvme.backend.let_go()
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0] * 6


def test_what_is_read_while_it_stops_goes_to_the_guest_when_it_runs(tmp_path: Path, memory: GuestMemory) -> None:
    with served(tmp_path, memory) as nvme:
        nvme.backend.memory[:] = b"\2" * len(nvme.backend.memory)
        cids = nvme.submit(NvmOpcode.READ, 4)
        with nvme.stopping():
            nvme.backend.let_go()
        assert not any(memory.view)
        nvme.client.migration.go_to(MigrationState.RUNNING)
        assert [completion.status for completion in nvme.queue.wait(cids)] == [0] * 4
        assert bytes(memory.view[BLOCK : 5 * BLOCK]) == b"\2" * 4 * BLOCK


@pytest.mark.parametrize("opcode", [NvmOpcode.READ, NvmOpcode.WRITE])
def test_a_controller_that_was_moved_does_nothing_more_when_its_client_goes(
    tmp_path: Path, memory: GuestMemory, opcode: NvmOpcode
) -> None:
    # The memory is the guest's, and the image the disk's, who go on elsewhere.
    with served(tmp_path, memory) as nvme:
        memory.view[:] = b"\1" * len(memory.view)
        nvme.submit(opcode, 4)
        with nvme.stopping():
            nvme.backend.let_go()
        memory.view[:] = b"\1" * len(memory.view)
        nvme.backend.memory[:] = b"\3" * len(nvme.backend.memory)
        nvme.client.close()
        while nvme.device.is_connected or not nvme.device.jobs.is_idle:
            nvme.settled()
        nvme.settled()
        assert set(nvme.backend.memory) == {3}
        assert set(memory.view) == {1}


def test_a_fused_operation_that_has_not_begun_moves_as_one() -> None:
    backend = PatientBackend()
    with bench(real_time=True, backend=backend) as nvme:
        target = nvme.buffer(b"\1" * BLOCK + bytes(BLOCK))
        read, compare, write, flush = (
            SubmissionEntry(opcode, nsid=1, prp1=target + at, flags=fused)
            for opcode, at, fused in (
                (NvmOpcode.READ, BLOCK, Fused.NONE),
                (NvmOpcode.COMPARE, BLOCK, Fused.FIRST),
                (NvmOpcode.WRITE, 0, Fused.SECOND),
                (NvmOpcode.COMPARE, 0, Fused.FIRST),
            )
        )
        cids = nvme.queue.submit(read, compare, write, flush)  # the second pair is half here
        nvme.under_test.settle()
        assert backend.begun.acquire(timeout=5)
        state = nvme.device.save_state()
        backend.let_go()
        nvme.under_test.wait_until(lambda: nvme.device.jobs.is_idle)
        nvme.queue.poll()
        backend.memory[:] = bytes(len(backend.memory))
        nvme.device.load_state(state)
        nvme.queue._head, nvme.queue._phase = 0, 1
        nvme.queue.completions[:] = bytes(len(nvme.queue.completions))
        assert [completion.status for completion in nvme.queue.wait(cids[:3])] == [0, 0, 0]
        assert backend.memory[:BLOCK] == b"\1" * BLOCK
        again = nvme.queue.submit(write)
        assert [completion.status for completion in nvme.queue.wait([cids[3], *again])] == [0, 0]
