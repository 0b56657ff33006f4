"""QEMU, observed: does it keep to what a server can see of the protocol, from plugging in to powering off?"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.guest.support import VmFactory, wait_for
from vfio_user.devices.edu import Edu
from vfio_user.testing.conformance import Outcome, Report
from vfio_user.testing.conformance.client import observe_clients
from vfio_user.vm import VfioUserDevice

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


def observed(vm_factory: VmFactory, folder: Path, *lines: str) -> Report:
    """A guest boots, looks at the device, reboots and powers off; what was seen of its QEMU meanwhile."""
    (folder / "script").write_text("\n".join(lines))
    reports = []

    def observe() -> None:
        reports.append(observe_clients(str(folder / "s"), Edu(), script=folder / "script"))

    thread = threading.Thread(target=observe, daemon=True)
    thread.start()
    wait_for((folder / "s").exists)
    vm = vm_factory("q35", devices=[VfioUserDevice(folder / "s")], reboot=True)
    device = next(found for found in vm.guest.pci_devices() if found.vendor_id == 0x1234 and found.device_id == 0x11E8)
    assert device.resources
    vm.guest.reboot()
    vm.shutdown()
    thread.join(30)
    (report,) = reports
    return report


def test_qemu_keeps_every_rule(vm_factory: VmFactory, tmp_path: Path) -> None:
    report = observed(vm_factory, tmp_path)
    assert [(result.check.name, result.seen) for result in report.having(Outcome.FAILED, Outcome.DIFFERS)] == []
    assert report.counts[Outcome.PASSED] > 30


def test_qemu_copes_with_replies_in_pieces_and_late(vm_factory: VmFactory, tmp_path: Path) -> None:
    report = observed(vm_factory, tmp_path, "DEVICE_RESET late 0.5", "REGION_READ split 16", "DEVICE_GET_INFO#1 late 1")
    assert [(result.check.name, result.seen) for result in report.failures] == []
