from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from vfio_user.vm import doctor
from vfio_user.vm.doctor import Finding, examine, guest_obstacles


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache: what this machine has in its own is not what is looked at here."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VFIO_USER_CACHE", str(folder))
    return folder


def test_everything_is_looked_at() -> None:
    findings = examine()
    names = [finding.name for finding in findings]
    assert names == [
        "Python",
        "QEMU",
        "KVM",
        "guest kernel",
        "Debian packages",
        "cache",
        "memfd",
        "/dev/shm",
        "memory",
        "C compiler",
        "qemu.qmp",
    ]
    assert all(finding.remedy for finding in findings if finding.status != "ok")
    assert not any(finding.remedy for finding in findings if finding.status == "ok")
    assert findings[0] == Finding("Python", "ok", ".".join(map(str, sys.version_info[:3])))


def _qemu(folder: Path, version: str, devices: str) -> None:
    path = folder / "qemu-system-x86_64"
    path.write_text(f"#!/bin/sh\ncase $1 in --version) echo '{version}';; *) echo '{devices}';; esac\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "devices", "status", "detail"),
    [
        ("QEMU emulator version 10.1.0", 'name "vfio-user-pci"', "ok", "10.1.0 with vfio-user-pci ("),
        ("QEMU emulator version 10.1.0", 'name "vfio-pci"', "warn", "built without the device vfio-user-pci"),
        ("QEMU emulator version 7.2.0", "", "warn", "is older than 10.1.0"),
        ("hello", "", "warn", "does not answer like QEMU"),
    ],
)
def test_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, devices: str, status: str, detail: str
) -> None:
    _qemu(tmp_path, version, devices)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    finding = next(finding for finding in examine() if finding.name == "QEMU")
    assert finding.status == status
    assert detail in finding.detail


def test_a_qemu_in_the_cache_will_do(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _qemu(tmp_path, "QEMU emulator version 7.2.0", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    kept = cache / "qemu-system-x86_64-1234"
    kept.mkdir()
    _qemu(kept, "QEMU emulator version 11.1.3", 'name "vfio-user-pci"')
    finding = next(finding for finding in examine() if finding.name == "QEMU")
    assert (finding.status, finding.remedy) == ("ok", "")
    assert finding.detail == f"11.1.3 with vfio-user-pci ({kept}/qemu-system-x86_64)"


def test_nothing_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = {finding.name: finding for finding in examine()}
    assert findings["QEMU"].detail == "qemu-system-x86_64 is not on the PATH"
    assert findings["C compiler"] == Finding(
        "C compiler", "warn", "none", "apt install gcc libc6-dev, to compile C programs for guests"
    )
    assert "apt-get, apt-cache, dpkg-deb" in findings["Debian packages"].detail


def test_kvm_is_never_taken_for_proven(tmp_path: Path) -> None:
    assert doctor._kvm(tmp_path / "kvm").detail == f"there is no {tmp_path}/kvm"
    (tmp_path / "kvm").touch()
    assert doctor._kvm(tmp_path / "kvm").detail.startswith(f"{tmp_path}/kvm does not answer")
    (tmp_path / "folder").mkdir()
    assert doctor._kvm(tmp_path / "folder").detail.endswith("cannot be opened: Is a directory")
    assert doctor._kvm().status == "warn"


def test_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  999999 kB\nMemAvailable:   1000000 kB\n")
    assert doctor._memory(file) == Finding("memory", "ok", "1.0 GB available")
    file.write_text("MemAvailable:   100000 kB\n")
    assert doctor._memory(file).status == "warn"
    assert doctor._memory(file).remedy == "free 400 MB for a guest of 256 MB"
    assert doctor._memory(tmp_path / "nothing").detail.endswith("does not tell")


def test_shared_memory(tmp_path: Path) -> None:
    assert doctor._shared_memory(tmp_path / "nothing").status == "warn"
    assert doctor._shared_memory(tmp_path).name == str(tmp_path)


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_USER_CACHE", str(tmp_path / "not/made"))
    assert doctor._cache().detail.startswith(f"{tmp_path}/not/made, ")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor._cache() == Finding(
        "cache", "missing", f"{tmp_path} cannot be written", "set VFIO_USER_CACHE to a folder that can"
    )


def test_kernel_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_USER_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "find_host_kernel", lambda: None)
    assert doctor._guest_kernel().status == "warn"
    (tmp_path / "guest-x86_64-0123").mkdir()
    (tmp_path / "guest-x86_64-0123/kernel").touch()
    assert doctor._guest_kernel() == Finding("guest kernel", "ok", f"in the cache, {tmp_path}")


def test_qmp_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor._qmp().remedy == "pip install 'vfio-user[vm]', for hot-plug and reset"


# What keeps guests from running.


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No QEMU and no kernel, but apt with a mirror, and no proxy."""
    monkeypatch.setattr(
        "vfio_user.vm.doctor.shutil.which", lambda name: None if name.startswith("qemu") else f"/bin/{name}"
    )
    monkeypatch.setattr(doctor, "find_host_kernel", lambda: None)
    monkeypatch.setattr(doctor, "missing_tools", list)
    monkeypatch.setattr("vfio_user.vm.doctor.urllib.request.getproxies", dict)


@pytest.mark.usefixtures("nothing_here")
def test_what_is_not_here_can_be_fetched_where_the_mirror_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        monkeypatch.setenv("DEBIAN_MIRROR", f"http://127.0.0.1:{mirror.getsockname()[1]}/debian")
        assert guest_obstacles() == []
    obstacles = guest_obstacles()
    assert [finding.name for finding in obstacles] == ["QEMU", "guest kernel", "Debian mirror"]
    assert all(finding.status == "missing" and finding.remedy for finding in obstacles)
    assert "does not answer" in obstacles[-1].detail
    monkeypatch.setattr("vfio_user.vm.doctor.urllib.request.getproxies", lambda: {"http": "http://proxy"})
    assert guest_obstacles() == []


@pytest.mark.usefixtures("nothing_here")
def test_a_name_nobody_resolves_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Event(), threading.Event()

    def slow(*_: object) -> NoReturn:
        asked.set()
        over.wait(10)
        raise OSError

    monkeypatch.setattr("vfio_user.vm.doctor.socket.create_connection", slow)
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.invalid/debian")
    assert guest_obstacles(patience=0.01)[-1].name == "Debian mirror"
    assert asked.is_set()
    over.set()


@pytest.mark.usefixtures("nothing_here")
def test_what_cannot_be_fetched_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(doctor, "missing_tools", lambda: ["apt-get"])
    assert [finding.name for finding in guest_obstacles()] == ["QEMU", "guest kernel", "Debian packages"]
    monkeypatch.setattr("vfio_user.vm.doctor.platform.machine", lambda: "pdp11")
    assert "pdp11" in guest_obstacles()[-1].detail
    monkeypatch.setattr("vfio_user.vm.doctor.os.access", lambda *_: False)
    assert [finding.name for finding in guest_obstacles()] == ["QEMU", "guest kernel", "cache"]


def test_a_machine_with_both_needs_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _qemu(tmp_path, "QEMU emulator version 10.1.0", 'name "vfio-user-pci"')
    monkeypatch.setattr("vfio_user.vm.doctor.shutil.which", lambda name: str(tmp_path / name))
    kernel = cache / "guest-x86_64-1" / "kernel"
    kernel.parent.mkdir()
    kernel.touch()
    assert guest_obstacles() == []
