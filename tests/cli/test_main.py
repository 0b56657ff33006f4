from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cli.support import Outcome, program
from vfio_user._version import __version__
from vfio_user.cli import main as main_module
from vfio_user.cli.main import COMMANDS, main
from vfio_user.errors import VmLaunchError

Run = Callable[..., Outcome]


def test_help_lists_every_command_and_fits(run: Run) -> None:
    outcome = run("--help")
    assert outcome.status == 0
    assert all(f"\n    {name} " in outcome.stdout for name in COMMANDS)
    assert max(map(len, outcome.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_fits(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0
    assert f"usage: vfio-user {command}" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_version(run: Run) -> None:
    assert run("--version") == Outcome(0, f"vfio-user {__version__}\n", "")


def test_nothing_asked_for_shows_the_help(run: Run) -> None:
    outcome = run()
    assert outcome.status == 2
    assert "start here:  vfio-user demo" in outcome.stdout


def test_unknown_command(run: Run) -> None:
    outcome = run("sreve")
    assert outcome.status == 2
    assert "invalid choice: 'sreve' (choose from 'serve', 'boot'," in outcome.stderr


def test_words_for_a_guest_need_boot(run: Run) -> None:
    outcome = run("devices", "--", "ls")
    assert outcome.status == 2
    assert "devices runs no command in a guest" in outcome.stderr


def test_python_dash_m() -> None:
    outcome = subprocess.run(program("--version"), capture_output=True, text=True, check=True)
    assert outcome.stdout == f"vfio-user {__version__}\n"


def fail_with(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    def fail(_arguments: object) -> int:
        raise exc

    monkeypatch.setattr("vfio_user.cli.devices.run", fail)


def test_an_operation_that_failed_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, VmLaunchError("QEMU ended", command=[], exit_code=1, output=""))
    assert run("devices") == Outcome(1, "", "vfio-user: QEMU ended\n")


def test_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert run("devices") == Outcome(130, "", "")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError("bug"))
    with pytest.raises(KeyError):
        main(["devices"])


def test_a_reader_that_had_enough_is_no_traceback() -> None:
    read = subprocess.Popen(program("devices"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert read.stdout is not None
    assert read.stderr is not None
    read.stdout.close()
    complaint = read.stderr.read()
    read.stderr.close()
    assert (read.wait(), complaint) == (1, "")


def test_only_the_command_asked_for_is_imported() -> None:
    code = (
        "import sys; from vfio_user.cli.main import main\n"
        "try: main(['serve', 'nothing'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('vfio_user.') and name.split('.')[1] in ('vm', 'trace')"
        " or name in ('importlib.metadata', 'vfio_user.cli.boot')])"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "['importlib.metadata']\n"  # the name is unknown, so installed packages were asked


def test_commands_are_modules() -> None:
    assert " ".join(main_module.COMMANDS) == "serve boot demo devices inspect migrate registers conform doctor kit"
