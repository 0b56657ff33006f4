"""libnbd's Python binding for tests: the installed one, or Debian's package unpacked into the guest kit's cache.

The package's extension module is for one version of Python; for others there is none, and its tests are skipped.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import sys
from pathlib import Path

import pytest

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.cache import Cache
from vfio_user.vm.debian import DebianArchive, unpack_deb
from vfio_user.vm.elf import ElfFile
from vfio_user.vm.progress import Progress

__all__ = ["need_libnbd"]

#: The Debian releases whose Python is one we support, by its version.
_SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def need_libnbd() -> None:
    """Makes ``import nbd`` work, or skips the test."""
    if importlib.util.find_spec("nbd") is not None:
        return
    suite = _SUITES.get(sys.version_info[:2])
    architecture = _ARCHITECTURES.get(platform.machine())
    if suite is None or architecture is None:
        pytest.skip(f"no libnbd binding for Python {platform.python_version()} on {platform.machine()}")

    def build(folder: Path) -> None:
        archive = DebianArchive(folder / "apt", architecture, [suite])
        for package in archive.download_with_dependencies(["python3-libnbd"]):
            name = package.name.partition("_")[0]
            if not name.startswith(("libc6", "python3.", "libpython3.")):  # what runs this has those
                unpack_deb(package, folder / "root", lambda path: ".so" in path or path.endswith("nbd.py"))

    try:
        root = Cache().ensure(
            "libnbd", {"version": 1, "suite": suite, "architecture": architecture}, build, Progress.silent()
        )
    except VmUnavailableError as exc:
        pytest.skip(f"libnbd's Python binding is not installed, and cannot be fetched: {exc}")
    libraries = {path.name: path for path in (root / "root").rglob("*.so*") if path.is_file()}
    _load("libnbd.so.0", libraries, set())
    sys.path.append(str(root / "root/usr/lib/python3/dist-packages"))


def _load(name: str, libraries: dict[str, Path], loaded: set[str]) -> None:
    """Loads a library after those it needs: the system's where it has it, or else one that was unpacked."""
    if name in loaded:
        return
    loaded.add(name)
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        path = libraries[name]
        for needed in ElfFile(path.read_bytes()).needed:
            _load(needed, libraries, loaded)
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
