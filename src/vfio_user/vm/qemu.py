"""Writes QEMU command lines: a description in, a list of arguments out, and nothing is run.

`QemuCommand` describes a machine; its `arguments` are exactly what is passed to QEMU, in a fixed order, so that a
test can compare them and a user can paste them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vfio_user.vm.architecture import ARCHITECTURES, Architecture

__all__ = [
    "GiB",
    "MiB",
    "QemuCommand",
    "VfioUserDevice",
    "format_size",
    "kernel_append",
    "qemu_arguments_for",
    "shell_lines",
]

MiB = 1 << 20
GiB = 1 << 30

_MACHINES = {"pc": "x86_64", "q35": "x86_64", "virt": "aarch64"}


def format_size(size: int) -> str:
    """Writes a number of bytes as QEMU reads it: ``1G``, ``256M``, ``4096``."""
    for unit, suffix in ((GiB, "G"), (MiB, "M")):
        if size % unit == 0 and size:
            return f"{size // unit}{suffix}"
    return str(size)


@dataclass(frozen=True)
class VfioUserDevice:
    """A vfio-user device to plug in: QEMU's ``vfio-user-pci``.

    Attributes:
        socket: the UNIX socket its server listens on. QEMU connects when it starts: the socket must exist by then.
        id: the name QEMU knows it by, needed to unplug it.
        bus: the bus to plug it into; the machine's own when None. Hot-plug on q35 wants a root port's.
        addr: its slot and function on the bus, ``"06.0"``.
        msg_timeout: milliseconds QEMU waits for each reply; 5000 when None.
        class_code: a class code to show instead of the device's own. Linux gives a device of class 0 no BARs unless
            firmware did, as on ``virt`` and after hot-plug.
        properties: further properties, as ``-device vfio-user-pci,help`` lists them.
    """

    socket: Path | str
    id: str | None = None
    bus: str | None = None
    addr: str | None = None
    msg_timeout: int | None = None
    class_code: int | None = None
    properties: Mapping[str, object] = field(default_factory=dict)

    def to_properties(self) -> dict[str, object]:
        """All properties, as QEMU's JSON form of ``-device`` and QMP's ``device_add`` take them."""
        named = {
            "driver": "vfio-user-pci",
            "id": self.id,
            "bus": self.bus,
            "addr": self.addr,
            "x-msg-timeout": self.msg_timeout,
            "x-pci-class-code": self.class_code,
            # QEMU has no dotted form of this: "Property 'vfio-user-pci.socket.type' not found".
            "socket": {"type": "unix", "path": str(self.socket)},
        }
        return {**{name: value for name, value in named.items() if value is not None}, **self.properties}


def kernel_append(architecture: Architecture, *, channel: bool = False, extra: Sequence[str] = ()) -> str:
    """The kernel command line of a guest.

    Args:
        architecture: of the guest.
        channel: whether there is a second serial port to take commands from.
        extra: further options, which win over ours.
    """
    options = [f"console={architecture.console}", "panic=-1", *architecture.kernel_options]
    if channel:
        options.append(f"vfio_user.channel={architecture.channel}")
    return " ".join([*options, *extra])


@dataclass(frozen=True)
class QemuCommand:
    """A machine to run, with its devices.

    Attributes:
        executable: QEMU.
        machine: ``pc``, ``q35`` or ``virt``.
        accelerator: ``tcg`` runs anywhere; ``kvm`` where a virtual machine really boots with it.
        cpu: CPU model; the fastest to boot when None.
        memory: bytes.
        shared_memory: whether devices are given the guest's memory as a file to map. Without, every access of a
            device to memory is a message to QEMU.
        kernel: the kernel to boot; without one, the firmware looks for a disk.
        initrd: its initial file system.
        append: options for the kernel, besides those `kernel_append` gives.
        devices: devices in order: vfio-user devices, or ``-device`` arguments as text or as properties.
        root_ports: names of empty PCI Express root ports, for devices to be plugged into (q35 and virt).
        iommu: whether there is an Intel IOMMU (q35 alone).
        console: the character device of the first serial port, as ``-chardev`` takes it without its id.
        channel: that of the second serial port, where commands go; none when None.
        qmp: that of the machine protocol; none when None.
        reboot: whether a reboot of the guest starts it again; otherwise QEMU exits.
        incoming: a file with a saved machine to continue from.
        extra: further arguments, at the end.
    """

    executable: Path | str = "qemu-system-x86_64"
    machine: str = "q35"
    accelerator: str = "tcg"
    cpu: str | None = None
    memory: int = 256 * MiB
    shared_memory: bool = True
    kernel: Path | None = None
    initrd: Path | None = None
    append: tuple[str, ...] = ()
    devices: tuple[VfioUserDevice | Mapping[str, object] | str, ...] = ()
    root_ports: tuple[str, ...] = ()
    iommu: bool = False
    console: str = "stdio"
    channel: str | None = None
    qmp: str | None = None
    reboot: bool = False
    incoming: Path | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.machine not in _MACHINES:
            raise ValueError(f"machine {self.machine!r} is not one of {', '.join(_MACHINES)}")
        if self.iommu and self.machine != "q35":
            raise ValueError(f"machine {self.machine!r} has no Intel IOMMU: use q35 with iommu=True")
        if self.root_ports and self.machine == "pc":
            raise ValueError("machine 'pc' has no PCI Express: use q35 with root_ports")

    @property
    def architecture(self) -> Architecture:
        """The architecture of the guest."""
        return ARCHITECTURES[_MACHINES[self.machine]]

    @property
    def kernel_command_line(self) -> str:
        """What the kernel is told."""
        extra = [*(["intel_iommu=on"] if self.iommu else []), *self.append]
        if self.reboot:
            # A panic must end the run, not start the guest again: it stays where it is and the console tells.
            extra.insert(0, "panic=0")
        return kernel_append(self.architecture, channel=self.channel is not None, extra=extra)

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments, the executable left out."""
        machine = self.machine
        if self.iommu and self.accelerator == "kvm":
            machine += ",kernel-irqchip=split"  # interrupt remapping needs the I/O APIC in QEMU
        arguments = ["-nodefaults", "-nographic", "-accel", self.accelerator, "-machine", machine]
        arguments += ["-cpu", self.cpu or ("host" if self.accelerator == "kvm" else self.architecture.cpu)]
        arguments += ["-m", format_size(self.memory)]
        if self.shared_memory:
            arguments += _shared_memory(self.memory)
        if self.kernel is not None:
            arguments += ["-kernel", str(self.kernel), "-append", self.kernel_command_line]
        if self.initrd is not None:
            arguments += ["-initrd", str(self.initrd)]
        arguments += ["-chardev", _chardev(self.console, "console"), "-serial", "chardev:console"]
        if "mux=on" in self.console:
            arguments += ["-mon", "chardev=console,mode=readline"]
        if self.channel is not None:
            arguments += ["-chardev", _chardev(self.channel, "channel"), "-serial", "chardev:channel"]
        if self.qmp is not None:
            arguments += ["-chardev", _chardev(self.qmp, "qmp"), "-mon", "chardev=qmp,mode=control"]
        if not self.reboot:
            arguments.append("-no-reboot")
        if self.iommu:
            # Before the devices it is to translate for. A device outside QEMU is told of every map (caching-mode).
            arguments += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]
        for number, port in enumerate(self.root_ports, start=1):
            arguments += ["-device", f"pcie-root-port,id={port},chassis={number},slot={number}"]
        for device in self.devices:
            arguments += ["-device", _device(device)]
        if self.incoming is not None:
            arguments += ["-incoming", f"file:{self.incoming}"]
        return [*arguments, *self.extra]

    def to_argv(self) -> list[str]:
        """The whole command, executable first."""
        return [str(self.executable), *self.arguments]

    def __str__(self) -> str:
        """The command as one would paste it into a shell."""
        return shell_lines(self.to_argv())


def qemu_arguments_for(socket: Path | str, memory: int = GiB) -> list[str]:
    """The arguments that plug a device into any QEMU command line: memory it can map, and the device.

    Args:
        socket: the UNIX socket the device is served on.
        memory: bytes; the same as the ``-m`` of that command line.
    """
    return [*_shared_memory(memory), "-device", _device(VfioUserDevice(socket))]


def shell_lines(argv: Sequence[str]) -> str:
    """Writes arguments as a shell command, one option with its value a line."""
    lines: list[list[str]] = []
    for argument in argv:
        if not lines or argument.startswith("-"):
            lines.append([])
        lines[-1].append(shlex.quote(argument))
    return " \\\n  ".join(" ".join(line) for line in lines)


def _shared_memory(size: int) -> list[str]:
    backend = f"memory-backend-memfd,id=ram,size={format_size(size)},share=on"
    return ["-object", backend, "-machine", "memory-backend=ram"]


def _chardev(backend: str, name: str) -> str:
    kind, comma, options = backend.partition(",")
    return f"{kind},id={name}{comma}{options}"


def _device(device: VfioUserDevice | Mapping[str, object] | str) -> str:
    if isinstance(device, str):
        return device
    properties = device.to_properties() if isinstance(device, VfioUserDevice) else dict(device)
    return json.dumps(properties, separators=(",", ":"))
