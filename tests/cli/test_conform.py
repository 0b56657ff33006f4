from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.cli.support import Outcome
from tests.support.waiting import wait_for
from vfio_user.client.device import VfioUserClient
from vfio_user.devices.edu import Edu
from vfio_user.errors import CommandError, ConnectError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import command_header
from vfio_user.server.commands import COMMANDS, Reply
from vfio_user.server.server import Server

Run = Callable[..., Outcome]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with Server(Edu(), tmp_path / "edu.sock").start():
        yield str(tmp_path / "edu.sock")


@pytest.fixture
def broken(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server whose DEVICE_GET_IRQ_INFO says nothing."""
    monkeypatch.setitem(COMMANDS, Command.DEVICE_GET_IRQ_INFO, lambda *_: Reply())
    return address


def test_a_good_server(run: Run, address: str) -> None:
    outcome = run("conform", "server", address, "--only", "info.")
    assert outcome.status == 0
    assert "passed" in outcome.stdout
    assert "FAIL" not in outcome.stdout


def test_verbose_shows_what_is_kept(run: Run, address: str) -> None:
    outcome = run("conform", "server", address, "--only", "info.size", "-vv")
    assert outcome.stdout.splitlines()[:4] == [
        "info",
        "ok    size: 16 bytes",
        "      expected 16 bytes of payload, no more: QEMU and SPDK read no more",
        "        [practice (QEMU's client requires it)]",
    ]


def test_a_broken_server(run: Run, broken: str) -> None:
    outcome = run("conform", "server", broken, "--only", "irq_info.answered[[]INTX]")
    assert outcome.status == 1
    assert outcome.stdout.splitlines()[:5] == [
        "irq_info",
        "FAIL  answered[INTX]",
        "      expected 16 bytes about that index; no vectors is a success, too",
        "      seen     success, a header alone, instead of 16",
        "      clause   vfio-user, VFIO_USER_DEVICE_GET_IRQ_INFO",
    ]
    assert "1 failed" in outcome.stdout


def test_no_line_is_too_long(run: Run, broken: str) -> None:
    outcome = run("conform", "server", broken, "--allow", "all", "-vv")
    long = [line for line in outcome.stdout.splitlines() if len(line) > 80 and broken not in line]
    assert long == []


def test_json_and_junit(run: Run, broken: str, tmp_path: Path) -> None:
    outcome = run(
        "conform",
        "server",
        broken,
        "--only",
        "irq_info",
        "--allow",
        "close,write",
        "--json",
        "--junit",
        str(tmp_path / "j"),
    )
    assert outcome.status == 1
    found = json.loads(outcome.stdout)
    assert found["counts"]["failed"] > 10
    suite = ET.parse(tmp_path / "j").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == str(found["counts"]["failed"])


def test_what_was_not_asked_is_said(run: Run, address: str) -> None:
    outcome = run("conform", "server", address, "--only", "reset")
    assert outcome.status == 0
    assert "not asked: resets the device: --allow reset" in outcome.stdout


@pytest.mark.parametrize("peer", ["server", "client"])
def test_list(run: Run, peer: str) -> None:
    outcome = run("conform", peer, "--list")
    assert outcome.status == 0
    assert outcome.stdout.splitlines()[-1].endswith(" rules")
    assert max(map(len, outcome.stdout.splitlines())) <= 100
    listed = json.loads(run("conform", peer, "--list", "--json").stdout)
    assert {"name", "clause", "expected", "advised", "allow"} == set(listed[0])


@pytest.mark.parametrize(
    "words", [("server",), ("server", "--allow", "everything", "/s"), ("server", "nonsense:1")], ids=" ".join
)
def test_usage(run: Run, words: tuple[str, ...]) -> None:
    outcome = run("conform", *words)
    assert outcome.status == 2
    assert outcome.stderr.startswith("vfio-user: ")


def test_nobody_is_there(run: Run, tmp_path: Path) -> None:
    outcome = run("conform", "server", str(tmp_path / "none"), "--timeout", "0.01")
    assert outcome.status == 1
    assert "Is a server running there?" in outcome.stderr


def test_a_report_that_cannot_be_written(run: Run, address: str, tmp_path: Path) -> None:
    outcome = run("conform", "server", address, "--only", "info.size", "--junit", str(tmp_path / "no" / "j"))
    assert outcome.status == 1
    assert "cannot be written" in outcome.stderr


def observed(run: Run, path: Path, act: Callable[[], None], *words: str) -> Outcome:
    """``conform client``, and a client that comes as soon as it listens: not when its socket file is there."""

    def come() -> None:
        def acted() -> bool:
            try:
                act()
            except (ConnectError, FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        wait_for(acted)

    thread = threading.Thread(target=come)
    thread.start()
    outcome = run("conform", "client", "--listen", str(path), *words)
    thread.join()
    return outcome


def test_no_client_comes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("select.select", interrupted)
    outcome = run("conform", "client", "--listen", str(tmp_path / "s"))
    assert outcome.status == 130
    assert outcome.stdout == ""


def test_our_client_is_observed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    def act() -> None:
        with VfioUserClient.connect(path) as client:
            assert client.region(0).read32(0) == 0x0100_00ED

    outcome = observed(run, path, act, "-v")
    assert outcome.status == 0
    assert outcome.stderr == f"vfio-user: edu 1234:11e8 listening on unix:{path}\n"
    assert "ok    first: kept once" in outcome.stdout
    assert outcome.stdout.endswith(" do not apply\n")
    assert "FAIL" not in outcome.stdout
    assert not path.exists()


def test_a_client_that_breaks_a_rule(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s"

    def act() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(command_header(1, Command.DEVICE_GET_INFO, 16) + bytes(16))
            connection.recv(100)

    outcome = observed(run, path, act, "--only", "version.first", "--json")
    assert outcome.status == 1
    (found,) = json.loads(outcome.stdout)["checks"]
    assert found["seen"] == "DEVICE_GET_INFO came first"


def test_a_script(run: Run, tmp_path: Path) -> None:
    path, script = tmp_path / "s", tmp_path / "script"
    script.write_text("DEVICE_GET_INFO#1 error EPERM\n")

    def act() -> None:
        for _ in range(2):
            with VfioUserClient.connect(path) as client, pytest.raises(CommandError, match="not permitted"):
                client.get_info()

    assert observed(run, path, act, "--script", str(script), "--clients", "2").status == 0


def test_a_script_that_means_nothing(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("VERSION explode\n")
    outcome = run("conform", "client", "--script", str(script))
    assert outcome.status == 1
    assert "there is no 'explode'" in outcome.stderr
    assert "cannot be read" in run("conform", "client", "--script", str(tmp_path)).stderr
