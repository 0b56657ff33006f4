"""``vfio-user migrate``: moves a device; and whatever stops it, leaves it where it was."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path

import pytest

from tests.cli.support import Outcome
from vfio_user.cli.migrate import _ProgressBar
from vfio_user.client.device import VfioUserClient
from vfio_user.client.live_migration import LiveMigration, MigrationProgress, MigrationStep
from vfio_user.client.migration import Migration
from vfio_user.devices.edu import Edu
from vfio_user.devices.gpio_pci_idio_16 import GpioPciIdio16
from vfio_user.errors import CommandError, VfioUserError
from vfio_user.protocol.migration import MigrationState
from vfio_user.server.device import Device
from vfio_user.server.server import Server

Command = Callable[..., Outcome]
STEPS = [step for step in MigrationStep if step != MigrationStep.DONE]


@contextmanager
def served(*devices: Device, folder: Path) -> Iterator[list[str]]:
    """The devices, each on a thread; gives their sockets."""
    with ExitStack() as stack:
        for number, device in enumerate(devices):
            stack.enter_context(Server(device, folder / str(number)).start())
        yield [str(folder / str(number)) for number, _ in enumerate(devices)]


def write(address: str, value: int) -> None:
    with VfioUserClient.connect(address) as client:
        client.region(0).write32(0x04, ~value & 0xFFFF_FFFF)


def read(address: str) -> int:
    """What ``write`` wrote; and the device runs."""
    with VfioUserClient.connect(address) as client:
        assert client.migration.state == MigrationState.RUNNING
        return client.region(0).read32(0x04)


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[str]]:
    """Those of two edus, of which the first holds 5."""
    with served(Edu(), Edu(), folder=tmp_path) as sockets:
        write(sockets[0], 5)
        yield sockets


def test_a_device_moves(sockets: list[str], run: Command) -> None:
    source, destination = sockets
    outcome = run("migrate", source, destination)
    assert (outcome.status, outcome.stderr) == (0, "")
    first, downtime, _, state, *rest = outcome.stdout.splitlines()
    assert first == f"the device at {source} has moved to {destination}"
    assert downtime.startswith("  downtime  ")
    assert downtime.endswith(" ms")
    assert "of it while the device stood still" in state
    assert "goes on: end its server, or use --reset" in " ".join(rest).replace("\n", " ")
    assert (read(source), read(destination)) == (5, 5)


def test_the_old_one_can_be_reset(sockets: list[str], run: Command) -> None:
    source, destination = sockets
    outcome = run("migrate", "--reset", "--json", source, destination)
    assert (read(source), read(destination)) == (0, 5)
    report = json.loads(outcome.stdout)
    assert (report["source"], report["destination"], report["reset"]) == (source, destination, True)
    assert report["generation"] == 2
    assert 0 < report["downtime"] < report["seconds"] < 5
    assert report["state_bytes"] >= report["final_state_bytes"] > 0


def test_an_old_one_that_cannot_be_reset(sockets: list[str], run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def reset(_self: VfioUserClient) -> None:
        raise CommandError(5, 13, "DEVICE_RESET")

    monkeypatch.setattr(VfioUserClient, "reset", reset)
    outcome = run("migrate", "--reset", *sockets)
    assert outcome.status == 0
    assert "has moved, but the old one could not be reset: [Errno 5]" in outcome.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", STEPS)
def test_interrupted_at_every_step(
    sockets: list[str], run: Command, monkeypatch: pytest.MonkeyPatch, step: MigrationStep, number: int
) -> None:
    def interrupt(_self: _ProgressBar, progress: MigrationProgress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr(_ProgressBar, "show", interrupt)
    outcome = run("migrate", *sockets)
    assert (outcome.status, outcome.stdout) == (130, "")
    assert outcome.stderr == f"vfio-user: interrupted; the device at {sockets[0]} runs on\n"
    assert (read(sockets[0]), read(sockets[1])) == (5, 0)
    assert signal.getsignal(number) == before


def test_interrupted_too_late(sockets: list[str], run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_self: _ProgressBar, progress: MigrationProgress) -> None:
        if progress.step == MigrationStep.DONE:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_ProgressBar, "show", interrupt)
    assert run("migrate", *sockets).status == 0
    assert read(sockets[1]) == 5


def test_interrupted_twice(sockets: list[str], run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # The second one would stop the source from being made to run again.
    def interrupt(_self: _ProgressBar, progress: MigrationProgress) -> None:
        if progress.step == MigrationStep.STOP_COPY:
            os.kill(os.getpid(), signal.SIGINT)

    run_source = LiveMigration._run_source

    def interrupt_again(moving: LiveMigration) -> VfioUserError | None:
        os.kill(os.getpid(), signal.SIGINT)
        return run_source(moving)

    monkeypatch.setattr(_ProgressBar, "show", interrupt)
    monkeypatch.setattr(LiveMigration, "_run_source", interrupt_again)
    outcome = run("migrate", *sockets)
    assert (outcome.status, outcome.stderr) == (130, f"vfio-user: interrupted; the device at {sockets[0]} runs on\n")
    assert (read(sockets[0]), read(sockets[1])) == (5, 0)


def test_an_interrupted_source_that_does_not_go_on(
    sockets: list[str], run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: _ProgressBar, progress: MigrationProgress) -> None:
        if progress.step == MigrationStep.STOP_COPY:
            monkeypatch.setattr(Migration, "stop_log", refuse)
            os.kill(os.getpid(), signal.SIGINT)

    def refuse(_self: Migration) -> None:
        raise CommandError(5, 16, "DEVICE_FEATURE")

    monkeypatch.setattr(_ProgressBar, "show", interrupt)
    outcome = run("migrate", *sockets)
    assert outcome.status == 130
    assert "does not run: restart its server" in outcome.stderr


def test_a_device_of_another_class(tmp_path: Path, run: Command) -> None:
    with served(Edu(), GpioPciIdio16(), folder=tmp_path) as sockets:
        write(sockets[0], 7)
        outcome = run("migrate", *sockets)
        assert outcome.status == 1
        assert "the device did not move: resume failed: " in outcome.stderr
        assert "the source runs on as before" in outcome.stderr
        assert read(sockets[0]) == 7


def test_nobody_there(tmp_path: Path, run: Command) -> None:
    with served(Edu(), folder=tmp_path) as (socket,):
        outcome = run("migrate", socket, str(tmp_path / "nobody"))
        assert outcome.status == 1
        assert "Is a server running there?" in outcome.stderr
        assert read(socket) == 0


def test_the_same_twice(run: Command) -> None:
    outcome = run("migrate", "a", "a")
    assert outcome.status == 2
    assert "SRC and DST are both a: a device moves from one server to another" in outcome.stderr


def test_a_server_that_serves_somebody_else(sockets: list[str], run: Command) -> None:
    with VfioUserClient.connect(sockets[1]):
        outcome = run("migrate", *sockets, "--timeout", "0.05")
    assert outcome.status == 1
    assert f"That is the server at {sockets[1]}. It has one client at a time" in outcome.stderr


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "soon"])
def test_time_limits_that_are_none(run: Command, text: str) -> None:
    outcome = run("migrate", "a", "b", "--timeout", text)
    assert outcome.status == 2
    assert f"'{text}' is no time limit" in outcome.stderr


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    bar = _ProgressBar(terminal)
    for number, step in enumerate(MigrationStep):
        bar.show(MigrationProgress(step, state_bytes=1500 << 10 * min(number, 3)))
    bar.clear()
    bar.clear()
    lines = [line for line in terminal.getvalue().split("\r") if line.strip()]
    assert lines[0] == "[........................] prepare, 1.5 KiB of state"
    assert lines[2] == "[#########...............] stop, 1.5 GiB of state"
    assert lines[5] == "[########################] done, 1500.0 GiB of state"
    assert max(map(len, lines)) < 80
    assert terminal.getvalue().endswith("\r")
    assert "\x1b" not in terminal.getvalue()


def test_the_bar_on_a_narrow_terminal_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    bar = _ProgressBar(terminal)
    bar.show(MigrationProgress(MigrationStep.STOP_COPY, state_bytes=77))
    assert terminal.getvalue() == "[\x1b[32m##############\x1b[0m..........] stop-and-cop"


def test_the_bar_is_not_drawn_more_often_than_anybody_looks() -> None:
    terminal = Terminal()
    bar = _ProgressBar(terminal)
    for size in range(1000):
        bar.show(MigrationProgress(MigrationStep.PRE_COPY, state_bytes=size))
    assert terminal.getvalue().count("pre-copy") < 5


@pytest.mark.parametrize("stream", [None, StringIO()])
def test_no_bar_where_nobody_looks(stream: StringIO | None) -> None:
    bar = _ProgressBar(stream)
    bar.show(MigrationProgress(MigrationStep.PRE_COPY))
    bar.clear()
    assert stream is None or stream.getvalue() == ""
