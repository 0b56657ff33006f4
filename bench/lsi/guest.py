"""Measures the SCSI controller under Linux, next to QEMU's own ``-device lsi53c895a``, in one guest with the same jobs.

What a guest sees is mostly the guest: under TCG its driver takes longer than any controller. So the figures are ratios
to QEMU's controller, and say what it costs that the device is another process, written in Python.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from bench.peers import running
from vfio_user.vm import Guest, GuestKit, QemuCommand, VfioUserDevice, VirtualMachine, build_initramfs

__all__ = ["JOBS", "Bench", "Contender", "Job"]

_MIB = 1 << 20
_SIZE = 128 * _MIB

#: Seconds until the server has said what it counted.
_REPORT_TIMEOUT = 20.0


@dataclass(frozen=True)
class Contender:
    """A controller that is measured. Each works on a file of its own in the page cache.

    Attributes:
        name: in the table.
        vendor: what its disk says in INQUIRY.
        serve: the command that serves it, up to the socket's path; empty for QEMU's own.
        arguments: what follows.
    """

    name: str
    vendor: str
    serve: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """What fio does.

    Attributes:
        kind: as fio calls it.
        size: bytes of a command.
        depth: commands outstanding.
        target: the least ratio to QEMU's own; None for none.
    """

    kind: str
    size: int
    depth: int
    target: float | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.size >> 10} KiB QD{self.depth}"


JOBS = (
    Job("read", 128 << 10, 1, 0.8),
    Job("read", 1 << 20, 4, 0.8),
    Job("randread", 4096, 1, 0.8),
    Job("randread", 4096, 32, 0.8),
    Job("randwrite", 4096, 1),
    Job("randwrite", 4096, 32),
)

REFERENCE = Contender("QEMU's", "QEMU")


class Bench:
    """A running guest with both controllers.

    Args:
        guest: the guest.
        disks: the name of each contender's disk there.
        server: the process of the one that is ours.
        report: what that writes to standard error.
    """

    def __init__(self, guest: Guest, disks: dict[Contender, str], server: Popen[bytes], report: Path) -> None:
        self.guest = guest
        self.disks = disks
        self._server = server
        self._report = report

    @classmethod
    @contextmanager
    def started(cls, ours: Contender, cpu: int | None) -> Iterator[Bench]:
        """Boots it.

        Args:
            ours: what is measured beside QEMU's own.
            cpu: the one the server has, if it is to have one of its own; QEMU has all.

        Raises:
            VmUnavailableError: no guest can be made here.
        """
        kit = GuestKit.provision()
        initrd = build_initramfs(kit, load=["sd_mod", "sym53c8xx settle=0"], packages=["fio"])
        with tempfile.TemporaryDirectory(prefix="vfio-user-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            files = {contender: folder / f"{contender.vendor}.img" for contender in (REFERENCE, ours)}
            for file in files.values():
                file.write_bytes(os.urandom(_MIB) * (_SIZE // _MIB))
            socket, report = folder / "lsi.sock", folder / "report"
            arguments = [argument.format(file=files[ours]) for argument in ours.arguments]
            errors = stack.enter_context(report.open("wb"))
            server = stack.enter_context(running([*ours.serve, str(socket), *arguments], socket, cpu, stderr=errors))
            command = QemuCommand(
                kit.qemu.path,
                memory=768 * _MIB,
                kernel=kit.kernel,
                initrd=initrd,
                devices=(
                    "lsi53c895a,id=reference",
                    "scsi-hd,bus=reference.0,drive=reference",
                    VfioUserDevice(socket),
                ),
                extra=("-drive", f"if=none,id=reference,file={files[REFERENCE]},format=raw"),
            )
            guest = stack.enter_context(VirtualMachine(command)).guest
            guest.wait_until("[ $(ls -d /sys/block/sd* | wc -l) = 2 ]")
            disks = {contender: _find(guest, contender.vendor) for contender in files}
            yield cls(guest, disks, server, report)

    def rate(self, contender: Contender, job: Job, seconds: float) -> float:
        """Commands a second."""
        return self.run(contender, job, seconds)[0]

    def run(self, contender: Contender, job: Job, seconds: float, ramp: float = 0.3) -> tuple[float, int]:
        """Commands a second, and how many there were, those before fio looked at its clock included."""
        told = self.guest.run(
            f"fio --name=job --filename={self.disks[contender]} --direct=1 --ioengine=libaio --thread --rw={job.kind} "
            f"--bs={job.size} --iodepth={job.depth} --time_based --runtime={seconds:g} --ramp_time={ramp:g} "
            f"--output-format=json",
            timeout=60 + 10 * seconds,
        ).stdout
        [result] = json.loads(told[told.index("{") :])["jobs"]
        about = result["write" if "write" in job.kind else "read"]
        return float(about["iops"]), int(about["total_ios"])

    def compare(self, jobs: Sequence[Job], seconds: float, runs: int) -> None:
        """Prints the table, line by line."""
        print(f"{'in a guest, commands/s':24}", *(f"{c.name:>14}" for c in self.disks), f"{'ratio':>7}  of each run")
        for job in jobs:
            rates: list[list[float]] = [[] for _ in self.disks]
            for _ in range(runs):  # in turns: what else the machine does hits all of them
                for contender, found in zip(self.disks, rates, strict=True):
                    found.append(self.rate(contender, job, seconds))
            theirs, mine = rates
            ratio = max(mine) / max(theirs)
            mark = "" if job.target is None else f"  {'reached' if ratio >= job.target else 'missed'} ({job.target})"
            each = " ".join(f"{mine / theirs:.2f}" for theirs, mine in zip(*rates, strict=True))
            print(f"{job!s:24} {max(theirs):14,.0f} {max(mine):14,.0f} {ratio:7.2f}  {each}{mark}", flush=True)

    def count(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prints what a command costs in messages and interrupts, by what they are."""
        [ours] = (contender for contender in self.disks if contender.serve)
        for job in jobs:
            self.reported()
            before = self._interrupts()
            commands = self.run(ours, job, seconds, ramp=0)[1]
            interrupts = self._interrupts() - before
            lines = [line.split(" ", 2)[1:] for line in self.reported() if line.startswith("COUNT ")]
            print(f"{job}: {commands} commands, for each of them\n{interrupts / commands:8.2f} interrupts in the guest")
            for number, what in lines:
                if int(number) / commands >= 0.005:
                    print(f"{int(number) / commands:8.2f} {what}", flush=True)

    def profile(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prints where the server spends its time."""
        [ours] = (contender for contender in self.disks if contender.serve)
        for job in jobs:
            self.reported()
            commands = self.run(ours, job, seconds, ramp=0)[1]
            print(f"{job}: {commands} commands", *self.reported(), sep="\n", flush=True)

    def reported(self) -> list[str]:
        """What the server found since this was last called."""
        begin = self._report.stat().st_size
        self._server.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _REPORT_TIMEOUT
        while True:
            lines = self._report.read_bytes()[begin:].decode(errors="replace").splitlines()
            if lines and lines[-1] == "END":
                return lines[:-1]
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server said nothing in {_REPORT_TIMEOUT:.0f} s: {lines}")
            time.sleep(0.01)

    def _interrupts(self) -> int:
        """Interrupts of lines the driver has. Both controllers' lines are counted; the other one is idle."""
        return sum(number for name, number in self.guest.interrupts().items() if "sym53c8xx" in name)


def _find(guest: Guest, vendor: str) -> str:
    return f"/dev/{guest.run(f'grep -l {vendor} /sys/block/sd*/device/vendor | cut -d / -f 4')}"


def served(image: str, *, own: str | None = None, options: Sequence[str] = ()) -> Contender:
    """Our controller: as ``serve`` serves it, or by this bench's own server, which counts or profiles.

    Args:
        image: for the server, ``{file}`` being its file.
        own: what this bench's own server is to do.
        options: further ones of ``vfio-user serve``.
    """
    if own is None:
        serve = (sys.executable, "-m", "vfio_user", "serve", "lsi53c895a", *options, "--socket-path")
        return Contender("this one", "vfiouser", serve, ("--set", f"disk0={image}"))
    return Contender("this one", "vfiouser", (sys.executable, "-m", "bench.lsi.serve"), (image, own))
