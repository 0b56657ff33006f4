from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vfio_user.vm.process import ChildProcess


def test_life(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = ChildProcess(["sh", "-c", "echo out; echo err >&2; read x; exit 3"], output=log)
    assert process.wait(10) == 3  # its standard input is empty
    assert process.exit_code == 3
    assert process.wait() == 3
    process.signal(signal.SIGTERM)
    process.close()
    process.close()
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_close_kills(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = ChildProcess(["sleep", "60"], output=log)
    assert process.exit_code is None
    assert process.wait(0) is None
    assert os.getsid(process.pid) == process.pid
    process.close()
    assert process.exit_code == -signal.SIGKILL


def test_no_such_program(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log, pytest.raises(FileNotFoundError):
        ChildProcess(["/nowhere/program"], output=log)


def test_inherits_descriptors(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        process = ChildProcess(["sh", "-c", f"echo through >/proc/self/fd/{writer}"], pass_fds=[writer], output=log)
    os.close(writer)
    assert os.read(reader, 100) == b"through\n"
    os.close(reader)
    process.close()


def test_dies_with_us_but_not_with_the_thread_that_started_it() -> None:
    script = """
        import threading
        from vfio_user.vm.process import ChildProcess
        children = []
        def start():
            with open("/dev/null", "wb") as log:
                children.append(ChildProcess(["sleep", "60"], output=log))
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert children[0].wait(0.05) is None
        print(children[0].pid, flush=True)
        threading.Event().wait()
    """
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as ours:
        assert ours.stdout is not None
        child = os.pidfd_open(int(ours.stdout.readline()))
        try:
            assert not select.select([child], [], [], 0)[0]
            ours.kill()
            assert select.select([child], [], [], 10)[0], "the child outlived the process that started it"
        finally:
            os.close(child)
