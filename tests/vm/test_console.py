from __future__ import annotations

import socket
from pathlib import Path

from vfio_user.vm.console import Console


def test_console(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    lines: list[str] = []
    console = Console(ours, tmp_path / "log", lines.append)
    theirs.sendall(b"one\r\ntw")
    theirs.sendall(b"o\r\nthree \xff")
    found = console.wait_for(r"three", 10)
    assert found is not None
    assert console.text == "one\ntwo\nthree \N{REPLACEMENT CHARACTER}"
    assert console.tail(1) == "three \N{REPLACEMENT CHARACTER}"
    assert console.wait_for("four", 0.01) is None
    console.write(b"typed")
    assert theirs.recv(10) == b"typed"
    theirs.close()
    assert console.wait_for("four", 60) is None  # at once: it never will
    console.join()
    console.close()
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_bytes() == b"one\r\ntwo\r\nthree \xff"


def test_close_before_the_other_end(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "log")
    console.close()
    with theirs:
        assert theirs.recv(1) == b""
