"""Measures the SCSI controller under Linux, next to QEMU's own ``-device lsi53c895a``, in one guest with the same jobs.

What a guest sees is mostly the guest: under TCG its driver takes longer than any controller. So the figures are ratios
to QEMU's controller, and say what it costs that the device is another process, written in Python. What of that the
other process alone costs says a third controller in the guest, the *floor*: a server in C that answers the same
messages and whose device takes next to no time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.peers import running
from vfio_user.vm import Guest, GuestKit, QemuCommand, VfioUserDevice, VirtualMachine, build_initramfs

__all__ = ["JOBS", "Bench", "Contender", "Job"]

_MIB = 1 << 20
_SIZE = 128 * _MIB

_HERE = Path(__file__).resolve().parent

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
        is_ours: it is the one that is measured; the others are what it is compared with.
    """

    name: str
    vendor: str
    serve: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    is_ours: bool = False


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


@dataclass(frozen=True)
class _Server:
    """A server that runs.

    Attributes:
        socket: where.
        process: the process.
        report: what it writes to standard error.
    """

    socket: Path
    process: subprocess.Popen[bytes]
    report: Path

    @classmethod
    @contextmanager
    def started(cls, contender: Contender, folder: Path, file: Path, cpu: int | None) -> Iterator[_Server]:
        socket, report = folder / f"{contender.vendor}.sock", folder / f"{contender.vendor}.report"
        arguments = [argument.format(file=file) for argument in contender.arguments]
        with (
            report.open("wb") as errors,
            running([*contender.serve, str(socket), *arguments], socket, cpu, stderr=errors) as process,
        ):
            yield cls(socket, process, report)

    def reported(self) -> list[str]:
        """What the server found since this was last called."""
        begin = self.report.stat().st_size
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + _REPORT_TIMEOUT
        while True:
            lines = self.report.read_bytes()[begin:].decode(errors="replace").splitlines()
            if lines and lines[-1] == "END":
                return lines[:-1]
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server said nothing in {_REPORT_TIMEOUT:.0f} s: {lines}")
            time.sleep(0.01)


class Bench:
    """A running guest with all controllers.

    Args:
        guest: the guest.
        disks: the name of each contender's disk there, in the order of the table.
        servers: the server of each that has one.
    """

    def __init__(self, guest: Guest, disks: dict[Contender, str], servers: dict[Contender, _Server]) -> None:
        self.guest = guest
        self.disks = disks
        self._servers = servers

    @classmethod
    @contextmanager
    def started(cls, ours: Contender, cpu: int | None) -> Iterator[Bench]:
        """Boots it.

        Args:
            ours: what is measured beside QEMU's own, and the floor.
            cpu: the one the servers have, if they are to have one of their own; QEMU has all.

        Raises:
            VmUnavailableError: no guest can be made here.
        """
        kit = GuestKit.provision()
        initrd = build_initramfs(kit, load=["sd_mod", "sym53c8xx settle=0"], packages=["fio"])
        with tempfile.TemporaryDirectory(prefix="vfio-user-bench-") as name, ExitStack() as stack:
            folder = Path(name)
            floor = compiled_floor(folder)
            contenders = [REFERENCE, *([] if floor is None else [floor]), ours]
            files = {contender: folder / f"{contender.vendor}.img" for contender in contenders}
            for file in files.values():
                file.write_bytes(os.urandom(_MIB) * (_SIZE // _MIB))
            servers = {
                contender: stack.enter_context(_Server.started(contender, folder, file, cpu))
                for contender, file in files.items()
                if contender.serve
            }
            command = QemuCommand(
                kit.qemu.path,
                memory=768 * _MIB,
                kernel=kit.kernel,
                initrd=initrd,
                devices=(
                    "lsi53c895a,id=reference",
                    "scsi-hd,bus=reference.0,drive=reference",
                    *(VfioUserDevice(server.socket) for server in servers.values()),
                ),
                extra=("-drive", f"if=none,id=reference,file={files[REFERENCE]},format=raw"),
            )
            guest = stack.enter_context(VirtualMachine(command)).guest
            guest.wait_until(f"[ $(ls -d /sys/block/sd* | wc -l) = {len(files)} ]")
            disks = {contender: _find(guest, contender.vendor) for contender in files}
            yield cls(guest, disks, servers)

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
        others = [contender for contender in self.disks if contender != REFERENCE]
        names = "".join(f"{contender.name:>9}" for contender in self.disks)
        ratios = "".join(f"{contender.name:>9}" for contender in others)
        print(f"{'':20}{'commands/s':>{len(names)}}" + "ratio to QEMU's".rjust(len(ratios)))
        print(f"{'in a guest':20}{names}{ratios}  of each run")
        for job in jobs:
            rates: dict[Contender, list[float]] = {contender: [] for contender in self.disks}
            for _ in range(runs):  # in turns: what else the machine does hits all of them
                for contender, found in rates.items():
                    found.append(self.rate(contender, job, seconds))
            best = {contender: max(found) for contender, found in rates.items()}
            line = f"{job!s:20}" + "".join(f"{rate:9,.0f}" for rate in best.values())
            line += "".join(f"{best[contender] / best[REFERENCE]:9.2f}" for contender in others)
            for contender in others:
                if contender.is_ours:
                    pairs = zip(rates[REFERENCE], rates[contender], strict=True)
                    line += "  " + " ".join(f"{mine / theirs:.2f}" for theirs, mine in pairs)
                    if job.target is not None:
                        reached = best[contender] / best[REFERENCE] >= job.target
                        line += f"  {'reached' if reached else 'missed'} ({job.target})"
            print(line, flush=True)

    def count(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prints what a command costs in messages and interrupts, by what they are."""
        for job in jobs:
            for contender, server in self._servers.items():
                server.reported()
                before = self._interrupts()
                commands = self.run(contender, job, seconds, ramp=0)[1]
                interrupts = self._interrupts() - before
                lines = [line.split(" ", 2)[1:] for line in server.reported() if line.startswith("COUNT ")]
                print(f"{job}, {contender.name}: {commands} commands, for each of them")
                print(f"{interrupts / commands:8.2f} interrupts in the guest")
                for number, what in sorted(lines, key=lambda line: -int(line[0])):
                    if int(number) / commands >= 0.005:
                        print(f"{int(number) / commands:8.2f} {what}", flush=True)

    def profile(self, jobs: Sequence[Job], seconds: float) -> None:
        """Prints where our server spends its time."""
        [(ours, server)] = ((contender, server) for contender, server in self._servers.items() if contender.is_ours)
        for job in jobs:
            server.reported()
            commands = self.run(ours, job, seconds, ramp=0)[1]
            print(f"{job}: {commands} commands", *server.reported(), sep="\n", flush=True)

    def _interrupts(self) -> int:
        """Interrupts of lines the driver has. All controllers' lines are counted; the other ones are idle."""
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
        return Contender("this one", "vfiouser", serve, ("--set", f"disk0={image}"), is_ours=True)
    return Contender("this one", "vfiouser", (sys.executable, "-m", "bench.lsi.serve"), (image, own), is_ours=True)


def compiled_floor(folder: Path) -> Contender | None:
    """The floor, compiled into a folder; None without a compiler."""
    compiler = next(
        (path for name in (os.environ.get("CC", "cc"), "gcc", "clang") if (path := shutil.which(name))), None
    )
    if compiler is None:
        print("no C compiler (cc, gcc, clang): there is no floor to compare with")
        return None
    sources = [str(_HERE / name) for name in ("floor.c", "floor_chip.c", "floor_disk.c")]
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(folder / "floor"), *sources], check=True)
    return Contender("C floor", "floor", (str(folder / "floor"),), ("{file}",))
