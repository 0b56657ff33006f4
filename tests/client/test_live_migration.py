"""Live migration: a device that never rests moves between two processes, and nothing of it is lost, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.traveller import MEMORY_IOVA, MEMORY_SIZE, PAGE, STATE_SIZE, Guest, Traveller
from vfio_user.client.device import VfioUserClient
from vfio_user.client.guest_memory import GuestMemory
from vfio_user.client.live_migration import (
    LiveMigration,
    MigrationLimits,
    MigrationProgress,
    MigrationStep,
    migrate,
)
from vfio_user.devices.edu import Edu
from vfio_user.errors import CommandError, CommandTimeoutError, ConnectionClosedError, MigrationError, StateError
from vfio_user.protocol.constants import IrqIndex
from vfio_user.protocol.migration import MigrationState
from vfio_user.server.device import Device
from vfio_user.server.server import Server

pytestmark = pytest.mark.usefixtures("forget_devices")

STEPS = [step for step in MigrationStep if step != MigrationStep.DONE]

#: So many rounds, whatever the device writes.
ROUNDS = MigrationLimits(downtime=1e-9, rounds=3)


@contextlib.contextmanager
def process(folder: Path, name: str, migration: str = "v2") -> Iterator[tuple[VfioUserClient, int]]:
    """A Traveller in a process of its own: a client of it, and the process' id."""
    path = folder / name
    program = (
        "import sys; from tests.client.traveller import Traveller; from vfio_user import Server, run_servers\n"
        f"server = Server(Traveller(), {str(path)!r}, migration={migration!r})\n"
        "print(flush=True); run_servers(server)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"\n"
            with VfioUserClient.connect(path, timeout=5) as client:
                yield client, server.pid
        finally:
            server.kill()


@contextlib.contextmanager
def thread(folder: Path, name: str, device: Device, migration: str = "v2") -> Iterator[VfioUserClient]:
    """A device on a thread of this process, and a client of it."""
    server = Server(device, folder / name, migration=migration)  # type: ignore[arg-type]
    with server:
        server.start()
        with VfioUserClient.connect(folder / name) as client:
            yield client


@contextlib.contextmanager
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(MEMORY_SIZE) as memory:
        yield memory


def until(guest: Guest, entries: int) -> None:
    """Works until the device has written so many more entries."""
    end = guest.entries + entries
    while guest.entries < end:
        guest.work(1)


@pytest.mark.parametrize("migration", ["v1", "v2"])
@pytest.mark.parametrize("shared", [False, True], ids=["copied", "shared"])
def test_nothing_is_lost_between_two_processes(tmp_path: Path, migration: str, shared: bool) -> None:
    with (
        process(tmp_path, "source", migration) as (source, _),
        process(tmp_path, "destination", migration) as (destination, _),
        memory() as old,
        memory() as new,
    ):
        guest = Guest(source, old)
        guest.fill()
        until(guest, 100)
        if not shared:
            destination.dma_map(new, MEMORY_IOVA)
        steps: list[MigrationStep] = []

        def work(progress: MigrationProgress) -> None:
            steps.append(progress.step)
            if progress.step in (MigrationStep.PREPARE, MigrationStep.PRE_COPY):
                guest.work()

        report = migrate(source, destination, progress=work, pause=guest.work, dirtied=guest.dirtied, limits=ROUNDS)
        assert list(dict.fromkeys(steps)) == list(MigrationStep)
        guest.moved_to(destination, old if shared else new)
        entries = guest.check()
        assert entries > 100
        until(guest, 300)
        assert guest.check() >= entries + 300

        assert report.generation == int(migration[1])
        assert report.state_bytes > STATE_SIZE > report.final_state_bytes > 0
        assert 0 < report.downtime < report.seconds
        assert report.rounds == (1 if shared else 3)
        if shared:
            assert report.memory_bytes == 0
        else:
            assert report.memory_bytes > MEMORY_SIZE > report.final_memory_bytes > 0
        assert source.migration.state == MigrationState.STOP
        assert destination.migration.state == MigrationState.RUNNING


def test_it_moves_on_and_on(tmp_path: Path) -> None:
    # Each source's client is closed, with all descriptors it had, before the next move.
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(thread(tmp_path, "0", Traveller()))
        old = stack.enter_context(memory())
        guest = Guest(client, old)
        for number in range(1, 5):
            until(guest, 50)
            destination = stack.enter_context(thread(tmp_path, str(number), Traveller()))
            migrate(client, destination, pause=guest.work, dirtied=guest.dirtied)
            client.close()
            client = destination
            guest.moved_to(client, old)
        guest.check()


def test_memory_the_devices_reach_by_messages(tmp_path: Path) -> None:
    with (
        thread(tmp_path, "source", Traveller()) as source,
        thread(tmp_path, "destination", Traveller()) as destination,
        memory() as old,
        memory() as new,
    ):
        guest = Guest(source, old, shared=False)
        until(guest, 50)
        destination.dma_map(new, MEMORY_IOVA, shared=False)
        report = migrate(
            source,
            destination,
            pause=lambda: until(guest, 20),
            dirtied=guest.dirtied,
            limits=MigrationLimits(downtime=60),
        )
        # What this end wrote for the device was logged at this end.
        assert 0 < report.final_memory_bytes < MEMORY_SIZE
        guest.moved_to(destination, new)
        until(guest, 50)
        guest.check()


def test_it_goes_on_until_little_is_left(tmp_path: Path) -> None:
    with (
        thread(tmp_path, "source", Traveller()) as source,
        thread(tmp_path, "destination", Traveller()) as destination,
        memory() as old,
        memory() as new,
    ):
        source.dma_map(old, MEMORY_IOVA)
        destination.dma_map(new, MEMORY_IOVA)
        written = [MEMORY_SIZE, MEMORY_SIZE, MEMORY_SIZE, PAGE]
        report = migrate(
            source,
            destination,
            dirtied=lambda: [(MEMORY_IOVA - PAGE, PAGE + written.pop(0))] if written else [],
            limits=MigrationLimits(downtime=1e-5),
        )
        # Three rounds in which everything was written again; after the fourth, one page.
        assert 4 <= report.rounds <= 30
        assert report.memory_bytes == 4 * MEMORY_SIZE + PAGE
        assert report.final_memory_bytes == 0


@pytest.mark.parametrize("rounds", [0, 5])
def test_all_at_once(tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Because it is asked for; or because the device does not log what it writes.
    def refuse(_page_size: int = 0) -> None:
        raise CommandError(errno.EINVAL, 16, "DEVICE_FEATURE SET of DMA_LOGGING_START")

    with (
        thread(tmp_path, "source", Traveller()) as source,
        thread(tmp_path, "destination", Traveller()) as destination,
        memory() as old,
        memory() as new,
    ):
        guest = Guest(source, old)
        until(guest, 50)
        destination.dma_map(new, MEMORY_IOVA)
        monkeypatch.setattr(source.migration, "start_log", refuse)
        report = migrate(source, destination, pause=guest.work, limits=MigrationLimits(rounds=rounds))
        assert report.memory_bytes == report.final_memory_bytes == MEMORY_SIZE
        assert (report.rounds, report.state_bytes == report.final_state_bytes) == (min(rounds, 1), not rounds)
        guest.moved_to(destination, new)
        until(guest, 50)
        guest.check()


def test_what_waits_goes_along(tmp_path: Path) -> None:
    # Vector 1 has no eventfd when the device moves, vector 2 was counted and not asked for.
    with (
        thread(tmp_path, "source", Traveller()) as source,
        thread(tmp_path, "destination", Traveller()) as destination,
        memory() as old,
    ):
        guest = Guest(source, old)
        irq = source.irq(IrqIndex.MSIX)
        irq.disconnect(1)
        until(guest, 50)
        guest.pause()
        assert irq[2].poll() == 0
        irq.trigger(2)
        assert irq[2].is_pending
        migrate(source, destination, dirtied=guest.dirtied)
        moved = destination.irq(IrqIndex.MSIX)
        assert [moved[vector].poll() for vector in range(4)] == [0, 0, 1, 0]
        moved.connect(1)
        assert moved[1].wait() == 1


def test_the_memory_buffers_are_from_goes_along(tmp_path: Path) -> None:
    with thread(tmp_path, "a", Traveller()) as source, thread(tmp_path, "b", Traveller()) as destination:
        buffer = source.dma_alloc(8)
        migrate(source, destination)
        source.close()
        buffer[:] = b"still up"
        other = destination.dma_alloc(8)
        assert other.iova != buffer.iova
        assert destination.space.read(buffer.iova, 8) == b"still up"


# What fails leaves the source running.


class Stop(Exception):
    """What a VMM may raise."""


def goes_on(guest: Guest) -> None:
    """The device works at the source, and nothing of it was lost."""
    assert guest.client.migration.state == MigrationState.RUNNING
    assert guest.client.space.dirty_log is None
    until(guest, 30)
    guest.check()


@pytest.mark.parametrize("migration", ["v1", "v2"])
@pytest.mark.parametrize("step", STEPS)
def test_called_off_at_every_step(tmp_path: Path, step: MigrationStep, migration: str) -> None:
    with thread(tmp_path, "source", Traveller(), migration) as source, memory() as old, memory() as new:
        guest = Guest(source, old)

        def fail(progress: MigrationProgress) -> None:
            if progress.step == step:
                raise Stop

        with thread(tmp_path, "destination", Traveller(), migration) as destination:
            destination.dma_map(new, MEMORY_IOVA)
            moving = LiveMigration(source, destination, progress=fail, dirtied=guest.dirtied)
            with pytest.raises(Stop) as caught:
                moving.run()
            assert caught.value.__notes__ == ["the migration was called off: the source runs on as before"]
            assert (moving.source_runs, moving.is_committed) == (True, False)
            goes_on(guest)
        # And it moves all the same, the next time.
        with thread(tmp_path, "another", Traveller(), migration) as destination:
            destination.dma_map(new, MEMORY_IOVA)
            migrate(source, destination, dirtied=guest.everything)
            guest.moved_to(destination, new)
            until(guest, 30)
            guest.check()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_the_destination_dies_or_hangs_at_every_step(tmp_path: Path, step: MigrationStep, end: int) -> None:
    with (
        thread(tmp_path, "source", Traveller()) as source,
        process(tmp_path, "destination") as (destination, pid),
        memory() as old,
    ):
        guest = Guest(source, old)
        destination.connection.timeout = 0.1

        def strike(progress: MigrationProgress) -> None:
            if progress.step == step:
                os.kill(pid, end)

        reason = ConnectionClosedError if end == signal.SIGKILL else CommandTimeoutError
        with pytest.raises(
            MigrationError, match=r"did not move: .* failed: .*; the source runs on as before"
        ) as caught:
            migrate(source, destination, progress=strike, pause=guest.work, dirtied=guest.dirtied)
        assert caught.value.source_runs
        assert isinstance(caught.value.__cause__, reason)
        goes_on(guest)


@pytest.mark.parametrize("migration", ["v1", "v2"])
@pytest.mark.parametrize("broken", ["load", "RESUMING", "RUNNING"])
def test_a_destination_that_breaks(tmp_path: Path, broken: str, migration: str) -> None:
    device = Traveller(fail_in=broken)
    with (
        thread(tmp_path, "source", Traveller(), migration) as source,
        thread(tmp_path, "destination", device, migration) as destination,
        memory() as old,
    ):
        guest = Guest(source, old)
        with pytest.raises(MigrationError, match="the source runs on") as caught:
            migrate(source, destination, dirtied=guest.dirtied)
        assert caught.value.step == ("prepare" if broken == "RESUMING" else "resume")
        assert isinstance(caught.value.__cause__, CommandError)
        goes_on(guest)


@pytest.mark.parametrize("migration", ["v1", "v2"])
def test_a_destination_of_another_class(tmp_path: Path, migration: str) -> None:
    with (
        thread(tmp_path, "source", Traveller(), migration) as source,
        thread(tmp_path, "destination", Edu(), migration) as destination,
    ):
        with pytest.raises(MigrationError, match="the source runs on") as caught:
            migrate(source, destination)
        assert isinstance(caught.value.__cause__, CommandError)
        assert caught.value.__cause__.errno == errno.EINVAL
        assert source.migration.state == MigrationState.RUNNING


@pytest.mark.parametrize("migration", ["v1", "v2"])
@pytest.mark.parametrize("broken", ["PRE_COPY", "STOP_COPY"])
def test_a_source_that_breaks(tmp_path: Path, broken: str, migration: str) -> None:
    # A device that failed half way to a state is in ERROR: nobody but its reset gets it out of there.
    with (
        thread(tmp_path, "source", Traveller(fail_in=broken), migration) as source,
        thread(tmp_path, "destination", Traveller(), migration) as destination,
    ):
        with pytest.raises(MigrationError, match="the source does not run either, and has to be looked") as caught:
            migrate(source, destination)
        assert not caught.value.source_runs
        assert source.migration.state == MigrationState.ERROR


@pytest.mark.parametrize("state", [MigrationState.PRE_COPY, MigrationState.STOP_COPY, MigrationState.RUNNING])
def test_a_source_that_refuses(tmp_path: Path, state: MigrationState, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        thread(tmp_path, "source", Traveller()) as source,
        thread(tmp_path, "destination", Traveller()) as destination,
        memory() as old,
    ):
        guest = Guest(source, old)
        go_to = source.migration.go_to
        refused: list[MigrationState] = []

        def refuse(goal: MigrationState) -> None:
            if goal == state and not refused:
                refused.append(goal)
                raise CommandError(errno.EBUSY, 16, "DEVICE_FEATURE SET of MIG_DEVICE_STATE")
            go_to(goal)

        monkeypatch.setattr(source.migration, "go_to", refuse)

        def stop() -> None:
            if state == MigrationState.RUNNING:
                raise StateError("the guest does not stop")

        with pytest.raises(MigrationError) as caught:
            migrate(source, destination, pause=stop)
        if state == MigrationState.RUNNING:
            # Called off, and the source refuses to go on.
            assert not caught.value.source_runs
            go_to(MigrationState.RUNNING)
            source.migration.stop_log()
        else:
            assert caught.value.source_runs
        goes_on(guest)


def test_a_source_that_dies(tmp_path: Path) -> None:
    with process(tmp_path, "source") as (source, pid), thread(tmp_path, "there", Traveller()) as destination:
        with pytest.raises(MigrationError, match="the source does not run either") as caught:
            migrate(source, destination, pause=lambda: os.kill(pid, signal.SIGKILL))
        assert not caught.value.source_runs
        assert destination.connection.is_closed


def test_more_state_than_is_taken(tmp_path: Path) -> None:
    with thread(tmp_path, "a", Traveller()) as source, thread(tmp_path, "b", Traveller()) as destination:
        with pytest.raises(MigrationError, match=r"bytes of state; at most 500 are taken \(MigrationLimits"):
            migrate(source, destination, limits=MigrationLimits(state_size=500))
        assert source.migration.state == MigrationState.RUNNING


def test_what_goes_wrong_at_the_very_end_stops_nothing(tmp_path: Path) -> None:
    with process(tmp_path, "a") as (source, pid), thread(tmp_path, "b", Traveller()) as destination, memory() as old:
        guest = Guest(source, old)
        moving = LiveMigration(source, destination, dirtied=guest.dirtied)
        source.connection.timeout = 0.1
        resume = destination.migration.go_to

        def resume_and_kill(state: MigrationState) -> None:
            resume(state)
            if state == MigrationState.RUNNING:
                os.kill(pid, signal.SIGKILL)

        destination.migration.go_to = resume_and_kill  # type: ignore[method-assign]
        moving.run()
        assert (moving.is_committed, moving.source_runs) == (True, False)
        guest.moved_to(destination, old)
        until(guest, 30)
        guest.check()


# What cannot begin.


def test_both_devices_have_to_run(tmp_path: Path) -> None:
    with thread(tmp_path, "a", Traveller()) as source, thread(tmp_path, "b", Traveller()) as destination:
        destination.migration.go_to(MigrationState.STOP)
        with pytest.raises(MigrationError, match="destination is in STOP: a migration begins with both") as caught:
            migrate(source, destination)
        assert caught.value.source_runs
        assert not destination.connection.is_closed
        with pytest.raises(ValueError, match="the source is the destination"):
            migrate(source, source)


def test_devices_that_cannot(tmp_path: Path) -> None:
    with thread(tmp_path, "a", Traveller()) as source, thread(tmp_path, "b", Traveller(), "off") as destination:
        with pytest.raises(MigrationError, match="the device cannot be migrated: its server offers neither"):
            migrate(source, destination)
        assert source.migration.state == MigrationState.RUNNING


def test_memory_that_is_mapped_otherwise(tmp_path: Path) -> None:
    with (
        thread(tmp_path, "a", Traveller()) as source,
        thread(tmp_path, "b", Traveller()) as destination,
        memory() as old,
    ):
        source.dma_map(old, MEMORY_IOVA)
        destination.dma_map(old, MEMORY_IOVA, size=PAGE)
        with pytest.raises(
            MigrationError, match=r"source maps \[0x100000, 0x200000\), the destination \[0x100000, 0x1"
        ):
            migrate(source, destination)
        assert source.migration.state == MigrationState.RUNNING


def test_vectors_the_destination_has_not(tmp_path: Path) -> None:
    with thread(tmp_path, "a", Traveller()) as source, thread(tmp_path, "b", Edu()) as destination:
        source.irq(IrqIndex.MSIX).enable(2)
        with pytest.raises(MigrationError, match="the device has 0 MSIX vectors; 2 cannot be taken over"):
            migrate(source, destination)
