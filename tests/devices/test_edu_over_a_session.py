"""The educational device as a driver sees it: through a session, with the order of answers and deferred work."""

from __future__ import annotations

import errno
import logging
import math
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fds import memory_file
from tests.support.raw_client import RawClient, access, memory_session, message
from vfio_user.devices.edu import Edu
from vfio_user.hardware.edu import BUFFER_ADDRESS, BUFFER_SIZE
from vfio_user.protocol.constants import Command, IrqIndex, RegionIndex
from vfio_user.protocol.region import ACCESS

IDENTIFICATION, LIVENESS, FACTORIAL, STATUS = 0x00, 0x04, 0x08, 0x20
INTERRUPT_STATUS, INTERRUPT_RAISE, INTERRUPT_ACKNOWLEDGE = 0x24, 0x60, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND = 0x80, 0x88, 0x90, 0x98
COMPUTING, RAISE_INTERRUPT = 0x01, 0x80
START, TO_MEMORY, DMA_INTERRUPT = 1, 2, 4
RAM = 0x10_0000
RAM_SIZE = 0x4000


class Driver:
    """A client with memory, an eventfd on INTx and bus mastering allowed."""

    def __init__(self, client: RawClient, device: Edu) -> None:
        self.client = client
        self.device = device
        self.ram = memory_file(bytes(RAM_SIZE))
        self.intx = os.eventfd(0, os.EFD_NONBLOCK)
        client.negotiate()
        assert client.map_memory(RAM, RAM_SIZE, self.ram) == 0
        assert client.set_eventfds(IrqIndex.INTX, [self.intx]) == 0
        client.write(RegionIndex.CONFIG, 0x04, 0x6, 2)

    def read(self, register: int, size: int = 4) -> int:
        return self.client.read(0, register, size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.client.write(0, register, value, size)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        """Sets off a transfer; once the answer to the next access is there, it is done."""
        for register, value in ((DMA_SOURCE, source), (DMA_DESTINATION, destination), (DMA_COUNT, count)):
            self.write(register, value, 8)
        self.write(DMA_COMMAND, command | START, 8)
        assert self.read(DMA_COMMAND, 8) == command

    def together(self, *messages: bytes) -> list[bytes]:
        """Sends several messages in one go; returns the data of each answer."""
        self.client.send(b"".join(messages))
        return [self.client.receive().payload[16:] for _ in messages]

    def line_is_up(self) -> bool:
        return self.device.interrupts.intx_level

    def interrupted(self) -> bool:
        try:
            return os.eventfd_read(self.intx) > 0
        except BlockingIOError:
            return False


def write(register: int, value: int, size: int = 4) -> bytes:
    return message(Command.REGION_WRITE, access(register, 0, value.to_bytes(size, "little")))


def read(register: int, size: int = 4) -> bytes:
    return message(Command.REGION_READ, ACCESS.pack(register, 0, size))


@pytest.fixture
def device() -> Edu:
    return Edu()


@pytest.fixture
def edu(device: Edu) -> Iterator[Driver]:
    with memory_session(device) as client:
        driver = Driver(client, device)
        yield driver
        os.close(driver.ram)
        os.close(driver.intx)


def test_what_it_is(edu: Driver) -> None:
    assert edu.client.read(RegionIndex.CONFIG, 0, 4) == 0x11E8_1234
    assert edu.client.read(RegionIndex.CONFIG, 8, 4) == 0x00FF_0010
    assert edu.device.region(0).size == 1 << 20
    assert edu.device.interrupts.info(IrqIndex.MSI)[1] == 1


def test_identification_is_constant(edu: Driver) -> None:
    assert edu.read(IDENTIFICATION) == 0x0100_00ED
    edu.write(IDENTIFICATION, 0)
    assert edu.read(IDENTIFICATION) == 0x0100_00ED


@pytest.mark.parametrize("value", [0, 1, 0x1234_5678, 0xFFFF_FFFF])
def test_liveness_reads_back_the_complement(edu: Driver, value: int) -> None:
    edu.write(LIVENESS, value)
    assert edu.read(LIVENESS) == value ^ 0xFFFF_FFFF


# Sizes.


@pytest.mark.parametrize(
    "register", [IDENTIFICATION, LIVENESS, FACTORIAL, STATUS, INTERRUPT_STATUS, INTERRUPT_RAISE, INTERRUPT_ACKNOWLEDGE]
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_below_0x80_four_bytes_are_the_only_size(edu: Driver, register: int, size: int) -> None:
    assert edu.client.read_error(0, register, size) == errno.EINVAL
    assert edu.client.write_error(0, register, 0, size) == errno.EINVAL


@pytest.mark.parametrize("register", [DMA_SOURCE, DMA_DESTINATION, DMA_COUNT])
def test_from_0x80_on_four_or_eight(edu: Driver, register: int) -> None:
    edu.write(register, 0x1122_3344_5566_7788, 8)
    assert edu.read(register, 8) == 0x1122_3344_5566_7788
    assert [edu.read(register), edu.read(register + 4)] == [0x5566_7788, 0x1122_3344]
    edu.write(register, 0xAAAA_AAAA)
    edu.write(register + 4, 0xBBBB_BBBB)
    assert edu.read(register, 8) == 0xBBBB_BBBB_AAAA_AAAA
    for size in (1, 2):
        assert edu.client.read_error(0, register, size) == errno.EINVAL
        assert edu.client.write_error(0, register, 0, size) == errno.EINVAL


# The factorial.


@given(st.integers(0, 60) | st.integers(0, 0xFFFF_FFFF))
def test_factorial(n: int) -> None:
    device = Edu()
    with memory_session(device) as client:
        client.negotiate()
        client.write(0, FACTORIAL, n)
        assert client.read(0, STATUS) == 0
        assert client.read(0, FACTORIAL) == (math.factorial(n) % (1 << 32) if n < 100 else 0)


def test_it_computes_for_a_while_and_takes_no_other_number_meanwhile(edu: Driver) -> None:
    answers = edu.together(write(FACTORIAL, 5), read(STATUS), write(FACTORIAL, 6), read(STATUS))
    assert answers[1] == answers[3] == struct.pack("<I", COMPUTING)
    assert (edu.read(STATUS), edu.read(FACTORIAL)) == (0, 120)
    assert not edu.interrupted()


def test_computing_is_not_the_drivers_to_write(edu: Driver) -> None:
    edu.write(STATUS, 0xFFFF_FFFF)
    assert edu.read(STATUS) == RAISE_INTERRUPT
    edu.write(STATUS, 0)
    assert edu.read(STATUS) == 0


def test_a_finished_factorial_interrupts_where_asked_to(edu: Driver) -> None:
    edu.write(STATUS, RAISE_INTERRUPT)
    edu.write(FACTORIAL, 4)
    assert (edu.read(FACTORIAL), edu.read(INTERRUPT_STATUS)) == (24, 0x001)
    assert edu.interrupted()
    edu.write(INTERRUPT_ACKNOWLEDGE, 0x001)
    assert edu.read(INTERRUPT_STATUS) == 0


# Interrupts.


def test_raise_and_acknowledge(edu: Driver) -> None:
    edu.write(INTERRUPT_RAISE, 0x12)
    assert edu.interrupted()
    edu.write(INTERRUPT_RAISE, 0x41)
    assert edu.read(INTERRUPT_STATUS) == 0x53
    edu.write(INTERRUPT_ACKNOWLEDGE, 0x13)
    assert edu.read(INTERRUPT_STATUS) == 0x40
    assert edu.line_is_up()
    edu.write(INTERRUPT_ACKNOWLEDGE, 0xFFFF_FFFF)
    assert edu.read(INTERRUPT_STATUS) == 0
    assert not edu.line_is_up()
    assert [edu.read(INTERRUPT_RAISE), edu.read(INTERRUPT_ACKNOWLEDGE)] == [0, 0]


def test_raising_nothing_interrupts_nobody(edu: Driver) -> None:
    edu.write(INTERRUPT_RAISE, 0)
    assert not edu.interrupted()


def test_interrupt_status_is_read_only(edu: Driver) -> None:
    edu.write(INTERRUPT_STATUS, 0xFF)
    assert edu.read(INTERRUPT_STATUS) == 0


def test_msi(edu: Driver) -> None:
    msi = os.eventfd(0, os.EFD_NONBLOCK)
    assert edu.client.set_eventfds(IrqIndex.MSI, [msi]) == 0
    at = next(item.offset for item in edu.device.function_declaration.capabilities if item.name == "msi")
    edu.client.write(RegionIndex.CONFIG, at + 2, 1, 2)
    for _ in range(2):
        edu.write(INTERRUPT_RAISE, 1)
        assert os.eventfd_read(msi) == 1
    assert not edu.interrupted()
    os.close(msi)


# DMA.


def test_to_the_buffer_and_back(edu: Driver) -> None:
    data = os.urandom(BUFFER_SIZE)
    os.pwrite(edu.ram, data, 0x1000)
    edu.transfer(RAM + 0x1000, BUFFER_ADDRESS, BUFFER_SIZE, 0)
    assert edu.device.buffer == data
    edu.transfer(BUFFER_ADDRESS, RAM, BUFFER_SIZE, TO_MEMORY)
    assert os.pread(edu.ram, BUFFER_SIZE, 0) == data
    assert not edu.interrupted()


@given(st.integers(0, BUFFER_SIZE), st.integers(0, BUFFER_SIZE), st.integers(0, RAM_SIZE - BUFFER_SIZE))
def test_any_part_of_the_buffer(start: int, count: int, at: int) -> None:
    count = min(count, BUFFER_SIZE - start)
    device = Edu()
    ram = memory_file(bytes(n & 0xFF for n in range(RAM_SIZE)))
    with memory_session(device) as client:
        client.negotiate()
        client.map_memory(RAM, RAM_SIZE, ram)
        client.write(RegionIndex.CONFIG, 0x04, 0x6, 2)
        for register, value in ((DMA_SOURCE, RAM + at), (DMA_DESTINATION, BUFFER_ADDRESS + start), (DMA_COUNT, count)):
            client.write(0, register, value, 8)
        client.write(0, DMA_COMMAND, START)
        client.read(0, DMA_COMMAND)
        assert device.buffer[start : start + count] == os.pread(ram, count, at)
        assert not any(device.buffer[:start])
        assert not any(device.buffer[start + count :])
    os.close(ram)


def test_the_transfer_is_under_way_until_the_answer_has_gone(edu: Driver) -> None:
    for register, value in ((DMA_SOURCE, RAM), (DMA_DESTINATION, BUFFER_ADDRESS), (DMA_COUNT, 4)):
        edu.write(register, value, 8)
    answers = edu.together(write(DMA_COMMAND, START | DMA_INTERRUPT), read(DMA_COMMAND))
    assert answers[1] == struct.pack("<I", START | DMA_INTERRUPT)
    assert edu.read(DMA_COMMAND) == DMA_INTERRUPT
    assert edu.read(INTERRUPT_STATUS) == 0x100
    assert edu.interrupted()


def test_without_start_nothing_moves(edu: Driver) -> None:
    os.pwrite(edu.ram, b"data", 0)
    edu.write(DMA_SOURCE, RAM, 8)
    edu.write(DMA_DESTINATION, BUFFER_ADDRESS, 8)
    edu.write(DMA_COUNT, 4, 8)
    edu.write(DMA_COMMAND, DMA_INTERRUPT, 8)
    assert not any(edu.device.buffer)
    assert not edu.interrupted()


def test_addresses_have_as_many_bits_as_the_mask(edu: Driver) -> None:
    os.pwrite(edu.ram, b"data", 0)
    edu.transfer(0xF000_0000 + RAM, BUFFER_ADDRESS, 4, 0)
    assert edu.device.buffer[:4] == b"data"


def test_another_mask() -> None:
    device = Edu(dma_mask=0xFFFF_FFFF)
    with memory_session(device) as client:
        edu = Driver(client, device)
        os.pwrite(edu.ram, b"data", 0)
        edu.transfer(0xF000_0000 + RAM, BUFFER_ADDRESS, 4, 0)
        assert not any(device.buffer)
        os.close(edu.ram)
        os.close(edu.intx)


@pytest.mark.parametrize(
    ("source", "destination", "count"),
    [
        (RAM, BUFFER_ADDRESS - 1, 4),
        (RAM, BUFFER_ADDRESS + BUFFER_SIZE - 3, 4),
        (RAM, BUFFER_ADDRESS + BUFFER_SIZE + 1, 0),
        (RAM, BUFFER_ADDRESS, BUFFER_SIZE + 1),
        (RAM, (1 << 64) - 1, 4),
        (RAM, BUFFER_ADDRESS, (1 << 64) - 1),
        (RAM + RAM_SIZE - 2, BUFFER_ADDRESS, 4),
        (0, BUFFER_ADDRESS, 4),
    ],
)
def test_a_bad_range_moves_nothing_and_is_over_all_the_same(
    edu: Driver, caplog: pytest.LogCaptureFixture, source: int, destination: int, count: int
) -> None:
    os.pwrite(edu.ram, b"\xff" * RAM_SIZE, 0)
    edu.transfer(source, destination, count, DMA_INTERRUPT)
    assert not any(edu.device.buffer)
    assert edu.read(INTERRUPT_STATUS) == 0x100
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_without_bus_mastering_nothing_moves(edu: Driver, caplog: pytest.LogCaptureFixture) -> None:
    edu.client.write(RegionIndex.CONFIG, 0x04, 0x2, 2)
    os.pwrite(edu.ram, b"data", 0)
    edu.transfer(RAM, BUFFER_ADDRESS, 4, 0)
    assert not any(edu.device.buffer)
    assert "Bus Master Enable" in caplog.text


# Reset.


def test_reset(edu: Driver) -> None:
    edu.write(LIVENESS, 1)
    edu.write(STATUS, RAISE_INTERRUPT)
    edu.write(FACTORIAL, 5)
    edu.transfer(RAM, BUFFER_ADDRESS, 4, 0)
    assert edu.client.request(Command.DEVICE_RESET).error == 0
    registers = [IDENTIFICATION, LIVENESS, FACTORIAL, STATUS, INTERRUPT_STATUS, DMA_SOURCE, DMA_COUNT, DMA_COMMAND]
    assert [edu.read(register) for register in registers] == [0x0100_00ED, 0, 0, 0, 0, 0, 0, 0]
    assert not edu.line_is_up()
