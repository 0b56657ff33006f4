from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.support import Outcome
from vfio_user.cli import boot
from vfio_user.cli.boot import parse_device

Run = Callable[..., Outcome]

OLD_QEMU = """#!/bin/sh
echo "QEMU emulator version 7.2.9 (Debian)"
"""


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("edu", "edu", {}),
        ("edu,dma_mask=4G", "edu", {"dma_mask": "4G"}),
        ("my.py:Nic,a=1,b=x=y", "my.py:Nic", {"a": "1", "b": "x=y"}),
        ("edu,label=a,,b,c=", "edu", {"label": "a,b", "c": ""}),
    ],
)
def test_device_with_options(text: str, name: str, settings: dict[str, str]) -> None:
    assert parse_device(text) == (name, settings)


@pytest.mark.parametrize("text", ["edu,x", "edu,=1", "edu,"])
def test_device_with_something_else(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not of the form name=value"):
        parse_device(text)


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
