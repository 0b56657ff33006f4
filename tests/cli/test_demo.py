"""The demonstration where there is no guest; the one with a guest is in ``test_guest_commands``."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cli.support import Outcome, program
from vfio_user.errors import VmUnavailableError
from vfio_user.vm.doctor import Finding

Run = Callable[..., Outcome]


def shown(outcome: Outcome) -> None:
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "  1234:11e8  00ff00  INTx, MSI   BAR0 1M memory\n" in outcome.stdout
    assert "inverted by the device:          0xedcba987\n" in outcome.stdout
    assert "3628800\n" in outcome.stdout
    assert "edu.buffer                                      'from memory'\n" in outcome.stdout
    assert "card.outputs                                    0x0008\n" in outcome.stdout
    assert "reads inputs 0 and 2                            1 1\n" in outcome.stdout
    assert outcome.stdout.count("1 time\n") == 2
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_without_a_guest(run: Run) -> None:
    outcome = run("demo", "--no-guest")
    shown(outcome)
    assert "would need" not in outcome.stdout


def test_messages_can_be_seen(run: Run) -> None:
    assert "REGION_WRITE BAR0+0x4 liveness = 0x12345678" in run("demo", "--no-guest", "-v").stderr


def test_a_bare_machine_has_it_within_two_seconds(folder: Path) -> None:
    environment = {**os.environ, "PATH": "/nonexistent", "VFIO_USER_CACHE": str(folder / "cache")}
    begun = time.monotonic()
    done = subprocess.run(program("demo"), env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - begun
    shown(Outcome(done.returncode, done.stdout, done.stderr))
    what = done.stdout.partition("What this machine would need")[2]
    assert "QEMU: qemu-system-x86_64 is not on the PATH\n    -> install QEMU >= 10.1" in what
    assert "apt-get, apt-cache, dpkg-deb missing" in what
    assert took < 2, took


def test_a_kit_that_turns_out_not_to_be_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def provision() -> NoReturn:
        raise VmUnavailableError("apt-get update failed (status 100):\nno such mirror")

    monkeypatch.setattr("vfio_user.cli.demo.guest_obstacles", list)
    monkeypatch.setattr("vfio_user.cli.demo.GuestKit.provision", provision)
    outcome = run("demo")
    shown(outcome)
    assert "  guest kit: apt-get update failed (status 100): no such mirror\n" in outcome.stdout


def test_what_stands_in_the_way_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = Finding("Debian mirror", "missing", "http://x/debian does not answer", "connect " + "this machine " * 9)
    monkeypatch.setattr("vfio_user.cli.demo.guest_obstacles", lambda: [obstacle])
    outcome = run("demo")
    shown(outcome)
    assert "  Debian mirror: http://x/debian does not answer\n    -> connect this machine" in outcome.stdout
