"""A QEMU that speaks vfio-user: this machine's own where it is new enough, else Debian's, unpacked into the cache.

Debian's runs on any distribution: its own dynamic loader starts it with its own libraries beside it, so nothing of
this machine's is used but the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.architecture import Architecture, host_architecture
from vfio_user.vm.cache import Cache
from vfio_user.vm.debian import DebianArchive, PackagesMissingError, unpack_deb
from vfio_user.vm.progress import Progress, format_bytes
from vfio_user.vm.qemu_version import MINIMUM_VERSION, Qemu, QemuVersion, inspect_qemu

__all__ = ["ensure_qemu"]

#: The Debian release QEMU is taken from, and the suite of it that has one new enough.
_SUITES = ("trixie", "trixie-backports")

#: Raise when `_build` makes something different.
_RECIPE_VERSION = 1

#: What QEMU's emulators are linked with, one level and all below it. Fetching these by name takes half the time
#: of asking apt's solver, which adds forty packages QEMU recommends itself through; when a name is gone, it is asked.
_LIBRARIES = """
libaio1t64 libatomic1 libblkid1 libbpf1 libc6 libcap2 libcapstone5 libdaxctl1 libelf1t64 libfdt1 libffi8 libfuse3-4
libglib2.0-0t64 libgmp10 libgnutls30t64 libhogweed6t64 libibverbs1 libidn2-0 libjpeg62-turbo libkmod2 libmount1
libndctl6 libnettle8t64 libnl-3-200 libnl-route-3-200 libnuma1 libp11-kit0 libpcre2-8-0 libpixman-1-0 libpmem1
libpng16-16t64 librdmacm1t64 libsasl2-2 libseccomp2 libselinux1 libslirp0 libssl3t64 libtasn1-6 libudev1
libunistring5 liburing2 libuuid1 libvdeplug2t64 libzstd1 zlib1g
""".split()  # noqa: SIM905 - a paragraph of names is read and changed more easily than a list of them

#: Firmware and option ROMs that start the machines we use, besides QEMU's own key maps; the rest is 60 MB.
_FIRMWARE = re.compile(
    r"usr/share/(seabios/(bios-256k|bios|vgabios-stdvga)\.bin"
    r"|qemu/(pvh|linuxboot|linuxboot_dma|multiboot|multiboot_dma|kvmvapic|bios-256k|bios)\.bin|qemu/keymaps/en-us)$"
)

# Finds itself through its own path, so that the cache folder can be moved.
_WRAPPER = """\
#!/bin/sh
# QEMU from Debian, run with its own loader and libraries.
root=$(dirname -- "$(readlink -f -- "$0")")/root
libraries=$root/usr/lib/{triplet}
exec "$libraries/{loader}" --library-path "$libraries" --argv0 {name} \\
  "$root/usr/bin/{name}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


def ensure_qemu(architecture: Architecture, cache: Cache, progress: Progress) -> Qemu:
    """Returns a QEMU for guests of an architecture that has the vfio-user client.

    Raises:
        VmUnavailableError: this machine has none, and Debian's cannot be fetched or does not run.
    """
    name = f"qemu-system-{architecture.name}"
    if own := shutil.which(name):
        qemu = inspect_qemu(Path(own))
        if qemu.is_usable:
            return qemu
    host = host_architecture()
    recipe = {
        "version": _RECIPE_VERSION,
        "suites": _SUITES,
        "host": host.debian,
        "packages": architecture.qemu_packages,
        "libraries": _LIBRARIES,
    }

    def build(folder: Path) -> None:
        with progress.step(f"QEMU for {architecture.name} ({_SUITES[-1]})") as step:
            step.detail = _build(name, architecture, host, folder)

    folder = cache.ensure(name, recipe, build, progress)
    return _inspect_once(folder / name)


def _inspect_once(path: Path) -> Qemu:
    """What ``inspect_qemu`` says, of a QEMU nobody changes: starting it twice is half of what comes before a boot."""
    kept = path.with_name("inspected.json")
    try:
        version, has_vfio_user = json.loads(kept.read_text())
        return Qemu(path, QemuVersion.parse(f"version {version}"), bool(has_vfio_user))
    except (OSError, ValueError, TypeError):
        qemu = inspect_qemu(path)
    new = kept.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # the cache may be somebody else's, to be read only
        new.write_text(json.dumps([str(qemu.version), qemu.has_vfio_user]))
        new.replace(kept)
    return qemu


def _build(name: str, architecture: Architecture, host: Architecture, folder: Path) -> str:
    archive = DebianArchive(folder / "apt", host.debian, _SUITES)
    packages = ["qemu-system-data", *architecture.qemu_packages]
    root = folder / "root"
    try:
        debs = archive.download([*packages, *_LIBRARIES], target=_SUITES[-1])
        written = _unpack(name, debs, root)
        complete = not _missing_libraries(name, host, root)
    except PackagesMissingError:
        complete = False
    if not complete:
        shutil.rmtree(root, ignore_errors=True)
        debs = archive.download_with_dependencies(packages, target=_SUITES[-1])
        written = _unpack(name, debs, root)
        if missing := _missing_libraries(name, host, root):
            raise VmUnavailableError(f"Debian's {name} misses libraries: {', '.join(missing)}. Install QEMU >= 10.1")
    wrapper = folder / name
    wrapper.write_text(_WRAPPER.format(triplet=host.triplet, loader=Path(host.loader).name, name=name))
    wrapper.chmod(0o755)
    shutil.rmtree(folder / "apt")
    qemu = inspect_qemu(wrapper)
    if not qemu.is_usable:
        raise VmUnavailableError(
            f"the Debian mirror's {_SUITES[-1]} has QEMU {qemu.version}, which {qemu.shortcoming}: "
            f"set DEBIAN_MIRROR to a mirror with QEMU >= {MINIMUM_VERSION}, or install it"
        )
    return f"{qemu.version}, {len(debs)} packages, {format_bytes(written)}"


def _unpack(name: str, debs: list[Path], root: Path) -> int:
    def wanted(path: str) -> bool:
        if path.startswith("usr/share/"):
            return _FIRMWARE.match(path) is not None
        if path.startswith("usr/bin/"):
            return path == f"usr/bin/{name}"
        return path.startswith(("usr/lib/", "lib/", "lib64/")) and "/gconv/" not in path

    return sum(unpack_deb(deb, root, wanted) for deb in debs)


def _missing_libraries(name: str, host: Architecture, root: Path) -> list[str]:
    """The libraries that the loader does not find for QEMU."""
    libraries = root / "usr/lib" / host.triplet
    loader = libraries / Path(host.loader).name
    command = [str(loader), "--library-path", str(libraries), "--list", str(root / "usr/bin" / name)]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return [f"{loader.name} ({error.strerror})"]
    if listing.returncode != 0:
        complaint = re.search(r"(\S+): cannot open shared object file", listing.stderr)
        return [complaint[1] if complaint else listing.stderr.strip() or f"{loader.name} failed"]
    return re.findall(r"(\S+) => not found", listing.stdout)
