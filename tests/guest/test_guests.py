"""The fixture ``guest``, as a user's test has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fds import no_leaks
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.testing.guests import GuestFactory
from vfio_user.vm import GuestKit

pytestmark = [pytest.mark.guest]


def test_a_guest_with_devices(guest: GuestFactory) -> None:
    edu, gpio = Edu(), GpioPciIdio16()
    linux = guest(edu, gpio, machine="pc", load=["gpio-pci-idio-16"])
    seen = linux.pci_device(0x1234, 0x11E8)
    assert seen.address < linux.pci_device(0x494F, 0x0DC8).address
    assert linux.pci_device(0x494F, 0x0DC8).driver == "pci-idio-16"
    assert seen.resources[0] is not None
    linux.run(f"echo 1 >{seen.path}/enable")
    linux.run(f"devmem {seen.resources[0].start + 4:#x} 32 0x12345678")
    assert edu.bar0.liveness == 0xEDCB_A987


def test_it_is_over_when_it_is_closed(guest_kit: GuestKit, tmp_path: Path) -> None:
    with no_leaks():
        factory = GuestFactory(guest_kit, tmp_path)
        linux = factory(Edu())
        assert int(str(linux.run("grep -c ^ /proc/1/comm"))) == 1
        factory.close()
    assert (tmp_path / "guest1").is_dir()
