"""``vfio-user inspect`` against servers of ours, in processes of their own, and against one that lies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.support import Outcome, program, receive, serving
from tests.pci.test_dump import everything
from vfio_user.pci.dump import format_lspci
from vfio_user.protocol.constants import Command, DeviceFlags, IrqInfoFlags, RegionFlags
from vfio_user.protocol.device import DeviceInfo
from vfio_user.protocol.header import Header, error_reply, reply_header
from vfio_user.protocol.irq import IrqInfo, IrqInfoRequest
from vfio_user.protocol.region import ACCESS, MappableArea, RegionInfo, RegionInfoRequest

Run = Callable[..., Outcome]

RW = RegionFlags.READ | RegionFlags.WRITE


@pytest.fixture(scope="module")
def edu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A served edu."""
    folder = tmp_path_factory.mktemp("inspect")
    path = folder / "edu.sock"
    with serving("edu", "--socket-path", str(path), cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield path


def test_as_text(edu: Path, run: Run) -> None:
    outcome = run("inspect", str(edu))
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "  BAR0      0x100000 bytes, READ|WRITE, by message\n" in outcome.stdout
    assert "  MSI       1 vector  EVENTFD\n" in outcome.stdout
    assert "  1234:11e8, class 00ff00, revision 10, subsystem" in outcome.stdout
    assert "    command 0x0000: io_space- memory_space- bus_master-" in outcome.stdout
    assert "  [040] MSI\n    control 0x0080: enable-" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_as_json(edu: Path, run: Run) -> None:
    outcome = run("inspect", "--json", f"unix:{edu}")
    about = json.loads(outcome.stdout)
    assert outcome.status == 0
    assert about["regions"][0] | {"name": "BAR0", "size": 1 << 20, "fault": None} == about["regions"][0]
    assert about["irqs"][1]["count"] == 1
    assert [each["name"] for each in about["config"]["capabilities"]] == ["MSI"]
    header = {register["name"]: register for register in about["config"]["header"]}
    assert header["vendor_id"]["value"] == 0x1234
    assert bytes.fromhex(about["config"]["bytes"])[:2] == b"\x34\x12"


def test_as_lspci_has_it(edu: Path, run: Run) -> None:
    outcome = run("inspect", "--lspci", str(edu))
    assert outcome.stdout.splitlines()[1].startswith("00: 34 12 e8 11 ")
    assert len(outcome.stdout.splitlines()) == 1 + 16 + 1


def test_as_a_program_it_has_no_colour_but_on_a_terminal(edu: Path) -> None:
    def seen(**environment: str) -> str:
        leader, follower = os.openpty()
        with os.fdopen(follower, "wb") as terminal:
            subprocess.run(program("inspect", str(edu)), stdout=terminal, env={**os.environ, **environment}, check=True)
        # It all fits the terminal's buffer: less than 4 KiB.
        with os.fdopen(leader, "rb") as output:
            return os.read(output.fileno(), 65536).decode()

    environment = {"NO_COLOR": ""}
    assert "\x1b[1mregions\x1b[0m" in seen(**environment)
    assert "\x1b" not in seen(NO_COLOR="1")


def test_over_tcp_and_an_inherited_descriptor(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        serving("lamp.py", "--address", f"fd:{theirs.fileno()}", cwd=folder, pass_fds=[theirs.fileno()]),
    ):
        words = program("inspect", f"fd:{ours.fileno()}")
        outcome = subprocess.run(words, pass_fds=[ours.fileno()], capture_output=True, text=True, check=True)
        assert "BAR0      0x1000 bytes" in outcome.stdout
        assert "configuration space" not in outcome.stdout
    with serving("lamp.py", "--address", "tcp:0", cwd=folder) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        outcome = subprocess.run(program("inspect", address), capture_output=True, text=True, check=True)
        assert "max_msg_fds 0" in outcome.stdout


def test_nobody_there(folder: Path, run: Run) -> None:
    outcome = run("inspect", str(folder / "none"))
    assert outcome.status == 1
    assert "Is a server running there?" in outcome.stderr
    assert run("inspect", "tcp:x:y:z").status == 2
    assert run("inspect", "--timeout", "0", "x").status == 2


# A server that says what it likes.

Answer = Callable[[Header, bytes], bytes | int]


@contextmanager
def liar(folder: Path, answer: Answer, version: bytes = b'{"capabilities":{}}\0') -> Iterator[str]:
    """Serves one client; commands are answered by the function: a payload, or an errno."""
    path = folder / "liar.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while True:
                try:
                    header = Header.decode(receive(connection, 16))
                    payload = receive(connection, header.message_size - 16)
                except (AssertionError, OSError):
                    return
                answered = b"\0\0\0\0" + version if header.command == Command.VERSION else answer(header, payload)
                if isinstance(answered, int):
                    connection.sendall(error_reply(header.message_id, header.command, answered))
                else:
                    connection.sendall(reply_header(header.message_id, header.command, len(answered)) + answered)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield str(path)
    finally:
        thread.join(10)
        listener.close()


def card(config: bytes) -> Answer:
    """Answers for a PCI function with this configuration space."""

    def answer(header: Header, payload: bytes) -> bytes | int:
        if header.command == Command.DEVICE_GET_INFO:
            return DeviceInfo(DeviceFlags.PCI, 9, 5).encode()
        if header.command == Command.DEVICE_GET_REGION_INFO:
            request = RegionInfoRequest.decode(payload)
            areas = tuple(MappableArea(n << 12, 4096) for n in range(100)) if request.index == 2 else ()
            size = len(config) if request.index == 7 else 1 << 20
            return RegionInfo(request.index, RW, size, 0, areas).encode(request.argsz)[0]
        if header.command == Command.DEVICE_GET_IRQ_INFO:
            return IrqInfo(IrqInfoRequest.decode(payload).index, IrqInfoFlags.EVENTFD, 3).encode()
        if header.command == Command.REGION_READ:
            offset, _, count = ACCESS.unpack(payload)
            return payload + config[offset : offset + count]
        return 95  # ENOTSUP

    return answer


def test_everything_there_is_in_80_columns(folder: Path, run: Run) -> None:
    with liar(folder, card(everything())) as address:
        outcome = run("inspect", address)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert "  [100 v2] Advanced Error Reporting\n" in outcome.stdout
    assert "power_state=D0" in outcome.stdout
    assert "contents 68 65 6c 6c 6f" in outcome.stdout
    assert "BAR0: memory at 0x1234000000 (64 bits, prefetchable)" in outcome.stdout
    assert "BAR2: I/O ports at 0xc000" in outcome.stdout
    assert "... 92 areas more\n" in outcome.stdout
    assert max(map(len, outcome.stdout.splitlines())) <= 80


def test_lspci_form_is_what_the_device_would_print(folder: Path, run: Run) -> None:
    config = everything()
    with liar(folder, card(config)) as address:
        assert run("inspect", "--lspci", address).stdout == format_lspci(config)


def test_text_of_the_peer_is_harmless_on_a_terminal(folder: Path, run: Run) -> None:
    name = json.dumps("\x1b]0;owned\x07\u202e" + "x" * 600)
    version = f'{{"capabilities":{{{name}:{name},"\\u009b31m":"\\r\\n"}}}}\0'.encode()
    with liar(folder, card(bytes(256)), version) as address:
        outcome = run("inspect", address)
    assert outcome.status == 0
    assert all(line.isprintable() for line in outcome.stdout.splitlines())
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    (folder / "liar.sock").unlink()
    with liar(folder, card(bytes(256)), version) as address:
        outcome = run("inspect", "--json", address)
    assert all(line.isprintable() for line in outcome.stdout.splitlines())
    assert json.loads(outcome.stdout)["capabilities"]["\x9b31m"] == "\r\n"


@pytest.mark.parametrize("depth", [500, 1200])
def test_json_nested_deeply(folder: Path, run: Run, depth: int) -> None:
    version = f'{{"capabilities":{{"a":{"[" * depth}{"]" * depth}}}}}\0'.encode()
    with liar(folder, card(bytes(256)), version) as address:
        assert run("inspect", "--json", address).status in (0, 1)
    (folder / "liar.sock").unlink()
    with liar(folder, card(bytes(256)), version) as address:
        assert run("inspect", address).status in (0, 1)


def test_chains_that_go_in_circles_are_said(folder: Path, run: Run) -> None:
    config = bytearray(256)
    config[0x06], config[0x34], config[0x40:0x42] = 0x10, 0x40, b"\x09\x40"
    with liar(folder, card(bytes(config))) as address:
        outcome = run("inspect", address)
    assert outcome.status == 0
    assert "the chain of capabilities leads back, to 0x40" in outcome.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_server_that_claims_too_much(folder: Path, run: Run, form: list[str]) -> None:
    def answer(header: Header, payload: bytes) -> bytes | int:
        return DeviceInfo(DeviceFlags.PCI, 0xFFFF_FFFF, 0xFFFF_FFFF).encode()

    with liar(folder, answer) as address:
        outcome = run("inspect", *form, address)
    assert outcome.status == 1
    assert "not everything could be asked for: the device claims 4294967295 regions" in outcome.stderr


def test_refusals_are_shown_where_they_belong(folder: Path, run: Run) -> None:
    def answer(header: Header, payload: bytes) -> bytes | int:
        return 1 if header.command in (5, 7, 9) else card(bytes(256))(header, payload)

    with liar(folder, answer) as address:
        outcome = run("inspect", address)
    assert outcome.status == 0
    assert outcome.stdout.count("[Errno 1]") == 14
    assert max(map(len, outcome.stdout.splitlines())) <= 80
    (folder / "liar.sock").unlink()
    with liar(folder, answer) as address:
        about = json.loads(run("inspect", "--json", address).stdout)
    assert "DEVICE_GET_REGION_INFO of BAR0: Operation not permitted" in about["regions"][0]["fault"]
    assert "DEVICE_GET_IRQ_INFO of INTX: Operation not permitted" in about["irqs"][0]["fault"]
    assert about["config"] is None
