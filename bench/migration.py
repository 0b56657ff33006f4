"""How long a device stands still while it moves between two processes, by either protocol, at rest and at work.

The device has 1 MiB of memory of its own, filled with random bytes, and 64 MiB of the guest's memory beside it, which
is copied too. At work, it writes both without pause. "All at once" is without pre-copy, and without the guest's memory.
"""

from __future__ import annotations

import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.peers import ROOT
from bench.report import Figure
from vfio_user import MemoryBar, PciDevice, Register, RegisterBlock, Server, run_servers
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.live_migration import MigrationLimits, MigrationReport, migrate

__all__ = ["measure"]

#: Milliseconds the device stands still, at most: what QEMU's users are used to is 300, and a network device is missed
#: after 100.
DOWNTIME_TARGET = 50.0

STATE_SIZE = 1 << 20
MEMORY_SIZE = 64 << 20
_PAGE = 4096


class Registers(RegisterBlock):
    """One that says whether to work."""

    work = Register(0x00)


class Worker(PciDevice):
    """Writes the guest's memory and its own."""

    vendor_id, device_id, class_code = 0x1234, 0xBE7C, 0xFF0000
    migratable = True
    enforce_bus_master = False
    saved_attributes = ("number",)
    bar0 = MemoryBar(size=_PAGE, registers=Registers)
    bar2 = MemoryBar(size=STATE_SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @bar0.on_write("work")
    def begin(self, work: int) -> None:
        if work:
            self.call_soon(self.go_on)

    def go_on(self) -> None:
        if self.bar0.work:
            self.number += 1
            page = self.number.to_bytes(8, "little") * (_PAGE // 8)
            self.dma.write(self.number * _PAGE % MEMORY_SIZE, page)
            self.bar2.write_bytes(self.number * _PAGE % STATE_SIZE, page)
            self.call_later(0.0005, self.go_on)

    def on_loaded(self) -> None:
        self.begin(self.bar0.work)


def measure(rounds: int, say: Callable[[str], None]) -> tuple[list[Figure], dict[str, object]]:
    """Moves a device again and again.

    Returns:
        Figures, and all samples.
    """
    say(f"migration of {STATE_SIZE >> 20} MiB of state and {MEMORY_SIZE >> 20} MiB of memory: {rounds} rounds")
    figures: list[Figure] = []
    samples: dict[str, object] = {}
    for protocol in ("v2", "v1"):
        for load in ("at rest", "at work", "all at once"):
            reports = [_migrate(protocol, load) for _ in range(rounds)]
            times = [report.downtime * 1e3 for report in reports]
            final = statistics.median(report.final_state_bytes + report.final_memory_bytes for report in reports)
            note = f"worst {max(times):.1f} ms; {final / 1024:.0f} KiB moved in it, after {reports[0].rounds} rounds"
            figures.append(
                Figure(f"downtime by {protocol}, {load}", statistics.median(times), "ms", DOWNTIME_TARGET, note)
            )
            samples[f"{protocol}, {load}"] = {
                "downtime_ms": times,
                "all_ms": [report.seconds * 1e3 for report in reports],
            }
    return figures, {"migration": samples}


def _migrate(protocol: str, load: str) -> MigrationReport:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = stack.enter_context(_served(folder / "source", protocol))
        destination = stack.enter_context(_served(folder / "destination", protocol))
        source.region(2).write_bytes(0, random.Random(0).randbytes(STATE_SIZE))
        if load == "all at once":
            return migrate(source, destination, limits=MigrationLimits(rounds=0))
        for client in (source, destination):
            memory = stack.enter_context(GuestMemory(MEMORY_SIZE))
            client.dma_map(memory, 0)
            client.region(0)  # a device that is stopped does not describe itself
        memory.view[:] = bytes(MEMORY_SIZE)  # a guest's memory is there, not to be made in the middle of a migration
        if load == "at work":
            source.region(0).write32(0, 1)
            time.sleep(0.1)
        report = migrate(source, destination)
        for client in (source, destination):
            client.region(0).write32(0, 0)
        return report


@contextmanager
def _served(address: Path, protocol: str) -> Iterator[VfioUserClient]:
    command = [sys.executable, "-m", "bench.migration", str(address), protocol]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            with VfioUserClient.connect(address) as client:
                yield client
        finally:
            server.terminate()


def _serve(address: str, protocol: str) -> None:
    logging.getLogger("vfio_user").setLevel(logging.ERROR)  # the client asks for either protocol: one is refused
    server = Server(Worker(), address, migration="v1" if protocol == "v1" else "v2")
    print("listening", flush=True)
    run_servers(server)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
