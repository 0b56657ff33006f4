"""Everything a guest is made of, provisioned without root into the cache: QEMU, a kernel with modules, busybox.

The machine's own parts are used where they serve; what is missing comes from Debian. The second time nothing is
fetched, so a provisioned cache works without a network.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.architecture import Architecture, architecture_for
from vfio_user.vm.cache import Cache
from vfio_user.vm.debian import DebianArchive, unpack_deb
from vfio_user.vm.elf import ElfFile
from vfio_user.vm.guest_packages import GUEST_SUITE, ensure_package
from vfio_user.vm.kernel import bootable_kernel
from vfio_user.vm.kernel_modules import KernelModules, collect_modules, module_name
from vfio_user.vm.progress import Progress, format_bytes
from vfio_user.vm.qemu_kit import ensure_qemu
from vfio_user.vm.qemu_version import Qemu

__all__ = ["ESSENTIAL_MODULES", "GuestKit", "HostKernel", "find_host_kernel"]

#: Raise when `_build_guest` makes something different.
_RECIPE_VERSION = 1

#: Kernel modules to keep, by their path below ``kernel/``; what they need is kept with them. The drivers our devices
#: are for, the ways to a device from user space, QEMU's own devices to compare with, and file systems for disks.
_MODULES = re.compile(
    r"drivers/(gpio/gpio-pci-idio-16|nvme/host/nvme\.ko|scsi/(sym53c8xx_2/|sd_mod|sg|sr_mod|scsi_debug|virtio_scsi)"
    r"|uio/uio(_pci_generic)?\.ko|vfio/|iommu/|tty/serial/8250/|misc/pci_endpoint_test|virtio/"
    r"|block/(loop|virtio_blk|brd|null_blk/)|net/(virtio_net|ethernet/intel/(e1000|e1000e|igb)/)"
    r"|mmc/host/sdhci-pci|char/(hw_random/virtio|virtio_console))"
    r"|sound/pci/hda/(snd-hda-intel|snd-hda-codec-generic)"
    r"|fs/(ext4|xfs|isofs|jbd2|vfat|fat|nls/nls_(ascii|cp437|iso8859-1))"
    r"|lib/(libcrc32c|crc)|crypto/crc32c_generic|arch/x86/crypto/crc32c"
)

#: Without these, as modules or built in, a kernel does not serve.
ESSENTIAL_MODULES = (
    "gpio-pci-idio-16",
    "nvme",
    "sym53c8xx",
    "sd_mod",
    "uio_pci_generic",
    "vfio-pci",
    "ext4",
    "8250_pci",
)


@dataclass(frozen=True)
class HostKernel:
    """A kernel of this machine that can be read: its image and its modules."""

    version: str
    image: Path
    modules: Path


def find_host_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> HostKernel | None:
    """Finds the newest kernel of this machine with an image we may read and all of `ESSENTIAL_MODULES`.

    Many distributions let only root read the image; then there is none.
    """
    found = []
    for folder in modules.glob("*"):
        image = next((path for path in (boot / f"vmlinuz-{folder.name}", folder / "vmlinuz") if path.is_file()), None)
        if image is None or not os.access(image, os.R_OK):
            continue
        names = {module_name(path.name) for path in (folder / "kernel").rglob("*.ko*")}
        builtin = folder / "modules.builtin"
        if builtin.exists():
            names |= set(map(module_name, builtin.read_text().split()))
        if names.issuperset(map(module_name, ESSENTIAL_MODULES)):
            found.append(HostKernel(folder.name, image, folder))
    return max(found, key=lambda kernel: [int(number) for number in re.findall(r"\d+", kernel.version)], default=None)


def _host_busybox(architecture: Architecture) -> Path | None:
    """This machine's busybox, when it runs without libraries and is of the right architecture."""
    program = shutil.which("busybox")
    if program is None or platform.machine() != architecture.name:
        return None
    try:
        path = Path(program)
        return path if ElfFile(path.read_bytes()).is_static else None
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class GuestKit:
    """The parts of a guest, on this machine. Made by `provision`.

    Attributes:
        architecture: of the guest.
        qemu: the emulator.
        kernel: the kernel in the form QEMU boots fastest.
        kernel_version: as ``uname -r`` says it in the guest.
        modules: the kernel's modules.
        busybox: a busybox without libraries, of the guest's architecture.
        applets: the programs in it, empty when it could not be asked here.
        cache: where all this lies, and what is made of it goes.
        progress: told of what is fetched later on.
    """

    architecture: Architecture
    qemu: Qemu
    kernel: Path
    kernel_version: str
    modules: KernelModules
    busybox: Path
    applets: tuple[str, ...]
    cache: Cache
    progress: Progress

    @classmethod
    def provision(
        cls, arch: str = "x86_64", *, cache: Cache | None = None, progress: Progress | None = None
    ) -> GuestKit:
        """Makes sure that all parts are there, fetching what is missing (about 13 s and 35 MB the first time).

        Args:
            arch: the guest's architecture, ``x86_64`` or ``aarch64``.
            cache: where to; the default cache when left out.
            progress: where the steps are told; standard error when left out.

        Raises:
            VmUnavailableError: something is missing and cannot be fetched; the text says what, and how to get it.
        """
        architecture = architecture_for(arch)
        cache = cache or Cache()
        progress = progress or Progress()
        qemu = ensure_qemu(architecture, cache, progress)
        folder = _ensure_guest(architecture, cache, progress)
        about = json.loads((folder / "about.json").read_text())
        return cls(
            architecture=architecture,
            qemu=qemu,
            kernel=folder / "kernel",
            kernel_version=about["kernel_version"],
            modules=KernelModules(folder / "modules"),
            busybox=folder / "busybox",
            applets=tuple(about["applets"]),
            cache=cache,
            progress=progress,
        )

    def package(self, name: str) -> Path:
        """A folder with the files of one of `GUEST_PACKAGES`, laid out as a root; fetched the first time.

        Raises:
            VmUnavailableError: there is no such package, or it cannot be fetched.
        """
        return ensure_package(name, self.architecture, self.cache, self.progress)


def _ensure_guest(architecture: Architecture, cache: Cache, progress: Progress) -> Path:
    """Returns the folder with kernel, modules and busybox."""
    host_kernel = find_host_kernel() if platform.machine() == architecture.name else None
    host_busybox = _host_busybox(architecture)
    recipe = {
        "version": _RECIPE_VERSION,
        "suite": GUEST_SUITE,
        "kernel": _identity(host_kernel.image) if host_kernel else None,
        "busybox": _identity(host_busybox) if host_busybox else None,
        "modules": _MODULES.pattern,
    }

    def build(folder: Path) -> None:
        source = f"this machine's {host_kernel.version}" if host_kernel else GUEST_SUITE
        with progress.step(f"guest kernel and busybox for {architecture.name} ({source})") as step:
            step.detail = _build_guest(architecture, host_kernel, host_busybox, folder)

    return cache.ensure(f"guest-{architecture.name}", recipe, build, progress)


def _identity(path: Path) -> str:
    """What tells one state of a file of this machine from another."""
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def _build_guest(
    architecture: Architecture, host_kernel: HostKernel | None, host_busybox: Path | None, folder: Path
) -> str:
    unpacked = folder / "unpacked"
    if host_kernel is None or host_busybox is None:
        _fetch_guest(architecture, unpacked, with_kernel=host_kernel is None, with_busybox=host_busybox is None)
    if host_kernel is None:
        folder_of_modules = next((unpacked / "lib/modules").iterdir())
        version = folder_of_modules.name
        host_kernel = HostKernel(version, unpacked / f"boot/vmlinuz-{version}", folder_of_modules)
    busybox = folder / "busybox"
    shutil.copyfile(host_busybox or unpacked / "bin/busybox", busybox)
    busybox.chmod(0o755)
    try:
        (folder / "kernel").write_bytes(bootable_kernel(host_kernel.image.read_bytes()))
    except ValueError as error:
        raise VmUnavailableError(f"the kernel {host_kernel.image} cannot be used: {error}") from error
    modules = collect_modules(host_kernel.modules, folder / "modules", lambda path: _MODULES.match(path) is not None)
    modules.in_load_order(ESSENTIAL_MODULES)  # raises when one of them is missing
    about = {"kernel_version": host_kernel.version, "applets": _applets(busybox)}
    (folder / "about.json").write_text(json.dumps(about))
    shutil.rmtree(unpacked, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"Linux {host_kernel.version}, {len(list(modules))} modules, {format_bytes(size)}"


def _fetch_guest(architecture: Architecture, folder: Path, *, with_kernel: bool, with_busybox: bool) -> None:
    """Unpacks Debian's kernel (image and modules) and static busybox."""
    archive = DebianArchive(folder / "apt", architecture.debian, [GUEST_SUITE])
    packages = ["busybox-static"] if with_busybox else []
    if with_kernel:
        # linux-image-amd64 is empty and depends on the kernel of the day, whose name holds its version.
        names = archive.dependencies(f"linux-image-{architecture.debian}")
        packages += [name for name in names if name.startswith("linux-image-")][:1]
    for deb in archive.download(packages):
        unpack_deb(deb, folder, _is_part_of_guest)


def _is_part_of_guest(path: str) -> bool:
    if path.startswith("lib/modules/"):
        # What no module we keep needs, and is half of all: graphics, wireless, media, InfiniBand.
        return re.search(r"/kernel/(drivers/(gpu|media|staging|infiniband|net/wireless)/|net/(?!core/))", path) is None
    return path.startswith("boot/vmlinuz-") or path == "bin/busybox"


def _applets(busybox: Path) -> list[str]:
    """The programs in a busybox; none when it is of an architecture that does not run here."""
    try:
        listing = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [name for name in listing.stdout.split() if name != "busybox"] if listing.returncode == 0 else []
