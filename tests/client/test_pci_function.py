"""A PCI function as a driver sees it: the shipped devices driven without a virtual machine, and one of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user.client.pci_function import PciFunction
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.errors import CommandError, InterruptTimeoutError, RemoteProtocolError, StateError
from vfio_user.hardware.edu import BUFFER_ADDRESS, DMA_INTERRUPT, FACTORIAL_INTERRUPT, EduRegisters
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
from vfio_user.protocol.constants import DeviceFlags, IrqIndex, RegionIndex
from vfio_user.regions import MemoryRegion
from vfio_user.server.device import Device
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.server import Server
from vfio_user.testing.in_process import DeviceUnderTest


@pytest.fixture(params=["in process", "socket"])
def edu(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PciFunction]:
    device = Edu()
    if request.param == "in process":
        with DeviceUnderTest(device) as under_test:
            yield under_test.function
    else:
        path, blocks = tmp_path / "edu.sock", {0: EduRegisters}
        with (
            Server(device, path, strict=True).start(),
            PciFunction.connect(path, register_blocks=blocks) as function,
        ):
            yield function


def test_edu_is_there(edu: PciFunction) -> None:
    assert (edu.vendor_id, edu.device_id, edu.revision, edu.class_code) == (0x1234, 0x11E8, 0x10, 0x00FF00)
    assert (repr(edu), edu.subsystem_id) == ("<PciFunction 1234:11e8>", (0, 0))
    assert edu.bar0.read32(0) == 0x0100_00ED
    edu.bar0.write32(4, 0x1234_5678)
    assert edu.bar0.read32(4) == 0xEDCB_A987
    edu.bar0.write32(4, 0, posted=True)
    assert edu.registers(0).liveness == edu.registers(0, EduRegisters).liveness == 0xFFFF_FFFF


def test_edu_computes(edu: PciFunction) -> None:
    registers = edu.registers(0, EduRegisters)
    edu.set_master()
    (interrupt,) = edu.enable_interrupts()
    registers.status.raise_interrupt = 1
    registers.factorial = 10
    assert interrupt.wait() == 1
    assert registers.factorial == 3628800
    assert registers.interrupt_status == FACTORIAL_INTERRUPT
    registers.interrupt_acknowledge = FACTORIAL_INTERRUPT
    assert registers.interrupt_status == 0


def test_edu_moves_memory(edu: PciFunction) -> None:
    registers = edu.registers(0, EduRegisters)
    edu.set_master()
    (interrupt,) = edu.enable_interrupts()
    buffer = edu.dma_alloc(100)
    buffer[:] = bytes(range(100))

    def move(source: int, destination: int, *, to_memory: bool) -> None:
        registers.dma_source, registers.dma_destination, registers.dma_count = source, destination, 100
        registers.dma_command = 0b101 | to_memory << 1
        interrupt.wait()
        assert registers.interrupt_status == DMA_INTERRUPT
        registers.interrupt_acknowledge = DMA_INTERRUPT

    move(buffer.iova, BUFFER_ADDRESS, to_memory=False)
    buffer[:] = bytes(100)
    move(BUFFER_ADDRESS, buffer.iova, to_memory=True)
    assert buffer[:] == bytes(range(100))


def test_edu_does_not_move_memory_before_it_may(edu: PciFunction) -> None:
    registers = edu.registers(0, EduRegisters)
    (interrupt,) = edu.enable_interrupts()
    buffer = edu.dma_alloc(4)
    buffer[:] = b"abcd"
    registers.dma_source, registers.dma_destination, registers.dma_count = BUFFER_ADDRESS, buffer.iova, 4
    registers.dma_command = 0b111
    interrupt.wait()
    assert (edu.bus_master, buffer[:]) == (False, b"abcd")


def test_edu_by_the_pin(edu: PciFunction) -> None:
    registers = edu.registers(0, EduRegisters)
    (interrupt,) = edu.enable_interrupts(kinds=[IrqIndex.INTX])
    for cause in (1, 2):
        registers.interrupt_raise = cause
    assert interrupt.wait() == 1
    edu.intx.unmask()
    assert interrupt.wait() == 1, "the line is still asserted"
    registers.interrupt_acknowledge = 3
    edu.intx.unmask()
    with pytest.raises(InterruptTimeoutError):
        interrupt.wait(0)
    edu.disable_interrupts()


def test_edu_is_reset(edu: PciFunction) -> None:
    edu.set_master()
    edu.enable_interrupts()
    edu.bar0.write32(4, 5)
    address = edu.bar0.address
    edu.reset()
    assert edu.bar0.read32(4) == 0
    assert edu.msi is not None
    assert (edu.msi.enabled, len(edu.msi), edu.bus_master) == (False, 0, False)
    assert edu.config.read32(0x10) == address
    with pytest.raises(StateError, match=r"no function level reset; use reset\(\)"):
        edu.flr()
    with pytest.raises(StateError, match="no power management; it cannot go to D3HOT"):
        edu.power_state = PowerState.D3HOT
    assert edu.power_state == PowerState.D0


def test_what_edu_does_not_have(edu: PciFunction) -> None:
    with pytest.raises(StateError, match="has no BAR1; it has BAR0"):
        edu.bar1  # noqa: B018
    with pytest.raises(StateError, match=r"nobody said what registers BAR3 has: give registers\(3, ...\) their class"):
        edu.registers(3)
    assert edu.msix is None
    assert edu.find_capability(PciExpress) is None
    assert edu.find_extended_capability(1) is None
    found = edu.find_capability(0x05)
    assert found is not None
    assert found.offset == edu.capabilities[0].offset
    with pytest.raises(StateError, match="no 2 vectors of MSIX, MSI, INTX"):
        edu.enable_interrupts(2)
    assert edu.read_rom() == b""


def test_gpio() -> None:
    device = GpioPciIdio16(inputs=0x00FF)
    with DeviceUnderTest(device) as under_test:
        gpio = under_test.function
        assert gpio.bar2.is_io
        registers = gpio.registers(2)
        registers.outputs_low, registers.outputs_high = 0x55, 0xAA
        assert device.outputs == 0xAA55
        assert (registers.inputs_low, registers.inputs_high) == (0xFF, 0)
        (interrupt,) = gpio.enable_interrupts()
        device.set_inputs(0x01FE)
        assert interrupt.poll() == 0, "not enabled on the card"
        registers.interrupt_control  # noqa: B018  # reading it enables the interrupt
        device.set_inputs(0x01FF)
        assert interrupt.wait(1) == 1
        status = registers.interrupt_status
        assert (status.low_changed, status.high_changed, status.pending) == (1, 0, 1)
        registers.inputs_low = 0
        gpio.intx.unmask()
        assert (interrupt.poll(), registers.interrupt_status) == (0, 0)


class Registers(RegisterBlock):
    """One register."""

    value = Register(0)


class Card(PciDevice):
    """PCI Express, with everything."""

    vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000
    pm = PowerManagement(no_soft_reset=False)
    msi = Msi(vectors=4)
    msix = MsiX(vectors=3)
    express = PciExpress()
    bar0 = MemoryBar(size=4096, registers=Registers)

    def __init__(self) -> None:
        super().__init__()
        self.resets: list[ResetKind] = []

    def on_reset(self, kind: ResetKind) -> None:
        self.resets.append(kind)


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def function(card: Card) -> Iterator[PciFunction]:
    with DeviceUnderTest(card) as under_test:
        yield under_test.function


def test_the_best_kind_of_interrupt(function: PciFunction, card: Card) -> None:
    assert function.msix is not None
    assert function.msi is not None
    assert function.enable_interrupts(3) == function.msix.vectors
    assert card.function.intx_disabled
    function.disable_interrupts()
    assert len(function.enable_interrupts(4)) == 4
    assert function.msi.enabled
    function.disable_interrupts()
    assert len(function.enable_interrupts(3, kinds=[IrqIndex.MSI])) == 4
    function.disable_interrupts()
    assert function.enable_interrupts(kinds=[IrqIndex.INTX]) == function.intx.vectors
    assert card.function.header.command.interrupt_disable == 0
    with pytest.raises(StateError, match="no 5 vectors"):
        function.enable_interrupts(5)


def test_function_level_reset(function: PciFunction, card: Card) -> None:
    assert function.has_flr
    function.set_master()
    function.enable_interrupts(3)
    function.registers(0).value = 5
    address = function.bar0.address
    function.flr()
    assert card.resets == [ResetKind.FLR]
    assert function.registers(0).value == 0
    assert (function.config.read32(0x10), function.bus_master) == (address, False)
    assert function.msix is not None
    assert (len(function.msix), function.msix.is_masked(0)) == (0, True)
    assert len(function.enable_interrupts(3)) == 3


def test_power_states(function: PciFunction, card: Card) -> None:
    assert function.power_state == PowerState.D0
    function.power_state = PowerState.D3HOT
    assert (function.power_state, card.resets) == (PowerState.D3HOT, [])
    function.power_state = PowerState.D0
    assert (function.power_state, card.resets) == (PowerState.D0, [ResetKind.D3_HOT])
    assert function.config.read32(0x10) == function.bar0.address


def test_the_command_register(function: PciFunction, card: Card) -> None:
    assert card.function.header.command.memory_space == 1
    function.set_master()
    assert (function.bus_master, card.function.bus_master_enabled) == (True, True)
    function.bus_master = False
    assert not card.function.bus_master_enabled
    function.disable()
    assert card.function.header.command == 0
    function.enable()
    assert card.function.header.command == 2


def test_capabilities_by_name(function: PciFunction) -> None:
    express = function.find_capability(PciExpress)
    assert express is not None
    assert express.device_capabilities.flr == 1
    assert [found.cap_id for found in function.capabilities if not found.extended] == [0x01, 0x05, 0x11, 0x10]


def test_every_bar_has_a_name(function: PciFunction) -> None:
    assert function.bar0 is function.bar(0)
    for index in (2, 3, 4, 5):
        if index not in function.bars:
            with pytest.raises(StateError, match=f"has no BAR{index}"):
                getattr(function, f"bar{index}")


def test_a_rom() -> None:
    class WithRom(PciDevice):
        vendor_id, device_id, class_code = 0x1234, 0x5678, 0xFF0000

    device = WithRom()
    device.set_region(RegionIndex.ROM, MemoryRegion(40_000, readonly=True, contents=b"\x55\xaa"))
    with DeviceUnderTest(device) as under_test:
        rom = under_test.function.read_rom()
        assert (len(rom), rom[:2]) == (40_000, b"\x55\xaa")


class NotPci(Device):
    """A device that is none of PCI's."""


@pytest.mark.parametrize("size", [0, 255, 512])
def test_configuration_spaces_that_cannot_be(size: int) -> None:
    device = NotPci()
    device.flags = DeviceFlags.PCI
    device.set_region(RegionIndex.CONFIG, MemoryRegion(size))
    with DeviceUnderTest(device) as under_test, pytest.raises(RemoteProtocolError, match="it has 0x100 or 0x1000"):
        under_test.function  # noqa: B018


def test_devices_that_are_not_pci(tmp_path: Path) -> None:
    with DeviceUnderTest(NotPci()) as under_test, pytest.raises(RemoteProtocolError, match="no PCI function"):
        under_test.function  # noqa: B018
    path = tmp_path / "device.sock"
    with Server(NotPci(), path).start(), pytest.raises(RemoteProtocolError, match="no PCI function"):
        PciFunction.connect(path)


def test_refusals_of_the_device(function: PciFunction) -> None:
    with pytest.raises(CommandError, match="REGION_READ of 4 bytes at 0x1000 of BAR0: Invalid argument"):
        function.bar0.read32(0x1000)
