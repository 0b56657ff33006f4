"""Guests for devices: QEMU's command line, a running machine, and the kit a guest is made of.

::

    kit = GuestKit.provision()  # QEMU, kernel, busybox: fetched once, cached
    image = build_initramfs(kit, modules=["nvme"])
    command = QemuCommand(
        kit.qemu.path, machine="q35", kernel=kit.kernel, initrd=image, devices=(VfioUserDevice("/tmp/nvme.sock"),)
    )
    with VirtualMachine(command) as machine:
        machine.guest.load_module("nvme")
        print(machine.guest.run("ls /dev/nvme*"))

Modules, each knowing only those above it: `architecture`, `progress`, `cache`, `elf`, `cpio`, `kernel`,
`kernel_modules`, `debian` (parts); `qemu_version`, `qemu_kit`, `guest_packages`, `guestkit`, `initramfs`,
`guestprogram` (what a guest is made of); `qemu`, `process`, `console`, `channel`, `qmp`, `machine`, `guest` (what
runs it); `doctor` (what this machine has of it all).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user.vm.cache import Cache
    from vfio_user.vm.doctor import Finding, examine
    from vfio_user.vm.guest import Guest, GuestPciDevice, GuestResource, GuestResult
    from vfio_user.vm.guestkit import GuestKit
    from vfio_user.vm.guestprogram import compile_guest_program
    from vfio_user.vm.initramfs import build_initramfs
    from vfio_user.vm.machine import VirtualMachine
    from vfio_user.vm.progress import Progress
    from vfio_user.vm.qemu import QemuCommand, VfioUserDevice, qemu_arguments_for, shell_lines
    from vfio_user.vm.qmp import Qmp

__all__ = [
    "Cache",
    "Finding",
    "Guest",
    "GuestKit",
    "GuestPciDevice",
    "GuestResource",
    "GuestResult",
    "Progress",
    "QemuCommand",
    "Qmp",
    "VfioUserDevice",
    "VirtualMachine",
    "build_initramfs",
    "compile_guest_program",
    "examine",
    "qemu_arguments_for",
    "shell_lines",
]

_HOMES = {
    "Cache": "cache",
    "Finding": "doctor",
    "Guest": "guest",
    "GuestKit": "guestkit",
    "GuestPciDevice": "guest",
    "GuestResource": "guest",
    "GuestResult": "guest",
    "Progress": "progress",
    "QemuCommand": "qemu",
    "Qmp": "qmp",
    "VfioUserDevice": "qemu",
    "VirtualMachine": "machine",
    "build_initramfs": "initramfs",
    "compile_guest_program": "guestprogram",
    "examine": "doctor",
    "qemu_arguments_for": "qemu",
    "shell_lines": "qemu",
}


def __getattr__(name: str) -> object:
    """Imports a name from its module the first time it is used: `serve` prints a command line and wants no more."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
