from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.support.source import ROOT
from vfio_user.devices.descriptors import describe, descriptor_name, write_descriptor
from vfio_user.devices.registry import SHIPPED, DeviceEntry, known_devices
from vfio_user.server.device import Device
from vfio_user.server.pci_device import PciDevice

FOLDER = ROOT / "share/vfio-user"

SHIPPED_ENTRIES = [entry for entry in known_devices() if entry.name in SHIPPED]


@pytest.mark.parametrize("entry", SHIPPED_ENTRIES, ids=lambda entry: entry.name)
def test_the_file_of_a_shipped_device_says_what_the_device_does(entry: DeviceEntry, tmp_path: Path) -> None:
    written = write_descriptor(entry, entry.load(), tmp_path)
    shipped = FOLDER / written.name
    assert shipped.is_file(), "write it with: vfio-user devices --write share/vfio-user"
    assert shipped.read_text() == written.read_text(), "write it anew: vfio-user devices --write share/vfio-user"


def test_nothing_else_is_described() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {descriptor_name(entry) for entry in SHIPPED_ENTRIES}


def test_they_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {"share/vfio-user": "share/vfio-user"}


class Disk(PciDevice):
    """Holds what
    one gives it.

    And more.
    """

    vendor_id, device_id, class_code = 0x1234, 0x0001, 0x010802
    linux_modules = ("nvme io_queue_depth=4", "nvme_core")
    migratable = True


class Lamp(Device):
    pass


def test_what_a_descriptor_says() -> None:
    assert describe(DeviceEntry("disk", "", ""), Disk, binary="/opt/bin/vfio-user") == {
        "description": "Holds what one gives it",
        "type": "block",
        "binary": "/opt/bin/vfio-user",
        "arguments": ["serve", "disk"],
        "tags": ["1234:0001", "nvme", "nvme_core"],
        "features": ["socket-path", "fd", "migration"],
    }


def test_a_device_of_no_kind_the_specification_knows() -> None:
    about = describe(DeviceEntry("lamp", "", ""), Lamp)
    assert (about["type"], about["tags"], about["features"]) == ("pci", [], ["socket-path", "fd"])
    json.dumps(about)
