"""The educational device, driven from this process: what its specification says, register by register."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fds import memory_file
from vfio_user import ResetKind
from vfio_user.devices import edu as edu_module
from vfio_user.devices.edu import Edu
from vfio_user.hardware.edu import BUFFER_ADDRESS, BUFFER_SIZE
from vfio_user.protocol.constants import DmaMapFlags

FACTORIAL, STATUS, INTERRUPT_STATUS, RAISE, ACKNOWLEDGE = 0x08, 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
MEMORY, MEMORY_SIZE = 0x10_0000, 0x4000


@pytest.fixture
def edu() -> Iterator[Edu]:
    """One with guest memory at MEMORY, and a driver that made it bus master."""
    device = Edu()
    fd = memory_file(bytes(MEMORY_SIZE))
    device.dma.map(MEMORY, MEMORY_SIZE, DmaMapFlags.READ | DmaMapFlags.WRITE, 0, fd)
    device.function.config.write(0x04, 2, 0x6)
    yield device
    device.dma.clear()
    device.loop.close()


def transfer(device: Edu, source: int, destination: int, count: int, command: int) -> None:
    for offset, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command)):
        device.bar0.write(offset, 8, value)
    device.loop.run_once()


def test_it_fits_a_screen_beside_its_specification() -> None:
    assert len(Path(edu_module.__file__).read_text().splitlines()) < 80


def test_identification_and_liveness(edu: Edu) -> None:
    assert edu.bar0.read(0x0, 4) == 0x0100_00ED
    edu.bar0.write(0x4, 4, 0x1234_5678)
    assert edu.bar0.read(0x4, 4) == 0xEDCB_A987


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 33, 34, 35, 0xFFFF_FFFF])
def test_factorial_modulo_its_register(edu: Edu, n: int) -> None:
    edu.bar0.write(FACTORIAL, 4, n)
    assert edu.bar0.read(STATUS, 4) == 1
    edu.loop.run_once()
    assert edu.bar0.read(STATUS, 4) == 0
    assert edu.bar0.read(FACTORIAL, 4) == (math.factorial(n) & 0xFFFF_FFFF if n < 100 else 0)
    assert edu.bar0.interrupt_status == 0


def test_a_factorial_asked_for_while_another_is_computed_is_ignored(edu: Edu) -> None:
    edu.bar0.write(FACTORIAL, 4, 4)
    edu.bar0.write(FACTORIAL, 4, 5)
    edu.loop.run_once()
    assert edu.bar0.read(FACTORIAL, 4) == 24
    edu.loop.run_once()
    assert edu.bar0.read(FACTORIAL, 4) == 24


def test_a_finished_factorial_interrupts_where_that_was_asked_for(edu: Edu) -> None:
    edu.bar0.write(STATUS, 4, 0x80)
    edu.bar0.write(FACTORIAL, 4, 3)
    assert not edu.interrupts.intx_level
    edu.loop.run_once()
    assert edu.bar0.read(INTERRUPT_STATUS, 4) == 0x001
    assert edu.interrupts.intx_level


def test_raised_causes_add_up_and_the_line_falls_with_the_last(edu: Edu) -> None:
    edu.bar0.write(RAISE, 4, 0)
    assert not edu.interrupts.intx_level
    edu.bar0.write(RAISE, 4, 0x5)
    edu.bar0.write(RAISE, 4, 0x2)
    assert edu.bar0.read(INTERRUPT_STATUS, 4) == 0x7
    edu.bar0.write(ACKNOWLEDGE, 4, 0x5)
    assert (edu.bar0.read(INTERRUPT_STATUS, 4), edu.interrupts.intx_level) == (0x2, True)
    edu.bar0.write(ACKNOWLEDGE, 4, 0xFF)
    assert (edu.bar0.read(INTERRUPT_STATUS, 4), edu.interrupts.intx_level) == (0, False)


def test_acknowledging_one_of_two_causes_sends_no_second_message(edu: Edu) -> None:
    edu.function.config.write(edu.msi.offset + 2, 2, 1)
    edu.bar0.write(RAISE, 4, 0x3)
    sent = edu.interrupts.statistics()
    edu.bar0.write(ACKNOWLEDGE, 4, 0x1)
    assert edu.interrupts.statistics() == sent
    assert not edu.interrupts.intx_level


def test_dma_there_and_back(edu: Edu) -> None:
    edu.dma.write(MEMORY, b"out to the device")
    transfer(edu, MEMORY, BUFFER_ADDRESS + 8, 17, 1)
    assert edu.buffer[8:25] == b"out to the device"
    assert edu.bar0.read(COMMAND, 8) == 0
    assert edu.bar0.interrupt_status == 0
    transfer(edu, BUFFER_ADDRESS + 15, MEMORY + 0x2000, 10, 1 | 2 | 4)
    assert edu.dma.read(MEMORY + 0x2000, 11) == b"the device\0"
    assert edu.bar0.read(INTERRUPT_STATUS, 4) == 0x100
    assert edu.bar0.read(COMMAND, 8) == 6


def test_dma_starts_after_the_command_was_answered_and_only_when_asked(edu: Edu) -> None:
    edu.bar0.write(COUNT, 8, 4)
    edu.bar0.write(COMMAND, 8, 4)
    edu.loop.run_once()
    assert edu.bar0.interrupt_status == 0
    edu.bar0.write(COMMAND, 8, 5)
    assert edu.bar0.read(COMMAND, 8) == 5
    edu.loop.run_once()
    assert edu.bar0.read(COMMAND, 8) == 4


def test_the_dma_engine_has_the_address_bits_it_was_given(edu: Edu) -> None:
    edu.dma.write(MEMORY, b"masked")
    transfer(edu, MEMORY | 1 << 28, BUFFER_ADDRESS, 6, 1)
    assert edu.buffer[:6] == b"masked"


@pytest.mark.parametrize(
    ("source", "destination", "count"),
    [
        (MEMORY, BUFFER_ADDRESS - 1, 4),
        (MEMORY, BUFFER_ADDRESS + BUFFER_SIZE - 3, 4),
        (MEMORY, BUFFER_ADDRESS, 1 << 63),
        (0x80_0000, BUFFER_ADDRESS, 4),
    ],
)
def test_dma_that_cannot_be_ends_with_a_warning(
    edu: Edu, caplog: pytest.LogCaptureFixture, source: int, destination: int, count: int
) -> None:
    edu.buffer[:] = b"\xaa" * BUFFER_SIZE
    with caplog.at_level(logging.WARNING, "vfio_user"):
        transfer(edu, source, destination, count, 1 | 4)
        transfer(edu, destination, source, count, 1 | 2 | 4)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["edu", "edu"]
    assert f"no DMA of {count} bytes" in caplog.text
    assert edu.buffer == b"\xaa" * BUFFER_SIZE
    assert edu.bar0.read(COMMAND, 8) == 6
    assert edu.bar0.read(INTERRUPT_STATUS, 4) == 0x100


def test_a_reset_leaves_memory_alone_as_in_qemu(edu: Edu) -> None:
    edu.buffer[:4] = b"kept"
    edu.bar0.write(RAISE, 4, 1)
    edu.reset(ResetKind.DEVICE)
    assert edu.bar0.read(INTERRUPT_STATUS, 4) == 0
    assert edu.buffer[:4] == b"kept"
