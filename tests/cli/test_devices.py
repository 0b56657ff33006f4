from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import LAMP, Outcome
from vfio_user.devices.registry import SHIPPED

Run = Callable[..., Outcome]


def test_shipped_devices_with_ids_and_options(run: Run) -> None:
    outcome = run("devices")
    assert outcome.status == 0
    assert outcome.stdout.startswith("edu  1234:11e8\n    QEMU's educational device.\n")
    assert "\ngpio-pci-idio-16  494f:0dc8\n" in outcome.stdout
    assert "    Linux driver: gpio-pci-idio-16\n" in outcome.stdout
    assert "    dma_mask  integer  default 0xfffffff\n" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_json(run: Run) -> None:
    edu, gpio = json.loads(run("devices", "--json").stdout)[:2]
    assert edu["pci_id"] == "1234:11e8"
    assert edu["options"][0] == {
        "name": "dma_mask",
        "type": "integer",
        "required": False,
        "default": "0xfffffff",
        "description": "the address bits its DMA engine has.",
    }
    assert gpio["linux_modules"] == ["gpio-pci-idio-16"]


def test_what_the_options_of_one_mean(run: Run) -> None:
    lines = run("devices", "edu", "lsi53c810").stdout.splitlines()
    assert lines[:4] == [
        "edu  1234:11e8",
        "    QEMU's educational device.",
        "    dma_mask  integer  default 0xfffffff",
        "        the address bits its DMA engine has.",
    ]
    # Options that differ in a number only are one line.
    assert [line.split()[:3] for line in lines if "default none" in line] == [
        ["disk0", "to", "disk6"],
        ["cdrom0", "to", "cdrom6"],
    ]
    assert max(map(len, lines)) <= 80


def test_a_device_of_ones_own(run: Run, folder: Path) -> None:
    (folder / "lamp.py").write_text(LAMP)
    outcome = run("devices", str(folder / "lamp.py"))
    assert outcome.status == 0
    assert "lamp.py\n    Shines.\n    size  integer  default 4K\n" in outcome.stdout


def test_no_such_device(run: Run) -> None:
    outcome = run("devices", "edo")
    assert outcome.status == 2
    assert outcome.stderr.startswith("vfio-user: there is no device 'edo'; did you mean 'edu'?")


def test_every_option_that_ships_is_explained(run: Run) -> None:
    for about in json.loads(run("devices", "--json").stdout):
        for option in about["options"]:
            assert option["description"], (about["name"], option["name"])


def test_a_device_that_cannot_be_loaded_does_not_hide_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "edu", "no_such_module:Edu")
    outcome = run("devices")
    assert outcome.status == 0
    assert "edu\n    cannot be loaded: edu: there is no module 'no_such_module'." in outcome.stdout
    assert "gpio-pci-idio-16  494f:0dc8" in outcome.stdout
    assert "there is no module" in json.loads(run("devices", "--json").stdout)[0]["error"]


def test_json_says_what_the_descriptors_say(run: Run, folder: Path) -> None:
    listed = {about["name"]: about for about in json.loads(run("devices", "--json").stdout)}
    outcome = run("devices", "--write", str(folder))
    paths = [Path(line) for line in outcome.stdout.splitlines()]
    assert [path.name for path in paths] == [f"50-{name}.json" for name in listed]
    options = run("serve", "--help").stdout
    for path in paths:
        written = json.loads(path.read_text())
        about = listed[written["arguments"][1]]
        assert written == {key: about[key] for key in written}
        # What a program may rely on is really there.
        assert all(f"--{feature} " in options for feature in written["features"])


def test_a_folder_that_is_not_there(run: Run) -> None:
    outcome = run("devices", "--write", "/nowhere")
    assert outcome == Outcome(1, "", "vfio-user: no descriptors were written to /nowhere: No such file or directory\n")
