from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from vfio_user.vm.architecture import ARCHITECTURES
from vfio_user.vm.qemu import (
    GiB,
    MiB,
    QemuCommand,
    VfioUserDevice,
    format_size,
    kernel_append,
    qemu_arguments_for,
    shell_lines,
)

_OPTIONS = "quiet cryptomgr.notests rodata=off noreplace-smp no_timer_check tsc=reliable"


def test_the_whole_command() -> None:
    command = QemuCommand(
        executable="/opt/qemu",
        machine="q35",
        memory=512 * MiB,
        kernel=Path("/k"),
        initrd=Path("/i"),
        append=("debug",),
        devices=(VfioUserDevice("/s", id="v", bus="rp0"), "pci-testdev", {"driver": "edu"}),
        root_ports=("rp0", "rp1"),
        iommu=True,
        console="socket,fd=3",
        channel="socket,fd=4",
        qmp="socket,fd=5",
        incoming=Path("/state"),
        extra=("-trace", "vfio_user_*"),
    )
    append = f"console=ttyS0 panic=-1 {_OPTIONS} vfio_user.channel=ttyS1 intel_iommu=on debug"
    # fmt: off
    assert command.to_argv() == [
        "/opt/qemu", "-nodefaults", "-nographic", "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", "512M",
        "-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-machine", "memory-backend=ram",
        "-kernel", "/k", "-append", append, "-initrd", "/i",
        "-chardev", "socket,id=console,fd=3", "-serial", "chardev:console",
        "-chardev", "socket,id=channel,fd=4", "-serial", "chardev:channel",
        "-chardev", "socket,id=qmp,fd=5", "-mon", "chardev=qmp,mode=control",
        "-no-reboot",
        "-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on",
        "-device", "pcie-root-port,id=rp0,chassis=1,slot=1",
        "-device", "pcie-root-port,id=rp1,chassis=2,slot=2",
        "-device", '{"driver":"vfio-user-pci","id":"v","bus":"rp0","socket":{"type":"unix","path":"/s"}}',
        "-device", "pci-testdev",
        "-device", '{"driver":"edu"}',
        "-incoming", "file:/state",
        "-trace", "vfio_user_*",
    ]
    # fmt: on


def test_the_least_command() -> None:
    assert QemuCommand(machine="pc", shared_memory=False, console="stdio,mux=on").to_argv() == [
        "qemu-system-x86_64",
        "-nodefaults",
        "-nographic",
        "-accel",
        "tcg",
        "-machine",
        "pc",
        "-cpu",
        "max",
        "-m",
        "256M",
        "-chardev",
        "stdio,id=console,mux=on",
        "-serial",
        "chardev:console",
        "-mon",
        "chardev=console,mode=readline",
        "-no-reboot",
    ]


def test_console_without_options() -> None:
    assert "stdio,id=console" in QemuCommand().to_argv()


def test_reboot_keeps_the_machine_but_a_panic_stays() -> None:
    command = QemuCommand(kernel=Path("/k"), reboot=True)
    assert "-no-reboot" not in command.to_argv()
    # Of two, the kernel takes the later: it stays in its panic, where `-no-reboot` would have ended QEMU.
    assert command.kernel_command_line.split().index("panic=0") > command.kernel_command_line.split().index("panic=-1")


def test_kvm() -> None:
    assert QemuCommand(accelerator="kvm").to_argv()[3:9] == ["-accel", "kvm", "-machine", "q35", "-cpu", "host"]
    assert "q35,kernel-irqchip=split" in QemuCommand(accelerator="kvm", iommu=True).to_argv()


def test_virt() -> None:
    command = QemuCommand(machine="virt", channel="null")
    assert command.kernel_command_line == (
        "console=ttyAMA0 panic=-1 quiet cryptomgr.notests rodata=off vfio_user.channel=ttyAMA1"
    )
    assert "cortex-a72" in command.to_argv()


def test_append_without_channel() -> None:
    assert kernel_append(ARCHITECTURES["x86_64"], extra=["a"]) == f"console=ttyS0 panic=-1 {_OPTIONS} a"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ({"machine": "microvm"}, "'microvm' is not one of pc, q35, virt"),
        ({"machine": "pc", "iommu": True}, "'pc' has no Intel IOMMU: use q35"),
        ({"machine": "pc", "root_ports": ("a",)}, "'pc' has no PCI Express: use q35"),
    ],
)
def test_impossible_machines(command: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        QemuCommand(**command)  # type: ignore[arg-type]


def test_device_properties() -> None:
    device = VfioUserDevice(
        Path("/a b.sock"), addr="6.0", msg_timeout=100, class_code=0xFF0000, properties={"x-no-posted-writes": True}
    )
    assert device.to_properties() == {
        "driver": "vfio-user-pci",
        "addr": "6.0",
        "x-msg-timeout": 100,
        "x-pci-class-code": 0xFF0000,
        "socket": {"type": "unix", "path": "/a b.sock"},
        "x-no-posted-writes": True,
    }
    # QEMU reads what we write: the last argument is JSON of exactly these properties.
    assert json.loads(QemuCommand(devices=(device,)).to_argv()[-1]) == device.to_properties()


@pytest.mark.parametrize(("size", "text"), [(GiB, "1G"), (1536 * MiB, "1536M"), (4096, "4096"), (0, "0")])
def test_size(size: int, text: str) -> None:
    assert format_size(size) == text


def test_arguments_to_paste() -> None:
    arguments = qemu_arguments_for("/tmp/edu.sock")
    text = shell_lines(arguments)
    assert text == (
        "-object memory-backend-memfd,id=ram,size=1G,share=on \\\n"
        "  -machine memory-backend=ram \\\n"
        '  -device \'{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/edu.sock"}}\''
    )
    assert shlex.split(text.replace("\\\n", "")) == arguments
    assert "size=64M" in qemu_arguments_for("/s", memory=64 * MiB)[1]


def test_command_as_text() -> None:
    command = QemuCommand(executable="/a b/qemu")
    assert shlex.split(str(command).replace("\\\n", "")) == command.to_argv()
    assert str(command).startswith("'/a b/qemu' \\\n  -nodefaults \\\n  -nographic \\\n")
