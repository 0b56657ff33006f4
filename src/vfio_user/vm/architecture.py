"""What differs between guest architectures, in one table; the rest of the package asks it by name."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from vfio_user.errors import VmUnavailableError

__all__ = ["ARCHITECTURES", "Architecture", "architecture_for", "host_architecture"]

#: Kernel options that shorten a boot under TCG and change nothing a PCI driver sees: no crypto self-tests, no pass
#: over the kernel's read-only data, and a console that speaks only when something is wrong.
_COMMON_OPTIONS = ("quiet", "cryptomgr.notests", "rodata=off")


@dataclass(frozen=True)
class Architecture:
    """One CPU architecture, as its guests and its Debian packages know it.

    Attributes:
        name: the name QEMU and the kernel use (``x86_64``).
        debian: the name Debian uses (``amd64``).
        triplet: the folder of its shared libraries (``x86_64-linux-gnu``).
        loader: the path of its dynamic loader, as programs name it.
        qemu_packages: the Debian packages of its system emulator.
        machine: the QEMU machine to use unless told otherwise.
        cpu: the QEMU CPU model that boots Linux fastest under TCG.
        serial: the prefix of its serial ports in ``/dev``.
        kernel_options: options every guest kernel gets.
    """

    name: str
    debian: str
    triplet: str
    loader: str
    qemu_packages: tuple[str, ...]
    machine: str
    cpu: str
    serial: str
    kernel_options: tuple[str, ...]

    @property
    def console(self) -> str:
        """The serial port of the kernel's console."""
        return f"{self.serial}0"

    @property
    def channel(self) -> str:
        """The serial port of the command channel."""
        return f"{self.serial}1"


ARCHITECTURES = {
    "x86_64": Architecture(
        name="x86_64",
        debian="amd64",
        triplet="x86_64-linux-gnu",
        loader="/lib64/ld-linux-x86-64.so.2",
        qemu_packages=("qemu-system-x86", "seabios"),
        machine="q35",
        cpu="max",
        serial="ttyS",
        # One CPU needs no patching for many, and TCG's timer and TSC need no checking.
        kernel_options=(*_COMMON_OPTIONS, "noreplace-smp", "no_timer_check", "tsc=reliable"),
    ),
    "aarch64": Architecture(
        name="aarch64",
        debian="arm64",
        triplet="aarch64-linux-gnu",
        loader="/lib/ld-linux-aarch64.so.1",
        qemu_packages=("qemu-system-arm",),
        machine="virt",
        cpu="cortex-a72",
        serial="ttyAMA",
        kernel_options=_COMMON_OPTIONS,
    ),
}


def architecture_for(name: str) -> Architecture:
    """Finds an architecture by QEMU's or Debian's name for it.

    Raises:
        VmUnavailableError: there are no guests of that architecture.
    """
    for architecture in ARCHITECTURES.values():
        if name in (architecture.name, architecture.debian):
            return architecture
    known = ", ".join(ARCHITECTURES)
    raise VmUnavailableError(f"there are no guests of architecture {name!r}; those there are: {known}")


def host_architecture() -> Architecture:
    """The architecture of this machine.

    Raises:
        VmUnavailableError: Debian's QEMU is not known to run on it.
    """
    return architecture_for(platform.machine())
