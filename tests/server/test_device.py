"""A device without a server, and what a server does to it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.fds import close_all
from vfio_user.errors import StateError
from vfio_user.pci.registers import ResetKind
from vfio_user.protocol.constants import DeviceFlags, IrqIndex
from vfio_user.protocol.device import DeviceInfo
from vfio_user.regions import MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop


@pytest.fixture
def device() -> Iterator[Device]:
    device = Device(irqs={IrqIndex.INTX: 1, IrqIndex.MSIX: 2})
    yield device
    device.loop.close()


def test_what_it_is(device: Device) -> None:
    assert device.info() == DeviceInfo(DeviceFlags.RESET, 9, 5)
    assert [device.interrupts.info(index)[1] for index in range(5)] == [1, 0, 2, 1, 1]
    assert not device.is_connected


def test_regions(device: Device) -> None:
    region = MemoryRegion(16)
    device.set_region(2, region)
    assert device.region(2) is region
    assert (device.region(3).size, device.region(3).readable, device.region(3).writable) == (0, False, False)
    for index in (-1, 9):
        with pytest.raises(ValueError, match=rf"region index {index} is not in \[0, 9\)"):
            device.set_region(index, region)


def test_regions_stay_while_a_client_is_connected(device: Device) -> None:
    device.connected()
    with pytest.raises(StateError, match="region 0 cannot change while a client is connected"):
        device.set_region(0, MemoryRegion(16))
    device.disconnected()
    device.set_region(0, MemoryRegion(16))


def test_work_is_put_off_without_a_server(device: Device) -> None:
    seen: list[str] = []
    fd = os.eventfd(1)
    device.call_soon(seen.append, "soon")
    device.call_later(0.0, seen.append, "later")
    watch = device.watch(fd, lambda: seen.append(f"watched {os.eventfd_read(fd)}"))
    device.loop.run_once()
    assert sorted(seen) == ["later", "soon", "watched 1"]
    watch.close()
    close_all([fd])


def test_what_it_has_put_off_moves_with_it(device: Device) -> None:
    seen: list[str] = []
    own = device.loop
    device.call_soon(seen.append, "one")
    other = EventLoop()
    device.attach(other)
    device.attach(other)
    assert device.loop is other
    assert other is not own
    other.run_once()
    device.call_soon(seen.append, "two")
    device.detach()
    other.close()
    device.loop.run_once()
    assert seen == ["one", "two"]


def test_nothing_put_off_needs_no_new_loop(device: Device) -> None:
    loop = EventLoop()
    device.attach(loop)
    device.detach()
    assert device._loop is None
    loop.close()


def test_a_reset_clears_what_is_pending_and_keeps_eventfds_and_mappings(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[ResetKind] = []
    monkeypatch.setattr(device, "on_reset", kinds.append)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    device.interrupts.set_irqs(IrqIndex.MSIX, 0x24, 0, 1, fds=[os.dup(event)])
    device.dma.map(0x1000, 0x1000, 3)
    device.interrupts.trigger(IrqIndex.MSIX, 1)
    device.interrupts.assert_intx()
    assert device.interrupts.pending(IrqIndex.MSIX) == 2
    device.reset()
    device.reset(ResetKind.FLR)
    assert kinds == [ResetKind.DEVICE, ResetKind.FLR]
    assert device.interrupts.pending(IrqIndex.MSIX) == 0
    assert not device.interrupts.intx_level
    assert device.interrupts.trigger(IrqIndex.MSIX, 0)
    assert len(device.dma) == 1
    device.disconnected()
    close_all([event])


def test_a_client_that_goes_takes_its_own_even_if_the_device_fails(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> None:
        assert len(device.dma) == 1
        raise ZeroDivisionError

    monkeypatch.setattr(device, "on_disconnect", breaks)
    device.connected()
    event = os.eventfd(0, os.EFD_NONBLOCK)
    device.interrupts.set_irqs(IrqIndex.MSIX, 0x24, 0, 1, fds=[os.dup(event)])
    device.dma.map(0x1000, 0x1000, 3)
    with pytest.raises(ZeroDivisionError):
        device.disconnected()
    assert len(device.dma) == 0
    assert not device.interrupts.trigger(IrqIndex.MSIX, 0)
    assert not device.is_connected
    close_all([event])
