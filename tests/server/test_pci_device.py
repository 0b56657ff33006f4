"""A PCI function behind a session: what configuration writes, resets and interrupts do to the device as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.fds import close_all, memory_file
from tests.support.raw_client import RawClient, memory_session
from vfio_user.errors import DmaAccess, InvalidAccess
from vfio_user.pci import (
    MemoryBar,
    Msi,
    MsiX,
    PciExpress,
    PowerManagement,
    PowerState,
    Register,
    RegisterBlock,
    ResetKind,
)
from vfio_user.protocol.constants import Command, IrqIndex, RegionIndex
from vfio_user.server.pci_device import PciDevice

CONFIG = RegionIndex.CONFIG
COMMAND, MASTER, INTX_DISABLE = 0x04, 0x4, 0x400


class Registers(RegisterBlock):
    scratch = Register(0x00, reset=0x55)


class Full(PciDevice):
    """Every kind of interrupt and of reset."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    msi = Msi(vectors=4)
    pm = PowerManagement(no_soft_reset=False)
    express = PciExpress()
    msix = MsiX(vectors=8)
    bar0 = MemoryBar(size=0x1000, registers=Registers)

    def __init__(self) -> None:
        super().__init__()
        self.events: list[object] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.events.append(kind)

    def on_power_state(self, old: PowerState, new: PowerState) -> None:
        self.events.append((old, new))

    def on_command(self, old: int, new: int) -> None:
        self.events.append((old, new))


class Host:
    """A client with the device's memory mapped and an eventfd on every vector."""

    def __init__(self, client: RawClient, device: Full) -> None:
        self.client = client
        self.device = device
        memory = memory_file(bytes(0x1000))
        self.eventfds = {
            IrqIndex.INTX: [os.eventfd(0, os.EFD_NONBLOCK)],
            IrqIndex.MSI: [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)],
            IrqIndex.MSIX: [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(8)],
        }
        assert client.map_memory(0x8000, 0x1000, memory) == 0
        for index, fds in self.eventfds.items():
            assert client.set_eventfds(index, fds) == 0
        os.close(memory)

    def close(self) -> None:
        for fds in self.eventfds.values():
            close_all(fds)

    def config(self, offset: int, value: int, size: int = 2) -> None:
        self.client.write(CONFIG, offset, value, size)

    def capability(self, name: str) -> int:
        """Where a capability begins."""
        placed = self.device.function_declaration.capabilities
        return next(item.offset for item in placed if item.name == name)

    def fired(self) -> dict[IrqIndex, list[int]]:
        """What was signalled since the last look: vectors by index, without those that were not."""
        found: dict[IrqIndex, list[int]] = {}
        for index, fds in self.eventfds.items():
            for vector, fd in enumerate(fds):
                try:
                    os.eventfd_read(fd)
                except BlockingIOError:
                    continue
                found.setdefault(index, []).append(vector)
        return found

    def enable_msi(self, log2: int) -> None:
        self.config(self.capability("msi") + 2, 1 | log2 << 4)

    def enable_msix(self) -> None:
        self.config(self.capability("msix") + 2, 0x8000)


@pytest.fixture
def device() -> Full:
    return Full()


@pytest.fixture
def host(device: Full) -> Iterator[Host]:
    with memory_session(device) as client:
        client.negotiate()
        host = Host(client, device)
        yield host
        host.close()


def test_what_a_client_finds(host: Host) -> None:
    info = host.client.request(Command.DEVICE_GET_INFO, bytes([16]) + bytes(15)).payload
    assert info[4] == 3
    assert host.client.read(CONFIG, 0, 4) == 0x5678_1234
    assert host.client.read(CONFIG, 0x3D, 1) == 1
    assert [host.device.interrupts.info(index)[1] for index in range(3)] == [1, 4, 8]
    assert host.device.region(CONFIG).size == 4096


def test_a_device_without_interrupts_has_no_vectors() -> None:
    class Quiet(PciDevice):
        vendor_id, device_id, class_code, interrupt_pin = 1, 2, 0xFF0000, 0

    device = Quiet()
    assert [device.interrupts.info(index)[1] for index in range(3)] == [0, 0, 0]
    assert device.region(CONFIG).size == 256
    device.raise_interrupt()
    device.lower_interrupt()


# DMA, and who may do it.


def test_bus_mastering_is_the_drivers_to_allow(host: Host) -> None:
    with pytest.raises(DmaAccess, match="Bus Master Enable"):
        host.device.dma.read(0x8000, 4)
    host.config(COMMAND, MASTER)
    assert host.device.dma.read(0x8000, 4) == bytes(4)
    host.config(COMMAND, 0)
    with pytest.raises(DmaAccess):
        host.device.dma.write(0x8000, b"x")
    assert host.device.events == [(0, MASTER), (MASTER, 0)]


def test_a_power_state_that_stops_bus_mastering(host: Host) -> None:
    host.config(COMMAND, MASTER)
    host.config(host.capability("pm") + 4, 3)
    with pytest.raises(DmaAccess):
        host.device.dma.read(0x8000, 4)


def test_a_device_that_does_not_wait_for_bus_mastering() -> None:
    class Careless(Full):
        enforce_bus_master = False

    device = Careless()
    with memory_session(device) as client:
        client.negotiate()
        host = Host(client, device)
        assert device.dma.read(0x8000, 4) == bytes(4)
        host.config(COMMAND, 0)
        client.request(Command.DEVICE_RESET)
        assert device.dma.read(0x8000, 4) == bytes(4)
        host.close()


# Interrupts.


def test_intx_by_default(host: Host) -> None:
    host.device.raise_interrupt()
    assert host.fired() == {IrqIndex.INTX: [0]}
    assert host.client.read(CONFIG, 0x06, 2) & 8
    host.device.raise_interrupt()
    assert host.fired() == {}  # masked by itself until the client unmasks it
    host.device.lower_interrupt()
    assert not host.client.read(CONFIG, 0x06, 2) & 8


def test_intx_disabled_in_the_command_register(host: Host) -> None:
    host.config(COMMAND, INTX_DISABLE)
    host.device.raise_interrupt()
    assert host.fired() == {}
    assert host.client.read(CONFIG, 0x06, 2) & 8
    host.config(COMMAND, 0)
    assert host.fired() == {IrqIndex.INTX: [0]}


@pytest.mark.parametrize(("log2", "expected"), [(0, [0, 0, 0, 0]), (1, [0, 1, 1, 1]), (2, [0, 1, 2, 3])])
def test_msi_with_as_many_vectors_as_the_driver_took(host: Host, log2: int, expected: list[int]) -> None:
    host.enable_msi(log2)
    for vector, lands in enumerate(expected):
        host.device.raise_interrupt(vector)
        assert host.fired() == {IrqIndex.MSI: [lands]}
    host.device.lower_interrupt()
    host.config(host.capability("msi") + 2, 0)
    host.device.raise_interrupt()
    assert host.fired() == {IrqIndex.INTX: [0]}


def test_a_line_that_was_up_when_msi_was_turned_on_tells_nobody(host: Host) -> None:
    host.config(COMMAND, INTX_DISABLE)
    host.device.raise_interrupt()
    host.enable_msi(0)
    host.config(COMMAND, 0)
    assert host.fired() == {}


def test_msix_before_msi(host: Host) -> None:
    host.enable_msi(2)
    host.enable_msix()
    for vector in range(8):
        host.device.raise_interrupt(vector)
        assert host.fired() == {IrqIndex.MSIX: [vector]}
    with pytest.raises(InvalidAccess, match="MSIX vector 8"):
        host.device.raise_interrupt(8)


def test_pending_vectors_show_in_the_pending_bit_array(host: Host) -> None:
    where = host.device.function_declaration.msix
    assert where is not None
    bar, offset = where.pba
    host.enable_msix()
    # The client takes vectors 1 and 6 back, as QEMU does with those the guest masks.
    for vector in (1, 6):
        assert host.client.set_eventfds(IrqIndex.MSIX, [], start=vector, count=1) == 0
    for vector in (0, 1, 6):
        host.device.raise_interrupt(vector)
    fired = host.fired()
    assert fired.get(IrqIndex.MSIX, []) == [0]
    assert host.client.read(bar, offset, 8) == 0b0100_0010
    assert host.client.read(bar, offset, 1) == 0b0100_0010
    # "Software must not write": nothing comes of it.
    host.client.write(bar, offset, 0, 8)
    assert host.client.read(bar, offset, 8) == 0b0100_0010
    assert host.client.set_eventfds(IrqIndex.MSIX, host.eventfds[IrqIndex.MSIX][1:2], start=1) == 0
    assert host.fired() == {IrqIndex.MSIX: [1]}
    assert host.client.read(bar, offset, 8) == 0b0100_0000
    host.client.request(Command.DEVICE_RESET)
    assert host.client.read(bar, offset, 8) == 0


# Resets.


def disturb(host: Host) -> None:
    """Leaves nothing as a reset would."""
    host.config(COMMAND, MASTER)
    host.client.write(0, 0, 0x99)
    host.enable_msix()
    host.device.interrupts.assert_intx()
    host.device.events.clear()


def assert_reset(host: Host, kind: ResetKind) -> None:
    """Registers are as at the beginning; what is the client's is still there."""
    assert kind in host.device.events
    assert host.client.read(0, 0) == 0x55
    assert host.client.read(CONFIG, COMMAND, 2) == 0
    assert not host.client.read(CONFIG, host.capability("msix") + 2, 2) & 0x8000
    assert not host.device.interrupts.intx_level
    assert not host.device.interrupts.intx_disabled
    with pytest.raises(DmaAccess):
        host.device.dma.read(0x8000, 4)
    host.config(COMMAND, MASTER)
    assert host.device.dma.read(0x8000, 4) == bytes(4)
    host.fired()
    assert host.device.interrupts.trigger(IrqIndex.MSIX, 3)
    assert host.fired() == {IrqIndex.MSIX: [3]}


def test_device_reset(host: Host) -> None:
    disturb(host)
    assert host.client.request(Command.DEVICE_RESET).error == 0
    assert host.device.events == [ResetKind.DEVICE]
    assert_reset(host, ResetKind.DEVICE)


def test_function_level_reset_as_a_guest_writes_it(host: Host) -> None:
    control = host.capability("express") + 8
    disturb(host)
    host.config(control, 0x8000)
    assert host.device.events == [ResetKind.FLR]
    assert_reset(host, ResetKind.FLR)
    assert not host.client.read(CONFIG, control, 2) & 0x8000


def test_back_from_d3hot(host: Host) -> None:
    state = host.capability("pm") + 4
    disturb(host)
    host.config(state, 3)
    assert host.device.events == [(PowerState.D0, PowerState.D3HOT)]
    assert host.client.read(CONFIG, state, 2) & 3 == 3
    host.config(state, 0)
    assert host.device.events[1:] == [ResetKind.D3_HOT, (PowerState.D3HOT, PowerState.D0)]
    assert_reset(host, ResetKind.D3_HOT)


def test_back_from_d3hot_without_a_reset() -> None:
    class Soft(Full):
        pm = PowerManagement()

    device = Soft()
    with memory_session(device) as client:
        client.negotiate()
        host = Host(client, device)
        disturb(host)
        host.config(host.capability("pm") + 4, 3)
        host.config(host.capability("pm") + 4, 0)
        assert device.events == [(PowerState.D0, PowerState.D3HOT), (PowerState.D3HOT, PowerState.D0)]
        assert client.read(0, 0) == 0x99
        assert device.dma.read(0x8000, 4) == bytes(4)
        host.close()
