"""The smaller chip of the family under Linux."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.guest.support import VmFactory
from vfio_user import Server
from vfio_user.devices.lsi53c8xx.controller import Lsi53c810
from vfio_user.vm import VfioUserDevice

pytestmark = [pytest.mark.guest]

MiB = 1 << 20


def test_lsi53c810(vm_factory: VmFactory, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(hashlib.shake_128(b"810").digest(MiB))
    device = Lsi53c810(disk2=str(image))
    with Server(device, tmp_path / "lsi.sock", strict=True).start():
        vm = vm_factory("pc", devices=[VfioUserDevice(tmp_path / "lsi.sock")], load=["sd_mod", "sym53c8xx settle=0"])
        guest = vm.guest
        guest.wait_until("[ -b /dev/sda ]")
        assert guest.pci_device(0x1000, 0x0001).driver == "sym53c8xx"
        read = str(guest.run("sha256sum /dev/sda", timeout=60)).split()[0]
    device.close()
    assert read == hashlib.sha256(image.read_bytes()).hexdigest()
