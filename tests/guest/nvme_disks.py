"""What the NVMe tests in guests share: disks by their serial numbers, servers of their own, file systems made here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.guest.support import wait_for
from vfio_user.vm import Guest, GuestKit, compile_guest_program
from vfio_user.vm.initramfs import INIT_SCRIPT
from vfio_user.vm.process import ChildProcess

__all__ = ["PATTERN", "Disk", "find_disks", "host_tool", "make_root_file_system", "pattern_hash", "serving", "sparse"]

#: See ``programs/pattern.c``.
PATTERN = Path(__file__).parent / "programs" / "pattern.c"


class Disk:
    """A controller in a guest, with the one namespace it began with.

    Attributes:
        guest: where it is.
        controller: the kernel's name of the controller.
        pci: the folder of the PCI function in sysfs.
    """

    def __init__(self, guest: Guest, controller: str, pci: str) -> None:
        self.guest = guest
        self.controller = f"/dev/{controller}"
        self.pci = pci
        self.sysfs = f"/sys/class/nvme/{controller}"
        self.block = f"/dev/{controller}n1"
        self.queue = f"/sys/block/{controller}n1/queue"

    def json(self, command: str, arguments: str = "", *, on: str = "") -> Any:
        """What ``nvme COMMAND`` says of it."""
        return json.loads(str(self.guest.run(f"nvme {command} {on or self.controller} {arguments} -o json")))

    def setting(self, name: str) -> str:
        """A line of the block device's queue folder."""
        return str(self.guest.run(f"cat {self.queue}/{name}"))

    def wait_live(self) -> None:
        """Waits until the driver has enabled it, again."""
        self.guest.wait_until(f'[ "$(cat {self.sysfs}/state)" = live ]')


def find_disks(guest: Guest, serials: Iterable[str], *, empty: Iterable[str] = ()) -> dict[str, Disk]:
    """The disks with these serial numbers, as soon as the driver works with all of them.

    Args:
        guest: where they are.
        serials: what to look for; single words.
        empty: those that have no namespace to wait for.
    """
    disks: dict[str, Disk] = {}
    wanted = {*serials, *empty}
    for serial in sorted(wanted):
        guest.wait_until(f"grep live $(dirname $(grep -slx '{serial} *' /sys/class/nvme/*/serial))/state")
        folder = str(guest.run(f"dirname $(grep -slx '{serial} *' /sys/class/nvme/*/serial)"))
        disk = Disk(guest, folder.rsplit("/", 1)[-1], str(guest.run(f"readlink -f {folder}/device")))
        disks[serial] = disk
    for serial in wanted - set(empty):
        guest.wait_until(f"[ -b {disks[serial].block} ]")
    return disks


@contextmanager
def serving(socket: Path, device: str = "nvme", **options: object) -> Iterator[ChildProcess]:
    """A controller in a process of its own, as ``vfio-user serve`` runs it."""
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    log = socket.with_suffix(".log")
    command = [sys.executable, "-m", "vfio_user", "serve", device, "--socket-path", str(socket), *settings]
    with log.open("wb") as output:
        server = ChildProcess(command, output=output)
    try:
        wait_for(lambda: socket.exists() or server.exit_code is not None)
        assert server.exit_code is None, log.read_text()
        yield server
    finally:
        server.close()


def sparse(path: Path, size: int) -> Path:
    """Makes a file of nothing."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def host_tool(kit: GuestKit, package: str, program: str) -> list[str]:
    """How a program of a guest package is run on this machine, with its own libraries."""
    root = kit.package(package)
    [path] = [found for folder in ("sbin", "usr/sbin", "bin", "usr/bin") if (found := root / folder / program).exists()]
    libraries = ":".join(str(root / folder / "x86_64-linux-gnu") for folder in ("lib", "usr/lib"))
    return [str(root / kit.architecture.loader.lstrip("/")), "--library-path", libraries, str(path)]


def make_root_file_system(
    kit: GuestKit,
    image: Path,
    size: int,
    *,
    packages: Iterable[str] = (),
    modules: Iterable[str] = (),
    files: Mapping[str, Path] | None = None,
) -> None:
    """Makes an ext4 image that a guest runs from: what ``build_initramfs`` puts into memory, on a disk."""
    tree = image.with_suffix(".tree")
    for folder in ("bin", "dev", "etc/vfio-user", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for package in packages:
        shutil.copytree(kit.package(package), tree, dirs_exist_ok=True)
    shutil.copy2(kit.busybox, tree / "bin/busybox")
    for applet in kit.applets:
        if not any((tree / folder / applet).exists() for folder in ("bin", "sbin", "usr/bin", "usr/sbin")):
            (tree / "bin" / applet).symlink_to("busybox")
    ordered = kit.modules.in_load_order(list(modules))
    for module in ordered:
        (tree / "root" / f"{module.name}.ko").write_bytes(kit.modules.read(module.name))
    (tree / "etc/vfio-user/load").write_text("")
    (tree / "sbin/init").write_text(INIT_SCRIPT)
    (tree / "sbin/init").chmod(0o755)
    for place, source in (files or {}).items():
        shutil.copy2(source, tree / place.lstrip("/"))
    sparse(image, size)
    subprocess.run(
        [*host_tool(kit, "e2fsprogs", "mke2fs"), "-q", "-F", "-t", "ext4", "-d", str(tree), str(image)],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(tree)


def pattern_hash(size: int, seed: int) -> str:
    """The SHA-256 of what ``pattern write`` writes."""
    digest = hashlib.sha256()
    command = [str(compile_guest_program(PATTERN)), "print", str(size), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as printing:
        assert printing.stdout is not None
        while part := printing.stdout.read(1 << 20):
            digest.update(part)
    assert printing.returncode == 0
    return digest.hexdigest()
