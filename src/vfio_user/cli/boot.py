"""``vfio-user boot``: devices, QEMU and a small Linux in one command."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from vfio_user.cli.common import add_verbose, make_named_device, start_log
from vfio_user.cli.device_processes import DeviceProcess, in_processes, wait_for_an_end
from vfio_user.cli.output import complain
from vfio_user.cli.placement import DeviceRequest, parse_device, share_slots
from vfio_user.cli.plugged import linux_modules, plugged_in
from vfio_user.devices.options import convert
from vfio_user.devices.registry import find_device
from vfio_user.errors import DeviceNotFoundError, VmLaunchError, VmTimeoutError, VmUnavailableError
from vfio_user.protocol.constants import DeviceFlags
from vfio_user.server.device import Device
from vfio_user.vm.architecture import ARCHITECTURES, Architecture
from vfio_user.vm.cache import Cache
from vfio_user.vm.guestkit import GuestKit
from vfio_user.vm.initramfs import build_initramfs
from vfio_user.vm.machine import VirtualMachine
from vfio_user.vm.progress import Progress
from vfio_user.vm.qemu import QemuCommand, VfioUserDevice
from vfio_user.vm.qemu_kit import ensure_qemu
from vfio_user.vm.qemu_version import MINIMUM_VERSION, Qemu, inspect_qemu

__all__ = ["add_arguments", "print_console_line", "run"]

_MACHINES = {"pc": "x86_64", "q35": "x86_64", "virt": "aarch64"}

#: Seconds a guest has to power off after the first Ctrl-C.
_SHUTDOWN_TIMEOUT = 10.0

#: Where the guest finds the script of --init-script.
_SCRIPT = "root/init-script"

#: What SeaBIOS has to say, with its order to clear the screen; the guest's first line may follow its last.
_FIRMWARE = re.compile(r"^(\x1bc)?(\x1b\[[0-9?]*[a-zA-Z])*SeaBIOS .*|^Booting from ROM\.\.")

_EPILOG = """\
The command runs as root, in busybox's shell, once the drivers are loaded; its
exit status is this command's. Without one there is a shell, until you leave it;
Ctrl-A x ends QEMU at once.

examples:
  vfio-user boot --device edu --package pciutils -- lspci
  vfio-user boot --device my_device.py:Nic,queues=4 --module e1000e -v
  vfio-user boot --device edu --kernel ~/linux/vmlinux -- 'dmesg | tail'
  vfio-user boot --processes --device edu@05.0 --device gpio-pci-idio-16@05.1
  vfio-user boot --device edu,qemu.romfile=my.rom --qemu-device pci-testdev

DEVICE@05 is plugged into slot 5, DEVICE@05.1 is its function 1: those that
share a slot are functions of one device. qemu.NAME=VALUE is a property of
QEMU's vfio-user-pci; every other NAME=VALUE an option of the device.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``boot``."""
    parser.usage = "vfio-user boot [--device DEVICE[,NAME=VALUE]...] [options] [-- COMMAND]"
    parser.epilog = _EPILOG
    parser.add_argument(
        "--device",
        dest="devices",
        action="append",
        type=parse_device,
        default=[],
        metavar="DEVICE[@SLOT][,NAME=VALUE]...",
        help="a device to plug in, with its options; may be repeated (a comma in a value is written twice)",
    )
    parser.add_argument(
        "--processes",
        action="store_true",
        help="serve each device in a process of its own, rather than all in this one",
    )
    parser.add_argument("--init-script", type=Path, metavar="FILE", help="a script to run instead of COMMAND")
    parser.add_argument(
        "--module", dest="modules", action="append", default=[], metavar="NAME", help="a kernel module to load"
    )
    parser.add_argument(
        "--package", dest="packages", action="append", default=[], metavar="NAME", help="programs to add to the guest"
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument(
        "--machine", choices=tuple(_MACHINES), help="QEMU's machine (default q35, or virt for aarch64)"
    )
    machine.add_argument("--arch", choices=tuple(ARCHITECTURES), help="the guest's architecture (default x86_64)")
    machine.add_argument("--memory", type=_size, default="256M", metavar="SIZE", help="its memory (default 256M)")
    machine.add_argument(
        "--qemu-device",
        dest="qemu_devices",
        action="append",
        default=[],
        metavar="DEVICE",
        help="one of QEMU's own devices, as its -device takes it; may be repeated",
    )
    machine.add_argument("--qemu", type=Path, metavar="PATH", help="the QEMU to use")
    machine.add_argument("--kernel", type=Path, metavar="FILE", help="a kernel of your own")
    machine.add_argument("--initrd", type=Path, metavar="FILE", help="an initial file system of your own")
    machine.add_argument("--append", default="", metavar="OPTIONS", help="more options for the kernel")
    machine.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after that long (default never)")
    add_verbose(parser)


def run(arguments: argparse.Namespace) -> int:
    """Boots, and returns the guest's exit status."""
    architecture, machine = _machine(arguments)
    main = _main(arguments)
    if main is None and arguments.initrd is None and not sys.stdin.isatty():
        raise VmUnavailableError("there is no terminal for a shell: give a command after --, or --init-script FILE")
    requests = share_slots(arguments.devices, arguments.qemu_devices)
    classes = [_pci(find_device(request.name)) for request in requests]
    # In processes of their own they are made there, with whatever files they open.
    named = [] if arguments.processes else [make_named_device(each.name, dict(each.settings)) for each in requests]
    start_log(arguments.verbose)
    qemu, kernel, initrd = _parts(arguments, architecture, linux_modules(classes), main or "/bin/sh")
    signal.signal(signal.SIGTERM, _terminated)
    firmware = machine != "virt"
    with contextlib.ExitStack() as stack:
        children: list[DeviceProcess] = []
        if arguments.processes:
            devices = list(zip(requests, classes, strict=True))
            children = stack.enter_context(in_processes(devices, verbose=arguments.verbose, firmware=firmware))
            plugs = [child.plug for child in children]
        else:
            plugs = stack.enter_context(plugged_in(named, verbose=arguments.verbose, firmware=firmware))
        command = QemuCommand(
            qemu.path,
            machine=machine,
            memory=arguments.memory,
            kernel=kernel,
            initrd=initrd,
            append=(arguments.append,) if arguments.append else (),
            devices=(*arguments.qemu_devices, *_placed(plugs, requests)),
        )
        print(command, end="\n\n", file=sys.stderr, flush=True)
        terminal = main is None and sys.stdin.isatty()
        try:
            return _run_machine(command, children, terminal=terminal, timeout=arguments.timeout)
        except VmLaunchError:
            # QEMU ends when it is refused; why, the device has said.
            if (dead := _first_dead(children)) is None:
                raise
            complain(_obituary(dead))
            return 1


def _placed(plugs: Sequence[VfioUserDevice], requests: Sequence[DeviceRequest]) -> list[VfioUserDevice]:
    """The devices, where and how they are to be plugged in."""
    return [replace(plug, properties=request.properties) for plug, request in zip(plugs, requests, strict=True)]


def _first_dead(children: Sequence[DeviceProcess]) -> DeviceProcess | None:
    """A device whose process has ended, or is about to."""
    return next((child for child in children if child.process.wait(0.5) is not None), None)


def _obituary(child: DeviceProcess) -> str:
    code = child.process.exit_code
    how = f"status {code}" if code is None or code >= 0 else f"signal {-code}"
    return f"the process of {child.name} ended ({how}), and with it the machine"


def _run_machine(
    command: QemuCommand, children: Sequence[DeviceProcess], *, terminal: bool, timeout: float | None
) -> int:
    with VirtualMachine(command, on_console_line=print_console_line, terminal=terminal) as machine:
        try:
            begun = time.monotonic()
            if (dead := wait_for_an_end(machine, children, timeout)) is not None:
                complain(_obituary(dead))
                machine.stop()
                return 1
            code = machine.wait(None if timeout is None else max(0.0, timeout - (time.monotonic() - begun)))
        except KeyboardInterrupt:
            _take_down(machine)
            return 130
        if machine.panic is not None:
            complain(f"the guest's kernel panicked: {machine.panic}")
            return 1
        if code != 0:
            raise machine.ended_early("before its guest powered off")
        return machine.guest_status or 0


def _take_down(machine: VirtualMachine) -> None:
    """Asks the guest to power off; a second Ctrl-C, or a guest that does not listen, ends QEMU."""
    complain("powering the guest off; Ctrl-C again to end QEMU at once")
    try:
        with contextlib.suppress(VmTimeoutError):
            machine.guest.wait_ready(timeout=0.2)
        machine.shutdown(_SHUTDOWN_TIMEOUT)
    except KeyboardInterrupt:
        machine.stop(timeout=1.0)


def _terminated(_signal: int, _frame: object) -> NoReturn:
    """SIGTERM: leave through every ``with``, so that QEMU, sockets and folders go."""
    raise SystemExit(128 + signal.SIGTERM)


def print_console_line(line: str) -> None:
    """Prints a line of the guest's console, without what firmware says before the guest does."""
    if _FIRMWARE.search(line):
        line = _FIRMWARE.sub("", line)
        if not line:
            return
    # On the console's thread: a reader of ours that went away must not stop it, or the guest would.
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _machine(arguments: argparse.Namespace) -> tuple[Architecture, str]:
    """The guest's architecture, and QEMU's machine."""
    if arguments.machine is None:
        architecture = ARCHITECTURES[arguments.arch or "x86_64"]
        return architecture, architecture.machine
    architecture = ARCHITECTURES[_MACHINES[arguments.machine]]
    if arguments.arch not in (None, architecture.name):
        raise VmUnavailableError(
            f"machine {arguments.machine} is of {architecture.name}, not {arguments.arch}: leave one of them out"
        )
    return architecture, arguments.machine


def _pci(cls: type[Device]) -> type[Device]:
    if not cls.flags & DeviceFlags.PCI:
        raise DeviceNotFoundError(f"{cls.__name__} is no PCI device, and QEMU takes no other: derive it from PciDevice")
    return cls


def _main(arguments: argparse.Namespace) -> str | None:
    """The shell command the guest runs; None for a shell."""
    if arguments.init_script is not None:
        return f"/{_SCRIPT}"
    words: list[str] = arguments.rest
    if not words:
        return None
    return words[0] if len(words) == 1 else shlex.join(words)


def _parts(
    arguments: argparse.Namespace, architecture: Architecture, drivers: Sequence[str], main: str
) -> tuple[Qemu, Path, Path]:
    """QEMU, kernel and initrd: those named, and for the rest those of the guest kit."""
    qemu = _usable(inspect_qemu(arguments.qemu)) if arguments.qemu is not None else None
    for file in (arguments.kernel, arguments.initrd, arguments.init_script):
        if file is not None and not file.is_file():
            raise VmUnavailableError(f"there is no file {file}")
    if arguments.kernel is not None and arguments.initrd is not None:
        return qemu or ensure_qemu(architecture, Cache(), Progress()), arguments.kernel, arguments.initrd
    kit = GuestKit.provision(architecture.name)
    initrd = arguments.initrd
    if initrd is None:
        # Our modules fit our kernel only; another one must have its drivers built in.
        modules = [] if arguments.kernel else [*drivers, *arguments.modules]
        files = {_SCRIPT: _script(arguments.init_script)} if arguments.init_script else {}
        initrd = build_initramfs(kit, load=modules, packages=arguments.packages, files=files, main=main)
    return qemu or kit.qemu, arguments.kernel or kit.kernel, initrd


def _script(path: Path) -> bytes:
    """The script, which the guest can run whether or not it says by what."""
    content = path.read_bytes()
    return content if content.startswith(b"#!") else b"#!/bin/sh\n" + content


def _usable(qemu: Qemu) -> Qemu:
    if not qemu.is_usable:
        raise VmUnavailableError(
            f"{qemu.path} is QEMU {qemu.version}, which {qemu.shortcoming}: name another one (>= {MINIMUM_VERSION}), "
            f"or leave --qemu out and let one be found or fetched"
        )
    return qemu


def _size(text: str) -> int:
    try:
        size: int = convert(text, int)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: {exc}") from exc
    # QEMU reads a bare number as mebibytes; so do people who know it.
    return size << 20 if text.isdigit() else size
