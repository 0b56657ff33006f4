"""The controller moves between servers with commands under way on two disks, and none is lost, or done twice.

SCRIPTS run as a driver's do, with tagged commands that disconnect and reselect; the servers share the images.
"""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.live_migration import LiveMigration, MigrationLimits, MigrationProgress, MigrationStep, migrate
from vfio_user.client.pci_function import PciFunction
from vfio_user.drivers.lsi53c8xx import ScsiError, ScsiInitiator, ScsiRequest
from vfio_user.errors import MigrationError
from vfio_user.hardware.scsi.codes import Status
from vfio_user.protocol.migration import MigrationState

DISKS = (0, 5)
BLOCKS = 8192
BLOCK = 512
MOST_BLOCKS = 32
DEPTH = 63

#: Moves with commands under way there are to be, and moves there may be: a client that is not run between the signal
#: and the stop finds all commands ended.
MOVES, MOST_MOVES = 3, 12

#: So many rounds, whatever the device writes.
ROUNDS = MigrationLimits(downtime=1e-9, rounds=3)


@contextlib.contextmanager
def server(folder: Path, name: str, migration: str) -> Iterator[VfioUserClient]:
    """A controller in a process of its own: a client of it."""
    path = folder / name
    images = ", ".join(f"disk{number}={str(folder / f'disk{number}')!r}" for number in DISKS)
    program = (
        "from vfio_user import Server, run_servers; from vfio_user.devices.lsi53c8xx.controller import Lsi53c895a\n"
        f"server = Server(Lsi53c895a({images}), {str(path)!r}, migration={migration!r})\n"
        "print(flush=True); run_servers(server)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            with VfioUserClient.connect(path, timeout=10, memory_size=2 << 20) as client:
                yield client
        finally:
            process.kill()


class Load:
    """Keeps reads and writes of both disks under way, and knows what is on them.

    Attributes:
        scsi: the driver.
        ended: commands that have.
    """

    def __init__(self, client: VfioUserClient) -> None:
        self.scsi = ScsiInitiator(PciFunction(client), tags=DEPTH, transfer_size=MOST_BLOCKS * BLOCK)
        self.ended = 0
        self.contents = {disk: bytearray(BLOCKS * BLOCK) for disk in DISKS}
        self._random = random.Random(53)
        self._under_way: dict[ScsiRequest, range] = {}
        for disk in DISKS:
            with pytest.raises(ScsiError, match="UNIT_ATTENTION"):
                self.scsi.execute(disk, bytes(6))

    def fill(self, *, signal: bool = True) -> None:
        """Begins commands until there are no tags left, none on blocks of another."""
        while self.scsi.outstanding < DEPTH:
            disk, count = self._random.choice(DISKS), self._random.randint(1, MOST_BLOCKS)
            first = self._random.randrange(BLOCKS - count)
            blocks = range(first, first + count)
            if any(other.target == disk and set(blocks) & set(taken) for other, taken in self._under_way.items()):
                continue
            if self._random.random() < 0.5:
                request = self.scsi.submit(
                    disk, struct.pack(">BxIxHx", 0x28, first, count), receive=count * BLOCK, signal=signal
                )
            else:
                data = self._random.randbytes(count * BLOCK)
                self.contents[disk][first * BLOCK : (first + count) * BLOCK] = data
                request = self.scsi.submit(disk, struct.pack(">BxIxHx", 0x2A, first, count), data=data, signal=signal)
            self._under_way[request] = blocks

    def work(self, commands: int) -> None:
        """Goes on until so many more have ended."""
        end = self.ended + commands
        while self.ended < end:
            self.fill()
            self._take(self.scsi.process(10.0))

    def burst(self) -> None:
        """Begins as many commands as there are tags, all at the same moment."""
        self.finish()
        self.fill(signal=False)
        self.scsi.signal()

    def finish(self) -> None:
        """Waits for what is under way."""
        while self.scsi.outstanding:
            self._take(self.scsi.process(10.0))
        assert not self._under_way

    def _take(self, requests: list[ScsiRequest]) -> None:
        for request in requests:
            blocks = self._under_way.pop(request)
            assert request.status is Status.GOOD
            if request.receive:
                expected = self.contents[request.target][blocks.start * BLOCK : blocks.stop * BLOCK]
                assert request.data == expected, f"{request.target}: {blocks}"
            self.ended += 1

    def dirtied(self) -> list[tuple[int, int]]:
        """All of its memory, as if it had written that since it was last asked."""
        return [(mapping.iova, mapping.size) for mapping in self.scsi.client.space]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for disk in DISKS:
        (tmp_path / f"disk{disk}").write_bytes(bytes(BLOCKS * BLOCK))
    return tmp_path


def check_images(folder: Path, load: Load) -> None:
    for disk in DISKS:
        assert (folder / f"disk{disk}").read_bytes() == load.contents[disk], f"disk {disk}"


@pytest.mark.parametrize("migration", ["v1", "v2"])
@pytest.mark.parametrize("shared", [False, True], ids=["copied", "shared"])
def test_commands_under_way_move(folder: Path, migration: str, shared: bool) -> None:
    under_way: list[int] = []
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(server(folder, "0", migration))
        load = Load(client)
        load.work(100)
        while sum(map(bool, under_way)) < MOVES:
            assert len(under_way) < MOST_MOVES, under_way
            destination = stack.enter_context(server(folder, str(len(under_way) + 1), migration))
            if not shared:
                for mapping in client.space:
                    destination.dma_map(stack.enter_context(GuestMemory(mapping.size)), mapping.iova)

            rounds: set[int] = set()

            def step(
                progress: MigrationProgress, destination: VfioUserClient = destination, rounds: set[int] = rounds
            ) -> None:
                if progress.step is MigrationStep.PRE_COPY:
                    # Rounds of writing memory again; it is told of many times in each.
                    if progress.round not in rounds:
                        rounds.add(progress.round)
                        load.work(20)
                elif progress.step is MigrationStep.RESUME:
                    load.scsi.client = destination
                    # What is not in memory by now ends at the destination.
                    load._take(load.scsi.collect())
                    under_way.append(load.scsi.outstanding)

            migrate(client, destination, progress=step, pause=load.burst, dirtied=load.dirtied, limits=ROUNDS)
            client = destination
            load.scsi.moved_to(client)
            load.work(100)
        load.finish()
    check_images(folder, load)


STEPS = [step for step in MigrationStep if step != MigrationStep.DONE]


class Stop(Exception):
    """What a VMM may raise."""


@pytest.mark.parametrize("migration", ["v1", "v2"])
def test_called_off_at_every_step_the_source_goes_on(folder: Path, migration: str) -> None:
    with server(folder, "source", migration) as source, server(folder, "destination", migration) as destination:
        load = Load(source)
        load.work(50)
        for called_off in STEPS:

            def step(progress: MigrationProgress, at: MigrationStep = called_off) -> None:
                if progress.step == at:
                    raise Stop

            moving = LiveMigration(source, destination, progress=step, pause=load.burst)
            with pytest.raises(Stop):
                moving.run()
            assert source.migration.state == MigrationState.RUNNING
            load.work(50)
            if destination.connection.is_closed:
                break
        load.finish()
    check_images(folder, load)


@pytest.mark.parametrize("migration", ["v1", "v2"])
def test_a_destination_with_other_disks_is_refused_and_the_source_goes_on(
    folder: Path, migration: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    for disk in DISKS:
        (other / f"disk{disk}").write_bytes(bytes(BLOCKS * BLOCK // 2))
    with server(folder, "source", migration) as source, server(other, "destination", migration) as destination:
        load = Load(source)
        load.work(50)
        with pytest.raises(MigrationError, match="the source runs on"):
            migrate(source, destination, pause=load.burst)
        load.work(50)
        load.finish()
    check_images(folder, load)
