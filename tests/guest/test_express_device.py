"""A PCI Express device behind the guest's IOMMU, and a conventional one beside it: resets, power states, BARs, MSI-X.

The driver is a program in the guest on the guest's own vfio-pci, so every DMA map here follows the guest's page tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.devices import Conventional, Exerciser, KiB, MiB
from tests.guest.support import VmFactory
from tests.support.fds import no_leaks
from vfio_user import ResetKind, Server
from vfio_user.pci import PowerState
from vfio_user.vm import Guest, GuestKit, GuestPciDevice, VfioUserDevice, compile_guest_program

pytestmark = [pytest.mark.guest]

PROGRAM = Path(__file__).parent / "programs" / "vfio_user_driver.c"


class Scenario:
    """A running guest, the devices in it, and what the guest calls them."""

    def __init__(self, guest: Guest, express: Exerciser, conventional: Conventional) -> None:
        self.guest = guest
        self.express = express
        self.conventional = conventional

    def seen(self, device: Exerciser | Conventional) -> GuestPciDevice:
        assert device.vendor_id is not None
        assert device.device_id is not None
        return self.guest.pci_device(device.vendor_id, device.device_id)


@pytest.fixture(scope="module")
def scenario(guest_kit: GuestKit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    folder = tmp_path_factory.mktemp("express")
    program = compile_guest_program(PROGRAM)
    express, conventional = Exerciser(), Conventional()
    with no_leaks(), ExitStack() as stack:
        stack.enter_context(Server(express, folder / "express.sock", strict=True).start())
        stack.enter_context(Server(conventional, folder / "conventional.sock", strict=True).start())
        machine = stack.enter_context(VmFactory(guest_kit, folder))(
            "q35",
            devices=[VfioUserDevice(folder / "express.sock"), VfioUserDevice(folder / "conventional.sock")],
            iommu=True,
            modules=["vfio-pci", "vfio_iommu_type1"],
            packages=["pciutils"],
            files={"/bin/vfio_user_driver": program},
        )
        yield Scenario(machine.guest, express, conventional)


def test_configuration_space_is_as_large_as_the_device_says(scenario: Scenario) -> None:
    sizes = scenario.guest.run(
        f"stat -c %s {scenario.seen(scenario.express).path}/config {scenario.seen(scenario.conventional).path}/config"
    )
    assert sizes.stdout.split() == ["4096", "256"]


def test_every_kind_of_bar_gets_an_address(scenario: Scenario) -> None:
    express = scenario.seen(scenario.express)
    prefetchable, memory_64 = 0x2000, 0x100000
    sizes = [(resource.size, resource.is_io) if resource else None for resource in express.resources[:6]]
    table = scenario.express.function.regions[1].size
    assert sizes == [(4 * KiB, False), (table, False), (2 * MiB, False), None, None, (32, True)]
    big = express.resources[2]
    assert big is not None
    assert big.flags & prefetchable
    assert big.flags & memory_64
    assert scenario.express.function.bar_address(2) == big.start
    conventional = scenario.seen(scenario.conventional)
    sizes = [(resource.size, resource.is_io) if resource else None for resource in conventional.resources[:6]]
    assert sizes == [(16 * MiB, False), None, None, None, (4, True), None]


def test_memory_behind_a_64_bit_bar_is_the_devices(scenario: Scenario) -> None:
    device = scenario.seen(scenario.conventional)
    bar = device.resources[0]
    assert bar is not None
    scenario.guest.run(f"echo 1 >{device.path}/enable")
    last = bar.start + bar.size - 8
    told = scenario.guest.run(
        f"devmem {bar.start:#x} 64 0x0123456789abcdef; devmem {last:#x} 32 0xcafe; devmem {last + 5:#x} 8 0x5a;"
        f"devmem {bar.start:#x} 64; devmem {last:#x} 16; devmem {bar.start + 3:#x} 8"
    )
    assert told.stdout.split() == ["0x0123456789ABCDEF", "0xCAFE", "0x89"]
    memory = scenario.conventional.bar0.read_bytes(16 * MiB - 8, 8)
    assert memory == bytes.fromhex("fe ca 00 00 00 5a 00 00")
    assert scenario.conventional.function.memory_enabled


def test_function_level_reset(scenario: Scenario) -> None:
    guest, express = scenario.guest, scenario.express
    device = scenario.seen(express)
    bar = device.resources[0]
    assert bar is not None
    assert "flr" in guest.run(f"cat {device.path}/reset_method").stdout.split()
    guest.run(f"echo flr >{device.path}/reset_method; echo 1 >{device.path}/enable")
    guest.run(f"devmem {bar.start + 0x40:#x} 32 0x11223344")
    assert str(guest.run(f"devmem {bar.start + 0x40:#x} 32")) == "0x11223344"
    before = len(express.resets)
    guest.run(f"echo 1 >{device.path}/reset")
    assert ResetKind.FLR in express.resets[before:]
    # The kernel has put the command register back; the device's registers are new. (The BARs it finds as they were:
    # QEMU answers reads of those itself, and knows nothing of the reset.)
    assert express.function.memory_enabled
    assert str(guest.run(f"devmem {bar.start + 0x40:#x} 32")) == "0x00000000"
    guest.run(f"echo 0 >{device.path}/enable")


def test_d3hot_and_back(scenario: Scenario) -> None:
    guest, express = scenario.guest, scenario.express
    slot = scenario.seen(express).address
    states, resets = len(express.power_states), len(express.resets)
    seen = []
    for state in (3, 0):
        told = guest.run(f"setpci -s {slot} CAP_PM+4.w={state}:3; setpci -s {slot} CAP_PM+4.w")
        assert int(str(told), 16) & 3 == state
        seen.append(express.function.power_state)
    assert seen == [PowerState.D3HOT, PowerState.D0]
    assert express.power_states[states:] == [PowerState.D3HOT, PowerState.D0]
    assert express.resets[resets:] == [ResetKind.D3_HOT]  # it does not say No_Soft_Reset
    guest.run(f"echo 1 >/sys/bus/pci/devices/{slot}/remove; echo 1 >/sys/bus/pci/rescan")
    assert scenario.seen(express).address == slot


def test_msix_and_dma_through_the_iommu(scenario: Scenario) -> None:
    guest, express = scenario.guest, scenario.express
    guest.load_module("vfio_iommu_type1")
    guest.load_module("vfio-pci")
    guest.run("echo 1234 e5e5 >/sys/bus/pci/drivers/vfio-pci/new_id")
    device = scenario.seen(express)
    assert device.driver == "vfio-pci"
    told = guest.run(
        f"vfio_user_driver {device.address} $(basename $(readlink {device.path}/iommu_group))", timeout=180
    )
    assert told.stdout.splitlines() == [
        "ok 20 vectors",
        "ok masked",
        "ok unmasked",
        "ok dma through the IOMMU",
        "ok no dma where nothing is mapped",
        "ok no dma over the end of a mapping",
    ]
    assert guest.run("dmesg | grep -iE 'dmar:.*fault|vfio.*(fail|error)'", check=False).stdout == ""
