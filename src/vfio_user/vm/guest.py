"""A shell in the guest: run commands, move files, load drivers, look at PCI devices.

Commands go over a second serial port to the guest's init (``guest_init.sh``), about 6 ms each under TCG, so a test
boots once and asks many times.
"""

from __future__ import annotations

import itertools
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.errors import GuestCommandError, StateError, VmError, VmTimeoutError
from vfio_user.vm.channel import Channel, ChannelClosedError, ChannelTimeoutError

if TYPE_CHECKING:
    from vfio_user.vm.machine import VirtualMachine

__all__ = ["Guest", "GuestPciDevice", "GuestResource", "GuestResult"]

#: Seconds a guest may take to boot. Two are usual under TCG; a machine that does five things at once needs more.
BOOT_TIMEOUT = 120.0

#: Bytes of a file sent at once: the guest's terminal buffers hold it, so nothing is lost when its reader is late.
_CHUNK = 16384

_LIST_PCI = r"""
for folder in /sys/bus/pci/devices/*; do
  [ -e "$folder" ] || continue
  echo "function ${folder##*/}"
  for name in vendor device class revision subsystem_vendor subsystem_device irq; do
    read -r value <"$folder/$name" && echo "$name $value"
  done
  [ -e "$folder/driver" ] && driver=$(readlink "$folder/driver") && echo "driver ${driver##*/}"
  while read -r start end flags; do echo "resource $start $end $flags"; done <"$folder/resource"
done
"""


@dataclass(frozen=True)
class GuestResult:
    """What came of a command.

    Attributes:
        command: what was run.
        output: the bytes it wrote, standard error included.
        returncode: its exit status.
        seconds: how long it took, as seen from here.
    """

    command: str
    output: bytes
    returncode: int
    seconds: float

    @property
    def stdout(self) -> str:
        """What it wrote, as text."""
        return self.output.decode(errors="replace")

    def __str__(self) -> str:
        """What it wrote, without the line end at its end: what ``$(...)`` is in a shell."""
        return self.stdout.rstrip("\n")


@dataclass(frozen=True)
class GuestResource:
    """One address range of a device: ``[start, start + size)``, with the kernel's IORESOURCE flags."""

    start: int
    size: int
    flags: int

    @property
    def is_io(self) -> bool:
        """Whether it is of I/O ports rather than of memory."""
        return bool(self.flags & 0x100)


@dataclass(frozen=True)
class GuestPciDevice:
    """A PCI device as the guest's kernel sees it.

    Attributes:
        address: domain, bus, slot and function, ``0000:00:02.0``.
        driver: the driver bound to it, None when there is none.
        irq: the number of its INTx or MSI interrupt, 0 when it has none.
        resources: BAR 0 to 5, expansion ROM, and bridge windows, by index; None where there is nothing.
    """

    address: str
    vendor_id: int
    device_id: int
    class_code: int
    revision: int
    subsystem_vendor_id: int
    subsystem_id: int
    driver: str | None
    irq: int
    resources: tuple[GuestResource | None, ...]

    @property
    def path(self) -> str:
        """Its folder in the guest's sysfs."""
        return f"/sys/bus/pci/devices/{self.address}"


class Guest:
    """The guest of a running machine. Made by `VirtualMachine.guest`.

    After a command that did not end in time the guest is of no use any more, and says so: whether it hangs or is
    merely slow cannot be told from here.

    Threading: one thread at a time.
    """

    def __init__(self, machine: VirtualMachine, channel: Channel, *, is_ready: bool = False) -> None:
        self._machine = machine
        self._channel = channel
        self._is_ready = is_ready
        self._stuck_in = ""
        # Different in every run, so that no program's output can hold one by accident.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        #: The guest's ``uname -r``, and seconds from its kernel's start to readiness; set by `wait_ready`.
        self.kernel_version = ""
        self.boot_seconds = 0.0

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Waits until the guest obeys commands; returns at once when it does.

        Raises:
            VmTimeoutError: it did not boot in time; the text ends with its console's last lines.
            VmLaunchError: the machine ended first.
        """
        if not self._is_ready:
            _, words = self._take(b"ready", timeout, "to boot")
            uptime, self.kernel_version = words.decode().split()
            self.boot_seconds = float(uptime)
            self._is_ready = True

    def run(self, command: str, *, timeout: float = 30.0, check: bool = True) -> GuestResult:
        """Runs a shell command, or a whole script, in a subshell as root, with no standard input.

        Args:
            command: what to run, for busybox's ``sh``.
            timeout: seconds.
            check: whether an exit status other than 0 is an error.

        Raises:
            GuestCommandError: it ended with another status than 0, and ``check`` is set.
            VmTimeoutError: it did not end in time. The guest cannot be used any more.
            VmLaunchError: the machine ended meanwhile.
            StateError: an earlier command did not end in time.
        """
        result = self._run(command, b"", timeout)
        if check and result.returncode != 0:
            raise GuestCommandError(command, result.returncode, result.stdout)
        return result

    def wait_until(self, condition: str, *, timeout: float = 30.0) -> None:
        """Waits until a shell command succeeds: a device node appears, a driver is bound.

        Args:
            condition: the command, tried every 5 ms of the guest's time.
            timeout: seconds of the guest's time.

        Raises:
            VmTimeoutError: it did not succeed in time. The guest can be used on.
        """
        loop = f"until {{\n{condition}\n}} >/dev/null 2>&1; do usleep 5000; done"
        command = f"timeout -s KILL {timeout:g} sh -c {shlex.quote(loop)}"
        if self._run(command, b"", timeout + 30.0).returncode != 0:
            console = self._machine.console.tail()
            raise VmTimeoutError(f"{condition!r} did not succeed in {timeout:g} s; the console ends:\n{console}")

    def write_file(self, path: str, content: bytes | str, *, mode: int = 0o644, timeout: float = 60.0) -> None:
        """Makes a file in the guest, and the folders above it.

        Meant for small files (about 70 kB a second): big ones belong into the initramfs.

        Args:
            path: where.
            content: what; text goes as UTF-8.
            mode: permission bits.
            timeout: seconds for each 16 KiB.

        Raises:
            GuestCommandError: the guest could not write it.
        """
        data = content.encode() if isinstance(content, str) else content
        quoted = shlex.quote(path)
        self.run(f'mkdir -p "$(dirname {quoted})" && : >{quoted} && chmod {mode:o} {quoted}', timeout=timeout)
        for start in range(0, len(data), _CHUNK):
            chunk = data[start : start + _CHUNK]
            command = f"head -c {len(chunk)} <&3 >>{quoted}"
            result = self._run(command, chunk, timeout)
            if result.returncode != 0:
                raise GuestCommandError(command, result.returncode, result.stdout)

    def read_file(self, path: str, *, timeout: float = 60.0) -> bytes:
        """The content of a file of the guest.

        Raises:
            GuestCommandError: it cannot be read.
        """
        return self.run(f"cat {shlex.quote(path)}", timeout=timeout).output

    def load_module(self, name: str, *parameters: str, timeout: float = 30.0) -> None:
        """Loads a kernel module and all it needs.

        Args:
            name: the module; it must be in the initramfs (``modules`` or ``load`` of `build_initramfs`).
            parameters: its parameters, ``"settle=0"``.
            timeout: seconds.

        Raises:
            GuestCommandError: it is not there, or the kernel refuses it.
        """
        self.run(shlex.join(["modprobe", name, *parameters]), timeout=timeout)

    def unload_module(self, name: str, *, timeout: float = 30.0) -> None:
        """Unloads a kernel module, and what it alone needed.

        Raises:
            GuestCommandError: it is not loaded, or in use.
        """
        self.run(shlex.join(["modprobe", "-r", name]), timeout=timeout)

    def pci_devices(self, *, timeout: float = 30.0) -> list[GuestPciDevice]:
        """All PCI devices the guest's kernel has found, in the order of their addresses."""
        return _parse_pci(self.run(_LIST_PCI, timeout=timeout).stdout)

    def pci_device(self, vendor_id: int, device_id: int) -> GuestPciDevice:
        """The one PCI device of these ids.

        Raises:
            VmError: there is none, or more than one; the text lists those there are.
        """
        devices = self.pci_devices()
        found = [device for device in devices if (device.vendor_id, device.device_id) == (vendor_id, device_id)]
        if len(found) != 1:
            there = ", ".join(f"{d.address} {d.vendor_id:04x}:{d.device_id:04x}" for d in devices)
            raise VmError(f"the guest has {len(found)} devices {vendor_id:04x}:{device_id:04x}, not 1; it has {there}")
        return found[0]

    def interrupts(self) -> dict[str, int]:
        """How often each interrupt has come, over all CPUs, by the text ``/proc/interrupts`` ends its line with."""
        counts: dict[str, int] = {}
        for line in self.run("cat /proc/interrupts").stdout.splitlines()[1:]:
            name, _, rest = line.partition(":")
            words = rest.split()
            numbers = list(itertools.takewhile(str.isdigit, words))
            label = " ".join(words[len(numbers) :]) or name.strip()
            counts[label] = counts.get(label, 0) + sum(map(int, numbers))
        return counts

    def dmesg(self) -> str:
        """The kernel's messages, those ``quiet`` keeps off the console included."""
        return self.run("dmesg").stdout

    def reboot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Restarts the guest, and waits until it obeys again. The machine must have been made with ``reboot=True``.

        Raises:
            StateError: the machine ends on a reboot.
            VmTimeoutError: it did not come back in time.
        """
        if not self._machine.reboots:
            raise StateError("this machine ends when its guest reboots: make its QemuCommand with reboot=True")
        self.wait_ready()
        self._send_only("reboot -f")
        self.wait_ready(timeout)

    def power_off_nowait(self) -> bool:
        """Tells the guest to power off, and does not wait for it.

        Returns:
            Whether it was told: a guest that is still booting, or does not obey any more, is left alone.
        """
        if not self._is_ready or self._stuck_in:
            return False
        with suppress(ChannelClosedError):  # it was faster
            self._send_only("poweroff -f")
        return True

    def expect_reset(self) -> None:
        """Says that the machine is being reset from outside (QMP): `wait_ready` then waits for the next boot."""
        self._is_ready = False
        self._stuck_in = ""

    def _run(self, command: str, payload: bytes, timeout: float) -> GuestResult:
        self.wait_ready()
        if self._stuck_in:
            raise StateError(f"the guest never ended {self._stuck_in!r}: use a new machine")
        token = f"{self._prefix}-{next(self._numbers)}"
        started = time.monotonic()
        try:
            self._channel.send(_request(token, command) + payload)
        except ChannelClosedError:
            raise self._machine.ended_early(f"before the guest command {command!r}") from None
        self._stuck_in = command
        output, status = self._take(token.encode(), timeout, f"for the guest command {command!r}")
        self._stuck_in = ""
        return GuestResult(command, output, int(status), time.monotonic() - started)

    def _send_only(self, command: str) -> None:
        """Sends a command that ends the guest, so that no answer comes."""
        self._channel.send(_request(f"{self._prefix}-{next(self._numbers)}", command))
        self._is_ready = False

    def _take(self, mark: bytes, timeout: float, purpose: str) -> tuple[bytes, bytes]:
        try:
            return self._channel.read_mark(mark, time.monotonic() + timeout)
        except ChannelClosedError:
            raise self._machine.ended_early(f"while waiting {purpose}") from None
        except ChannelTimeoutError:
            console = self._machine.console.tail()
            raise VmTimeoutError(f"waited {timeout:g} s {purpose}; the console ends:\n{console}") from None


def _request(token: str, command: str) -> bytes:
    lines = command.split("\n")
    return f"run {token} {len(lines)}\n".encode() + "".join(f"{line}\n" for line in lines).encode()


def _parse_pci(listing: str) -> list[GuestPciDevice]:
    devices: list[GuestPciDevice] = []
    fields: dict[str, str] = {}
    resources: list[GuestResource | None] = []

    def finish() -> None:
        if fields:
            number = {name: int(value, 0) for name, value in fields.items() if name not in ("function", "driver")}
            devices.append(
                GuestPciDevice(
                    address=fields["function"],
                    vendor_id=number["vendor"],
                    device_id=number["device"],
                    class_code=number["class"],
                    revision=number["revision"],
                    subsystem_vendor_id=number["subsystem_vendor"],
                    subsystem_id=number["subsystem_device"],
                    driver=fields.get("driver"),
                    irq=number["irq"],
                    resources=tuple(resources),
                )
            )

    for line in listing.splitlines():
        name, _, value = line.partition(" ")
        if name == "function":
            finish()
            fields, resources = {name: value}, []
        elif name == "resource":
            start, end, flags = (int(word, 16) for word in value.split())
            resources.append(GuestResource(start, end - start + 1, flags) if flags else None)
        elif value:
            fields[name] = value
    finish()
    return devices
