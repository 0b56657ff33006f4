"""The digital I/O card, port by port, as Linux' gpio-pci-idio-16 uses it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from tests.support.raw_client import RawClient, memory_session
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.protocol.constants import Command, IrqIndex, RegionIndex

OUTPUTS_LOW, INPUTS_LOW, INTERRUPT, FILTER, OUTPUTS_HIGH, INPUTS_HIGH, STATUS = range(7)
BAR = RegionIndex.BAR2


@pytest.fixture
def card() -> GpioPciIdio16:
    return GpioPciIdio16(inputs=0xA55A)


@pytest.fixture
def client(card: GpioPciIdio16) -> Iterator[RawClient]:
    with memory_session(card) as client:
        client.negotiate()
        yield client


@pytest.fixture
def intx(client: RawClient) -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    assert client.set_eventfds(IrqIndex.INTX, [fd]) == 0
    yield fd
    os.close(fd)


def line_is_up(card: GpioPciIdio16) -> bool:
    return card.interrupts.intx_level


def interrupted(intx: int) -> bool:
    try:
        return os.eventfd_read(intx) > 0
    except BlockingIOError:
        return False


def change(client: RawClient, card: GpioPciIdio16, levels: int) -> None:
    """The world moves; when the next access is answered, the card has seen it."""
    card.set_inputs(levels)
    client.read(BAR, OUTPUTS_LOW, 1)
    client.read(BAR, OUTPUTS_LOW, 1)


def test_what_it_is(client: RawClient, card: GpioPciIdio16) -> None:
    assert client.read(RegionIndex.CONFIG, 0, 4) == 0x0DC8_494F
    assert client.read(RegionIndex.CONFIG, 0x18, 4) & 1  # BAR2 is ports
    assert card.region(BAR).size == 8


def test_ports_have_one_byte(client: RawClient) -> None:
    for port in range(7):
        for size in (2, 4):
            if port + size <= 8:
                assert client.read_error(BAR, port, size) == errno.EINVAL
                assert client.write_error(BAR, port, 0, size) == errno.EINVAL


def test_outputs(client: RawClient, card: GpioPciIdio16) -> None:
    assert card.outputs == 0
    client.write(BAR, OUTPUTS_LOW, 0x34, 1)
    client.write(BAR, OUTPUTS_HIGH, 0x12, 1)
    assert card.outputs == 0x1234
    assert [client.read(BAR, port, 1) for port in (OUTPUTS_LOW, OUTPUTS_HIGH)] == [0x34, 0x12]


def test_inputs(client: RawClient, card: GpioPciIdio16) -> None:
    assert [client.read(BAR, port, 1) for port in (INPUTS_LOW, INPUTS_HIGH)] == [0x5A, 0xA5]
    change(client, card, 0xBEEF)
    assert [client.read(BAR, port, 1) for port in (INPUTS_LOW, INPUTS_HIGH)] == [0xEF, 0xBE]
    assert card.inputs == 0xBEEF
    client.write(BAR, INPUTS_HIGH, 0, 1)
    assert client.read(BAR, INPUTS_HIGH, 1) == 0xBE


@pytest.mark.parametrize(("mask", "status"), [(0x0001, 0b101), (0x8000, 0b110), (0x0180, 0b111)])
def test_a_changed_input_interrupts_once_that_is_enabled(
    client: RawClient, card: GpioPciIdio16, intx: int, mask: int, status: int
) -> None:
    change(client, card, 0xA55A ^ mask)
    assert (interrupted(intx), client.read(BAR, STATUS, 1)) == (False, 0)
    client.read(BAR, INTERRUPT, 1)
    change(client, card, 0xA55A)
    assert (interrupted(intx), client.read(BAR, STATUS, 1)) == (True, status)
    assert line_is_up(card)
    # Writing anything to the low inputs clears it.
    client.write(BAR, INPUTS_LOW, 0, 1)
    assert client.read(BAR, STATUS, 1) == 0
    assert not line_is_up(card)
    assert client.read(BAR, INPUTS_LOW, 1) == 0x5A


def test_changes_add_up_until_they_are_cleared(client: RawClient, card: GpioPciIdio16, intx: int) -> None:
    client.read(BAR, INTERRUPT, 1)
    change(client, card, 0xA55B)
    assert client.read(BAR, STATUS, 1) == 0b101
    change(client, card, 0x255B)
    assert client.read(BAR, STATUS, 1) == 0b111


def test_the_same_levels_again_are_no_change(client: RawClient, card: GpioPciIdio16, intx: int) -> None:
    client.read(BAR, INTERRUPT, 1)
    change(client, card, 0xA55A)
    assert (interrupted(intx), client.read(BAR, STATUS, 1)) == (False, 0)


def test_writing_disables_the_interrupt(client: RawClient, card: GpioPciIdio16, intx: int) -> None:
    client.read(BAR, INTERRUPT, 1)
    client.write(BAR, INTERRUPT, 0, 1)
    change(client, card, 0)
    assert (interrupted(intx), client.read(BAR, STATUS, 1)) == (False, 0)


def test_filters(client: RawClient) -> None:
    client.read(BAR, FILTER, 1)
    assert client.read(BAR, 7, 1) == 0xFF
    client.write(BAR, FILTER, 0, 1)
    assert client.read(BAR, 7, 1) == 0
    client.write(BAR, 7, 0x0F, 1)
    assert client.read(BAR, 7, 1) == 0x0F


def test_reset(client: RawClient, card: GpioPciIdio16, intx: int) -> None:
    client.write(BAR, OUTPUTS_LOW, 0xFF, 1)
    client.read(BAR, INTERRUPT, 1)
    change(client, card, 0x00FF)
    assert interrupted(intx)
    assert client.request(Command.DEVICE_RESET).error == 0
    assert card.outputs == 0
    assert not line_is_up(card)
    # The inputs are the world's, and interrupts have to be enabled again.
    assert [client.read(BAR, port, 1) for port in (INPUTS_LOW, INPUTS_HIGH, STATUS)] == [0xFF, 0, 0]
    change(client, card, 0)
    assert not interrupted(intx)
