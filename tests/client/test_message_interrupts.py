"""MSI and MSI-X: enabled, masked, pending, and the table as a driver writes it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vfio_user.client.message_interrupts import MsiX
from vfio_user.client.pci_function import PciFunction
from vfio_user.errors import InterruptTimeoutError, RemoteProtocolError, StateError
from vfio_user.pci import MemoryBar, Msi
from vfio_user.pci import MsiX as MsiXDeclaration
from vfio_user.protocol.constants import IrqIndex
from vfio_user.server.pci_device import PciDevice
from vfio_user.testing.in_process import DeviceUnderTest


class Card(PciDevice):
    """Both kinds; the table behind registers of its own."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    msi = Msi(vectors=4)
    msix = MsiXDeclaration(vectors=20, bar=0, table_offset=0x2000, pba_offset=0x3000)
    bar0 = MemoryBar(size=0x4000)


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def function(card: Card) -> Iterator[PciFunction]:
    with DeviceUnderTest(card) as under_test:
        yield under_test.function


@pytest.fixture
def msix(function: PciFunction) -> MsiX:
    assert function.msix is not None
    function.set_master()
    return function.msix


def test_where_they_are(msix: MsiX) -> None:
    assert (msix.count, msix.table, msix.pending_bits) == (20, (0, 0x2000, 320), (0, 0x3000, 8))
    assert (len(msix), msix.enabled) == (0, False)


def test_vectors(msix: MsiX, card: Card) -> None:
    vectors = msix.enable()
    assert (len(msix), msix[19], list(msix), msix.vectors) == (20, vectors[19], vectors, vectors)
    assert (msix.enabled, card.function.msix_enabled) == (True, True)
    card.raise_interrupt(3)
    card.raise_interrupt(3)
    card.raise_interrupt(19)
    assert (msix[3].wait(1), msix[19].wait(1), msix[0].poll()) == (2, 1, 0)
    msix.disable()
    assert (msix.enabled, len(msix), card.function.msix_enabled) == (False, 0, False)


def test_a_masked_vector_waits(msix: MsiX, card: Card) -> None:
    msix.enable(4)
    assert [msix.is_masked(vector) for vector in (0, 3, 4)] == [False, False, True]
    msix.mask(1)
    msix.mask(1)
    assert (msix.is_masked(1), msix.is_pending(1)) == (True, False)
    card.raise_interrupt(1)
    card.raise_interrupt(0)
    assert (msix[0].wait(1), msix[1].poll()) == (1, 0)
    assert (msix.is_pending(1), msix.is_pending(1), msix.is_pending(0)) == (True, True, False)
    msix.unmask(1)
    assert (msix[1].wait(0), msix.is_pending(1)) == (1, False)
    msix.unmask(1)
    msix.mask(2)
    msix.unmask(2)
    with pytest.raises(InterruptTimeoutError):
        msix[2].wait(0)
    card.raise_interrupt(2)
    assert msix[2].wait(1) == 1


def test_the_table_through_the_bar(msix: MsiX, card: Card, function: PciFunction) -> None:
    bar = function.bar0
    assert [bar.read32(0x2000 + offset) for offset in (0, 4, 8, 12)] == [0, 0, 0, 1]
    msix.enable(2)
    assert [bar.read32(0x2010 + offset) for offset in (0, 4, 8, 12)] == [0xFEE0_0000, 0, 1, 0]
    bar.write64(0x2010, 0x1234_5678_9ABC_DEF0)
    assert bar.read32(0x2014) == 0x1234_5678
    bar.write32(0x201C, 1)
    card.raise_interrupt(1)
    assert (msix.is_masked(1), msix.is_pending(1)) == (True, True)
    bar.write64(0x2018, 77)
    assert (msix.is_masked(1), bar.read32(0x2018), msix[1].wait(0)) == (False, 77, 1)
    bar.write32(0x213C, 0)
    assert not msix.is_masked(19)
    bar.write8(0x2140, 5)
    assert bar.read8(0x2140) == 5, "behind the table the device answers"
    for vector in (20, -1):
        with pytest.raises(IndexError, match=f"MSI-X vector {vector} of 20"):
            msix.mask(vector)


def test_too_many(msix: MsiX) -> None:
    with pytest.raises(StateError, match="the device has 20 MSIX vectors; 21"):
        msix.enable(21)


def test_closing_with_masked_vectors(msix: MsiX) -> None:
    msix.enable()
    msix.mask(0)
    msix.close()
    assert msix.is_masked(1)


def test_a_table_outside_its_bar() -> None:
    card = Card()
    assert card.function.msix is not None
    card.function.msix.table_location = 0x3FF8
    with DeviceUnderTest(card) as under_test:
        with pytest.raises(RemoteProtocolError, match="MSI-X table of 320 bytes lie at 0x3ff8 of BAR0: it has 0x4000"):
            under_test.function  # noqa: B018
        card.function.msix.table_location = 0x2005
        with pytest.raises(RemoteProtocolError, match="lie at 0x2000 of BAR5: there is no such BAR"):
            under_test.function  # noqa: B018


def test_msi(function: PciFunction, card: Card) -> None:
    msi = function.msi
    assert msi is not None
    function.set_master()
    assert (msi.count, msi.enabled) == (4, False)
    msi.enable(2)
    assert (msi.enabled, len(msi), card.function.msi and card.function.msi.vectors_enabled) == (True, 2, 2)
    assert card.function.msi is not None
    assert card.function.msi.message == (0xFEE0_0000, 0)
    card.raise_interrupt(0)
    card.raise_interrupt(3)  # it took two: the last of them stands for the rest
    assert (msi[0].wait(1), msi[1].wait(1)) == (1, 1)
    msi.disable()
    assert (msi.enabled, len(msi)) == (False, 0)
    assert len(msi.enable()) == 4
    with pytest.raises(ValueError, match="3 MSI vectors: MSI has a power of two"):
        msi.enable(3)
    with pytest.raises(StateError, match="has 4 MSI vectors; 8"):
        msi.enable(8)


def test_msi_with_a_short_address() -> None:
    class Old(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
        msi = Msi(vectors=1, address_64=False)

    device = Old()
    with DeviceUnderTest(device) as under_test:
        function = under_test.function
        (vector,) = function.enable_interrupts(kinds=[IrqIndex.MSI])
        assert device.function.msi is not None
        assert device.function.msi.message == (0xFEE0_0000, 0)
        function.set_master()
        device.raise_interrupt()
        assert vector.wait(1) == 1


@pytest.mark.parametrize("address_64", [False, True])
def test_msi_vectors_that_are_masked_one_by_one(address_64: bool) -> None:
    class Masking(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
        msi = Msi(vectors=4, address_64=address_64, per_vector_masking=True)

    card = Masking()
    with DeviceUnderTest(card) as under_test:
        function = under_test.function
        function.set_master()
        msi = function.msi
        assert msi is not None
        assert msi.has_masks
        msi.enable()
        msi.mask(1)
        msi.mask(3)
        assert [msi.is_masked(vector) for vector in range(4)] == [False, True, False, True]
        card.raise_interrupt(1)
        card.raise_interrupt(1)
        card.raise_interrupt(2)
        assert [msi[vector].poll() for vector in range(4)] == [0, 0, 1, 0]
        # What is pending, the function says if it wants to.
        assert card.function.msi is not None
        card.function.msi.set_pending(1, True)
        assert [msi.is_pending(vector) for vector in range(4)] == [False, True, False, False]
        msi.unmask(1)
        msi.unmask(3)
        assert [msi[vector].poll() for vector in range(4)] == [0, 1, 0, 0]
        assert not any(msi.is_masked(vector) for vector in range(4))
        with pytest.raises(IndexError, match="MSI vector 4 of 4"):
            msi.mask(4)


def test_msi_vectors_that_cannot_be_masked(function: PciFunction) -> None:
    msi = function.msi
    assert msi is not None
    assert not msi.has_masks
    for call in (msi.mask, msi.unmask, msi.is_masked, msi.is_pending):
        with pytest.raises(StateError, match="cannot mask single MSI vectors: its capability has no mask bits"):
            call(0)
