from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Outcome
from vfio_user.cli import boot

Run = Callable[..., Outcome]

OLD_QEMU = """#!/bin/sh
echo "QEMU emulator version 7.2.9 (Debian)"
"""

IMPATIENT_QEMU = f"""#!{sys.executable}
import re, socket, sys
if "--version" in sys.argv:
    print("QEMU emulator version 11.1.3")
elif "help" in sys.argv[-1]:
    print('name "vfio-user-pci"')
else:
    path = re.search('"path":"([^"]*)"', " ".join(sys.argv))[1]
    with socket.socket(socket.AF_UNIX) as device:
        device.connect(path)
        device.recv(1)
    sys.exit(3)
"""


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.17)", ""),
        ("Booting from ROM..", ""),
        ("Booting from ROM..hello", "hello\n"),
        ("hello", "hello\n"),
        ("", "\n"),
    ],
)
def test_firmware_does_not_clear_the_screen(line: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    boot.print_console_line(line)
    assert capsys.readouterr().out == shown


# What a person sees who asks for something that cannot be.


def test_qemu_that_is_too_old(run: Run, folder: Path) -> None:
    qemu = folder / "qemu-old"
    qemu.write_text(OLD_QEMU)
    qemu.chmod(0o755)
    outcome = run("boot", "--qemu", str(qemu), "--", "true")
    assert outcome == Outcome(
        1,
        "",
        f"vfio-user: {qemu} is QEMU 7.2.9, which is older than 10.1.0, the first with a vfio-user client: "
        "name another one (>= 10.1.0), or leave --qemu out and let one be found or fetched\n",
    )


def test_qemu_that_is_not_there(run: Run) -> None:
    outcome = run("boot", "--qemu", "/nowhere/qemu", "--", "true")
    assert outcome.status == 1
    assert outcome.stderr.startswith("vfio-user: /nowhere/qemu does not run: ")


def test_no_terminal_and_nothing_to_run(run: Run) -> None:
    outcome = run("boot", "--device", "edu")
    assert outcome.status == 1
    assert outcome.stderr == (
        "vfio-user: there is no terminal for a shell: give a command after --, or --init-script FILE\n"
    )


def test_a_device_that_is_not_pci(run: Run) -> None:
    outcome = run("boot", "--device", "lamp.py", "--", "true")
    assert outcome.status == 2
    assert outcome.stderr == "vfio-user: Lamp is no PCI device, and QEMU takes no other: derive it from PciDevice\n"


def test_a_device_that_does_not_start_in_its_process(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A QEMU that connects to its device, as the real one does, and ends when nobody answers.
    qemu = folder / "qemu"
    qemu.write_text(IMPATIENT_QEMU)
    qemu.chmod(0o755)
    for name in ("kernel", "initrd"):
        (folder / name).touch()
    words = ["boot", "--qemu", str(qemu), "--kernel", "kernel", "--initrd", "initrd", "--processes"]
    outcome = run(*words, "--device", "edu,dma_mask=none", "--", "true")
    assert outcome.status == 1
    assert outcome.stderr.endswith("vfio-user: the process of edu ended (status 2), and with it the machine\n")


def test_a_machine_that_ends_by_itself(run: Run, folder: Path) -> None:
    qemu = folder / "qemu"
    qemu.write_text(IMPATIENT_QEMU.replace("device.recv(1)", "pass"))
    qemu.chmod(0o755)
    for name in ("kernel", "initrd"):
        (folder / name).touch()
    words = ["boot", "--qemu", str(qemu), "--kernel", "kernel", "--initrd", "initrd", "--processes"]
    outcome = run(*words, "--device", "edu@07", "--", "true")
    assert outcome.status == 1
    assert "QEMU ended at its start (status 3)" in outcome.stderr
    assert '"addr":"07"' in outcome.stderr


def test_machine_and_architecture_that_contradict(run: Run) -> None:
    outcome = run("boot", "--machine", "q35", "--arch", "aarch64", "--", "true")
    assert outcome.status == 1
    assert outcome.stderr == "vfio-user: machine q35 is of x86_64, not aarch64: leave one of them out\n"


def test_files_that_are_not_there(run: Run) -> None:
    outcome = run("boot", "--init-script", "no.sh")
    assert (outcome.status, outcome.stderr) == (1, "vfio-user: there is no file no.sh\n")


def test_a_size_that_is_none(run: Run) -> None:
    outcome = run("boot", "--memory", "lots", "--", "true")
    assert outcome.status == 2
    assert "'lots' is no size: it must be an integer, as in 42, 0x2a or 64K" in outcome.stderr
