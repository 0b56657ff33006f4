"""The pytest plugin, as a user's test run has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.source import SRC
from vfio_user.devices.edu import Edu
from vfio_user.testing.plugin import ClientFactory, DeviceFactory

A_TEST_FILE = """
import os
from vfio_user.devices.edu import Edu

class Leaky(Edu):
    def on_reset(self, kind):
        self.forgotten = os.memfd_create("forgotten")

def test_liveness(vfio_device):
    edu = vfio_device(Edu())
    edu.bar0.write32(0x04, 0x1234_5678)
    assert edu.bar0.read32(0x04) == 0xEDCB_A987
    assert edu.registers(0).liveness == 0xEDCB_A987

def test_commands(vfio_client):
    client = vfio_client(Edu())
    client.reset()
    assert client.region(0).size == 1 << 20

def test_leak(vfio_device):
    vfio_device(Leaky()).reset()

def test_a_timer_that_never_goes_off(vfio_device):
    edu = Edu()
    vfio_device(edu)
    edu.call_later(1000, edu.reset)
"""


def test_a_users_test_run(tmp_path: Path) -> None:
    (tmp_path / "test_edu.py").write_text(A_TEST_FILE)
    command = [sys.executable, "-m", "pytest", "-p", "vfio_user.testing.plugin", "-p", "no:cacheprovider", "-q", "-rA"]
    done = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SRC), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert "4 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_edu.py::test_leak" in done.stdout
    assert "the device under test left open:" in done.stdout
    assert "/memfd:forgotten" in done.stdout


def test_several_devices_share_their_time() -> None:
    factory = DeviceFactory()
    first, second = Edu(), Edu()
    for edu in (first, second):
        factory(edu)
        edu.call_later(5, edu.reset)
        edu.bar0.liveness = 7
    factory.advance(4)
    assert (first.bar0.liveness, second.bar0.liveness) == (7, 7)
    factory.advance(2)
    assert (first.bar0.liveness, second.bar0.liveness) == (0, 0)
    second.call_soon(second.finish_factorial, 3)
    factory.settle()
    assert second.bar0.factorial == 6
    factory.close()
    factory.close()


def test_what_a_device_failed_with_last() -> None:
    factory = ClientFactory()
    edu = Edu()
    client = factory(edu)

    def fail() -> None:
        raise ZeroDivisionError

    edu.on_disconnect = fail  # type: ignore[method-assign]
    other = factory(Edu())
    with pytest.raises(ZeroDivisionError):
        factory.close()
    assert client.connection.is_closed
    assert other.connection.is_closed
