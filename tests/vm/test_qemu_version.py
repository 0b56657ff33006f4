from __future__ import annotations

from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.qemu_version import MINIMUM_VERSION, Qemu, QemuVersion, inspect_qemu


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright", (11, 1, 3)),
        ("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)", (7, 2, 17)),
        ("QEMU emulator version 10.0.92 (v10.1.0-rc2)", (10, 0, 92)),
        ("QEMU emulator version 10.1", (10, 1, 0)),
    ],
)
def test_parse(text: str, expected: tuple[int, int, int]) -> None:
    assert QemuVersion.parse(text) == expected


def test_comparison_and_text() -> None:
    assert QemuVersion(10, 0, 92) < MINIMUM_VERSION <= QemuVersion(10, 1) < QemuVersion(11, 0)
    assert str(QemuVersion(10, 1)) == "10.1.0"
    with pytest.raises(ValueError, match="no QEMU version in 'bash"):
        QemuVersion.parse("bash: qemu: command not found")


@pytest.mark.parametrize(
    ("version", "has_vfio_user", "shortcoming"),
    [
        (QemuVersion(10, 1), True, ""),
        (QemuVersion(11, 0), False, "was built without the device vfio-user-pci"),
        (QemuVersion(9, 2), False, "is older than 10.1.0, the first with a vfio-user client"),
    ],
)
def test_usable(version: QemuVersion, has_vfio_user: bool, shortcoming: str) -> None:
    qemu = Qemu(Path("qemu"), version, has_vfio_user)
    assert qemu.is_usable is (shortcoming == "")
    assert qemu.shortcoming == shortcoming


def _program(folder: Path, script: str) -> Path:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_inspect(tmp_path: Path) -> None:
    devices = 'name "vfio-user-pci", bus PCI, desc "VFIO over socket PCI device assignment"'
    script = f"""case $1 in
      --version) echo 'QEMU emulator version 10.1.2' ;;
      -device) echo '{devices}' ;;
    esac"""
    path = _program(tmp_path, script)
    assert inspect_qemu(path) == Qemu(path, QemuVersion(10, 1, 2), has_vfio_user=True)
    assert not inspect_qemu(_program(tmp_path, script.replace("user-pci", "pci"))).is_usable
    # An old one is not asked for its devices: the answer is known.
    old = inspect_qemu(_program(tmp_path, script.replace("10.1.2", "7.2.1").replace("-device)", "-device) exit 9")))
    assert old.version == (7, 2, 1)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo hello", "does not answer like QEMU: no QEMU version in 'hello"),
        ("echo no library >&2; exit 127", r"--version failed \(status 127\): no library"),
    ],
)
def test_inspect_something_else(tmp_path: Path, script: str, complaint: str) -> None:
    with pytest.raises(VmUnavailableError, match=complaint):
        inspect_qemu(_program(tmp_path, script))
    with pytest.raises(VmUnavailableError, match="nowhere does not run"):
        inspect_qemu(tmp_path / "nowhere")
