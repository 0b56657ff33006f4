"""Sockets systemd passes: which one an address means, and real programs started as systemd starts them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.systemd import activated
from vfio_user.errors import ConnectError
from vfio_user.transport.address import SystemdAddress, parse_address
from vfio_user.transport.connect import connect
from vfio_user.transport.systemd import activated_fd

PID = 4711


def passed(count: str, names: str | None = None, pid: str = str(PID)) -> dict[str, str]:
    environment = {"LISTEN_PID": pid, "LISTEN_FDS": count}
    return environment if names is None else {**environment, "LISTEN_FDNAMES": names}


@pytest.mark.parametrize(
    ("text", "environment", "fd"),
    [
        ("systemd:", passed("1"), 3),
        ("systemd:", passed("1", "edu.socket"), 3),
        ("systemd:edu.socket", passed("1", "edu.socket"), 3),
        ("systemd:unknown", passed("1"), 3),
        ("systemd:nvme", passed("3", "edu:nvme:gpio"), 4),
        ("systemd:gpio", passed("3", "edu:edu:gpio"), 5),
    ],
)
def test_which_descriptor(text: str, environment: dict[str, str], fd: int) -> None:
    address = parse_address(text)
    assert isinstance(address, SystemdAddress)
    assert activated_fd(address, environment, PID) == fd


@pytest.mark.parametrize(
    ("text", "environment", "why"),
    [
        ("systemd:", {}, r"passed no sockets: LISTEN_PID and LISTEN_FDS are not set. Start .* systemd-socket-activate"),
        ("systemd:", {"LISTEN_FDS": "1"}, "passed no sockets"),
        ("systemd:", {"LISTEN_PID": str(PID)}, "passed no sockets"),
        (
            "systemd:",
            passed("1", pid="1"),
            r"to process 1, and this is process 4711. Let ExecStart= start this program",
        ),
        ("systemd:", passed("1", pid="x"), "LISTEN_PID is 'x', which is no number"),
        ("systemd:", passed("1", pid=""), "LISTEN_PID is '', which is no number"),
        ("systemd:", passed("-1"), "LISTEN_FDS is '-1', which is no number"),
        ("systemd:", passed("²"), "LISTEN_FDS is '²', which is no number"),
        ("systemd:", passed("9" * 5000), "which is no number"),
        ("systemd:", passed("0"), r"passed 0 sockets \(LISTEN_FDS\); it takes 1 to 4096"),
        ("systemd:", passed("4097"), "passed 4097 sockets"),
        ("systemd:", passed("2", "edu"), r"2 sockets \(LISTEN_FDS\) and 1 names \(LISTEN_FDNAMES\)"),
        ("systemd:", passed("2"), "2 of the sockets .* fit systemd:: 'unknown', 'unknown'; write systemd:NAME"),
        ("systemd:", passed("2", "edu:nvme"), "2 of the sockets .* fit systemd:: 'edu', 'nvme'; write systemd:NAME"),
        ("systemd:edu", passed("2", "edu:edu"), "fit systemd:edu: 'edu', 'edu'; give each its own FileDescriptorName="),
        ("systemd:ede", passed("2", "edu:nvme"), "passed no socket of the name 'ede', but 'edu', 'nvme'"),
    ],
)
def test_refused(text: str, environment: dict[str, str], why: str) -> None:
    address = parse_address(text)
    assert isinstance(address, SystemdAddress)
    with pytest.raises(ConnectError, match=why):
        activated_fd(address, environment, PID)


SERVE = """
import os, sys
from vfio_user.devices.edu import Edu
from vfio_user.server.server import Server, run_servers
server = Server(Edu(), sys.argv[1])
print(server.address, [os.get_inheritable(fd) for fd in (3, 4)], flush=True)
run_servers(server)
"""


def test_a_program_started_by_systemd(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as tcp:
        unix.bind(str(tmp_path / "edu.sock"))
        unix.listen()
        # The client is there before the server is: that is what it is for.
        early = connect(f"tcp:{tcp.getsockname()[1]}")
        with early, activated([unix, tcp], "first:second", "-c", SERVE, "systemd:second") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"tcp:127.0.0.1:{tcp.getsockname()[1]} [False, False]\n"
            version = b"\0\0\0\0"
            early.sendall(b"\1\0\1\0" + (16 + len(version)).to_bytes(4, "little") + bytes(8) + version)
            assert early.recv(4) == b"\1\0\1\0"
            process.terminate()
            assert process.wait(10) == 0
