"""``vfio-user migrate SRC DST``: the device behind one socket goes on behind another, with all its state.

The command is the client of both servers while it runs. So SRC has no other client: it is a server whose VMM has gone
(a device keeps its state then), or never came. There is no guest's memory to copy then; a VMM that moves with its guest
uses ``vfio_user.client.migrate``, which is what does the work here, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TextIO

from vfio_user.cli.common import seconds
from vfio_user.cli.output import WIDTH, Style, complain, wrap
from vfio_user.client.device import VfioUserClient
from vfio_user.client.live_migration import LiveMigration, MigrationProgress, MigrationReport, MigrationStep
from vfio_user.errors import AddressError, CommandTimeoutError, VfioUserError
from vfio_user.protocol.migration import MigrationState

__all__ = ["add_arguments", "run"]

_EPILOG = """\
examples:
  vfio-user serve edu --socket-path=/tmp/new.sock &
  vfio-user migrate /tmp/old.sock /tmp/new.sock

SRC and DST are paths, or other addresses as 'serve' takes them. Both servers
have devices of one class, and no other client: a server takes one at a time,
and a device keeps its state when its client goes.

Whatever fails, and Ctrl-C, leaves the device running at SRC. When it has moved,
the old one is still there, and goes on as soon as this client has gone: end its
server, or say --reset.
"""

#: Seconds between two updates of the progress bar.
_INTERVAL = 0.1

_BAR = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``migrate``."""
    parser.epilog = _EPILOG
    parser.add_argument("source", metavar="SRC", help="where the device is")
    parser.add_argument("destination", metavar="DST", help="where it is to go: a fresh device of the same class")
    parser.add_argument("--reset", action="store_true", help="reset the device at SRC once it has moved")
    parser.add_argument(
        "--timeout", type=seconds, default=5.0, metavar="SECONDS", help="what each command of a server may take (5)"
    )
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Moves the device."""
    if arguments.source == arguments.destination:
        raise AddressError(f"SRC and DST are both {arguments.source}: a device moves from one server to another")
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(_connect(address, arguments.timeout))
            for address in (arguments.source, arguments.destination)
        ]
        bar = _ProgressBar(sys.stderr)
        moving = LiveMigration(*clients, progress=bar.show)
        try:
            with _interruptible(moving):
                report = moving.run()
        except KeyboardInterrupt:
            bar.clear()
            state = "runs on" if moving.source_runs else "does not run: restart its server"
            complain(f"interrupted; the device at {arguments.source} {state}")
            raise
        finally:
            bar.clear()
        if arguments.reset:
            _reset(clients[0])
    if arguments.json:
        about = {"source": arguments.source, "destination": arguments.destination, "reset": arguments.reset}
        print(json.dumps(about | asdict(report)))
    else:
        _print(report, arguments)
    return 0


def _connect(address: str, timeout: float) -> VfioUserClient:
    try:
        return VfioUserClient.connect(address, timeout=timeout)
    except CommandTimeoutError as exc:
        exc.add_note(f"That is the server at {address}. It has one client at a time: is somebody using the device?")
        raise


@contextlib.contextmanager
def _interruptible(moving: LiveMigration) -> Iterator[None]:
    """SIGINT and SIGTERM call the migration off; they do nothing while it is being called off, or has happened."""

    def interrupt(_signal: int, _frame: object) -> None:
        if not (moving.is_rolling_back or moving.is_committed):
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reset(source: VfioUserClient) -> None:
    """Makes a fresh device of the one that has moved away, without its running in between."""
    try:
        # A device that resumes holds still, and takes a reset; with nothing written to it, it goes on as that left it.
        source.migration.go_to(MigrationState.RESUMING)
        source.reset()
        source.migration.go_to(MigrationState.RUNNING)
    except VfioUserError as exc:
        complain(f"the device has moved, but the old one could not be reset: {exc}")


def _print(report: MigrationReport, arguments: argparse.Namespace) -> None:
    style = Style()
    print(f"the device at {arguments.source} has moved to {style.bold(arguments.destination)}")
    print(f"  downtime  {style.good(f'{report.downtime * 1e3:.1f} ms')}")
    print(f"  all of it {report.seconds * 1e3:.1f} ms")
    while_stopped = f"{_bytes(report.final_state_bytes)} of it while the device stood still"
    print(f"  state     {_bytes(report.state_bytes)}, {while_stopped}")
    if not arguments.reset:
        print(wrap(f"the old device is still at {arguments.source}, and goes on: end its server, or use --reset"))


class _ProgressBar:
    """A line on a terminal that says how far it is; nothing where there is no terminal.

    How many bytes a device has to say is not known before it has said them: the bar counts steps.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._style = Style(stream)
        self._shown = ""
        self._next = 0.0

    def show(self, progress: MigrationProgress) -> None:
        """Brings it up to date, but not more often than anybody looks."""
        now = time.monotonic()
        if self._stream is None or (now < self._next and progress.step.value in self._shown):
            return
        self._next = now + _INTERVAL
        steps = list(MigrationStep)
        done = _BAR * steps.index(progress.step) // (len(steps) - 1)
        text = f"{progress.step.value}, {_bytes(progress.state_bytes)} of state"
        width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - 1
        text = text[: max(width - _BAR - 3, 0)]
        self.clear()
        self._shown = text
        print(f"[{self._style.good('#' * done)}{'.' * (_BAR - done)}] {text}", end="", file=self._stream, flush=True)

    def clear(self) -> None:
        """Takes it away. Idempotent."""
        if self._stream is not None and self._shown:
            blank = " " * (_BAR + 3 + len(self._shown))
            print(f"\r{blank}\r", end="", file=self._stream, flush=True)
            self._shown = ""


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
