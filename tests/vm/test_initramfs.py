from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.vm.test_cpio import read_cpio
from vfio_user.errors import VmUnavailableError
from vfio_user.vm.architecture import ARCHITECTURES
from vfio_user.vm.cache import Cache
from vfio_user.vm.guestkit import GuestKit
from vfio_user.vm.initramfs import INIT_SCRIPT, build_initramfs
from vfio_user.vm.kernel_modules import KernelModules
from vfio_user.vm.progress import Progress
from vfio_user.vm.qemu_version import Qemu, QemuVersion


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestKit:
    """A kit of made-up parts, with one package that brings a program busybox has too."""
    modules = tmp_path / "modules"
    modules.mkdir()
    said = [
        {"name": "nvme", "needs": ["nvme_core"], "wants": [], "aliases": ["pci:v*bc01sc08i02*"]},
        {"name": "nvme_core", "needs": ["crc"], "wants": [], "aliases": []},
        {"name": "crc", "needs": [], "wants": [], "aliases": []},
        {"name": "other", "needs": [], "wants": [], "aliases": []},
    ]
    for module in said:
        (modules / f"{module['name']}.ko").write_text(f"code of {module['name']}")
    (modules / "index.json").write_text(json.dumps({"modules": said, "builtin": []}))
    (tmp_path / "busybox").write_bytes(b"\x7fELF\x02\x01 busybox")
    package = tmp_path / "package/root"
    (package / "usr/bin").mkdir(parents=True)
    (package / "usr/bin/lspci").write_text("lspci")
    (package / "usr/bin/lspci").chmod(0o755)
    monkeypatch.setattr("vfio_user.vm.guestkit.ensure_package", lambda name, *_: tmp_path / name / "root")
    return GuestKit(
        architecture=ARCHITECTURES["x86_64"],
        qemu=Qemu(Path("qemu"), QemuVersion(10, 1), has_vfio_user=True),
        kernel=tmp_path / "kernel",
        kernel_version="6.1.0",
        modules=KernelModules(modules),
        busybox=tmp_path / "busybox",
        applets=("ls", "lspci", "sh"),
        cache=Cache(tmp_path / "cache"),
        progress=Progress.silent(),
    )


def _content(kit: GuestKit, **options: Any) -> dict[str, tuple[int, bytes]]:
    entries = read_cpio(build_initramfs(kit, **options).read_bytes())
    return {name: (mode & 0o7777, data) for name, (mode, data, _) in entries.items() if not stat.S_ISDIR(mode)}


def test_the_least(kit: GuestKit) -> None:
    content = _content(kit)
    assert {name for name in content if not name.startswith("lib/")} == {
        "bin/busybox",
        "bin/ls",
        "bin/lspci",
        "bin/sh",
        "dev/console",
        "etc/vfio-user/load",
        "init",
        "sbin/modprobe",
    }
    assert content["init"] == (0o755, INIT_SCRIPT.encode())
    assert content["bin/busybox"][0] == 0o755
    assert content["bin/ls"][1] == b"busybox"
    assert content["etc/vfio-user/load"][1] == b""
    assert content["lib/modules/6.1.0/modules.dep"][1] == b""


def test_modules_with_their_tables(kit: GuestKit) -> None:
    content = _content(kit, modules=["nvme"], load=["other speed=9 name=x"])
    folder = "lib/modules/6.1.0"
    assert {name.rpartition("/")[2] for name in content if name.endswith(".ko")} == {
        "nvme.ko",
        "nvme_core.ko",
        "crc.ko",
        "other.ko",
    }
    assert content[f"{folder}/nvme.ko"] == (0o644, b"code of nvme")
    # modules.dep lists what is loaded last first.
    assert content[f"{folder}/modules.dep"][1] == (
        b"crc.ko:\nnvme_core.ko: crc.ko\nnvme.ko: nvme_core.ko crc.ko\nother.ko:\n"
    )
    assert content[f"{folder}/modules.alias"][1] == b"alias pci:v*bc01sc08i02* nvme\n"
    assert content["etc/vfio-user/load"][1] == b"other speed=9 name=x\n"


def test_files(kit: GuestKit, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("x")
    program.chmod(0o700)
    content = _content(
        kit,
        files={
            "/etc/text": "text",
            "bin/script": "#!/bin/sh\n",
            "bin/elf": b"\x7fELF\x02\x01",
            "bin/own": program,
            "data": b"\0",
        },
    )
    assert content["etc/text"] == (0o644, b"text")
    assert content["bin/script"] == (0o755, b"#!/bin/sh\n")
    assert content["bin/elf"][0] == 0o755
    assert content["bin/own"] == (0o755, b"x")
    assert content["data"] == (0o644, b"\0")


def test_packages_win_over_busybox(kit: GuestKit) -> None:
    content = _content(kit, packages=["package"])
    assert content["usr/bin/lspci"] == (0o755, b"lspci")
    assert "bin/lspci" not in content
    assert "bin/ls" in content


def test_main_and_init(kit: GuestKit) -> None:
    content = _content(kit, main="/bin/sh", init="#!/bin/sh\nmine\n")
    assert content["etc/vfio-user/main"] == (0o755, b"/bin/sh\n")
    assert content["init"][1] == b"#!/bin/sh\nmine\n"


def test_same_content_is_the_same_file(kit: GuestKit) -> None:
    assert build_initramfs(kit, modules=["nvme"]) == build_initramfs(kit, modules=["nvme"])
    assert build_initramfs(kit, modules=["nvme"]) != build_initramfs(kit)


def test_what_is_not_there(kit: GuestKit, tmp_path: Path) -> None:
    with pytest.raises(VmUnavailableError, match=r"no module 'nvmf' \(wanted by the caller\); did you mean nvme\?"):
        build_initramfs(kit, modules=["nvmf"])
    with pytest.raises(VmUnavailableError, match="nothing cannot be put into the guest: No such file"):
        build_initramfs(kit, files={"x": tmp_path / "nothing"})


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_init_is_a_shell_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on the PATH")
    (tmp_path / "init").write_text(INIT_SCRIPT)
    subprocess.run([shell, "-n", str(tmp_path / "init")], check=True)
