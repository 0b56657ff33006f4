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

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "cache": ["Cache"],
        "doctor": ["Finding", "examine"],
        "guest": ["Guest", "GuestPciDevice", "GuestResource", "GuestResult"],
        "guestkit": ["GuestKit"],
        "guestprogram": ["compile_guest_program"],
        "initramfs": ["build_initramfs"],
        "machine": ["VirtualMachine"],
        "progress": ["Progress"],
        "qemu": ["QemuCommand", "VfioUserDevice", "qemu_arguments_for", "shell_lines"],
        "qmp": ["Qmp"],
    },
)
