"""Who is asked what, over which connection; and that no peer, however silent, hangs the kit."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.testing.conformance.devices import Edu, Plain
from vfio_user.errors import ConnectError
from vfio_user.protocol.constants import Command
from vfio_user.protocol.header import Header, command_header, reply_header
from vfio_user.server.server import Server
from vfio_user.testing.conformance import CHECKS, Outcome, Risk, Unmet, check_device, check_server, select
from vfio_user.transport.address import FdAddress


def test_a_device_of_this_process() -> None:
    device = Edu()
    for _ in range(2):  # it can be used again
        report = check_device(device)
        assert report.failures == []
        assert report.counts[Outcome.PASSED] > 700
    assert not device.is_connected


def test_a_server_behind_a_socket(tmp_path: Path) -> None:
    with Server(Edu(), tmp_path / "s").start():
        report = check_server(str(tmp_path / "s"), allow=list(Risk))
    assert [result.seen for result in report.having(Outcome.FAILED, Outcome.DIFFERS)] == []
    assert report.counts[Outcome.PASSED] > 700


def test_a_server_that_takes_one_connection_is_asked_what_it_can_be() -> None:
    ours, theirs = socket.socketpair()
    with Server(Plain(), FdAddress(theirs.detach())).start():
        report = check_server(f"fd:{ours.detach()}", only=["version", "stream"], allow=list(Risk))
    assert report.failures == []
    own = {result.seen for result in report.results if result.check.own_connection}
    assert own == {"the server takes one connection, and then no other"}
    assert {result.outcome for result in report.results if not result.check.own_connection} == {Outcome.PASSED}


def test_what_could_hurt_is_not_asked_without_leave(tmp_path: Path) -> None:
    with Server(Edu(), tmp_path / "s").start():
        cautious = check_server(str(tmp_path / "s"), only=["reset"])
        bold = check_server(str(tmp_path / "s"), only=["reset"], allow=[Risk.RESET])
    assert {result.outcome for result in cautious.results} == {Outcome.NOT_ASKED}
    assert cautious.results[0].seen == "resets the device: --allow reset"
    assert {result.outcome for result in bold.results} == {Outcome.PASSED}


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="Is a server running there"):
        check_server(str(tmp_path / "s"), timeout=0.01)


class Scripted:
    """A server that says VERSION, and to anything else what it is told: nothing, or that it is over."""

    def __init__(self, path: Path, *, version: bool, hangs_up: bool = False, floods: bytes = b"") -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(5)
        self.version, self.hangs_up, self.floods = version, hangs_up, floods
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65536):
                    header = Header.decode(data)
                    if header.command == Command.VERSION and self.version:
                        connection.sendall(reply_header(header.message_id, 1, 7) + b"\0\0\0\0{}\0")
                    elif self.hangs_up:
                        break
                    elif self.floods:
                        with suppress(OSError):
                            while True:
                                connection.sendall(self.floods)
                        break

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def test_a_server_that_says_nothing_cannot_be_asked(tmp_path: Path) -> None:
    server = Scripted(tmp_path / "s", version=False)
    with pytest.raises(Unmet, match=r"no reply within 0\.01 s"):
        check_server(str(tmp_path / "s"), timeout=0.01)
    server.close()


@pytest.mark.parametrize(("hangs_up", "seen"), [(False, "no reply within 0.01 s"), (True, "the server closed")])
def test_a_server_that_stops_answering_fails_each_check_in_its_time(tmp_path: Path, hangs_up: bool, seen: str) -> None:
    server = Scripted(tmp_path / "s", version=True, hangs_up=hangs_up)
    report = check_server(
        str(tmp_path / "s"), only=["header.id-is-repeated[[]0x[017]]", "header.id-is-repeated[[]0x7fff]"], timeout=0.01
    )
    server.close()
    assert [result.outcome for result in report.results] == [Outcome.FAILED] * 3
    assert {result.seen[: len(seen)] for result in report.results} == {seen}


@pytest.mark.parametrize(
    "message",
    [
        reply_header(0xFFFF, Command.DEVICE_GET_INFO, 0),
        command_header(1, Command.DMA_READ, 16, no_reply=True) + bytes(16),
    ],
    ids=["replies", "commands"],
)
def test_a_server_that_never_stops_talking_fails_each_check_in_its_time(tmp_path: Path, message: bytes) -> None:
    server = Scripted(tmp_path / "s", version=True, floods=message * 50)
    report = check_server(str(tmp_path / "s"), only=["info.size", "irq_info.argsz[[]MSI]"], timeout=0.05)
    server.close()
    assert {result.seen for result in report.results} == {"no end of other messages within 0.05 s"}


def test_selection() -> None:
    assert [check.name for check in select(CHECKS, ["info.size"])] == ["info.size"]
    assert {check.family for check in select(CHECKS, ["dma_*", "reset"])} >= {"dma_map", "dma_unmap", "reset"}
    assert select(CHECKS, []) == list(CHECKS)
    assert select(CHECKS, ["no such"]) == []


def test_names_are_unique_and_every_check_says_what_it_is_about() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all("vfio-user" in check.clause or "PCI" in check.clause or "practice" in check.clause for check in CHECKS)
    assert all(check.expected for check in CHECKS)
