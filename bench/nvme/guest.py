"""Measures the NVMe controller under Linux, next to QEMU's own ``-device nvme``, in the same guest with the same jobs.

What a guest sees is mostly the guest: under TCG its driver takes longer than any controller. So the figures are ratios
to QEMU's controller, and say what it costs that the device is another process, written in Python.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.peers import running
from vfio_user.vm import Guest, GuestKit, QemuCommand, VfioUserDevice, VirtualMachine, build_initramfs

__all__ = ["measure_in_guest"]

_MIB = 1 << 20
_SIZE = 128 * _MIB


@dataclass(frozen=True)
class Contender:
    """A controller that is measured.

    Attributes:
        name: in the table.
        doorbells: of ours; empty for QEMU's own controller.
        image: of ours.
        options: of QEMU's own.
    """

    name: str
    doorbells: str = ""
    image: str = "file:{file}"
    options: str = ""


#: By serial number. The first is what the others are compared with. All work on files of their own in the page cache.
CONTENDERS = {
    "reference": Contender("QEMU's"),
    "ioeventfd": Contender("QEMU's, ioeventfd", options=",ioeventfd=on"),
    **{
        f"{doorbells}-{kind}": Contender(f"{doorbells}, {text}", doorbells, image)
        for kind, text, image in (("file", "file", "file:{file}"), ("map", "mapped file", "file:{file}?mapped=on"))
        for doorbells in ("trapped", "shadow", "mapped")
    },
}

#: What fio does: how, bytes of a command, commands outstanding.
JOBS = (
    ("randread", 4096, 1),
    ("randread", 4096, 32),
    ("randwrite", 4096, 1),
    ("randwrite", 4096, 32),
    ("read", 128 * 1024, 32),
)


def _rate(guest: Guest, disk: str, job: tuple[str, int, int], seconds: float) -> float:
    """Commands a second."""
    kind, size, depth = job
    told = guest.run(
        f"fio --name=job --filename={disk} --direct=1 --ioengine=libaio --thread --rw={kind} --bs={size} "
        f"--iodepth={depth} --time_based --runtime={seconds:g} --ramp_time=0.5 --output-format=json",
        timeout=60 + 10 * seconds,
    ).stdout
    [result] = json.loads(told[told.index("{") :])["jobs"]
    return float(result["write" if "write" in kind else "read"]["iops"])


def _find(guest: Guest, serial: str) -> str:
    folder = str(guest.run(f"dirname $(grep -slx '{serial} *' /sys/class/nvme/*/serial)"))
    return f"/dev/{folder.rsplit('/', 1)[-1]}n1"


def measure_in_guest(seconds: float, runs: int, cpu: int) -> None:
    """Prints the table.

    Args:
        seconds: of each run.
        runs: of each figure, of which the best counts.
        cpu: the one the servers have; QEMU has all.

    Raises:
        VmUnavailableError: no guest can be made here.
    """
    kit = GuestKit.provision()
    initrd = build_initramfs(kit, load=["nvme"], packages=["fio"])
    with tempfile.TemporaryDirectory(prefix="vfio-user-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        devices: list[VfioUserDevice | str] = []
        drives: list[str] = []
        for serial, contender in CONTENDERS.items():
            file, socket = folder / f"{serial}.img", folder / f"{serial}.sock"
            file.write_bytes(os.urandom(_MIB) * (_SIZE // _MIB))
            if not contender.doorbells:
                drives += ["-drive", f"if=none,id={serial},file={file},format=raw"]
                devices.append(f"nvme,serial={serial},drive={serial}{contender.options}")
                continue
            image = contender.image.format(file=file)
            command = [sys.executable, "-m", "vfio_user", "serve", "nvme", "--socket-path", str(socket)]
            for setting in (f"image={image}", f"serial={serial}", f"doorbells={contender.doorbells}"):
                command += ["--set", setting]
            stack.enter_context(running(command, socket, cpu))
            devices.append(VfioUserDevice(socket))
        command_line = QemuCommand(
            kit.qemu.path,
            memory=768 * _MIB,
            kernel=kit.kernel,
            initrd=initrd,
            devices=tuple(devices),
            extra=tuple(drives),
        )
        machine = stack.enter_context(VirtualMachine(command_line))
        guest = machine.guest
        guest.wait_until(f"[ $(ls /dev/nvme*n1 | wc -l) = {len(CONTENDERS)} ]")
        disks = [_find(guest, serial) for serial in CONTENDERS]
        print(f"\nin a guest, commands/s{'':7}", *(f"{contender.name:>22}" for contender in CONTENDERS.values()))
        worst = dict.fromkeys(CONTENDERS, 1e9)
        for job in JOBS:
            kind, size, depth = job
            rates = [0.0] * len(disks)
            for _ in range(runs):  # in turns: what else the machine does hits all of them
                for number, disk in enumerate(disks):
                    rates[number] = max(rates[number], _rate(guest, disk, job, seconds))
            for serial, rate in zip(CONTENDERS, rates, strict=True):
                worst[serial] = min(worst[serial], rate / rates[0])
            cells = [f"{rate:14,.0f} ({rate / rates[0]:5.2f})" for rate in rates]
            print(f"{kind:9} {size >> 10:4} KiB QD{depth:<7}", *cells, flush=True)
        print(f"{'least ratio of all jobs':25}", *(f"{'':14} ({ratio:5.2f})" for ratio in worst.values()))
