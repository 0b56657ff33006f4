"""What the tests of the NVMe controller share: a controller with its driver, and a backend that waits to be told."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from vfio_user.backends.base import Backend, ReadableBuffer
from vfio_user.devices.nvme import Nvme
from vfio_user.drivers.nvme import NvmeDriver, NvmeError, QueuePair
from vfio_user.hardware.nvme.entries import SubmissionEntry
from vfio_user.hardware.nvme.status import Status
from vfio_user.testing.in_process import DeviceUnderTest


class Bench:
    """A controller on the bench: the device, its driver, and one I/O queue pair."""

    def __init__(self, device: Nvme, under_test: DeviceUnderTest, *, vectors: int = 2) -> None:
        self.device = device
        self.under_test = under_test
        self.function = under_test.function
        self.driver = NvmeDriver(self.function, vectors=vectors)
        self.queue: QueuePair = self.driver.create_queue_pair(16)

    def buffer(self, data: bytes = b"", size: int = 0) -> int:
        """The address of memory that holds ``data``."""
        made = self.function.dma_alloc(max(size, len(data)))
        made[: len(data)] = data
        return made.iova

    def status(self, entry: SubmissionEntry, *, admin: bool = False, data: bytes | None = None) -> Status:
        """How a command ends."""
        queue = self.driver.admin_queue if admin else self.queue
        if data is not None:
            entry, _ = self.driver.with_data(entry, self.buffer(data), len(data))
        [completion] = queue.wait(queue.submit(entry))
        return Status(completion.status)


@contextmanager
def bench(
    *,
    real_time: bool = False,
    backend: Backend | None = None,
    vectors: int = 2,
    share_memory: bool = True,
    **options: Any,
) -> Iterator[Bench]:
    """A controller on the bench, with the options given; or with namespace 1 on a backend of ours."""
    if backend is not None:
        options["image"] = ""
    else:
        options.setdefault("image", "memory:1M")
    device = Nvme(**options)
    if backend is not None:
        device.add_namespace(backend)
    try:
        with DeviceUnderTest(device, real_time=real_time, share_memory=share_memory) as under_test:
            yield Bench(device, under_test, vectors=vectors)
    finally:
        device.close()
        device.loop.close()


class PatientBackend(Backend):
    """Memory whose transfers block until ``let_go``, or again after ``hold``; ``begun`` counts those that have begun.

    Attributes:
        fails: raised by all transfers, instead.
    """

    def __init__(self, size: int = 1 << 20, *, patient: bool = True) -> None:
        super().__init__(size)
        self.memory = bytearray(size)
        self.begun = threading.Semaphore(0)
        self.flushed = 0
        self.fails: OSError | None = None
        self._go = threading.Event()
        if not patient:
            self._go.set()

    def let_go(self) -> None:
        self._go.set()

    def hold(self) -> None:
        self._go.clear()

    def _wait(self) -> None:
        self.begun.release()
        assert self._go.wait(10)
        if self.fails is not None:
            raise self.fails

    def _read(self, offset: int, views: Sequence[memoryview], length: int) -> None:
        self._wait()
        for view in views:
            view[:] = self.memory[offset : offset + len(view)]
            offset += len(view)

    def _write(self, offset: int, views: Sequence[ReadableBuffer], length: int) -> None:
        self._wait()
        for view in views:
            self.memory[offset : offset + len(view)] = view
            offset += len(view)

    def _flush(self) -> None:
        self._wait()
        self.flushed += 1


def fails_with(status: Status) -> Any:
    """Asserts that a command fails, and how."""
    return pytest.raises(NvmeError, match=status.name)
