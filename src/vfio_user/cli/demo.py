"""``vfio-user demo``: an unmodified Linux drives two devices written in Python, seen from both sides.

Where there can be no guest, ``demo_in_python`` drives them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from vfio_user.cli.common import NamedDevice, add_verbose, make_named_device, start_log
from vfio_user.cli.demo_in_python import demonstrate
from vfio_user.cli.demo_report import Report
from vfio_user.cli.output import columns
from vfio_user.cli.plugged import linux_modules, plugged_in
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.errors import VmUnavailableError
from vfio_user.vm.doctor import Finding, guest_obstacles
from vfio_user.vm.guest import Guest, GuestPciDevice
from vfio_user.vm.guestkit import GuestKit
from vfio_user.vm.initramfs import build_initramfs
from vfio_user.vm.machine import VirtualMachine
from vfio_user.vm.qemu import QemuCommand, format_size

__all__ = ["add_arguments", "run"]

#: Offsets of edu's registers in BAR0, as a driver would have them.
_LIVENESS, _FACTORIAL, _STATUS = 0x04, 0x08, 0x20

#: The inputs follow the 16 outputs among the lines of the chip.
_FIRST_INPUT = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``demo``."""
    parser.epilog = (
        "The first time it fetches QEMU and a kernel, about 35 MB; see 'vfio-user kit'.\n"
        "Where no guest can run, a client in Python drives the same devices."
    )
    parser.add_argument("--no-guest", action="store_true", help="drive the devices from Python, without QEMU")
    add_verbose(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the demonstration; it ends by itself."""
    begun = time.monotonic()
    start_log(arguments.verbose)
    devices = [make_named_device("edu", {}), make_named_device("gpio-pci-idio-16", {})]
    obstacles = guest_obstacles()
    if not (obstacles or arguments.no_guest):
        try:
            return _run_in_guest(devices, GuestKit.provision(), begun, verbose=arguments.verbose)
        except VmUnavailableError as exc:
            obstacles = [Finding("guest kit", "missing", str(exc), "mend that, or see 'vfio-user doctor'")]
    demonstrate(devices, obstacles, begun, verbose=arguments.verbose)
    return 0


def _run_in_guest(devices: list[NamedDevice], kit: GuestKit, begun: float, *, verbose: int) -> int:
    edu, card = devices[0].device, devices[1].device
    assert isinstance(edu, Edu)
    assert isinstance(card, GpioPciIdio16)
    initrd = build_initramfs(kit, load=linux_modules(devices))
    out = Report()
    out.title("Two PCI devices written in Python, and a Linux that does not know it")
    with plugged_in(devices, verbose=verbose) as plugs:
        command = QemuCommand(kit.qemu.path, kernel=kit.kernel, initrd=initrd, devices=tuple(plugs))
        with VirtualMachine(command) as machine:
            guest = machine.guest
            guest.wait_ready()
            _show_identity(out, guest, devices, str(kit.qemu.version))
            _show_edu(out, guest, edu)
            _show_gpio(out, guest, card)
            machine.shutdown()
    out.end(time.monotonic() - begun)
    return 0


def _show_identity(out: Report, guest: Guest, devices: list[NamedDevice], qemu_version: str) -> None:
    """What Linux found on its bus."""
    out.heading(f"The guest: Linux {guest.kernel_version} in QEMU {qemu_version}, up in {guest.boot_seconds:.1f} s")
    rows = [("address", "ids", "class", "driver", "interrupt", "addresses")]
    for named in devices:
        found = _on_bus(guest, named.device)
        rows.append(
            (
                found.address,
                f"{found.vendor_id:04x}:{found.device_id:04x}",
                f"{found.class_code:06x}",
                found.driver or "none yet",
                str(found.irq),
                ", ".join(_bars(found)),
            )
        )
    out.lines(columns(rows, "  "))


def _show_edu(out: Report, guest: Guest, edu: Edu) -> None:
    """Registers: the guest writes, Python answers."""
    out.heading("edu: the guest's loads and stores are calls of Python methods")
    found = _on_bus(guest, edu)
    guest.run(f"echo 1 >{found.path}/enable")
    bar0 = found.resources[0]
    assert bar0 is not None

    def peek(offset: int) -> int:
        return int(str(guest.run(f"devmem {bar0.start + offset:#x} 32")), 0)

    def poke(offset: int, value: int) -> None:
        guest.run(f"devmem {bar0.start + offset:#x} 32 {value:#x}")

    poke(_LIVENESS, 0x12345678)
    out.guest("writes 0x12345678 to the liveness register")
    out.guest("reads it back, inverted by the device:", f"{peek(_LIVENESS):#x}")
    out.python("edu.bar0.liveness", f"{int(edu.bar0.liveness):#x}")
    poke(_FACTORIAL, 10)
    while peek(_STATUS) & 1:  # computing
        pass
    out.guest("writes 10 to the factorial register, reads:", str(peek(_FACTORIAL)))


def _show_gpio(out: Report, guest: Guest, card: GpioPciIdio16) -> None:
    """A real kernel driver, both directions, and interrupts."""
    out.heading("gpio-pci-idio-16: Linux's own driver, its outputs, inputs and interrupts")
    found = _on_bus(guest, card)
    base, lines = str(guest.run(f"cd {found.path}/gpio/gpiochip*; cat base ngpio")).split()
    first = int(base)
    out.guest(f"has a GPIO chip, /sys/class/gpio/gpiochip{first}", f"{lines} lines")

    output = _export(guest, first + 3, "OUT3")
    guest.run(f"echo 1 >{output}/value")
    out.guest(f"echo 1 >{output}/value")
    out.python("card.outputs", f"{card.outputs:#06x}")

    inputs = [_export(guest, first + _FIRST_INPUT + number, f"IIN{number}") for number in (0, 2)]
    # Whoever waits for edges makes the driver turn the card's interrupt on.
    guest.run(f"echo both >{inputs[0]}/edge")
    before = _interrupts(guest, found)
    card.set_inputs(0x0005)
    out.python("card.set_inputs(0x0005)")
    guest.wait_until(f"grep -q 1 {inputs[1]}/value")
    values = " ".join(str(guest.run(f"cat {path}/value")) for path in inputs)
    out.guest("reads inputs 0 and 2", values)
    out.guest("/proc/interrupts counts for the card", f"{before} -> {_interrupts(guest, found)}")


def _export(guest: Guest, number: int, name: str) -> str:
    """Makes a line a folder of sysfs, which has the line's name where the driver gave it one."""
    listing = guest.run(f"cd /sys/class/gpio; echo {number} >export; ls -d {name} gpio{number}", check=False)
    folder = next(line for line in listing.stdout.splitlines() if line in (name, f"gpio{number}"))
    return f"/sys/class/gpio/{folder}"


def _on_bus(guest: Guest, device: object) -> GuestPciDevice:
    vendor_id, device_id = getattr(device, "vendor_id", 0), getattr(device, "device_id", 0)
    return guest.pci_device(vendor_id, device_id)


def _bars(found: GuestPciDevice) -> Iterable[str]:
    for index, resource in enumerate(found.resources[:6]):
        if resource is not None:
            kind = f"{resource.size} ports" if resource.is_io else f"{format_size(resource.size)} memory"
            yield f"BAR{index} {kind}"


def _interrupts(guest: Guest, found: GuestPciDevice) -> int:
    """How often the card's interrupt came; its handler goes by the card's address, or by the driver's name."""
    names = (found.address, "idio-16")
    return sum(count for label, count in guest.interrupts().items() if label.endswith(names))
