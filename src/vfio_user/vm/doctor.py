"""Looks at this machine the way a doctor does: what of all that guests need is here, and how to get the rest.

Cheap checks only: nothing is fetched, nothing is booted, nothing is changed. Pure data; the command line prints it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import socket
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.architecture import host_architecture
from vfio_user.vm.cache import default_cache_folder
from vfio_user.vm.debian import configured_mirror, missing_tools
from vfio_user.vm.guestkit import find_host_kernel
from vfio_user.vm.progress import format_bytes
from vfio_user.vm.qemu_version import MINIMUM_VERSION, inspect_qemu

__all__ = ["Finding", "Status", "examine", "guest_obstacles"]

#: ``ok``: there and fit; ``warn``: we can do without, or it is not certain; ``missing``: guests cannot run without.
Status = Literal["ok", "warn", "missing"]

_MINIMUM_PYTHON = (3, 11)

#: Bytes a guest of 256 MiB takes, QEMU's own included, with room for a test beside it.
_MEMORY_FOR_A_GUEST = 400_000_000

#: Bytes of cache a provisioned kit takes, twice over while it is made.
_DISK_FOR_A_KIT = 600_000_000

_KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h; the version has been 12 since 2007


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        status: how it is.
        detail: what was found.
        remedy: what to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Looks at everything, in the order in which one would mend it."""
    return [
        _python(),
        _qemu(),
        _kvm(),
        _guest_kernel(),
        _debian_tools(),
        _cache(),
        _memfd(),
        _shared_memory(),
        _memory(),
        _compiler(),
        _qmp(),
    ]


def guest_obstacles(*, patience: float = 1.0) -> list[Finding]:
    """What keeps a guest from running here, as far as can be told at once; empty when nothing seems to.

    What is neither here nor in the cache has to be fetched, which takes apt, and a Debian mirror that answers.

    Args:
        patience: seconds the mirror has to take a connection.
    """
    by_hand = {
        "QEMU": f"install QEMU >= {MINIMUM_VERSION}",
        "guest kernel": "make /boot/vmlinuz-* readable, with the modules in /lib/modules, and install busybox-static",
    }
    absent = [
        Finding(finding.name, "missing", finding.detail, by_hand[finding.name])
        for finding in (_qemu(), _guest_kernel())
        if finding.status != "ok"
    ]
    cache = _cache()
    found = [cache] if cache.status == "missing" else []
    if not absent:
        return found
    if found:
        return [*absent, *found]
    try:
        host_architecture()
    except VmUnavailableError as error:
        return [*absent, Finding("this machine", "missing", str(error), "nothing can be fetched for it")]
    tools = _debian_tools()
    if tools.status != "ok":
        return [*absent, tools]
    mirror = configured_mirror()
    if urllib.request.getproxies() or _takes_connections(mirror, patience):
        return []
    remedy = "connect this machine to it, or set DEBIAN_MIRROR to one it reaches"
    return [*absent, Finding("Debian mirror", "missing", f"{mirror} does not answer", remedy)]


def _takes_connections(url: str, patience: float) -> bool:
    """Whether somebody listens there. On a thread, since nothing limits the time a name's address is looked for."""
    parts = urllib.parse.urlsplit(url)
    answered = threading.Event()

    def knock() -> None:
        try:
            port = parts.port or {"https": 443}.get(parts.scheme, 80)
            socket.create_connection((parts.hostname or "", port), patience).close()
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(patience)
    return answered.is_set()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info >= _MINIMUM_PYTHON:
        return Finding("Python", "ok", version)
    least = ".".join(map(str, _MINIMUM_PYTHON))
    return Finding("Python", "missing", f"{version} is older than {least}", f"run it with Python {least} or later")


def _qemu(find: Callable[[str], str | None] = shutil.which) -> Finding:
    remedy = f"install QEMU >= {MINIMUM_VERSION}, or let 'vfio-user boot' fetch Debian's into its cache"
    found = find("qemu-system-x86_64")
    shortcoming = "qemu-system-x86_64 is not on the PATH"
    cached = sorted(default_cache_folder().glob("qemu-system-x86_64-*/qemu-system-x86_64"))
    for path in [*([Path(found)] if found is not None else []), *cached]:
        try:
            qemu = inspect_qemu(path)
        except VmUnavailableError as error:
            shortcoming = str(error)
            continue
        if qemu.is_usable:
            return Finding("QEMU", "ok", f"{qemu.version} with vfio-user-pci ({path})")
        shortcoming = f"{qemu.version} ({path}) {qemu.shortcoming}"
    return Finding("QEMU", "warn", shortcoming, remedy)


def _kvm(path: Path = Path("/dev/kvm")) -> Finding:
    without = "nothing: guests run with QEMU's own translator (TCG), about ten times slower"
    if not path.exists():
        return Finding("KVM", "warn", f"there is no {path}", without)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return Finding("KVM", "warn", f"{path} cannot be opened: {error.strerror}", "join the group kvm, or do without")
    try:
        version = fcntl.ioctl(handle, _KVM_GET_API_VERSION, 0)
    except OSError as error:
        return Finding("KVM", "warn", f"{path} does not answer: {error.strerror}", without)
    finally:
        os.close(handle)
    # A nested KVM can open, answer and still not boot a stock kernel, so this is as far as a cheap look goes.
    return Finding("KVM", "warn", f"{path} answers (API {version}); unproven: only a boot tells", "try accelerator kvm")


def _guest_kernel() -> Finding:
    kernel = find_host_kernel()
    if kernel is not None:
        return Finding("guest kernel", "ok", f"this machine's own, Linux {kernel.version} ({kernel.image})")
    if any(default_cache_folder().glob("guest-x86_64-*/kernel")):
        return Finding("guest kernel", "ok", f"in the cache, {default_cache_folder()}")
    return Finding(
        "guest kernel",
        "warn",
        "no kernel of this machine can be read and has the modules guests need",
        "nothing: 'vfio-user boot' fetches Debian's into its cache",
    )


def _debian_tools() -> Finding:
    name = "Debian packages"
    if missing := missing_tools():
        return Finding(
            name,
            "warn",
            f"cannot be fetched: {', '.join(missing)} missing",
            "apt install apt dpkg debian-archive-keyring, or install QEMU, busybox-static and a readable kernel",
        )
    try:
        configured_mirror()
    except VmUnavailableError as error:
        return Finding(name, "warn", str(error), "set DEBIAN_MIRROR")
    return Finding(name, "ok", "apt is here and has a Debian mirror")


def _cache() -> Finding:
    folder = default_cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("cache", "missing", f"{place} cannot be written", "set VFIO_USER_CACHE to a folder that can")
    free = shutil.disk_usage(place).free
    status: Status = "ok" if free >= _DISK_FOR_A_KIT else "warn"
    remedy = "" if status == "ok" else f"free {format_bytes(_DISK_FOR_A_KIT)}, or set VFIO_USER_CACHE elsewhere"
    return Finding("cache", status, f"{folder}, {format_bytes(free)} free", remedy)


def _memfd() -> Finding:
    try:
        os.close(os.memfd_create("vfio-user-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        remedy = "use shared_memory=False: every access of a device to memory is then a message"
        return Finding("memfd", "warn", f"memfd_create fails: {error.strerror}", remedy)
    return Finding("memfd", "ok", "guest memory can be shared with devices")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108 - looked at, not written to
    try:
        size = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding(str(folder), "warn", f"cannot be seen: {error.strerror}", "memfd does without it")
    # memfd does not count against it; memory-backend-file and Docker's default of 64 MB do meet.
    status: Status = "ok" if size >= _MEMORY_FOR_A_GUEST else "warn"
    remedy = "" if status == "ok" else "only memory-backend-file needs it: run the container with --shm-size=1g"
    return Finding(str(folder), status, format_bytes(size), remedy)


def _memory(path: Path = Path("/proc/meminfo")) -> Finding:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, LookupError):
        return Finding("memory", "warn", f"{path} does not tell", "")
    if available >= _MEMORY_FOR_A_GUEST:
        return Finding("memory", "ok", f"{format_bytes(available)} available")
    remedy = f"free {format_bytes(_MEMORY_FOR_A_GUEST)} for a guest of 256 MB"
    return Finding("memory", "warn", f"only {format_bytes(available)} available", remedy)


def _compiler(find: Callable[[str], str | None] = shutil.which) -> Finding:
    for name in ("gcc", "cc"):
        if found := find(name):
            return Finding("C compiler", "ok", found)
    return Finding("C compiler", "warn", "none", "apt install gcc libc6-dev, to compile C programs for guests")


def _qmp() -> Finding:
    try:
        found = find_spec("qemu.qmp") is not None
    except ModuleNotFoundError:  # not even its parent package
        found = False
    if found:
        return Finding("qemu.qmp", "ok", "hot-plug and reset work")
    return Finding("qemu.qmp", "warn", "not installed", "pip install 'vfio-user[vm]', for hot-plug and reset")
