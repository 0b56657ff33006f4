"""The shipped devices, two of each in one process, driven by the kernel's own drivers and by a program in the guest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.support import VmFactory, wait_for
from tests.support.fds import no_leaks
from vfio_user import Server
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.protocol.constants import IrqIndex
from vfio_user.vm import Guest, GuestKit, VfioUserDevice, compile_guest_program

pytestmark = [pytest.mark.guest]

PROGRAMS = Path(__file__).parent / "programs"
PINS = range(16)


class Scenario:
    """A running guest, and the devices in it."""

    def __init__(self, guest: Guest, edus: list[Edu], gpios: list[GpioPciIdio16]) -> None:
        self.guest = guest
        self.edus = edus
        self.gpios = gpios
        self.addresses = {
            "edu": [d.address for d in guest.pci_devices() if (d.vendor_id, d.device_id) == (0x1234, 0x11E8)],
            "gpio": [d.address for d in guest.pci_devices() if (d.vendor_id, d.device_id) == (0x494F, 0x0DC8)],
        }

    def load_drivers(self) -> None:
        self.guest.load_module("gpio-pci-idio-16")
        self.guest.load_module("uio_pci_generic")
        self.guest.run("echo 1234 11e8 >/sys/bus/pci/drivers/uio_pci_generic/new_id")

    @staticmethod
    def wait_inputs(card: GpioPciIdio16, levels: int) -> None:
        wait_for(lambda: card.inputs == levels)

    def first_pin(self, number: int) -> int:
        """The global number of the first line of a card's GPIO chip."""
        folder = f"/sys/bus/pci/devices/{self.addresses['gpio'][number]}/gpio"
        return int(str(self.guest.run(f"cat {folder}/gpiochip*/base")))


@pytest.fixture(scope="module", params=["pc", "q35"])
def scenario(
    request: pytest.FixtureRequest, guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp(request.param)
    program = compile_guest_program(PROGRAMS / "edu.c")
    edus = [Edu(), Edu()]
    gpios = [GpioPciIdio16(inputs=0x8421), GpioPciIdio16()]
    with no_leaks(), ExitStack() as servers:
        sockets = [folder / f"{n}.sock" for n in range(4)]
        for device, socket in zip((*edus, *gpios), sockets, strict=True):
            servers.enter_context(Server(device, socket, strict=True).start())
        with VmFactory(guest_kit, folder) as factory:
            vm = factory(
                request.param,
                devices=[VfioUserDevice(socket) for socket in sockets],
                modules=["gpio-pci-idio-16", "uio_pci_generic"],
                files={"/bin/edu": program},
                reboot=True,
            )
            running = Scenario(vm.guest, edus, gpios)
            running.load_drivers()
            yield running


def test_drivers_bind(scenario: Scenario) -> None:
    found = {d.address: d for d in scenario.guest.pci_devices()}
    assert len(scenario.addresses["edu"]) == len(scenario.addresses["gpio"]) == 2
    assert [found[address].driver for address in scenario.addresses["edu"]] == ["uio_pci_generic"] * 2
    assert [found[address].driver for address in scenario.addresses["gpio"]] == ["pci-idio-16"] * 2
    bar = found[scenario.addresses["edu"][0]].resources[0]
    assert bar is not None
    assert (bar.size, bar.is_io) == (1 << 20, False)
    ports = found[scenario.addresses["gpio"][0]].resources[2]
    assert ports is not None
    assert (ports.size, ports.is_io) == (8, True)


@pytest.mark.parametrize("card", [0, 1])
def test_every_output_reaches_python(scenario: Scenario, card: int) -> None:
    first = scenario.first_pin(card)
    others = scenario.gpios[1 - card].outputs
    for pin in PINS:
        before = scenario.gpios[card].outputs
        scenario.guest.run(f"cd /sys/class/gpio && echo {first + pin} >export && echo high >OUT{pin}/direction")
        assert scenario.gpios[card].outputs == before | 1 << pin
    for pin in PINS:
        scenario.guest.run(f"cd /sys/class/gpio && echo 0 >OUT{pin}/value && echo {first + pin} >unexport")
        assert scenario.gpios[card].outputs == 0xFFFF & ~((2 << pin) - 1)
    assert scenario.gpios[1 - card].outputs == others


def test_every_input_is_read_in_the_guest(scenario: Scenario) -> None:
    first = scenario.first_pin(0) + 16
    card = scenario.gpios[0]
    for pin in PINS:
        scenario.guest.run(f"echo {first + pin} >/sys/class/gpio/export")
    for levels in (0x8421, 0x0000, 0xFFFF, *(1 << pin for pin in PINS)):
        card.set_inputs(levels)
        scenario.wait_inputs(card, levels)
        shown = scenario.guest.run("for n in $(seq 0 15); do read -r v </sys/class/gpio/IIN$n/value; echo -n $v; done")
        assert str(shown) == f"{levels:016b}"[::-1]
    for pin in PINS:
        scenario.guest.run(f"echo {first + pin} >/sys/class/gpio/unexport")


def test_each_change_of_an_input_interrupts(scenario: Scenario) -> None:
    # The first card: Linux 6.1's driver hands one irq_chip to all of them, so it enables the interrupt of the first
    # alone. It says so itself: "detected irqchip that is shared with multiple gpiochips: please fix the driver".
    card, address = scenario.gpios[0], scenario.addresses["gpio"][0]
    pin = scenario.first_pin(0) + 16
    guest = scenario.guest

    def count() -> int:
        words = (out := guest.run(f"grep -w {address} /proc/interrupts")).stdout.split()
        assert len(words) > 1, out
        return int(words[1])

    card.set_inputs(0)
    scenario.wait_inputs(card, 0)
    before = count()
    card.set_inputs(0x0001)
    scenario.wait_inputs(card, 1)
    assert count() == before  # nobody has enabled it yet
    guest.run(f"cd /sys/class/gpio && echo {pin} >export && echo both >IIN0/edge")
    for changes in range(1, 21):
        last, fired = count(), card.interrupts.statistics().fired[IrqIndex.INTX][0]
        card.set_inputs(changes << 4 & 0xFFF0 | changes & 1 ^ 1)
        guest.wait_until(f"[ $(grep -w {address} /proc/interrupts | awk '{{print $2}}') -gt {last} ]")
        assert card.interrupts.statistics().fired[IrqIndex.INTX][0] > fired
    guest.run(f"cd /sys/class/gpio && echo none >IIN0/edge && echo {pin} >unexport")
    wait_for(lambda: not card.interrupts.intx_level)
    last = count()
    card.set_inputs(0xFFFF)
    scenario.wait_inputs(card, 0xFFFF)
    assert count() == last
    assert "nobody cared" not in guest.dmesg()


@pytest.mark.parametrize("number", [0, 1])
def test_edu(scenario: Scenario, number: int) -> None:
    address = scenario.addresses["edu"][number]
    told = scenario.guest.run(
        f"edu /sys/bus/pci/devices/{address} /dev/$(basename /sys/bus/pci/devices/{address}/uio/*)", timeout=120
    )
    assert told.stdout.splitlines() == [
        "ok identification",
        "ok liveness",
        "ok factorial by polling",
        "ok factorial by interrupt",
        "ok interrupt raise and acknowledge",
        "ok dma both ways",
        "ok no dma without bus mastering",
    ]
    # The last transfer that was allowed left the guest's pattern in this object's buffer.
    pattern = bytes((i * 7 + i // 256 + 7 * 31) & 0xFF for i in range(4096))
    assert scenario.edus[number].buffer == pattern


def test_everything_works_again_after_a_reboot(scenario: Scenario) -> None:
    scenario.guest.reboot()
    scenario.load_drivers()
    test_drivers_bind(scenario)
    test_every_output_reaches_python(scenario, 1)
    test_each_change_of_an_input_interrupts(scenario)
    test_edu(scenario, 0)
