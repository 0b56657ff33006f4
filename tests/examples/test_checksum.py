"""``examples/checksum.py`` does what its words say."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest

from examples.checksum import Checksum, Failure
from tests.support.fds import memory_file
from tests.support.raw_client import RawClient, memory_session
from vfio_user.protocol.constants import IrqIndex, RegionIndex

ADDRESS, LENGTH, CONTROL, STATUS, RESULT = 0x0, 0x8, 0xC, 0x10, 0x14
START, DONE = 1, 2
COMMAND, MEMORY_SPACE_AND_BUS_MASTER = 0x4, 0x6
IOVA = 0x1_0000_0000
DATA = bytes(range(256)) * 16


@pytest.fixture
def client() -> Iterator[RawClient]:
    """A client that has shared ``DATA`` at ``IOVA``, and lets the device reach it."""
    memory = memory_file(DATA)
    with memory_session(Checksum(largest=2048)) as client:
        client.negotiate()
        assert client.map_memory(IOVA, len(DATA), memory) == 0
        os.close(memory)
        client.write(RegionIndex.CONFIG, COMMAND, MEMORY_SPACE_AND_BUS_MASTER, 2)
        yield client


def compute(client: RawClient, address: int, length: int) -> tuple[int, Failure]:
    """Starts a job and waits for it.

    Returns:
        The checksum, and why there is none.
    """
    client.write(RegionIndex.BAR0, ADDRESS, address, 8)
    client.write(RegionIndex.BAR0, LENGTH, length)
    client.write(RegionIndex.BAR0, CONTROL, START)
    status = client.read(RegionIndex.BAR0, STATUS)
    assert status & 3 == DONE
    client.write(RegionIndex.BAR0, STATUS, DONE)
    assert not client.read(RegionIndex.BAR0, STATUS) & DONE
    return client.read(RegionIndex.BAR0, RESULT), Failure(status >> 4)


def test_the_checksum_is_that_of_the_drivers_memory(client: RawClient) -> None:
    assert compute(client, IOVA + 16, 1000) == (zlib.crc32(DATA[16:1016]), Failure.NONE)


def test_a_job_over_the_limit_fails(client: RawClient) -> None:
    assert compute(client, IOVA, 2048)[1] is Failure.NONE
    assert compute(client, IOVA, 2049)[1] is Failure.TOO_LONG


def test_memory_that_is_not_shared_fails_the_job_and_not_the_device(client: RawClient) -> None:
    assert compute(client, IOVA - 1, 16)[1] is Failure.NO_MEMORY
    assert compute(client, IOVA, 16) == (zlib.crc32(DATA[:16]), Failure.NONE)


def test_the_end_of_a_job_raises_the_vector(client: RawClient) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    assert client.set_eventfds(IrqIndex.MSIX, [event]) == 0
    enable_msix(client)
    compute(client, IOVA, 16)
    assert os.eventfd_read(event) == 1
    os.close(event)


def enable_msix(client: RawClient) -> None:
    """Walks the chain to the MSI-X capability and turns it on, as a driver does."""
    at = client.read(RegionIndex.CONFIG, 0x34, 1)
    while client.read(RegionIndex.CONFIG, at, 1) != 0x11:
        at = client.read(RegionIndex.CONFIG, at + 1, 1)
        assert at, "the device has no MSI-X capability"
    client.write(RegionIndex.CONFIG, at + 2, 0x8000, 2)
