from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm import qemu_kit
from vfio_user.vm.architecture import ARCHITECTURES
from vfio_user.vm.cache import Cache
from vfio_user.vm.debian import PackagesMissingError
from vfio_user.vm.progress import Progress
from vfio_user.vm.qemu_kit import ensure_qemu
from vfio_user.vm.qemu_version import Qemu, inspect_qemu

_QEMU = """#!/bin/sh
case $* in
  *--version*) echo 'QEMU emulator version {version}' ;;
  *-device*) echo 'name "{device}"' ;;
esac
"""


def _program(path: Path, version: str = "10.1.0", device: str = "vfio-user-pci") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_QEMU.format(version=version, device=device))
    path.chmod(0o755)


class Debian:
    """A Debian archive whose packages hold a loader that runs scripts, and a QEMU that is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.version = "11.1.3"
        self.fixed_list_fails = False
        self.loader_misses: list[str] = []
        debian = self

        class Archive:
            def __init__(self, folder: Path, architecture: str, suites: Sequence[str]) -> None:
                debian.calls.append(f"{architecture} {' '.join(suites)}")
                folder.mkdir()

            def download(self, packages: Sequence[str], *, target: str) -> list[Path]:
                debian.calls.append("download")
                if debian.fixed_list_fails:
                    raise PackagesMissingError("libgone1 cannot be fetched")
                return [Path("fixed")]

            def download_with_dependencies(self, packages: Sequence[str], *, target: str) -> list[Path]:
                debian.calls.append(f"solve {' '.join(packages)}")
                return [Path("solved")]

        def unpack(package: Path, root: Path, wanted: object) -> int:
            _program(root / "usr/bin/qemu-system-x86_64", debian.version)
            loader = root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
            loader.parent.mkdir(parents=True, exist_ok=True)
            listing = "echo 'liba.so => /a'"
            if str(package) in debian.loader_misses:
                listing = "echo 'libb.so.1 => not found'"
            loader.write_text(f'#!/bin/sh\ncase $3 in --list) {listing};; *) shift 4; exec "$@";; esac\n')
            loader.chmod(0o755)
            return 1_000_000

        monkeypatch.setattr(qemu_kit, "DebianArchive", Archive)
        monkeypatch.setattr(qemu_kit, "unpack_deb", unpack)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr("shutil.which", lambda name: None)


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch) -> Debian:
    return Debian(monkeypatch)


def _ensure(tmp_path: Path) -> Qemu:
    return ensure_qemu(ARCHITECTURES["x86_64"], Cache(tmp_path / "cache"), Progress.silent())


def test_this_machines_own(debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "qemu-system-x86_64"
    _program(own)
    monkeypatch.setattr("shutil.which", lambda name: str(own) if name == own.name else None)
    assert _ensure(tmp_path).path == own
    assert debian.calls == []
    _program(own, version="7.2.0")
    assert _ensure(tmp_path).version == (11, 1, 3)
    assert debian.calls != []


def test_debians(debian: Debian, tmp_path: Path) -> None:
    qemu = _ensure(tmp_path)
    assert qemu.is_usable
    assert qemu.version == (11, 1, 3)
    assert debian.calls == ["amd64 trixie trixie-backports", "download"]
    assert _ensure(tmp_path) == qemu
    assert len(debian.calls) == 2
    # The wrapper finds what it runs from wherever the cache has been moved to.
    moved = tmp_path / "elsewhere"
    (tmp_path / "cache").rename(moved)
    assert inspect_qemu(moved / qemu.path.relative_to(tmp_path / "cache")).is_usable


@pytest.mark.parametrize("reason", ["package gone", "library missing"])
def test_the_solver_is_asked_when_the_fixed_list_does_not_do(debian: Debian, tmp_path: Path, reason: str) -> None:
    debian.fixed_list_fails = reason == "package gone"
    debian.loader_misses = ["fixed"] if reason == "library missing" else []
    assert _ensure(tmp_path).is_usable
    assert debian.calls[1:] == ["download", "solve qemu-system-data qemu-system-x86 seabios"]


def test_library_missing_for_good(debian: Debian, tmp_path: Path) -> None:
    debian.loader_misses = ["fixed", "solved"]
    with pytest.raises(VmUnavailableError, match=r"qemu-system-x86_64 misses libraries: libb\.so\.1"):
        _ensure(tmp_path)


def test_mirror_with_an_old_qemu(debian: Debian, tmp_path: Path) -> None:
    debian.version = "10.0.2"
    with pytest.raises(VmUnavailableError, match=r"has QEMU 10\.0\.2, which is older than 10\.1\.0"):
        _ensure(tmp_path)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("usr/share/seabios/bios-256k.bin", True),
        ("usr/share/qemu/pvh.bin", True),
        ("usr/share/qemu/linuxboot_dma.bin", True),
        ("usr/share/qemu/edk2-x86_64-code.fd", False),
        ("usr/share/doc/qemu/README", False),
    ],
)
def test_firmware(path: str, wanted: bool) -> None:
    assert bool(qemu_kit._FIRMWARE.match(path)) is wanted


def test_what_it_is_is_asked_once(debian: Debian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def inspect(path: Path) -> Qemu:
        asked.append(path)
        return inspect_qemu(path)

    monkeypatch.setattr(qemu_kit, "inspect_qemu", inspect)
    first = _ensure(tmp_path)
    # Once as it was made, once where it is now.
    assert len(asked) == 2
    assert _ensure(tmp_path) == first
    assert len(asked) == 2
    (first.path.parent / "inspected.json").write_text("rubbish")
    assert _ensure(tmp_path) == first
    assert len(asked) == 3
    assert not list(first.path.parent.glob("inspected.*[0-9]"))
