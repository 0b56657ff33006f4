"""Debian programs to put into a guest, each with the shared libraries it needs and nothing else.

A package is fetched with all it depends on, as apt sees it, and then reduced to what its programs are linked with.
So adding one is one line in `GUEST_PACKAGES`: its name, the programs, and what else they read.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.architecture import Architecture
from vfio_user.vm.cache import Cache
from vfio_user.vm.debian import DebianArchive, unpack_deb
from vfio_user.vm.elf import ElfFile, is_elf
from vfio_user.vm.progress import Progress, format_bytes

__all__ = ["GUEST_PACKAGES", "GUEST_SUITE", "GuestPackage", "ensure_package"]

#: The Debian release guests are made of: its kernel boots fastest of those measured, and its modules are not packed.
GUEST_SUITE = "bookworm"

#: Raise when `_build` makes something different of the same package.
_RECIPE_VERSION = 1

_FOLDERS_OF_PROGRAMS = ("usr/bin", "usr/sbin", "bin", "sbin")


@dataclass(frozen=True)
class GuestPackage:
    """What a guest takes from one Debian package.

    Attributes:
        name: the package.
        programs: the names of the programs to take from it.
        data: patterns of further files they read, from the package or from one it depends on.
        plugins: patterns of libraries that the programs open at run time, so that nothing links to them.
    """

    name: str
    programs: tuple[str, ...]
    data: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()


GUEST_PACKAGES = {
    package.name: package
    for package in (
        GuestPackage("pciutils", ("lspci", "setpci"), data=("usr/share/misc/pci.ids",)),
        GuestPackage("nvme-cli", ("nvme",)),
        GuestPackage("fio", ("fio",)),
        GuestPackage(
            "e2fsprogs", ("mke2fs", "mkfs.ext4", "fsck.ext4", "e2fsck", "dumpe2fs"), data=("etc/mke2fs.conf",)
        ),
        GuestPackage("xfsprogs", ("mkfs.xfs", "xfs_repair")),
        GuestPackage(
            "sg3-utils",
            ("sg_inq", "sg_readcap", "sg_turs", "sg_vpd", "sg_luns", "sg_modes", "sg_logs", "sg_unmap"),
        ),
    )
}


def ensure_package(name: str, architecture: Architecture, cache: Cache, progress: Progress) -> Path:
    """Returns a folder with a package's programs and libraries, laid out as a root; fetches it the first time.

    Raises:
        VmUnavailableError: there is no such package in `GUEST_PACKAGES`, or it cannot be fetched.
    """
    if name not in GUEST_PACKAGES:
        raise VmUnavailableError(
            f"there is no guest package {name!r}: those there are: {', '.join(GUEST_PACKAGES)}. "
            "Add a line to vfio_user.vm.guest_packages.GUEST_PACKAGES for another"
        )
    package = GUEST_PACKAGES[name]
    recipe = {"version": _RECIPE_VERSION, "suite": GUEST_SUITE, "package": repr(package)}

    def build(folder: Path) -> None:
        with progress.step(f"guest package {name} ({GUEST_SUITE}, {architecture.name})") as step:
            count, size = _build(package, architecture, folder)
            step.detail = f"{count} files, {format_bytes(size)}"

    return cache.ensure(f"package-{name}-{architecture.name}", recipe, build, progress) / "root"


def _build(package: GuestPackage, architecture: Architecture, folder: Path) -> tuple[int, int]:
    archive = DebianArchive(folder / "apt", architecture.debian, [GUEST_SUITE])
    everything = folder / "everything"
    for deb in archive.download_with_dependencies([package.name]):
        unpack_deb(deb, everything, lambda path: not re.match(r"usr/share/(doc|man|locale|info|lintian)/", path))
    files = _closure(package, architecture, everything)
    root = folder / "root"
    size = 0
    for path in files:
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(everything / path, place)  # follows links: a library arrives under the name it is asked for by
        size += place.stat().st_size
    shutil.rmtree(everything)
    shutil.rmtree(folder / "apt")
    return len(files), size


def _closure(package: GuestPackage, architecture: Architecture, everything: Path) -> list[str]:
    """The files of a package to keep: its programs, its data, and the libraries these need, theirs included."""
    present = sorted(str(path.relative_to(everything)) for path in everything.rglob("*") if not path.is_dir())
    wanted = []
    for program in package.programs:
        places = [f"{folder}/{program}" for folder in _FOLDERS_OF_PROGRAMS]
        found = [place for place in places if place in present]
        if not found:
            raise VmUnavailableError(f"package {package.name} of {GUEST_SUITE} has no program {program}")
        wanted.append(found[0])
    for pattern in (*package.data, *package.plugins):
        wanted += [path for path in present if fnmatch(path, pattern)]
    libraries: dict[str, str] = {}
    for path in present:
        if path.startswith(("lib/", "usr/lib/")) and ".so" in path:
            libraries.setdefault(path.rsplit("/", 1)[-1], path)
    kept: dict[str, None] = {}
    while wanted:
        path = wanted.pop()
        if path in kept:
            continue
        kept[path] = None
        content = (everything / path).read_bytes()
        if is_elf(content):
            file = ElfFile(content)
            if file.interpreter:
                wanted.append(file.interpreter.lstrip("/"))
            for name in file.needed:
                if name not in libraries:
                    raise VmUnavailableError(f"package {package.name} needs {name}, which none of its dependencies has")
                wanted.append(libraries[name])
    loader = architecture.loader.lstrip("/")
    return sorted(path for path in kept if path == loader or (everything / path).exists())
