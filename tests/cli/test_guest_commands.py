"""The commands that start QEMU, as a person runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.support import program
from vfio_user.errors import VmUnavailableError
from vfio_user.vm import GuestKit, Progress

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True, scope="module")
def _guest_kit() -> None:
    try:
        GuestKit.provision(progress=Progress.silent())
    except VmUnavailableError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no guest can be made here: {error}")


def test_boot_runs_a_command_and_returns_its_status() -> None:
    words = ["boot", "--device", "edu", "--device", "gpio-pci-idio-16", "-v", "--"]
    outcome = subprocess.run(
        program(*words, "cat /sys/bus/pci/devices/*/uevent; exit 3"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 3
    assert "PCI_ID=1234:11E8" in outcome.stdout
    assert "DRIVER=pci-idio-16" in outcome.stdout
    assert "SeaBIOS" not in outcome.stdout
    assert "qemu-system-x86_64 \\\n  -nodefaults" in outcome.stderr
    assert "< edu: #" in outcome.stderr
    assert "> gpio-pci-idio-16: #" in outcome.stderr


def test_init_script(folder: Path) -> None:
    (folder / "script").write_text("echo from a script; exit 4\n")
    outcome = subprocess.run(
        program("boot", "--machine=pc", "--init-script", "script"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 4
    assert "from a script\n" in outcome.stdout


def test_a_panic_is_a_failure() -> None:
    outcome = subprocess.run(
        program("boot", "--", "echo c >/proc/sysrq-trigger"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.endswith("vfio-user: the guest's kernel panicked: sysrq triggered crash\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_take_the_machine_down(number: signal.Signals, status: int) -> None:
    process = subprocess.Popen(
        program("boot", "--device", "edu", "--", "echo up; sleep 1000"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any(line == "up\n" for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    socket = Path(errors.partition('"path":"')[2].partition('"')[0])
    assert socket.name == "0.sock"
    assert not socket.parent.exists()


def test_demo() -> None:
    outcome = subprocess.run(program("demo"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0
    assert "0xedcba987\n" in outcome.stdout
    assert "3628800\n" in outcome.stdout
    assert "card.outputs                                    0x0008\n" in outcome.stdout
    # Once, or again: QEMU takes any access to a BAR for the end of the interrupt, also the one that asks for its cause.
    assert re.search(r"/proc/interrupts counts for the card            0 -> [1-9]\n", outcome.stdout)
    assert max(map(len, outcome.stdout.splitlines())) <= 80
