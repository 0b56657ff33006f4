from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cli.support import Outcome
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
    edu, gpio = json.loads(run("devices", "--json").stdout)
    assert edu["pci_id"] == "1234:11e8"
    assert edu["options"][0] == {"name": "dma_mask", "type": "integer", "required": False, "default": "0xfffffff"}
    assert gpio["linux_modules"] == ["gpio-pci-idio-16"]


def test_a_device_that_cannot_be_loaded_does_not_hide_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHIPPED, "edu", "no_such_module:Edu")
    outcome = run("devices")
    assert outcome.status == 0
    assert "edu\n    cannot be loaded: edu: there is no module 'no_such_module'." in outcome.stdout
    assert "gpio-pci-idio-16  494f:0dc8" in outcome.stdout
    assert "there is no module" in json.loads(run("devices", "--json").stdout)[0]["error"]
